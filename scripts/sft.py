"""Supervised fine-tuning of a causal language model, with LoRA or of all weights.

python scripts/sft.py --model_name_or_path MODEL --train_file train.json --output_dir runs/first
torchrun --nproc_per_node 4 scripts/sft.py --config configs/recipes/demo.yaml
"""

from functools import partial

from hf_recipes.core.script import run_script
from hf_recipes.stages.base import RESUME_HINT, run
from hf_recipes.stages.sft import STAGE

if __name__ == "__main__":
    run_script(partial(run, STAGE), RESUME_HINT)
