"""The reference that the policy is compared with: the model as it was when the training began.

- With a new adapter it is the model with its adapter off; no copy is kept.
- With an adapter that was trained before (`--peft_path`) it is a frozen copy of that adapter. No file holds it: a
  resumed run reads it from `--peft_path` again.
- With all weights trained it is a second, frozen model.
"""

import re
from functools import partial

import torch

REFERENCE = "ref"  # what TRL's trainers call the copy of an adapter
_POLICY = re.compile(r"\.default(?=\.|$)")


def freeze_reference_adapter(model: torch.nn.Module, continues_adapter: bool) -> None:
    """Keep or delete the adapter `REFERENCE`, which TRL's trainers copy from every model's adapter.

    The copy of an adapter that was trained before stays, frozen, and `save_pretrained` leaves it out. That of a new
    adapter is deleted, as the model with its adapter off is the same; it stays only where the adapter's first weights
    (`init_lora_weights` false) change what the model computes.
    """
    if REFERENCE not in getattr(model, "peft_config", {}):
        return
    adapters = [name for name in model.peft_config if name != REFERENCE]
    if not continues_adapter and model.peft_config[adapters[0]].init_lora_weights is not False:
        model.delete_adapter(REFERENCE)
        return
    weights = dict(model.named_parameters())
    for name, weight in weights.items():
        copy = weights.get(_POLICY.sub(f".{REFERENCE}", name)) if _POLICY.search(name) else None
        if copy is not None:  # TRL's copy leaves out those of embeddings, and is in float32
            copy.data = weight.data.clone()
            copy.requires_grad_(False)
    model.save_pretrained = partial(model.save_pretrained, selected_adapters=adapters)
