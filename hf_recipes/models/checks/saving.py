"""Whether what was trained is in what was saved."""

import math
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors import safe_open
from transformers import PreTrainedModel

from hf_recipes.core.errors import UserError


def saved_names(model: PeftModel) -> dict[str, str]:
    """The parameters that `save_pretrained` writes → their names in the adapter's file."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    saved = get_peft_model_state_dict(model, parameters, save_embedding_layers=False)
    names = {id(parameter): name for name, parameter in saved.items()}
    return {name: names[id(parameter)] for name, parameter in parameters.items() if id(parameter) in names}


def check_saved(model: PreTrainedModel, folder: Path, state: dict[str, torch.Tensor] | None = None) -> None:
    """Compare the files that were just saved in `folder` with what is trained.

    An adapter's tensors are compared by name and value. A full model's experts and tied weights can have other names in
    its files: there the number of all weights is compared.

    Args:
        state: the state that was saved, where DeepSpeed gathered it.
    """
    if not isinstance(model, PeftModel):
        saved = 0
        for path in folder.glob("*.safetensors"):
            with safe_open(path, "pt") as file:
                saved += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
        count = sum(getattr(p, "ds_numel", p.numel()) for p in model.parameters())
        if saved < count:
            raise UserError(f"{folder}: the model has {count:,} weights and {saved:,} were saved")
        return
    names, expected = saved_names(model), get_peft_model_state_dict(model, state, save_embedding_layers=False)
    with safe_open(folder / "adapter_model.safetensors", "pt") as file:
        saved = set(file.keys())
        for name in (name for name, parameter in model.named_parameters() if parameter.requires_grad):
            key = names.get(name)
            if key not in saved or not torch.equal(file.get_tensor(key), expected[key].cpu()):
                raise UserError(f"{folder}: adapter_model.safetensors lacks {name} as it was trained")
