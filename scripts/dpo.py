"""Direct preference optimization: a model that prefers the better answer, from pairs of a better and a worse one.

python scripts/dpo.py --model_name_or_path MODEL --train_file pairs.jsonl --output_dir runs/dpo
python scripts/dpo.py --model_name_or_path MODEL --peft_path runs/sft --train_file pairs.jsonl --output_dir runs/dpo
"""

from hf_recipes.command.script import run_stage

if __name__ == "__main__":
    run_stage("dpo")
