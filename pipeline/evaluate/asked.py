"""What every arm is asked, and how: chat items, tasks, probes; each arm's chat format."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.eval_sets import chat_set, task_set
from pipeline.evaluate import risks
from pipeline.evaluate.tasks.chat import ChatFormat
from pipeline.models import lookup
from pipeline.models.tokenizer import tokens
from pipeline.models.tokenizer.chat_template import ChatTemplate
from pipeline.records import ARMS
from pipeline.run.rundir import RunDir


@dataclass(frozen=True)
class Questions:
    """What every arm is asked, and how the teacher was set up when it answered in generate."""

    items: list[chat_set.ChatItem]
    tasks: list[task_set.TaskItem]
    chat_formats: dict[str, ChatFormat]  # by arm
    engine_args: dict[str, Any]
    probes: risks.Probes


def arm_folders(config: Config, run_dir: RunDir, teacher: lookup.Model) -> dict[str, Path]:
    """The folder of each arm that there is: teacher, the students that train made, and evaluate.other."""
    folders = {"teacher": teacher.path, **{arm: run_dir.stage_path("train") / arm for arm in ARMS[1:-1]}}
    folders = {arm: folder for arm, folder in folders.items() if folder.is_dir()}
    if config.evaluate.other:
        folders["other"] = lookup.find(config.evaluate.other).path
    return folders


def of_run(config: Config, run_dir: RunDir, teacher: lookup.Model, folders: dict[str, Path]) -> Questions:
    fingerprint = run_dir.fingerprint("generate")
    tags = (tags[0], tags[1]) if (tags := fingerprint.get("teacher.reasoning_tags")) else None
    teachers = ChatFormat(lookup.chat_template_of(run_dir, teacher.tokenizer()), tags)
    chat_formats = dict.fromkeys(folders, teachers)
    if "other" in folders:
        tokenizer = lookup.Model("other", folders["other"]).tokenizer()
        prepared = run_dir.manifest("prepare")
        day = prepared["fingerprint"].get("teacher.date") or prepared["finished"][:10]
        chat_formats["other"] = _chat_format(tokenizer, teachers, day)
    return Questions(
        items=_items(config),
        tasks=_tasks(config),
        chat_formats=chat_formats,
        engine_args=fingerprint["teacher.engine"] | config.evaluate.engine,
        probes=risks.load(config, run_dir, chat_formats),
    )


def _chat_format(tokenizer: Any, teachers: ChatFormat, day: str) -> ChatFormat:
    """The other model's: the teacher's, if it has the teacher's tokens and its template writes the same."""
    if not tokenizer.chat_template:
        raise UserError("evaluate.other: its tokenizer has no chat template; choose an instruction-tuned model")
    if has_tokens_of(tokenizer, teachers) and tokens.renders_alike(teachers.tokenizer, tokenizer):
        return teachers
    return ChatFormat(ChatTemplate(tokenizer, day=day), teachers.reasoning_tags)


def has_tokens_of(tokenizer: Any, chat_format: ChatFormat) -> bool:
    """Whether distributions over its tokens can be compared."""
    return tokenizer is chat_format.tokenizer or tokens.difference(chat_format.tokenizer, tokenizer) is None


def _items(config: Config) -> list[chat_set.ChatItem]:
    chosen = config.evaluate.chat_set
    return chat_set.load(Path(chosen), config.evaluate.chat_items) if chosen else []


def _tasks(config: Config) -> list[task_set.TaskItem]:
    settings = config.evaluate.tasks
    return task_set.load(Path(settings.path), settings.limit) if settings.path else []
