"""prepare: prompts in, and answers where they are to be scored. Rows of every source become conversations with stable
ids, rendered as the teacher sees them."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline import contamination, corpora, licences, models
from pipeline.config import Config, output_settings
from pipeline.corpora import BadRowError
from pipeline.errors import UserError
from pipeline.prepare import screening, sources
from pipeline.prepare.comparison import Comparison
from pipeline.prepare.sources import Message, Messages
from pipeline.records import PROMPTS
from pipeline.rundir import RunDir, Stage, file_hash, folder_hash, text_hash


def run(config: Config, run_dir: RunDir) -> None:
    """Write prepare/prompts-*.parquet. Raises UserError at the first bad row, unless `prepare.bad_rows` is skip."""
    teacher = models.find(config.teacher.model, config.teacher.revision)
    tokenizer = teacher.tokenizer()
    models.check_has_template(tokenizer)
    models.check_student(config, teacher, tokenizer)
    context = _context_tokens(config, teacher)
    licence = licences.check(config, teacher)
    stage = run_dir.begin("prepare", config, _fingerprint(config, tokenizer, context), in_one_piece=True)
    if stage.complete:
        return
    counts: Counter[str] = Counter(prompts=0, held_out=0, duplicates=0, near_duplicates=0, contaminated=0, bad_rows=0)
    files: list[Path] = []
    rows: list[dict[str, Any]] = []
    screened, others = screening.Screening(config), Comparison(config.prepare, stage)
    for row in _prompts(config, teacher, tokenizer, context, counts, screened, others):
        rows.append(row)
        if len(rows) == config.prepare.shard_prompts:
            files.append(_commit(stage, rows, len(files)))
            rows = []
    if rows or not files:
        files.append(_commit(stage, rows, len(files)))
    if not counts["prompts"]:
        raise UserError("prepare: the sources hold no prompt (prepare.sources)")
    if counts["prompts"] == counts["held_out"]:
        raise UserError(
            f"prepare: {counts['prompts']} prompts, {counts['held_out']} of them held out: none is left to train on;"
            " give more prompts, or lower prepare.held_out_frac"
        )
    stage.finish([*files, *stage.notes()], dict(counts), **screened.facts(licence))


def prompt_id(messages: Messages, tools: list[Any] | None = None) -> str:
    """16 hexadecimal digits made from the conversation, and the tools where there are some, alone."""
    identity = messages if tools is None else {"messages": messages, "tools": tools}
    return hashlib.sha256(json.dumps(identity, ensure_ascii=False).encode()).hexdigest()[:16]


def is_held_out(identifier: str, held_out_frac: float) -> bool:
    """Whether a prompt is on the held-out side: its own hash decides, so it never changes side as a corpus grows."""
    return int(hashlib.sha256(f"split {identifier}".encode()).hexdigest()[:15], 16) < held_out_frac * 16**15


@dataclass(frozen=True)
class _Asked:
    """A conversation to be gone on with, and the answer that is to be scored, where that is not the teacher's own."""

    place: str
    category: str
    messages: Messages
    tools: list[Any] | None
    completion: Message | None
    origin: str = ""  # the source, without the row
    licence: str | None = None
    redacted: dict[str, int] = field(default_factory=dict)  # see records.PROMPTS
    safety: dict[str, float] = field(default_factory=dict)

    def identifier(self) -> str:
        return prompt_id([*self.messages, *filter(None, [self.completion])], self.tools)

    def side(self) -> str:
        """What decides the split: of answers to be scored the first turn, so that no conversation is on both sides."""
        return prompt_id(sources.first_turn(self.messages)) if self.completion else self.identifier()


def _prompts(
    config: Config,
    teacher: models.Model,
    tokenizer: Any,
    context: int,
    counts: Counter[str],
    screened: screening.Screening,
    others: Comparison,
) -> Iterator[dict[str, Any]]:
    """Rows of PROMPTS: each distinct conversation once, rendered."""
    seen: set[str] = set()
    stop_ids = teacher.stop_ids(tokenizer)
    for asked in screened.of(_conversations(config, counts)):
        identifier = asked.identifier()
        if identifier in seen:
            counts["duplicates"] += 1
            continue
        try:
            rendered = _rendered(config, tokenizer, asked, stop_ids)
            _check_length(config, context, **rendered)
        except UserError as problem:
            _refuse(config, asked.place, str(problem), counts)
            continue
        held_out = is_held_out(asked.side(), config.prepare.held_out_frac)
        if fault := others.fault(asked.place, identifier, held_out, asked.messages, asked.tools, asked.completion):
            counts[fault] += 1
            continue
        seen.add(identifier)
        counts["prompts"] += 1
        counts["held_out"] += held_out
        yield {
            "conversation_id": asked.side(),
            "prompt_id": identifier,
            "messages": [_stored(message) for message in asked.messages],
            "tools": None if asked.tools is None else json.dumps(asked.tools, ensure_ascii=False),
            "category": asked.category,
            "split": "held_out" if held_out else "train",
            "source": asked.place,
            **screened.columns(asked),
            **rendered,
        }
        if len(seen) == config.prepare.max_prompts:
            return


def _rendered(config: Config, tokenizer: Any, asked: _Asked, stop_ids: frozenset[int]) -> dict[str, Any]:
    """The columns of token ids. Raises UserError where the template refuses the conversation."""
    kwargs = config.teacher.chat_template_kwargs
    prompt = models.render(tokenizer, asked.messages, kwargs, asked.tools)
    if asked.completion is None:
        return {"prompt_token_ids": prompt, "completion_token_ids": None}
    completion = models.render_completion(tokenizer, asked.messages, asked.completion, kwargs, asked.tools, stop_ids)
    return {"prompt_token_ids": prompt, "completion_token_ids": completion}


def _check_length(
    config: Config, context: int, prompt_token_ids: list[int], completion_token_ids: list[int] | None
) -> None:
    P = len(prompt_token_ids)
    if completion_token_ids is None and P + config.generate.max_tokens > context:
        raise UserError(
            f"prompt too long: its {P} tokens and generate.max_tokens={config.generate.max_tokens}"
            f" exceed the teacher's context of {context}"
        )
    if completion_token_ids is not None and P + len(completion_token_ids) >= context:  # vLLM draws one token more
        raise UserError(
            f"conversation too long: its {P} + {len(completion_token_ids)} tokens do not fit the teacher's context"
            f" of {context} with one to spare"
        )


def _stored(message: Message) -> Message:
    """A message as PROMPTS has it: tool calls as JSON."""
    calls = message.get("tool_calls")
    return {**message, "tool_calls": json.dumps(calls, ensure_ascii=False)} if calls else message


def _conversations(config: Config, counts: Counter[str]) -> Iterator[_Asked]:
    """What every usable row of every source asks."""
    for source in config.prepare.sources:
        template = sources.load_template(source.template)
        for place, row in corpora.read(source):
            try:
                if isinstance(row, BadRowError):
                    raise row
                tools = sources.tools_of(row, source)
                if config.generate.mode == "score":
                    pairs = sources.pairs_of(row, source, template)
                else:
                    pairs = [(sources.prompt_of(row, source, template), None)]
            except BadRowError as problem:
                _refuse(config, place, str(problem), counts)
                continue
            category = sources.category_of(row, source)
            given = (screening.origin_of(source), sources.licence_of(row, source))
            for messages, completion in pairs:
                yield _Asked(place, category, messages, tools, completion, *given)


def _refuse(config: Config, place: str, problem: str, counts: Counter[str]) -> None:
    if config.prepare.bad_rows == "error":
        raise UserError(f"{place}: {problem} (prepare.bad_rows=skip goes on without such rows)")
    counts["bad_rows"] += 1


def _context_tokens(config: Config, teacher: models.Model) -> int:
    return min(teacher.context_tokens(), int(config.teacher.engine.get("max_model_len") or 1 << 31))


def _commit(stage: Stage, rows: list[dict[str, Any]], number: int) -> Path:
    name = f"prompts-{number:05d}.parquet"
    stage.commit(pa.Table.from_pylist(rows, schema=PROMPTS), name)
    return stage.path / name


def _fingerprint(config: Config, tokenizer: Any, context: int) -> dict[str, Any]:
    prepare = output_settings(config.prepare)
    paths = [path for source in config.prepare.sources for path in (source.path, source.template) if path]
    for path in paths:
        if not Path(path).is_file():
            raise UserError(f"{path}: no such file (prepare.sources); paths are from where you stand")
    decontaminate = contamination.content_hashes(config.prepare.decontaminate, "prepare.decontaminate")
    folders = [s.dataset for s in config.prepare.sources if s.dataset and Path(s.dataset).is_dir()]
    return {
        **{f"prepare.{key}": value for key, value in prepare.items()},
        **screening.fingerprint(config),
        "generate.mode": config.generate.mode,  # whether answers are read too
        # it decides which prompts fit the context
        "generate.max_tokens": config.generate.max_tokens if config.generate.mode == "sample" else None,
        **{f"prepare.file.{path}": file_hash(Path(path)) for path in paths},
        **{f"prepare.decontaminate.{name}": value for name, value in decontaminate.items()},
        **{f"prepare.folder.{folder}": folder_hash(Path(folder)) for folder in folders},
        "teacher.context_tokens": context,
        "teacher.model": config.teacher.model,
        "teacher.revision": config.teacher.revision,
        "teacher.chat_template_kwargs": config.teacher.chat_template_kwargs,
        "teacher.chat_template": text_hash(tokenizer.chat_template or ""),
        "teacher.tokenizer": models.tokenizer_hash(tokenizer),
    }
