"""Passages of documents, for questions about them."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pipeline import corpora
from pipeline.config import Privacy, Source
from pipeline.corpora import BadRowError, containers
from pipeline.errors import UserError
from pipeline.prepare import sources
from pipeline.screening import licences, privacy
from pipeline.text.prompt_templates import hint, listed
from pipeline.text.words import words

MIN_WORDS, MAX_WORDS = 40, 200
_PARAGRAPH = re.compile(r"\n\s*\n")
_SENTENCE = re.compile(r"(?<=[.!?。！？])\s+|(?<=[。！？])")


@dataclass(frozen=True)
class Passage:
    """A part of a document, and where it stands: `handbook.md, passage 3`."""

    place: str
    text: str
    origin: str = ""  # the source, without the row
    licence: str | None = None
    redacted: dict[str, int] = field(default_factory=dict)  # personal data taken out: how many of each kind


def read(documents: tuple[Source, ...], bad_rows: str, settings: Privacy, licence_policy: str) -> list[Passage]:
    """All passages, in the order of the documents, without personal data as `settings.prompts` has it.

    Raises UserError if `licence_policy` refuses a document's licence, for a row without text unless `bad_rows` is
    skip, for a file that is not there or not UTF-8, and if no passage is long enough.
    """
    found = []
    skipped: list[str] = []
    for source in map(licences.with_card, documents):
        for place, text, licence in _texts(source):
            if isinstance(text, BadRowError):
                skipped.append(f"{place}: {text}")
                if bad_rows == "error":
                    raise UserError(f"{skipped[0]} (prepare.bad_rows=skip leaves such rows out)")
                continue
            origin = source.path or source.dataset or ""
            licences.check_source(origin, licence, licence_policy)
            removed: Counter[str] = Counter()
            if settings.prompts != "off":  # before it is cut: a key may have a blank line
                text = privacy.redact(text, settings, removed)
            for number, passage in enumerate(cut(text), 1):
                personal = privacy.placeholders(passage, removed) if settings.prompts != "off" else {}
                if not personal or settings.prompts == "redact":
                    found.append(Passage(f"{place}, passage {number}", passage, origin, licence, personal))
    if not found:
        told = f"; {len(skipped)} rows were skipped, the first {skipped[0]}" if skipped else ""
        raise UserError(f"prepare.synthesis.documents hold no passage of at least {MIN_WORDS} words{told}")
    return found


def cut(text: str) -> list[str]:
    """A document as passages of 40 to 200 words: paragraphs are kept together, those that are longer cut at sentences.

    What is left at the end and shorter is left out.
    """
    passages: list[str] = []
    current, num_words = "", 0
    for joint, part in _parts(text):
        length = len(words(part))
        if num_words and num_words + length > MAX_WORDS:
            passages.append(current)
            current, num_words = "", 0
        current, num_words = (current + joint + part if current else part), num_words + length
    passages.append(current)
    return [passage for passage in passages if MIN_WORDS <= len(words(passage)) <= MAX_WORDS]


def _parts(text: str) -> Iterator[tuple[str, str]]:
    """`(what joins it to the part before, part)`: paragraphs, or the sentences of long ones."""
    for paragraph in _PARAGRAPH.split(text.strip()):
        is_long = len(words(paragraph)) > MAX_WORDS
        for number, part in enumerate(_SENTENCE.split(paragraph) if is_long else [paragraph]):
            yield (" " if number else "\n\n"), part.strip()


def _texts(source: Source) -> Iterator[tuple[str, str | BadRowError, str | None]]:
    """`(place, text, licence)` of each document; in place of the text stands what is wrong with a row without one."""
    path = Path(source.path or "")
    if containers.kind(path) in (".txt", ".md"):
        if not path.is_file():
            raise UserError(f"{path}: no such document (prepare.synthesis.documents)")
        try:
            with containers.unpacked(path) as stream:
                yield str(path), stream.read().decode(containers.encoding(path)), source.licence
        except UnicodeError as error:
            raise UserError(f"{path}: not UTF-8 text ({error})") from None
        return
    for place, row in corpora.read(source, {source.prompt, *sources.LICENCE}):
        if isinstance(row, BadRowError):
            yield place, row, None
            continue
        text = row.get(source.prompt)
        if isinstance(text, str) and text.strip():
            yield place, corpora.utf8(text), sources.licence_of(row, source)
        else:
            told = f"name yours in the document's `prompt`; the row has: {listed(row)}"
            yield place, BadRowError(f"no text in column {source.prompt!r} ({told}){hint(source.prompt, row)}"), None
