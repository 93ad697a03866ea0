"""Kahneman-Tversky optimization: a model that gives better answers, from single ones that are good or bad.

python scripts/kto.py --model_name_or_path MODEL --train_file rated.jsonl --output_dir runs/kto
python scripts/kto.py … --train_file comments.jsonl --label_column like_count --label_threshold 10 --label_low 2
"""

from hf_recipes.command.script import run_stage

if __name__ == "__main__":
    run_stage("kto")
