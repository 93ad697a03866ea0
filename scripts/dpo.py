"""Direct preference optimization: a model that prefers the better answer, from pairs of a better and a worse one.

python scripts/dpo.py --model_name_or_path MODEL --train_file pairs.jsonl --output_dir runs/dpo
"""

from hf_recipes.core.settings import run_script
from hf_recipes.run.arguments import DPOArguments
from hf_recipes.run.run import GO_ON, Run
from hf_recipes.stages.preference import build_pair_trainer, other_evaluations, pair_figures, prepare_pairs


def main() -> None:
    run = Run(DPOArguments)
    run.open_model()
    args, config, tokenizer = run.args, run.config, run.tokenizer

    train, validation, ledgers = prepare_pairs(run.data, args, tokenizer, evaluates=run.evaluates)
    methods = other_evaluations(run.evaluation, args, run.data, config, tokenizer)
    if not run.plan(pair_figures(train, args), methods, validation, keeps_start=run.keeps_start):
        return
    model, reference = run.build_model(), run.build_reference()

    run.enter(evaluates=bool(validation or methods))
    trainer = build_pair_trainer(
        model, args, train, validation, tokenizer, methods, reference=reference, goes_on=run.goes_on
    )
    run.train(trainer, ledgers)


if __name__ == "__main__":
    run_script(main, GO_ON)
