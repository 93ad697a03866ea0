"""Pretraining: going on with a causal language model on text, or training a new one from nothing.

python scripts/pretrain.py --model_name_or_path MODEL --train_file corpus/ --mixture mixture.json --output_dir runs/more
python scripts/pretrain.py --config_name configs/models/qwen3_30m.json --tokenizer_name MODEL --train_file corpus/ \\
    --output_dir runs/small
"""

from functools import partial

from hf_recipes.arguments import PretrainArguments, SourceArguments
from hf_recipes.evaluation.suite import EvaluationArguments
from hf_recipes.models.creation import PretrainModelArguments, freeze, make_model, read_model_config
from hf_recipes.models.loading import load_tokenizer
from hf_recipes.parsing import Parser, run_script
from hf_recipes.training.evaluation import build_evaluations, with_validation
from hf_recipes.training.memory import PeakMemory
from hf_recipes.training.mixtures import prepare_mixture
from hf_recipes.training.model import build_model, check_settings
from hf_recipes.training.plan import make_plan
from hf_recipes.training.pretrain import block_figures, build_trainer, leaks
from hf_recipes.training.run import (
    check_agreement,
    check_output_dir,
    enter_output_dir,
    on_main_process,
    train_and_finish,
)


def main() -> None:
    parser = Parser([PretrainModelArguments, SourceArguments, PretrainArguments, EvaluationArguments])
    model_args, data, args, evaluation = parser.parse()
    check_settings(model_args, args)
    on_main_process(args, check_output_dir, args, model_args.model_name_or_path, model_args.peft_path)
    source = {"trust_remote_code": args.trust_remote_code, "cache_dir": data.cache_dir}
    tokenizer, _ = load_tokenizer(
        model_args.tokenizer_source, revision=model_args.model_revision, needs_template=False, **source
    )
    config = read_model_config(model_args, tokenizer, **source)

    mixture, ledger = prepare_mixture(data, args, tokenizer)
    evaluation = with_validation(evaluation, data.validation_file)
    methods = build_evaluations(evaluation, args, data, config, tokenizer, None, [tokenizer.eos_token_id])
    packs = leaks(args, config.model_type)
    frozen = partial(freeze, train_only=args.train_only, layers=args.freeze_layers)
    figures = block_figures(mixture, args)
    plan = make_plan(model_args, args, config, tokenizer, [], figures, packs, frozen)
    plan.show(whole=args.dry_run)
    if args.dry_run:
        return
    memory = PeakMemory(plan.memory and plan.memory.peak)
    make = partial(make_model, config=config)
    model = build_model(model_args, args, tokenizer, packs=packs, make=make, freeze=frozen, cache_dir=data.cache_dir)

    checkpoint = on_main_process(args, enter_output_dir, args)
    check_agreement(args, parser, blocks=figures.rows, tokens=figures.tokens)
    args.eval_on_start = args.eval_on_start and checkpoint is None and bool(methods)
    trainer = build_trainer(model, args, mixture, ledger, data.max_drop_ratio, tokenizer, methods)
    train_and_finish(trainer, parser, {"train": ledger}, checkpoint, memory)


if __name__ == "__main__":
    run_script(main, "go on with --resume_from_checkpoint true")
