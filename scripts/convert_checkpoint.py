"""Turn a checkpoint of ChatGLM2, ChatGLM3, Baichuan-7B, Qwen-1, InternLM or MiniCPM into one that transformers loads.

python scripts/convert_checkpoint.py --model_name_or_path models/Baichuan2-7B-Chat --output_dir models/baichuan2-llama
"""

from dataclasses import dataclass

from hf_recipes.core.settings import Parser, run_script, setting


@dataclass
class Arguments:
    """The folder of the older checkpoint and that of the new one."""

    model_name_or_path: str | None = setting("Folder of the older checkpoint; its code is not run.")
    output_dir: str | None = setting("Folder of the converted one, which must not be there yet.")

    def __post_init__(self):
        if not self.model_name_or_path:
            raise ValueError("--model_name_or_path is missing: the older checkpoint")
        if not self.output_dir:
            raise ValueError("--output_dir is missing: where the converted one goes")


def main() -> None:
    from hf_recipes.models.families.convert import convert_checkpoint

    [arguments] = Parser([Arguments]).parse()
    convert_checkpoint(arguments.model_name_or_path, arguments.output_dir)


if __name__ == "__main__":
    run_script(main)
