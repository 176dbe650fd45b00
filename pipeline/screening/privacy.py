"""Personal data and secrets: where they stand in a text, the text without them, and the tokens of an answer they cover.

It finds what has a shape that can be proved, or a known prefix (pipeline/screening/finders.py). Names, street
addresses and dates of birth have neither: `privacy.presidio` finds those that its model knows.
"""

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import takewhile
from typing import Any, NamedTuple

from pipeline.config import PII_KINDS, Privacy, output_settings
from pipeline.rows import DecisionRow
from pipeline.screening import presidio
from pipeline.screening.finders import FINDERS

Row = dict[str, Any]


class Span(NamedTuple):
    """Characters of a text, or tokens of an answer, from `start` to before `end`."""

    start: int
    end: int
    kind: str


def find(text: str, settings: Privacy) -> list[Span]:
    """The spans of a text's characters that hold one of `privacy.kinds`, or what Presidio finds, in order.

    Spans that overlap are one, of the kind that comes first in config.PII_KINDS; Presidio's come last, by name.
    """
    found = [Span(*place, kind) for kind in settings.kinds for place in FINDERS[kind](text, settings)]
    found += [Span(*each) for each in presidio.find(text, settings.presidio)]
    return _apart(sorted(found))


def redact(value: Any, settings: Privacy, counts: Counter[str]) -> Any:
    """A message, or whatever JSON holds, each find replaced by its kind, such as <EMAIL>; `counts` says how many.

    What is found anywhere in it is replaced everywhere: a name may be recognised at its first mention only. A number
    that is one becomes the placeholder's text.
    """
    found = {text: find(text, settings) for text in dict.fromkeys(_texts(value))}
    told = {(text[span.start : span.end], span.kind) for text, spans in found.items() for span in spans}
    spans = {text: _with_others(text, of_text, told) for text, of_text in found.items()}
    return _replaced_in(value, spans, counts)


def redacted_answer(row: Row, settings: Privacy) -> Row | None:
    """`text` and `reasoning` of an answer as they may be handed on: placeholders in place of what filter masked.

    `row` has `masked_spans` too. None where fewer finds are seen in the texts than were among the tokens.
    """
    found: Counter[str] = Counter()
    texts = redact({key: row[key] for key in ("text", "reasoning")}, settings, found)
    return texts if found.total() >= len(row["masked_spans"] or ()) else None


def replaced(text: str, spans: list[Span]) -> str:
    """The text with a placeholder in place of each span."""
    for span in reversed(spans):
        text = f"{text[: span.start]}<{span.kind.upper()}>{text[span.end :]}"
    return text


def shown(value: Any, settings: Privacy) -> Any:
    """An answer, or what was asked, as people may see it: without what `privacy.answers` has looked for."""
    return value if settings.answers == "off" else redact(value, settings, Counter())


def placeholders(text: str, kinds: Iterable[str]) -> dict[str, int]:
    """How many placeholders of these kinds and of config.PII_KINDS stand in a text; kinds without any are left out."""
    counts = {kind: text.count(f"<{kind.upper()}>") for kind in dict.fromkeys((*PII_KINDS, *kinds))}
    return {kind: num for kind, num in counts.items() if num}


def masked_tokens(row: Row, tokenizer: Any, settings: Privacy) -> list[Span]:
    """The tokens of a response, reasoning included, that hold any part of what is found in it; in order, none twice.

    `row` has text, reasoning and token_ids, as in records.RESPONSES. Token ids stay as the teacher produced them: what
    they cover is found by decoding their beginnings.
    """
    parts = (row["text"], row["reasoning"] or "")
    told = {(part[span.start : span.end], span.kind) for part in parts for span in find(part, settings)}
    if not told:
        return []
    token_ids = row["token_ids"]
    text = _decoded(tokenizer, token_ids)
    spans = find(text, settings)
    for literal, kind in told:  # special tokens beside it may hide what is seen without them
        places = _occurrences(literal, text, kind)
        if not places:  # rather too much than too little
            return [Span(0, len(token_ids), kind)]
        spans += [Span(place, place + len(literal), kind) for place in places]
    return _apart([Span(*_tokens_of(tokenizer, token_ids, text, span), span.kind) for span in _apart(sorted(spans))])


def fingerprint(settings: Privacy) -> Row:
    """The settings; where Presidio is on, its version and its model's hash: what finds follow from."""
    values = output_settings(settings)
    del values["presidio"]
    return values | {f"presidio.{key}": value for key, value in presidio.fingerprint(settings.presidio).items()}


def decide(rows: list[Row], decisions: list[DecisionRow], settings: Privacy, tokenizer: Any) -> None:
    """Give each of filter's decisions its `masked_spans`, and as score `pii`, the number of finds; or a reason to drop.

    `privacy.answers`: mask keeps the answer, and train learns no token of these spans; drop drops it, reason `pii`.
    """
    for row, decision in zip(rows, decisions, strict=True):
        spans = masked_tokens(row, tokenizer, settings) if settings.answers != "off" else []
        decision["masked_spans"] = [{"start": span.start, "end": span.end, "kind": span.kind} for span in spans]
        if settings.answers != "off":
            decision["scores"].append(("pii", float(len(spans))))
        if spans and settings.answers == "drop":
            decision["reasons"].append("pii")
            decision["kept"] = False


def _texts(value: Any) -> Iterator[str]:
    """All text in it; numbers as they are written."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from (*_texts(key), *_texts(inner))
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)
    elif isinstance(value, str | int | float) and not isinstance(value, bool):
        yield str(value)


def _with_others(text: str, spans: list[Span], told: set[tuple[str, str]]) -> list[Span]:
    """A text's finds, and where else in it stands what was found, in it or beside it."""
    is_word_of_call = bool(presidio.WORD_OF_A_CALL.fullmatch(text))
    own = {(text[span.start : span.end], span.kind) for span in spans}
    others = [
        Span(place, place + len(literal), kind)
        for literal, kind in told
        if kind in PII_KINDS or not is_word_of_call
        for place in _occurrences(literal, text, kind, (literal, kind) in own)
    ]
    return _apart(sorted({*spans, *others}))


def _replaced_in(value: Any, spans: dict[str, list[Span]], counts: Counter[str]) -> Any:
    if isinstance(value, dict):
        return {_replaced_in(k, spans, counts): _replaced_in(inner, spans, counts) for k, inner in value.items()}
    if isinstance(value, list):
        return [_replaced_in(inner, spans, counts) for inner in value]
    if not isinstance(value, str | int | float) or isinstance(value, bool):
        return value
    of_value = spans[str(value)]
    counts.update(span.kind for span in of_value)
    return replaced(str(value), of_value) if of_value else value


def _apart(spans: list[Span]) -> list[Span]:
    """Sorted spans, those that overlap joined."""
    apart: list[Span] = []
    for span in spans:
        if apart and span.start < apart[-1].end:
            last = apart.pop()
            kind = min(last.kind, span.kind, key=_rank)
            span = Span(last.start, max(last.end, span.end), kind)
        apart.append(span)
    return apart


def _rank(kind: str) -> tuple[int, str]:
    return (PII_KINDS.index(kind) if kind in PII_KINDS else len(PII_KINDS), kind)


def _occurrences(literal: str, text: str, kind: str, is_found_here: bool = True) -> list[int]:
    """Where else a find stands; of Presidio's, as whole words where there are any: Al is a name, not so in Also."""
    anywhere = [match.start() for match in re.finditer(re.escape(literal), text)]
    if kind in PII_KINDS:
        return anywhere
    as_words = [match.start() for match in re.finditer(rf"(?<!\w){re.escape(literal)}(?!\w)", text)]
    return as_words or (anywhere if is_found_here else [])


def _decoded(tokenizer: Any, token_ids: list[int]) -> str:
    return tokenizer.decode(token_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def _tokens_of(tokenizer: Any, token_ids: list[int], text: str, span: Span) -> tuple[int, int]:
    """The tokens that hold any part of these characters of `text`, which is what all tokens decode to.

    The first n tokens decode to a beginning of the text, but for a character of which they have only some bytes; the
    longer they are, the further it reaches. A border within a character is moved outwards to the next that is not.
    """
    num = len(token_ids)

    def beginning(n: int) -> str:
        return _decoded(tokenizer, token_ids[:n])

    def reach(n: int) -> int:
        pairs = zip(beginning(n), text, strict=False)
        return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))

    first = max(bisect_left(range(num + 1), span.start + 1, key=reach) - 1, 0)
    while first > 0 and not text.startswith(beginning(first)):
        first -= 1
    end = min(bisect_left(range(num + 1), span.end, key=reach), num)
    while end < num and not text.startswith(beginning(end)):
        end += 1
    return first, end
