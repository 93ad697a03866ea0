"""Clean, deduplicate and tokenize corpora into shards; the same command resumes a killed run.

python scripts/prepare_corpus.py --input_files wiki=wikipedia-cn.json news/ baike.jsonl.zst --quality --near_dedup \\
    --tokenize --model_name_or_path MODEL --output_dir corpus --workers 8
python scripts/prepare_corpus.py --input_files novels/ --txt_documents blank --exact_dedup --output_dir corpus
"""

if __name__ == "__main__":
    from hf_recipes.command.script import begin_script

    begin_script()

from importlib.util import find_spec
from pathlib import Path

from hf_recipes.core.arguments.settings import Parser
from hf_recipes.core.errors import UserError
from hf_recipes.core.script import run_script


def main() -> None:
    for package in ("datatrove", "opencc"):
        if find_spec(package) is None:
            raise UserError(f"{package} is not installed: pip install -e '.[corpus]'")
    from hf_recipes.corpus.arguments import CorpusArguments
    from hf_recipes.corpus.pipeline import prepare_corpus

    parser = Parser([CorpusArguments])
    [args] = parser.parse()
    tokenizer = None
    if args.tokenize:
        from hf_recipes.models.tokenizers.tokenizer import load_tokenizer

        options = {"trust_remote_code": args.trust_remote_code, "cache_dir": args.cache_dir}
        tokenizer, _ = load_tokenizer(args.model_name_or_path, needs_template=False, **options)
    prepare_corpus(args, parser.recorded(), tokenizer)
    parser.save_settings(Path(args.output_dir) / "run_config.yaml")


if __name__ == "__main__":
    run_script(main, "the same command resumes where this one stopped")
