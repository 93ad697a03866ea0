"""Train a tokenizer on texts.

python scripts/train_tokenizer.py --train_file wiki=wikipedia-cn.json news/ --vocab_size 32000 --output_dir tokenizer
python scripts/train_tokenizer.py --train_file corpus/ --model_type unigram \\
    --special_tokens configs/special_tokens/roles.json --output_dir tokenizer
"""

if __name__ == "__main__":
    from hf_recipes.command.script import begin_script

    begin_script()

from hf_recipes.core.arguments.settings import Parser
from hf_recipes.core.script import run_script
from hf_recipes.vocabulary.arguments import TrainTokenizerArguments


def main() -> None:
    from hf_recipes.vocabulary.train import train_tokenizer

    train_tokenizer(*Parser([TrainTokenizerArguments]).parse())


if __name__ == "__main__":
    run_script(main)
