"""Layers that are alike are run once: a model of three of them, and what the others would keep, added."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from hf_recipes.core.heap import heap_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from hf_recipes.dry_run.simulate import LiveTensors

KEPT = 3  # the first, whose input may need no gradient; one that is measured; the last
POSITIONS = {"layer_idx", "layer_id", "layer_number"}  # attributes in which layers that are alike differ


def repeated_layers(model: "PreTrainedModel") -> torch.nn.ModuleList | None:
    """The layers of a model of transformers' own code, where all are alike and more than three."""
    count = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    for module in model.modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == count and count > KEPT:
            if not type(module[0]).__module__.startswith("transformers.models."):
                return None  # remote code may reach layers by their number
            first = _description(module[0])
            return module if all(_description(layer) == first for layer in module[1:]) else None
    return None


def _description(layer: torch.nn.Module) -> list:
    parts: list = [
        (name, weight.shape, weight.dtype, weight.requires_grad) for name, weight in layer.named_parameters()
    ]
    for module in layer.modules():
        plain = {key: value for key, value in vars(module).items() if isinstance(value, int | float | str | None)}
        parts.append((type(module), {key: value for key, value in plain.items() if key not in POSITIONS}))
    return parts


@contextmanager
def only_three(layers: torch.nn.ModuleList | None, alive: "LiveTensors") -> Iterator[None]:
    """While this lasts, `layers` are three, and `alive` counts what the ones between the second and the third keep.

    Exact, not extrapolated: from layer to layer the memory grows or falls by the same number of bytes, so that the
    fullest moment is never in the middle of those that are left out.
    """
    if layers is None:
        yield
        return
    whole, removed = list(layers), len(layers) - KEPT
    second, last = whole[1], whole[-1]
    start: dict[int, Counter[str]] = {}
    made: list[Counter[str]] = []
    freed: list[Counter[str]] = []

    def begin(*_: Any) -> None:
        handles[0].remove()  # gradient checkpointing runs it again
        start.update(alive.entries)

    def add(module: torch.nn.Module, args: tuple, kwargs: dict) -> None:
        handles[1].remove()
        made.extend(entry for key, entry in alive.entries.items() if start.get(key) is not entry)
        for entry in (entry for key, entry in start.items() if alive.entries.get(key) is not entry):
            # A layer's output takes the place of its input, where neither is kept: the latest of the same size.
            successor = next((number for number in reversed(range(len(made))) if made[number] == entry), None)
            freed.append(entry) if successor is None else made.pop(successor)
        for entry in freed:
            alive.add(entry, -removed)
        scale(made, 1 + removed)
        hidden = args[0] if args else kwargs["hidden_states"]
        if hidden.requires_grad:
            hidden.register_hook(to_gradients)

    def to_gradients(_: torch.Tensor) -> None:
        """The missing layers' backward passes: what was kept for them is free, and their weights have gradients."""
        for entry in freed:
            alive.add(entry, removed)
        scale([entry for entry in alive.entries.values() if any(entry is one for one in made)], 1 / (1 + removed))
        for weight in second.parameters():
            if weight.requires_grad and weight.grad is None:
                size = weight.numel() * weight.element_size()
                alive.add({"gradients": size, "heap": heap_bytes(size)}, removed)

    def scale(entries: list[Counter[str]], factor: float) -> None:
        for entry in entries:
            alive.add(entry, -1)
            entry.update({kind: round(size * factor) - size for kind, size in list(entry.items())})
            alive.add(entry)

    handles = [
        second.register_forward_pre_hook(begin),
        last.register_forward_pre_hook(add, with_kwargs=True),
    ]
    del layers[2:]
    layers.append(last)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        del layers[:]
        layers.extend(whole)
