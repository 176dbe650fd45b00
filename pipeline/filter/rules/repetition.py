"""Rules of repetition: answers that repeat themselves.

Limits are wider where repeating is the form's own: for runs of sentences and paragraphs ×2 in code and maths, ×3 in
lists and tables (open-instruct); for shares, ×1.5 in these. Where the prompt asks for it (a song, ten times), runs may
be three times as long again, and shares are let be: a loop in such an answer is found by its runs and its log-probs.
"""

import re
from collections.abc import Callable

from pipeline.config import Filter
from pipeline.filter.rules.response import Response, Verdict
from pipeline.text import repetition as measures
from pipeline.text.loops import loop_repeats

RUN_SLACK = {"code": 2, "maths": 2, "list": 3, "prose": 1}
SHARE_SLACK = 1.5
ASKED_SLACK = 3
ASKS_REPETITION = re.compile(
    r"(?<!without )(?<!not )(?<!n't )\brepeat(?:ed|ing)?\b"
    r"|\b(?:\d+|two|three|four|five|six|seven|eight|nine|ten|twelve|twenty|fifty|a hundred) times\b"
    r"|\b(?:lyrics?|songs?|chorus|refrain|rhymes?|carols?|jingle|chants?|mantra|pantoum|villanelle|litany|anaphora"
    r"|tongue[ -]twister|over and over)\b",
    re.IGNORECASE,
)
MIN_WORDS = 40
MIN_LINES = 4
MIN_LINE_CHARS = 6
TABLE_CHARS = frozenset("|-: ")
MIN_PARAGRAPHS = 3


def repeated_sentence(answer: Response, settings: Filter) -> Verdict | None:
    """Longest run of one sentence or line, or of a loop's unit, against `max_sentence_repeats` (open-instruct).

    A loop that was asked for is let be.
    """
    if settings.max_sentence_repeats is None:
        return None
    longest = measures.longest_sentence_run(answer.text)
    if answer.may_loop and (repeats := loop_repeats(answer.text)) > longest and not _is_asked(answer):
        longest = repeats
    return longest, _is_within(longest, settings.max_sentence_repeats, answer)


def repeated_paragraph(answer: Response, settings: Filter) -> Verdict | None:
    """Longest run of one paragraph, against `max_paragraph_repeats` (open-instruct)."""
    if settings.max_paragraph_repeats is None:
        return None
    longest = measures.longest_paragraph_run(answer.text) if "\n\n" in answer.text else 1
    return longest, _is_within(longest, settings.max_paragraph_repeats, answer)


def repeated_ngrams(answer: Response, settings: Filter) -> Verdict | None:
    """Share of 10-grams of words that stand earlier in the answer: a loop (after Gopher's duplicate n-grams, A1)."""
    if settings.max_duplicate_ngram_frac is None:
        return None
    share = 0.0
    if answer.repeats and answer.text.isascii():
        share = measures.duplicate_ngram_frac_of(answer.words)
    elif answer.repeats:  # words of scripts without spaces are characters there, not here
        share = measures.duplicate_ngram_frac(answer.text)
    if share > settings.max_duplicate_ngram_frac:
        share = measures.duplicate_ngram_frac(measures.SYMBOLS_ALONE.sub(" ", answer.text))
    return share, share <= settings.max_duplicate_ngram_frac or _is_asked(answer)


def top_ngrams(answer: Response, settings: Filter) -> Verdict | None:
    """Characters taken up by the commonest 2-, 3- and 4-gram, each over its limit: the largest of the three; to 1.

    Answers of 40 words on, and n-grams that stand there three times: Gopher's limits are for web pages (table A1).
    """
    limits = settings.max_top_ngram_frac
    if limits is None or len(answer.words) < MIN_WORDS:
        return None
    return _ngrams_over_limits(measures.top_ngram_char_fracs, range(2, 5), limits, answer)


def duplicate_ngrams(answer: Response, settings: Filter) -> Verdict | None:
    """Characters in 5- to 10-grams that stand earlier, each share over its limit: the largest of the six; to 1.

    Answers of 40 words on (Gopher, table A1, has .15 to .10: an answer that quotes and then rewrites would go).
    """
    limits = settings.max_duplicate_ngram_char_frac
    if limits is None or len(answer.words) < MIN_WORDS:
        return None
    if not answer.repeats:
        return 0.0, True
    return _ngrams_over_limits(measures.duplicate_ngram_char_fracs, range(5, 11), limits, answer)


def duplicate_lines(answer: Response, settings: Filter) -> Verdict | None:
    """Lines that stand earlier: their share, and that of their characters, each over its limit; to 1.

    Four lines on, lines of 6 characters on (`- Yes` and `| T | F |` are short for a reason), code apart, whose lines
    are alike by nature (Gopher, table A1).
    """
    limits = settings.max_duplicate_line_frac
    if limits is None or len(answer.lines) < MIN_LINES:
        return None
    lines = [line for line in answer.lines if len(line) >= MIN_LINE_CHARS and not set(line) <= TABLE_CHARS]
    fracs = measures.duplicate_fracs(lines)
    return (0.0, True) if fracs == (0, 0) or answer.form == "code" else _over_limits(fracs, limits, answer)


def duplicate_paragraphs(answer: Response, settings: Filter) -> Verdict | None:
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


def _ngrams_over_limits(
    measure: Callable[[list[str], range], list[float]], nums: range, limits: tuple[float, ...], answer: Response
) -> Verdict:
    """As `_over_limits`; words that are symbols alone (of a matrix, a drawing) are left out where they would decide."""
    shares = measure(answer.words, nums)
    if any(share > limit for share, limit in zip(shares, limits, strict=True)):
        words = [word for word in answer.words if any(map(str.isalnum, word))]
        shares = measure(words, nums) if len(words) >= MIN_WORDS else [0.0] * len(nums)
    return _over_limits(shares, limits, answer)


def _over_limits(shares: tuple[float, ...] | list[float], limits: tuple[float, ...], answer: Response) -> Verdict:
    """The largest share over its limit, which is to stay at or below 1."""
    worst = max(share / limit for share, limit in zip(shares, limits, strict=True))
    if worst <= 1:
        return worst, True
    worst /= 1 if answer.form == "prose" else SHARE_SLACK  # asked now only, for what it costs
    return worst, worst <= 1 or _is_asked(answer)


def _is_within(longest: int, limit: int, answer: Response) -> bool:
    if longest <= limit:
        return True
    return longest <= limit * RUN_SLACK[answer.form] * (ASKED_SLACK if _is_asked(answer) else 1)


def _is_asked(answer: Response) -> bool:
    return ASKS_REPETITION.search(answer.asked) is not None
