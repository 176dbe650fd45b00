"""How fast the filter's rules are, on one core; beside datatrove's Gopher filters on the same answers.

    .venv/bin/python scripts/bench/filters.py [--quick] [--json FILE] [--run RUN]

Answers of about 200 tokens: the demo teacher's to the seed prompts (or a run's), laid end to end until they are that
long, with their log-probs. All rules that are on as shipped see each; nothing that one round found out serves the next.
Seconds are of the processor; rounds of both sides are interleaved.

datatrove is no part of Retort. Where it is installed (`pip install datatrove spacy`), its Gopher repetition and Gopher
quality filters see the same texts: `rules_over_datatrove` is the rate of all our rules over that of its two filters,
`gopher_over_datatrove` that of those of ours alone that measure the same (repetition and quality). Its language filter
downloads its model, so it is left out; ours is among the rules. It stops at the first limit that a text is over, and
does not look at texts that its first filter dropped; ours measure every answer by every rule.

Figures: `rules_per_s`, `rules_tokens_per_s`, `rules_over_datatrove`, `gopher_over_datatrove`; the table has each rule.
"""

import importlib
import importlib.util
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import answers as bench
import numpy as np
from rich.console import Console
from rich.table import Table

from pipeline import config, filter
from pipeline.filter.rules import RULES, Response, language, verdicts
from pipeline.run.rundir import RunDir

NUM_TOKENS = 200
EQUIVALENT = (
    *("repeated_sentence", "repeated_paragraph", "repeated_ngrams", "top_ngrams", "duplicate_ngrams"),
    *("duplicate_lines", "duplicate_paragraphs", "few_words", "symbols", "word_lengths"),
)
SETTINGS = config.Filter(drop_truncated=False)


def long_answers(run_dir: RunDir) -> list[Response]:
    """A run's answers, laid end to end to 180 to 220 tokens; the prompt is that of the first."""
    facts = filter._facts(run_dir, SETTINGS)
    joined, parts = [], []
    for shard in filter._answers(run_dir, SETTINGS, facts):
        for _, _, answer in shard:
            parts = [*parts, answer] if _num_tokens([*parts, answer]) <= 1.1 * NUM_TOKENS else [answer]
            if 0.9 * NUM_TOKENS <= _num_tokens(parts) <= 1.1 * NUM_TOKENS:
                joined.append(_joined(parts))
                parts = []
    return joined


def _num_tokens(parts: list[Response]) -> int:
    return sum(part.num_body_tokens for part in parts)


def _joined(parts: list[Response]) -> Response:
    return replace(
        parts[0],
        text="\n\n".join(part.text for part in parts),
        token_ids=[token for part in parts for token in part.token_ids[: part.num_body_tokens]],
        token_logprobs=np.concatenate([part.token_logprobs[: part.num_body_tokens] for part in parts]),
        finish_reason="length",
    )


def apply_rules(answers: list[Response], names: tuple[str, ...]) -> int:
    """How many answers are dropped; nothing is known of them before."""
    language._detect_prompt.cache_clear()
    judged = verdicts([replace(answer) for answer in answers], SETTINGS, names)
    return sum(not all(keep for _, keep in said.values()) for said in judged)


def datatrove_filters() -> Callable[[list[Response]], int]:
    """datatrove's two filters, one after the other, each as it comes; how many texts they drop."""
    data, theirs = (importlib.import_module(f"datatrove.{name}") for name in ("data", "pipeline.filters"))
    filters = [theirs.GopherRepetitionFilter(), theirs.GopherQualityFilter(min_doc_words=1)]

    def apply(answers: list[Response]) -> int:
        documents = [data.Document(text=answer.text, id=str(n)) for n, answer in enumerate(answers)]
        return sum(not all(each.filter(document) is True for each in filters) for document in documents)

    return apply


def cpu_s(work: Callable[[], Any]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def show_rules(answers: list[Response], rounds: int) -> None:
    """The time of each rule alone, words and such that several share already found."""
    table = Table(title=f"{len(answers)} answers of {NUM_TOKENS} tokens", title_justify="left")
    table.add_column("rule")
    table.add_column("µs an answer", justify="right")
    apply_rules(answers, tuple(RULES))
    for name, rule in RULES.items():
        taken = min(cpu_s(lambda rule=rule: [rule(answer, SETTINGS) for answer in answers]) for _ in range(rounds))
        table.add_row(name, f"{1e6 * taken / len(answers):.1f}")
    Console(width=100).print(table)


def main() -> None:
    options = bench.options(__doc__).parse_args()
    rounds = 5 if options.quick else 15
    answers = long_answers(bench.run_dir(options.run, "bench-filters"))
    num_tokens = sum(len(answer.token_ids) for answer in answers)
    print(f"{len(answers)} answers, {num_tokens / len(answers):.0f} tokens each")
    show_rules(answers, rounds)
    sides: dict[str, Callable[[], int]] = {
        "rules": lambda: apply_rules(answers, tuple(RULES)),
        "gopher": lambda: apply_rules(answers, EQUIVALENT),
    }
    if importlib.util.find_spec("datatrove") is not None:
        theirs = datatrove_filters()
        sides["datatrove"] = lambda: theirs(answers)
    else:
        print("datatrove is not installed: pip install datatrove spacy")
    for name, work in sides.items():  # warm; and what they do
        print(f"{name} drops {work()} of {len(answers)}")
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, work in sides.items():
            seconds[name].append(cpu_s(work))
    figures = {
        "rules_per_s": bench.figure([len(answers) / taken for taken in seconds["rules"]], "answers/s"),
        "rules_tokens_per_s": bench.figure([num_tokens / taken for taken in seconds["rules"]], "tokens/s"),
    }
    if "datatrove" in seconds:
        figures["datatrove_per_s"] = bench.figure([len(answers) / taken for taken in seconds["datatrove"]], "answers/s")
        for name in ("rules", "gopher"):
            pairs = zip(seconds["datatrove"], seconds[name], strict=True)
            figures[f"{name}_over_datatrove"] = bench.figure([theirs_s / ours_s for theirs_s, ours_s in pairs])
    bench.show(figures, options.json)


if __name__ == "__main__":
    main()
