"""The verbs of `retort`. Each stage runs in a process of its own; a stage's code is imported only there."""

import json
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
from pipeline import eval_prompts, hardware, left_out, models
from pipeline.config import Config
from pipeline.console import console, say, user_errors
from pipeline.errors import UserError
from pipeline.records import STAGES
from pipeline.rundir import Fresh, RunDir
from pipeline.stage import Order

RUN_STAGES = STAGES[:-1]  # export is asked for by name

app = typer.Typer(
    help=(
        "Distil a large chat model into a small one: prepare → generate → filter → train → evaluate → export.\n\n"
        "Begin with `retort run configs/quickstart.yaml`. Settings are changed as `section.key=value` after the"
        " config; `retort check CONFIG` lists them all with their meaning."
    ),
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

ConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file, e.g. configs/quickstart.yaml.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Settings, e.g. train.learning_rate=1e-5."),
]
FreshStage = Annotated[bool, typer.Option("--fresh", help="Discard this stage and those after it, and do them again.")]
FreshRun = Annotated[
    bool,
    typer.Option("--fresh", help="Discard each stage whose settings changed, with those after it, and redo."),
]
Accept = Annotated[
    list[str] | None,
    typer.Option("--accept", metavar="KEY", help="Keep a stage's output though this setting changed; recorded."),
]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run, e.g. runs/quickstart.")]


@app.command()
def run(config: ConfigPath, overrides: Overrides = None, fresh: FreshRun = False, accept: Accept = None) -> None:
    """All stages from prepare to evaluate, then the report; goes on where an earlier try stopped.

    Example: retort run configs/quickstart.yaml name=trial train.epochs=3
    """
    loaded = _checked(config, overrides)
    RunDir(loaded.run_path, accept=tuple(accept or [])).check_accept(RUN_STAGES)
    for stage in RUN_STAGES:
        say(f"── {stage}")
        _do(stage, loaded, "changed" if fresh else "no", accept or [])
        if stage in ("prepare", "filter"):
            _check_held_out(RunDir(loaded.run_path), stage)
    _report(loaded.run_path)
    _planned_and_actual(RunDir(loaded.run_path))


@app.command()
def plan(config: ConfigPath, overrides: Overrides = None) -> None:
    """Answer a few prompts and say what generate will take: time, disk, GPU-hours, cost, and which K is enough.

    Example: retort plan configs/qwen3-gpu.yaml generate.price_per_hour=9.5
    """
    loaded = _checked(config, overrides)
    for stage in ("prepare", "generate.pilot"):
        _do(stage, loaded, "no", [])


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
    from pipeline.generate import serve as server

    loaded = config_module.load(config, overrides or [])
    server.run(loaded, port, shlex.join([str(config), *(overrides or [])]))


class _StudentByDefault(TyperGroup):
    """`retort export CONFIG` is `retort export student CONFIG`."""

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
    def command(
        config: ConfigPath, overrides: Overrides = None, fresh: FreshStage = False, accept: Accept = None
    ) -> None:
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
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file; for --explain also a run's folder.")],
    overrides: Overrides = None,
    fresh: FreshStage = False,
    accept: Accept = None,
    explain: Annotated[
        str, typer.Option("--explain", metavar="ID", help="Decide nothing; say why this response was kept or dropped.")
    ] = "",
) -> None:
    """Decide which answers train sees, with a reason for each drop.

    Example: retort filter configs/quickstart.yaml

    Example: retort filter runs/quickstart --explain 0123456789abcdef-0
    """
    if not explain:
        _one("filter", config, overrides, fresh, accept)
        return
    from pipeline.report import decided

    path = config if config.is_dir() else config_module.load(config, overrides or []).run_path
    sys.stdout.write(decided.explain(_existing(path), explain))


@export_app.command(name="corpus")
def export_corpus(
    run: RunPath,
    logprobs: Annotated[bool, typer.Option("--logprobs", help="With token ids and packed log-probs.")] = False,
    push: Annotated[str, typer.Option("--push", metavar="OWNER/NAME", help="Upload it, private, as HF_TOKEN.")] = "",
) -> None:
    """Write the kept answers to RUN/corpus, as `datasets` loads them, with a dataset card.

    Example: retort export corpus runs/quickstart --logprobs
    """
    from pipeline.export import corpus

    target = _existing(run)
    with target.lock():
        folder = corpus.write(target, logprobs)
    say(f"corpus: {folder.resolve()}")
    if push:
        say(f"pushed: {corpus.push(folder, push)}")


@app.command()
def check(config: ConfigPath, overrides: Overrides = None) -> None:
    """Validate a config and print it resolved, with the meaning of every setting; loads no model.

    Example: retort check configs/qwen3-gpu.yaml train.epochs=1
    """
    loaded = _checked(config, overrides)
    if loaded.teacher.engine and hardware.vllm_version() != "none":
        from pipeline.generate.engine import check_engine_args

        check_engine_args(loaded.teacher.engine)
    eval_prompts.check_settings(loaded)
    sys.stdout.write(config_module.dump_explained(loaded))
    say(f"{config}: valid; `retort run {shlex.join([str(config), *(overrides or [])])}` writes to {loaded.run_path}")


@app.command()
def status(run: RunPath) -> None:
    """What each stage of a run has done, and what is left.

    Example: retort status runs/quickstart
    """
    target = _existing(run)
    table = Table("stage", "state", "finished", "seconds", "counts", title=str(target.path), title_justify="left")
    for stage in STAGES:
        folder = target.stage_path(stage)
        if target.is_done(stage):
            manifest, lost = target.manifest(stage), target.lost_files(stage)
            counts = ", ".join(f"{key} {value}" for key, value in manifest["counts"].items())
            state = f"[red]damaged: {len(lost)} files missing or cut short, such as {lost[0]}[/]" if lost else "done"
            table.add_row(
                stage, state, manifest["finished"][:16].replace("T", " "), f"{manifest['elapsed_s']:.0f}", Text(counts)
            )
        else:
            table.add_row(stage, "under way or stopped" if (folder / "started.json").is_file() else "–", "", "", "")
    console_out = type(console)(highlight=False)
    console_out.print(table)


@app.command()
def verify(run: RunPath) -> None:
    """Prove from a run's files alone that nothing is lost, doubled, shifted or altered; names the first bad row.

    Example: retort verify runs/quickstart
    """
    from pipeline import verify as verification

    for stage, proved in verification.run(_existing(run)):
        say(f"{stage}: {proved}")


@app.command()
def show(run: RunPath, response_id: Annotated[str | None, typer.Argument(metavar="[ID]")] = None) -> None:
    """One example carried through every stage: prompt, answer, log-probs, decision. ID is a response or prompt id.

    Example: retort show runs/quickstart
    """
    from pipeline.report import example

    sys.stdout.write(example.describe(_existing(run), response_id))


@app.command()
def sample(
    run: RunPath,
    reason: Annotated[
        str, typer.Option("--reason", metavar="R", help="A rule, or `kept`; see the manifest or report.")
    ],
    num: Annotated[int, typer.Option("--num", min=1, help="How many answers.")] = 5,
) -> None:
    """Answers that filter dropped for one reason, or kept, to read with one's own eyes.

    Example: retort sample runs/quickstart --reason repeated_ngrams --num 10
    """
    from pipeline.report import decided

    sys.stdout.write(decided.sample(_existing(run), reason, num))


@app.command()
def compare(
    run: RunPath,
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port on 127.0.0.1; 0 for any free one.")] = 0,
    seed: Annotated[int, typer.Option("--seed", help="Draws the order of the questions, and the sides.")] = 0,
) -> None:
    """People compare teacher and student: a page on this machine shows two answers, and not whose they are.

    Votes go to RUN/votes.jsonl, and `retort report` counts them. Ctrl-C stops; the same command goes on.

    Example: retort compare runs/quickstart
    """
    from pipeline import compare as comparison

    comparison.run(_existing(run), port, seed)


def _print_schema(is_asked: bool) -> None:
    from pipeline.scores import Scores

    if is_asked:
        sys.stdout.write(json.dumps(Scores.model_json_schema(), indent=2, ensure_ascii=False) + "\n")
        raise typer.Exit


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of evaluated runs.")],
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
    runs = list({run.resolve(): run for run in runs}.values())
    if len(runs) > 1:
        path = runs[0].resolve().parent / "comparison.html"
        several.write([_existing(run) for run in runs], path)
        say(f"comparison: {path}")
    for path in runs:
        run_dir = _existing(path)
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
        app(standalone_mode=True)


def _report(path: Path) -> None:
    from pipeline.report import page

    say(f"report: {page.write(RunDir(path)).resolve()}")


def _planned_and_actual(run_dir: RunDir) -> None:
    from pipeline.generate import pilot

    if (table := pilot.against_actuals(run_dir)) is not None:
        console.print(table)


def _existing(path: Path) -> RunDir:
    if not (path / "config.yaml").is_file():
        raise UserError(f"{path}: no run here (no config.yaml); runs are in the config's runs_dir, by name")
    return RunDir(path)


def _checked(config: Path, overrides: list[str] | None) -> Config:
    """The config, and all that can be known of it without work: a mistake about the last stage is found first."""
    loaded = config_module.load(config, overrides or [])
    config_module.check_files(loaded)
    models.check_settings(loaded)
    return loaded


def _check_held_out(run_dir: RunDir, stage: str) -> None:
    """Raises UserError where what a stage has made leaves evaluate nothing to measure fidelity on, with the cause."""
    manifest = run_dir.manifest(stage)
    counts = manifest["counts"]
    if stage == "prepare" and not counts["held_out"]:
        told, others = left_out.of_held_out_prompts(manifest), f" (a corpus alone: {run_dir.command('generate')})"
    elif stage == "filter" and counts["kept"] == counts["kept_train"]:
        told, others = left_out.of_held_out_answers(manifest), ""
    else:
        return
    raise UserError(f"{run_dir.path}: {told}. Then run with --fresh, which does again what changed{others}")


def _one(stage: str, config: Path, overrides: list[str] | None, fresh: bool, accept: list[str] | None) -> None:
    """A stage by its own verb."""
    loaded = config_module.load(config, overrides or [])
    RunDir(loaded.run_path, accept=tuple(accept or [])).check_accept([stage])
    _do(stage, loaded, "always" if fresh else "no", accept or [])


def _do(stage: str, config: Config, fresh: Fresh, accept: list[str]) -> None:
    """Run one stage; where it fails, end with its exit code."""
    if (code := _in_child(stage, config, fresh, accept)) != 0:
        raise SystemExit(code)


def _in_child(stage: str, config: Config, fresh: Fresh, accept: list[str]) -> int:
    """Run one stage in a process of its own (pipeline/stage.py), which dies with this one. Returns its exit code."""
    order = Order(config=config, fresh=fresh, accept=tuple(accept)).model_dump_json()
    # -P: a folder called pipeline/ where the user stands is not ours
    command = [sys.executable, "-P", "-m", "pipeline.stage", stage]
    environment = hardware.stage_environment()
    child = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, preexec_fn=hardware.die_with_parent)
    way_on = "the same command" + (" without --fresh" if fresh == "always" else "") + " goes on from what is committed"
    try:
        child.communicate(order.encode())
        code = child.returncode
    except KeyboardInterrupt:
        child.wait()  # the terminal's ctrl-C reached the child too
        say(f"stopped; {way_on}")
        return 130
    if code < 0:
        why = " (by the system, where memory ran out)" if -code == signal.SIGKILL else ""
        say(f"{stage} was killed by {signal.Signals(-code).name}{why}; {way_on}")
        return 128 - code
    return code
