"""Versions and devices, for a report of a bug."""

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from importlib.util import find_spec

import psutil
from packaging.requirements import Requirement

from hf_recipes import __version__


def environment() -> str:
    """A line for each thing that decides how a run goes; no path, name or token of the user's."""
    lines = {
        "hf_recipes": __version__,
        "Python": f"{platform.python_version()} ({sys.implementation.name})",
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}",
        "processors": str(os.cpu_count()),
        "memory": f"{psutil.virtual_memory().total / 1e9:.1f} GB",
        **_devices(),
    }
    needed, missing = _packages()
    lines |= needed
    if missing:
        lines["not installed"] = ", ".join(missing)
    width = max(map(len, lines))
    return "\n".join(f"{name:{width}}  {value}" for name, value in lines.items())


def _devices() -> dict[str, str]:
    if find_spec("torch") is None:
        return {"torch": "not installed"}
    import torch

    devices = {}
    for index in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(index)
        devices[f"GPU {index}"] = f"{about.name}, {about.total_memory / 1e9:.1f} GB"
    accelerator = torch.accelerator.current_accelerator()
    if accelerator and accelerator.type != "cuda":  # Apple's, Ascend's, Intel's
        devices["accelerator"] = f"{accelerator.type}, {torch.accelerator.device_count()} of them"
    devices["CUDA"] = torch.version.cuda or "none in this build of torch"
    devices["bfloat16 on the processor"] = "in hardware" if _has_bfloat16(torch) else "emulated"
    return devices


def _has_bfloat16(torch) -> bool:
    return torch.cpu._is_avx512_bf16_supported()


def _packages() -> tuple[dict[str, str], list[str]]:
    """Versions of the dependencies, extras included, and the names of those that are not installed."""
    found, missing = {}, []
    extras = {"", *(metadata("hf_recipes").get_all("Provides-Extra") or ())} - {"docs", "test"}
    for line in requires("hf_recipes") or ():
        requirement = Requirement(line)
        if requirement.marker and not any(requirement.marker.evaluate({"extra": extra}) for extra in extras):
            continue
        try:
            found[requirement.name] = version(requirement.name)
        except PackageNotFoundError:
            missing.append(requirement.name)
    return dict(sorted(found.items())), sorted(set(missing))
