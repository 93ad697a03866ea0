"""Starting a chat: checks, the devices, the model, and the terminal or the page."""

import os
from collections.abc import Collection
from importlib.util import find_spec
from typing import TYPE_CHECKING, TypeVar

from hf_recipes.apps.chat.arguments import ChatArguments, EngineArguments
from hf_recipes.apps.ports import check_port
from hf_recipes.core.errors import UserError, say
from hf_recipes.evaluation.run_record import RunRecord
from hf_recipes.models.adapters.saved_adapter import read_adapter_config
from hf_recipes.models.templates.options import TemplateArguments

if TYPE_CHECKING:
    from hf_recipes.apps.chat.engine import Engine

AnyArguments = TypeVar("AnyArguments", bound=EngineArguments)


def choose_devices(gpus: str | None) -> None:
    """Restrict CUDA to the GPUs of ``--gpus``; to be called before CUDA is initialised."""
    if gpus is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = "" if gpus == "cpu" else gpus


def check(arguments: ChatArguments) -> None:
    """Refuse what can be refused before the model is loaded."""
    for path in arguments.peft_path or ():
        read_adapter_config(path)
    if arguments.cli:
        return
    if find_spec("gradio") is None:
        raise UserError("the page needs Gradio: pip install -e '.[chat]', or chat in the terminal with --cli")
    check_port(arguments.port, arguments.host)


def check_gpus(gpus: str | None) -> None:
    import torch

    if gpus not in (None, "cpu"):
        wanted, available = gpus.count(",") + 1, torch.cuda.device_count()
        if available < wanted:
            raise UserError(f"--gpus {gpus}: {available} of these {wanted} are here; omit it, or give cpu")


def as_trained(arguments: AnyArguments, given: Collection[str]) -> AnyArguments:
    """`arguments` with the system prompt and the budget of thoughts of the first adapter's run, or the model's, unless
    they are given. Variables of the template, such as those of thinking, are saved in it.

    How each of the others was trained, where it differs, is printed.
    """
    first, *others = [RunRecord(folder, given) for folder in arguments.peft_path or [arguments.model_name_or_path]]
    kept = ("system_prompt", "max_thinking_tokens")
    first.settings = {name: value for name, value in first.settings.items() if name in kept and value is not None}
    [arguments] = first.apply(arguments)
    for other in others if "system_prompt" not in given else ():
        prompt = other.settings.get("system_prompt", "")
        if other.path and prompt != arguments.system_prompt:
            say(f"{other.folder}: trained with another system prompt, {prompt!r}; the chat begins with the first's")
    return arguments


def load(arguments: ChatArguments, template: TemplateArguments | None = None) -> "Engine":
    from hf_recipes.apps.chat.loading import open_engine

    check_gpus(arguments.gpus)
    return open_engine(
        arguments.model_arguments,
        arguments.peft_path or (),
        max_new_tokens=arguments.max_new_tokens,
        max_source_length=arguments.max_source_length,
        template=template,
        trust_remote_code=arguments.trust_remote_code,
        cache_dir=arguments.cache_dir,
        device_map=arguments.device_map,
    )


def open_page(engine: "Engine", arguments: ChatArguments):
    from hf_recipes.apps.chat.page import Page

    other = arguments.compare_with
    if other and other not in engine.chat_models:
        raise UserError(f"--compare_with {other}: expected one of {', '.join(engine.chat_models)}")
    return Page(engine, arguments.decoding, arguments.language, arguments.system_prompt, other or "")


def run(engine: "Engine", arguments: ChatArguments) -> None:
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
        max_waiting=arguments.max_waiting,
    )
