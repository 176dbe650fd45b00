"""prepare: prompts in. Rows of every source become conversations with stable ids, rendered as the teacher sees them."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline import models
from pipeline.config import Config, output_settings
from pipeline.errors import UserError
from pipeline.prepare import sources
from pipeline.prepare.sources import BadRowError, Messages
from pipeline.records import PROMPTS
from pipeline.rundir import RunDir, Stage, file_hash, text_hash


def run(config: Config, run_dir: RunDir) -> None:
    """Write prepare/prompts-*.parquet. Raises UserError at the first bad row, unless `prepare.bad_rows` is skip."""
    teacher = models.find(config.teacher.model, config.teacher.revision)
    tokenizer = teacher.tokenizer()
    models.check_has_template(tokenizer)
    models.check_student(config, tokenizer)
    context = _context_tokens(config, teacher)
    stage = run_dir.begin("prepare", config, _fingerprint(config, tokenizer, context), in_one_piece=True)
    if stage.complete:
        return
    counts: Counter[str] = Counter(prompts=0, held_out=0, duplicates=0, bad_rows=0)
    files: list[Path] = []
    rows: list[dict[str, Any]] = []
    for row in _prompts(config, tokenizer, context, counts):
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
    stage.finish(files, dict(counts))


def prompt_id(messages: Messages) -> str:
    """16 hexadecimal digits made from the conversation alone."""
    return hashlib.sha256(json.dumps(messages, ensure_ascii=False).encode()).hexdigest()[:16]


def is_held_out(identifier: str, held_out_frac: float) -> bool:
    """Whether a prompt is on the held-out side: its own hash decides, so it never changes side as a corpus grows."""
    return int(hashlib.sha256(f"split {identifier}".encode()).hexdigest()[:15], 16) < held_out_frac * 16**15


def _prompts(config: Config, tokenizer: Any, context: int, counts: Counter[str]) -> Iterator[dict[str, Any]]:
    """Rows of PROMPTS: each distinct conversation once, rendered."""
    seen: set[str] = set()
    for place, category, messages in _conversations(config, counts):
        identifier = prompt_id(messages)
        if identifier in seen:
            counts["duplicates"] += 1
            continue
        try:
            token_ids = models.render(tokenizer, messages, config.teacher.chat_template_kwargs)
        except UserError as problem:
            _refuse(config, place, str(problem), counts)
            continue
        if len(token_ids) + config.generate.max_tokens > context:
            problem = (
                f"prompt too long: its {len(token_ids)} tokens and generate.max_tokens={config.generate.max_tokens}"
                f" exceed the teacher's context of {context}"
            )
            _refuse(config, place, problem, counts)
            continue
        seen.add(identifier)
        held_out = is_held_out(identifier, config.prepare.held_out_frac)
        counts["prompts"] += 1
        counts["held_out"] += held_out
        yield {
            "prompt_id": identifier,
            "messages": messages,
            "category": category,
            "split": "held_out" if held_out else "train",
            "source": place,
            "prompt_token_ids": token_ids,
        }
        if len(seen) == config.prepare.max_prompts:
            return


def _conversations(config: Config, counts: Counter[str]) -> Iterator[tuple[str, str, Messages]]:
    """`(place, category, messages)` of every usable row of every source."""
    for source in config.prepare.sources:
        template = sources.load_template(source.template)
        for place, row in sources.read(source):
            try:
                if isinstance(row, BadRowError):
                    raise row
                messages = sources.messages_of(row, source, template)
            except BadRowError as problem:
                _refuse(config, place, str(problem), counts)
                continue
            yield place, sources.category_of(row, source), messages


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
    folders = [s.dataset for s in config.prepare.sources if s.dataset and Path(s.dataset).is_dir()]
    return {
        **{f"prepare.{key}": value for key, value in prepare.items()},
        "generate.max_tokens": config.generate.max_tokens,  # it decides which prompts fit the context
        **{f"prepare.file.{path}": file_hash(Path(path)) for path in paths},
        **{f"prepare.folder.{folder}": _folder_hash(Path(folder)) for folder in folders},
        "teacher.context_tokens": context,
        "teacher.model": config.teacher.model,
        "teacher.revision": config.teacher.revision,
        "teacher.chat_template_kwargs": config.teacher.chat_template_kwargs,
        "teacher.chat_template": text_hash(tokenizer.chat_template or ""),
        "teacher.tokenizer": models.tokenizer_hash(tokenizer),
    }


def _folder_hash(folder: Path) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return text_hash(json.dumps([[str(path.relative_to(folder)), file_hash(path)] for path in files]))
