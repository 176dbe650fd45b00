"""filter: which answers train sees. Decisions with reasons and scores; the answers themselves are never copied.

Two passes over the answers, a shard at a time: the first finds the run's limit of mean NLL, the second decides. What
grows with the corpus: 4 bytes an answer in the first; in the second about 150 bytes an answer that is no duplicate of
an earlier one (its key), and 400 bytes a refusal.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline import models
from pipeline.config import Config, Filter, output_settings
from pipeline.errors import UserError
from pipeline.filter.rules import REFUSAL, RULES, Candidate, Run, confidence
from pipeline.records import DECISIONS
from pipeline.rundir import RunDir, Stage, read_committed, read_shards

Row = dict[str, Any]
COLUMNS = ["response_id", "prompt_id", "split", "text", "token_ids", "token_logprobs", "reasoning_tokens"]
COLUMNS += ["finish_reason"]
DUPLICATE = "exact_duplicate"
REASONS = (*(name for name in RULES if name != REFUSAL), DUPLICATE, REFUSAL)  # in the order of the waterfall


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
    seen: dict[bytes, bool] = field(default_factory=dict)  # keys of answers, and whether one of them was kept

    def add(self, decision: Row, split: str) -> None:
        self.counts["responses"] += 1
        if decision["kept"]:
            self.keep(split, 1)
        self.first.update(decision["reasons"][:1])

    def keep(self, split: str, num: int) -> None:
        self.counts["kept"] += num
        self.counts["kept_train"] += num if split == "train" else 0

    def waterfall(self) -> list[Row]:
        return [{"reason": name, "dropped": self.first[name], "alone": self.alone[name]} for name in REASONS]


def run(config: Config, run_dir: RunDir) -> None:
    """Write filter/decisions-*.parquet, one file per shard of responses. Raises UserError where nothing is kept."""
    settings = config.filter
    fingerprint = {
        **{f"filter.{key}": value for key, value in output_settings(settings).items()},
        "input.generate": run_dir.output_hash("generate"),
    }
    stage = run_dir.begin("filter", config, fingerprint, in_one_piece=True)
    if stage.complete:
        return
    facts, tally, files = _facts(run_dir, settings), Tally(), []
    for number, answers in enumerate(_answers(run_dir, settings, facts)):
        name = f"decisions-{number:05d}.parquet"
        decisions = [_decide(row, answer, settings, tally, name) for row, answer in answers]
        stage.commit(pa.Table.from_pylist(decisions, schema=DECISIONS), name)
        files.append(stage.path / name)
    _cap_refusals(stage, tally, settings)
    if not tally.counts["kept_train"]:
        listed = ", ".join(f"{reason} {tally.first[reason]}" for reason in REASONS if tally.first[reason])
        raise UserError(
            f"filter: of {tally.counts['responses']} answers none is kept to train on (dropped: {listed}); loosen"
            " filter.*"
        )
    limits = {"nll_limit_nats": facts.nll_limit_nats}
    stage.finish(
        files, dict(tally.counts), waterfall=tally.waterfall(), settings=output_settings(settings), limits=limits
    )


def duplicate_key(prompt_id: str, text: str) -> bytes:
    """16 bytes that two answers to a prompt share when they differ in case and white space alone."""
    return hashlib.sha256(f"{prompt_id} {' '.join(text.lower().split())}".encode()).digest()[:16]


def _decide(row: Row, answer: Candidate, settings: Filter, tally: Tally, file: str) -> Row:
    """One row of DECISIONS, counted. A duplicate is one only of an answer that was kept; refusals are kept for now."""
    verdicts = {name: verdict for name, rule in RULES.items() if (verdict := rule(answer, settings)) is not None}
    scores = {name: float(score) for name, (score, _) in verdicts.items()}
    refused = [name for name, (_, keep) in verdicts.items() if not keep]
    reasons = [name for name in refused if name != REFUSAL]
    if settings.drop_exact_duplicates:
        key = duplicate_key(row["prompt_id"], row["text"])
        of_kept = tally.seen.get(key)
        refused += [DUPLICATE] if of_kept is not None else []
        if not reasons:
            scores[DUPLICATE] = float(of_kept or False)
            reasons += [DUPLICATE] if of_kept else []
        tally.seen[key] = of_kept or not reasons
    tally.alone.update(refused)
    if REFUSAL in refused and not reasons:
        order = hashlib.sha256(row["response_id"].encode()).hexdigest()
        tally.marked.append(Marked(order, row["response_id"], row["split"], file))
    decision = {
        "response_id": row["response_id"],
        "kept": not reasons,
        "reasons": reasons,
        "scores": list(scores.items()),
    }
    tally.add(decision, row["split"])
    return decision


def _cap_refusals(stage: Stage, tally: Tally, settings: Filter) -> None:
    """Drop refusals above `max_refusal_frac` of what is kept, those whose ids' hashes come last."""
    if settings.max_refusal_frac is None:
        return
    counts = tally.counts
    num_kept = _num_refusals(counts["kept"] - len(tally.marked), settings.max_refusal_frac)
    over = sorted(tally.marked)[num_kept:]
    for name in sorted({refusal.file for refusal in over}):
        dropped = {refusal.response_id for refusal in over if refusal.file == name}
        rows = read_committed(stage.path / name, DECISIONS.names).to_pylist()
        changed = [r | {"kept": False, "reasons": [REFUSAL]} if r["response_id"] in dropped else r for r in rows]
        stage.commit(pa.Table.from_pylist(changed, schema=DECISIONS), name)
    for refusal in over:
        tally.keep(refusal.split, -1)
    tally.first[REFUSAL] += len(over)
    others = counts["responses"] - tally.alone[REFUSAL]
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


def _answers(run_dir: RunDir, settings: Filter, facts: Run) -> Iterator[list[tuple[Row, Candidate]]]:
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
            answers.append((row, _candidate(row, asked, logprobs, facts)))
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
