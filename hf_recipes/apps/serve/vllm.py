"""vLLM's server with the same settings."""

import json
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Collection
from dataclasses import replace

from hf_recipes.apps.chat.launch import as_trained
from hf_recipes.apps.chat.models import BASE
from hf_recipes.apps.serve.arguments import ServeArguments
from hf_recipes.core.errors import UserError, say
from hf_recipes.models.inference.loading import open_for_inference
from hf_recipes.models.inference.vllm_model import (
    NOT_INSTALLED,
    check_adapter,
    check_model,
    flag_words,
    lora_rank,
    words_of,
)
from hf_recipes.models.templates.options import TemplateArguments


def start(arguments: ServeArguments, template: TemplateArguments, given: Collection[str]) -> None:
    """Replace this process by vLLM's server; the key goes by its environment."""
    program = shutil.which("vllm", path=os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", "")]))
    if program is None:
        raise UserError(NOT_INSTALLED)
    command = [program, *command_line(arguments, template, given)]
    say(shlex.join(command))
    environment = {**os.environ, **({"VLLM_API_KEY": arguments.key} if arguments.key else {})}
    os.execve(program, command, environment)


def command_line(arguments: ServeArguments, template: TemplateArguments, given: Collection[str]) -> list[str]:
    """The arguments of vLLM's program."""
    adapters = arguments.adapters
    arguments = as_trained(replace(arguments, peft_path=list(adapters.values()) or None), given)
    first = next(iter(adapters.values()), None)
    source = {"trust_remote_code": arguments.trust_remote_code, "cache_dir": arguments.cache_dir}
    model_args = replace(arguments.model_arguments, peft_path=first)
    config, tokenizer = open_for_inference(model_args, template=template, **source)
    check_model(model_args, tokenizer, config)
    if arguments.system_prompt:
        say(f"vLLM sends no system prompt by itself; clients have to send {arguments.system_prompt!r}")
    default = {"temperature": arguments.temperature, "top_p": arguments.top_p}
    default["repetition_penalty"] = arguments.repetition_penalty
    default |= {"max_new_tokens": arguments.max_new_tokens} if arguments.max_new_tokens else {}
    flags = {
        "host": arguments.host,
        "port": arguments.port,
        "served-model-name": [BASE, arguments.model_name_or_path],
        "revision": arguments.model_revision,
        "dtype": arguments.dtype,
        "max-num-seqs": arguments.batch_size,
        "generation-config": "vllm",
        "override-generation-config": json.dumps(default),
        "seed": arguments.seed,
        "download-dir": arguments.cache_dir,
        "quantization": "bitsandbytes" if arguments.load_in_4bit else None,
        "tensor-parallel-size": arguments.gpus.count(",") + 1 if arguments.gpus not in (None, "cpu") else None,
        "allowed-origins": json.dumps(arguments.allow_origin) if arguments.allow_origin else None,
        "trust-remote-code": arguments.trust_remote_code,
    }
    if tokenizer.chat_template:
        with tempfile.NamedTemporaryFile("w", suffix=".jinja", delete=False, encoding="utf-8") as file:
            file.write(tokenizer.chat_template)
        flags["chat-template"] = file.name
    if adapters:
        flags |= {"enable-lora": True, "max-loras": len(adapters)}
        flags["max-lora-rank"] = lora_rank([check_adapter(path).r for path in adapters.values()])
        flags["lora-modules"] = [f"{name}={path}" for name, path in adapters.items()]
    words = [word for name, value in flags.items() for word in flag_words(name, value)]
    return ["serve", arguments.model_name_or_path, *words, *words_of(arguments.vllm_args)]
