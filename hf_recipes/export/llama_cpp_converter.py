"""Run llama.cpp's converter in this process, with a pre-tokenizer's name for tokenizers that it does not know.

It identifies a tokenizer by a hash of one tokenized text, so that it knows only those of published families.

python -m hf_recipes.export.llama_cpp_converter CONVERTER NAME [ARGUMENTS OF THE CONVERTER]
"""

import importlib.util
import sys
from pathlib import Path


def main(converter: str, name: str) -> None:
    # Modules beside the converter come first, before those of the same names that are installed.
    sys.path[0] = str(Path(converter).parent)
    spec = importlib.util.spec_from_file_location("convert_hf_to_gguf", converter)
    script = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    for kind in script.ModelBase.__subclasses__() if hasattr(script, "ModelBase") else ():
        if hasattr(kind, "get_vocab_base_pre"):
            kind.get_vocab_base_pre = _or_else(kind.get_vocab_base_pre, name)
    script.main()


def _or_else(known, name: str):
    def get_vocab_base_pre(self, tokenizer) -> str:
        try:
            return known(self, tokenizer)
        except NotImplementedError:
            if not name:
                raise
            return name

    return get_vocab_base_pre


if __name__ == "__main__":
    converter, name, *sys.argv[1:] = sys.argv[1:]
    main(converter, name)
