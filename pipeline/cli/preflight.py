"""What can be checked before the first stage, without work: files, models, benchmark tasks and servers of a config.

A judge or a guard that does not answer is an error: the run would stop there, for a judge after everything else is paid
for. A teacher's server may still be starting, and generate waits for it: if none answers yet, a line says so.
"""

import os
from pathlib import Path

from pipeline.cli import named_files
from pipeline.config import Config, Grader, output_settings
from pipeline.console import say
from pipeline.errors import UserError
from pipeline.models import lookup
from pipeline.run.rundir import RunDir


def check(config: Config, run_dir: RunDir) -> None:
    """Raises UserError for the first mistake. Servers that only finished stages needed are not asked."""
    named_files.check(config)
    lookup.check_settings(config)
    if _is_needed("evaluate", run_dir) or _has_changed(config, run_dir):
        _check_harness(config)
        _check_judge(config.evaluate.judge, "or evaluate without: evaluate.judge.url=null evaluate.judge.model=null")
    if _is_needed("filter", run_dir) and config.filter.selection.best_by == "judge":
        _check_judge(config.filter.selection.judge, "or select without: filter.selection.best_by=likelihood")
    if _is_needed("prepare", run_dir) or _is_needed("filter", run_dir):
        _check_safety(config)
    if _is_needed("generate", run_dir):
        _check_teachers(config)
        for path in config.generate.reuse:
            RunDir(Path(path)).check_files("generate")


def _is_needed(stage: str, run_dir: RunDir) -> bool:
    return run_dir.fresh != "no" or not run_dir.is_done(stage)


def _has_changed(config: Config, run_dir: RunDir) -> bool:
    """Whether evaluate was done without the judge, or with other benchmark tasks."""
    made, now = run_dir.begun_with("evaluate"), output_settings(config.evaluate)
    is_unjudged = made.get("evaluate.judge", now["judge"]) is None and config.evaluate.judge.url is not None
    return is_unjudged or made.get("evaluate.harness", now["harness"])["tasks"] != now["harness"]["tasks"]


def _check_harness(config: Config) -> None:
    if config.evaluate.harness.tasks:
        from pipeline.eval_sets import benchmarks

        benchmarks.check(config.evaluate.harness)


def _check_judge(settings: Grader, without: str) -> None:
    """Raises UserError if the judge does not answer, refuses the key, or serves another model."""
    if settings.url is None:
        return
    from pipeline.inference.servers.endpoints import KeyRefusedError, SilentError, has_model, models_at
    from pipeline.judge.client import Client
    from pipeline.judge.questions import Asker

    Asker(settings)
    client, place, name = Client(settings), settings.place, settings.model or ""
    stage = place.partition(".")[0]
    try:
        names = models_at(client.base, client.key)
        is_known = names is None or name in names or has_model(client.base, client.key, name)
    except SilentError as silent:
        raise UserError(
            f"{place}.url {settings.url}: the judge does not answer ({silent}); start it, {without}. If it"
            f" can't run beside the earlier stages, run them one by one, and start it before `retort {stage}`"
        ) from None
    except KeyRefusedError as refused:
        raise UserError(
            f"{place}.url {settings.url}: the judge refuses the key ({refused}); put it into the environment as"
            f" {settings.key_variable} ({place}.key_variable)"
        ) from None
    if not is_known:
        raise UserError(f"{place}.model: {settings.url} serves no {name}, only {_listed(names or [])}")


def _check_safety(config: Config) -> None:
    settings = config.safety
    if settings.words or settings.guard_url:
        from pipeline.screening import safety

        if settings.words:
            safety.load_words(settings.words)
        if settings.guard_url:
            _check_guard(settings.guard_url, settings.guard_model or "", os.environ.get(safety.KEY, ""), safety.KEY)


def _check_guard(url: str, name: str, key: str, variable: str) -> None:
    from pipeline.inference.servers.endpoints import KeyRefusedError, SilentError, models_at

    try:
        names = models_at(f"{url}/v1", key)
    except SilentError as silent:
        raise UserError(f"safety.guard_url {url}: the guard does not answer ({silent}); start it first") from None
    except KeyRefusedError as refused:
        raise UserError(f"safety.guard_url {url}: the guard refuses the key ({refused}); set {variable}") from None
    if names is not None and name not in names:
        raise UserError(f"safety.guard_model: {url} serves no {name}, only {_listed(names)}")


def _check_teachers(config: Config) -> None:
    """Raises UserError if a server refuses the key or serves another model; says which ones don't answer."""
    settings = config.teacher.server
    if not settings.urls:
        return
    from pipeline.inference.servers import KEY
    from pipeline.inference.servers.endpoints import KeyRefusedError, SilentError, models_at

    silent: dict[str, str] = {}
    for url in settings.urls:
        try:
            names = models_at(f"{url}/v1", os.environ.get(KEY, "")) or []
        except SilentError as problem:
            silent[url] = str(problem)
            continue
        except KeyRefusedError as refused:
            raise UserError(
                f"{url}: the server refuses the key ({refused}); set {KEY} in the environment to its key"
            ) from None
        if settings.model is not None and settings.model not in names:
            raise UserError(f"teacher.server.model: {url} serves no {settings.model}, only {_listed(names)}")
        if settings.model is None and len(names) != 1:
            raise UserError(f"{url}: serves {_listed(names)}: name one with teacher.server.model")
    if silent:
        said = ", ".join(f"{url}: {why}" for url, why in silent.items())
        then = "generate asks the others" if len(silent) < len(settings.urls) else "generate waits"
        say(f"teacher.server.urls: no answer yet ({said}); {then}, at most {settings.patience_s:g} s (patience_s)")


def _listed(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "") or "no model"
