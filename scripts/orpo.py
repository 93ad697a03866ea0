"""Odds ratio preference optimization: a model that answers, and prefers the better answer, without a reference.

python scripts/orpo.py --model_name_or_path MODEL --train_file pairs.jsonl --output_dir runs/orpo
python scripts/orpo.py --config configs/recipes/orpo_demo.yaml --model_name_or_path MODEL --dry_run
"""

from hf_recipes.command.script import run_stage

if __name__ == "__main__":
    run_stage("orpo")
