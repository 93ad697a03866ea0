"""Pretraining: going on with a causal language model on text, or training a new one from nothing.

python scripts/pretrain.py --model_name_or_path MODEL --train_file corpus/ --mixture mixture.json --output_dir runs/more
python scripts/pretrain.py --config_name configs/models/qwen3_30m.json --tokenizer_name MODEL --train_file corpus/ \\
    --output_dir runs/small
"""

from hf_recipes.command.script import run_stage

if __name__ == "__main__":
    run_stage("pretrain")
