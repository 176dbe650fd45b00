"""filter: which answers train sees. Decisions with reasons and scores; the answers themselves are never copied."""

import hashlib
from collections import Counter
from typing import Any

import pyarrow as pa

from pipeline import models
from pipeline.config import Config, Filter, output_settings
from pipeline.errors import UserError
from pipeline.filter import screen
from pipeline.filter.rules import RULES, Candidate
from pipeline.records import DECISIONS
from pipeline.rundir import RunDir, read_shards

COLUMNS = ["response_id", "prompt_id", "split", "text", "token_ids", "reasoning_tokens", "finish_reason"]
COLUMNS += screen.COLUMNS


def run(config: Config, run_dir: RunDir) -> None:
    """Write filter/decisions-*.parquet, one file per shard of responses. Raises UserError where nothing is kept."""
    fingerprint = {
        **{f"filter.{key}": value for key, value in output_settings(config.filter).items()},
        **screen.fingerprint(config),
        "input.generate": run_dir.output_hash("generate"),
    }
    stage = run_dir.begin("filter", config, fingerprint, in_one_piece=True)
    if stage.complete:
        return
    tokenizer = models.teacher_of(run_dir).tokenizer()
    added = {token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special}
    special_ids = frozenset(tokenizer.all_special_ids) | added
    screening = screen.Screen(config, tokenizer)
    seen: set[bytes] = set()
    waterfall: Counter[str] = Counter()
    counts: Counter[str] = Counter(responses=0, kept=0, kept_train=0)
    files = []
    for number, table in enumerate(read_shards(run_dir, "generate", COLUMNS)):
        rows = table.to_pylist()
        decisions = [_decide(row, config.filter, special_ids, seen) for row in rows]
        screening.decide(rows, decisions)
        for row, decision in zip(rows, decisions, strict=True):
            counts["responses"] += 1
            counts["kept"] += decision["kept"]
            counts["kept_train"] += decision["kept"] and row["split"] == "train"
            waterfall.update(decision["reasons"][:1])
        name = f"decisions-{number:05d}.parquet"
        stage.commit(pa.Table.from_pylist(decisions, schema=DECISIONS), name)
        files.append(stage.path / name)
    drops = [
        {"reason": reason, "dropped": waterfall[reason]} for reason in (*RULES, "exact_duplicate", *screen.REASONS)
    ]
    if not counts["kept_train"]:
        listed = ", ".join(f"{d['reason']} {d['dropped']}" for d in drops if d["dropped"])
        raise UserError(
            f"filter: of {counts['responses']} answers none is kept to train on (dropped: {listed}); loosen filter.*"
        )
    settings = output_settings(config.filter) | screen.thresholds(config)
    stage.finish(files, dict(counts), waterfall=drops, settings=settings, screening=screening.facts())


def _decide(row: dict[str, Any], settings: Filter, special_ids: frozenset[int], seen: set[bytes]) -> dict[str, Any]:
    """One row of DECISIONS. A duplicate is one only of an answer that every other rule kept."""
    answer_ids = row["token_ids"][row["reasoning_tokens"] :]
    answer = Candidate(row["prompt_id"], row["text"], answer_ids, row["finish_reason"], special_ids)
    verdicts = {name: rule(answer, settings) for name, rule in RULES.items()}
    scores = {name: float(verdict[0]) for name, verdict in verdicts.items() if verdict is not None}
    reasons = [name for name, verdict in verdicts.items() if verdict is not None and not verdict[1]]
    if settings.drop_exact_duplicates and not reasons:
        key = duplicate_key(row["prompt_id"], row["text"])
        scores["exact_duplicate"] = float(key in seen)
        if key in seen:
            reasons.append("exact_duplicate")
        seen.add(key)
    return {
        "response_id": row["response_id"],
        "kept": not reasons,
        "reasons": reasons,
        "scores": list(scores.items()),
    }


def duplicate_key(prompt_id: str, text: str) -> bytes:
    """16 bytes that two answers to a prompt share when they differ in case and white space alone."""
    return hashlib.sha256(f"{prompt_id} {' '.join(text.lower().split())}".encode()).digest()[:16]
