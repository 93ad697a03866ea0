"""Make conversations of chats of QQ, WeChat or Telegram, as exporters write them.

python scripts/prepare_qq.py --input FOLDER --me NICKNAME_OR_NUMBER --output_dir qq
python scripts/prepare_qq.py --input chat.json --me 123456789 --session_gap 60 --test_size 50 --output_dir chats
"""

if __name__ == "__main__":
    from hf_recipes.command.script import begin_script

    begin_script()

from hf_recipes.core.arguments.settings import Parser
from hf_recipes.core.script import run_script
from hf_recipes.importers.arguments import QQArguments
from hf_recipes.importers.chat_logs.convert import prepare_qq
from hf_recipes.importers.output import output_folder, print_counts


def main() -> None:
    parser = Parser([QQArguments])
    [args] = parser.parse()
    with output_folder(args.output_dir, args.overwrite_output_dir) as folder:
        splits = prepare_qq(args, folder)
        parser.save_settings(folder / "run_config.yaml")
    print_counts(args.output_dir, splits)


if __name__ == "__main__":
    run_script(main)
