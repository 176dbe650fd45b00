"""What of an answer a program can verify: one pure function a kind of instruction, of the answer and its arguments.

After IFEval's idea of verifiable instructions (Zhou et al. 2023, arXiv:2311.07911); kinds and rules are our own.
"""

from collections.abc import Callable
from typing import Any

from pydantic import ConfigDict, ValidationError, validate_call

from pipeline.eval_sets.checkers import content, structure, wording

_FUNCTIONS: tuple[Callable[..., bool], ...] = (
    wording.num_words,
    wording.num_sentences,
    wording.num_paragraphs,
    wording.num_lines,
    wording.num_characters,
    wording.num_questions,
    wording.num_capital_words,
    wording.word_frequency,
    wording.text_frequency,
    wording.includes,
    wording.excludes,
    wording.lacks,
    wording.starts_with,
    wording.ends_with,
    wording.lower_case,
    wording.upper_case,
    wording.wrapped,
    wording.sentence_words,
    wording.word_letters,
    wording.word_initials,
    wording.no_word_twice,
    wording.script,
    wording.language,
    structure.num_bullets,
    structure.numbered_list,
    structure.title,
    structure.postscript,
    structure.placeholders,
    structure.sections,
    structure.line_initials,
    structure.table,
    structure.code_fence,
    structure.python_defines,
    structure.json_object,
    structure.json_array,
    structure.json_equals,
    content.number,
    content.items,
    content.alphabetical,
    content.choice,
    content.short_answer,
    content.matches,
    content.shorter_than,
    content.same_words,
    content.same_items,
)
KINDS: dict[str, Callable[..., bool]] = {
    function.__name__: validate_call(config=ConfigDict(strict=True))(function) for function in _FUNCTIONS
}


def fault(kind: str, arguments: dict[str, Any]) -> str | None:
    """What is wrong with a kind's arguments; None where an answer can be checked with them."""
    if kind not in KINDS:
        return f"no kind of check is called {kind!r}"
    try:
        KINDS[kind]("", **arguments)
    except ValidationError as error:
        first = error.errors()[0]
        return f"{kind}: {'.'.join(map(str, first['loc']))}: {first['msg'].lower()}"
    except ValueError as error:
        return f"{kind}: {error}"
    return None


def passes(kind: str, arguments: dict[str, Any], answer: str) -> bool:
    """Whether an answer, as it stands, does what was asked. An answer without text passes nothing."""
    return bool(answer.strip()) and KINDS[kind](answer, **arguments)


def passes_loosely(kind: str, arguments: dict[str, Any], answer: str) -> bool:
    """Whether it would without its first line, its last, either, or Markdown's asterisks (IFEval's loose accuracy).

    So that `Sure, here it is:` costs nothing here.
    """
    lines = answer.strip().split("\n")
    parts = ["\n".join(part) for part in (lines, lines[1:], lines[:-1], lines[1:-1])]
    return any(passes(kind, arguments, each) for part in parts for each in (part, part.replace("*", "")))
