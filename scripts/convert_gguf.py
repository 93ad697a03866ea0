"""Turn a GGUF file, or the one that an installed package carries, into a safetensors folder.

python scripts/convert_gguf.py --gguf_file model.gguf --output_dir models/model
"""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from hf_recipes.errors import UserError, say
from hf_recipes.models.conversion import convert_gguf
from hf_recipes.parsing import Parser, run_script


@dataclass
class Arguments:
    output_dir: str
    gguf_file: str | None = None
    package: str | None = None

    def __post_init__(self):
        if bool(self.gguf_file) == bool(self.package):
            raise ValueError("give one of --gguf_file and --package")


def file_of_package(package: str) -> Path:
    """The one GGUF file of an installed package, found without importing it."""
    spec = find_spec(package)
    if spec is None or not spec.origin:
        raise UserError(f"--package {package}: not installed in this environment")
    found = sorted(Path(spec.origin).parent.rglob("*.gguf"))
    if len(found) != 1:
        raise UserError(f"--package {package}: expected one .gguf file in it, found {len(found)}")
    return found[0]


def main() -> None:
    [arguments] = Parser([Arguments]).parse()
    source = arguments.gguf_file or file_of_package(arguments.package)
    say(f"model in {convert_gguf(source, arguments.output_dir)}")


if __name__ == "__main__":
    run_script(main)
