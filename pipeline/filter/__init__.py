"""filter: which answers train sees. Decisions with reasons and scores; the answers themselves are never copied.

Two passes over the answers, a shard at a time: the first finds the run's limit of mean NLL, the second decides. Then
what is known only when all are counted drops more of them: selection, and the cap on refusals. What grows with the
corpus: 4 bytes an answer in the first; in the second 400 bytes a refusal, and what `selection` holds. What answers are
compared with is on disk (`scratch`).
"""

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline import models, scratch
from pipeline.config import Config, Filter, output_settings
from pipeline.errors import UserError
from pipeline.filter import comparison, learnability, screen, selection
from pipeline.filter.comparison import Comparison, ExactDuplicates
from pipeline.filter.learnability import Learnability
from pipeline.filter.rules import REFUSAL, RULES, Candidate, Run, confidence
from pipeline.filter.selection import Selector
from pipeline.records import DECISIONS
from pipeline.rundir import RunDir, Stage, read_committed, read_shards

Row = dict[str, Any]
COLUMNS = ["response_id", "prompt_id", "split", "category", "text", "token_ids", "token_logprobs", "reasoning_tokens"]
COLUMNS += ["finish_reason", *screen.COLUMNS]
DUPLICATE = "exact_duplicate"
REASONS = (
    *(name for name in RULES if name != REFUSAL),
    DUPLICATE,
    *learnability.REASONS,
    *screen.REASONS,
    *comparison.REASONS,
    *selection.REASONS,
    REFUSAL,
)  # in the order of the waterfall


class Marked(NamedTuple):
    """A refusal that nothing else drops: whether it stays is known when all are counted."""

    order: str  # by which refusals are kept: random, and the same in every run
    response_id: str
    split: str
    file: str


@dataclass
class Tally:
    """What was decided so far."""

    counts: Counter[str] = field(default_factory=lambda: Counter(responses=0, kept=0, kept_train=0))
    first: Counter[str] = field(default_factory=Counter)  # answers by the first reason they were dropped for
    alone: Counter[str] = field(default_factory=Counter)  # answers that each rule says no to, whatever others say
    marked: list[Marked] = field(default_factory=list)

    def add(self, row: Row, decision: Row, refused: list[str], file: str) -> None:
        """Count a decision; `refused` are the rules that say no to it, whether or not it is dropped for them."""
        self.counts["responses"] += 1
        self.first.update(decision["reasons"][:1])
        self.alone.update({*refused, *decision["reasons"]})
        if decision["kept"]:
            self.keep(row["split"], 1)
            if REFUSAL in refused:
                order = hashlib.sha256(row["response_id"].encode()).hexdigest()
                self.marked.append(Marked(order, row["response_id"], row["split"], file))

    def drop(self, decision: Row, split: str, reason: str) -> Row:
        """The decision about an answer that was kept so far, now that it is dropped."""
        self.first[reason] += 1
        self.keep(split, -1)
        return decision | {"kept": False, "reasons": [reason]}

    def keep(self, split: str, num: int) -> None:
        self.counts["kept"] += num
        self.counts["kept_train"] += num if split == "train" else 0

    def waterfall(self) -> list[Row]:
        """What each reason dropped, and would have dropped alone; None: of what others keep is all that is known."""
        alone = {name: None if name in comparison.AMONG_KEPT else self.alone[name] for name in REASONS}
        return [{"reason": name, "dropped": self.first[name], "alone": alone[name]} for name in REASONS]


def run(config: Config, run_dir: RunDir) -> None:
    """Write filter/decisions-*.parquet, one file per shard of responses. Raises UserError where nothing is kept."""
    settings = config.filter
    fingerprint = {
        **{f"filter.{key}": value for key, value in output_settings(settings).items()},
        "input.generate": run_dir.output_hash("generate"),
        **learnability.fingerprint(config),
        **screen.fingerprint(config),
        **comparison.fingerprint(config, run_dir),
    }
    stage = run_dir.begin("filter", config, fingerprint, in_one_piece=True)
    if stage.complete:
        return
    facts, tally, selector, files = _facts(run_dir, settings), Tally(), Selector(settings.selection), []
    learnable = Learnability(config, run_dir)
    screening = screen.Screen(config, models.teacher_of(run_dir).tokenizer())
    with scratch.database(stage.path) as database:
        others, exact = Comparison(config, run_dir, stage, database), ExactDuplicates(database)
        for number, answers in enumerate(_answers(run_dir, settings, facts)):
            name = f"decisions-{number:05d}.parquet"
            judged = [_decide(row, answer, settings, exact) for row, _, answer in answers]
            decisions = [decision for decision, _ in judged]
            learnable.decide(number, decisions)
            screening.decide([row for row, _, _ in answers], decisions)
            for (row, asked, answer), (decision, refused) in zip(answers, judged, strict=True):
                others.decide(row, asked["messages"], decision)
                tally.add(row, decision, refused, name)
                selector.add(row, answer.token_logprobs, decision["kept"])
            stage.commit(pa.Table.from_pylist(decisions, schema=DECISIONS), name)
            files.append(stage.path / name)
    _select(stage, tally, selector, files)
    _cap_refusals(stage, tally, settings)
    if not tally.counts["kept_train"]:
        listed = ", ".join(f"{reason} {tally.first[reason]}" for reason in REASONS if tally.first[reason])
        raise UserError(
            f"filter: of {tally.counts['responses']} answers none is kept to train on (dropped: {listed}); loosen"
            " filter.*"
        )
    limits = {"nll_limit_nats": facts.nll_limit_nats, **learnable.limits}
    stage.finish(
        [*files, *stage.notes()],
        dict(tally.counts),
        waterfall=tally.waterfall(),
        settings=_thresholds(settings) | screen.thresholds(config),
        limits=limits,
        screening=screening.facts(),
    )


def _thresholds(settings: Filter) -> Row:
    """Filter's settings by the names that the report knows them by."""
    values = output_settings(settings)
    inner = {section: values.pop(section) for section in ("selection", "learnability")}
    if settings.learnability.student is None:
        inner["learnability"] = dict.fromkeys(inner["learnability"])
    return values | {f"{section}.{name}": value for section in inner for name, value in inner[section].items()}


def duplicate_key(prompt_id: str, text: str) -> bytes:
    """16 bytes that two answers to a prompt share when they differ in case and white space alone."""
    return hashlib.sha256(f"{prompt_id} {' '.join(text.lower().split())}".encode()).digest()[:16]


def _decide(row: Row, answer: Candidate, settings: Filter, exact: ExactDuplicates) -> tuple[Row, list[str]]:
    """One row of DECISIONS as the rules have it, and the rules that say no.

    A duplicate is one only of an answer that was kept; refusals are kept for now.
    """
    verdicts = {name: verdict for name, rule in RULES.items() if (verdict := rule(answer, settings)) is not None}
    scores = {name: float(score) for name, (score, _) in verdicts.items()}
    refused = [name for name, (_, keep) in verdicts.items() if not keep]
    reasons = [name for name in refused if name != REFUSAL]
    if settings.drop_exact_duplicates:
        key = duplicate_key(row["prompt_id"], row["text"])
        of_kept = exact.of_kept(key)
        refused += [DUPLICATE] if of_kept is not None else []
        if not reasons:
            scores[DUPLICATE] = float(of_kept or False)
            reasons += [DUPLICATE] if of_kept else []
        exact.hold(key, of_kept or not reasons)
    decision = {
        "response_id": row["response_id"],
        "kept": not reasons,
        "reasons": reasons,
        "scores": list(scores.items()),
    }
    return decision, refused


def _select(stage: Stage, tally: Tally, selector: Selector, files: list[Path]) -> None:
    """Drop what selection has no need of; refusals among it are marked no more."""
    if not selector.is_on or not tally.counts["kept_train"]:
        return
    selected, dropped = selector.decisions(), set[str]()
    for path in files:
        rows = read_committed(path, DECISIONS.names).to_pylist()
        for number, row in enumerate(rows):
            reason, scores = next(selected)
            row["scores"] += scores
            if reason is not None:
                rows[number] = tally.drop(row, "train", reason)
                dropped.add(row["response_id"])
        stage.commit(pa.Table.from_pylist(rows, schema=DECISIONS), path.name)
    tally.alone.update(selector.alone())
    tally.marked = [refusal for refusal in tally.marked if refusal.response_id not in dropped]


def _cap_refusals(stage: Stage, tally: Tally, settings: Filter) -> None:
    """Drop refusals above `max_refusal_frac` of what is kept, those whose ids' hashes come last."""
    if settings.max_refusal_frac is None:
        return
    num_kept = _num_refusals(tally.counts["kept"] - len(tally.marked), settings.max_refusal_frac)
    over = sorted(tally.marked)[num_kept:]
    for name in sorted({refusal.file for refusal in over}):
        dropped = {refusal.response_id: refusal.split for refusal in over if refusal.file == name}
        rows = read_committed(stage.path / name, DECISIONS.names).to_pylist()
        for number, row in enumerate(rows):
            if row["response_id"] in dropped:
                rows[number] = tally.drop(row, dropped[row["response_id"]], REFUSAL)
        stage.commit(pa.Table.from_pylist(rows, schema=DECISIONS), name)
    others = tally.counts["responses"] - tally.alone[REFUSAL]
    tally.alone[REFUSAL] = max(0, tally.alone[REFUSAL] - _num_refusals(others, settings.max_refusal_frac))


def _num_refusals(num_others: int, max_frac: float) -> int:
    """How many refusals may stand beside so many other answers, to be no more than this share of all."""
    return int(num_others * max_frac / (1 - max_frac) + 1e-9)


def _facts(run_dir: RunDir, settings: Filter) -> Run:
    """What rules know of the run: the teacher's special tokens, and the limit of mean NLL (all answers are read)."""
    teacher = models.teacher_of(run_dir)
    tokenizer = teacher.tokenizer()
    added = {token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special}
    limit = None
    if settings.worst_nll_frac:
        shards = read_shards(run_dir, "generate", ["token_logprobs", "reasoning_tokens"])
        means = [np.empty(0, np.float32), *map(_mean_nll_nats, shards)]
        limit = confidence.nll_limit_nats(np.concatenate(means), settings.worst_nll_frac)
    return Run(frozenset(tokenizer.all_special_ids) | added, teacher.stop_ids(tokenizer), limit)


def _mean_nll_nats(shard: pa.Table) -> npt.NDArray[np.float32]:
    """Of each answer that is long enough for the rule, reasoning left out."""
    nats = _logprobs(shard)
    return np.array([-each.mean() for each in nats if len(each) >= confidence.MIN_NLL_TOKENS], np.float32)


def _logprobs(shard: pa.Table) -> list[npt.NDArray[np.float32]]:
    """`token_logprobs` of each answer, reasoning left out; views of the column."""
    column = shard.column("token_logprobs").combine_chunks()
    values, offsets = column.values.to_numpy(zero_copy_only=False), column.offsets.to_numpy()
    starts = offsets[:-1] + shard.column("reasoning_tokens").fill_null(0).to_numpy()
    return [values[start:end] for start, end in zip(starts, offsets[1:], strict=True)]


def _answers(run_dir: RunDir, settings: Filter, facts: Run) -> Iterator[list[tuple[Row, Row, Candidate]]]:
    """Each shard's answers with what was asked: both stand in the order of the prompts, and are read side by side.

    Raises UserError where prepare has other prompts than were answered.
    """
    prompts = (row for table in read_shards(run_dir, "prepare", ["prompt_id", "messages"]) for row in table.to_pylist())
    asked = next(prompts, None)
    columns = COLUMNS if settings.min_end_prob is None else [*COLUMNS, "logprobs"]
    for shard in read_shards(run_dir, "generate", columns):
        answers = []
        for row, logprobs in zip(shard.drop_columns("token_logprobs").to_pylist(), _logprobs(shard), strict=True):
            while asked is not None and asked["prompt_id"] != row["prompt_id"]:
                asked = next(prompts, None)
            if asked is None:
                raise UserError(
                    f"{run_dir.path}: prepare has other prompts now than those that were answered; generate again:"
                    " retort generate CONFIG --fresh"
                )
            answers.append((row, asked, _candidate(row, asked, logprobs, facts)))
        yield answers


def _candidate(row: Row, asked: Row, logprobs: npt.NDArray[np.float32], facts: Run) -> Candidate:
    said = [(message["role"], message["content"] or "") for message in asked["messages"]]
    return Candidate(
        text=row["text"],
        token_ids=row["token_ids"][row["reasoning_tokens"] :],
        finish_reason=row["finish_reason"],
        prompt=next((content for role, content in reversed(said) if role == "user"), ""),
        system="\n".join(content for role, content in said if role == "system"),
        token_logprobs=logprobs,
        logprobs=row.get("logprobs"),
        run=facts,
    )
