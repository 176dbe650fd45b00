"""What is found before the first stage, without work: servers that are down, models that nobody serves, K too large."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.fabricated_run import make
from support.fake_judge import KEY as JUDGE_KEY
from support.fake_judge import FakeJudge, first_place
from support.fake_server import KEY as SERVER_KEY
from support.fake_server import FakeServer
from typer.testing import CliRunner

from pipeline import config as config_module
from pipeline.cli import app as cli_app
from pipeline.cli import preflight, stages
from pipeline.errors import UserError
from pipeline.eval_sets import benchmarks
from pipeline.models import lookup
from pipeline.run.files import read_json, write_json
from pipeline.run.rundir import RunDir

SILENT = "http://127.0.0.1:9"  # discard: nothing listens there
Settings = dict[str, Any]


def check(folder: Path, **sections: Any) -> None:
    config = config_module.validate({"name": "trial", "runs_dir": str(folder), **sections}, "test")
    preflight.check(config, RunDir(config.run_path))


def refusal(folder: Path, **sections: Any) -> str:
    with pytest.raises(UserError) as caught:
        check(folder, **sections)
    return str(caught.value)


def judged(url: str, name: str = "judge") -> Settings:
    return {"judge": {"url": url, "model": name}}


def selected(url: str, name: str = "judge") -> Settings:
    return {"selection": {"best_of": 1, "best_by": "judge", **judged(url, name)}}


def served(*urls: str, **settings: Any) -> Settings:
    return {"server": {"urls": urls, **settings}}


def test_a_judge_that_is_down_is_told_before_anything_is_made(tmp_path: Path) -> None:
    line = refusal(tmp_path, evaluate=judged(SILENT))
    assert f"evaluate.judge.url {SILENT}: the judge does not answer (no connection: ConnectError); start it" in line
    assert "before `retort evaluate`" in line
    assert "filter.selection.judge.url" in refusal(tmp_path, filter=selected(SILENT))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("verb", ["check", "run"])
def test_check_and_run_refuse_what_the_last_stage_can_not_ask(
    verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "_in_child", lambda *_: pytest.fail("a stage was started"))
    where = [f"runs_dir={tmp_path}/runs", f"evaluate.judge.url={SILENT}", "evaluate.judge.model=judge"]
    done = CliRunner().invoke(cli_app.app, [verb, "configs/quickstart.yaml", *where])
    assert "evaluate.judge.url" in str(done.exception)
    assert not (tmp_path / "runs").exists()


def test_a_judge_that_can_be_asked_passes_and_is_asked_nothing(tmp_path: Path) -> None:
    with FakeJudge(first_place) as judge:
        check(tmp_path, evaluate=judged(judge.url), filter=selected(judge.url))
        assert judge.num_asked == 0


def test_a_model_that_the_judges_server_has_not_is_told_with_those_it_has(tmp_path: Path) -> None:
    with FakeJudge(first_place, models=["a", "b"], unlisted=["hidden"]) as judge:
        line = refusal(tmp_path, evaluate=judged(judge.url, "jugde"))
        assert f"evaluate.judge.model: {judge.url} serves no jugde, only a, b" in line
        check(tmp_path, evaluate=judged(judge.url, "hidden"))


def test_a_server_that_lists_no_models_is_taken_at_its_word(tmp_path: Path) -> None:
    with FakeJudge(first_place, models=None) as judge:
        check(tmp_path, evaluate=judged(judge.url, "any"))


def test_a_judge_without_its_key_is_told_with_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeJudge(first_place, needs_key=True) as judge:
        line = refusal(tmp_path, evaluate=judged(judge.url))
        assert "the judge refuses the key (HTTP 401); put it into the environment as RETORT_JUDGE_KEY" in line
        monkeypatch.setenv("RETORT_JUDGE_KEY", JUDGE_KEY)
        check(tmp_path, evaluate=judged(judge.url))


def test_a_finished_evaluation_needs_no_judge(tmp_path: Path) -> None:
    make(tmp_path)
    check(tmp_path, evaluate=judged(SILENT), filter=selected(SILENT), teacher={"model": "demo"})


def test_a_finished_evaluation_that_had_no_judge_does_not_hide_one_that_is_down(tmp_path: Path) -> None:
    path = make(tmp_path).stage_path("evaluate") / "manifest.json"
    manifest = read_json(path)
    write_json(path, {**manifest, "fingerprint": {**manifest["fingerprint"], "evaluate.judge": None}})
    check(tmp_path, teacher={"model": "demo"})
    line = refusal(tmp_path, evaluate=judged(SILENT), teacher={"model": "demo"})
    assert f"evaluate.judge.url {SILENT}: the judge does not answer" in line


def test_a_guard_that_is_down_or_another_is_told(tmp_path: Path) -> None:
    line = refusal(tmp_path, safety={"guard_url": SILENT, "guard_model": "guard"})
    assert f"safety.guard_url {SILENT}: the guard does not answer" in line
    with FakeJudge(first_place) as server:
        line = refusal(tmp_path, safety={"guard_url": server.url, "guard_model": "guard"})
        assert f"safety.guard_model: {server.url} serves no guard, only judge" in line


def test_a_teachers_server_that_is_not_there_yet_is_said_and_waited_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check(tmp_path, teacher=served(SILENT, patience_s=30))
    said = " ".join(capsys.readouterr().err.split())
    assert f"teacher.server.urls: no answer yet ({SILENT}: no connection: ConnectError); generate waits" in said
    assert "at most 30 s" in said


def test_a_teachers_server_with_another_key_or_model_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FakeServer() as server:
        line = refusal(tmp_path, teacher=served(server.url))
        assert f"{server.url}: the server refuses the key (HTTP 401); set RETORT_SERVER_KEY in the environment" in line
    monkeypatch.setenv("RETORT_SERVER_KEY", SERVER_KEY)
    with FakeServer(models=["fake"]) as server:
        line = refusal(tmp_path, teacher=served(server.url, model="other"))
        assert f"teacher.server.model: {server.url} serves no other, only fake" in line
    with FakeServer(models=["a", "b"]) as server:
        assert "serves a, b: name one with teacher.server.model" in refusal(tmp_path, teacher=served(server.url))


def test_tasks_that_the_harness_has_not_are_told_with_the_nearest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = ["gsm8k", "ifeval"]
    manager = SimpleNamespace(match_tasks=lambda names: [name for name in names if name in known], all_tasks=known)
    monkeypatch.setattr(benchmarks.importlib.util, "find_spec", lambda _: object())
    monkeypatch.setattr(benchmarks, "module", lambda _: SimpleNamespace(TaskManager=lambda include_path: manager))
    check(tmp_path, evaluate={"harness": {"tasks": known}})
    line = refusal(tmp_path, evaluate={"harness": {"tasks": ["gsm8kk"]}})
    assert "evaluate.harness.tasks: lm-evaluation-harness has no task gsm8kk (did you mean gsm8k?)" in line


def test_more_log_probs_than_the_demo_has_tokens_are_found_before_it_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    line = refusal(tmp_path, generate={"k": 60_000})
    assert line == "generate.k=60000 is above the teacher's vocabulary of 49152"
    assert "there is no layer 40, only 0-29" in refusal(tmp_path, student={"keep_layers": "0-40"})
    assert not (tmp_path / "cache").exists()


def test_the_demo_is_as_large_as_it_is_said_to_be(demo_teacher: Path) -> None:
    config = lookup.Model("demo", demo_teacher).config()
    assert {key: config[key] for key in lookup.DEMO_SIZES} == lookup.DEMO_SIZES


def test_a_model_in_the_hubs_cache_is_looked_at_and_nothing_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    (snapshot / "config.json").write_text('{"vocab_size": 100, "num_hidden_layers": 2}')
    asked: list[tuple[str, str, str | None]] = []

    def cached(name: str, file: str, revision: str | None = None) -> str:
        asked.append((name, file, revision))
        return str(snapshot / file)

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", cached)
    line = refusal(tmp_path, teacher={"model": "org/model", "revision": "7e10583"}, generate={"k": 101})
    assert line == "generate.k=101 is above the teacher's vocabulary of 100"
    assert asked == [("org/model", "config.json", "7e10583")]


def test_no_row_has_more_entries_than_the_codec_can_count(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"generate\.k: must be at most 65535 \(given 65536\)"):
        check(tmp_path, generate={"k": 65_536})


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"evaluate": {"other": "./none"}}, "model ./none: no such folder"),
        ({"safety": {"classifier": "./none", "unsafe_labels": ["toxic"]}}, "model ./none: no such folder"),
        ({"evaluate": {"judge": {"url": SILENT, "model": "j", "templates": "none"}}}, "no such template"),
    ],
)
def test_what_a_later_stage_loads_is_looked_for(tmp_path: Path, sections: Settings, said: str) -> None:
    assert said in refusal(tmp_path, **sections)


def test_a_run_whose_answers_are_to_be_taken_must_have_them(tmp_path: Path) -> None:
    make(tmp_path / "other", until="generate")
    other = RunDir(next((tmp_path / "other").iterdir()))
    check(tmp_path, generate={"reuse": [str(other.path)]})
    said = refusal(tmp_path, generate={"reuse": f"{other.path},{tmp_path}/nowhere"})
    assert f"{tmp_path}/nowhere: generate has not finished" in said
    next(other.stage_path("generate").glob("*.parquet")).write_bytes(b"cut")
    assert "damaged" in refusal(tmp_path, generate={"reuse": [str(other.path)]})
