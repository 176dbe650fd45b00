"""Counters of a made-up machine, and memory of processes of this one."""

# ruff: noqa: N802 - NVML has names of its own

import ctypes
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.machine import meters
from pipeline.machine.meters import Energy, Nvml

RANGE_UJ = 1_000_000


def zone(folder: Path, name: str, counted_uj: int, kind: str = "package-0") -> Path:
    path = folder / name
    path.mkdir(parents=True, exist_ok=True)
    (path / "name").write_text(f"{kind}\n")
    (path / "energy_uj").write_text(f"{counted_uj}\n")
    (path / "max_energy_range_uj").write_text(f"{RANGE_UJ}\n")
    return path


class Library:
    """Stands in for NVML: some GPUs, each with its memory and energy; a field that is None fails."""

    def __init__(self, *gpus: dict[str, Any]) -> None:
        self.gpus = gpus

    def nvmlInit_v2(self) -> int:
        return 0

    def nvmlDeviceGetCount_v2(self, num: Any) -> int:
        num._obj.value = len(self.gpus)
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index: ctypes.c_uint, device: Any) -> int:
        device._obj.value = index.value + 1
        return 0

    def nvmlDeviceGetMemoryInfo(self, device: ctypes.c_void_p, memory: Any) -> int:
        memory._obj[:] = [100, 100 - self._of(device)["used"], self._of(device)["used"]]
        return 0

    def nvmlDeviceGetTotalEnergyConsumption(self, device: ctypes.c_void_p, energy: Any) -> int:
        if self._of(device)["energy_mj"] is None:
            return 3  # not supported
        energy._obj.value = self._of(device)["energy_mj"]
        return 0

    def _of(self, device: ctypes.c_void_p) -> dict[str, Any]:
        return self.gpus[(device.value or 0) - 1]


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meters, "_nvml", lambda: None)


def test_energy_is_what_all_packages_counted_in_between(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", 100_000)
    zone(tmp_path, "intel-rapl:1", 500_000, "package-1")
    energy = Energy(tmp_path)
    zone(tmp_path, "intel-rapl:0", 350_000)
    zone(tmp_path, "intel-rapl:1", 600_000, "package-1")
    assert energy.cpu_j() == pytest.approx(0.35)


def test_a_counter_that_started_anew_counts_on(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", RANGE_UJ - 10_000)
    energy = Energy(tmp_path)
    zone(tmp_path, "intel-rapl:0", 30_000)
    assert energy.cpu_j() == pytest.approx(0.04)


def test_parts_of_a_package_and_doubles_count_once(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", 5)
    zone(tmp_path, "intel-rapl:0:0", 5, "core")
    zone(tmp_path, "intel-rapl:1", 5, "psys")
    zone(tmp_path, "intel-rapl-mmio:0", 5)
    assert meters.package_uj(tmp_path) == {"intel-rapl:0": (5, RANGE_UJ)}


@pytest.mark.parametrize("broken", ["gone", "denied", "empty"])
def test_a_counter_that_can_not_be_read_gives_nothing_rather_than_less(tmp_path: Path, broken: str) -> None:
    zone(tmp_path, "intel-rapl:0", 5)
    energy = Energy(tmp_path)
    other = zone(tmp_path, "intel-rapl:1", 5) / "energy_uj"
    other.unlink()
    if broken == "denied":
        other.mkdir()  # root reads any file, but no folder as one
    elif broken == "empty":
        other.write_text("")
    assert meters.package_uj(tmp_path) is None
    assert energy.cpu_j() is None
    assert Energy(tmp_path).cpu_j() is None


def test_a_machine_without_counters_tells_nothing(tmp_path: Path, no_gpu: None) -> None:
    assert (Energy(tmp_path / "none").cpu_j(), Energy().gpu_j(), meters.gpu_used_bytes()) == (None, None, None)


def test_gpus_are_added_up(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus: list[dict[str, Any]] = [{"used": 30, "energy_mj": 1000}, {"used": 12, "energy_mj": 500}]
    nvml = Nvml(Library(*gpus))
    monkeypatch.setattr(meters, "_nvml", lambda: nvml)
    energy = Energy()
    gpus[0]["energy_mj"] += 2500
    assert meters.gpu_used_bytes() == 42
    assert energy.gpu_j() == 2.5


def test_a_gpu_that_does_not_tell_makes_the_sum_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = Nvml(Library({"used": 30, "energy_mj": 1000}, {"used": 12, "energy_mj": None}))
    monkeypatch.setattr(meters, "_nvml", lambda: nvml)
    assert Energy().gpu_j() is None
    assert meters.gpu_used_bytes() == 42


def test_a_driver_that_shows_no_gpu_is_no_driver() -> None:
    with pytest.raises(OSError, match="shows no GPU"):
        Nvml(Library())


@pytest.mark.skipif(sys.platform != "linux", reason="VmHWM is Linux's")
def test_peak_memory_is_of_the_whole_tree_and_stays_after_it_is_freed() -> None:
    held = 80 << 20
    grandchild = f"import sys; x = bytearray({held}); del x; print('', flush=True); sys.stdin.read()"
    child = f"import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', {grandchild!r}]); p.wait()"
    with subprocess.Popen(
        [sys.executable, "-c", child], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        peak = meters.peak_rss_bytes(process.pid)
        process.communicate()
    assert peak is not None
    assert held < peak < 3 * held


def test_a_process_that_is_gone_has_no_memory() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    assert meters.peak_rss_bytes(process.pid) is None
    assert (meters.peak_rss_bytes(os.getpid()) or 1) > 0


@pytest.mark.parametrize(
    ("visible", "memory"), [("", (58, 100)), ("0", (70, 100)), ("2, 0", (64, 100)), ("GPU-1f3a", (58, 100))]
)
def test_the_fullest_gpu_is_one_that_this_process_may_use(
    monkeypatch: pytest.MonkeyPatch, visible: str, memory: tuple[int, int]
) -> None:
    nvml = Nvml(Library({"used": 30}, {"used": 42}, {"used": 36}))
    monkeypatch.setattr(meters, "_nvml", lambda: nvml)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert meters.fullest_gpu() == memory


def test_without_a_gpu_none_is_the_fullest(no_gpu: None) -> None:
    assert meters.fullest_gpu() is None
