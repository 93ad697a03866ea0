"""Chat with a model and its adapters, in the browser or in the terminal.

python scripts/chat.py --model_name_or_path MODEL --peft_path runs/first runs/second
python scripts/chat.py --model_name_or_path MODEL --load_in_4bit --cli
python scripts/chat.py --model_name_or_path MODEL --host 0.0.0.0 --auth user:password
"""

if __name__ == "__main__":
    from hf_recipes.command.script import begin_script

    begin_script()

from hf_recipes.apps.chat.arguments import ChatArguments
from hf_recipes.apps.chat.launch import as_trained, check, choose_devices, load, run
from hf_recipes.core.arguments.settings import Parser
from hf_recipes.core.script import run_script
from hf_recipes.models.templates.options import TemplateArguments


def main() -> None:
    parser = Parser([ChatArguments, TemplateArguments])
    arguments, template = parser.parse()
    choose_devices(arguments.gpus)
    check(arguments)
    arguments = as_trained(arguments, parser.given)
    run(load(arguments, template), arguments)


if __name__ == "__main__":
    run_script(main)
