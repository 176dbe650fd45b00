"""Precision and recall of each rule on answers that people wrote or read, and labelled.

    .venv/bin/python tests/filter/labelled.py

labelled.jsonl: one answer a line, with `category`, `prompt`, `answer`, `reasons` (none: a good answer) and, where they
differ from the usual, `system`, `finish_reason`, `special_tokens` (so many before the end), and `token_ids` with
`token_logprobs` for answers that a teacher wrote. Rules of one family say the same thing in several ways, so a rule
that drops an answer for which another of its family is named is right; to its recall count those that name it.
"""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config import Filter
from pipeline.filter.rules import RULES, Candidate, Run

FILE = Path(__file__).parent / "labelled.jsonl"
FAMILIES = (
    {"empty", "too_short"},
    {
        "repeated_sentence",
        "repeated_paragraph",
        "repeated_ngrams",
        "top_ngrams",
        "duplicate_ngrams",
        "duplicate_lines",
        "duplicate_paragraphs",
        "confident_loop",
    },
    {"high_nll", "low_confidence_span"},
    {"wrong_language", "unexpected_script"},
)
SPECIAL, PLAIN = 0, 7
# Mean NLL of the demo teacher's worst hundredth of 452 answers to the seed prompts at temperature 0.7.
RUN = Run(special_ids=frozenset({SPECIAL}), nll_limit_nats=2.47)
SETTINGS = Filter(max_length_ratio=8)  # as shipped, and the rule that a corpus of many tasks has no use for
Row = dict[str, Any]


@dataclass
class Measured:
    """A rule's verdicts: right and wrong drops, and labelled answers that it let pass."""

    right: list[Row]
    wrong: list[Row]
    missed: list[Row]

    @property
    def precision(self) -> float | None:
        dropped = len(self.right) + len(self.wrong)
        return len(self.right) / dropped if dropped else None

    @property
    def recall(self) -> float | None:
        named = sum(1 for _ in self.right_and_named()) + len(self.missed)
        return sum(1 for _ in self.right_and_named()) / named if named else None

    def right_and_named(self) -> list[Row]:
        return [row for row in self.right if row["named"]]


def rows() -> list[Row]:
    return [json.loads(line) for line in FILE.read_text(encoding="utf-8").splitlines()]


def candidate(row: Row) -> Candidate:
    """The row as the rules see it; where a teacher's tokens are not given, a word is a token."""
    finish_reason = row.get("finish_reason", "stop")
    made_up = [PLAIN] * len(row["answer"].split()) + [SPECIAL] * row.get("special_tokens", 0)
    token_ids = row.get("token_ids") or [*made_up, *([SPECIAL] if finish_reason == "stop" else [])]
    return Candidate(
        text=row["answer"].strip(),
        token_ids=token_ids,
        finish_reason=finish_reason,
        prompt=row["prompt"],
        system=row.get("system", ""),
        token_logprobs=np.array(row.get("token_logprobs", []), np.float32),
        run=RUN,
    )


def dropped(row: Row, settings: Filter = SETTINGS) -> list[str]:
    """The rules that say no."""
    answer = candidate(row)
    return [name for name, rule in RULES.items() if (verdict := rule(answer, settings)) is not None and not verdict[1]]


def measure(labelled: list[Row]) -> dict[str, Measured]:
    """Each rule on all the answers."""
    measured = {name: Measured([], [], []) for name in RULES}
    for row in labelled:
        says_no = dropped(row)
        for name, of_rule in measured.items():
            is_named = name in row["reasons"]
            family = next((group for group in FAMILIES if name in group), {name})
            if name in says_no:
                (of_rule.right if family & set(row["reasons"]) else of_rule.wrong).append({**row, "named": is_named})
            elif is_named:
                of_rule.missed.append(row)
    return measured


def main() -> None:
    labelled = rows()
    good = [row for row in labelled if not row["reasons"]]
    lost = [row for row in good if dropped(row)]
    print(f"{len(labelled)} answers, {len(good)} of them good; of the good ones {len(lost)} are dropped")
    print(f"{'rule':<22} {'named':>6} {'dropped':>8} {'precision':>10} {'recall':>7}")
    for name, of_rule in measure(labelled).items():
        named = len(of_rule.right_and_named()) + len(of_rule.missed)
        figures = [f"{value:.2f}" if value is not None else "–" for value in (of_rule.precision, of_rule.recall)]
        print(f"{name:<22} {named:>6} {len(of_rule.right) + len(of_rule.wrong):>8} {figures[0]:>10} {figures[1]:>7}")
        for what, found in (("wrongly dropped", of_rule.wrong), ("missed", of_rule.missed)):
            for row in found:
                print(f"    {what}: {row['category']}: {' '.join(row['answer'].split())[:90]!r}")
    print("categories:", ", ".join(f"{name} {num}" for name, num in Counter(r["category"] for r in labelled).items()))


if __name__ == "__main__":
    main()
