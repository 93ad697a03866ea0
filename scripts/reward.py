"""Reward modelling: a model that scores answers, from pairs of a better and a worse one.

python scripts/reward.py --model_name_or_path MODEL --train_file pairs.jsonl --output_dir runs/reward
"""

from functools import partial

from hf_recipes.arguments import DataArguments, ModelArguments, RewardArguments
from hf_recipes.evaluation.suite import EvaluationArguments
from hf_recipes.models.loading import load_config, load_tokenizer
from hf_recipes.models.rewards import load_reward_model
from hf_recipes.parsing import Parser, run_script
from hf_recipes.training.memory import PeakMemory
from hf_recipes.training.model import build_model, check_settings
from hf_recipes.training.plan import make_plan
from hf_recipes.training.reward import build_trainer, pair_evaluations, pair_figures, prepare_data
from hf_recipes.training.run import (
    check_agreement,
    check_output_dir,
    enter_output_dir,
    on_main_process,
    train_and_finish,
)


def main() -> None:
    parser = Parser([ModelArguments, DataArguments, RewardArguments, EvaluationArguments])
    model_args, data, args, evaluation = parser.parse()
    check_settings(model_args, args)
    on_main_process(args, check_output_dir, args, model_args.model_name_or_path, model_args.peft_path)
    source = {"trust_remote_code": args.trust_remote_code, "cache_dir": data.cache_dir}
    config = load_config(model_args, **source)
    tokenizer, added_tokens = load_tokenizer(
        model_args.tokenizer_source, args.chat_template, revision=model_args.model_revision, or_plain=True, **source
    )

    train, validation, ledgers = prepare_data(data, args, tokenizer, evaluates=bool(evaluation.eval_files))
    methods = pair_evaluations(evaluation, args, data, config, tokenizer, train, validation)
    figures = pair_figures(train, args)
    plan = make_plan(model_args, args, config, tokenizer, added_tokens, figures, is_reward=True)
    plan.show(whole=args.dry_run)
    if args.dry_run:
        return
    memory = PeakMemory(plan.memory and plan.memory.peak)
    make = partial(load_reward_model, config=config, tokenizer=tokenizer, initializer_range=args.initializer_range)
    model = build_model(
        model_args, args, tokenizer, added_tokens, make=make, task_type="SEQ_CLS", cache_dir=data.cache_dir
    )

    checkpoint = on_main_process(args, enter_output_dir, args)
    check_agreement(args, parser, pairs=figures.rows, tokens=figures.tokens)
    args.eval_on_start = args.eval_on_start and checkpoint is None and bool(methods)
    trainer = build_trainer(model, args, train, tokenizer, methods)
    train_and_finish(trainer, parser, ledgers, checkpoint, memory)


if __name__ == "__main__":
    run_script(main, "go on with --resume_from_checkpoint true")
