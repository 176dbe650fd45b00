"""Rules of repetition: answers that go round in circles.

Limits are wider where repeating is the form's own: for runs of sentences and paragraphs ×2 in code and maths, ×3 in
lists and tables (open-instruct); for shares, ×1.5 in these. And ×3 where the prompt asks for it: a song, ten times.
"""

import re

from pipeline import repetition as measures
from pipeline.config import Filter
from pipeline.filter.rules.candidate import Candidate, Verdict

RUN_SLACK = {"code": 2, "maths": 2, "list": 3, "prose": 1}
SHARE_SLACK = 1.5
ASKED_SLACK = 3
ASKS_REPETITION = re.compile(
    r"\b(?:repeat\w*|times|lyrics?|songs?|chorus|refrain|chants?|mantra|pantoum|villanelle|litany|nursery rhyme"
    r"|tongue twister|anaphora|over and over)\b",
    re.IGNORECASE,
)
MIN_WORDS = 40
MIN_LINES = 4
MIN_PARAGRAPHS = 3


def repeated_sentence(answer: Candidate, settings: Filter) -> Verdict | None:
    """Longest run of one sentence or line, against `max_sentence_repeats` (open-instruct)."""
    if settings.max_sentence_repeats is None:
        return None
    longest = measures.longest_sentence_run(answer.text)
    return longest, longest <= settings.max_sentence_repeats or longest <= (
        settings.max_sentence_repeats * _run_slack(answer)
    )


def repeated_paragraph(answer: Candidate, settings: Filter) -> Verdict | None:
    """Longest run of one paragraph, against `max_paragraph_repeats` (open-instruct)."""
    if settings.max_paragraph_repeats is None:
        return None
    longest = measures.longest_paragraph_run(answer.text) if "\n\n" in answer.text else 1
    return longest, longest <= settings.max_paragraph_repeats or longest <= (
        settings.max_paragraph_repeats * _run_slack(answer)
    )


def repeated_ngrams(answer: Candidate, settings: Filter) -> Verdict | None:
    """Share of 10-grams of words that stand earlier in the answer: a loop (after Gopher's duplicate n-grams, A1)."""
    if settings.max_duplicate_ngram_frac is None:
        return None
    share = measures.duplicate_ngram_frac(answer.text)
    return share, share <= settings.max_duplicate_ngram_frac


def top_ngrams(answer: Candidate, settings: Filter) -> Verdict | None:
    """Characters taken up by the commonest 2-, 3- and 4-gram, each over its limit: the largest of the three; to 1.

    Answers of 40 words on, and n-grams that stand there three times: Gopher's limits are for web pages (table A1).
    """
    limits = settings.max_top_ngram_frac
    if limits is None or len(answer.words) < MIN_WORDS:
        return None
    shares = [measures.top_ngram_char_frac(answer.words, n) for n in range(2, 5)]
    return _over_limits(shares, limits, answer)


def duplicate_ngrams(answer: Candidate, settings: Filter) -> Verdict | None:
    """Characters in 5- to 10-grams that stand earlier, each share over its limit: the largest of the six; to 1.

    Answers of 40 words on (Gopher, table A1, has .15 to .10: an answer that quotes and then rewrites would go).
    """
    limits = settings.max_duplicate_ngram_char_frac
    if limits is None or len(answer.words) < MIN_WORDS:
        return None
    if not measures.has_duplicate_ngram(answer.words, 5):
        return 0.0, True
    shares = [measures.duplicate_ngram_char_frac(answer.words, n) for n in range(5, 11)]
    return _over_limits(shares, limits, answer)


def duplicate_lines(answer: Candidate, settings: Filter) -> Verdict | None:
    """Lines that stand earlier: their share, and that of their characters, each over its limit; to 1.

    Four lines on, code apart, whose lines are alike by nature (Gopher, table A1).
    """
    limits = settings.max_duplicate_line_frac
    if limits is None or len(answer.lines) < MIN_LINES or answer.form == "code":
        return None
    return _over_limits(measures.duplicate_fracs(answer.lines), limits, answer)


def duplicate_paragraphs(answer: Candidate, settings: Filter) -> Verdict | None:
    """Paragraphs that stand earlier: their share, and that of their characters, each over its limit; to 1.

    Three paragraphs on (Gopher, table A1).
    """
    limits = settings.max_duplicate_paragraph_frac
    if limits is None or "\n\n" not in answer.text:
        return None
    paragraphs = [part for part in map(str.strip, measures.PARAGRAPH.split(answer.text)) if part]
    if len(paragraphs) < MIN_PARAGRAPHS:
        return None
    return _over_limits(measures.duplicate_fracs(paragraphs), limits, answer)


def _over_limits(shares: tuple[float, ...] | list[float], limits: tuple[float, ...], answer: Candidate) -> Verdict:
    """The largest share over its limit, which is to stay at or below 1."""
    worst = max(share / limit for share, limit in zip(shares, limits, strict=True))
    if worst > 1:  # only then is it worth asking what form the answer has
        worst /= ASKED_SLACK if _is_asked(answer) else 1 if answer.form == "prose" else SHARE_SLACK
    return worst, worst <= 1


def _run_slack(answer: Candidate) -> int:
    return max(RUN_SLACK[answer.form], ASKED_SLACK if _is_asked(answer) else 1)


def _is_asked(answer: Candidate) -> bool:
    return ASKS_REPETITION.search(answer.asked) is not None
