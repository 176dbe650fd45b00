"""Checks of what is said: a number, a set of things, one of several options; and against an earlier answer."""

import re
from math import isclose
from typing import Annotated

from pydantic import Field

from pipeline.eval_sets.checkers.wording import Text, Texts, plain, words_of
from pipeline.text.words import words

_SPACED = "'’ \u00a0\u202f"  # sets thousands apart in any language
_NUMBER = re.compile(
    rf"(?<![\w.,])[-−]?(?:\d{{1,3}}(?:[,.{_SPACED}]\d{{3}})+(?!\d)(?:[.,]\d+)?|\d+(?:[.,]\d+)?|[.]\d+)(?:/\d+)?"
)
_PLAIN = (  # 1,234.5 and 1.234,5
    re.compile(rf"-?(?:\d{{1,3}}(?:[,{_SPACED}]\d{{3}})+|\d*)(?P<rest>\.\d+)?"),
    re.compile(rf"-?(?:\d{{1,3}}(?:[.{_SPACED}]\d{{3}})+|\d*)(?P<rest>,\d+)?"),
)
_TOLD = re.compile(r"\banswer\b", re.IGNORECASE)
_LEAD_IN = re.compile(r"^[^\n:]*:(?:[ \t]+|$)")
_BULLET = re.compile(r"^\s*(?:[-*+•]|\d+[.)])\s+")
_SEPARATOR = re.compile(r"\s*[,;、]\s*(?:(?:and|or)\s+)?|\s+(?:and|or)\s+")
_ARTICLE = {"a", "an", "the"}


def number(answer: str, value: float, tolerance: Annotated[float, Field(ge=0)] = 0.0) -> bool:
    """The number it gives is this one, give or take: with words and units around it, thousands set apart or not.

    That is the last of all; or, where `answer` stands before a number, the first in that line after its last `=`.
    """
    found = _given(answer)
    return found is not None and any(
        isclose(each, value, rel_tol=1e-12, abs_tol=tolerance) for each in _readings(found)
    )


def items(answer: str, items: Texts, ordered: bool = False) -> bool:
    """Just these things, a line each or between commas, with no other; `ordered`: in this order.

    Marks of lists, articles, case and a lead-in that ends in a colon do not count.
    """
    found, wanted = [_key(item) for item in _entries(answer)], [_key(item) for item in items]
    if len(set(wanted)) < len(wanted):
        raise ValueError("items: two are the same")
    return found == wanted if ordered else len(found) == len(wanted) and set(found) == set(wanted)


def alphabetical(answer: str, num: Annotated[int, Field(ge=2)]) -> bool:
    """So many different things, a line each or between commas, in alphabetical order."""
    keys = [_key(item) for item in _entries(answer)]
    return len(set(keys)) == len(keys) == num and sorted(keys) == keys


def choice(answer: str, choice: Text, options: Texts) -> bool:
    """Of the options it names this one alone."""
    if choice not in options:
        raise ValueError(f"choice: {choice!r} is not among the options")
    given = words(answer)
    return [option for option in options if _stands_in(words(option), given)] == [choice]


def short_answer(answer: str, accepted: Texts, max_words: Annotated[int, Field(ge=1)] = 12) -> bool:
    """It names one of the accepted things, in any case, and is no longer than this."""
    given = words(answer)
    return len(words_of(answer)) <= max_words and any(_stands_in(words(each), given) for each in accepted)


def matches(answer: str, pattern: Text) -> bool:
    """All of it matches a regular expression. Raises ValueError where that is none."""
    try:
        return re.fullmatch(pattern, plain(answer)) is not None
    except re.error as error:
        raise ValueError(f"pattern: {error}") from None


def shorter_than(answer: str, earlier: str, share: Annotated[float, Field(gt=0, le=1)] = 1.0) -> bool:
    """It has fewer words than this share of an earlier answer's."""
    return 0 < len(words_of(answer)) < share * len(words_of(earlier))


def same_words(answer: str, earlier: str) -> bool:
    """It says the very words of an earlier answer, whatever their case and the marks between them."""
    return words(answer) == words(earlier) != []


def same_items(answer: str, earlier: str) -> bool:
    """It lists the things of an earlier answer, in any order."""
    found, before = (sorted(map(_key, _entries(text))) for text in (answer, earlier))
    return found == before != []


def _given(answer: str) -> str | None:
    for told in reversed(list(_TOLD.finditer(answer))):
        line = answer[told.end() :].lstrip(" :*_\n").partition("\n")[0]
        for part in (line.rpartition("=")[2], line):
            if found := _NUMBER.search(part):
                return found[0]
    numbers = _NUMBER.findall(answer)
    return numbers[-1] if numbers else None


def _readings(text: str) -> list[float]:
    """What a number may mean: `1,234` is 1234 or, in other languages, 1.234; `3/4` is 0.75."""
    over, _, under = text.replace("−", "-").partition("/")
    readings = []
    for notation in _PLAIN:
        if found := notation.fullmatch(over):
            rest = found["rest"] or ""
            whole = re.sub(rf"[,.{_SPACED}]", "", over.removesuffix(rest))
            readings.append(float(whole + rest.replace(",", ".")))
    if not under:
        return readings
    return [reading / float(under) for reading in readings] if float(under) else []


def _entries(answer: str) -> list[str]:
    """The things it lists: its lines where there are several, else what stands between commas and `and`."""
    lines = [line for line in answer.strip().splitlines() if re.search(r"\w", line)]
    if len(lines) > 1 and lines[0].rstrip(" *_").endswith(":"):
        lines = lines[1:]
    if len(lines) > 1 or (lines and _BULLET.match(lines[0])):
        return [_BULLET.sub("", line) for line in lines]
    return [part for part in _SEPARATOR.split(_LEAD_IN.sub("", lines[0])) if part.strip()] if lines else []


def _key(item: str) -> str:
    """What an entry is compared by: its words, without an article before them."""
    found = words(item)
    return " ".join(found[1:] if len(found) > 1 and found[0] in _ARTICLE else found)


def _stands_in(part: list[str], whole: list[str]) -> bool:
    """Whether words stand in a text, one after the other."""
    return any(whole[n : n + len(part)] == part for n in range(len(whole) - len(part) + 1))
