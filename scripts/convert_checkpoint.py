"""Turn a checkpoint of ChatGLM2, ChatGLM3, Baichuan-7B, Qwen-1, InternLM or MiniCPM into one that transformers loads.

python scripts/convert_checkpoint.py --model_name_or_path models/Baichuan2-7B-Chat --output_dir models/baichuan2-llama
python scripts/convert_checkpoint.py --model_name_or_path models/chatglm3-6b --output_dir models/chatglm3 --verify \\
    --trust_remote_code
"""

if __name__ == "__main__":
    from hf_recipes.command.script import begin_script

    begin_script()

from dataclasses import dataclass

from hf_recipes.core.arguments.settings import Parser, setting
from hf_recipes.core.script import run_script


@dataclass
class Arguments:
    """The folder of the older checkpoint and that of the new one."""

    model_name_or_path: str | None = setting("Folder of the older checkpoint.")
    output_dir: str | None = setting("Folder of the converted one, which must not be there yet.")
    verify: bool = setting(
        "Compare logits and greedy tokens with those of the older checkpoint's own code, in float32 "
        "(with --trust_remote_code).",
        False,
    )
    trust_remote_code: bool = setting("Run code that comes with the older checkpoint, for --verify alone.", False)

    def __post_init__(self):
        if not self.model_name_or_path:
            raise ValueError("--model_name_or_path is missing: the older checkpoint")
        if not self.output_dir:
            raise ValueError("--output_dir is missing: where the converted one goes")


def main() -> None:
    from hf_recipes.models.families.convert import convert_checkpoint

    [arguments] = Parser([Arguments]).parse()
    convert_checkpoint(
        arguments.model_name_or_path,
        arguments.output_dir,
        verify=arguments.verify,
        trust_remote_code=arguments.trust_remote_code,
    )


if __name__ == "__main__":
    run_script(main)
