"""Tasks of lm-evaluation-harness, by name: it asks every arm, behind vLLM's own HTTP server, and scores the answers.

Its figure is given as it stands; ours are the intervals, and the comparison of arms, which pairs what it logs per item.
"""

import copy
import importlib.metadata
import json
import os
import re
import secrets
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import isclose, nan
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline import config, statistics
from pipeline.console import progress, say
from pipeline.errors import UserError
from pipeline.eval_sets import benchmarks
from pipeline.inference import http_server
from pipeline.inference.engine_args import engine_settings
from pipeline.inference.kv_cache import Load
from pipeline.models.tokenizer.chat_template import ChatTemplate
from pipeline.records import HARNESS
from pipeline.run.commit import Stage
from pipeline.run.files import file_hash, first_line, write_json
from pipeline.statistics import Figure

MAX_LOGPROBS = 20  # that its requests may ask for
NO_FILTER = "none"
Rows = list[dict[str, Any]]
Values = dict[tuple[str, int], float]  # by metric and item: groups have those of several metrics


@dataclass
class HarnessResults:
    """What the tasks found; all empty where none are named."""

    arms: dict[str, dict[str, Figure | None]] = field(default_factory=dict)  # section `harness` of each arm
    comparisons: dict[str, Figure | None] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)


def fingerprint(settings: config.Harness) -> dict[str, Any]:
    """What changes the figures beside the settings: its version, the files of the user's own tasks.

    Raises UserError where lm-evaluation-harness is not installed, or has no such task.
    """
    if not settings.tasks:
        return {}
    benchmarks.check(settings)
    folder = Path(settings.folder) if settings.folder else None
    return {
        "evaluate.harness.version": importlib.metadata.version("lm_eval"),
        "evaluate.harness.files": _own_files(folder) if folder else {},
    }


def run(
    settings: config.Evaluate,
    folders: dict[str, Path],
    engine_of: Callable[[str, Path], dict[str, Any]],
    templates: dict[str, ChatTemplate],
    stage: Stage,
) -> HarnessResults:
    """Every arm on every task, one arm's server at a time; arms that a stopped try finished are read back.

    `templates` are by arm.

    Writes harness.parquet: what each item asked, what came, its value. Raises UserError where a server or a task fails.
    """
    if not settings.harness.tasks:
        return HarnessResults()
    found: dict[str, Any] = {}
    with progress("arms") as bar:
        task = bar.add_task(f"lm-evaluation-harness: {', '.join(settings.harness.tasks)}", total=len(folders), note="")
        for arm, folder in folders.items():
            path = _path(stage, arm)
            if not path.exists():
                write_json(path, _scored(settings, arm, folder, engine_of(arm, folder), templates[arm]))
            found[arm] = json.loads(path.read_text())
            bar.update(task, advance=1, note=arm)
    rows = [{"arm": arm, **row} for arm in found for row in found[arm]["rows"]]
    stage.commit(pa.Table.from_pylist(rows, schema=HARNESS), "harness.parquet")
    draws = (settings.bootstrap, settings.seed)
    values = {arm: _values(found[arm]) for arm in found}
    return HarnessResults(
        arms=statistics.defined(
            {
                arm: {name: _figure(value, values[arm].get(name), *draws) for name, value in of["values"].items()}
                for arm, of in found.items()
            }
        ),
        comparisons=statistics.defined(_comparisons(values, *draws)),
        files=[stage.path / "harness.parquet"],
    )


def clear(stage: Stage, arms: dict[str, Path]) -> None:
    """Take away what only a stopped try would need."""
    for arm in arms:
        _path(stage, arm).unlink(missing_ok=True)


def scored(
    settings: config.Harness, arm: str, folder: Path, port: int, key: str, context_tokens: int, template: ChatTemplate
) -> dict[str, Any]:
    """`{"values": {name: figure}, "groups": {name: names}, "rows": [...]}` of the model `arm` on `port`."""
    model = benchmarks.module("models.openai_completions").LocalCompletionsAPI(
        model=arm,
        base_url=f"http://{http_server.HOST}:{port}/v1/completions",
        tokenizer=str(folder),
        tokenizer_backend="huggingface",
        header={"Authorization": f"Bearer {key}"},  # an instance: it logs the arguments of one that it makes itself
        max_length=context_tokens,
        num_concurrent=settings.concurrency,
    )
    model.tokenizer = copy.copy(template.tokenizer)
    model.tokenizer.apply_chat_template = template.apply  # it would leave out a system message that is refused
    with _no_proxy_here():
        results = benchmarks.module("evaluator").simple_evaluate(
            model=model,
            tasks=list(settings.tasks),
            num_fewshot=settings.num_fewshot,
            limit=settings.limit,
            apply_chat_template=settings.chat_template,
            bootstrap_iters=0,  # its standard errors are of unpaired items
            task_manager=benchmarks.module("tasks").TaskManager(include_path=settings.folder),
        )
    return {"values": _own_values(results), "groups": _groups(results), "rows": _rows(results)}


@contextmanager
def _no_proxy_here() -> Iterator[None]:
    """Keep requests to this machine, and the key in them, from a proxy; data sets may still come through it.

    Of one request at a time it asks with `requests`, which takes HTTP_PROXY for 127.0.0.1 too; of several with aiohttp,
    which takes none.
    """
    earlier = os.environ.get("no_proxy")
    others = earlier or os.environ.get("NO_PROXY")  # the small one is read first
    os.environ["no_proxy"] = ",".join(filter(None, [others, http_server.HOST]))
    try:
        yield
    finally:
        if earlier is None:
            del os.environ["no_proxy"]
        else:
            os.environ["no_proxy"] = earlier


def _scored(
    settings: config.Evaluate, arm: str, folder: Path, engine: dict[str, Any], template: ChatTemplate
) -> dict[str, Any]:
    port, key = http_server.free_port(), secrets.token_urlsafe(24)
    say(f"evaluate: starting a vLLM server with {arm} for {', '.join(settings.harness.tasks)}")
    engine = {**engine_settings(str(folder), engine, MAX_LOGPROBS), "generation_config": "vllm", "seed": settings.seed}
    with http_server.running(arm, engine, port, key, Load(settings.harness.concurrency)) as process:
        if process.poll() is not None:
            raise UserError(f"the vLLM server of {arm} ended with code {process.returncode}; see its messages above")
        context_tokens = http_server.context_tokens(port, key)
        try:
            return scored(settings.harness, arm, folder, port, key, context_tokens, template)
        except Exception as error:  # any of a task's own code, of a data set that can't be had
            raise UserError(f"lm-evaluation-harness on {arm}: {first_line(error)} (evaluate.harness.tasks)") from error


def _own_files(folder: Path) -> dict[str, str]:
    """Hashes by name; without what is hidden, and the bytecode that an import of a task's own code leaves behind."""
    paths = {path.relative_to(folder): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {
        str(name): file_hash(path)
        for name, path in paths.items()
        if name.suffix != ".pyc" and not any(part.startswith(".") or part == "__pycache__" for part in name.parts)
    }


def _name(task: str, metric: str, filter_: str) -> str:
    """As `retort report --gate` takes it: letters, digits, underscores."""
    return re.sub(r"\W", "_", "_".join([task, metric] if filter_ == NO_FILTER else [task, metric, filter_]))


def _own_values(results: dict[str, Any]) -> dict[str, float]:
    """Its figures of tasks and groups, by name, of those that are numbers."""
    values = {}
    for task, figures in results["results"].items():
        for name, value in figures.items():
            metric, _, filter_ = name.partition(",")
            if filter_ and isinstance(value, int | float) and not metric.endswith("_stderr"):
                values[_name(task, metric, filter_)] = float(value)
    return values


def _groups(results: dict[str, Any]) -> dict[str, list[str]]:
    """Of each figure of a group the same figure of the tasks in it, however deep they are."""
    children = results.get("group_subtasks", {})

    def tasks(name: str) -> list[str]:
        return [task for child in children[name] for task in tasks(child)] if children.get(name) else [name]

    found = {}
    for group in filter(children.get, children):
        for figure in results["results"].get(group, {}):
            metric, _, filter_ = figure.partition(",")
            found[_name(group, metric, filter_)] = [_name(task, metric, filter_) for task in tasks(group)]
    return found


def _rows(results: dict[str, Any]) -> Rows:
    """An item's value under each metric, with what was asked and answered."""
    return [
        {
            "task": task,
            "metric": _name(task, metric, item["filter"]),
            "doc_id": item["doc_id"],
            "prompt": str(item["arguments"][0][0]),
            "target": str(item["target"]),
            "answer": json.dumps(item["filtered_resps"], ensure_ascii=False, default=str),
            "value": float(item[metric]) if isinstance(item[metric], int | float | np.number) else None,
        }
        for task, items in results["samples"].items()
        for item in items
        for metric in item["metrics"]
    ]


def _values(found: dict[str, Any]) -> dict[str, Values]:
    """Of each metric whose items have numbers, the number by item; of a group's its tasks' where it is their mean."""
    values: dict[str, Values] = defaultdict(dict)
    for row in found["rows"]:
        if row["value"] is not None:
            values[row["metric"]][row["metric"], row["doc_id"]] = row["value"]
    for group, tasks in found.get("groups", {}).items():
        pooled = {item: value for task in tasks for item, value in values.get(task, {}).items()}
        if pooled and _is(float(np.mean(list(pooled.values()))), found["values"].get(group, nan)):
            values[group] = pooled
    return values


def _is(mean: float, value: float) -> bool:
    return isclose(mean, value, rel_tol=1e-6, abs_tol=1e-9)


def _figure(value: float, of_items: Values | None, resamples: int, seed: int) -> Figure:
    """Its figure, with the interval over items where it is their mean."""
    if not of_items:
        return {"value": value, "low": None, "high": None, "num": 0}
    figure = statistics.mean(np.array(list(of_items.values())), resamples, seed)
    if not _is(figure["value"], value):
        return {"value": value, "low": None, "high": None, "num": len(of_items)}
    return {**figure, "value": value}


def _comparisons(values: dict[str, dict[str, Values]], resamples: int, seed: int) -> dict[str, Figure | None]:
    """The student against its teacher, paired by item: the difference, and what is retained (None: not defined)."""
    compared: dict[str, Figure | None] = {}
    for name, of_student in values["student"].items():
        of_teacher = values["teacher"].get(name, {})
        if of_student.keys() != of_teacher.keys():
            continue  # a metric that is not of every answer
        student, teacher = (np.array([of[key] for key in of_student]) for of in (of_student, of_teacher))
        compared[f"harness_{name}_difference_from_teacher"] = statistics.mean(student - teacher, resamples, seed)
        compared[f"harness_{name}_over_teacher"] = statistics.defined_ratio(student, teacher, resamples, seed)
    return compared


def _path(stage: Stage, arm: str) -> Path:
    return stage.path / f"harness-{arm}.json"
