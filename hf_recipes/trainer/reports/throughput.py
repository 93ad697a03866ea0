"""How much of what a device can compute a run makes use of."""

import time

import torch

from hf_recipes.models.devices import has_accelerator

SIZE, REPEATS = 8192, 20  # of the matrices that are multiplied to measure the peak: 0.1 s on an H100
CPU_SIZE, CPU_REPEATS = 1024, 5  # 0.2 s on one core


def flops_per_token(model, length: int) -> float:
    """Operations of a training step for each token of rows of `length` (PaLM, arXiv 2204.02311, appendix B).

    Six for each weight that multiplies (embeddings that are only looked up do not), and those of attention; for frozen
    weights there are no gradients, so four.
    """
    config = model.config.get_text_config()
    embedding, head = map(_stored_weight, (model.get_input_embeddings(), model.get_output_embeddings()))
    looked_up = None if head is embedding else embedding
    total = 0
    for parameter in model.parameters():
        if parameter is not looked_up:
            size = getattr(parameter, "ds_numel", parameter.numel())
            total += size * (6 if parameter.requires_grad else 4)
    heads = getattr(config, "num_attention_heads", 0)
    width = heads * (getattr(config, "head_dim", None) or getattr(config, "hidden_size", 0) // max(1, heads))
    return total + 12 * getattr(config, "num_hidden_layers", 0) * width * length


def _stored_weight(module: torch.nn.Module | None) -> torch.Tensor | None:
    adapter = getattr(module, "token_adapter", None)  # of PEFT's trainable tokens, whose `weight` is computed
    return getattr(module if adapter is None else adapter.get_base_layer(), "weight", None)


def peak_flops(device: torch.device) -> float | None:
    """`matmul_flops` in bfloat16; None on a CPU."""
    return None if not has_accelerator() or device.type == "cpu" else matmul_flops(device, half=True)


def matmul_flops(device: torch.device, half: bool) -> float:
    """Operations per second of a matrix multiplication, measured: in bfloat16, or else in float32."""
    on_cpu = device.type == "cpu"
    size, count = (CPU_SIZE, CPU_REPEATS) if on_cpu else (SIZE, REPEATS)
    wait = (lambda: None) if on_cpu else torch.accelerator.synchronize
    generator = torch.Generator(device).manual_seed(0)  # the run's random numbers are left as they are
    one = torch.randn(size, size, generator=generator, device=device, dtype=torch.bfloat16 if half else torch.float32)
    for repeats in (3, count):  # the first to warm up
        wait()
        start = time.perf_counter()
        for _ in range(repeats):
            one @ one
        wait()
    return 2 * size**3 * count / (time.perf_counter() - start)
