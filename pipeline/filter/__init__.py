"""filter: which answers train sees. Decisions with reasons and scores; the answers themselves are never copied.

Two passes over the answers, a shard at a time: the first finds the run's limit of mean NLL, and draws a thousand
answers of each source to tell what many share; the second decides. Then what is known only when all are counted drops
more of them: selection, and the cap on refusals. What grows with the corpus: 4 bytes an answer in the first; in the
second 400 bytes a refusal, and what `selection` and `grading` hold.
What answers are compared with is on disk (`scratch`).
"""

import hashlib
import shlex
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.config import Config, Filter, Selection, output_settings
from pipeline.console import counted, say
from pipeline.errors import UserError
from pipeline.filter import comparison, grading, learnability, rules, screen, selection
from pipeline.filter.comparison import ExactDuplicates, ResponseComparison
from pipeline.filter.learnability import LearnabilityLimits
from pipeline.filter.rules import REFUSAL, RULES, Response, Run, Verdict, confidence
from pipeline.filter.selection import Selector
from pipeline.models import lookup
from pipeline.models.tokenizer import tokens
from pipeline.records import DECISIONS
from pipeline.rows import DecisionRow
from pipeline.run import left_out, scratch
from pipeline.run.commit import Stage
from pipeline.run.files import read_committed
from pipeline.run.rundir import RunDir
from pipeline.run.shards import read_shards
from pipeline.text.boilerplate import NO_BOILERPLATE, Boilerplate, Sample, Text

Row = dict[str, Any]
COLUMNS = ["response_id", "prompt_id", "split", "category", "text", "token_ids", "token_logprobs", "reasoning_tokens"]
COLUMNS += ["finish_reason", *screen.COLUMNS]
FIRST_COLUMNS = ["response_id", "prompt_id", "text", "token_logprobs", "reasoning_tokens"]  # read before the others
Exchange = tuple[list[Row], str]  # the messages of a prompt, and an answer
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
class DecisionCounts:
    """What was decided so far."""

    counts: Counter[str] = field(default_factory=lambda: Counter(responses=0, kept=0, kept_train=0))
    first: Counter[str] = field(default_factory=Counter)  # answers by the first reason they were dropped for
    alone: Counter[str] = field(default_factory=Counter)  # answers that each rule says no to, whatever others say
    held_out: Counter[str] = field(default_factory=Counter)  # `first` of the held-out answers
    num_held_out: int = 0
    examples: dict[str, str] = field(default_factory=dict)  # an answer that each reason dropped, by id
    marked: list[Marked] = field(default_factory=list)

    def add(self, row: Row, decision: DecisionRow, refused: list[str], file: str) -> None:
        """Count a decision; `refused` are the rules that say no to it, whether or not it is dropped for them."""
        self.counts["responses"] += 1
        self.num_held_out += row["split"] == "held_out"
        for reason in decision["reasons"][:1]:
            self._count(reason, row["split"], row["response_id"])
        self.alone.update({*refused, *decision["reasons"]})
        if decision["kept"]:
            self.keep(row["split"], 1)
            if REFUSAL in refused:
                order = hashlib.sha256(row["response_id"].encode()).hexdigest()
                self.marked.append(Marked(order, row["response_id"], row["split"], file))

    def drop(self, decision: DecisionRow, split: str, reason: str) -> DecisionRow:
        """The decision about an answer that was kept so far, now that it is dropped."""
        self._count(reason, split, decision["response_id"])
        self.keep(split, -1)
        return {**decision, "kept": False, "reasons": [reason]}

    def _count(self, reason: str, split: str, response_id: str) -> None:
        self.first[reason] += 1
        self.held_out[reason] += split == "held_out"
        self.examples.setdefault(reason, response_id)

    def keep(self, split: str, num: int) -> None:
        self.counts["kept"] += num
        self.counts["kept_train"] += num if split == "train" else 0

    def waterfall(self) -> list[Row]:
        """What each reason dropped, and would have dropped alone; None: of what others keep is all that is known."""
        alone = {name: None if name in comparison.AMONG_KEPT else self.alone[name] for name in REASONS}
        return [{"reason": name, "dropped": self.first[name], "alone": alone[name]} for name in REASONS]


def run(config: Config, run_dir: RunDir) -> None:
    """Write filter/decisions-*.parquet, one file per shard of responses. Raises UserError where nothing is kept."""
    settings, weights = config.filter, learnability.fingerprint(config)
    fingerprint = {
        **{f"filter.{key}": value for key, value in _values(settings).items()},
        **grading.fingerprint(settings.selection),
        "input.generate": run_dir.output_hash("generate"),
        **weights,
        **screen.fingerprint(config),
        **comparison.fingerprint(config, run_dir),
    }
    stage = run_dir.begin("filter", config, fingerprint, in_one_piece=True)
    if stage.complete:
        return
    _check_best_of(settings, run_dir)
    sample = None if settings.near_duplicates is None else Sample[Exchange]()
    facts, tally, selector, files = (
        _facts(run_dir, settings, sample),
        DecisionCounts(),
        Selector(settings.selection),
        [],
    )
    learnable = LearnabilityLimits(config, run_dir, weights.get("filter.learnability.weights"))
    screening = screen.Screen(config, lookup.teacher_of(run_dir).tokenizer())
    with scratch.database(stage.path) as database:
        others = ResponseComparison(config, run_dir, stage, database, _boilerplate(sample))
        exact = ExactDuplicates(database)
        for number, answers in enumerate(_answers(run_dir, settings, facts)):
            name = f"decisions-{number:05d}.parquet"
            said = rules.verdicts([answer for _, _, answer in answers], settings)
            judged = [
                _decide(row, verdicts, settings, exact) for (row, _, _), verdicts in zip(answers, said, strict=True)
            ]
            decisions = [decision for decision, _ in judged]
            learnable.decide(number, decisions)
            screening.decide([row for row, _, _ in answers], decisions)
            for (row, asked, answer), (decision, refused) in zip(answers, judged, strict=True):
                others.decide(row, asked["messages"], decision)
                tally.add(row, decision, refused, name)
                selector.add(row, answer.token_logprobs, decision["kept"])
            stage.commit(pa.Table.from_pylist(decisions, schema=DECISIONS), name)
            files.append(stage.path / name)
    graded = _grade(run_dir, settings.selection, selector)
    _select(stage, tally, selector, files)
    _cap_refusals(stage, tally, settings)
    if not tally.counts["kept_train"]:
        raise UserError(
            f"filter: none of {counted(tally.counts['responses'], 'answer')} is kept to train on"
            f" ({left_out.dropped(tally.first)}). {left_out.remedies(tally.first)}"
        )
    held_out = {"responses": tally.num_held_out, "dropped": {why: n for why, n in tally.held_out.items() if n}}
    _tell(run_dir, tally, held_out)
    limits = {"nll_limit_nats": facts.nll_limit_nats, **learnable.limits}
    stage.finish(
        [*files, *stage.notes()],
        dict(tally.counts),
        waterfall=tally.waterfall(),
        held_out=held_out,
        settings=_thresholds(settings) | screen.thresholds(config),
        limits=limits,
        screening=screening.facts(),
        graded=graded,
    )


def _tell(run_dir: RunDir, tally: DecisionCounts, held_out: Row) -> None:
    """Say which rules drop many answers, and whether too few held-out ones are kept.

    Of selection nothing is said: it drops what it was told to.
    """
    num = tally.counts["responses"]
    for reason in REASONS:
        if tally.first[reason] > left_out.LARGE_FRAC * num and reason not in selection.REASONS:
            example, path = tally.examples[reason], shlex.quote(str(run_dir.path))
            say(f"filter: {left_out.of_rule(reason, tally.first[reason], num, example, path)}")
    if (told := left_out.of_held_out_answers({"counts": tally.counts, "held_out": held_out})) is not None:
        say(f"filter: {told}")


def _check_best_of(settings: Filter, run_dir: RunDir) -> None:
    """Say so where there is nothing to choose from."""
    num, answers = settings.selection.best_of, run_dir.fingerprint("generate").get("generate.num_samples")
    if num is not None and answers is not None and answers <= num:
        each = "1 answer" if answers == 1 else f"{answers} answers"
        say(f"filter: selection.best_of={num} drops nothing: each prompt has {each} (generate.num_samples)")


def _thresholds(settings: Filter) -> Row:
    """Filter's settings by the names that the report knows them by."""
    values = _values(settings)
    inner = {section: values.pop(section) for section in ("selection", "learnability")}
    inner["selection"]["best_by"] = settings.selection.best_by
    if settings.learnability.student is None:
        inner["learnability"] = dict.fromkeys(inner["learnability"])
    return values | {f"{section}.{name}": value for section in inner for name, value in inner[section].items()}


def _values(settings: Filter) -> Row:
    """Filter's own settings; what a judge is, and so whether one chooses, is grading's."""
    values = output_settings(settings)
    own = {name: value for name, value in values["selection"].items() if name not in ("best_by", "judge")}
    return values | {"selection": own}


def duplicate_key(prompt_id: str, text: str) -> bytes:
    """16 bytes that two answers to a prompt share when they differ in case and white space alone."""
    return hashlib.sha256(f"{prompt_id} {' '.join(text.lower().split())}".encode()).digest()[:16]


def _decide(
    row: Row, verdicts: dict[str, Verdict], settings: Filter, exact: ExactDuplicates
) -> tuple[DecisionRow, list[str]]:
    """One row of DECISIONS as the rules have it, and the rules that say no.

    A duplicate is one only of an answer that was kept; refusals are kept for now.
    """
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
    decision: DecisionRow = {
        "response_id": row["response_id"],
        "kept": not reasons,
        "reasons": reasons,
        "scores": list(scores.items()),
        "masked_spans": [],
        "safety": [],
    }
    return decision, refused


def _grade(run_dir: RunDir, settings: Selection, selector: Selector) -> Row | None:
    """Have a judge grade the answers that it has to choose between, and tell what came of it; None without a judge."""
    if settings.best_by != "judge" or settings.best_of is None:
        return None
    is_asked_N = selector.contested(settings.best_of)
    shards = _with_prompts(run_dir, ["response_id", "prompt_id", "category", "text"], "tools")
    answers = (pair for shard, prompts in shards for pair in zip(shard.to_pylist(), prompts, strict=True))
    grades_N, facts = grading.grades(settings, run_dir.path / grading.GRADES, answers, is_asked_N)
    selector.rank_by(grades_N)
    return facts


def _revise(stage: Stage, name: str, revised: Callable[[DecisionRow], DecisionRow]) -> None:
    """Write a file of decisions again, each as `revised` has it."""
    rows = read_committed(stage.path / name, DECISIONS.names).to_pylist()
    stage.commit(pa.Table.from_pylist([revised(row) for row in rows], schema=DECISIONS), name)


def _select(stage: Stage, tally: DecisionCounts, selector: Selector, files: list[Path]) -> None:
    """Drop what selection has no need of; refusals among it are marked no more."""
    if not selector.is_on or not tally.counts["kept_train"]:
        return
    selected, dropped = selector.decisions(), set[str]()

    def revised(row: DecisionRow) -> DecisionRow:
        reason, scores = next(selected)
        row["scores"] = row["scores"] + scores
        if reason is None:
            return row
        dropped.add(row["response_id"])
        return tally.drop(row, "train", reason)

    for path in files:
        _revise(stage, path.name, revised)
    tally.alone.update(selector.alone())
    tally.marked = [refusal for refusal in tally.marked if refusal.response_id not in dropped]


def _cap_refusals(stage: Stage, tally: DecisionCounts, settings: Filter) -> None:
    """Drop refusals above `max_refusal_frac` of what is kept, those whose ids' hashes come last."""
    if settings.max_refusal_frac is None:
        return
    num_kept = _num_refusals(tally.counts["kept"] - len(tally.marked), settings.max_refusal_frac)
    over = sorted(tally.marked)[num_kept:]
    splits = {refusal.response_id: refusal.split for refusal in over}

    def revised(row: DecisionRow) -> DecisionRow:
        split = splits.get(row["response_id"])
        return row if split is None else tally.drop(row, split, REFUSAL)

    for name in sorted({refusal.file for refusal in over}):
        _revise(stage, name, revised)
    others = tally.counts["responses"] - tally.alone[REFUSAL]
    tally.alone[REFUSAL] = max(0, tally.alone[REFUSAL] - _num_refusals(others, settings.max_refusal_frac))


def _num_refusals(num_others: int, max_frac: float) -> int:
    """How many refusals may stand beside so many other answers, to be no more than this share of all."""
    return int(num_others * max_frac / (1 - max_frac) + 1e-9)


def _facts(run_dir: RunDir, settings: Filter, sample: Sample[Exchange] | None = None) -> Run:
    """What rules know of the run: the teacher's special tokens, and the limit of mean NLL.

    All answers are read for it, and `sample` takes of each prompt the first.
    """
    teacher = lookup.teacher_of(run_dir)
    tokenizer = teacher.tokenizer()
    means = [np.empty(0, np.float32)]
    if settings.worst_nll_frac or sample is not None:
        for shard, prompts in _with_prompts(run_dir, FIRST_COLUMNS, "source"):
            means.append(_mean_nll_nats(shard))
            if sample is not None:
                _draw(sample, shard, prompts)
    limit = None
    if settings.worst_nll_frac:
        limit = confidence.nll_limit_nats(np.concatenate(means), settings.worst_nll_frac)
    return Run(tokens.special_ids(tokenizer), teacher.stop_ids(tokenizer), limit)


def _draw(sample: Sample[Exchange], shard: pa.Table, prompts: list[Row]) -> None:
    texts = zip(shard.column("response_id").to_pylist(), shard.column("text").to_pylist(), prompts, strict=True)
    for response_id, text, asked in texts:
        if response_id.endswith("-0"):
            source = (asked["source"] or "").rpartition(":")[0]
            sample.add(source, asked["prompt_id"], (asked["messages"], text))


def _boilerplate(sample: Sample[Exchange] | None) -> Boilerplate:
    if sample is None:
        return NO_BOILERPLATE
    return Boilerplate([Text.of(*exchange) for exchange in drawn] for drawn in sample.by_source())


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


def _answers(run_dir: RunDir, settings: Filter, facts: Run) -> Iterator[list[tuple[Row, Row, Response]]]:
    """Each shard's answers with what was asked, as rules read them. Raises UserError as `_with_prompts` does."""
    columns = COLUMNS if settings.min_end_prob is None else [*COLUMNS, "logprobs"]
    for shard, prompts in _with_prompts(run_dir, columns):
        rows = shard.drop_columns("token_logprobs").to_pylist()
        answers = zip(rows, prompts, _logprobs(shard), strict=True)
        yield [(row, asked, _response(row, asked, logprobs, facts)) for row, asked, logprobs in answers]


def _with_prompts(run_dir: RunDir, columns: list[str], *of_prompts: str) -> Iterator[tuple[pa.Table, list[Row]]]:
    """Each shard's answers with their prompts: both stand in the order of the prompts, and are read side by side.

    `of_prompts`: columns of these, besides prompt_id and messages. Raises UserError where prepare has other prompts
    than were answered.
    """
    tables = read_shards(run_dir, "prepare", ["prompt_id", "messages", *of_prompts])
    prompts = (row for table in tables for row in table.to_pylist())
    asked = next(prompts, None)
    for shard in read_shards(run_dir, "generate", columns):
        of_shard = []
        for prompt_id in shard.column("prompt_id").to_pylist():
            while asked is not None and asked["prompt_id"] != prompt_id:
                asked = next(prompts, None)
            if asked is None:
                raise UserError(
                    f"{run_dir.path}: prepare has other prompts now than those that were answered; generate again:"
                    f" {run_dir.command('generate', '--fresh')}"
                )
            of_shard.append(asked)
        yield shard, of_shard


def _response(row: Row, asked: Row, logprobs: npt.NDArray[np.float32], facts: Run) -> Response:
    said = [(message["role"], message["content"] or "") for message in asked["messages"]]
    return Response(
        text=row["text"],
        token_ids=row["token_ids"][row["reasoning_tokens"] :],
        finish_reason=row["finish_reason"],
        prompt=next((content for role, content in reversed(said) if role == "user"), ""),
        system="\n".join(content for role, content in said if role == "system"),
        token_logprobs=logprobs,
        logprobs=row.get("logprobs"),
        run=facts,
    )
