"""What a run will need, before its weights are loaded: memory on each device by part, and disk for each checkpoint.

One training step of the model, adapter and all, and the largest forward pass of each evaluation are carried out on
fake tensors, which have shapes and no contents, and every tensor that would be alive is counted. So there are no
formulas by family; only what is not computed there is: the optimizer's states, what a cache grows to in generation, and
what ZeRO and quantization take away.
"""

import copy
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hf_recipes.core.heap import MAPPED
from hf_recipes.models.arguments import ModelArguments
from hf_recipes.models.inference.batch_options import ForwardPass
from hf_recipes.models.inference.forward import losses_at, takes
from hf_recipes.models.loading import weight_dtype
from hf_recipes.models.lora import attach_lora, read_lora_config
from hf_recipes.models.saved_adapter import read_adapter_config
from hf_recipes.trainer.sharding import Sharding

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

MOVING = ("activations", "logits")  # what comes and goes within a step
FUSED_TILE = 4096 * 8192  # logits that TRL's fused head holds at a time, about
# On a CPU the process grows by more than its tensors. Measured over five runs of 23M and 47M models (torch 2.13, glibc
# 2.36): kernels that are built and libraries that are loaded on the way, and holes in malloc's heap, which are a share
# of what lies in it.
LIBRARIES, SCATTER = 100_000_000, 0.6
BLOCK = 4096  # bitsandbytes keeps the states of smaller tensors in 32 bits


@dataclass
class Batch:
    """The largest batch of a run on one device: `rows` × `length` tokens, with logits at `positions` of them."""

    rows: int
    length: int
    positions: int
    packed: bool = False
    fused_head: bool = False  # the loss is TRL's fused one, which never holds all logits
    scores: bool = False  # of a reward model: one number a row in place of logits


@dataclass
class Memory:
    """Bytes on one device at the fullest moment, by part, and bytes on disk for one checkpoint.

    `batch` is that of the moment: the largest of the training, or of an evaluation.
    """

    parts: dict[str, int]
    trained: int
    total: int
    checkpoint: int
    batch: Batch | ForwardPass

    @property
    def evaluates(self) -> bool:
        """Whether the fullest moment is in an evaluation."""
        return isinstance(self.batch, ForwardPass)

    @property
    def peak(self) -> int:
        return sum(self.parts.values())


def skeleton(
    model_args: ModelArguments,
    config: "PretrainedConfig",
    tokenizer: "PreTrainedTokenizerBase",
    added_tokens: list[str],
    *,
    bf16: bool,
    trust_remote_code: bool = False,
    is_reward: bool = False,
) -> "PreTrainedModel":
    """The model as `build_model` would make it, on the meta device: every shape, dtype and `requires_grad`, no weight.

    Raises:
        UserError: a LoRA file that does not fit the model.
    """
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    settings = {"dtype": weight_dtype(model_args, trains_all=not model_args.use_lora, bf16=bf16)}
    attention = model_args.attn_implementation
    if attention:  # flash attention keeps what sdpa keeps, and needs a GPU to be imported
        settings["attn_implementation"] = "sdpa" if "flash" in attention else attention
    kind, task_type = AutoModelForCausalLM, "CAUSAL_LM"
    if is_reward:
        kind, task_type = AutoModelForSequenceClassification, "SEQ_CLS"
        config = copy.deepcopy(config)
        config.num_labels, config.get_text_config().pad_token_id = 1, tokenizer.pad_token_id
    with torch.device("meta"):
        model = kind.from_config(config, trust_remote_code=trust_remote_code, **settings)
        if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
            model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        if model_args.peft_path:
            saved = read_adapter_config(model_args.peft_path, task_type)
            saved.inference_mode = False
            model = attach_lora(model, saved, model_args.peft_path, [])
        elif model_args.use_lora:
            lora = read_lora_config(model_args.lora_config, task_type)
            new_ids = tokenizer.convert_tokens_to_ids(list(added_tokens))
            model = attach_lora(model, lora, model_args.lora_config, new_ids)
    return model.train()


class _Alive(TorchDispatchMode):
    """Counts the bytes of all tensors that operations make and something still holds, and keeps the fullest moment.

    `snapshot` takes the parts at that moment. A tensor whose last dimension is the vocabulary belongs to the logits.
    """

    def __init__(self, known: set[int], vocabulary: int):
        super().__init__()
        self.known, self.vocabulary = known, vocabulary
        self.entries: dict[int, tuple[str, int]] = {}
        self.now = dict.fromkeys(("gradients", "activations", "logits"), 0)
        self.on_heap = 0
        self.peak = 0
        self.snapshot = {**self.now, "heap": 0}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = _run(func, args, kwargs or {})
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._see(tensor)
        return result

    def _see(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.known or key in self.entries:
            return
        part = "logits" if tensor.dim() > 1 and tensor.shape[-1] == self.vocabulary else "activations"
        self._add(key, part, storage.nbytes())
        weakref.finalize(storage, self._forget, key)

    def _add(self, key: int, part: str, size: int) -> None:
        self.entries[key] = (part, size)
        self.now[part] += size
        self.on_heap += size if size < MAPPED else 0
        if sum(self.now.values()) > self.peak:
            self.peak, self.snapshot = sum(self.now.values()), {**self.now, "heap": self.on_heap}

    def _forget(self, key: int) -> None:
        part, size = self.entries.pop(key)
        self.now[part] -= size
        self.on_heap -= size if size < MAPPED else 0

    def to_gradients(self, parameter: torch.Tensor) -> None:
        key = parameter.grad.untyped_storage()._cdata
        if key in self.entries and self.entries[key][0] != "gradients":
            size = self.entries[key][1]
            self._forget(key)
            self._add(key, "gradients", size)


def _run(func, args: tuple, kwargs: dict):
    """`func` on fake tensors, which are multiplied by groups in bfloat16 alone (torch 2.13; real ones in any dtype)."""
    if func is not torch.ops.aten._grouped_mm.default:
        return func(*args, **kwargs)
    one, other, *rest = args
    return func(one.bfloat16(), other.bfloat16(), *rest, **kwargs).to(one.dtype)


def _with_fake_tensors(model: torch.nn.Module) -> None:
    """Put a fake CPU tensor in the place of each meta tensor (under an active FakeTensorMode); tied ones stay tied."""
    made: dict[int, torch.Tensor] = {}
    for module in model.modules():
        for table in (module._parameters, module._buffers):
            for name, tensor in table.items():
                if tensor is None:
                    continue
                if id(tensor) not in made:
                    fake = torch.empty(tensor.shape, dtype=tensor.dtype)
                    is_parameter = isinstance(tensor, torch.nn.Parameter)
                    made[id(tensor)] = torch.nn.Parameter(fake, tensor.requires_grad) if is_parameter else fake
                table[name] = made[id(tensor)]


@contextmanager
def _simulated(model: "PreTrainedModel", autocast: torch.dtype | None) -> Iterator["_Alive"]:
    """`model` with fake tensors in place of those of the meta device, as accelerate prepares it; what becomes alive in
    it is counted."""
    from accelerate.utils.operations import convert_outputs_to_fp32

    vocabulary = model.get_input_embeddings().weight.shape[0]
    with FakeTensorMode():
        _with_fake_tensors(model)
        held = [*model.parameters(), *model.buffers()]
        alive = _Alive({tensor.untyped_storage()._cdata for tensor in held}, vocabulary)
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
    """As `step_memory`, of the largest forward pass of an evaluation; what a cache holds is among the activations.

    Args:
        scores: of a reward model.
    """
    model.eval()
    with _simulated(model, autocast) as alive, torch.no_grad(), alive:
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
            # The logits of a token: as they are, in float32, and as a decoder has worked on them.
            decoding = {"gradients": 0, "activations": kept, "logits": 3 * 4 * one.rows * alive.vocabulary}
            if sum(decoding.values()) > alive.peak:
                share = min(1.0, alive.on_heap / max(1, alive.now["activations"]))
                alive.snapshot = decoding | {"heap": int(share * kept)}
    model.train()
    return dict(alive.snapshot)


def step_memory(
    model: "PreTrainedModel",
    batch: Batch,
    *,
    autocast: torch.dtype | None,
    checkpointing: bool,
    accumulates: bool,
) -> dict[str, int]:
    """Bytes of gradients, activations and logits at the fullest moment of one training step.

    Args:
        model: on the meta device; its tensors are replaced by fake ones.
        autocast: dtype of the mixed precision, if any.
        accumulates: the gradients of earlier batches are there already.
    """
    vocabulary = model.get_input_embeddings().weight.shape[0]
    positions = batch.positions
    if batch.fused_head:
        positions = min(positions, -(-FUSED_TILE // vocabulary))
    if checkpointing:
        model.gradient_checkpointing_enable()
        model.enable_input_require_grads()
    with _simulated(model, autocast) as alive:
        parameters = list(model.parameters())
        for parameter in parameters:
            if parameter.requires_grad:
                if accumulates:
                    parameter.grad = torch.empty_like(parameter)
                    alive.known.add(parameter.grad.untyped_storage()._cdata)
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
    found = dict(alive.snapshot)
    if accumulates:
        found["gradients"] += sum(p.grad.untyped_storage().nbytes() for p in parameters if p.grad is not None)
    return found


def optimizer_bytes(optim: str, parameters: list[torch.Tensor]) -> int:
    """Bytes of the states that transformers' `optim` keeps for `parameters`."""
    optim = optim.lower()
    if "adafactor" in optim:  # sums over rows and over columns, in float32
        sums = (p.numel() // p.shape[-1] + p.numel() // p.shape[-2] if p.dim() > 1 else p.numel() for p in parameters)
        return 4 * sum(sums)
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
    """What training `model` (from `skeleton`) under `args` needs, or if that is more, an evaluation between its steps.

    Args:
        passes: the largest forward pass of each evaluation.
        linear_bits: bits of each weight of the frozen linear layers where they are quantized; by default their dtype's.
        keeps_start: a copy of the trained weights as they were at the start is a reference.
    """
    sharding = Sharding.of(args)
    parameters = list(model.parameters())
    trained = [p for p in parameters if p.requires_grad]
    head = model.get_output_embeddings()
    linear = {
        id(module.weight): module.weight
        for module in model.modules()
        if isinstance(module, torch.nn.Linear) and module is not head and not module.weight.requires_grad
    }
    quantized = sum(int(p.numel() * linear_bits / 8) for p in linear.values()) if linear_bits else 0
    frozen = sum(_size(p) for p in parameters if not p.requires_grad and not (linear_bits and id(p) in linear))
    own = sum(_size(p) for p in trained)
    numbers = sum(p.numel() for p in trained)
    states = optimizer_bytes(args.optim, trained)
    masters = 4 * numbers if sharding.half else 0
    kept = 2 * numbers if sharding.half else own

    autocast = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None
    checkpointing = bool(args.gradient_checkpointing)
    evaluated = [(one, pass_memory(model, one, autocast=autocast, scores=batch.scores)) for one in set(passes)]
    found = step_memory(
        model,
        batch,
        autocast=autocast,
        checkpointing=checkpointing,
        accumulates=args.gradient_accumulation_steps > 1,
    )
    gradients = found["gradients"]
    if sharding.half:
        gradients //= 2
    if sharding.stage == 0 and sharding.processes > 1:
        gradients += own  # DDP's buckets
    at_work = [(batch, found, gradients)]
    # Between the steps there are no gradients, but for those that DDP and DeepSpeed keep the room of.
    kept_room = gradients if sharding.stage or sharding.processes > 1 else 0
    at_work += [(one, memory, kept_room) for one, memory in evaluated]
    # On a CPU the process grows by what lies scattered over the heap too.
    scatter = SCATTER if args.use_cpu else 0
    batch, found, gradients = max(
        at_work, key=lambda moment: moment[2] + sum(moment[1][name] for name in MOVING) + scatter * moment[1]["heap"]
    )
    if linear_bits and linear:  # one layer at a time is widened to compute
        found["activations"] += max(2 * p.numel() for p in linear.values())
    weights = quantized + frozen + kept * (1 + keeps_reference) + sum(_size(b) for b in model.buffers())
    layers = max(1, getattr(model.config.get_text_config(), "num_hidden_layers", 1))
    shares = sharding.processes
    parts = {
        "weights": weights if sharding.stage < 3 else weights // shares + 2 * weights // layers,
        "gradients": gradients if sharding.stage < 2 else gradients // shares,
        "optimizer": (states + masters) // (shares if sharding.stage else 1),
        "activations": found["activations"],
        "logits": found["logits"],
    }
    if sharding.offloads_optimizer:
        parts["optimizer"] = 0
    if sharding.offloads_weights:
        parts["weights"] = 2 * weights // layers
    checkpoint = own + tokenizer_bytes + (0 if args.save_only_model else states + masters)
    if args.use_cpu:
        parts["allocator"] = LIBRARIES + int(SCATTER * found["heap"])
    return Memory(parts, numbers, sum(p.numel() for p in parameters), checkpoint, batch)


def _size(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()
