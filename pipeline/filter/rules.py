"""The rules. Each is a pure function of one answer: what it measured, and whether the answer stays (True = keep)."""

import re
from collections.abc import Callable
from dataclasses import dataclass

from pipeline.config import Filter
from pipeline.repetition import duplicate_ngram_frac, longest_sentence_run


@dataclass(frozen=True)
class Candidate:
    """What the rules see of a response: the answer without its reasoning."""

    prompt_id: str
    text: str
    token_ids: list[int]
    finish_reason: str
    special_ids: frozenset[int]  # the tokenizer's control tokens


Verdict = tuple[float, bool]  # (score, keep)
Rule = Callable[[Candidate, Filter], Verdict | None]  # None: the rule is off

CODE = re.compile(r"```|^\s*(def |class |import |#include|for \(|public )", re.MULTILINE)


def empty(answer: Candidate, settings: Filter) -> Verdict | None:
    """Characters that are not white space; an answer without any is dropped (open-instruct)."""
    length = len(answer.text.strip())
    return length, length > 0


def truncated(answer: Candidate, settings: Filter) -> Verdict | None:
    """1 where the answer hit max_tokens: its end-of-turn was never written, and training on it teaches not to stop."""
    if not settings.drop_truncated:
        return None
    cut = answer.finish_reason != "stop"
    return float(cut), not cut


def control_tokens(answer: Candidate, settings: Filter) -> Verdict | None:
    """Special tokens before the last token: template markup leaked into the answer (NeMo Curator, open-instruct)."""
    if not settings.drop_control_tokens:
        return None
    ended = answer.finish_reason == "stop"
    body = answer.token_ids[:-1] if ended else answer.token_ids
    leaks = sum(token in answer.special_ids for token in body)
    return leaks, leaks == 0


def too_short(answer: Candidate, settings: Filter) -> Verdict | None:
    """Answer tokens without the end-of-turn, against `min_tokens`."""
    length = _body_length(answer)
    return None if settings.min_tokens is None else (length, length >= settings.min_tokens)


def too_long(answer: Candidate, settings: Filter) -> Verdict | None:
    """Answer tokens without the end-of-turn, against `max_tokens`."""
    length = _body_length(answer)
    return None if settings.max_tokens is None else (length, length <= settings.max_tokens)


def repeated_sentence(answer: Candidate, settings: Filter) -> Verdict | None:
    """Longest run of one sentence or line, against `max_sentence_repeats`; twice that where there is code."""
    if settings.max_sentence_repeats is None:
        return None
    longest = longest_sentence_run(answer.text)
    limit = settings.max_sentence_repeats * (2 if CODE.search(answer.text) else 1)
    return longest, longest <= limit


def repeated_ngrams(answer: Candidate, settings: Filter) -> Verdict | None:
    """Share of 10-grams of words that stand earlier in the answer: a loop (after Gopher's duplicate n-grams, A1)."""
    if settings.max_duplicate_ngram_frac is None:
        return None
    share = duplicate_ngram_frac(answer.text)
    return share, share <= settings.max_duplicate_ngram_frac


RULES: dict[str, Rule] = {
    "empty": empty,
    "truncated": truncated,
    "control_tokens": control_tokens,
    "too_short": too_short,
    "too_long": too_long,
    "repeated_sentence": repeated_sentence,
    "repeated_ngrams": repeated_ngrams,
}


def _body_length(answer: Candidate) -> int:
    return len(answer.token_ids) - (answer.finish_reason == "stop")
