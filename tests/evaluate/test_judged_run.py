"""evaluate with a judge: what it hands to the judge, and what of it comes into the run's files."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
from support.fabricated_run import WEIGHTS_HASH, make, samples
from support.fake_judge import KEY, FakeJudge, first_place

from pipeline import config as config_module
from pipeline import evaluate
from pipeline.errors import UserError
from pipeline.evaluate import answered, measured
from pipeline.models.tokenizer.chat_template import ChatTemplate
from pipeline.records import ARMS
from pipeline.run.rundir import RunDir
from pipeline.run.scores import Scores


def settings(run_dir: RunDir, fake: FakeJudge | None) -> config_module.Config:
    items = [{"id": f"item-{n}", "system": f"Be number {n}.", "turns": ["q"]} for n in range(8)]
    (run_dir.path / "set.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    chosen: dict[str, Any] = {"chat_set": str(run_dir.path / "set.jsonl"), "bootstrap": 100, "tasks": {"path": None}}
    chosen["risks"] = {"path": None}
    if fake is not None:
        chosen["judge"] = {"url": fake.url, "model": "fake"}
    data = {"name": "trial", "runs_dir": str(run_dir.path.parent), "teacher": {"model": "./none"}, "evaluate": chosen}
    return config_module.validate(data, "test")


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    """A trained run whose models are made up: evaluate's own parts that load or serve one are replaced."""
    made = make(tmp_path, until="train")
    for arm in ("student", "sft_only"):
        (made.stage_path("train") / arm).mkdir()
    teacher = SimpleNamespace(
        name="demo", path=tmp_path, config=dict, tokenizer=lambda: None, weights_hash=lambda: WEIGHTS_HASH
    )
    monkeypatch.setattr(evaluate.lookup, "teacher_of", lambda run: teacher)
    monkeypatch.setattr(evaluate.lookup, "check_weights", lambda *_: None)
    monkeypatch.setattr(evaluate.lookup, "chat_template_of", lambda *_: ChatTemplate(None))
    rows: Any = [{**row, "prompt_token_ids": [1], "token_ids": [2]} for row in samples() if row["arm"] != "untrained"]
    monkeypatch.setattr(answered, "serve", lambda *_: answered.Answered(rows, [], [], {arm: [] for arm in ARMS}))
    monkeypatch.setattr(measured, "fidelity", lambda *_: ({"fidelity": {"teacher": SimpleNamespace(num_texts=8)}}, {}))
    monkeypatch.setattr(evaluate.fidelity_figures, "sections", lambda *_: {})
    monkeypatch.setattr(evaluate.fidelity_figures, "rows", lambda _: pa.table({"section": []}))
    monkeypatch.setattr(evaluate.speed, "figures", lambda rounds: {})
    monkeypatch.setattr(evaluate.cost, "machine_gpus", lambda _: 0)
    monkeypatch.setattr(evaluate.cost, "figures", lambda *_: {})
    monkeypatch.setattr(evaluate.cost, "comparisons", lambda *_: {})
    monkeypatch.setattr(evaluate.cost, "sentence", lambda *_: "Paid.")
    monkeypatch.setattr(measured, "comparisons", lambda *_: {})
    monkeypatch.setattr(evaluate.verdict, "claims", lambda *_: [evaluate.verdict.Claim("Told.", "fidelity.parquet")])
    return made


def test_verdicts_reach_scores_manifest_and_fingerprint(run_dir: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETORT_JUDGE_KEY", KEY)
    with FakeJudge(first_place, needs_key=True) as fake:
        evaluate.run(settings(run_dir, fake), run_dir)
        assert any("Be number 3." in text for text in fake.asked)
        num = fake.num_asked
        moved = settings(run_dir, fake).model_dump(mode="json")
        moved["evaluate"]["judge"] |= {"url": "http://127.0.0.1:9", "max_cost": 3}
        evaluate.run(config_module.validate(moved, "test"), run_dir)  # done already: another address is no other judge
        assert fake.num_asked == num
    scores = json.loads((run_dir.path / "evaluate" / "scores.json").read_text())
    Scores.model_validate(scores)
    assert scores["arms"]["student"]["judge"]["over_teacher"]["first_place_frac"]["value"] == 1
    assert scores["arms"]["teacher"]["judge"]["grade"]["value"] == 5
    assert scores["verdict"]["judge_win_rate_over_sft_only"]["value"] == 0.5
    claims = scores["verdict"]["claims"]
    assert claims[0] == {"text": "Told.", "rows": "fidelity.parquet"}
    assert claims[1]["text"].startswith("Do not believe the judge fake")
    assert claims[1]["rows"] == "verdicts.jsonl"
    manifest = run_dir.manifest("evaluate")
    assert [record["name"] for record in manifest["files"]] == [
        "scores.json",
        "fidelity.parquet",
        "tasks.parquet",
        "speed.parquet",
        "samples.parquet",
        "verdicts.jsonl",
    ]
    assert set(manifest["fingerprint"]["evaluate.judge"]["templates.hash"]) == {"pairwise", "single"}
    assert "url" not in manifest["fingerprint"]["evaluate.judge"]
    for path in run_dir.path.rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes()


def test_another_judge_is_another_evaluation(run_dir: RunDir) -> None:
    evaluate.run(settings(run_dir, None), run_dir)
    assert not (run_dir.path / "evaluate" / "verdicts.jsonl").exists()
    with FakeJudge(first_place) as fake, pytest.raises(UserError, match=r"evaluate\.judge was null"):
        evaluate.run(settings(run_dir, fake), run_dir)
