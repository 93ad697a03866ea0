"""The memory of a training step or of an evaluation's forward pass, counted by running it on fake tensors.

These have shapes and no contents, so that no formula for each family of models is needed.
"""

import weakref
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hf_recipes.core.heap import heap_bytes
from hf_recipes.dry_run.repeated_layers import only_three, repeated_layers
from hf_recipes.models.adapters.lora import attach_lora, read_lora_config
from hf_recipes.models.adapters.saved_adapter import load_adapter, read_adapter_config
from hf_recipes.models.arguments import ModelArguments
from hf_recipes.models.inference.batch_options import ForwardPass
from hf_recipes.models.inference.forward import losses_at, takes
from hf_recipes.models.loading import weight_dtype, without_weights

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

FUSED_TILE = 4096 * 8192  # logits that TRL's fused head holds at a time, about


@dataclass
class Batch:
    """The largest batch of a run on one device: `rows` × `length` tokens, with logits at `positions` of them."""

    rows: int
    length: int
    positions: int
    packed: bool = False
    fused_head: bool = False  # TRL's fused loss, which never holds all logits
    accumulates: bool = False  # part of a batch: others of its step come before it, whose gradients are kept
    scores: bool = False  # a reward model's: one number a row in place of logits


def meta_model(
    model_args: ModelArguments,
    config: "PretrainedConfig",
    tokenizer: "PreTrainedTokenizerBase",
    added_tokens: list[str],
    *,
    bf16: bool,
    trust_remote_code: bool = False,
    is_reward: bool = False,
) -> "PreTrainedModel":
    """The model of a run on the meta device: every shape, dtype and `requires_grad`, and no weight."""
    settings = {"dtype": weight_dtype(model_args, trains_all=not model_args.use_lora, bf16=bf16)}
    attention = model_args.attn_implementation
    if attention:  # flash attention saves as much as sdpa for the backward pass, but cannot be imported without a GPU
        settings["attn_implementation"] = "sdpa" if "flash" in attention else attention
    task_type = "SEQ_CLS" if is_reward else "CAUSAL_LM"
    model = without_weights(config, tokenizer, is_reward=is_reward, trust_remote_code=trust_remote_code, **settings)
    with torch.device("meta"):
        if model_args.peft_path:
            read_adapter_config(model_args.peft_path, task_type)
            model = load_adapter(model, model_args.peft_path, is_trainable=True)
        elif model_args.use_lora:
            lora = read_lora_config(model_args.lora_config, task_type)
            new_ids = tokenizer.convert_tokens_to_ids(list(added_tokens))
            model = attach_lora(model, lora, model_args.lora_config, new_ids)
    return model.train()


class LiveTensors(TorchDispatchMode):
    """Counts the bytes of tensors that operations made and that are still referenced, and records the fullest moment.

    `at_peak` is what they were at that moment, by kind. A tensor whose last dimension is the vocabulary counts as
    logits; "heap" are the bytes, of all kinds, in blocks that malloc takes from its heap. Where code reads the value of
    a tensor, as ChatGLM-6B's does of its largest position and of whether its mask is empty, it gets `length`, or False.
    """

    def __init__(self, vocabulary: int, length: int):
        super().__init__()
        self.vocabulary, self.length = vocabulary, length
        self.known: set[int] = set()
        self.entries: dict[int, Counter[str]] = {}  # sizes by kind, one of them, and on the heap
        self.now = dict.fromkeys(("gradients", "activations", "logits", "heap"), 0)
        self.peak = 0
        self.at_peak = dict(self.now)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.prim.device.default:  # most of the calls, by autograd
            return args[0].fake_device
        if func is torch.ops.aten._local_scalar_dense.default:
            return args[0].dtype != torch.bool and self.length
        result = _call(func, args, kwargs or {})
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor)
        return result

    def _count(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.known or key in self.entries:
            return
        kind = "logits" if tensor.dim() > 1 and tensor.shape[-1] == self.vocabulary else "activations"
        self._add(key, kind, storage.nbytes())
        weakref.finalize(storage, self._forget, key)

    def _add(self, key: int, kind: str, size: int) -> None:
        self.entries[key] = Counter({kind: size, "heap": heap_bytes(size)})
        self.add(self.entries[key])

    def _forget(self, key: int) -> None:
        self.add(self.entries.pop(key), -1)

    def add(self, sizes: Mapping[str, int], times: int = 1) -> None:
        for kind, size in sizes.items():
            self.now[kind] += times * size
        total = sum(self.now.values()) - self.now["heap"]
        if total > self.peak:
            self.peak, self.at_peak = total, dict(self.now)

    def leave_out(self, tensors: Iterable[torch.Tensor]) -> None:
        """Never count `tensors`."""
        self.known |= {tensor.untyped_storage()._cdata for tensor in tensors}

    def to_gradients(self, parameter: torch.Tensor) -> None:
        key = parameter.grad.untyped_storage()._cdata
        if key in self.entries and "gradients" not in self.entries[key]:
            self._forget(key)
            self._add(key, "gradients", parameter.grad.untyped_storage().nbytes())


def _call(func, args: tuple, kwargs: dict):
    """`func` on fake tensors, whose grouped matmul takes bfloat16 only (torch 2.13; that of real ones any dtype)."""
    if func is not torch.ops.aten._grouped_mm.default:
        return func(*args, **kwargs)
    one, other, *rest = args
    return func(one.bfloat16(), other.bfloat16(), *rest, **kwargs).to(one.dtype)


def _with_fake_tensors(model: torch.nn.Module) -> None:
    """Replace each meta tensor by a fake CPU tensor (under an active FakeTensorMode); tied ones stay tied.

    Remote code may hold some in plain attributes.
    """
    made: dict[int, torch.Tensor] = {}
    for module in model.modules():
        for table in (module._parameters, module._buffers, vars(module)):
            for name, tensor in table.items():
                if not isinstance(tensor, torch.Tensor):
                    continue
                if id(tensor) not in made:
                    fake = torch.empty(tensor.shape, dtype=tensor.dtype)
                    is_parameter = isinstance(tensor, torch.nn.Parameter)
                    made[id(tensor)] = torch.nn.Parameter(fake, tensor.requires_grad) if is_parameter else fake
                table[name] = made[id(tensor)]


@contextmanager
def _simulated(model: "PreTrainedModel", autocast: torch.dtype | None, length: int) -> Iterator["LiveTensors"]:
    """`model` with fake tensors in place of meta ones, under accelerate's autocast; yields their counter."""
    from accelerate.utils.operations import convert_outputs_to_fp32

    vocabulary = model.get_input_embeddings().weight.shape[0]
    alive = LiveTensors(vocabulary, length)
    # Constants, which remote code makes of lists, are not fake.
    with only_three(repeated_layers(model), alive), FakeTensorMode(allow_non_fake_inputs=True):
        _with_fake_tensors(model)
        alive.leave_out([*model.parameters(), *model.buffers()])
        if autocast is not None:
            model.forward = convert_outputs_to_fp32(torch.autocast("cpu", dtype=autocast)(model.forward))
        try:
            yield alive
        finally:
            model.__dict__.pop("forward", None)


def _inputs(rows: int, length: int, *names: str) -> dict[str, torch.Tensor]:
    return {name: torch.ones((rows, length), dtype=torch.long) for name in names}


def pass_memory(
    model: "PreTrainedModel", one: ForwardPass, *, autocast: torch.dtype | None, scores: bool = False
) -> dict[str, int]:
    """As `step_memory`, of a forward pass of an evaluation; a cache counts as activations.

    Args:
        scores: it is a reward model's.
    """
    model.eval()
    with _simulated(model, autocast, one.length) as alive, torch.no_grad(), alive:
        inputs = _inputs(one.rows, one.length, "input_ids", "labels", "attention_mask")
        labels = inputs.pop("labels")
        if scores:
            model(**inputs, use_cache=False)
        elif one.new_tokens is None:
            losses_at(torch.zeros(one.rows * one.length, dtype=torch.long), model, {**inputs, "labels": labels})
        else:
            last = {"logits_to_keep": 1} if takes(model, "logits_to_keep") else {}
            cache = getattr(model(**inputs, use_cache=True, **last), "past_key_values", None)
            kept = alive.now["activations"] * (one.length + one.new_tokens) // one.length if cache is not None else 0
            # A token's logits exist three times: as computed, in float32, and after the logits processors.
            decoding = {"gradients": 0, "activations": kept, "logits": 3 * 4 * one.rows * alive.vocabulary}
            if sum(decoding.values()) > alive.peak:
                share = min(1.0, alive.now["heap"] / max(1, alive.now["activations"]))
                alive.at_peak = decoding | {"heap": int(share * kept)}
    model.train()
    return dict(alive.at_peak)


def step_memory(
    model: "PreTrainedModel",
    batch: Batch,
    *,
    autocast: torch.dtype | None,
    checkpointing: bool,
    accumulates: bool,
) -> dict[str, int]:
    """Bytes of gradients, activations and logits at the fullest moment of one training step, and `heap` of them in
    small blocks.

    Args:
        model: on the meta device; its tensors are replaced by fake ones.
        autocast: dtype of the mixed precision, if any.
        accumulates: the gradients of earlier batches exist already.
    """
    vocabulary = model.get_input_embeddings().weight.shape[0]
    positions = batch.positions
    if batch.fused_head:
        positions = min(positions, -(-FUSED_TILE // vocabulary))
    if checkpointing:
        model.gradient_checkpointing_enable()
        model.enable_input_require_grads()
    earlier = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad) if accumulates else 0
    with _simulated(model, autocast, batch.length) as alive:
        for parameter in model.parameters():
            if parameter.requires_grad:
                if accumulates:
                    parameter.grad = torch.empty_like(parameter)
                    alive.leave_out([parameter.grad])
                parameter.register_post_accumulate_grad_hook(alive.to_gradients)
        by_positions = "position_ids" if batch.packed else "attention_mask"
        inputs = _inputs(batch.rows, batch.length, "input_ids", "labels", by_positions)
        with alive:
            if batch.scores:
                del inputs["labels"]
                losses = model(**inputs, use_cache=False).logits
            else:
                losses, _, _ = losses_at(torch.zeros(positions, dtype=torch.long), model, inputs)
            losses.sum().backward()
    return alive.at_peak | {"gradients": alive.at_peak["gradients"] + earlier}
