"""Training in two processes on this machine's cores, as `accelerate launch` starts them, against one process."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support.commands import ROOT
from support.listed import VOCAB, captured, settings, tiny

from pipeline.train.batches import collate
from pipeline.train.losses import token_losses

pytestmark = pytest.mark.e2e

TESTS = Path(__file__).parents[1]
ALONE = [sys.executable]
ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]


def start(launcher: list[str], script: str, *arguments: str) -> None:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{TESTS}", "OMP_NUM_THREADS": "1"}
    command = [*launcher, str(TESTS / "support" / script), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-4000:]


def trained(folder: Path, launcher: list[str], **changes: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    folder.mkdir()
    start(launcher, "in_processes.py", str(folder), json.dumps(changes))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return lines, torch.load(folder / "weights.pt")


@pytest.mark.parametrize(
    "changes",
    [
        {"validation": 5, "checkpoint_steps": 3},
        pytest.param({"positions_frac": 0.4, "pack_tokens": 36, "temperature": 2.0, "epochs": 4}, marks=pytest.mark.ci),
        pytest.param({"lora": {"r": 4}, "targets": "live"}, marks=pytest.mark.ci),
    ],
)
def test_two_processes_take_the_steps_of_one(tmp_path: Path, changes: dict[str, Any]) -> None:
    """The same rows a step: two processes accumulate two batches where one accumulates four."""
    whole, weights = trained(tmp_path / "one", ALONE, batch_size=2, accumulation_steps=4, **changes)
    halves, others = trained(tmp_path / "two", ACCELERATE, batch_size=2, accumulation_steps=2, **changes)
    assert len(whole) == len(halves) >= 4
    for one, two in zip(whole, halves, strict=True):
        for name in one.keys() - {"tokens_per_s", "arm"}:
            assert two[name] == pytest.approx(one[name], rel=1e-5, abs=1e-5), (one["step"], name)
    for name, weight in weights.items():
        torch.testing.assert_close(others[name], weight, rtol=1e-4, atol=1e-5)


@pytest.mark.ci
def test_two_processes_go_on_where_they_stopped(tmp_path: Path) -> None:
    """In the midst of the second epoch: each process sees the rows that it would have seen."""
    folder, changes = tmp_path / "two", {"batch_size": 2, "accumulation_steps": 2, "epochs": 3, "checkpoint_steps": 5}
    whole, weights = trained(folder, ACCELERATE, **changes)
    (folder / "checkpoints/checkpoint-9/trainer_state.json").unlink()  # the kill came while it was written
    start(ACCELERATE, "in_processes.py", str(folder), json.dumps(changes))
    again = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in again] == [line["step"] for line in whole] == list(range(1, 10))
    assert [line["tokens_per_s"] for line in again[:5]] == [line["tokens_per_s"] for line in whole[:5]], "not resumed"
    assert [line["tokens_per_s"] for line in again[5:]] != [line["tokens_per_s"] for line in whole[5:]], "not resumed"
    for one, two in zip(again, whole, strict=True):
        assert one["loss"] == pytest.approx(two["loss"], abs=1e-6), one["step"]
    for name, weight in torch.load(folder / "weights.pt").items():
        torch.testing.assert_close(weight, weights[name], rtol=1e-6, atol=1e-6)


@pytest.mark.ci
def test_a_model_in_parts_has_the_loss_and_gradients_of_a_whole_one(tmp_path: Path) -> None:
    """FSDP2 on two processes, each with half of the rows; the head is gathered."""
    start(TORCHRUN, "sharded.py", str(tmp_path / "sharded.pt"))
    got = torch.load(tmp_path / "sharded.pt")
    assert got["is_sharded"]
    model, rows = tiny(1), list(captured(tiny().eval(), 8))
    losses = token_losses(model, collate(rows, 0, VOCAB, settings()), settings())
    loss = (losses.ce_N + losses.kl_N).mean()
    loss.backward()
    assert got["loss"].item() == pytest.approx(loss.item(), rel=1e-5)
    wanted = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert got["gradients"].keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(got["gradients"][name], gradient, rtol=1e-4, atol=1e-6)
