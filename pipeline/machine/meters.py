"""What the machine's own counters say: a process tree's memory, GPU memory, energy. None where one can't be read.

Nothing is guessed: no counter is made up from a processor's rated power or a model's size.
"""

import ctypes
import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

POWERCAP = Path("/sys/class/powercap")
NVML = "libnvidia-ml.so.1"


def peak_rss_bytes(pid: int) -> int | None:
    """Peak resident memory of a process and all below it, as Linux has it (VmHWM); None elsewhere.

    The sum of each one's own peak: pages that they share count for each, so it is an upper bound.
    """
    try:
        processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return None
    peaks = [_peak_bytes(Path(f"/proc/{process.pid}/status")) for process in processes]
    known = [peak for peak in peaks if peak is not None]
    return sum(known) if known else None


def gpu_used_bytes() -> int | None:
    """Memory in use on all GPUs that the driver shows, whoever uses it."""
    return _sum_of(lambda nvml, device: nvml.used_bytes(device))


def fullest_gpu() -> tuple[int, int] | None:
    """`(free, total)` bytes of the GPU with the least free memory among those that this process may use.

    None if the driver shows none.
    """
    nvml = _nvml()
    listed = os.environ.get("CUDA_VISIBLE_DEVICES", "").replace(" ", "").split(",")
    chosen = {int(index) for index in listed if index.isdigit()}
    devices = [device for index, device in enumerate(nvml.devices if nvml else []) if not chosen or index in chosen]
    found = [nvml.free_total_bytes(device) for device in devices] if nvml else []
    return min((memory for memory in found if memory is not None), default=None)


def gpu_total_bytes() -> int | None:
    """Memory of all GPUs that the driver shows."""
    return _sum_of(lambda nvml, device: memory[1] if (memory := nvml.free_total_bytes(device)) else None)


class Energy:
    """Joules taken since it was made, by the processors' packages (RAPL) and by all GPUs (NVML).

    They are the whole machine's, its idle power and other programs included. RAPL is often for root alone.
    """

    def __init__(self, powercap: Path = POWERCAP) -> None:
        self._powercap = powercap
        self._packages_uj, self._gpus_mj = package_uj(powercap), _gpus_mj()

    def cpu_j(self) -> float | None:
        """Of all packages; None where a counter can't be read."""
        now_uj = package_uj(self._powercap)
        if self._packages_uj is None or now_uj is None or now_uj.keys() != self._packages_uj.keys():
            return None
        total_uj = 0
        for name, (counted_uj, range_uj) in now_uj.items():
            total_uj += (counted_uj - self._packages_uj[name][0]) % range_uj  # it starts anew at its range
        return total_uj / 1e6

    def gpu_j(self) -> float | None:
        """Of all GPUs; None where there is none, or one doesn't tell."""
        now_mj = _gpus_mj()
        return None if now_mj is None or self._gpus_mj is None else (now_mj - self._gpus_mj) / 1e3


def package_uj(powercap: Path) -> dict[str, tuple[int, int]] | None:
    """By package: its counter and the counter's range, µJ. Its parts (intel-rapl:0:0) and doubles (mmio) are left out.

    AMD's packages have Intel's name here.
    """
    found = {}
    for zone in sorted(powercap.glob("intel-rapl:*")):
        if zone.name.count(":") != 1 or not _read(zone / "name").startswith("package"):
            continue
        counted_uj, range_uj = _read(zone / "energy_uj"), _read(zone / "max_energy_range_uj")
        if not counted_uj.isdigit() or not range_uj.isdigit():
            return None
        found[zone.name] = (int(counted_uj), int(range_uj))
    return found or None


class Nvml:
    """The NVIDIA driver's own library. Raises OSError where it is not installed, or finds no GPU."""

    def __init__(self, library: Any = None) -> None:
        self._library = ctypes.CDLL(NVML) if library is None else library
        if self._library.nvmlInit_v2() != 0:
            raise OSError("NVML did not start")
        num = ctypes.c_uint()
        if self._library.nvmlDeviceGetCount_v2(ctypes.byref(num)) != 0 or num.value == 0:
            raise OSError("NVML shows no GPU")
        self.devices = [self._device(index) for index in range(num.value)]

    def used_bytes(self, device: ctypes.c_void_p) -> int | None:
        memory = self._memory(device)
        return None if memory is None else memory[2]

    def free_total_bytes(self, device: ctypes.c_void_p) -> tuple[int, int] | None:
        memory = self._memory(device)
        return None if memory is None else (memory[1], memory[0])

    def _memory(self, device: ctypes.c_void_p) -> list[int] | None:
        memory = (ctypes.c_ulonglong * 3)()  # total, free, used
        failed = self._library.nvmlDeviceGetMemoryInfo(device, ctypes.byref(memory))
        return None if failed else list(memory)

    def energy_mj(self, device: ctypes.c_void_p) -> int | None:
        """Since the driver was loaded; GPUs before Volta don't tell."""
        energy = ctypes.c_ulonglong()
        failed = self._library.nvmlDeviceGetTotalEnergyConsumption(device, ctypes.byref(energy))
        return None if failed else int(energy.value)

    def _device(self, index: int) -> ctypes.c_void_p:
        device = ctypes.c_void_p()
        if self._library.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(index), ctypes.byref(device)) != 0:
            raise OSError(f"NVML does not give access to GPU {index}")
        return device


@functools.cache
def _nvml() -> Nvml | None:
    try:
        return Nvml()
    except (OSError, AttributeError):  # not installed, no GPU, or a driver too old to have these functions
        return None


def _gpus_mj() -> int | None:
    return _sum_of(lambda nvml, device: nvml.energy_mj(device))


def _sum_of(read: Callable[[Nvml, ctypes.c_void_p], int | None]) -> int | None:
    """Over all GPUs; None where there is none, or one does not tell."""
    nvml = _nvml()
    values = [read(nvml, device) for device in nvml.devices] if nvml else []
    known = [value for value in values if value is not None]
    return sum(known) if known and len(known) == len(values) else None


def _peak_bytes(status: Path) -> int | None:
    lines = [line.split() for line in _read(status).splitlines() if line.startswith("VmHWM:")]
    return int(lines[0][1]) * 1024 if lines else None  # in kB, which are KiB


def _read(path: Path) -> str:
    """Empty where the file is not there, or not for us."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
