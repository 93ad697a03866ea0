"""Write a model as GGUF, for llama.cpp, or with a Modelfile for Ollama; checked before it is called done.

python scripts/export.py --format ollama --model_name_or_path models/merged --output_dir models/ollama
python scripts/export.py --model_name_or_path models/merged --outtype q8_0 --output_dir models/gguf
"""

if __name__ == "__main__":
    from hf_recipes.command.script import begin_script

    begin_script()

import shlex

from hf_recipes.core.arguments.settings import Parser
from hf_recipes.core.errors import say
from hf_recipes.core.script import run_script
from hf_recipes.export.gguf import ExportArguments, export
from hf_recipes.models.templates.options import TemplateChoice


def main() -> None:
    arguments, template = Parser([ExportArguments, TemplateChoice]).parse()
    path = export(arguments, template)
    say(f"model in {path}")
    if arguments.format == "ollama":
        say(f"ollama create NAME -f {shlex.quote(str(path.with_name('Modelfile')))} && ollama run NAME")


if __name__ == "__main__":
    run_script(main)
