"""Kahneman-Tversky optimization: a model that gives better answers, from single ones that are good or bad.

python scripts/kto.py --model_name_or_path MODEL --train_file rated.jsonl --output_dir runs/kto
python scripts/kto.py … --train_file comments.jsonl --label_column like_count --label_threshold 10 --label_low 2
"""

from hf_recipes.core.settings import run_script
from hf_recipes.data.arguments import UnpairedArguments
from hf_recipes.run.arguments import KTOArguments
from hf_recipes.run.run import GO_ON, Run
from hf_recipes.stages.preference import build_rated_trainer, other_evaluations, prepare_rated, rated_figures


def main() -> None:
    run = Run(KTOArguments, data=UnpairedArguments)
    run.open_model()
    args, config, tokenizer = run.args, run.config, run.tokenizer

    train, validation, ledgers = prepare_rated(run.data, args, tokenizer, evaluates=run.evaluates)
    methods = other_evaluations(run.evaluation, args, run.data, config, tokenizer)
    if not run.plan(rated_figures(train, args), methods, validation, keeps_start=run.keeps_start):
        return
    model, reference = run.build_model(), run.build_reference()

    run.enter(evaluates=bool(validation or methods))
    trainer = build_rated_trainer(
        model, args, train, validation, tokenizer, methods, reference=reference, goes_on=run.goes_on
    )
    run.train(trainer, ledgers)


if __name__ == "__main__":
    run_script(main, GO_ON)
