"""The reference that a policy is held to: the model as it was when the training began.

- With a new adapter it is the model with its adapter off; no copy is kept.
- With an adapter that a run goes on from (`--peft_path`) it is a frozen copy of that adapter, which is in no file: a
  resumed run reads it anew from where the first one did.
- With all weights trained it is a second, frozen model.
"""

import re
from functools import partial

import torch

REFERENCE = "ref"  # what TRL's trainers call the copy of an adapter
_POLICY = re.compile(r"\.default(?=\.|$)")


def settle_reference(model: torch.nn.Module, continues_adapter: bool) -> None:
    """Settle the adapter `REFERENCE` once a trainer of TRL was made, which gives one to every model with an adapter.

    Args:
        goes_on: the adapter was trained before; then its copy stays, and `save_pretrained` leaves it out. Else it is
            deleted, unless the adapter's first weights (`init_lora_weights` false) change what the model says.
    """
    if REFERENCE not in getattr(model, "peft_config", {}):
        return
    adapters = [name for name in model.peft_config if name != REFERENCE]
    if not continues_adapter and model.peft_config[adapters[0]].init_lora_weights is not False:
        model.delete_adapter(REFERENCE)
        return
    weights = dict(model.named_parameters())
    for name, weight in weights.items():
        twin = weights.get(_POLICY.sub(f".{REFERENCE}", name)) if _POLICY.search(name) else None
        if twin is not None:  # TRL's copy leaves out those of embeddings, and is in float32
            twin.data = weight.data.clone()
            twin.requires_grad_(False)
    model.save_pretrained = partial(model.save_pretrained, selected_adapters=adapters)
