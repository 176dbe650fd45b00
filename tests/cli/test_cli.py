"""The command as a user types it: one line for each mistake, help with an example, and no waiting for a big import."""

import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import filelock
import pytest
from support.fabricated_run import make
from typer.testing import CliRunner

from pipeline.cli import app as cli_app
from pipeline.cli import interrupt, stages, verbs
from pipeline.cli.stage import StageOrder
from pipeline.config import Config, validate
from pipeline.errors import UserError
from pipeline.records import STAGES
from pipeline.run.rundir import Fresh, RunDir

ROOT = Path(verbs.__file__).parents[2]
QUICKSTART = "configs/quickstart.yaml"
Said = pytest.CaptureFixture[str]
VERBS = ("run", *STAGES, "plan", "serve", "check", "status", "verify", "show", "sample", "compare", "report")
SETTINGS = {"generate.temperature": 0.7}


def retort(*arguments: str | Path, python: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *python, "-m", "pipeline", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)


def error_line(*arguments: str | Path) -> str:
    """The single line of a refused command."""
    refused = retort(*arguments)
    assert refused.returncode == 2, refused.stderr
    assert refused.stdout == ""
    [line] = refused.stderr.splitlines()
    assert line.startswith("error: ")
    return line


def invoke(*arguments: str | Path) -> Any:
    """The same in this process, for what starts no other."""
    return CliRunner().invoke(cli_app.app, [*map(str, arguments)], env={"COLUMNS": "160", "TERM": "dumb"})


def main(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int | str | None:
    """The exit code of the entry point in this process, its one line included."""
    monkeypatch.setattr(sys, "argv", ["retort", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        cli_app.main()
    return caught.value.code


def config_in(folder: Path, **sections: Any) -> Config:
    return validate({"name": "trial", "runs_dir": str(folder), **sections}, "test")


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    """A run whose prepare is done and whose generate was interrupted."""
    run_dir = RunDir(tmp_path / "trial")
    run_dir.begin("prepare", config_in(tmp_path), SETTINGS).finish([], {"prompts": 412, "held_out": 40})
    run_dir.begin("generate", config_in(tmp_path), SETTINGS)
    return run_dir


# --- mistakes


def test_a_missing_config(tmp_path: Path) -> None:
    assert f"{tmp_path}/none.yaml: no such config file" in error_line("run", tmp_path / "none.yaml")


def test_a_mistyped_key() -> None:
    line = error_line("run", QUICKSTART, "train.lerning_rate=1e-5")
    assert "unknown key train.lerning_rate; did you mean train.learning_rate?" in line


def test_a_malformed_override() -> None:
    assert "'epochs' is not an override: write section.key=value" in error_line("train", QUICKSTART, "epochs")


def test_several_values_out_of_range() -> None:
    line = error_line("check", QUICKSTART, "generate.top_p=2", "train.epochs=0")
    assert "generate.top_p: " in line
    assert "train.epochs: " in line


def test_layers_that_do_not_ascend_are_found_by_check() -> None:
    assert "student.keep_layers '5-3'" in error_line("check", QUICKSTART, "student.keep_layers=5-3")


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    line = error_line("prepare", QUICKSTART, f"runs_dir={tmp_path}", f"teacher.model={tmp_path}/none")
    assert f"model {tmp_path}/none: no such folder" in line


@pytest.mark.parametrize(
    ("verb", "missing", "first"),
    [
        (["generate"], "prepare has", "prepare"),
        (["filter"], "prepare and generate have", "run"),
        (["evaluate"], "prepare, generate, filter and train have", "run"),
        (["export"], "prepare, generate, filter, train and evaluate have", "run"),
    ],
)
def test_a_run_that_does_not_exist_is_told_with_what_to_run_first_and_leaves_nothing(
    verb: list[str], missing: str, first: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Said
) -> None:
    monkeypatch.setattr(stages, "_in_child", lambda *_: pytest.fail("a process was started"))
    assert main(monkeypatch, *verb, QUICKSTART, "name=trial", f"runs_dir={tmp_path}/runs") == 2
    line = capsys.readouterr().err
    pronoun = "it" if first == "prepare" else "them"
    assert f"{verb[0]} can't begin: {missing} not finished; run {pronoun} first: retort {first} {QUICKSTART} n" in line
    assert not (tmp_path / "runs").exists()


def test_a_stage_that_is_too_early_names_the_one_that_is_missing(run_dir: RunDir) -> None:
    before = {path.name for path in run_dir.path.iterdir()}
    line = error_line("filter", run_dir.path)
    assert f"filter can't begin: generate has not finished; run it first: retort generate {run_dir.path}" in line
    assert {path.name for path in run_dir.path.iterdir()} <= {*before, ".lock"}


def test_a_stage_that_fails_before_it_has_begun_leaves_no_folder(tmp_path: Path) -> None:
    error_line("prepare", QUICKSTART, "name=trial", f"runs_dir={tmp_path}/runs", f"teacher.model={tmp_path}/none")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("verb", ["status", "verify", "show", "compare", "report"])
def test_a_folder_that_is_no_run(
    verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(monkeypatch, verb, tmp_path) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"error: {tmp_path}: no run here (no config.yaml)")
    assert said.err.count("\n") == 1


def test_a_damaged_manifest(run_dir: RunDir) -> None:
    (run_dir.path / "prepare/manifest.json").write_text('{"stage": ')
    assert "prepare/manifest.json: damaged" in error_line("status", run_dir.path)


def test_a_run_that_another_process_works_on(tmp_path: Path) -> None:
    (tmp_path / "trial").mkdir()
    with filelock.FileLock(tmp_path / "trial/.lock"):
        line = error_line("filter", QUICKSTART, "name=trial", f"runs_dir={tmp_path}")
    assert f"{tmp_path}/trial: another process is working on this run" in line


def test_fresh_waits_for_no_other_process_and_discards_nothing_of_it(run_dir: RunDir) -> None:
    with filelock.FileLock(run_dir.path / ".lock"):
        line = error_line("prepare", run_dir.path / "config.yaml", "--fresh")
    assert "another process is working on this run" in line
    assert (run_dir.path / "prepare/manifest.json").is_file()


def test_a_folder_for_runs_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    assert f"{tmp_path}/runs" in error_line("prepare", QUICKSTART, f"runs_dir={tmp_path}/runs")


@pytest.fixture
def app_that_raises(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    def make(error: BaseException) -> None:
        def app(**_: object) -> None:
            raise error

        monkeypatch.setattr(cli_app, "app", app)

    return make


def test_brackets_in_what_is_said_are_text_and_a_long_line_stays_one(
    app_that_raises: Callable[[BaseException], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    said = "a [bold]b[/bold] [/] " + "long " * 60 + "end"
    app_that_raises(UserError(said))
    assert main(monkeypatch) == 2
    assert capsys.readouterr().err == f"error: {said}\n"


def test_ctrl_c_is_130_and_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Interrupted:
        waited = 0

        def __init__(self, *_: object, **__: object) -> None: ...

        def communicate(self, _: str) -> None:
            raise KeyboardInterrupt

        def wait(self) -> int:
            Interrupted.waited += 1
            return -2

    monkeypatch.setattr(stages.subprocess, "Popen", Interrupted)
    assert main(monkeypatch, "prepare", QUICKSTART, "name=trial", f"runs_dir={tmp_path}") == 130
    assert "run the same command to resume" in capsys.readouterr().err
    assert Interrupted.waited == 1, "the stage was left running"


@pytest.mark.parametrize("name", ["pipeline.cli.verbs", "pyarrow"])
def test_ctrl_c_while_the_verbs_are_imported_is_no_traceback(name: str) -> None:
    finder = (
        "import os, signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background jobs ignore it
        "class Finder:\n"
        "    def find_spec(self, name, *_):\n"
        f"        if name == {name!r}: os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Finder())\n"
    )
    start = "sys.argv = ['retort', 'check', 'configs/quickstart.yaml']\nfrom pipeline.__main__ import main\nmain()\n"
    command = [sys.executable, "-c", finder + start]
    stopped = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert (stopped.returncode, stopped.stdout) == (130, "")
    assert stopped.stderr == "stopped; run the same command to resume\n"


@pytest.mark.parametrize("module", ["pipeline", "pipeline.cli.child"])
def test_ctrl_c_that_an_import_turns_into_another_error_is_no_traceback(module: str) -> None:
    """As C extensions do: numpy's says that it was not built right."""
    start = (
        "import os, signal, sys, runpy\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "class Finder:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'pyarrow':\n"
        "            try: os.kill(os.getpid(), signal.SIGINT)\n"
        "            except KeyboardInterrupt: raise ImportError('multiarray failed to import') from None\n"
        "sys.meta_path.insert(0, Finder())\n"
        "sys.argv = ['retort', 'train', 'configs/quickstart.yaml']\n"
        f"runpy.run_module({module!r}, run_name='__main__')\n"
    )
    command = [sys.executable, "-c", start]
    stopped = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    said = "stopped; run the same command to resume\n" if module == "pipeline" else ""
    assert (stopped.returncode, stopped.stdout, stopped.stderr) == (130, "", said)


def test_an_import_that_fails_by_itself_is_not_taken_for_ctrl_c() -> None:
    with pytest.raises(ImportError), interrupt.quiet("stopped"):
        raise ImportError


def test_the_script_is_what_can_be_stopped() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    assert scripts == {"retort": "pipeline.__main__:main"}


def test_a_bug_is_not_dressed_up_as_a_mistake_of_the_user(
    app_that_raises: Callable[[BaseException], None],
) -> None:
    app_that_raises(ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        cli_app.main()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nonsense"], "error: No such command 'nonsense'; see `retort --help`"),
        (["statu", "x"], "error: No such command 'statu'. Did you mean 'status'?; see `retort --help`"),
        (["run"], "error: Missing argument 'CONFIG|RUN'; see `retort run --help`"),
        (["run", "--bogus", "x"], "error: No such option: --bogus; see `retort run --help`"),
        (["export", "corpus"], "error: Missing argument 'RUN|CONFIG'; see `retort export corpus --help`"),
        (
            ["serve", "x", "--port", "0"],
            "error: Invalid value for '--port': must be at least 1; see `retort serve --help`",
        ),
        (
            ["sample", "x", "--reason", "kept", "--num", "many"],
            "error: Invalid value for '--num': must be a whole number; see",
        ),
    ],
)
def test_what_is_no_command_is_one_line_and_exit_code_2(
    arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: Said
) -> None:
    assert main(monkeypatch, *arguments) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith(said)
    assert (shown.out, shown.err.count("\n")) == ("", 1)


def test_the_exit_code_of_a_verb_is_that_of_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert main(monkeypatch, "report", make(tmp_path).path, "--gate", "kl<0") == 1


# --- help


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_every_verb_shows_an_example(verb: str) -> None:
    shown = invoke(verb, "--help")
    assert shown.exit_code == 0
    assert re.search(rf"retort {verb} \S+", shown.output), f"no example in the help of {verb}"


def test_help_lists_every_verb_and_where_to_begin() -> None:
    shown = invoke("--help")
    assert shown.exit_code == 0
    assert f"retort run {QUICKSTART}" in shown.output
    listed = re.findall(r"^[│ ]+([a-z]+) {2,}\S", shown.output, re.MULTILINE)
    assert set(VERBS) <= set(listed)


# --- filter --explain, sample


def test_a_decision_is_explained_from_the_run_or_its_config(tmp_path: Path) -> None:
    run = make(tmp_path, until="filter").path
    explained = invoke("filter", run, "--explain", "prompt1-0")
    assert explained.exit_code == 0
    assert "FILTER dropped: repeated ngrams" in explained.stdout
    by_config = invoke("filter", QUICKSTART, "name=trial", f"runs_dir={tmp_path}", "--explain", "prompt1-0")
    assert by_config.stdout == explained.stdout


def test_explaining_decides_nothing(tmp_path: Path) -> None:
    run = make(tmp_path, until="filter").path
    before = {path: path.stat().st_mtime_ns for path in (run / "filter").iterdir()}
    invoke("filter", run, "--explain", "prompt1-0")
    assert {path: path.stat().st_mtime_ns for path in (run / "filter").iterdir()} == before


def test_a_run_that_is_not_there_can_not_explain(tmp_path: Path) -> None:
    line = error_line("filter", QUICKSTART, "name=none", f"runs_dir={tmp_path}", "--explain", "a-0")
    assert "none: no run here" in line


def test_what_was_dropped_can_be_read(tmp_path: Path) -> None:
    run = make(tmp_path, until="filter").path
    assert "1 of 1 answer: truncated" in invoke("sample", run, "--reason", "truncated").stdout
    assert "2 of 4 answers: kept" in invoke("sample", run, "--reason", "kept", "--num", "2").stdout
    assert "not a reason of this run's filter" in error_line("sample", run, "--reason", "ugly")


# --- check


def test_check_prints_the_resolved_config_with_the_meaning_of_each_setting() -> None:
    done = invoke("check", QUICKSTART, "train.epochs=7")
    assert done.exit_code == 0
    assert "epochs: 7.0  # Passes over the kept answers." in done.stdout
    assert "held_out_frac: 0.1  # Share of prompts kept for evaluation" in done.stdout


def test_check_prints_yaml_that_can_be_saved_and_run(tmp_path: Path) -> None:
    (tmp_path / "saved.yaml").write_text(invoke("check", QUICKSTART, "train.epochs=7").stdout)
    again = invoke("check", tmp_path / "saved.yaml")
    assert again.exit_code == 0
    assert again.stdout == invoke("check", QUICKSTART, "train.epochs=7").stdout


def test_check_imports_no_heavy_library_and_writes_nothing(tmp_path: Path) -> None:
    done = retort("check", QUICKSTART, f"runs_dir={tmp_path}/runs", python=("-X", "importtime"))
    assert done.returncode == 0
    imported = {line.split("|")[-1].strip().split(".")[0] for line in done.stderr.splitlines() if "|" in line}
    assert "pydantic" in imported
    assert imported.isdisjoint({"torch", "transformers", "vllm", "trl", "datasets"})
    assert not (tmp_path / "runs").exists()


def test_check_renders_what_evaluate_will_ask_with_the_template_of_a_teacher_that_is_here(tmp_path: Path) -> None:
    from support.tiny_model import make
    from support.word_tokenizer import tokenizer

    make(0, 300).save_pretrained(tmp_path / "teacher")
    once = "{% if messages | length > 1 %}{{ raise_exception('One alone') }}{% endif %}{{ messages[0].content }}"
    tokenizer(template=once).save_pretrained(tmp_path / "teacher")
    line = error_line("check", QUICKSTART, f"teacher.model={tmp_path}/teacher", "student.keep_layers=0")
    assert "prompts/chat_eval.jsonl: item " in line
    assert "can't be asked of the teacher: the teacher's chat template refuses a prompt: One alone" in line
    tokenizer(template=None).save_pretrained(tmp_path / "teacher")
    (tmp_path / "teacher/chat_template.jinja").unlink(missing_ok=True)
    line = error_line("check", QUICKSTART, f"teacher.model={tmp_path}/teacher", "student.keep_layers=0")
    assert "no chat template" in line


# --- status


def test_status_shows_what_is_done_and_what_is_left(run_dir: RunDir) -> None:
    done = invoke("status", run_dir.path)
    assert done.exit_code == 0
    states = {line.split()[1]: line for line in done.output.splitlines() if len(line.split()) > 2}
    assert "done" in states["prepare"]
    assert "prompts 412, held_out 40" in states["prepare"]
    assert "under way or stopped" in states["generate"]
    assert "done" not in states["filter"]


def test_status_of_a_run_that_has_done_nothing_says_how_to_begin(run_dir: RunDir) -> None:
    for stage in ("prepare", "generate"):
        shutil.rmtree(run_dir.path / stage)
    done = invoke("status", run_dir.path)
    assert done.exit_code == 0
    assert f"nothing is done yet; begin: retort run {run_dir.path}/config.yaml" in " ".join(done.output.split())


def test_status_names_a_file_that_is_lost(run_dir: RunDir) -> None:
    record = {"name": "prompts-00000.parquet", "bytes": 9, "sha256": "0"}
    manifest = {**run_dir.manifest("prepare"), "files": [record]}
    (run_dir.path / "prepare/manifest.json").write_text(json.dumps(manifest))
    said = " ".join(invoke("status", run_dir.path).output.split())
    assert "damaged: 1 files missing" in said


# --- a stage's own process


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """In place of Python, a script: what a test writes there is what a stage's process does."""
    path = tmp_path / "stand-in"
    monkeypatch.setattr(sys, "executable", str(path))
    monkeypatch.setattr(stages.hardware, "stage_environment", lambda: {"PATH": "/usr/bin:/bin"})
    return path


def child(stand_in: Path, script: str, *, fresh: Fresh = "no", accept: tuple[str, ...] = ()) -> int:
    stand_in.write_text(f"#!/bin/sh\n{script}\n")
    stand_in.chmod(0o755)
    config = config_in(stand_in.parent)
    return stages._in_child("train", config, RunDir(config.run_path, fresh, accept))


@pytest.mark.parametrize("code", [0, 1, 2])
def test_the_exit_code_of_a_stage_is_that_of_the_command(stand_in: Path, code: int) -> None:
    assert child(stand_in, f"exit {code}") == code


def test_a_stage_that_was_killed_is_told_with_its_signal(stand_in: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert child(stand_in, "kill -9 $$") == 137
    said = capsys.readouterr().err
    assert "train was killed by SIGKILL (by the system, where memory ran out)" in said
    assert "run the same command to resume" in said


def test_a_stage_is_given_the_resolved_settings_and_what_to_accept(stand_in: Path) -> None:
    script = 'echo "$@" > "$(dirname "$0")/arguments"; cat > "$(dirname "$0")/order"'
    assert child(stand_in, script, fresh="always", accept=("a.b", "c.d")) == 0
    assert (stand_in.parent / "arguments").read_text() == "-P -m pipeline.cli.child train\n"
    order = StageOrder.model_validate_json((stand_in.parent / "order").read_text())
    config = config_in(stand_in.parent)
    assert order == StageOrder(config=config, path=config.run_path, fresh="always", accept=("a.b", "c.d"))


def test_after_fresh_the_way_on_is_without_it(stand_in: Path, capsys: pytest.CaptureFixture[str]) -> None:
    child(stand_in, "kill -9 $$", fresh="always")
    assert "run the same command without --fresh to resume" in capsys.readouterr().err


def test_run_does_the_stages_in_order_and_stops_at_the_first_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []

    def in_child(stage: str, *_: object) -> int:
        ran.append(stage)
        return 3 if stage == "train" else 0

    monkeypatch.setattr(stages, "_in_child", in_child)
    monkeypatch.setattr(stages, "check_held_out", lambda *_: None)
    done = invoke("run", QUICKSTART, f"runs_dir={tmp_path}")
    assert done.exit_code == 3
    assert ran == ["prepare", "generate", "filter", "train"]


def test_a_run_with_nothing_to_evaluate_on_stops_after_prepare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def in_child(stage: str, config: Config, *_: object) -> int:
        RunDir(config.run_path).begin(stage, config, SETTINGS).finish([], {"prompts": 15, "held_out": 0})
        return 0

    monkeypatch.setattr(stages, "_in_child", in_child)
    done = invoke("run", QUICKSTART, f"runs_dir={tmp_path}", "name=small")
    assert "none of its 15 prompts is held out" in str(done.exception)
    assert "prepare.held_out_frac" in str(done.exception)
    assert not (tmp_path / "small/generate").exists()


def test_a_run_whose_prompts_were_left_out_for_a_reason_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def in_child(stage: str, config: Config, *_: object) -> int:
        made = RunDir(config.run_path).begin(stage, config, {**SETTINGS, "prepare.held_out_frac": 0.1})
        made.finish([], {"prompts": 180, "held_out": 0}, held_out_left_out={"near_duplicates": 19, "contaminated": 2})
        return 0

    monkeypatch.setattr(stages, "_in_child", in_child)
    told = str(invoke("run", QUICKSTART, f"runs_dir={tmp_path}", "name=small").exception)
    assert "none of its 180 prompts is held out" in told
    assert "19 as near duplicates of earlier prompts" in told
    assert "prepare.near_duplicates=null" in told
    assert "held_out_frac" not in told


def test_a_run_whose_filter_keeps_no_held_out_answer_stops_there_with_the_rules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = []
    counts = {
        "prepare": {"prompts": 60, "held_out": 20},
        "generate": {"responses": 60},
        "filter": {"responses": 60, "kept": 3, "kept_train": 3},
    }

    def in_child(stage: str, config: Config, *_: object) -> int:
        ran.append(stage)
        held_out = {"responses": 20, "dropped": {"echo": 1, "truncated": 19}}
        RunDir(config.run_path).begin(stage, config, SETTINGS).finish([], counts[stage], held_out=held_out)
        return 0

    monkeypatch.setattr(stages, "_in_child", in_child)
    told = str(invoke("run", QUICKSTART, f"runs_dir={tmp_path}", "name=small").exception)
    assert ran == ["prepare", "generate", "filter"]
    assert "none of 20 held-out answers was kept (dropped: truncated 19, echo 1)" in told
    assert (
        "raise generate.max_tokens, or filter.drop_truncated=false keeps them; echo: filter.max_echo_frac=null" in told
    )
    assert "held_out_frac" not in told


def test_a_mistake_about_a_late_stage_is_found_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "_in_child", lambda *_: pytest.fail("a stage was started"))
    mistakes = [
        "evaluate.chat_set=none.jsonl",
        "evaluate.chat_set=README.md",
        "evaluate.tasks.path=none.jsonl",
        "evaluate.tasks.path=prompts/chat_eval.jsonl",
        "evaluate.risks.path=none.jsonl",
        "evaluate.risks.path=prompts/chat_eval.jsonl",
        "student.model=./none",
        "student.keep_layers=3-1",
        "prepare.sources=[{path: none.txt}]",
        "prepare.decontaminate=[{path: none.txt}]",
        "filter.decontaminate=[{path: none.txt}]",
    ]
    for mistake in mistakes:
        for verb in ("run", "check"):
            done = invoke(verb, QUICKSTART, f"runs_dir={tmp_path}/runs", mistake)
            assert isinstance(done.exception, UserError)
    assert not (tmp_path / "runs").exists()


def test_a_mistake_costs_nothing_that_is_there_even_with_fresh(run_dir: RunDir) -> None:
    line = error_line("prepare", run_dir.path / "config.yaml", "teacher.model=./none", "--fresh")
    assert "model ./none: no such folder" in line
    assert run_dir.manifest("prepare")


def test_a_runs_folder_that_cannot_be_made(tmp_path: Path) -> None:
    assert "can't be made" in error_line("prepare", QUICKSTART, "runs_dir=/dev/null")
    assert "runs_dir: " in error_line("prepare", QUICKSTART, "runs_dir=~no-such-user/x")


def test_an_error_does_not_move_the_cursor(
    app_that_raises: Callable[[BaseException], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    app_that_raises(UserError("column '\x1b[2J' is missing"))
    with pytest.raises(SystemExit):
        cli_app.main()
    assert capsys.readouterr().err == "error: column '\\x1b[2J' is missing\n"
