"""What evaluate will hold in memory is known before the first stage, and so is the type that it is loaded in."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support import tiny_model

from pipeline.config import validate
from pipeline.errors import UserError
from pipeline.machine import hardware, meters
from pipeline.models import lookup, model_checks
from pipeline.models.lookup import Model
from pipeline.run.rundir import RunDir

VOCAB, EMBEDDED = 50, 2 * 50 * 16 + 16  # parameters outside the layers: embedding, output layer, last norm


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher of four layers, in bfloat16."""
    folder = tmp_path_factory.mktemp("teacher")
    tiny_model.make(0, VOCAB, num_hidden_layers=4).to(torch.bfloat16).save_pretrained(folder)
    (folder / "tokenizer.json").write_text("{}")
    return folder


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(model_checks, "say", lines.append)
    return lines


def numbers(folder: Path, num_layers: int = 4) -> int:
    """Parameters of the teacher with so many of its layers."""
    whole = Model("m", folder).loaded_bytes(1)
    return EMBEDDED + (whole - EMBEDDED) * num_layers // 4


def machine(
    patch: pytest.MonkeyPatch, total: float, free: float | None = None, gpus: float = 0, swap: float = 0
) -> None:
    patch.setattr(hardware, "total_bytes", lambda: int(total))
    patch.setattr(hardware, "available_bytes", lambda: int(total if free is None else free))
    patch.setattr(hardware, "swap_bytes", lambda: int(swap))
    patch.setattr(hardware, "is_cpu", lambda: not gpus)
    patch.setattr(meters, "gpu_total_bytes", lambda: int(gpus) or None)


def check(folder: Path, **change: Any) -> None:
    chosen = {"teacher": {"model": str(folder)}, "student": {"num_layers": 2}, "generate": {"k": 8}, **change}
    lookup.check_settings(validate({"name": "trial", "runs_dir": str(folder / "runs"), **chosen}, "test"))


def test_what_no_machine_of_this_size_can_hold_is_refused_before_the_first_stage(
    folder: Path, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    needed = 4 * (numbers(folder) + 2 * numbers(folder, 2))  # float32 on a CPU: teacher, student, untrained
    machine(monkeypatch, total=needed)
    check(folder)
    machine(monkeypatch, total=needed - 1)
    with pytest.raises(UserError) as caught:
        check(folder)
    message = str(caught.value)
    assert f"evaluate holds the teacher {folder} (0.0 GB in float32) and its students in memory at once" in message
    assert "Take a larger machine or a smaller teacher, or skip evaluate: run `retort prepare`, `generate`" in message
    machine(monkeypatch, total=needed - 1, swap=1)
    check(folder)
    with pytest.raises(UserError, match="in memory at once"):
        check(folder, train={"sft_only_arm": True})
    assert all("free now" in line for line in said)


def test_types_and_layers_count(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for engine, itemsize in (({}, 4), ({"dtype": "bfloat16"}, 2), ({"dtype": "half"}, 2)):
        machine(monkeypatch, total=itemsize * (numbers(folder) + 2 * numbers(folder, 1)))
        check(folder, teacher={"model": str(folder), "engine": engine}, student={"keep_layers": "3"})
        with pytest.raises(UserError, match="in memory at once"):
            check(folder, teacher={"model": str(folder), "engine": engine}, student={"keep_layers": "2-3"})


def test_a_servers_teacher_is_taken_in_the_type_of_its_weights(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served = {"model": str(folder), "server": {"urls": ["http://127.0.0.1:9"]}}
    machine(monkeypatch, total=2 * (numbers(folder) + 2 * numbers(folder, 2)))
    check(folder, teacher=served)
    with pytest.raises(UserError, match="in float32"):
        check(folder)


def test_what_may_fit_is_said_and_not_refused(folder: Path, monkeypatch: pytest.MonkeyPatch, said: list[str]) -> None:
    machine(monkeypatch, total=1e9)
    check(folder)
    assert said == []
    machine(monkeypatch, total=1e9, free=1000)
    check(folder)
    assert said.pop().endswith("0.0 GB are free now: close other programs before evaluate begins")
    machine(monkeypatch, total=1e9, gpus=1000)
    check(folder)
    assert said.pop().endswith("the GPUs have 0.0 GB, so the rest is kept in main memory, which is slow")
    machine(monkeypatch, total=1000, gpus=1000)
    with pytest.raises(UserError, match=r"this machine has 0\.0 GB on its GPUs and 0\.0 GB of main memory"):
        check(folder)


def test_an_evaluated_run_is_asked_for_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RunDir, "is_done", lambda self, stage: stage == "evaluate")
    machine(monkeypatch, total=1)
    check(folder)


def test_weights_that_vllm_rounds_are_told(folder: Path, monkeypatch: pytest.MonkeyPatch, said: list[str]) -> None:
    machine(monkeypatch, total=1e9)
    check(folder, teacher={"model": str(folder), "engine": {"quantization": "fp8"}})
    assert "evaluate measures fidelity against the weights as they are stored" in said[0]


@pytest.mark.parametrize(
    ("config", "dtype"),
    [
        ({"torch_dtype": "float16"}, "float16"),
        ({"dtype": "bfloat16"}, "bfloat16"),
        ({"text_config": {"dtype": "bfloat16"}}, "bfloat16"),
        ({"dtype": None, "text_config": None}, "bfloat16"),  # of the weights themselves
    ],
)
def test_the_type_of_a_models_weights(folder: Path, tmp_path: Path, config: dict[str, Any], dtype: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").symlink_to(folder / "model.safetensors")
    assert Model("m", tmp_path).dtype() == dtype


@pytest.mark.parametrize(
    ("told", "engine", "dtype"),
    [("float32", {}, "float32"), ("", {"dtype": "half"}, "float16"), ("", {"dtype": "auto"}, "bfloat16")],
)
def test_a_run_whose_server_did_not_tell_is_evaluated_in_the_checkpoints_type(
    folder: Path, told: str, engine: dict[str, Any], dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = {"teacher.model": str(folder), "teacher.engine": engine}
    manifest = {"teacher_dtype": told, "fingerprint": made}
    monkeypatch.setattr(RunDir, "manifest", lambda self, stage: manifest)
    assert lookup.teacher_dtype(RunDir(Path("none"))) == dtype
