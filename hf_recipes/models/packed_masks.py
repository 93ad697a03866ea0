"""Attention masks that restart at each packed row, for families whose code does not hand the positions on to them."""

import sys
from contextvars import ContextVar
from functools import wraps
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

MAKERS = ("create_causal_mask", "create_sliding_window_causal_mask", "create_chunked_causal_mask")
_positions: ContextVar["torch.Tensor | None"] = ContextVar("position_ids of the forward pass", default=None)


def makes_causal_masks(model: "PreTrainedModel") -> bool:
    """Whether its masks are those that transformers makes for all decoders."""
    return any(hasattr(sys.modules[type(model).__module__], name) for name in MAKERS)


def restart_masks(model: "PreTrainedModel") -> None:
    """Let transformers make `model`'s masks from `position_ids` too, wherever it is called with them.

    Bloom and gpt-oss leave them out, and Falcon before transformers 5.24. Position biases (alibi) depend on distances
    alone, so that a row which sees only itself is as it is by itself.
    """
    code = sys.modules[type(model).__module__]
    for name in MAKERS:
        maker = getattr(code, name, None)
        if maker is not None and not hasattr(maker, "takes_from_forward"):
            setattr(code, name, _with_positions(maker))

    def before(module: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        module._packed_positions = _positions.set(kwargs.get("position_ids"))

    def after(module: Any, args: tuple, output: Any) -> None:
        _positions.reset(module._packed_positions)

    model.register_forward_pre_hook(before, with_kwargs=True)
    model.register_forward_hook(after, always_call=True)


def _with_positions(maker: Any) -> Any:
    @wraps(maker)
    def make(*args: Any, position_ids: "torch.Tensor | None" = None, **kwargs: Any) -> Any:
        return maker(*args, position_ids=_positions.get() if position_ids is None else position_ids, **kwargs)

    make.takes_from_forward = True
    return make
