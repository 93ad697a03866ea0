"""Batched greedy generation from token ids."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def generate(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    batch_size: int,
    stop_ids: Sequence[int] = (),
    before_batch: Callable[[], None] = lambda: None,
    synced: bool = False,
) -> list[str]:
    """Continue each of `prompts` (lists of ids, any lengths) greedily; return the texts in the order of the prompts.

    Batches hold prompts of similar length, padded on the left. A text ends before the first of `stop_ids`, of the
    model's own end tokens, or of the tokenizer's eos. Of the model's generation settings nothing else counts. Its mode,
    its settings and its use of the cache are restored.

    Args:
        before_batch: called before each batch.
        synced: go on computing until all processes have their answers, as weights that are parted over them need
            (ZeRO's stage 3, FSDP); each process must have as many batches.
    """
    import torch
    from transformers import GenerationConfig

    own = model.generation_config.eos_token_id
    stops = {*stop_ids, tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])} - {None}
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        use_cache=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=sorted(stops),
        bos_token_id=tokenizer.bos_token_id,
    )
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]), reverse=True)
    texts = [""] * len(prompts)
    # The last position's hidden states are a strided view; F.linear then copies the head's weights once for each row of
    # the batch (1.1 GB for 20 rows of a 135M model on torch 2.13).
    head = model.get_output_embeddings()
    hook = head.register_forward_pre_hook(lambda module, inputs: (inputs[0].contiguous(), *inputs[1:]))
    was_training, used_cache = model.training, model.config.use_cache
    # transformers fills what `config` leaves open (repetition_penalty, num_beams, …) from the model's own.
    owner = model.get_base_model() if hasattr(model, "get_base_model") else model
    own_config, owner.generation_config = owner.generation_config, GenerationConfig()
    model.eval()
    model.config.use_cache = True
    try:
        for start in range(0, len(order), batch_size):
            before_batch()
            batch = order[start : start + batch_size]
            width = len(prompts[batch[0]])
            ids = torch.full((len(batch), width), tokenizer.pad_token_id)
            mask = torch.zeros_like(ids)
            for row, index in enumerate(batch):
                ids[row, width - len(prompts[index]) :] = torch.as_tensor(prompts[index])
                mask[row, width - len(prompts[index]) :] = 1
            with torch.no_grad():
                device = model.device
                output = model.generate(
                    ids.to(device), attention_mask=mask.to(device), generation_config=config, synced_gpus=synced
                )
            for index, new in zip(batch, output[:, width:].tolist(), strict=True):
                end = next((i for i, token in enumerate(new) if token in stops), len(new))
                texts[index] = tokenizer.decode(new[:end], skip_special_tokens=True).strip()
    finally:
        hook.remove()
        owner.generation_config = own_config
        model.config.use_cache = used_cache
        model.train(was_training)
    return texts
