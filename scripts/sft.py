"""Supervised fine-tuning of a causal language model, with LoRA or of all weights.

python scripts/sft.py --model_name_or_path MODEL --train_file train.json --output_dir runs/first
torchrun --nproc_per_node 4 scripts/sft.py --config configs/recipes/demo.yaml
"""

from hf_recipes.arguments import DataArguments, ModelArguments, SFTArguments
from hf_recipes.evaluation.suite import EvaluationArguments
from hf_recipes.models.loading import load_config, load_tokenizer, packing_leaks
from hf_recipes.parsing import Parser, run_script
from hf_recipes.training.evaluation import build_evaluations
from hf_recipes.training.memory import PeakMemory
from hf_recipes.training.model import build_model, check_settings
from hf_recipes.training.plan import make_plan, row_figures
from hf_recipes.training.run import (
    check_agreement,
    check_output_dir,
    enter_output_dir,
    on_main_process,
    train_and_finish,
)
from hf_recipes.training.sft import build_trainer, encoder_for, prepare_data


def main() -> None:
    parser = Parser([ModelArguments, DataArguments, SFTArguments, EvaluationArguments])
    model_args, data, args, evaluation = parser.parse()
    check_settings(model_args, args)
    on_main_process(args, check_output_dir, args, model_args.model_name_or_path, model_args.peft_path)
    source = {"trust_remote_code": args.trust_remote_code, "cache_dir": data.cache_dir}
    config = load_config(model_args, **source)
    tokenizer, added_tokens = load_tokenizer(
        model_args.tokenizer_source, args.chat_template, revision=model_args.model_revision, **source
    )

    train, validation, ledgers = prepare_data(data, args, tokenizer, evaluates=bool(evaluation.eval_files))
    end_of_turn = tokenizer.convert_tokens_to_ids(encoder_for(tokenizer, args).end_of_turn)
    methods = build_evaluations(evaluation, args, data, config, tokenizer, validation, [end_of_turn])
    figures = row_figures(train, ledgers["train"], args)
    packs = packing_leaks(config.model_type) if args.packing or args.padding_free else None
    plan = make_plan(model_args, args, config, tokenizer, added_tokens, figures, packs)
    plan.show(whole=args.dry_run)
    if args.dry_run:
        return
    memory = PeakMemory(plan.memory and plan.memory.peak)
    model = build_model(model_args, args, tokenizer, added_tokens, packs=packs, cache_dir=data.cache_dir)

    checkpoint = on_main_process(args, enter_output_dir, args)
    check_agreement(args, parser, rows=figures.rows, tokens=figures.tokens)
    args.eval_on_start = args.eval_on_start and checkpoint is None and bool(validation or methods)
    trainer = build_trainer(model, args, train, validation, tokenizer, methods)
    train_and_finish(trainer, parser, ledgers, checkpoint, memory)


if __name__ == "__main__":
    run_script(main, "go on with --resume_from_checkpoint true")
