"""Reward modelling: a model that scores answers, from pairs of a better and a worse one.

python scripts/reward.py --model_name_or_path MODEL --train_file pairs.jsonl --output_dir runs/reward
python scripts/reward.py --model_name_or_path MODEL --train_file pairs.jsonl --validation_split_percentage 5 \\
    --output_dir runs/reward
"""

from functools import partial

from hf_recipes.core.script import run_script
from hf_recipes.stages.base import RESUME_HINT, run
from hf_recipes.stages.reward import STAGE

if __name__ == "__main__":
    run_script(partial(run, STAGE), RESUME_HINT)
