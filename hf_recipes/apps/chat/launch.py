"""What a chat is started with: which model and adapters, who may come, and where it is shown."""

import os
from importlib.util import find_spec
from typing import TYPE_CHECKING

from hf_recipes.apps.chat.arguments import ChatArguments
from hf_recipes.apps.ports import check_port
from hf_recipes.core.errors import UserError
from hf_recipes.models.saved_adapter import read_adapter_config

if TYPE_CHECKING:
    from hf_recipes.apps.chat.engine import Engine


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

    return Page(engine, arguments.decoding, arguments.language, arguments.system_prompt)


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
