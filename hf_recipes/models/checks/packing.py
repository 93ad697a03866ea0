"""Whether a model's attention leaks: between packed rows, or from later tokens to earlier ones."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from hf_recipes.core.errors import UserError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

# The sizes of a tiny copy of a model; a family whose sizes depend on each other in another way has none.
TINY = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}


def sees_later_tokens(model: "PreTrainedModel") -> bool:
    """Whether a token's logits depend on later tokens, tried on the model itself."""
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
    """Whether the batches of this implementation of attention are one row of all sequences (flash attention's are)."""
    return "flash" in (attention or "")


def keeps_packed_rows_apart(model: "PreTrainedModel") -> bool:
    """Whether attention restarts where `position_ids` do, tried on the model itself.

    A row's logits are computed for the row alone, after another row with restarting positions, and after it with
    continued positions (where it does see the other row). With position biases (bloom, some falcons) or recurrent
    layers, the second are as far from the first as the third are; in other families they differ by rounding.
    """
    import torch

    size = model.get_input_embeddings().num_embeddings
    generator = torch.Generator().manual_seed(0)
    one, two = (torch.randint(size, (1, length), generator=generator).to(model.device) for length in (7, 9))
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


def leaks_in_tiny_copy(config: "PretrainedConfig", trust_remote_code: bool) -> bool:
    """Whether packed rows see each other in a tiny random model of this configuration.

    False too where there is none: the model itself is tried once it is loaded.
    """
    import torch
    from transformers import AutoModelForCausalLM

    tiny = copy.deepcopy(config)
    text = tiny.get_text_config()
    for name, value in {**TINY, "vocab_size": 128}.items():
        if hasattr(text, name):
            setattr(text, name, value)
    text.num_hidden_layers = min(4, text.num_hidden_layers)
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[: text.num_hidden_layers]
    try:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(tiny, trust_remote_code=trust_remote_code)
            return not keeps_packed_rows_apart(model)
    except Exception:
        return False


@contextmanager
def _gathered(model: "PreTrainedModel") -> Iterator[None]:
    """While this lasts, each module of a model that ZeRO's stage 3 shards gathers its weights for its forward pass, as
    DeepSpeed's engine does later."""
    hooks = []
    for module in model.modules():
        weights = [weight for weight in module.parameters(recurse=False) if hasattr(weight, "ds_id")]
        if weights:
            hooks.append(module.register_forward_pre_hook(lambda m, args, w=weights: w[0].all_gather(w)))
            hooks.append(module.register_forward_hook(lambda m, args, out, w=weights: w[0].partition(w)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
