"""Reward modelling: a model that scores answers, from pairs of a better and a worse one.

python scripts/reward.py --model_name_or_path MODEL --train_file pairs.jsonl --output_dir runs/reward
python scripts/reward.py --model_name_or_path MODEL --train_file pairs.jsonl --validation_split_percentage 5 \\
    --output_dir runs/reward
"""

from hf_recipes.command.script import run_stage

if __name__ == "__main__":
    run_stage("reward")
