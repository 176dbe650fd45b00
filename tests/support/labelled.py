"""Precision and recall of each rule on answers that people wrote or read, and labelled.

    .venv/bin/python tests/filter/labelled.py

labelled.jsonl: one answer a line, with `category`, `prompt`, `answer`, `reasons` (none: a good answer) and, where they
differ from the usual, `system`, `finish_reason`, `special_tokens` (so many before the end), filter's `settings`,
`token_ids` with `token_logprobs` for answers that a teacher wrote, and `end_prob`: the probability of an end-of-turn
that the demo teacher gave to the place where an answer was cut off. Rules of one family say the same thing in several
ways, so a rule that drops an answer for which another of its family is named is right; to its recall count those that
name it.
"""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import codec
from pipeline.config import Filter
from pipeline.filter.rules import RULES, Response, Run

FILE = Path(__file__).parents[1] / "filter/labelled.jsonl"
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
RUN = Run(special_ids=frozenset({SPECIAL}), stop_ids=frozenset({SPECIAL}), nll_limit_nats=2.47)
SETTINGS = Filter(max_length_ratio=8)  # as shipped, and the rule that a corpus of many tasks has no use for
Row = dict[str, Any]


@dataclass
class Measured:
    """A rule's verdicts on the labelled answers."""

    found: list[Row]  # named for it, and dropped by it
    also: list[Row]  # named for another of its family, and dropped by it too
    wrong: list[Row]
    missed: list[Row]

    @property
    def precision(self) -> float | None:
        right = len(self.found) + len(self.also)
        return right / (right + len(self.wrong)) if right + len(self.wrong) else None

    @property
    def recall(self) -> float | None:
        named = len(self.found) + len(self.missed)
        return len(self.found) / named if named else None


def rows() -> list[Row]:
    return [json.loads(line) for line in FILE.read_text(encoding="utf-8").splitlines()]


def response(row: Row) -> Response:
    """The row as the rules see it; where a teacher's tokens are not given, a word is a token."""
    finish_reason = row.get("finish_reason", "stop")
    made_up = [PLAIN] * len(row["answer"].split()) + [SPECIAL] * row.get("special_tokens", 0)
    token_ids = row.get("token_ids") or [*made_up, *([SPECIAL] if finish_reason == "stop" else [])]
    return Response(
        text=row["answer"].strip(),
        token_ids=token_ids,
        finish_reason=finish_reason,
        prompt=row["prompt"],
        system=row.get("system", ""),
        token_logprobs=np.array(row.get("token_logprobs", []), np.float32),
        logprobs=last_row(row["end_prob"]) if "end_prob" in row else None,
        run=RUN,
    )


def last_row(end_prob: float) -> codec.Packed:
    """Packed log-probs of one token, the end of the turn or another."""
    logprobs_NK = np.log(np.array([[end_prob, 1 - end_prob]], np.float32))
    return codec.encode(np.array([[SPECIAL, PLAIN]], np.int32), logprobs_NK, np.array([-np.inf], np.float32))


def dropped(row: Row) -> list[str]:
    """The rules that say no."""
    answer, settings = response(row), SETTINGS.model_copy(update=row.get("settings", {}))
    return [name for name, rule in RULES.items() if (verdict := rule(answer, settings)) is not None and not verdict[1]]


def measure(labelled: list[Row]) -> dict[str, Measured]:
    """Each rule on all the answers."""
    measured = {name: Measured([], [], [], []) for name in RULES}
    for row in labelled:
        says_no, reasons = dropped(row), set(row["reasons"])
        for name, of_rule in measured.items():
            family = next((group for group in FAMILIES if name in group), {name})
            if name in says_no:
                kind = of_rule.found if name in reasons else of_rule.also if family & reasons else of_rule.wrong
                kind.append(row)
            elif name in reasons:
                of_rule.missed.append(row)
    return measured


def main() -> None:
    labelled = rows()
    good = [row for row in labelled if not row["reasons"]]
    lost = [row for row in good if dropped(row)]
    print(f"{len(labelled)} answers, {len(good)} of them good; of the good ones {len(lost)} are dropped")
    print(f"{'rule':<22} {'named':>6} {'dropped':>8} {'precision':>10} {'recall':>7}")
    for name, of_rule in measure(labelled).items():
        named, right = len(of_rule.found) + len(of_rule.missed), len(of_rule.found) + len(of_rule.also)
        precision, recall = (
            f"{value:.2f}" if value is not None else "–" for value in (of_rule.precision, of_rule.recall)
        )
        print(f"{name:<22} {named:>6} {right + len(of_rule.wrong):>8} {precision:>10} {recall:>7}")
        for what, found in (("wrongly dropped", of_rule.wrong), ("missed", of_rule.missed)):
            for row in found:
                print(f"    {what}: {row['category']}: {' '.join(row['answer'].split())[:90]!r}")
    print("categories:", ", ".join(f"{name} {num}" for name, num in Counter(r["category"] for r in labelled).items()))


if __name__ == "__main__":
    main()
