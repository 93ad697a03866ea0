"""Direct preference optimization: a model that prefers the better answer, from pairs of a better and a worse one.

python scripts/dpo.py --model_name_or_path MODEL --train_file pairs.jsonl --output_dir runs/dpo
python scripts/dpo.py --model_name_or_path MODEL --peft_path runs/sft --train_file pairs.jsonl --output_dir runs/dpo
"""

from functools import partial

from hf_recipes.core.script import run_script
from hf_recipes.stages.base import RESUME_HINT, run
from hf_recipes.stages.dpo import STAGE

if __name__ == "__main__":
    run_script(partial(run, STAGE), RESUME_HINT)
