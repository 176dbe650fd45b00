"""The rules. Each is a pure function of one answer and of the settings: what it measured, and whether the answer stays.

True = keep. None: the rule is off, or has nothing to say of this answer. A rule's reason is its name here; report/
figures.py says which setting it is held to. What needs a student that exists already (learnability) is not here.
"""

from collections.abc import Iterator, Sequence

from pipeline.config import Filter
from pipeline.filter.rules import confidence, form, language, quality, refusals, repetition
from pipeline.filter.rules.response import Response, Rule, Run, Verdict

__all__ = ["REFUSAL", "RULES", "Response", "Rule", "Run", "Verdict", "verdicts"]

REFUSAL = "refusal"  # the one rule that marks only: filter keeps some of what it says no to

RULES: dict[str, Rule] = {
    "empty": form.empty,
    "truncated": form.truncated,
    "unfinished": form.unfinished,
    "control_tokens": form.control_tokens,
    "template_markup": form.template_markup,
    "unclosed_fence": form.unclosed_fence,
    "unclosed_tag": form.unclosed_tag,
    "broken_characters": form.broken_characters,
    "too_short": form.too_short,
    "too_long": form.too_long,
    "length_ratio": form.length_ratio,
    "echo": form.echo,
    "broken_json": form.broken_json,
    "repeated_sentence": repetition.repeated_sentence,
    "repeated_paragraph": repetition.repeated_paragraph,
    "repeated_ngrams": repetition.repeated_ngrams,
    "top_ngrams": repetition.top_ngrams,
    "duplicate_ngrams": repetition.duplicate_ngrams,
    "duplicate_lines": repetition.duplicate_lines,
    "duplicate_paragraphs": repetition.duplicate_paragraphs,
    "few_words": quality.few_words,
    "symbols": quality.symbols,
    "word_lengths": quality.word_lengths,
    "wrong_language": language.wrong_language,
    "unexpected_script": language.unexpected_script,
    "confident_loop": confidence.confident_loop,
    "low_confidence_span": confidence.low_confidence_span,
    "high_nll": confidence.high_nll,
    "teacher_identity": refusals.teacher_identity,
    REFUSAL: refusals.refusal,
}
BLOCK_ANSWERS = 64


def verdicts(
    answers: Sequence[Response], settings: Filter, names: Sequence[str] = tuple(RULES)
) -> Iterator[dict[str, Verdict]]:
    """What the rules say of each answer, by name; a rule that is off or has nothing to say is left out.

    Rule by rule over some answers at once: a processor's caches hold one rule's code and tables, not those of thirty.
    """
    for start in range(0, len(answers), BLOCK_ANSWERS):
        block = answers[start : start + BLOCK_ANSWERS]
        found: list[dict[str, Verdict]] = [{} for _ in block]
        for name in names:
            for answer, said in zip(block, found, strict=True):
                verdict = RULES[name](answer, settings)
                if verdict is not None:
                    said[name] = verdict
        yield from found
