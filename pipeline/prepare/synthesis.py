"""Prompts that the teacher writes: drafts are asked for in rounds, cleaned and judged, and those that pass are taken.

What is asked for draft number n of a method does not depend on the drafts before it; those decide only how many more
are needed, and whether it is a duplicate. So the same seed gives the same prompts, and a try that was killed goes on
with the round that it was in.

The split: drafts are made from prompts of the train side alone, and what comes of them is on the train side too,
whatever its hash says. The held-out side holds prompts of the sources alone; the teacher is shown none of them here,
and a draft with the same words as one is dropped as a duplicate. What is made of a single prompt has its
conversation_id, so that train does not validate on the one what it learnt of the other.
"""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

from pipeline import models, reasoning
from pipeline.config import Config
from pipeline.console import progress, say
from pipeline.errors import UserError
from pipeline.prepare import diversity, drafts
from pipeline.prepare.drafts import words
from pipeline.prepare.instructions import Instruction, Plan, Pool
from pipeline.rundir import Stage, write_text
from pipeline.served import Served

Row = dict[str, Any]
MAX_DRAFTS_PER_PROMPT = 20  # a method that needs more is given up
SLACK = 1.2  # drafts asked for, over what the yield so far says is needed
MEMORY_SHARE = 0.4
KEYS = {"name", "method", "template", "category", "parents", "conversation_id", "passage", "raw", "draft", "reason"}


@dataclass(frozen=True)
class Written:
    """A prompt that was taken: the place of its draft, its text, and its provenance."""

    place: str
    text: str
    category: str
    method: str
    parents: tuple[str, ...]
    template: str
    conversation_id: str | None


@dataclass
class Tally:
    """What has come of one method."""

    wanted: int
    drafts: int = 0
    written: int = 0
    reasons: Counter[str] = field(default_factory=Counter)

    def add(self, reason: str | None) -> None:
        self.drafts += 1
        if reason is None:
            self.written += 1
        else:
            self.reasons[reason] += 1

    def next_drafts(self) -> int:
        """How many more drafts are likely to be needed; 0 where none are, or too many have been made."""
        missing = self.wanted - self.written
        yield_frac = (self.written + 1) / (self.drafts + 2)  # Laplace's rule: a half, to begin with
        left = MAX_DRAFTS_PER_PROMPT * self.wanted - self.drafts
        return max(0, min(left, math.ceil(SLACK * missing / yield_frac))) if missing > 0 else 0


def grow(
    config: Config, stage: Stage, teacher: models.Model, tokenizer: Any, pool: Pool, fits: Callable[[str], bool]
) -> tuple[list[Path], Row]:
    """Write prepare/drafts-*.jsonl, round by round, until enough are taken; rounds already there are kept.

    Returns the files, and what the manifest says of them. `fits` tells whether the teacher could answer a prompt.
    Raises UserError where there is nothing to make drafts from, and where none could be taken.
    """
    settings = config.prepare.synthesis
    missing = max(0, (settings.num_prompts or 0) - len(pool.texts))
    tallies = {method: Tally(wanted) for method, wanted in shared_out(missing, settings.shares()).items()}
    plan = Plan(config, tokenizer, pool, [method for method, tally in tallies.items() if tally.wanted])
    judge = _Judge(config, tokenizer, pool, fits)
    files: list[Path] = []
    with ExitStack() as stack, progress("prompts") as bar:
        task = bar.add_task("synthesis", total=missing, note="")
        served: Served | None = None
        while numbers := next_round(tallies, settings.round_drafts):
            asked = [plan.instruction(method, number) for method, of in numbers.items() for number in of]
            path = stage.path / f"drafts-{len(files):05d}.jsonl"
            files.append(path)
            if path.exists():
                for row in _planned(path, asked):
                    tallies[row["method"]].add(row["reason"])
                    judge.remember(row)
            else:
                if served is None:
                    served = stack.enter_context(_served(config, teacher))
                rows = []
                for instruction, answer in _answers(config, served, asked):
                    tally = tallies[instruction.method]
                    rows.append(judge.row(instruction, answer, is_needed=tally.written < tally.wanted))
                    tally.add(rows[-1]["reason"])
                    judge.remember(rows[-1])
                write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
            written, num_drafts = (sum(getattr(t, key) for t in tallies.values()) for key in ("written", "drafts"))
            bar.update(task, completed=written, note=f"from {num_drafts} drafts")
    _check_yield(tallies)
    texts = [row["draft"] for path in files for row in read_drafts(path) if row["reason"] is None]
    return files, {
        "wanted": missing,
        "written": len(texts),
        "methods": {method: {**vars(tally), "reasons": dict(tally.reasons)} for method, tally in tallies.items()},
        "templates": plan.templates(),
        "diversity": diversity.compare(pool.texts, texts) if texts else None,
    }


def prompts(files: list[Path]) -> Iterator[Written]:
    """The prompts that were taken, in the order of their drafts."""
    for path in files:
        for number, row in enumerate(read_drafts(path), 1):
            if row["reason"] is None:
                yield Written(
                    place=f"{path.parent.name}/{path.name}:{number}",
                    text=with_passage(row["draft"], row["passage"]),
                    category=row["category"],
                    method=row["method"],
                    parents=tuple(row["parents"]),
                    template=row["template"],
                    conversation_id=row["conversation_id"],
                )


def with_passage(draft: str, passage: str | None) -> str:
    """The prompt: a question stands below the passage that it is about."""
    return draft if passage is None else f"{passage}\n\n{draft}"


def shared_out(total: int, shares: dict[str, float]) -> dict[str, int]:
    """Whole numbers in proportion to the shares, that sum to the total (largest remainders)."""
    exact = {name: total * share for name, share in shares.items()}
    whole = {name: int(value) for name, value in exact.items()}
    by_remainder = sorted(exact, key=lambda name: whole[name] - exact[name])
    for name in by_remainder[: total - sum(whole.values())]:
        whole[name] += 1
    return whole


def next_round(tallies: dict[str, Tally], round_drafts: int) -> dict[str, range]:
    """The numbers of each method's next drafts, at most `round_drafts` in all; empty where enough have been made."""
    needed = {method: num for method, tally in tallies.items() if (num := tally.next_drafts())}
    total, left = sum(needed.values()), round_drafts
    numbers: dict[str, range] = {}
    for method, num in needed.items():
        if total > round_drafts:
            num = min(left, max(1, num * round_drafts // total))
        left -= num
        if num:
            numbers[method] = range(tallies[method].drafts, tallies[method].drafts + num)
    return numbers


def read_drafts(path: Path) -> list[Row]:
    """The rows of a round. Raises UserError where the file is damaged."""
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
        is_whole = all(isinstance(row, dict) and row.keys() == KEYS for row in rows)
    except ValueError:
        is_whole, rows = False, []
    if not is_whole:
        raise UserError(f"{path}: damaged; delete it and run the same command again")
    return rows


def describe(report: Row) -> list[Table]:
    """What came of each method, and how various the prompts are before and after, as tables."""
    by_method = Table("method", "wanted", "drafts", "taken", "yield", "dropped", title="prompts that the teacher wrote")
    for method, tally in report["methods"].items():
        dropped = ", ".join(f"{name} {num}" for name, num in Counter(tally["reasons"]).most_common())
        yield_frac = tally["written"] / max(1, tally["drafts"] - tally["reasons"].get("not_needed", 0))
        cells = (tally["wanted"], tally["drafts"], tally["written"])
        by_method.add_row(method, *map(str, cells), f"{yield_frac:.0%}", dropped)
    tables = [by_method]
    if measured := report["diversity"]:
        title = (
            f"diversity (distinct n-grams of {measured['words']} words; {measured['clusters']} clusters of all prompts,"
            f" of which {measured['samples']} prompts reach)"
        )
        table = Table("", "prompts", "1-grams", "2-grams", "3-grams", "clusters hit", "as of even size", title=title)
        for name in ("sources", "written", "all"):
            of = measured[name]
            shares = [of[f"distinct_{n}_frac"] for n in diversity.NGRAMS] + [of["cluster_coverage_frac"]]
            cells = [f"{share:.0%}" for share in shares]
            table.add_row(name, str(of["prompts"]), *cells, f"{of['num_clusters_even']:.1f}")
        tables.append(table)
    for table in tables:
        table.title_justify = "left"
    return tables


class _Judge:
    """Turns answers into rows of drafts, each with the reason for which it was dropped, or None."""

    def __init__(self, config: Config, tokenizer: Any, pool: Pool, fits: Callable[[str], bool]) -> None:
        self._tokenizer, self._tags, self._fits = tokenizer, config.teacher.reasoning_tags, fits
        self._special_ids = models.special_ids(tokenizer)
        self._scripts = drafts.scripts_of(pool.texts)
        self._seen = {_key(text) for text in pool.texts}

    def row(self, asked: Instruction, answer: Row | None, is_needed: bool) -> Row:
        """What came of an instruction; `answer` is None where it left the teacher no room for one."""
        raw, draft, reason = "", "", "no_room"
        if answer is not None:
            raw, is_ended, has_control_tokens = self._read(asked, answer)
            draft = drafts.clean(raw)
            reason = drafts.reason(drafts.Draft(draft, is_ended, has_control_tokens, self._scripts, asked.subject))
            reason = reason or self._reason_among_others(with_passage(draft, asked.passage), is_needed)
        return {
            "name": asked.name,
            "method": asked.method,
            "template": asked.template,
            "category": asked.category,
            "parents": list(asked.parents),
            "conversation_id": asked.conversation_id,
            "passage": asked.passage,
            "raw": raw,
            "draft": draft,
            "reason": reason,
        }

    def remember(self, row: Row) -> None:
        """Take note of a prompt that was taken."""
        if row["reason"] is None:
            self._seen.add(_key(with_passage(row["draft"], row["passage"])))

    def _reason_among_others(self, prompt: str, is_needed: bool) -> str | None:
        if not self._fits(prompt):
            return "too_long"
        if _key(prompt) in self._seen:  # near duplicates belong here
            return "duplicate"
        return None if is_needed else "not_needed"

    def _read(self, asked: Instruction, answer: Row) -> tuple[str, bool, bool]:
        """`(text, whether it was ended, whether special tokens stand before that)`; the first ends a user's turn."""
        token_ids, is_stopped = answer["token_ids"], answer["finish_reason"] == "stop"
        if asked.method == "magpie":
            ends = (place for place, token in enumerate(token_ids) if token in self._special_ids)
            end = next(ends, None)
            text = self._tokenizer.decode(token_ids[:end], skip_special_tokens=True)
            return text, is_stopped or end is not None, False
        parts = reasoning.split(self._tokenizer, self._tags, asked.token_ids, token_ids)
        body = token_ids[parts.num_tokens : -1 if is_stopped else None]
        return parts.text, is_stopped, any(token in self._special_ids for token in body)


def _served(config: Config, teacher: models.Model) -> Served:
    server = config.teacher.server
    if not server.urls:
        say(f"starting vLLM with {teacher.name}")
    return Served("the teacher", str(teacher.path), config.teacher.engine, MEMORY_SHARE, server)


def _answers(config: Config, served: Served, asked: list[Instruction]) -> Iterator[tuple[Instruction, Row | None]]:
    """Each instruction with the teacher's answer, None where it does not fit the context with room for a draft."""
    settings = config.prepare.synthesis
    served.wait_until_ready()
    requests = {
        instruction.name: {
            "request_id": instruction.name,
            "prompt_token_ids": instruction.token_ids,
            "max_tokens": settings.max_tokens,
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "seed": int(hashlib.sha256(f"{settings.seed} {instruction.name}".encode()).hexdigest()[:8], 16),
        }
        for instruction in asked
        if len(instruction.token_ids) + settings.max_tokens <= served.context_tokens
    }
    answers = served.ask(list(requests.values()))["answers"] if requests else []
    by_name = {answer["request_id"]: answer for answer in answers}
    for instruction in asked:
        yield instruction, by_name.get(instruction.name)


def _planned(path: Path, asked: list[Instruction]) -> list[Row]:
    """A round that is there already. Raises UserError where it is not the one that is planned."""
    rows = read_drafts(path)
    if [row["name"] for row in rows] != [instruction.name for instruction in asked]:
        raise UserError(f"{path}: holds other drafts than planned; delete it and those after it, and run again")
    return rows


def _check_yield(tallies: dict[str, Tally]) -> None:
    """Say of each method that gave too little what became of its drafts. Raises UserError where none gave anything."""
    for method, tally in tallies.items():
        if tally.written < tally.wanted:
            listed = ", ".join(f"{name} {num}" for name, num in tally.reasons.most_common())
            say(f"prepare: {method} gave {tally.written} of {tally.wanted} prompts in {tally.drafts} drafts ({listed})")
    if any(tally.wanted for tally in tallies.values()) and not any(tally.written for tally in tallies.values()):
        raise UserError(
            "prepare.synthesis: none of the teacher's drafts could be taken (the reasons are above, the drafts in"
            " prepare/drafts-*.jsonl); change the templates or the sampling, or take another teacher"
        )


def _key(text: str) -> str:
    """What two prompts with the same words share."""
    return hashlib.sha256(" ".join(words(text)).encode()).hexdigest()
