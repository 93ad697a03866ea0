"""Reinforcement learning: answers of the model's own are scored, and the better ones made likelier (GRPO, RLOO).

python scripts/grpo.py --model_name_or_path MODEL --peft_path runs/sft --train_file prompts.jsonl \\
    --reward_model runs/reward --rewards repetition=0.5 --output_dir runs/grpo
python scripts/grpo.py --model_name_or_path MODEL --train_file prompts.jsonl --rewards mine.py:score \\
    --output_dir runs/grpo
"""

from hf_recipes.command.script import run_stage

if __name__ == "__main__":
    run_stage("grpo")
