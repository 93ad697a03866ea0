"""Pretraining: going on with a causal language model on text, or training a new one from nothing.

python scripts/pretrain.py --model_name_or_path MODEL --train_file corpus/ --mixture mixture.json --output_dir runs/more
python scripts/pretrain.py --config_name configs/models/qwen3_30m.json --tokenizer_name MODEL --train_file corpus/ \\
    --output_dir runs/small
"""

from functools import partial

from hf_recipes.core.settings import run_script
from hf_recipes.data.arguments import SourceArguments
from hf_recipes.models.from_config import PretrainModelArguments, freeze, make_model, read_model_config
from hf_recipes.run.arguments import PretrainArguments
from hf_recipes.run.evaluate_callback import build_evaluations, with_validation
from hf_recipes.run.run import GO_ON, Run
from hf_recipes.stages.pretrain import block_figures, build_trainer, leaks
from hf_recipes.stages.pretrain_data import prepare_mixture


def main() -> None:
    run = Run(PretrainArguments, data=SourceArguments, model=PretrainModelArguments)
    run.open_model(read_model_config, needs_template=False)
    args, data, config, tokenizer = run.args, run.data, run.config, run.tokenizer

    mixture, ledger = prepare_mixture(data, args, tokenizer)
    evaluation = with_validation(run.evaluation, data.validation_file)
    methods = build_evaluations(evaluation, args, data, config, tokenizer, None, [tokenizer.eos_token_id])
    packs = leaks(args, config.model_type)
    frozen = partial(freeze, train_only=args.train_only, layers=args.freeze_layers)
    if not run.plan(block_figures(mixture, args), methods, packs=packs, freeze=frozen):
        return
    model = run.build_model(packs=packs, make=partial(make_model, config=config), freeze=frozen)

    run.enter(evaluates=bool(methods))
    trainer = build_trainer(model, args, mixture, ledger, data.max_drop_ratio, tokenizer, methods)
    run.train(trainer, {"train": ledger})


if __name__ == "__main__":
    run_script(main, GO_ON)
