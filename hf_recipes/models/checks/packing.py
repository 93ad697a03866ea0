"""Whether a model keeps packed rows, and later tokens, apart."""

from typing import TYPE_CHECKING

from hf_recipes.core.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def _sees_later_tokens(model: "PreTrainedModel") -> bool:
    import torch

    ids = torch.arange(6, device=model.device)[None]
    other = ids.clone()
    other[0, -1] = 7
    with torch.no_grad(), _gathered(model):
        one, two = (model.eval()(tokens).logits[0, :-1].float() for tokens in (ids, other))
    return not torch.equal(one, two)


def packing_leaks(model_type: str, flag: str = "--packing", instead: str = "leave --packing out") -> UserError:
    return UserError(
        f"{flag}: {model_type} does not restart its attention at each packed row (position biases or recurrence), "
        f"so rows would leak into each other; {instead}"
    )


def joins_rows(attention: str | None) -> bool:
    """Whether this implementation of attention takes documents of any lengths joined into one row."""
    return "flash" in (attention or "")


def keeps_packed_rows_apart(model: "PreTrainedModel") -> bool:
    """Whether attention restarts where `position_ids` do, tried on the model itself.

    A row's logits are taken alone, behind another row with positions that restart, and behind it with positions that
    run on (where it does see the other row). Families with position biases (bloom, some falcons) or recurrent layers
    come out of the second as far off as out of the third; the others differ by rounding.
    """
    import torch

    size = model.get_input_embeddings().num_embeddings
    draw = torch.Generator().manual_seed(0)
    one, two = (torch.randint(size, (1, length), generator=draw).to(model.device) for length in (7, 9))
    both = torch.cat([one, two], 1)
    restarting = torch.cat([torch.arange(7), torch.arange(9)])[None].to(model.device)
    was_training = model.training
    model.eval()
    with torch.no_grad(), _gathered(model):
        alone = model(two, use_cache=False).logits[0].float()
        mixed = model(both, use_cache=False).logits[0, 7:].float()
        try:
            packed = model(both, position_ids=restarting, use_cache=False).logits[0, 7:].float()
        except TypeError:  # no position_ids at all
            packed = mixed
    model.train(was_training)
    return bool((packed - alone).norm() < 0.3 * (mixed - alone).norm())


@contextmanager
def _gathered(model: "PreTrainedModel") -> Iterator[None]:
    """Before DeepSpeed has taken over a model of ZeRO's stage 3: each module's weights whole while it runs."""
    hooks = []
    for module in model.modules():
        own = [parameter for parameter in module.parameters(recurse=False) if hasattr(parameter, "ds_id")]
        if own:
            hooks.append(module.register_forward_pre_hook(lambda module, inputs, own=own: own[0].all_gather(own)))
            hooks.append(module.register_forward_hook(lambda module, inputs, out, own=own: own[0].partition(own)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
