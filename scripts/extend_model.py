"""Give a model embeddings for the new tokens of an extended tokenizer.

python scripts/extend_model.py --model_name_or_path MODEL --tokenizer_name tokenizer --output_dir model
python scripts/extend_model.py --model_name_or_path MODEL --tokenizer_name tokenizer --validation_file held_out.jsonl \\
    --output_dir model
"""

if __name__ == "__main__":
    from hf_recipes.command.script import begin_script

    begin_script()

from hf_recipes.core.arguments.settings import Parser
from hf_recipes.core.script import run_script
from hf_recipes.vocabulary.arguments import ExtendModelArguments


def main() -> None:
    from hf_recipes.vocabulary.extend_model import extend_model

    extend_model(*Parser([ExtendModelArguments]).parse())


if __name__ == "__main__":
    run_script(main)
