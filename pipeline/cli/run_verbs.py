"""The verbs about a run that exists: its state, proofs and pages. Heavy modules are imported inside them."""

import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from pipeline.cli.arguments import RunOverrides, RunPath, Runs, ShowRest
from pipeline.console import console, say
from pipeline.errors import UserError

if TYPE_CHECKING:
    from pipeline.run.rundir import RunDir

app = typer.Typer()


@app.command()
def status(run: RunPath, overrides: RunOverrides = None) -> None:
    """Show what each stage of a run has done, and what is left.

    Example: retort status runs/quickstart
    """
    from pipeline.cli import target
    from pipeline.records import STAGES

    run_dir = target.existing(run, overrides)
    table = Table("stage", "state", "finished", "seconds", "counts", title=str(run_dir.path), title_justify="left")
    for stage in STAGES:
        table.add_row(stage, *_state(run_dir, stage))
    console_out = type(console)(highlight=False)
    console_out.print(table)
    if not any(run_dir.stage_path(stage).is_dir() for stage in STAGES):
        console_out.print(f"nothing is done yet; begin: {run_dir.command('run')}", markup=False, soft_wrap=True)


def _state(run_dir: "RunDir", stage: str) -> tuple[str | Text, ...]:
    """A stage's columns after its name."""
    from pipeline.run import artifacts

    if not run_dir.is_done(stage):
        begun = (run_dir.stage_path(stage) / artifacts.STARTED).is_file()
        return "under way or stopped" if begun else "–", "", "", ""
    manifest, lost = run_dir.manifest(stage), run_dir.lost_files(stage)
    counts = ", ".join(f"{key} {value}" for key, value in manifest["counts"].items())
    state = f"[red]damaged: {len(lost)} files missing or cut short, such as {lost[0]}[/]" if lost else "done"
    return state, manifest["finished"][:16].replace("T", " "), f"{manifest['elapsed_s']:.0f}", Text(counts)


@app.command()
def verify(run: RunPath, overrides: RunOverrides = None) -> None:
    """Prove from a run's files that nothing is lost, doubled, shifted or altered. Names the first bad row.

    Example: retort verify runs/quickstart
    """
    from pipeline.cli import target
    from pipeline.run import verify as verification

    for stage, proved in verification.run(target.existing(run, overrides)):
        say(f"{stage}: {proved}")


@app.command()
def show(run: RunPath, rest: ShowRest = None) -> None:
    """Show one example through every stage: prompt, answer, log-probs, decision.

    Example: retort show runs/quickstart
    """
    from pipeline.cli import target
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
    """Print answers that filter dropped for one reason, or kept.

    Example: retort sample runs/quickstart --reason repeated_ngrams --num 10
    """
    from pipeline.cli import target
    from pipeline.report.tables import decided

    sys.stdout.write(decided.sample(target.existing(run, overrides), reason, num))


@app.command()
def compare(
    run: RunPath,
    overrides: RunOverrides = None,
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port on 127.0.0.1; 0 for any free one.")] = 0,
    seed: Annotated[int, typer.Option("--seed", help="Draws the order of the questions, and the sides.")] = 0,
) -> None:
    """Vote blind on answers of teacher and student, on a page of this machine.

    Votes go to RUN/votes.jsonl, and `retort report` counts them. Ctrl-C stops; run the same command to resume.

    Example: retort compare runs/quickstart
    """
    from pipeline import compare as comparison
    from pipeline.cli import target

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
    """Write report.html into each run. For several runs, also write comparison.html beside the first.

    With --gate, also check the runs' figures.

    A name is a figure of evaluate/scores.json (forward_kl_nats, speed_over_teacher, arms.sft_only.fidelity.nll_nats)
    or short for one: kl, reverse_kl, agreement, acceptance, loops, speed.

    Example: retort report runs/quickstart --gate "kl<0.6,speed>=1.1"
    """
    from pipeline.cli import stages, target
    from pipeline.report import gate, several

    wanted = [] if conditions is None else gate.parse(conditions)
    failed = False
    run_dirs = target.several(runs)
    if len(run_dirs) > 1:
        path = run_dirs[0].path.resolve().parent / "comparison.html"
        several.write(run_dirs, path)
        say(f"comparison: {path}")
    for run_dir in run_dirs:
        stages.report(run_dir.path)
        outcomes = gate.check(run_dir, wanted) if wanted else []
        for outcome in outcomes:
            sys.stdout.write(f"{run_dir.path.name}: {outcome.line()}\n")
        failed = failed or not all(outcome.holds for outcome in outcomes)
    if failed:
        raise typer.Exit(1)
