"""The verbs of `retort`. Each stage runs in a process of its own; a stage's code is imported only there."""

import dataclasses
import json
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text
from typer.core import TyperGroup

from pipeline import config as config_module
from pipeline.cli import interrupt, preflight, target
from pipeline.cli.arguments import (
    Accept,
    ConfigPath,
    Explain,
    FreshCorpus,
    FreshRun,
    FreshStage,
    Overrides,
    RunOverrides,
    RunPath,
    Runs,
    ShowRest,
)
from pipeline.cli.stage import UNSURE, StageOrder
from pipeline.cli.target import Target
from pipeline.config import Config
from pipeline.console import console, say, user_errors
from pipeline.errors import UnsureError, UserError
from pipeline.eval_sets import eval_prompts
from pipeline.machine import hardware
from pipeline.records import STAGES
from pipeline.run import artifacts, discarding, left_out
from pipeline.run.rundir import RunDir

RUN_STAGES = STAGES[:-1]  # export is asked for by name
NEEDS = {  # the stages whose output a stage reads
    "generate": ("prepare",),
    "filter": ("generate",),
    "train": ("generate", "filter"),
    "evaluate": ("generate", "filter", "train"),
    "export": ("train", "evaluate"),
}
THEIR_WORDS = {  # of pydantic, by which typer reads numbers
    r"Input should be a valid integer.*": "must be a whole number",
    r"Input should be greater than or equal to": "must be at least",
    r"Input should be less than or equal to": "must be at most",
}
_UsageError: Any = typer.BadParameter.__base__  # typer has no name for it

app = typer.Typer(
    help=(
        "Distil a large chat model into a small one: prepare → generate → filter → train → evaluate → export.\n\n"
        "Begin with `retort run configs/quickstart.yaml`. Settings are changed as `section.key=value` after the"
        " config; `retort check CONFIG` lists them all with their meaning. Each verb takes a config, or the folder of"
        " an existing run."
    ),
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command()
def run(config: ConfigPath, overrides: Overrides = None, fresh: FreshRun = 0, accept: Accept = None) -> None:
    """All stages from prepare to evaluate, then the report; goes on where an earlier try stopped.

    Example: retort run configs/quickstart.yaml name=trial train.epochs=3
    """
    loaded = target.load(config, overrides)
    run_dir = RunDir(loaded.run_path, "changed" if fresh else "no", tuple(accept or []), fresh > 1)
    preflight.check(loaded.config, run_dir)
    run_dir.check_accept(RUN_STAGES)
    for stage in RUN_STAGES:
        say(f"── {stage}")
        _do(stage, loaded.config, run_dir)
        if stage in ("prepare", "filter"):
            _check_held_out(RunDir(loaded.run_path), stage)
    _report(loaded.run_path)
    _planned_and_actual(RunDir(loaded.run_path))


@app.command()
def plan(config: ConfigPath, overrides: Overrides = None) -> None:
    """Answer a few prompts and say what generate will take: time, disk, GPU-hours, cost, and which K is enough.

    Example: retort plan configs/qwen3-gpu.yaml generate.price_per_hour=9.5
    """
    loaded = target.load(config, overrides)
    run_dir = RunDir(loaded.run_path)
    preflight.check(loaded.config, run_dir)
    for stage in ("prepare", "generate.pilot"):
        _do(stage, loaded.config, run_dir)


@app.command()
def serve(
    config: ConfigPath,
    overrides: Overrides = None,
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="Port on 127.0.0.1.")] = 8000,
) -> None:
    """Start a vLLM server with the teacher on this machine, for `teacher.server.urls`, and keep it until ctrl-C.

    Its key is RETORT_SERVER_KEY from the environment, or else a new one, shown once.

    Example: retort serve configs/quickstart.yaml --port 8000
    """
    from pipeline.inference import serve as server

    loaded = target.load(config, overrides)
    server.run(loaded.config, port, shlex.join(loaded.given))


class _StudentByDefault(TyperGroup):
    """`retort export CONFIG` is `retort export student CONFIG`, and so it is with a run's folder."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in {*self.commands, "-h", "--help"}:
            args = ["student", *args]
        return super().parse_args(ctx, args)


export_app = typer.Typer(
    cls=_StudentByDefault,
    no_args_is_help=True,
    help=(
        "Hand on what a run has made: the student (the default), or the corpus.\n\n"
        "Example: retort export configs/quickstart.yaml"
    ),
)
app.add_typer(export_app, name="export")


def _stage_command(stage: str, summary: str) -> None:
    def command(config: ConfigPath, overrides: Overrides = None, fresh: FreshStage = 0, accept: Accept = None) -> None:
        _one(stage, config, overrides, fresh, accept)

    verb = f"{stage} student" if stage == "export" else stage
    command.__doc__ = f"{summary}\n\nExample: retort {verb} configs/quickstart.yaml"
    where, name = (export_app, "student") if stage == "export" else (app, stage)
    where.command(name=name)(command)


for _name, _summary in {
    "prepare": "Prompts in: read the sources, let the teacher write more where asked for (prepare.synthesis), render"
    " each as the teacher will see it, split off held-out ones.",
    "generate": "The teacher answers every prompt through vLLM; the log-probs behind each token are kept.",
    "train": "Make the student and train it on the kept answers: CE + a divergence from the teacher's distributions.",
    "evaluate": "Measure the student against its teacher: fidelity, chat answers, speed, size.",
    "export": "Write the student as a folder that vLLM and transformers load, with a model card.",
}.items():
    _stage_command(_name, _summary)


@app.command(name="filter")
def filter_answers(
    config: ConfigPath,
    overrides: Overrides = None,
    fresh: FreshStage = 0,
    accept: Accept = None,
    explain: Explain = "",
) -> None:
    """Decide which answers train sees, with a reason for each drop.

    Example: retort filter configs/quickstart.yaml

    Example: retort filter runs/quickstart --explain 0123456789abcdef-0
    """
    if not explain:
        _one("filter", config, overrides, fresh, accept)
        return
    from pipeline.report.tables import decided

    sys.stdout.write(decided.explain(target.existing(config, overrides), explain))


@export_app.command(name="corpus")
def export_corpus(
    run: RunPath,
    overrides: RunOverrides = None,
    logprobs: Annotated[bool, typer.Option("--logprobs", help="With token ids and packed log-probs.")] = False,
    push: Annotated[str, typer.Option("--push", metavar="OWNER/NAME", help="Upload it, private, as HF_TOKEN.")] = "",
    fresh: FreshCorpus = 0,
) -> None:
    """Write the kept answers to RUN/corpus, as `datasets` loads them, with a dataset card.

    Example: retort export corpus runs/quickstart --logprobs
    """
    from pipeline.export import corpus

    run_dir = target.existing(run, overrides)
    run_dir.manifest("filter")
    with run_dir.lock():
        if fresh < 2:
            _ask_about_corpus(run_dir)
        folder = corpus.write(run_dir, logprobs)
    say(f"corpus: {folder.resolve()}")
    if push:
        say(f"pushed: {corpus.push(folder, push)}")


def _ask_about_corpus(run_dir: RunDir) -> None:
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


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where to write; here if none is named.")] = Path(),
) -> None:
    """Write a commented config and a few example prompts to start from; overwrites nothing.

    Example: retort init my-student
    """
    from pipeline.cli import init

    for path in init.write(folder):
        say(f"init: wrote {path}")
    change = "" if folder == Path() else f"{shlex.join(['cd', str(folder)])} && "
    say(f"init: put your prompts into prompts.jsonl, then: {change}retort run {init.CONFIG}")


@app.command()
def check(config: ConfigPath, overrides: Overrides = None) -> None:
    """Validate a config and print it resolved, with the meaning of every setting; loads no model.

    Example: retort check configs/qwen3-gpu.yaml train.epochs=1
    """
    loaded = target.load(config, overrides)
    preflight.check(loaded.config, RunDir(loaded.run_path))
    if loaded.config.teacher.engine and hardware.vllm_version() != "none":
        from pipeline.inference.engine import check_engine_args

        check_engine_args(loaded.config.teacher.engine)
    eval_prompts.check_settings(loaded.config)
    from pipeline.prepare import sources

    previews = list(sources.previews(loaded.config))
    sys.stdout.write(config_module.dump_explained(loaded.config))
    for line in previews:
        say(line)
    say(f"{config}: valid; `{loaded.command('run')}` writes to {loaded.run_path}")


@app.command()
def status(run: RunPath, overrides: RunOverrides = None) -> None:
    """What each stage of a run has done, and what is left.

    Example: retort status runs/quickstart
    """
    run_dir = target.existing(run, overrides)
    table = Table("stage", "state", "finished", "seconds", "counts", title=str(run_dir.path), title_justify="left")
    for stage in STAGES:
        table.add_row(stage, *_state(run_dir, stage))
    console_out = type(console)(highlight=False)
    console_out.print(table)
    if not any(run_dir.stage_path(stage).is_dir() for stage in STAGES):
        console_out.print(f"nothing is done yet; begin: {run_dir.command('run')}", markup=False, soft_wrap=True)


def _state(run_dir: RunDir, stage: str) -> tuple[str | Text, ...]:
    """A stage's columns after its name."""
    if not run_dir.is_done(stage):
        begun = (run_dir.stage_path(stage) / artifacts.STARTED).is_file()
        return "under way or stopped" if begun else "–", "", "", ""
    manifest, lost = run_dir.manifest(stage), run_dir.lost_files(stage)
    counts = ", ".join(f"{key} {value}" for key, value in manifest["counts"].items())
    state = f"[red]damaged: {len(lost)} files missing or cut short, such as {lost[0]}[/]" if lost else "done"
    return state, manifest["finished"][:16].replace("T", " "), f"{manifest['elapsed_s']:.0f}", Text(counts)


@app.command()
def verify(run: RunPath, overrides: RunOverrides = None) -> None:
    """Prove from a run's files alone that nothing is lost, doubled, shifted or altered; names the first bad row.

    Example: retort verify runs/quickstart
    """
    from pipeline.run import verify as verification

    for stage, proved in verification.run(target.existing(run, overrides)):
        say(f"{stage}: {proved}")


@app.command()
def show(run: RunPath, rest: ShowRest = None) -> None:
    """One example carried through every stage: prompt, answer, log-probs, decision.

    Example: retort show runs/quickstart
    """
    from pipeline.report import example

    overrides = [word for word in rest or [] if target.is_override(word)]
    ids = [word for word in rest or [] if word not in overrides]
    if len(ids) > 1:
        raise UserError(f"show takes one id at a time: give {ids[0]} or {ids[1]}")
    sys.stdout.write(example.describe(target.existing(run, overrides), ids[0] if ids else None))


@app.command()
def sample(
    run: RunPath,
    reason: Annotated[
        str, typer.Option("--reason", metavar="R", help="A rule, or `kept`; see the manifest or report.")
    ],
    overrides: RunOverrides = None,
    num: Annotated[int, typer.Option("--num", min=1, help="How many answers.")] = 5,
) -> None:
    """Answers that filter dropped for one reason, or kept, to read with one's own eyes.

    Example: retort sample runs/quickstart --reason repeated_ngrams --num 10
    """
    from pipeline.report.tables import decided

    sys.stdout.write(decided.sample(target.existing(run, overrides), reason, num))


@app.command()
def compare(
    run: RunPath,
    overrides: RunOverrides = None,
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port on 127.0.0.1; 0 for any free one.")] = 0,
    seed: Annotated[int, typer.Option("--seed", help="Draws the order of the questions, and the sides.")] = 0,
) -> None:
    """People compare teacher and student: a page on this machine shows two answers, and not whose they are.

    Votes go to RUN/votes.jsonl, and `retort report` counts them. Ctrl-C stops; the same command goes on.

    Example: retort compare runs/quickstart
    """
    from pipeline import compare as comparison

    comparison.run(target.existing(run, overrides), port, seed)


def _print_schema(is_asked: bool) -> None:
    from pipeline.run.scores import Scores

    if is_asked:
        sys.stdout.write(json.dumps(Scores.model_json_schema(), indent=2, ensure_ascii=False) + "\n")
        raise typer.Exit


@app.command()
def report(
    runs: Runs,
    conditions: Annotated[
        str | None,
        typer.Option(
            "--gate", metavar="CONDITIONS", help="What must be so, as in kl<0.5,speed>=1.2; else exit code 1."
        ),
    ] = None,
    schema: Annotated[
        bool,
        typer.Option(
            "--schema",
            is_eager=True,
            callback=_print_schema,
            help="Print the JSON Schema of scores.json, each key with its meaning, and do nothing else.",
        ),
    ] = False,
) -> None:
    """Write report.html into each run: one self-contained page; of several runs also comparison.html, beside the first.

    With --gate, also judge the runs' figures.

    A name is a figure of evaluate/scores.json (forward_kl_nats, speed_over_teacher, arms.sft_only.fidelity.nll_nats)
    or short for one: kl, reverse_kl, agreement, acceptance, loops, speed.

    Example: retort report runs/quickstart --gate "kl<0.6,speed>=1.1"
    """
    from pipeline.report import gate, several

    wanted = [] if conditions is None else gate.parse(conditions)
    failed = False
    run_dirs = target.several(runs)
    if len(run_dirs) > 1:
        path = run_dirs[0].path.resolve().parent / "comparison.html"
        several.write(run_dirs, path)
        say(f"comparison: {path}")
    for run_dir in run_dirs:
        _report(run_dir.path)
        outcomes = gate.check(run_dir, wanted) if wanted else []
        for outcome in outcomes:
            sys.stdout.write(f"{run_dir.path.name}: {outcome.line()}\n")
        failed = failed or not all(outcome.holds for outcome in outcomes)
    if failed:
        raise typer.Exit(1)


def main() -> None:
    """Entry point: a user's mistake is one line and exit code 2."""
    with user_errors():
        try:
            code = app(prog_name="retort", standalone_mode=False)
        except typer.Abort:
            raise KeyboardInterrupt from None  # what typer has made of ctrl-C
        except _UsageError.__base__ as error:
            if type(error).__name__ == "NoArgsIsHelpError":
                error.show()
                raise SystemExit(2) from None
            raise UserError(_misused(error)) from None
    if code:
        raise SystemExit(code)


def _misused(error: Any) -> str:
    """Typer's error about the words of a command, as one line of ours."""
    message = error.format_message().rstrip(".")
    for theirs, ours in THEIR_WORDS.items():
        message = re.sub(theirs, ours, message)
    command = error.ctx.command_path if getattr(error, "ctx", None) else "retort"
    return f"{message}; see `{command} --help`"


def _report(path: Path) -> None:
    from pipeline.report import page

    say(f"report: {page.write(RunDir(path)).resolve()}")


def _planned_and_actual(run_dir: RunDir) -> None:
    from pipeline.generate import pilot

    if (table := pilot.against_actuals(run_dir)) is not None:
        console.print(table)


def _check_held_out(run_dir: RunDir, stage: str) -> None:
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


def _one(stage: str, config: Path, overrides: list[str] | None, fresh: int, accept: list[str] | None) -> None:
    """A stage by its own verb."""
    loaded = target.load(config, overrides)
    run_dir = RunDir(loaded.run_path, "always" if fresh else "no", tuple(accept or []), fresh > 1)
    run_dir.check_accept([stage])
    _check_earlier(stage, loaded)
    target.check_overrides(stage, loaded)
    _do(stage, loaded.config, run_dir)


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


def _do(stage: str, config: Config, run_dir: RunDir) -> None:
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
    way_on = f"the same command{again} goes on from what is committed"
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
