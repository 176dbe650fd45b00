"""What the arms answer, and how fast: each is served by vLLM in a process of its own."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from pipeline.config import Config, Evaluate
from pipeline.console import progress, say
from pipeline.eval_sets import chat_set
from pipeline.evaluate import risks, speed
from pipeline.evaluate.asked import Questions
from pipeline.evaluate.speed import memory
from pipeline.evaluate.tasks import chat
from pipeline.evaluate.tasks.chat import ChatFormat
from pipeline.inference.child_engine import ChildEngine
from pipeline.inference.kv_cache import Load
from pipeline.machine import hardware
from pipeline.models import lookup
from pipeline.records import SAMPLES
from pipeline.rows import SampleRow
from pipeline.run.commit import Stage
from pipeline.run.files import read_committed

Rows = list[SampleRow]
SPEED_FALLBACK_PROMPT = "Tell me something about the sea."


class Answered(NamedTuple):
    """What the arms said, as rows of records.SAMPLES, and how fast each was."""

    chat: Rows
    tasks: Rows
    risks: Rows
    rounds: dict[str, list[speed.Round]]
    together: bool = True  # whether all arms were up at once, and timed in turn


def serve(config: Config, stage: Stage, folders: dict[str, Path], asked: Questions) -> Answered:
    """What every arm answers, and its timings, by vLLM; arms of a group are up at once, and timed in turn."""
    settings, load_of_all = config.evaluate, _load(config, asked)
    task_settings = settings.model_copy(update={"max_tokens": settings.tasks.max_tokens})
    engines = {arm: (folder, arm_engine(arm, folder, config, asked)) for arm, folder in folders.items()}
    done = Answered([], [], [], {}, memory.are_up_together(engines, load_of_all, settings))
    for group in [engines] if done.together else [{arm: engine} for arm, engine in engines.items()]:
        say(f"evaluate: starting vLLM with {', '.join(group)}")
        with ExitStack() as stack:
            served: list[ChildEngine] = []
            for arm, (arguments, its_load) in memory.shared_out(group, load_of_all).items():
                served.append(stack.enter_context(ChildEngine(arm, str(folders[arm]), arguments, its_load)))
                if not hardware.is_cpu():  # vLLM takes what others put on a card meanwhile for its own
                    served[-1].wait_until_ready()
            for arm in served:
                arm.wait_until_ready()
            done.chat.extend(_answers("chat answers", "answers", asked.items, settings, stage, served, asked))
            of_tasks = _answers("task answers", "task-answers", asked.tasks, task_settings, stage, served, asked)
            done.tasks.extend(of_tasks)
            done.risks.extend(risks.answer(asked.probes, served, stage))
            say(f"evaluate: timing {', '.join(group)}")
            prompts = {arm.name: _speed_prompts(config, asked, asked.chat_formats[arm.name]) for arm in served}
            done.rounds.update(speed.time_arms(served, prompts, settings))
    return done


def _answers(
    what: str,
    name: str,
    items: Sequence[chat_set.ChatItem],
    settings: Evaluate,
    stage: Stage,
    served: list[ChildEngine],
    asked: Questions,
) -> Rows:
    """The arms' answers to a set; those of an arm that a stopped try finished are read back."""
    rows: Rows = []
    with progress("arms") as bar:
        task = bar.add_task(what, total=len(served), note="")
        for arm in served:
            path = _answers_path(stage, name, arm.name)
            if path.exists():
                rows += read_committed(path, SAMPLES.names).to_pylist()
            elif items:
                answers = chat.answer(arm, items, asked.chat_formats[arm.name], settings)
                stage.commit(pa.Table.from_pylist(answers, schema=SAMPLES), path.name)
                rows += answers
            bar.update(task, advance=1, note=arm.name)
    return rows


def _load(config: Config, asked: Questions) -> Load:
    """What an arm's engine will be asked."""
    settings, probes = config.evaluate, [item for probe in asked.probes.probes for item in probe.items()]
    sets: list[tuple[list[chat_set.ChatItem], int]] = [
        (asked.items, settings.max_tokens),
        ([*asked.tasks], settings.tasks.max_tokens),
        (probes, settings.risks.max_tokens),
    ]
    return memory.load_of(sets, asked.probes.openings, asked.chat_formats.values(), settings)


def _speed_prompts(config: Config, asked: Questions, chat_format: ChatFormat) -> list[list[int]]:
    questions = [item.turns[0] for item in asked.items] or [SPEED_FALLBACK_PROMPT]
    chosen = [questions[n % len(questions)] for n in range(max(config.evaluate.speed_concurrency))]
    return [chat_format.template.render([{"role": "user", "content": question}]) for question in chosen]


def arm_engine(arm: str, folder: Path, config: Config, asked: Questions) -> dict[str, Any]:
    """The teacher keeps its engine's arguments; a student keeps what is about type and length, as far as it reaches."""
    kept = asked.engine_args
    if arm != "teacher":
        kept = {k: v for k, v in kept.items() if k in {"dtype", "max_model_len", *config.evaluate.engine}}
        if kept.get("max_model_len"):  # null is the model's own
            kept["max_model_len"] = min(kept["max_model_len"], lookup.Model(arm, folder).context_tokens())
    return {**kept, "enable_prefix_caching": False}  # a repeated prompt would not be timed


def _answers_path(stage: Stage, name: str, arm: str) -> Path:
    return stage.path / f"{name}-{arm}.parquet"


def clear(stage: Stage, arms: Sequence[str]) -> None:
    """Delete what each arm had answered so far: the stage's own files have it."""
    for arm in arms:
        risks.answers_path(stage, arm).unlink(missing_ok=True)
        for name in ("answers", "task-answers"):
            _answers_path(stage, name, arm).unlink(missing_ok=True)
