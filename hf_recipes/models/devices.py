"""What the machine computes with."""

import re


def has_accelerator() -> bool:
    import torch

    return torch.accelerator.is_available()


def memory_in_use() -> int:
    """Bytes of this process: on the accelerator, or where there is none, resident."""
    if has_accelerator():
        import torch

        return torch.accelerator.memory_allocated()
    import psutil

    return psutil.Process().memory_info().rss


def cpu_computes_bf16() -> bool:
    """Whether this processor multiplies in bfloat16 (AVX-512 BF16, AMX or Arm BF16), so that bf16 is the faster."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            flags = set(re.findall(r"^(?:flags|Features)\s*:(.*)$", file.read(), re.MULTILINE)[0].split())
    except (OSError, IndexError):
        return False
    return bool(flags & {"avx512_bf16", "amx_bf16", "bf16"})
