"""Memory of this process: its peak during a computation, and returning freed memory to the system."""

from __future__ import annotations

import ctypes
import platform
from pathlib import Path

import torch

_PROCESS = Path("/proc/self")
_MIB = 2**20


def give_back() -> None:
    """Return freed memory to the system, where the C library keeps it (glibc).

    Batches of ever new lengths fragment its heap: over 5,000 sentences the resident memory of a study grew from
    720 to 1,040 MiB without one object more, and fell to 520 after this call.  It takes milliseconds.
    """
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


class PeakMemory:
    """The peak of the memory in use, from the creation of this object on.

    Args:
        device: of a GPU its allocated memory is measured, of the CPU the resident memory of the process (Linux
            only, where its peak can be reset: ``getrusage`` and psutil know only that of the process's whole life).
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.start: int | None = None
        if device.type == "cuda":
            self.wait()
            torch.cuda.reset_peak_memory_stats(device)
            self.start = torch.cuda.memory_allocated(device)
        elif device.type == "cpu" and (_PROCESS / "clear_refs").exists():
            give_back()  # or a computation that uses freed memory again would seem to need none
            try:  # resets the peak: proc(5)
                (_PROCESS / "clear_refs").write_text("5", encoding="ascii")
            except OSError:  # forbidden in some containers: then the peak is not known
                return
            self.start = self._kib("VmRSS")

    def wait(self) -> None:
        """Wait until the GPU has finished its work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def mib(self) -> float | None:
        """The peak above the memory in use at the start, in MiB; None where it cannot be measured."""
        if self.start is None:
            return None
        if self.device.type == "cuda":
            return (torch.cuda.max_memory_allocated(self.device) - self.start) / _MIB
        return max(self._kib("VmHWM") - self.start, 0) / 1024

    @staticmethod
    def _kib(name: str) -> int:
        lines = (_PROCESS / "status").read_text(encoding="ascii", errors="replace").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))
