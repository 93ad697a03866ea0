"""Attention on a CPU document by document, where a mask says no more than where causal documents begin and end."""

from itertools import groupby, pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask


def attend_by_document() -> None:
    """Let sdpa of transformers' models skip what packed rows and right padding mask, on a CPU.

    A masked call takes all of T × T there; causal calls on documents of n tokens half of each n × n.
    """
    AttentionInterface.register("sdpa", _attention)
    AttentionMaskInterface.register("sdpa", _mask)


def _mask(*args: Any, **kwargs: Any) -> torch.Tensor | None:
    """Transformers' mask, with the documents of all rows as its attribute where that is all it says.

    Whatever changes the mask makes another tensor, without the attribute, to which attention is as ever.
    """
    mask = sdpa_mask(*args, **kwargs)
    has_values = not (mask is None or isinstance(mask, FakeTensor) or torch.compiler.is_compiling())
    if has_values and mask.device.type == "cpu" and mask.shape[-2] == mask.shape[-1] > 1:
        mask.documents = _documents(mask[:, 0])
    return mask


def _documents(mask: torch.Tensor) -> list[tuple[int, int]] | None:
    """The causal documents in rows (B, T, T), one row after the other: how many in a row have which length.

    None where a row holds anything else. It may end in padding, which no token sees: that is a document too, whose
    outputs nothing reads.
    """
    size = mask.shape[-1]
    seen = mask.diagonal(dim1=1, dim2=2)  # padding does not see itself
    begins = (mask.sum(-1) == 1) & seen
    begins[:, 1:] |= seen[:, :-1] & ~seen[:, 1:]
    begins[:, 0] = True
    document = begins.cumsum(-1)
    causal = (document[:, :, None] == document[:, None]).tril()
    if not torch.equal(mask & seen[:, :, None], causal & seen[:, :, None]):
        return None
    starts = begins.flatten().nonzero().flatten().tolist()
    lengths = [end - start for start, end in pairwise([*starts, len(mask) * size])]
    return [(len(list(equal)), length) for length, equal in groupby(lengths)]


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    documents = getattr(attention_mask, "documents", None)
    if documents is None or dropout or kwargs.get("position_bias") is not None or query.shape[2] != key.shape[2]:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    # In bfloat16 the kernel's backward pass takes as long on a short document as on a long one (torch 2.13).
    tokens = [states.float().transpose(1, 2).flatten(0, 1) for states in (query, key, value)]
    sizes = [count * length for count, length in documents]
    outputs = []
    for (count, _), *states in zip(documents, *(part.split(sizes) for part in tokens), strict=True):
        batch = (part.unflatten(0, (count, -1)).transpose(1, 2) for part in states)
        output = F.scaled_dot_product_attention(*batch, scale=scaling, is_causal=True, enable_gqa=True)
        outputs.append(output.transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs).unflatten(0, (len(query), -1)).to(query.dtype), None
