"""Supervised fine-tuning of a causal language model, with LoRA or of all weights.

python scripts/sft.py --model_name_or_path MODEL --train_file train.json --output_dir runs/first
torchrun --nproc_per_node 4 scripts/sft.py --config configs/recipes/demo.yaml
"""

from hf_recipes.command.script import run_stage

if __name__ == "__main__":
    run_stage("sft")
