"""The memory that a run will need on each device, by kind, and the disk for a checkpoint, before weights are loaded.

Activations, gradients and logits are counted in `simulate`. Computed here are the optimizer's states, and what ZeRO and
quantization save.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from hf_recipes.dry_run.simulate import Batch, pass_memory, step_memory
from hf_recipes.models.adapters.targets import trained_shares
from hf_recipes.models.inference.batch_options import ForwardPass
from hf_recipes.models.quantization.experts import is_experts_weight
from hf_recipes.models.quantization.settings import is_read_by_kernel
from hf_recipes.trainer.sharding import Sharding

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TEMPORARY = ("activations", "logits")  # allocated and freed within a step
# On a CPU the process grows by more than its tensors. Measured in five runs of 23M and 47M models (torch 2.13, glibc
# 2.36): compiled kernels and libraries that are loaded during the run, and holes in malloc's heap, a share of what is
# in it.
LIBRARIES, FRAGMENTATION = 100_000_000, 0.6
# In bfloat16 oneDNN compiles kernels for each shape of batch and keeps the last 1,024: none of note where all batches
# are of a few shapes, 690 MB for 1,024 of SmolLM2's shapes and 960 MB for 2,400 (torch 2.13); SmolLM2's demo with its
# evaluations, over lengths as they come, grew by 1.0 GB.
KERNELS = 1_000_000_000
BLOCK = 4096  # elements; bitsandbytes keeps the states of smaller tensors in 32 bits


@dataclass
class Memory:
    """Bytes on one device at the fullest moment, by kind (`parts`), and bytes on disk for one checkpoint.

    `trained` and `total` are numbers of weights, `shares` the parts of the model with the trained ones. `batch` is
    the largest of the training, or of an evaluation. `kernels` is what compiled kernels may take besides, by how
    many shapes the batches have.
    """

    parts: dict[str, int]
    trained: int
    total: int
    shares: dict[str, float]
    checkpoint: int
    batch: Batch | ForwardPass
    kernels: int = 0

    @property
    def evaluates(self) -> bool:
        """Whether the fullest moment is in an evaluation."""
        return isinstance(self.batch, ForwardPass)

    @property
    def peak(self) -> int:
        return sum(self.parts.values())

    @property
    def most(self) -> int:
        return self.peak + self.kernels


def optimizer_bytes(optim: str, parameters: list[torch.Tensor]) -> int:
    """Bytes of the states that transformers' `optim` keeps for `parameters`."""
    optim = optim.lower()
    if "adafactor" in optim:  # sums over rows and over columns, in float32
        return 4 * sum(
            p.numel() // p.shape[-1] + p.numel() // p.shape[-2] if p.dim() > 1 else p.numel() for p in parameters
        )
    if "sgd" in optim or "lomo" in optim:
        return 0
    states = 1 if any(name in optim for name in ("lion", "rmsprop", "adagrad")) else 3 if "ademamix" in optim else 2
    bits = 8 if "8bit" in optim else 4 if "4bit" in optim else None
    total = 0
    for parameter in parameters:
        size = parameter.numel() * parameter.element_size()
        if bits and parameter.numel() >= BLOCK:
            size = parameter.numel() * bits // 8
        total += states * size
    return total


def estimate(
    model: "PreTrainedModel",
    batch: Batch,
    args,
    *,
    linear_bits: float | None = None,
    tokenizer_bytes: int = 0,
    keeps_reference: bool = False,
    passes: Sequence[ForwardPass] = (),
) -> Memory:
    """What training a `meta_model` under `args` needs, or an evaluation between its steps where that needs more.

    Args:
        linear_bits: bits of each weight of the frozen linear layers where they are quantized; by default their dtype's.
        keeps_reference: a frozen copy of the trained weights is kept as reference.
        passes: the largest forward pass of each evaluation.
    """
    sharding = Sharding.of(args)
    parameters = list(model.parameters())
    trained = [p for p in parameters if p.requires_grad]
    head = model.get_output_embeddings()
    linear = {
        id(module.weight): module.weight
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head and not module.weight.requires_grad
        if not is_read_by_kernel(model, name.removesuffix(".base_layer"))
    }
    if linear_bits and linear_bits < 8:
        experts = (
            p for m in model.modules() for key, p in m.named_parameters(recurse=False) if is_experts_weight(m, key)
        )
        linear |= {id(weight): weight for weight in experts if not weight.requires_grad}
    quantized = sum(int(p.numel() * linear_bits / 8) for p in linear.values()) if linear_bits else 0
    frozen = sum(_size(p) for p in parameters if not p.requires_grad and not (linear_bits and id(p) in linear))
    trained_bytes = sum(_size(p) for p in trained)
    count = sum(p.numel() for p in trained)
    states = optimizer_bytes(args.optim, trained)
    masters = 4 * count if sharding.half else 0
    on_device = 2 * count if sharding.half else trained_bytes

    autocast = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None
    checkpointing = bool(args.gradient_checkpointing)
    evaluations = [(one, pass_memory(model, one, autocast=autocast, scores=batch.scores)) for one in set(passes)]
    step = step_memory(
        model,
        batch,
        autocast=autocast,
        checkpointing=checkpointing,
        accumulates=batch.accumulates or args.gradient_accumulation_steps > 1,
    )
    gradients = step["gradients"]
    if sharding.half:
        gradients //= 2
    if sharding.stage == 0 and sharding.processes > 1:
        gradients += trained_bytes  # DDP's buckets
    # Between the steps there are no gradients, but DDP and DeepSpeed keep their buffers.
    buffers = gradients if sharding.stage or sharding.processes > 1 else 0
    fragmentation = FRAGMENTATION if args.use_cpu else 0

    def total(moment: tuple[Batch | ForwardPass, dict[str, int], int]) -> float:
        _, tensors, gradients = moment
        return gradients + sum(tensors[kind] for kind in TEMPORARY) + fragmentation * tensors["heap"]

    moments = [(batch, step, gradients), *((one, tensors, buffers) for one, tensors in evaluations)]
    batch, tensors, gradients = max(moments, key=total)
    if linear_bits and linear:  # one layer at a time is dequantized
        tensors["activations"] += max(2 * p.numel() for p in linear.values())
    weights = quantized + frozen + on_device * (1 + keeps_reference) + sum(_size(b) for b in model.buffers())
    layers = max(1, getattr(model.config.get_text_config(), "num_hidden_layers", 1))
    processes = sharding.processes
    parts = {
        "weights": weights if sharding.stage < 3 else weights // processes + 2 * weights // layers,
        "gradients": gradients if sharding.stage < 2 else gradients // processes,
        "optimizer": (states + masters) // (processes if sharding.stage else 1),
        "activations": tensors["activations"],
        "logits": tensors["logits"],
    }
    if sharding.offloads_optimizer:
        parts["optimizer"] = 0
    if sharding.offloads_weights:
        parts["weights"] = 2 * weights // layers
    checkpoint = trained_bytes + tokenizer_bytes + (0 if args.save_only_model else states + masters)
    if args.use_cpu:
        parts["allocator"] = LIBRARIES + int(FRAGMENTATION * tensors["heap"])
    kernels = KERNELS if args.use_cpu and autocast is torch.bfloat16 else 0
    total = sum(p.numel() for p in parameters)
    return Memory(parts, count, total, trained_shares(model), checkpoint, batch, kernels)


def _size(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()
