"""Conversations as token ids and labels."""

from typing import Any


def __getattr__(name: str) -> Any:
    if name != "ChatEncoder":
        raise AttributeError(f"module {__name__} has no attribute {name}")
    from hf_recipes.data.chat.encoder import ChatEncoder  # imports transformers

    return ChatEncoder
