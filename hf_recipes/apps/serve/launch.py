"""Starting the server: checks, the devices, the models with the settings of their runs."""

import os
import sys
from collections.abc import Collection
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING

from hf_recipes.apps.chat.launch import as_trained, check_gpus
from hf_recipes.apps.ports import check_port
from hf_recipes.apps.serve.arguments import ServeArguments
from hf_recipes.core.errors import UserError
from hf_recipes.models.adapters.saved_adapter import read_adapter_config
from hf_recipes.models.templates.options import TemplateArguments

if TYPE_CHECKING:
    from hf_recipes.apps.serve.server import Server


def check(arguments: ServeArguments) -> None:
    """Refuse what can be refused before the model is loaded."""
    for path in arguments.adapters.values():
        read_adapter_config(path)
    arguments.key  # noqa: B018  raises what is wrong with it
    if arguments.engine == "transformers" and (find_spec("uvicorn") is None or find_spec("starlette") is None):
        raise UserError("the server needs uvicorn and starlette: pip install -e '.[serve]'")
    check_port(arguments.port, arguments.host)


def load(arguments: ServeArguments, template: TemplateArguments, given: Collection[str]) -> "Server":
    """The server with the base and all adapters, each with the system prompt and the budget of thoughts of its run."""
    from hf_recipes.apps.chat.loading import open_engine
    from hf_recipes.apps.chat.models import BASE
    from hf_recipes.apps.serve.request import ServedModel
    from hf_recipes.apps.serve.server import Server

    settings = {
        name: as_trained(replace(arguments, peft_path=[path] if path else None), given)
        for name, path in {**arguments.adapters, BASE: None}.items()
    }
    check_gpus(arguments.gpus)
    engine = open_engine(
        arguments.model_arguments,
        list(arguments.adapters.values()),
        max_new_tokens=arguments.max_new_tokens or 1,
        template=template,
        trust_remote_code=arguments.trust_remote_code,
        cache_dir=arguments.cache_dir,
        device_map=arguments.device_map,
        names=list(arguments.adapters),
        batch_size=arguments.batch_size,
    )
    models = {name: ServedModel(model, settings[name]) for name, model in engine.chat_models.items()}
    models = {BASE: models[BASE], **models}
    return Server(engine, {**models, arguments.model_name_or_path: models[BASE]}, arguments)


def run(arguments: ServeArguments, template: TemplateArguments, given: Collection[str]) -> None:
    check(arguments)
    if arguments.engine == "vllm":
        from hf_recipes.apps.serve.vllm import start

        start(arguments, template, given)
    else:
        from hf_recipes.apps.serve.server import serve

        serve(load(arguments, template, given))
        sys.stdout.flush()
        os._exit(0)  # Python takes seconds to take down what was imported
