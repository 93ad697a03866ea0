"""Merge a LoRA adapter, or several with weights, into their base; checked before it is called done.

python scripts/merge_adapter.py --model_name_or_path MODEL --peft_path runs/first --output_dir models/merged
python scripts/merge_adapter.py --peft_path runs/first runs/second --weights 0.7 0.3 --output_dir models/merged
"""

if __name__ == "__main__":
    from hf_recipes.command.script import begin_script

    begin_script()

from hf_recipes.core.arguments.settings import Parser
from hf_recipes.core.errors import say
from hf_recipes.core.script import run_script
from hf_recipes.export.merge import MergeArguments, merge
from hf_recipes.models.templates.options import TemplateChoice


def main() -> None:
    say(f"merged model in {merge(*Parser([MergeArguments, TemplateChoice]).parse())}")


if __name__ == "__main__":
    run_script(main)
