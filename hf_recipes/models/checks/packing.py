"""Whether a model's attention leaks: between packed rows, or from later tokens to earlier ones."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from hf_recipes.core.errors import UserError
from hf_recipes.models.packed_masks import restart_masks

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel

# The sizes of a tiny copy of a model; a family whose sizes depend on each other in another way has none.
TINY = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
TINY |= {"moe_intermediate_size": 32, "pad_token_id": None}
# Mamba layers of several families are 128 wide, in 8 heads of 16.
TINY |= dict.fromkeys(("mamba_n_heads", "mamba_num_heads", "n_mamba_heads", "num_heads"), 8)
TINY |= dict.fromkeys(("mamba_d_head", "mamba_head_dim", "mamba_headdim", "mamba_d_state", "ssm_state_size"), 16)
TINY |= dict.fromkeys(("mamba_n_groups", "mamba_ngroups", "n_groups"), 1) | {"mamba_d_ssm": 128}


def sees_later_tokens(model: "PreTrainedModel") -> bool:
    """Whether a token's logits depend on later tokens, tried on the model itself."""
    import torch

    ids = torch.arange(6, device=model.device)[None]
    other = ids.clone()
    other[0, -1] = 7
    with torch.no_grad(), _gathered(model):
        one, two = (model.eval()(tokens).logits[0, :-1].float() for tokens in (ids, other))
    return not torch.allclose(one, two, rtol=1e-3, atol=1e-3 * one.abs().max())


def packing_leaks(model_type: str, flag: str = "--packing", instead: str = "leave --packing out") -> UserError:
    return UserError(
        f"{flag}: {model_type} carries a state from each packed row into the next (recurrence, convolutions or "
        f"attention that does not restart), so rows would leak into each other; {instead}"
    )


def joins_rows(attention: str | None) -> bool:
    """Whether the batches of this implementation of attention are one row of all sequences (flash attention's are)."""
    return "flash" in (attention or "")


def keeps_packed_rows_apart(model: "PreTrainedModel") -> bool:
    """Whether a row packed after another, with positions that restart, is independent of it, tried on the model.

    Where attention restarts, the first row's embeddings have a gradient of exactly zero, whatever the scale and dtype
    of the weights, and however experts group their tokens. Recurrent layers pass some on.
    """
    import torch

    size = model.get_input_embeddings().num_embeddings
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(size, (1, length), generator=generator) for length in (7, 9)]
    ids = torch.cat(rows, 1).to(model.device)
    positions = torch.cat([torch.arange(row.shape[1]) for row in rows])[None].to(model.device)
    embedded = []

    def keep(module: "torch.nn.Module", args: tuple, output: "torch.Tensor") -> "torch.Tensor":
        embedded.append(output.detach().requires_grad_())
        return embedded[-1]

    was_training = model.training
    hook = model.get_input_embeddings().register_forward_hook(keep)
    model.eval()
    try:
        if any(hasattr(weight, "ds_id") for weight in model.parameters()):
            return _same_after_another(model, ids, positions, rows[0].shape[1])
        with torch.enable_grad(), _as_trained(model):
            last = model(ids, position_ids=positions, use_cache=False).logits[0, rows[0].shape[1] :].float()
            # The random numbers of the run are left as they are: an adapter begins with them.
            weights = torch.randn(last.shape, generator=generator).to(last.device)
            (gradient,) = torch.autograd.grad((last * weights).sum(), embedded[:1])
        return not gradient[0, : rows[0].shape[1]].any()
    except TypeError:  # no position_ids at all
        return False
    finally:
        hook.remove()
        model.train(was_training)


def made_to_keep_packed_rows_apart(model: "PreTrainedModel") -> bool:
    """Whether packed rows are independent, once `model`'s masks are made from positions where they are not already."""
    if keeps_packed_rows_apart(model):
        return True
    restart_masks(model)
    return keeps_packed_rows_apart(model)


def _same_after_another(model: "PreTrainedModel", ids: "torch.Tensor", positions: "torch.Tensor", length: int) -> bool:
    """Whether the logits after the first `length` tokens are the same after others, but for rounding; forward only.

    ZeRO's stage 3 has a module's weights at hand in its forward pass alone.
    """
    import torch

    others = torch.cat([ids[:, :length].flip(1), ids[:, length:]], 1)
    with torch.no_grad(), _gathered(model), _as_trained(model):
        one, two = (
            model(row, position_ids=positions, use_cache=False).logits[0, length:].float() for row in (ids, others)
        )
    return bool((one - two).norm() <= 1e-3 * one.norm())


def _as_trained(model: "PreTrainedModel") -> "torch.autocast":
    """The autocast that a model of several dtypes needs: of a quantized base, norms in float32, a head in bfloat16."""
    import torch

    dtypes = {weight.dtype for weight in model.parameters() if weight.is_floating_point()}
    smallest = min(dtypes, key=lambda dtype: dtype.itemsize)
    return torch.autocast(model.device.type, smallest, enabled=len(dtypes) > 1)


def leaks_in_tiny_copy(config: "PretrainedConfig", trust_remote_code: bool) -> bool:
    """Whether packed rows see each other in a tiny random model of this configuration.

    False too where there is none: the model itself is tried once it is loaded.
    """
    import torch
    from transformers import AutoModelForCausalLM

    tiny = copy.deepcopy(config)
    text = tiny.get_text_config()
    try:
        for name, value in {**TINY, "vocab_size": 128}.items():
            if hasattr(text, name):
                with suppress(AttributeError):  # some are computed from others
                    setattr(text, name, value)
        text.num_hidden_layers = min(4, text.num_hidden_layers)
        if getattr(text, "layer_types", None):
            with suppress(AttributeError):
                text.layer_types = text.layer_types[: text.num_hidden_layers]
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(tiny, trust_remote_code=trust_remote_code)
            return not made_to_keep_packed_rows_apart(model)
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
