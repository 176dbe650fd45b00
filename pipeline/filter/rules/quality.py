"""Rules of text quality for chat answers, after Gopher and C4: short ones are fine, code and maths are left alone.

Left out on purpose: Gopher's least number of words and stop words (answers are short, and in any language), C4's ban on
lines with `{` (it deletes code), and the share of bullet points.
"""

import re

from pipeline.config import Filter
from pipeline.filter.rules.response import Response, Verdict
from pipeline.text.repetition import SYMBOLS_ALONE

MARKDOWN = frozenset('-*+•–—|#=&/→…:;?!«»„"') | {"##", "###", "####", "---", "***", "**"}  # and what French sets apart
SYMBOLS = re.compile(r"#+|\.\.\.|…")
HEADING = re.compile(r"^[ \t]*#{1,6}[ \t]", re.MULTILINE)
ASKS_SYMBOLS = re.compile(
    r"hash ?tag|tweet|instagram|caption|social|post|emoji|emoticon|ascii|symbol|morse", re.IGNORECASE
)
MIN_WORDS = 20


def few_words(answer: Response, settings: Filter) -> Verdict | None:
    """Share of the words that have a letter or a digit, against `min_word_frac`; marks of Markdown are not counted.

    Twenty words on, code and maths apart (Gopher: alphabetic words; here numbers count, for answers are full of them).
    """
    if settings.min_word_frac is None or len(answer.words) < MIN_WORDS:
        return None
    num_bare = sum(word not in MARKDOWN for word in SYMBOLS_ALONE.findall(answer.text))
    share = 1 - num_bare / len(answer.words)
    if share < settings.min_word_frac and (answer.form in ("code", "maths") or ASKS_SYMBOLS.search(answer.asked)):
        return None
    return share, share >= settings.min_word_frac


def symbols(answer: Response, settings: Filter) -> Verdict | None:
    """Hash signs and ellipses per word, against `max_symbol_frac`; headings and code apart, 20 words on (Gopher)."""
    if settings.max_symbol_frac is None or len(answer.words) < MIN_WORDS:
        return None
    if not any(symbol in answer.text for symbol in ("#", "...", "…")):
        return 0.0, True
    ratio = len(SYMBOLS.findall(answer.text)) / len(answer.words)
    if ratio > settings.max_symbol_frac:
        if answer.form == "code" or ASKS_SYMBOLS.search(answer.asked):
            return None
        ratio = len(SYMBOLS.findall(HEADING.sub("", answer.prose))) / len(answer.words)
    return ratio, ratio <= settings.max_symbol_frac


def word_lengths(answer: Response, settings: Filter) -> Verdict | None:
    """Mean characters of a word, to be within `word_length_chars`; outside are spelt letters, encoded bytes.

    Twenty words on, prose in scripts with spaces (Gopher: 3 to 10).
    """
    if settings.word_length_chars is None or len(answer.words) < MIN_WORDS:
        return None
    words = [word for word in answer.words if word[0].isalpha()]
    if len(words) < MIN_WORDS // 2:
        return None
    low, high = settings.word_length_chars
    mean = sum(map(len, words)) / len(words)
    if low <= mean <= high:
        return mean, True
    if answer.form != "prose" or len(answer.words) > 1.5 * len(answer.text.split()):  # characters as words
        return None
    return mean, False
