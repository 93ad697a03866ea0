"""What a policy is compared with while it learns: itself, as it was at the start."""

from functools import partial

from transformers import PreTrainedModel

REFERENCE = "ref"  # TRL's name for the copy of an adapter


def refer_to_start(model: PreTrainedModel, keeps_copy: bool) -> None:
    """Make what TRL's trainers compare a PEFT model with the start of the run, and no part of what is saved.

    TRL gives every PEFT model a second adapter, a copy of the first. A new adapter changes nothing yet, so that the
    model with its adapter off is the start, and the copy is taken away. One that was trained before keeps its copy; a
    run that goes on from a checkpoint makes it anew from the adapter that it had started from.

    Args:
        model: of the trainer, after it was made.
        keeps_copy: the run started from a trained adapter.
    """
    if REFERENCE not in getattr(model, "peft_config", {}):
        return
    if keeps_copy:
        model.save_pretrained = partial(model.save_pretrained, selected_adapters=["default"])
    else:
        model.delete_adapter(REFERENCE)
