"""Turn a GGUF file into a safetensors folder.

python scripts/convert_gguf.py --gguf_file model.gguf --output_dir models/model
"""

if __name__ == "__main__":
    from hf_recipes.command.script import begin_script

    begin_script()

from dataclasses import MISSING, dataclass

from hf_recipes.core.arguments.settings import Parser, setting
from hf_recipes.core.errors import say
from hf_recipes.core.script import run_script
from hf_recipes.models.gguf.convert import convert_gguf


@dataclass
class Arguments:
    gguf_file: str = setting("The GGUF file.", MISSING)
    output_dir: str = setting("Folder of the model, which must not be there yet.", MISSING)


def main() -> None:
    [arguments] = Parser([Arguments]).parse()
    say(f"model in {convert_gguf(arguments.gguf_file, arguments.output_dir)}")


if __name__ == "__main__":
    run_script(main)
