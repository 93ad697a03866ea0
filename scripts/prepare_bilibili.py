"""Make conversations of the videos and comments that MediaCrawler fetched from Bilibili.

python scripts/prepare_bilibili.py --input_dir data --total 2000 --test_size 10 --output_dir bilibili
python scripts/prepare_bilibili.py --input_dir data --privacy --near_dedup --output_dir bilibili
"""

if __name__ == "__main__":
    from hf_recipes.command.script import begin_script

    begin_script()

from hf_recipes.core.arguments.settings import Parser
from hf_recipes.core.script import run_script
from hf_recipes.importers.arguments import BilibiliArguments
from hf_recipes.importers.bilibili.convert import prepare_bilibili
from hf_recipes.importers.output import output_folder, print_counts


def main() -> None:
    parser = Parser([BilibiliArguments])
    [args] = parser.parse()
    with output_folder(args.output_dir, args.overwrite_output_dir) as folder:
        splits = prepare_bilibili(args, folder)
        parser.save_settings(folder / "run_config.yaml")
    print_counts(args.output_dir, splits)


if __name__ == "__main__":
    run_script(main)
