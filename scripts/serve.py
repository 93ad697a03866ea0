"""Serve a model and its adapters as an OpenAI-compatible API.

python scripts/serve.py --model_name_or_path MODEL --peft_path runs/first second=runs/other
python scripts/serve.py --model_name_or_path MODEL --load_in_4bit --allow_origin https://chat.example.org
python scripts/serve.py --model_name_or_path MODEL --host 0.0.0.0 --api_key_file key.txt
python scripts/serve.py --model_name_or_path MODEL --peft_path runs/first --engine vllm
"""

if __name__ == "__main__":
    from hf_recipes.command.script import begin_script

    begin_script()

from hf_recipes.apps.chat.launch import choose_devices
from hf_recipes.apps.serve.arguments import ServeArguments
from hf_recipes.apps.serve.launch import run
from hf_recipes.core.arguments.settings import Parser
from hf_recipes.core.script import run_script
from hf_recipes.models.templates.options import TemplateArguments


def main() -> None:
    parser = Parser([ServeArguments, TemplateArguments])
    arguments, template = parser.parse()
    choose_devices(arguments.gpus)
    run(arguments, template, parser.given)


if __name__ == "__main__":
    run_script(main)
