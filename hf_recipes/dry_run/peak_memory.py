"""The memory that a run took, next to its estimate."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from hf_recipes.core.files import in_units
from hf_recipes.models.devices import has_accelerator

if TYPE_CHECKING:
    from hf_recipes.dry_run.memory import Memory

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def _resident(field: str) -> int:
    """Bytes of this process in memory: now (``VmRSS``), or at its peak (``VmHWM``)."""
    return int(re.search(rf"^{field}:\s*(\d+) kB", STATUS.read_text(), re.MULTILINE)[1]) * 1024


class PeakMemory:
    """Made before the model is loaded, started with the training, read after the last evaluation.

    On an accelerator the peak is what torch allocated on this process's device. On a CPU it is by how much the process
    grew after it was measured before the model was loaded; on systems without /proc it is unknown.
    """

    def __init__(self, estimate: "Memory | None"):
        self.estimate = estimate
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
        """Bytes `estimated`, `most` and `peak`; None where unknown.

        `error` is by how much of the peak the estimate, or the nearer end of its range, is off.
        """
        peak = None
        if self._on_accelerator:
            peak = torch.accelerator.max_memory_allocated()
        elif self._readable:
            peak = max(1, _resident("VmHWM") - self._before)
        least, most = (self.estimate.peak, self.estimate.most) if self.estimate else (None, None)
        error = None
        if peak is not None and self.estimate:
            error = min(max(peak, least), most) / peak - 1
        return {"estimated": least, "most": most, "peak": peak, "error": error}


def as_range(least: float, most: float) -> str:
    """``340 MB``, or ``340 MB to 1.90 GB``."""
    return in_units(least) if least == most else f"{in_units(least)} to {in_units(most)}"


def describe(measured: dict) -> str | None:
    """One line of `PeakMemory.read`, or None where nothing was measured."""
    if measured["peak"] is None:
        return None
    if measured["estimated"] is None:
        return f"memory: peak {in_units(measured['peak'])}"
    estimated, peak = as_range(measured["estimated"], measured["most"]), in_units(measured["peak"])
    is_within = measured["estimated"] != measured["most"] and measured["error"] == 0
    error = "within" if is_within else f"{measured['error'] * 100:+.0f} %"
    return f"memory: estimated {estimated}, peak {peak} ({error})"
