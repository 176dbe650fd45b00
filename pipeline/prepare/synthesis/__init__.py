"""Prompts that the teacher writes: drafts are asked for in rounds, cleaned and judged, and those that pass are taken.

What is asked for draft number n of a method does not depend on the drafts before it; those decide only how many more
are needed, and whether it is a duplicate. So the same seed gives the same prompts, and a try that was killed goes on
with the round that it was in.

A draft passes what a source's prompt passes: personal data is taken out before it is judged or kept, it gets safety
labels, and it may repeat neither an evaluation item nor, nearly, another prompt.

The split: drafts are made from prompts of the train side alone, and what comes of them is on the train side too,
whatever its hash says. The held-out side holds prompts of the sources alone; the teacher is shown none of them here,
and a draft that is like one is dropped. What is made of a single prompt has its
conversation_id, so that train does not validate on the one what it learnt of the other.
"""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.table import Table

from pipeline.config import Config
from pipeline.console import progress, say
from pipeline.errors import UserError
from pipeline.inference.child_engine import ChildEngine
from pipeline.inference.kv_cache import Load
from pipeline.models import lookup
from pipeline.models.tokenizer import reasoning, tokens
from pipeline.models.tokenizer.chat_template import ChatTemplate
from pipeline.prepare.conversations import Asked
from pipeline.prepare.screening import Screening
from pipeline.prepare.synthesis import diversity, drafts
from pipeline.prepare.synthesis.instructions import Instruction, InstructionPool, Plan
from pipeline.run.commit import Stage
from pipeline.run.files import json_lines, write_text
from pipeline.text.words import words

Row = dict[str, Any]
MAX_DRAFTS_PER_PROMPT = 20  # a method that needs more is given up
SLACK = 1.2  # drafts asked for, over what the yield so far says is needed
AMONG_OTHERS = (None, "contaminated", "near_duplicates")  # reasons that a kept round's rows are held to anew
KEYS = {"name", "raw", "draft", "passage", "prompt", "reason"}


@dataclass
class MethodYield:
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
    config: Config,
    stage: Stage,
    teacher: lookup.Model,
    template: ChatTemplate,
    pool: InstructionPool,
    judge: "DraftReader",
) -> tuple[list[Path], Row]:
    """Write prepare/drafts-*.jsonl, round by round, until enough are taken; rounds already there are kept.

    Returns the files, and what the manifest says of them. Raises UserError where there is nothing to make drafts from,
    and where none could be taken.
    """
    settings = config.prepare.synthesis
    missing = max(0, (settings.num_prompts or 0) - len(pool.texts))
    if not missing:
        say(
            f"prepare: the teacher writes no prompt: the sources give {len(pool.texts)}, and"
            f" prepare.synthesis.num_prompts={settings.num_prompts} counts those too"
        )
    tallies = {method: MethodYield(wanted) for method, wanted in shared_out(missing, settings.shares()).items()}
    plan = Plan(config, template, pool, [method for method, tally in tallies.items() if tally.wanted])
    files: list[Path] = []
    with ExitStack() as stack, progress("prompts") as bar:
        task = bar.add_task("synthesis", total=missing, note="")
        served: ChildEngine | None = None
        while numbers := next_round(tallies, settings.round_drafts):
            asked = [plan.instruction(method, number) for method, of in numbers.items() for number in of]
            path = stage.path / f"drafts-{len(files):05d}.jsonl"
            files.append(path)
            if path.exists():
                for row in _planned(path, asked):
                    tallies[row["prompt"]["method"]].add(row["reason"])
                    judge.judge_again(row)
            else:
                if served is None:
                    served = stack.enter_context(_served(config, teacher))
                made = judge.drafts(path, list(_answers(config, served, asked)))
                for draft in made:
                    tally = tallies[draft.asked.method]
                    judge.judge_among_others(draft, is_needed=tally.written < tally.wanted)
                    tally.add(draft.reason)
                write_text(path, "".join(json.dumps(draft.row(), ensure_ascii=False) + "\n" for draft in made))
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


def prompts(files: list[Path]) -> Iterator[Asked]:
    """The prompts that were taken, in the order of their drafts."""
    for path in files:
        for row in read_drafts(path):
            if row["reason"] is None:
                yield _asked_again(row)


def shared_out(total: int, shares: dict[str, float]) -> dict[str, int]:
    """Whole numbers in proportion to the shares, that sum to the total (largest remainders)."""
    exact = {name: total * share for name, share in shares.items()}
    whole = {name: int(value) for name, value in exact.items()}
    by_remainder = sorted(exact, key=lambda name: whole[name] - exact[name])
    for name in by_remainder[: total - sum(whole.values())]:
        whole[name] += 1
    return whole


def next_round(tallies: dict[str, MethodYield], round_drafts: int) -> dict[str, range]:
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
        rows = [json.loads(line) for line in json_lines(path) if line]
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


@dataclass
class _Draft:
    """What came of an instruction."""

    instruction: Instruction
    raw: str
    text: str
    asked: Asked  # the prompt that it is, if it is taken
    reason: str | None

    def row(self) -> Row:
        passage = self.instruction.passage
        return {
            "name": self.instruction.name,
            "raw": self.raw,
            "draft": self.text,
            "passage": passage and passage.text,
            "prompt": asdict(self.asked),
            "reason": self.reason,
        }


class DraftReader:
    """Turns answers into drafts, each with the reason for which it was dropped, or None.

    `fault` tells why a prompt can't stand beside those that there are; one that can joins them.
    """

    def __init__(
        self,
        config: Config,
        tokenizer: Any,
        pool: InstructionPool,
        screened: Screening,
        fault: Callable[[Asked], str | None],
    ) -> None:
        self._tokenizer, self._tags, self._screened, self._fault = (
            tokenizer,
            config.teacher.reasoning_tags,
            screened,
            fault,
        )
        self._special_ids = tokens.special_ids(tokenizer)
        self._scripts = drafts.scripts_of(pool.texts)
        self._seen = {_key(text) for text in pool.texts}

    def drafts(self, path: Path, answered: list[tuple[Instruction, Row | None]]) -> list[_Draft]:
        """A round's drafts, judged each by itself; an answer is None where the instruction left no room for one."""
        made = [
            self._draft(f"{path.parent.name}/{path.name}:{number}", instruction, answer)
            for number, (instruction, answer) in enumerate(answered, 1)
        ]
        sound = [draft for draft in made if draft.reason is None]
        for draft, asked in zip(sound, self._screened.labelled([draft.asked for draft in sound]), strict=True):
            draft.asked = asked
            draft.reason = "unsafe" if self._screened.is_unsafe(asked) else None
        return made

    def judge_among_others(self, draft: _Draft, is_needed: bool) -> None:
        """Give a draft that is sound the reason for which it can't stand beside the prompts before it, if there is."""
        if draft.reason is not None:
            return
        key = _key(draft.asked.messages[0]["content"])
        if key in self._seen:
            draft.reason = "duplicate"
        elif not is_needed:
            draft.reason = "not_needed"
        else:
            draft.reason = self._fault(draft.asked)
        if draft.reason is None:
            self._seen.add(key)

    def judge_again(self, row: Row) -> None:
        """Take note of a row of a round that is there already, as when it was made."""
        if row["reason"] in AMONG_OTHERS:
            asked = _asked_again(row)
            self._fault(asked)
            if row["reason"] is None:
                self._seen.add(_key(asked.messages[0]["content"]))

    def _draft(self, place: str, of: Instruction, answer: Row | None) -> _Draft:
        raw, is_ended, has_control_tokens = ("", False, False) if answer is None else self._read(of, answer)
        question = self._screened.redacted(_asked(place, of, raw))
        raw = question.messages[0]["content"]
        text = drafts.clean(raw)
        if answer is None:
            reason = "no_room"
        elif self._screened.is_personal(question):
            reason = "personal"
        else:
            subject = of.subject
            reason = drafts.reason(drafts.Draft(text, is_ended, has_control_tokens, self._scripts, subject))
        asked = _asked(place, of, text)
        if of.passage is not None:
            asked = _asked(place, of, f"{of.passage.text}\n\n{text}", question=text)
        redacted = Counter(question.redacted) + Counter(of.passage.redacted if of.passage else {})
        return _Draft(of, raw, text, replace(asked, redacted=dict(redacted)), reason)

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


def _asked(place: str, of: Instruction, text: str, question: str | None = None) -> Asked:
    """A text as the prompt that came of an instruction."""
    return Asked(
        place,
        of.category,
        [{"role": "user", "content": text}],
        origin=of.passage.origin if of.passage else "",
        licence=of.licence,
        method=of.method,
        parents=of.parents,
        template=of.template,
        conversation_id=of.conversation_id,
        question=question,
    )


def _asked_again(row: Row) -> Asked:
    """The prompt of a draft's row, as it was written."""
    return Asked(**{**row["prompt"], "parents": tuple(row["prompt"]["parents"])})


def _served(config: Config, teacher: lookup.Model) -> ChildEngine:
    server, load = config.teacher.server, Load(config.prepare.synthesis.round_drafts)
    if not server.urls:
        say(f"starting vLLM with {teacher.name}")
    return ChildEngine("the teacher", str(teacher.path), config.teacher.engine, load, server)


def _answers(config: Config, served: ChildEngine, asked: list[Instruction]) -> Iterator[tuple[Instruction, Row | None]]:
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


def _check_yield(tallies: dict[str, MethodYield]) -> None:
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
