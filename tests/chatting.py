"""A tiny model with two adapters that chats, for the tests of the chat."""

from collections.abc import Sequence
from contextlib import contextmanager

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, Qwen3ForCausalLM

from conftest import build_tokenizer, tiny_model
from hf_recipes.apps.chat.engine import Engine
from hf_recipes.apps.chat.loading import open_engine
from hf_recipes.apps.chat.models import BASE, ChatModel
from hf_recipes.models.arguments import ModelArguments


@pytest.fixture(scope="module")
def base(tokenizer, tmp_path_factory) -> str:
    """A model whose answers are texts of many tokens."""
    config = tiny_model(len(tokenizer)).config
    config.tie_word_embeddings, config.initializer_range = False, 0.3
    folder = tmp_path_factory.mktemp("chat") / "talker"
    torch.manual_seed(0)
    Qwen3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def adapters(base, tmp_path_factory) -> list[str]:
    """Two adapters of `base`, with other answers than its own and each other's."""
    folders = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_pretrained(base)
        adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
        folders.append(str(tmp_path_factory.mktemp("adapters") / f"one.{seed}"))
        adapted.save_pretrained(folders[-1])
    return folders


@pytest.fixture(scope="module")
def engine(base, adapters) -> Engine:
    return open_engine(ModelArguments(base, dtype="float32"), adapters, max_new_tokens=12, device_map="cpu")


def scripted(text: str, tokens: Sequence[str] = (), **settings) -> Engine:
    """An engine whose model says `text` again and again, token by token, whatever it is asked.

    The tokenizer has the `settings`, and more `tokens`, by which the text is shorter.
    """
    tokenizer = build_tokenizer(**settings)
    tokenizer.add_tokens(list(tokens))
    model, ids, said = tiny_model(len(tokenizer)), tokenizer(text)["input_ids"], []

    def force(module, inputs, output):
        output.logits[:] = -100.0
        output.logits[..., ids[len(said) % len(ids)]] = 100.0
        said.append(True)
        return output

    model.register_forward_hook(force)
    return Engine(model, [ChatModel(BASE, tokenizer)])


@contextmanager
def at_each_step(engine: Engine, do):
    """`do` is called after each pass of the model."""
    model = engine.model.get_base_model() if isinstance(engine.model, PeftModel) else engine.model
    hook = model.register_forward_hook(lambda *_: do() and None)
    try:
        yield
    finally:
        hook.remove()
