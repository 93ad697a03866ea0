"""Settings of the server."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from hf_recipes.apps.access import is_loopback
from hf_recipes.apps.chat.arguments import EngineArguments, Port, decoding_of
from hf_recipes.apps.chat.engine import BATCH_SIZE
from hf_recipes.apps.chat.models import BASE, model_names
from hf_recipes.core.arguments.limits import PositiveInt, at
from hf_recipes.core.arguments.settings import setting
from hf_recipes.core.errors import UserError
from hf_recipes.models.inference.decoding import Decoding

KEY_VARIABLE = "HF_RECIPES_API_KEY"
BY_DEFAULT = "Where a request does not say"


@dataclass
class ServeArguments(EngineArguments):
    """The model, how it answers, and who may connect."""

    peft_path: list[str] | None = setting("Adapters of this base: folders, or name=folder; requests name one as model.")
    engine: Literal["transformers", "vllm"] = setting(
        "transformers serves on any device; vllm starts its server, where it is installed.", "transformers"
    )
    vllm_args: str | None = setting("More arguments of vllm serve, such as '--tool-call-parser hermes'.")
    system_prompt: str = setting("System prompt of conversations without one; by default the run's.", "")
    temperature: Annotated[float, at(ge=0, le=2)] = setting(f"{BY_DEFAULT}; 0 always takes the likeliest token.", 0.7)
    top_p: float = setting(f"{BY_DEFAULT}.", 0.9)
    max_new_tokens: PositiveInt | None = setting(
        f"Tokens of an answer, {BY_DEFAULT.lower()}; by default what the context leaves, up to 2048."
    )
    repetition_penalty: Annotated[float, at(ge=1, le=2)] = setting(f"{BY_DEFAULT}.", 1.0)
    seed: int | None = setting(f"{BY_DEFAULT}; by default each answer is another.")
    port: Port = setting("Port of the server.", 8000)
    host: str = setting("Address of the server; others than 127.0.0.1 need a key.", "127.0.0.1")
    api_key: str | None = setting(
        f"What clients must send as their API key; others see it in the list of processes, unlike {KEY_VARIABLE}."
    )
    api_key_file: str | None = setting("File with the API key.")
    allow_origin: list[str] | None = setting("Web pages that may ask, such as https://chat.example.org, or '*'.")
    batch_size: PositiveInt = setting("Answers that are generated at a time.", BATCH_SIZE)
    max_waiting: Annotated[int, at(ge=1, le=10000)] = setting("Answers that may wait; more are refused.", 64)

    def __post_init__(self):
        super().__post_init__()
        self.adapters  # noqa: B018  raises what is wrong with them
        if self.api_key is not None and self.api_key_file is not None:
            raise ValueError("--api_key and --api_key_file: choose one")
        if not (self.api_key or self.api_key_file or os.environ.get(KEY_VARIABLE)) and not is_loopback(self.host):
            raise ValueError(
                f"--host {self.host} lets the network in; give a key by {KEY_VARIABLE}, --api_key_file or --api_key"
            )
        if self.engine != "vllm" and self.vllm_args:
            raise ValueError("--vllm_args: has no effect without --engine vllm")

    @property
    def decoding(self) -> Decoding:
        """That of a request that says nothing."""
        numbers = self.temperature, self.top_p, self.max_new_tokens or 1, self.repetition_penalty
        return decoding_of(*numbers, self.seed or 0, self.max_thinking_tokens)

    @property
    def key(self) -> str | None:
        """What clients must send; None where anybody may come."""
        key, source = self.api_key, "--api_key"
        if self.api_key_file is not None:
            source = f"--api_key_file {self.api_key_file}"
            try:
                key = Path(self.api_key_file).read_text(encoding="utf-8-sig").strip()
            except (OSError, UnicodeDecodeError) as error:
                raise UserError(f"{source}: cannot be read ({error.__class__.__name__})") from None
        elif key is None and KEY_VARIABLE in os.environ:
            key, source = os.environ[KEY_VARIABLE], KEY_VARIABLE
        if key is not None and not re.fullmatch("[!-~]+", key):
            raise UserError(f"{source}: expected a key of ASCII characters without a space")  # which is not shown
        return key

    @property
    def adapters(self) -> dict[str, str]:
        """The folders of the adapters by name."""
        split = [path.partition("=") if not os.path.isdir(path) else (path, "", "") for path in self.peft_path or ()]
        paths = [path if sign else name for name, sign, path in split]
        shortest = iter(model_names(paths))
        names = [name if sign else path_name for (name, sign, _), path_name in zip(split, shortest, strict=True)]
        for name in names:
            if name == BASE or names.count(name) > 1:
                raise UserError(f"--peft_path: {name} is the name of several models; give name=folder")
        return dict(zip(names, paths, strict=True))
