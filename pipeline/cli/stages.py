"""What the verbs do with stages: each in its own process, after what it needs, and never discarding work unasked."""

import dataclasses
import signal
import subprocess
import sys
from pathlib import Path

import typer

from pipeline.cli import interrupt, target
from pipeline.cli.stage import UNSURE, StageOrder
from pipeline.cli.target import Target
from pipeline.config import Config
from pipeline.console import console, say
from pipeline.errors import UnsureError, UserError
from pipeline.machine import hardware
from pipeline.records import STAGES
from pipeline.run import discarding, left_out
from pipeline.run.rundir import RunDir

RUN_STAGES = STAGES[:-1]  # export is asked for by name
NEEDS = {  # the stages whose output a stage reads
    "generate": ("prepare",),
    "filter": ("generate",),
    "train": ("generate", "filter"),
    "evaluate": ("generate", "filter", "train"),
    "export": ("train", "evaluate"),
}


def ask_about_corpus(run_dir: RunDir) -> None:
    """Ask before a corpus is replaced that took long to write, or that someone has worked on since."""
    way = f"give --fresh twice (--fresh --fresh) to replace it, or move {run_dir.path / 'corpus'} away to keep it"
    try:
        discarding.check(run_dir.path, [run_dir.path / "corpus"], "this", way)
    except UnsureError as unsure:
        if not _can_ask():
            raise
        say(unsure.what)
        if not _is_meant():
            raise typer.Exit(1) from None


def report(path: Path) -> None:
    from pipeline.report import page

    say(f"report: {page.write(RunDir(path)).resolve()}")


def planned_and_actual(run_dir: RunDir) -> None:
    from pipeline.generate import pilot

    if (table := pilot.against_actuals(run_dir)) is not None:
        console.print(table)


def check_held_out(run_dir: RunDir, stage: str) -> None:
    """Raises UserError where what a stage has made leaves evaluate nothing to measure fidelity on, with the cause."""
    manifest = run_dir.manifest(stage)
    counts = manifest["counts"]
    if stage == "prepare" and not counts["held_out"]:
        told = left_out.of_held_out_prompts(manifest)
        others = f" (to make only a corpus: {run_dir.command('generate')})"
    elif stage == "filter" and counts["kept"] == counts["kept_train"]:
        told, others = left_out.of_held_out_answers(manifest), ""
    else:
        return
    raise UserError(f"{run_dir.path}: {told}. Then run with --fresh, which redoes what changed{others}")


def one(stage: str, config: Path, overrides: list[str] | None, fresh: int, accept: list[str] | None) -> None:
    """A stage by its own verb."""
    loaded = target.load(config, overrides)
    run_dir = RunDir(loaded.run_path, "always" if fresh else "no", tuple(accept or []), fresh > 1)
    run_dir.check_accept([stage])
    _check_earlier(stage, loaded)
    target.check_overrides(stage, loaded)
    do(stage, loaded.config, run_dir)


def _check_earlier(stage: str, loaded: Target) -> None:
    """Raises UserError if a stage whose output this one reads has not finished; nothing is made before that."""
    run_dir = RunDir(loaded.run_path)
    if all(map(run_dir.is_done, NEEDS.get(stage, ()))):
        return
    if run_dir.path.is_dir():
        with run_dir.lock():  # another process may be about to finish it: then that is said
            pass
    missing = [earlier for earlier in STAGES[: STAGES.index(stage)] if not run_dir.is_done(earlier)]
    if len(missing) == 1:
        said = f"{missing[0]} has not finished; run it first: {loaded.command(missing[0])}"
    else:
        said = f"{', '.join(missing[:-1])} and {missing[-1]} have not finished; run them first: {loaded.command('run')}"
    raise UserError(f"{loaded.run_path}: {stage} can't begin: {said}")


def do(stage: str, config: Config, run_dir: RunDir) -> None:
    """Run one stage; where it fails, end with its exit code."""
    code = _in_child(stage, config, run_dir)
    if code == UNSURE and _is_meant():
        code = _in_child(stage, config, dataclasses.replace(run_dir, is_sure=True))
    if code != 0:
        raise SystemExit(1 if code == UNSURE else code)


def _can_ask() -> bool:
    return sys.stdin.isatty() and sys.stderr.isatty()


def _is_meant() -> bool:
    """Whether what was just said is to be done."""
    is_meant = typer.confirm("Discard it?", default=False, err=True)
    if not is_meant:
        say("nothing was discarded")
    return is_meant


def _in_child(stage: str, config: Config, run_dir: RunDir) -> int:
    """Run one stage in a process of its own (cli/stage.py), which dies with this one. Returns its exit code."""
    order = StageOrder(
        config=config,
        path=run_dir.path,
        fresh=run_dir.fresh,
        is_sure=run_dir.is_sure,
        can_ask=_can_ask(),
        accept=run_dir.accept,
    )
    # -P: a folder called pipeline/ where the user stands is not ours
    command = [sys.executable, "-P", "-m", "pipeline.cli.child", stage]
    environment = hardware.stage_environment()
    child = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, preexec_fn=hardware.die_with_parent)
    again = " without --fresh" if run_dir.fresh == "always" else ""
    way_on = f"run the same command{again} to resume"
    try:
        child.communicate(order.model_dump_json().encode())
        code = child.returncode
    except KeyboardInterrupt:
        child.wait()  # the terminal's ctrl-C reached the child too
        say(f"stopped; {way_on}")
        return interrupt.CODE
    if code < 0:
        why = " (by the system, where memory ran out)" if -code == signal.SIGKILL else ""
        say(f"{stage} was killed by {signal.Signals(-code).name}{why}; {way_on}")
        return 128 - code
    return code
