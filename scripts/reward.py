"""Reward modelling: a model that scores answers, from pairs of a better and a worse one.

python scripts/reward.py --model_name_or_path MODEL --train_file pairs.jsonl --output_dir runs/reward
"""

from functools import partial

from hf_recipes.core.settings import run_script
from hf_recipes.models.reward_head import load_reward_model
from hf_recipes.run.arguments import RewardArguments
from hf_recipes.run.run import GO_ON, Run
from hf_recipes.stages.reward import build_trainer, pair_evaluations, pair_figures, prepare_data


def main() -> None:
    run = Run(RewardArguments)
    run.open_model(or_plain=True)
    args, config, tokenizer = run.args, run.config, run.tokenizer

    train, validation, ledgers = prepare_data(run.data, args, tokenizer, evaluates=run.evaluates)
    methods = pair_evaluations(run.evaluation, args, run.data, config, tokenizer, train, validation)
    if not run.plan(pair_figures(train, args), methods, is_reward=True):
        return
    make = partial(load_reward_model, config=config, tokenizer=tokenizer, initializer_range=args.initializer_range)
    model = run.build_model(make=make, task_type="SEQ_CLS")

    run.enter(evaluates=bool(methods))
    trainer = build_trainer(model, args, train, tokenizer, methods)
    run.train(trainer, ledgers)


if __name__ == "__main__":
    run_script(main, GO_ON)
