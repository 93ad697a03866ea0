"""Give a tokenizer more tokens: learned from texts, words of a list, special ones; no old id changes.

python scripts/extend_tokenizer.py --tokenizer_name MODEL --train_file zh=corpus/*.jsonl --num_new_tokens 8000 \\
    --output_dir tokenizer
python scripts/extend_tokenizer.py --tokenizer_name MODEL --words medical.txt --output_dir tokenizer
"""

if __name__ == "__main__":
    from hf_recipes.command.script import begin_script

    begin_script()

from hf_recipes.core.arguments.settings import Parser
from hf_recipes.core.script import run_script
from hf_recipes.vocabulary.arguments import ExtendTokenizerArguments


def main() -> None:
    from hf_recipes.vocabulary.extend import extend_tokenizer

    extend_tokenizer(*Parser([ExtendTokenizerArguments]).parse())


if __name__ == "__main__":
    run_script(main)
