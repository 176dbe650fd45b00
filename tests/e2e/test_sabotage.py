"""evaluate where the truth is known: the teacher as its own student, and as one whose layers were shuffled."""

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.fake_judge import FakeJudge, by_score

from pipeline import config as config_module
from pipeline.run.rundir import RunDir

pytestmark = [pytest.mark.e2e, pytest.mark.nightly, pytest.mark.timeout(1500)]
ROOT = Path(__file__).parent.parent.parent
COMMON = {"the", "a", "of", "to", "and", "is", "in", "you", "it", "are", "for", "that", "can", "with"}
SETTINGS = [
    "prepare.max_prompts=16",
    "prepare.held_out_frac=0.25",
    "generate.max_tokens=24",
    "generate.k=16",
    "teacher.engine.max_num_seqs=16",
    "teacher.engine.max_model_len=1024",
    "evaluate.chat_items=12",
    "evaluate.tasks.limit=48",
    "evaluate.tasks.max_tokens=64",
    "evaluate.max_tokens=32",
    "evaluate.risks.limit=2",
    "evaluate.risks.max_tokens=16",
    "evaluate.speed_concurrency=[4]",
    "evaluate.speed_tokens=8",
    "evaluate.speed_rounds=2",
    "evaluate.bootstrap=2000",
]


def fluency(question: str, answer: str) -> float:
    """How much of an answer is common English: what a judge of any sense sees in shuffled layers."""
    words = answer.lower().split()
    return sum(word in COMMON for word in words) / max(1, len(words))


def retort(verb: str, folder: Path, *more: str) -> None:
    command = [sys.executable, "-m", "pipeline", verb, "configs/quickstart.yaml", f"runs_dir={folder}", *SETTINGS]
    done = subprocess.run([*command, *more], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def with_student(captured: Path, folder: Path, student: Path) -> Path:
    """A copy of a captured run whose only student has these weights; what train would have written stands there."""
    shutil.copytree(captured, folder)
    config = config_module.load(ROOT / "configs/quickstart.yaml", [f"runs_dir={folder}", *SETTINGS])
    run_dir = RunDir(config.run_path)
    stage = run_dir.begin("train", config, {"student.model": None, "train.max_length": 2048})
    shutil.copytree(student, stage.path / "student")
    stage.finish(list((stage.path / "student").iterdir()), {"rows": 1, "answer_tokens": 1})
    return run_dir.path


def shuffled(teacher: Path, target: Path) -> Path:
    """The same weights and the same size, the layers in another order."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(teacher, target)
    [path] = target.glob("*.safetensors")
    weights = load_file(path)
    order = list(range(json.loads((target / "config.json").read_text())["num_hidden_layers"]))
    random.Random(0).shuffle(order)
    moved = {}
    for name, tensor in weights.items():
        parts = name.split(".")
        if "layers" in parts:
            place = parts.index("layers") + 1
            parts[place] = str(order[int(parts[place])])
        moved[".".join(parts)] = tensor
    save_file(moved, path, metadata={"format": "pt"})
    return target


@pytest.fixture(scope="module")
def captured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("captured")
    for verb in ("prepare", "generate", "filter"):
        retort(verb, folder)
    return folder


def evaluated(captured: Path, folder: Path, student: Path, *more: str) -> dict[str, Any]:
    run = with_student(captured, folder, student)
    with FakeJudge(by_score(fluency), grade=lambda question, answer: round(1 + 9 * fluency(question, answer))) as judge:
        judged = [f"evaluate.judge.url={judge.url}", "evaluate.judge.model=fake", "evaluate.judge.check_items=10"]
        retort("evaluate", folder, *judged, *more)
    return json.loads((run / "evaluate/scores.json").read_text())


def test_the_teacher_is_its_own_equal_by_every_measure(captured: Path, demo_teacher: Path, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    harness = ["evaluate.harness.tasks=[retort_choice]", "evaluate.harness.folder=tests/evaluate/tasks"]
    scores = evaluated(captured, tmp_path / "same", demo_teacher, *harness)
    student, verdict = scores["arms"]["student"], scores["verdict"]
    for section in ("fidelity", "fidelity_chat", "fidelity_own"):
        measured = student[section]
        for divergence in ("forward_kl_nats", "reverse_kl_nats", "js_divergence_nats"):
            assert abs(measured[divergence]["value"]) < 1e-6, (section, divergence)
        for share in ("top1_agreement_frac", "top5_overlap_frac", "acceptance_frac"):
            assert measured[share]["value"] == pytest.approx(1, abs=1e-6), (section, share)
    assert verdict["retained_quality"]["value"] == pytest.approx(1, abs=0.1), "batches may round another way"
    assert verdict["retained_quality"]["low"] <= 1 <= verdict["retained_quality"]["high"]
    assert verdict["task_p_teacher"]["value"] > 0.05
    win_rate = verdict["judge_win_rate_over_teacher"]
    assert win_rate["low"] <= 0.5 <= win_rate["high"]
    assert verdict["parameters_over_teacher"]["value"] == 1
    choice = {arm: of["harness"]["retort_choice_acc"]["value"] for arm, of in scores["arms"].items()}
    assert choice["student"] == choice["teacher"]
    assert verdict["harness_retort_choice_acc_difference_from_teacher"]["value"] == 0


def test_shuffled_layers_are_caught_by_every_metric(captured: Path, demo_teacher: Path, tmp_path: Path) -> None:
    weights = shuffled(demo_teacher, tmp_path / "weights")
    scores = evaluated(captured, tmp_path / "shuffled", weights, "evaluate.tasks.limit=120")
    student, teacher, verdict = scores["arms"]["student"], scores["arms"]["teacher"], scores["verdict"]
    for section in ("fidelity", "fidelity_chat"):
        measured, own = student[section], teacher[section]
        for higher in ("forward_kl_nats", "reverse_kl_nats", "js_divergence_nats", "nll_nats", "brier_score"):
            assert measured[higher]["low"] > own[higher]["high"], (section, higher)
        for lower in ("top1_agreement_frac", "top5_overlap_frac", "acceptance_frac", "accuracy_frac"):
            assert measured[lower]["high"] < own[lower]["low"], (section, lower)
    assert student["fidelity_own"]["forward_kl_nats"]["low"] > 0.5
    retained = verdict["retained_quality"]
    assert retained is not None
    assert retained["high"] < 1
    assert verdict["task_p_teacher"]["value"] < 0.05
    assert student["quality"]["task_chrf"]["value"] < teacher["quality"]["task_chrf"]["value"]
    assert verdict["judge_win_rate_over_teacher"]["high"] < 0.5
    assert verdict["judge_length_controlled_win_rate_over_teacher"]["value"] < 0.5
    assert verdict["judge_grade_less_teachers"]["high"] < 0
