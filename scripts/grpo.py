"""Reinforcement learning: answers of the model's own are scored, and the better ones made likelier (GRPO, RLOO).

python scripts/grpo.py --model_name_or_path MODEL --peft_path runs/sft --train_file prompts.jsonl \\
    --reward_model runs/reward --rewards repetition=0.5 --output_dir runs/grpo
"""

from hf_recipes.core.errors import UserError
from hf_recipes.core.settings import run_script
from hf_recipes.rewards.weighted_sum import Rewards
from hf_recipes.run.arguments import GRPOArguments
from hf_recipes.run.evaluate_callback import build_evaluations
from hf_recipes.run.run import GO_ON, Run
from hf_recipes.stages.grpo import answer_figures, build_trainer, prepare_prompts


def main() -> None:
    run = Run(GRPOArguments)
    if not run.evaluation.specs:
        raise UserError("nothing says what an answer is worth: give --rewards (see the README) or --reward_model")
    run.open_model(needs_template=False)
    args, tokenizer = run.args, run.tokenizer

    rewards = Rewards(run.evaluation, **run.source)
    train, validation, ledgers, stop_ids = prepare_prompts(run.data, args, tokenizer, rewards, run.evaluates)
    methods = build_evaluations(run.evaluation, args, run.data, run.config, tokenizer, validation, stop_ids, rewards)
    if not run.plan(answer_figures(train, args), methods, keeps_start=bool(args.beta) and run.keeps_start):
        return
    model, reference = run.build_model(), run.build_reference() if args.beta else None

    run.enter(evaluates=bool(methods))
    held = {"reference": reference, "goes_on": run.goes_on}
    trainer = build_trainer(model, args, train, tokenizer, rewards, stop_ids, methods, **held)
    run.train(trainer, ledgers)


if __name__ == "__main__":
    run_script(main, GO_ON)
