"""Settings of the chat."""

import re
from dataclasses import dataclass, field
from typing import Annotated, Literal

from hf_recipes.apps.access import check_access, is_loopback
from hf_recipes.core.arguments.limits import NonNegativeInt, PositiveInt, at, check_limits
from hf_recipes.core.arguments.settings import setting
from hf_recipes.models.arguments import ModelArguments
from hf_recipes.models.inference.decoding import MAX_THINKING_TOKENS, Decoding

Port = Annotated[int, at(ge=1, le=65535)]
NUMBERS = ("temperature", "top_p", "max_new_tokens", "repetition_penalty")  # arguments of `decoding_of`


@dataclass
class EngineArguments:
    """The model with its adapters, and how it answers."""

    model_name_or_path: str = field(metadata={"help": "The base, or a full model: a folder or a Hub id."})
    peft_path: list[str] | None = field(
        default=None, metadata={"help": "Adapters of this base (folders); each can be chosen while the chat runs."}
    )
    model_revision: str = setting("Branch, tag or commit of a Hub id.", "main")
    dtype: str = setting("auto, float32, bfloat16 or float16.", "auto")
    load_in_8bit: bool = setting("Load the base in 8 bits.", False)
    load_in_4bit: bool = setting("Load the base in 4 bits.", False)
    bnb_config: str | None = setting("JSON with keys of BitsAndBytesConfig.")
    gpus: str | None = setting("Numbers of GPUs with commas between (0,1), or cpu; by default the first GPU, if any.")
    system_prompt: str = setting("System prompt at the start; by default the run's.", "")
    temperature: Annotated[float, at(ge=0, le=2)] = setting("At the start; 0 always takes the likeliest token.", 0.7)
    top_p: float = setting("At the start.", 0.9)
    max_new_tokens: int = setting("Tokens of an answer, at the start.", 512)
    max_thinking_tokens: NonNegativeInt = setting(
        "Tokens of thoughts before an answer; longer ones are closed, and the answer follows.", MAX_THINKING_TOKENS
    )
    repetition_penalty: Annotated[float, at(ge=1, le=2)] = setting("At the start.", 1.0)
    seed: int = setting("Seed of the sampling: the same questions with the same settings get the same answers.", 42)
    trust_remote_code: bool = setting("Run code that comes with the model.", False)
    cache_dir: str | None = setting("Where downloads are cached.")

    def __post_init__(self):
        check_limits(self)
        self.model_arguments, self.decoding  # noqa: B018  each raises what is wrong with it
        if self.gpus is not None and self.gpus != "cpu" and not re.fullmatch(r"\d+(,\d+)*", self.gpus):
            raise ValueError(f"--gpus {self.gpus}: expected numbers with commas between, such as 0,1, or cpu")

    @property
    def model_arguments(self) -> ModelArguments:
        names = ("model_name_or_path", "model_revision", "dtype", "load_in_4bit", "load_in_8bit", "bnb_config")
        return ModelArguments(**{name: getattr(self, name) for name in names})

    @property
    def decoding(self) -> Decoding:
        return decoding_of(*(getattr(self, name) for name in NUMBERS), self.seed, self.max_thinking_tokens)

    @property
    def device_map(self) -> str | None:
        return None if self.gpus is None else "cpu" if self.gpus == "cpu" else "auto"


@dataclass
class ChatArguments(EngineArguments):
    """The model, the decoding at the start, and who may connect."""

    max_source_length: PositiveInt | None = setting("Largest number of prompt tokens; by default the context's.")
    cli: bool = setting("Chat in the terminal; no page is served.", False)
    compare_with: str | None = setting("Who answers beside it at the start: base, or the name of an adapter.")
    language: Literal["zh", "en"] | None = setting("At the start; by default the browser's or the terminal's.")
    port: Port = setting("Port of the page.", 7860)
    host: str = setting("Address of the page; others than 127.0.0.1 need --auth.", "127.0.0.1")
    share: bool = setting("Also serve it through Gradio's public tunnel; needs --auth.", False)
    auth: str | None = setting("user:password that visitors must give.")
    insecure: bool = setting("Let anybody in, where --host or --share ask for --auth.", False)
    max_waiting: Annotated[int, at(ge=1, le=1000)] = setting("Questions that may wait while one is answered.", 16)

    def __post_init__(self):
        super().__post_init__()
        opened = {"--share lets anybody in": self.share}
        opened[f"--host {self.host} lets the network in"] = not is_loopback(self.host)
        check_access(self.auth, self.insecure or self.cli, opened)


def decoding_of(
    temperature: float | None,
    top_p: float | None,
    max_new_tokens: float | None,
    repetition_penalty: float | None,
    seed: int,
    max_thinking_tokens: int = MAX_THINKING_TOKENS,
) -> Decoding:
    """`Decoding`, greedy at a temperature of 0; ValueError where a number is missing or outside its range."""
    if None in (temperature, top_p, max_new_tokens, repetition_penalty):
        raise ValueError("a number is missing")
    if temperature < 0 or not 0 < top_p <= 1:
        name, value = ("temperature", temperature) if temperature < 0 else ("top_p", top_p)
        raise ValueError(f"--{name} {value:g}: expected {'at least 0' if temperature < 0 else '0 to 1'}")
    values = {"max_new_tokens": int(max_new_tokens), "repetition_penalty": float(repetition_penalty), "seed": seed}
    values["max_thinking_tokens"] = max_thinking_tokens
    if temperature:
        values |= {"do_sample": True, "temperature": float(temperature), "top_p": float(top_p)}
    return Decoding(**values)
