"""The verbs that make something: a run, a stage, a server, an export. Heavy modules are imported inside them."""

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

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
)
from pipeline.console import say

app = typer.Typer()


@app.command()
def run(config: ConfigPath, overrides: Overrides = None, fresh: FreshRun = 0, accept: Accept = None) -> None:
    """Run all stages from prepare to evaluate, then write the report. Run the same command to resume.

    Example: retort run configs/quickstart.yaml name=trial train.epochs=3
    """
    from pipeline.cli import preflight, stages, target
    from pipeline.run.rundir import RunDir

    loaded = target.load(config, overrides)
    run_dir = RunDir(loaded.run_path, "changed" if fresh else "no", tuple(accept or []), fresh > 1)
    preflight.check(loaded.config, run_dir)
    run_dir.check_accept(stages.RUN_STAGES)
    for stage in stages.RUN_STAGES:
        say(f"── {stage}")
        stages.do(stage, loaded.config, run_dir)
        if stage in ("prepare", "filter"):
            stages.check_held_out(RunDir(loaded.run_path), stage)
    stages.report(loaded.run_path)
    stages.planned_and_actual(RunDir(loaded.run_path))


@app.command()
def plan(config: ConfigPath, overrides: Overrides = None) -> None:
    """Answer a few prompts and estimate what generate will take: time, disk, GPU-hours, cost, and a sufficient K.

    Example: retort plan configs/qwen3-gpu.yaml generate.price_per_hour=9.5
    """
    from pipeline.cli import preflight, stages, target
    from pipeline.run.rundir import RunDir

    loaded = target.load(config, overrides)
    run_dir = RunDir(loaded.run_path)
    preflight.check(loaded.config, run_dir)
    for stage in ("prepare", "generate.pilot"):
        stages.do(stage, loaded.config, run_dir)


@app.command()
def serve(
    config: ConfigPath,
    overrides: Overrides = None,
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="Port on 127.0.0.1.")] = 8000,
) -> None:
    """Serve the teacher with vLLM on this machine, for `teacher.server.urls`, until ctrl-C.

    The key is RETORT_SERVER_KEY from the environment, or a new one that is shown once.

    Example: retort serve configs/quickstart.yaml --port 8000
    """
    from pipeline.cli import target
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
        "Write what a run has made for use elsewhere: the student (the default), or the corpus.\n\n"
        "Example: retort export configs/quickstart.yaml"
    ),
)
app.add_typer(export_app, name="export")


def _stage_command(stage: str, summary: str) -> None:
    def command(config: ConfigPath, overrides: Overrides = None, fresh: FreshStage = 0, accept: Accept = None) -> None:
        from pipeline.cli import stages

        stages.one(stage, config, overrides, fresh, accept)

    verb = f"{stage} student" if stage == "export" else stage
    command.__doc__ = f"{summary}\n\nExample: retort {verb} configs/quickstart.yaml"
    where, name = (export_app, "student") if stage == "export" else (app, stage)
    where.command(name=name)(command)


for _name, _summary in {
    "prepare": "Read the sources, have the teacher write more prompts if asked (prepare.synthesis), render each as the"
    " teacher will see it, and hold some out.",
    "generate": "Ask the teacher every prompt through vLLM, and keep the log-probs behind each token.",
    "train": "Make the student and train it on the kept answers: cross-entropy plus a divergence from the teacher.",
    "evaluate": "Measure the student against its teacher: fidelity, tasks, chat answers, risks, speed, size.",
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
    """Decide which answers the student is trained on, with a reason for each drop.

    Example: retort filter configs/quickstart.yaml

    Example: retort filter runs/quickstart --explain 0123456789abcdef-0
    """
    from pipeline.cli import stages, target

    if not explain:
        stages.one("filter", config, overrides, fresh, accept)
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
    from pipeline.cli import stages, target
    from pipeline.export import corpus

    run_dir = target.existing(run, overrides)
    run_dir.manifest("filter")
    with run_dir.lock():
        if fresh < 2:
            stages.ask_about_corpus(run_dir)
        folder = corpus.write(run_dir, logprobs)
    say(f"corpus: {folder.resolve()}")
    if push:
        say(f"pushed: {corpus.push(folder, push)}")


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where to write; here if none is named.")] = Path(),
) -> None:
    """Write a commented config and example prompts to start from. Overwrites nothing.

    Example: retort init my-student
    """
    from pipeline.cli import init

    for path in init.write(folder):
        say(f"init: wrote {path}")
    change = "" if folder == Path() else f"{shlex.join(['cd', str(folder)])} && "
    say(f"init: put your prompts into prompts.jsonl, then: {change}retort run {init.CONFIG}")


@app.command()
def check(config: ConfigPath, overrides: Overrides = None) -> None:
    """Validate a config and print every setting with its meaning. Loads no model.

    Example: retort check configs/qwen3-gpu.yaml train.epochs=1
    """
    from pipeline import config as config_module
    from pipeline.cli import preflight, target
    from pipeline.eval_sets import eval_prompts
    from pipeline.machine import hardware
    from pipeline.prepare import sources
    from pipeline.run.rundir import RunDir

    loaded = target.load(config, overrides)
    preflight.check(loaded.config, RunDir(loaded.run_path))
    if loaded.config.teacher.engine and hardware.vllm_version() != "none":
        from pipeline.inference.engine import check_engine_args

        check_engine_args(loaded.config.teacher.engine)
    eval_prompts.check_settings(loaded.config)
    previews = list(sources.previews(loaded.config))
    sys.stdout.write(config_module.dump_explained(loaded.config))
    for line in previews:
        say(line)
    say(f"{config}: valid; `{loaded.command('run')}` writes to {loaded.run_path}")
