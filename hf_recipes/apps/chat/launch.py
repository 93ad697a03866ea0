"""What a chat is started with: which model and adapters, who may come, and where it is shown."""

import ipaddress
import os
import re
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal

from hf_recipes.apps.ports import check_port
from hf_recipes.core.errors import UserError
from hf_recipes.models.decoding import Decoding
from hf_recipes.models.loading import ModelArguments
from hf_recipes.models.lora import read_adapter_config

if TYPE_CHECKING:
    from hf_recipes.apps.chat.engine import Engine


def _help(text: str, default=None):
    return field(default=default, metadata={"help": text})


@dataclass
class ChatArguments:
    """Which model answers, how it does at first, and who may ask."""

    model_name_or_path: str = field(metadata={"help": "The base, or a whole model: a folder or a Hub id."})
    peft_path: list[str] | None = field(
        default=None, metadata={"help": "Adapters of this base (folders); each can be chosen while the chat runs."}
    )
    model_revision: str = _help("Branch, tag or commit of a Hub id.", "main")
    dtype: str = _help("auto, float32, bfloat16 or float16.", "auto")
    load_in_8bit: bool = _help("The base in eight bits.", False)
    load_in_4bit: bool = _help("The base in four bits.", False)
    bnb_config: str | None = _help("JSON with keys of BitsAndBytesConfig.")
    gpus: str | None = _help("Numbers of GPUs with commas between (0,1), or cpu; by default the first GPU, if any.")
    chat_template: str | None = _help("A bundled template (chatml, llama2, vicuna, …) or a jinja file.")
    max_source_length: int | None = _help("Tokens of a prompt at the most; by default what the context holds.")
    system_prompt: str = _help("System prompt at first.", "")
    temperature: float = _help("At first; 0 takes always the likeliest token.", 0.7)
    top_p: float = _help("At first.", 0.9)
    max_new_tokens: int = _help("Tokens of an answer, at first.", 512)
    repetition_penalty: float = _help("At first.", 1.0)
    seed: int = _help("Of the draws: the same steps with the same settings give the same answers.", 42)
    cli: bool = _help("Chat in the terminal; no page is served.", False)
    language: Literal["zh", "en"] | None = _help("At first; by default the browser's or the terminal's.")
    port: int = _help("Of the page.", 7860)
    host: str = _help("Address that the page is served on; others than 127.0.0.1 need --auth.", "127.0.0.1")
    share: bool = _help("Also serve it through Gradio's public tunnel; needs --auth.", False)
    auth: str | None = _help("user:password that visitors must give.")
    insecure: bool = _help("Let anybody in, where --host or --share ask for --auth.", False)
    max_waiting: int = _help("People who may wait while one is answered.", 16)
    trust_remote_code: bool = _help("Run code that comes with the model.", False)
    cache_dir: str | None = _help("Where downloads are cached.")

    def __post_init__(self):
        self.model_arguments, self.decoding  # noqa: B018  raise what is wrong with them
        if self.max_source_length is not None and self.max_source_length < 1:
            raise ValueError(f"--max_source_length {self.max_source_length}: expected at least 1")
        if not 1 <= self.repetition_penalty <= 2:
            raise ValueError(f"--repetition_penalty {self.repetition_penalty:g}: expected 1 to 2")
        if self.temperature > 2:
            raise ValueError(f"--temperature {self.temperature:g}: expected 0 to 2")
        if not 0 < self.port < 65536:
            raise ValueError(f"--port {self.port}: a port is a number from 1 to 65535")
        if not 0 <= self.max_waiting <= 1000:
            raise ValueError(f"--max_waiting {self.max_waiting}: expected 0 to 1000")
        if self.gpus is not None and self.gpus != "cpu" and not re.fullmatch(r"\d+(,\d+)*", self.gpus):
            raise ValueError(f"--gpus {self.gpus}: expected numbers with commas between, such as 0,1, or cpu")
        if self.auth is not None and not all(self.auth.partition(":")):
            raise ValueError("--auth: expected user:password")  # without what was given, which may be a password
        if not self.auth and not self.insecure and not self.cli:
            if self.share:
                raise ValueError("--share lets anybody in; add --auth user:password, or --insecure to allow that")
            if not is_loopback(self.host):
                raise ValueError(
                    f"--host {self.host} lets the network in; add --auth user:password, or --insecure to allow that"
                )

    @property
    def model_arguments(self) -> ModelArguments:
        names = ("model_name_or_path", "model_revision", "dtype", "load_in_4bit", "load_in_8bit", "bnb_config")
        return ModelArguments(**{name: getattr(self, name) for name in names})

    @property
    def decoding(self) -> Decoding:
        return decoding_of(self.temperature, self.top_p, self.max_new_tokens, self.repetition_penalty, self.seed)

    @property
    def device_map(self) -> str | None:
        return None if self.gpus is None else "cpu" if self.gpus == "cpu" else "auto"


def is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def decoding_of(
    temperature: float | None,
    top_p: float | None,
    max_new_tokens: float | None,
    repetition_penalty: float | None,
    seed: int,
) -> Decoding:
    """`Decoding`, where a temperature of 0 takes always the likeliest token.

    Raises:
        ValueError: a number is missing or outside its range.
    """
    if None in (temperature, top_p, max_new_tokens, repetition_penalty):
        raise ValueError("a number is missing")
    if temperature < 0 or not 0 < top_p <= 1:
        name, value = ("temperature", temperature) if temperature < 0 else ("top_p", top_p)
        raise ValueError(f"--{name} {value:g}: expected {'at least 0' if temperature < 0 else '0 to 1'}")
    draws = {"do_sample": True, "temperature": float(temperature), "top_p": float(top_p)} if temperature else {}
    how = {"max_new_tokens": int(max_new_tokens), "repetition_penalty": float(repetition_penalty), "seed": seed}
    return Decoding(**draws, **how)


def choose_devices(gpus: str | None) -> None:
    """Show CUDA the GPUs of ``--gpus`` alone; to be called before anything asks for them."""
    if gpus is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = "" if gpus == "cpu" else gpus


def check(arguments: ChatArguments) -> None:
    """What can be told before the model is loaded.

    Raises:
        UserError: Gradio is missing, the port is in use, or a `--peft_path` holds no adapter.
    """
    for path in arguments.peft_path or ():
        read_adapter_config(path)
    if arguments.cli:
        return
    if find_spec("gradio") is None:
        raise UserError("the page needs Gradio: pip install -e '.[chat]', or chat in the terminal with --cli")
    check_port(arguments.port, arguments.host)


def load(arguments: ChatArguments) -> "Engine":
    """The engine of `arguments`, on the devices that they name.

    Raises:
        UserError: as `open_engine`; a GPU that is not there.
    """
    import torch

    from hf_recipes.apps.chat.engine import open_engine

    if arguments.gpus not in (None, "cpu"):
        wanted, found = arguments.gpus.count(",") + 1, torch.cuda.device_count()
        if found < wanted:
            raise UserError(f"--gpus {arguments.gpus}: {found} of these {wanted} are here; leave it out, or give cpu")
    return open_engine(
        arguments.model_arguments,
        arguments.peft_path or (),
        max_new_tokens=arguments.max_new_tokens,
        max_source_length=arguments.max_source_length,
        chat_template=arguments.chat_template,
        trust_remote_code=arguments.trust_remote_code,
        cache_dir=arguments.cache_dir,
        device_map=arguments.device_map,
    )


def open_page(engine: "Engine", arguments: ChatArguments):
    """The page of `engine`, which `chat_server` serves."""
    from hf_recipes.apps.chat.page import Page
    from hf_recipes.apps.chat.session import Line

    line = Line(arguments.max_waiting)
    return Page(engine, arguments.decoding, line, arguments.language, arguments.system_prompt)


def run(engine: "Engine", arguments: ChatArguments) -> None:
    """Chat until the user has enough."""
    if arguments.cli:
        from hf_recipes.apps.chat.terminal import Terminal

        Terminal(engine, arguments.decoding, arguments.language, arguments.system_prompt).run()
        return
    from hf_recipes.apps.chat.server import serve

    serve(
        open_page(engine, arguments),
        port=arguments.port,
        host=arguments.host,
        share=arguments.share,
        auth=arguments.auth,
        most_waiting=arguments.max_waiting,
    )
