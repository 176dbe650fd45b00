"""prepare: prompts in, and answers where they are to be scored. Rows of every source become conversations with stable
ids, rendered as the teacher sees them. Where more prompts are wanted, the teacher writes them (synthesis.py)."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline import hardware, models
from pipeline.config import Config, output_settings, synthesis_files
from pipeline.console import console
from pipeline.errors import UserError
from pipeline.prepare import sources, synthesis
from pipeline.prepare.instructions import Pool, template_hash
from pipeline.prepare.sources import BadRowError, Message, Messages
from pipeline.records import PROMPTS
from pipeline.rundir import RunDir, Stage, file_hash, text_hash


def run(config: Config, run_dir: RunDir) -> None:
    """Write prepare/prompts-*.parquet. Raises UserError at the first bad row, unless `prepare.bad_rows` is skip."""
    teacher = models.find(config.teacher.model, config.teacher.revision)
    tokenizer = teacher.tokenizer()
    models.check_has_template(tokenizer)
    models.check_student(config, teacher, tokenizer)
    context = _context_tokens(config, teacher)
    is_grown = config.prepare.synthesis.num_prompts is not None
    has_drafts = any(run_dir.stage_path("prepare").glob("drafts-*.jsonl"))  # dear: gone on from, or refused by name
    fingerprint = _fingerprint(config, teacher, tokenizer, context)
    stage = run_dir.begin("prepare", config, fingerprint, in_one_piece=not has_drafts)
    if stage.complete:
        return
    counts: Counter[str] = Counter(prompts=0, held_out=0, duplicates=0, bad_rows=0)
    pool, shards = Pool(), _Shards(stage, config.prepare.shard_prompts)
    for row in _prompts(config, teacher, tokenizer, context, counts):
        shards.add(row)
        if is_grown:
            pool.add(row)
    if not counts["prompts"]:
        raise UserError("prepare: the sources hold no prompt (prepare.sources)")
    facts: dict[str, Any] = {}
    draft_files: list[Path] = []
    if is_grown:
        draft_files, report = _grow(config, stage, teacher, tokenizer, context, pool, shards, counts)
        facts = {"synthesis": report}
    if counts["prompts"] == counts["held_out"]:
        raise UserError(
            f"prepare: {counts['prompts']} prompts, {counts['held_out']} of them held out: none is left to train on;"
            " give more prompts, or lower prepare.held_out_frac"
        )
    stage.finish([*shards.close(), *draft_files], dict(counts), **facts)


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
    tools: list[Any] | None = None
    completion: Message | None = None
    method: str = "source"
    parents: tuple[str, ...] = ()
    template: str | None = None
    conversation_id: str | None = None  # where it is not its own

    def identifier(self) -> str:
        return prompt_id([*self.messages, *filter(None, [self.completion])], self.tools)

    def side(self) -> str:
        """What decides the split: of answers to be scored the first turn, so that no conversation is on both sides."""
        if self.conversation_id is not None:
            return self.conversation_id
        return prompt_id(sources.first_turn(self.messages)) if self.completion else self.identifier()

    def is_held_out(self, held_out_frac: float) -> bool:
        """What the teacher wrote was made from prompts to train on, and is one."""
        return self.method == "source" and is_held_out(self.side(), held_out_frac)


def _prompts(
    config: Config, teacher: models.Model, tokenizer: Any, context: int, counts: Counter[str]
) -> Iterator[dict[str, Any]]:
    """Rows of PROMPTS: each distinct conversation once, rendered."""
    seen: set[str] = set()
    stop_ids = teacher.stop_ids(tokenizer)
    for asked in _conversations(config, counts):
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
        seen.add(identifier)
        row = _row(config, asked, rendered)
        counts["prompts"] += 1
        counts["held_out"] += row["split"] == "held_out"
        yield row
        if len(seen) == config.prepare.max_prompts:
            return


def _row(config: Config, asked: _Asked, rendered: dict[str, Any]) -> dict[str, Any]:
    """One row of PROMPTS."""
    return {
        "conversation_id": asked.side(),
        "prompt_id": asked.identifier(),
        "messages": [_stored(message) for message in asked.messages],
        "tools": None if asked.tools is None else json.dumps(asked.tools, ensure_ascii=False),
        "category": asked.category,
        "split": "held_out" if asked.is_held_out(config.prepare.held_out_frac) else "train",
        "source": asked.place,
        "method": asked.method,
        "parents": list(asked.parents),
        "template": asked.template,
        **rendered,
    }


def _grow(
    config: Config,
    stage: Stage,
    teacher: models.Model,
    tokenizer: Any,
    context: int,
    pool: Pool,
    shards: "_Shards",
    counts: Counter[str],
) -> tuple[list[Path], dict[str, Any]]:
    """Add the prompts that the teacher writes. Returns the files of its drafts, and what the manifest says of them."""
    stop_ids = teacher.stop_ids(tokenizer)

    def rendered(asked: _Asked) -> dict[str, Any]:
        columns = _rendered(config, tokenizer, asked, stop_ids)
        _check_length(config, context, **columns)
        return columns

    def fits(text: str) -> bool:
        try:
            rendered(_Asked("", "", [{"role": "user", "content": text}]))
        except UserError:
            return False
        return True

    files, report = synthesis.grow(config, stage, teacher, tokenizer, pool, fits)
    counts["synthesised"] = report["written"]
    for written in synthesis.prompts(files):
        asked = _Asked(
            place=written.place,
            category=written.category,
            messages=[{"role": "user", "content": written.text}],
            method=written.method,
            parents=written.parents,
            template=written.template,
            conversation_id=written.conversation_id,
        )
        shards.add(_row(config, asked, rendered(asked)))
        counts["prompts"] += 1
    for table in synthesis.describe(report):
        console.print(table)
    return files, report


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
        digest = template_hash(Path(source.template).read_text(encoding="utf-8")) if source.template else None
        for place, row in sources.read(source):
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
            for messages, completion in pairs:
                yield _Asked(place, category, messages, tools, completion, template=digest)


def _refuse(config: Config, place: str, problem: str, counts: Counter[str]) -> None:
    if config.prepare.bad_rows == "error":
        raise UserError(f"{place}: {problem} (prepare.bad_rows=skip goes on without such rows)")
    counts["bad_rows"] += 1


def _context_tokens(config: Config, teacher: models.Model) -> int:
    return min(teacher.context_tokens(), int(config.teacher.engine.get("max_model_len") or 1 << 31))


class _Shards:
    """Rows of PROMPTS, committed a file at a time."""

    def __init__(self, stage: Stage, num_rows: int) -> None:
        self._stage, self._num_rows = stage, num_rows
        self._rows: list[dict[str, Any]] = []
        self._files: list[Path] = []

    def add(self, row: dict[str, Any]) -> None:
        self._rows.append(row)
        if len(self._rows) == self._num_rows:
            self._commit()

    def close(self) -> list[Path]:
        """Commit what is left; returns all files, in order."""
        if self._rows:
            self._commit()
        return self._files

    def _commit(self) -> None:
        name = f"prompts-{len(self._files):05d}.parquet"
        self._stage.commit(pa.Table.from_pylist(self._rows, schema=PROMPTS), name)
        self._files.append(self._stage.path / name)
        self._rows = []


def _fingerprint(config: Config, teacher: models.Model, tokenizer: Any, context: int) -> dict[str, Any]:
    prepare = {key: value for key, value in output_settings(config.prepare).items() if key != "synthesis"}
    paths = [path for source in config.prepare.sources for path in (source.path, source.template) if path]
    for path in paths:
        if not Path(path).is_file():
            raise UserError(f"{path}: no such file (prepare.sources); paths are from where you stand")
    folders = [s.dataset for s in config.prepare.sources if s.dataset and Path(s.dataset).is_dir()]
    return {
        **{f"prepare.{key}": value for key, value in prepare.items()},
        "generate.mode": config.generate.mode,  # whether answers are read too
        # it decides which prompts fit the context
        "generate.max_tokens": config.generate.max_tokens if config.generate.mode == "sample" else None,
        **{f"prepare.file.{path}": file_hash(Path(path)) for path in paths},
        **{f"prepare.folder.{folder}": _folder_hash(Path(folder)) for folder in folders},
        "teacher.context_tokens": context,
        "teacher.model": config.teacher.model,
        "teacher.revision": config.teacher.revision,
        "teacher.chat_template_kwargs": config.teacher.chat_template_kwargs,
        "teacher.chat_template": text_hash(tokenizer.chat_template or ""),
        "teacher.tokenizer": models.tokenizer_hash(tokenizer),
        **_synthesis_fingerprint(config, teacher),
    }


def _synthesis_fingerprint(config: Config, teacher: models.Model) -> dict[str, Any]:
    """All that changes what the teacher writes; nothing where it writes no prompts."""
    settings = config.prepare.synthesis
    if settings.num_prompts is None:
        return {}
    paths = synthesis_files(settings)
    for path in paths:
        if not Path(path).is_file():
            raise UserError(f"{path}: no such file (prepare.synthesis); paths are from where you stand")
    folders = [s.dataset for s in settings.documents if s.dataset and Path(s.dataset).is_dir()]
    is_server = bool(config.teacher.server.urls)
    return {
        **{f"prepare.synthesis.{key}": value for key, value in output_settings(settings).items()},
        **{f"prepare.synthesis.file.{path}": file_hash(Path(path)) for path in paths},
        **{f"prepare.synthesis.folder.{folder}": _folder_hash(Path(folder)) for folder in folders},
        "teacher.weights": teacher.weights_hash(),
        "teacher.engine": config.teacher.engine,
        "teacher.reasoning_tags": list(config.teacher.reasoning_tags),
        "vllm": "a server's" if is_server else hardware.vllm_version(),
    }


def _folder_hash(folder: Path) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return text_hash(json.dumps([[str(path.relative_to(folder)), file_hash(path)] for path in files]))
