"""Pretraining: going on with a causal language model on text, or training a new one from nothing.

python scripts/pretrain.py --model_name_or_path MODEL --train_file corpus/ --mixture mixture.json --output_dir runs/more
python scripts/pretrain.py --config_name configs/models/qwen3_30m.json --tokenizer_name MODEL --train_file corpus/ \\
    --output_dir runs/small
"""

from functools import partial

from hf_recipes.core.script import run_script
from hf_recipes.stages.base import RESUME_HINT, run
from hf_recipes.stages.pretrain import STAGE

if __name__ == "__main__":
    run_script(partial(run, STAGE), RESUME_HINT)
