"""The memory that a run took, next to its estimate."""

import re
from pathlib import Path

import torch

from hf_recipes.models.devices import has_accelerator

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def _resident(field: str) -> int:
    """Bytes of this process in memory: now (``VmRSS``), or at its peak (``VmHWM``)."""
    return int(re.search(rf"^{field}:\s*(\d+) kB", STATUS.read_text(), re.MULTILINE)[1]) * 1024


class PeakMemory:
    """Made before the model is loaded, started with the training, read after the last evaluation.

    On an accelerator the peak is what torch allocated on this process's device. On a CPU it is by how much the process
    grew after it was measured before the model was loaded; on systems without /proc it is unknown.
    """

    def __init__(self, estimated: int | None):
        self.estimated = estimated
        self._on_accelerator = has_accelerator()
        self._readable = self._on_accelerator or (STATUS.is_file() and CLEAR.is_file())
        self._before = 0 if self._on_accelerator or not self._readable else _resident("VmRSS")

    def start(self) -> None:
        """Reset the peak, so that loading the model does not count."""
        if self._on_accelerator:
            torch.accelerator.reset_peak_memory_stats()
        elif self._readable:
            try:
                CLEAR.write_text("5")  # see proc_pid_clear_refs(5)
            except OSError:
                self._readable = False

    def read(self) -> dict[str, int | float | None]:
        """Bytes `estimated` and `peak`, and the estimate's `error` as a share of the peak; None where unknown."""
        peak = None
        if self._on_accelerator:
            peak = torch.accelerator.max_memory_allocated()
        elif self._readable:
            peak = max(1, _resident("VmHWM") - self._before)
        known = peak is not None and self.estimated is not None
        error = self.estimated / peak - 1 if known else None
        return {"estimated": self.estimated, "peak": peak, "error": error}


def in_units(size: float) -> str:
    """Bytes for people: ``1.90 GB``, ``340 MB``."""
    if size >= 1e9:
        return f"{size / 1e9:.2f} GB"
    return f"{size / 1e6:.0f} MB" if size >= 1e6 else f"{size / 1e3:.0f} kB"


def describe(measured: dict) -> str | None:
    """One line of `PeakMemory.read`, or None where nothing was measured."""
    if measured["peak"] is None:
        return None
    if measured["estimated"] is None:
        return f"memory: peak {in_units(measured['peak'])}"
    estimated, peak = in_units(measured["estimated"]), in_units(measured["peak"])
    return f"memory: estimated {estimated}, peak {peak} ({measured['error'] * 100:+.0f} %)"
