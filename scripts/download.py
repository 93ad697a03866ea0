"""Download a model, an adapter or the demo's pairs into a folder; a second call resumes where the first one stopped.

python scripts/download.py --model Qwen/Qwen2.5-0.5B
python scripts/download.py --model Qwen/Qwen2.5-0.5B --source modelscope --output_dir models/qwen
python scripts/download.py --source reviews --output_dir data/reviews
"""

if __name__ == "__main__":
    from hf_recipes.command.script import begin_script

    begin_script()

from dataclasses import dataclass
from typing import Literal

from hf_recipes.core.arguments.settings import Parser, setting
from hf_recipes.core.errors import say
from hf_recipes.core.script import run_script
from hf_recipes.hub.download import download
from hf_recipes.hub.review_samples import download_reviews
from hf_recipes.models.gguf.demo_model import DEMO_MODEL, download_demo


@dataclass
class Arguments:
    model: str | None = setting("Id of a model or an adapter: owner/name.")
    source: Literal["hf", "modelscope", "demo", "reviews"] = setting(
        "A hub; or the demo's model, or its pairs of shop reviews.", "hf"
    )
    revision: str | None = setting("Branch, tag or commit.")
    output_dir: str | None = setting("Folder; by default models/NAME.")

    def __post_init__(self):
        if self.source == "demo" and self.model not in (None, DEMO_MODEL, DEMO_MODEL.split("/")[1]):
            raise ValueError(f"--source demo has {DEMO_MODEL} and no other; leave --model out")
        if self.source == "reviews" and self.model:
            raise ValueError("--source reviews has pairs of shop reviews and no model; leave --model out")
        if self.source in ("hf", "modelscope") and not self.model:
            raise ValueError("--model is missing: an id such as Qwen/Qwen2.5-0.5B")


def main() -> None:
    [arguments] = Parser([Arguments]).parse()
    if arguments.source == "reviews":
        folder = download_reviews(arguments.output_dir or "data/reviews")
        say(f"pairs in {folder}: --train_file {folder}/train.jsonl --validation_file {folder}/test.jsonl")
        return
    model = arguments.model or DEMO_MODEL
    if arguments.source == "demo":
        folder = download_demo(arguments.output_dir)
    else:
        folder = download(model, arguments.source, arguments.revision, arguments.output_dir)
    if (folder / "config.json").is_file():
        say(f"model in {folder}: --model_name_or_path {folder}")
    else:
        say(f"adapter in {folder}: --peft_path {folder}")


if __name__ == "__main__":
    run_script(main, "the same command resumes where this one stopped")
