"""What a teacher wrote when it was asked for a prompt: cleaned of what it wrapped around it, and judged.

Each rule is a pure function of one draft, True = keep. They are strict: a good prompt that is turned away costs one
more draft, a bad one that is taken costs an answer and a lesson.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from pipeline.console import HARMLESS, UNSAFE
from pipeline.text.repetition import duplicate_ngram_frac, longest_sentence_run
from pipeline.text.words import words

MIN_CHARACTERS = 8  # letters and digits; one of a script without spaces counts as a syllable, MIN_WIDE of them do
MIN_WIDE = 4
MAX_SENTENCE_RUN = 2
MAX_DUPLICATE_NGRAM_FRAC = 0.2
MAX_OTHER_SCRIPTS_FRAC = 0.2
MIN_SCRIPT_FRAC = 0.01  # of the sources' letters, for a script to count as one of theirs
MIN_SHARED_FRAC = 1 / 3
MIN_ENGLISH_FRAC = 0.15  # function words among all words

_QUOTES = {'"': '"', "'": "'", "“": "”", "‘": "’", "«": "»", "„": "“"}
_PREAMBLE = re.compile(
    r"(?:sure|certainly|of course|absolutely|okay|ok|here(?:['’]s| is| are)|below is)\b[^\n]*:\s*\n+", re.I
)
_LABEL = re.compile(
    r"[#*_\s]*(?:(?:a|the|my|your|new|next|rewritten|revised|user'?s?|example)\s+){0,3}"
    r"(?:prompt|request|task|question|instruction|message|user|[qa])(?:\s*\d+)?\s*[*_]*\s*:[*_\s]*",
    re.I,
)
_ITEM = re.compile(r"(?:\d{1,2}[.)]|[-*•])\s+")
_NEXT_ITEM = re.compile(r"\n\s*(?:\d{1,2}[.)]|[-*•])\s")


def _any_of(*patterns: str) -> re.Pattern[str]:
    return re.compile("|".join(patterns), re.I)


_ANSWER_OPENING = _any_of(
    r"(?:sure|certainly|of course|absolutely|great question|welcome|the answer)\b",
    r"thank you for\b|thanks for (?:asking|reaching)\b",
    r"as an? (?:ai|language model|assistant)\b",
    r"i(?:['’]m| am) (?:sorry|an ai|a language model|happy to|glad)\b",
    r"i(?:['’]d| would) be (?:happy|glad|delighted)\b",
    r"i (?:apologi[sz]e|can(?:no|['’])t (?:help|assist|provide|fulfil))",
    r"here(?:['’]s|['’]re| is| are)\b",
    r"let(?:['’]s) (?:start|begin|dive)\b|in this (?:case|example)\b|you can (?:use|do|create|write|also)\b",
    r"you(?:['’]re| are) (?:welcome|an? (?:ai|helpful|expert|experienced|skilled))\b",
    r"to (?:solve|answer|find|calculate) (?:this|the)\b",
)
_ANSWER_WITHIN = _any_of(
    r"(?:^|\n)\W*(?:answer|solution|response|reply|assistant|output|explanation|ai|bot)\s*[*_]*\s*:",
    r"as an ai\b|language model|(?:how|what) (?:can|may) i (?:help|assist|do for) you",
)
_FENCED = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)
_TEMPLATE = _any_of(
    r"<\|[^|\n]{0,40}\|>|\[/?INST\]|</?s>|<(?:start|end)_of_turn>|</?think>|\{\{|\}\}|\{%|%\}",
    r"\[(?:insert|your|my|name|topic|passage|text|user|subject|company|city|date|number|product|location|x|the|an?)\b"
    r"[\w '’/,-]*\]",
    r"\b(?:given|original|rewritten|new|above|following|previous|created) (?:prompt|request|instruction)s?\b",
    r"\bthe (?:prompt|instruction|user'?s? message)s?\b|\b(?:the )?above messages?\b|\bthe user (?:asks|wants|is)\b",
)
_WISHES = _any_of(
    r"\b(?:please|pls|plz|help me|give me|tell me|show me|let me know|your task|(?:i|we|and) need)\b",
    r"\b(?:can|could|would|will) (?:you|someone|i|we)\b",
    r"\bi want\b|\bi(?:['’]d| would) like\b",
    r"\bi(?:['’]m| am) (?:looking|trying|struggling|wondering|not sure|unsure)\b",
    r"\bhow (?:do|does|can|could|should|would|much|many|to)\b",
    r"\bwhat (?:is|are|do|does|should|would|can)\b",
    r"\bany (?:ideas|tips|advice|suggestions)\b",
)
_SENTENCE = re.compile(r"(?:^|[.!?:;\n\"'“”‘’)]\s+|\n)([^\W\d_][\w'’]*)(?![\w,(=[]|\.\w)")
_LED_IN = re.compile(  # `In two sentences, explain`
    r"(?:^|[.!?:\n]\s+)(?:in|for|with|using|as|to|if|when|after|before|without|from|now|then|next|first|here)\b"
    r"[^.!?\n]{0,120}?,\s*([^\W\d_][\w'’]*)",
    re.I,
)
_VERBS = frozenset(  # with which a sentence asks for something
    """act adapt add advise analyse analyze answer argue arrange ask be boil brainstorm build calculate call caption
    change check choose cite classify clean combine come compare complete compose compute condense construct
    convert convince correct count create critique cut debug decide define demonstrate derive describe design
    determine develop diagnose discuss divide do draft draw edit emulate estimate evaluate expand explain explore
    express extract factor fill find finish fix format generate get give grade group guess help identify imagine
    implement improve interpret introduce invent list make match mention modify name narrate need offer open optimise
    optimize order outline paraphrase pick plan play please plot pls predict prepare present pretend print
    proofread propose prove provide pull put quote rank rate read recite recommend reduce refactor remove rename
    reorder repeat rephrase replace reply respond restate restructure review revise reword rewrite round say
    score select send shorten show simplify simulate sing sketch solve sort speak split spot start state suggest
    sum summarise summarize swap take talk teach tell tidy title tone track transform translate trim turn
    underline use verify walk work write""".split()  # noqa: SIM905 - a list would be eighty lines
)
_QUESTIONS = frozenset(  # with which it does too, though its question mark be missing
    """what whats what's when where which who whose why how can could would will should do does did is are was were
    any""".split()  # noqa: SIM905
)
_ENGLISH = frozenset(  # function words
    """the a an of to and in is are was for with on that this it i my me you your be as at by from or how what
    can""".split()  # noqa: SIM905
)


@dataclass(frozen=True)
class Draft:
    """What the rules see of a draft."""

    text: str  # cleaned
    is_ended: bool  # the teacher wrote an end of turn
    has_control_tokens: bool  # special tokens before that end
    scripts: frozenset[str]  # those that the sources are written in
    subject: str | None = None  # a text that it has to be about


def scripts_of(texts: Iterable[str]) -> frozenset[str]:
    """The scripts, as Unicode names them (LATIN, CJK, ...), that make up at least 1 % of the letters."""
    letters = Counter(_script(character) for text in texts for character in text if character.isalpha())
    return frozenset(name for name, num in letters.items() if num >= MIN_SCRIPT_FRAC * letters.total())


def clean(text: str) -> str:
    """The prompt without what teachers write around one: a preamble, a label, a list's number, quotation marks."""
    text, before = text.strip(), ""
    while text != before:
        before = text
        for wrapping in (_PREAMBLE, _LABEL):
            if match := wrapping.match(text):
                text = text[match.end() :].strip()
        if match := _ITEM.match(text):
            text = _NEXT_ITEM.split(text[match.end() :])[0].strip()
        if len(text) > 1 and _QUOTES.get(text[0]) == text[-1] and text[-1] not in text[1:-1]:
            text = text[1:-1].strip()
    return text


def ended(draft: Draft) -> bool:
    """The teacher ended the draft itself: what max_tokens cut is not a whole request."""
    return draft.is_ended


def no_control_tokens(draft: Draft) -> bool:
    """No special token before the end (NeMo Curator, open-instruct)."""
    return not draft.has_control_tokens


def long_enough(draft: Draft) -> bool:
    """At least 8 letters or digits, or 4 characters of a script that writes syllables or words with one."""
    num = sum(character.isalnum() for character in draft.text)
    wide = sum(unicodedata.east_asian_width(c) == "W" and c.isalpha() for c in draft.text)
    return num >= MIN_CHARACTERS or wide >= MIN_WIDE


def printable(draft: Draft) -> bool:
    """No control, bidi, private or undecodable characters; tabs, line ends and joiners aside."""
    odd = (c for c in draft.text if c == "\ufffd" or unicodedata.category(c) in {*UNSAFE, "Co", "Cn"})
    return all(c in "\n\t" + HARMLESS for c in odd)


def same_scripts(draft: Draft) -> bool:
    """At most a fifth of the letters are of scripts that the sources do not use; multilingual teachers stray."""
    letters = [c for c in draft.text if c.isalpha()]
    strange = sum(_script(c) not in draft.scripts for c in letters) if draft.scripts else 0
    return strange <= MAX_OTHER_SCRIPTS_FRAC * len(letters)


def no_template(draft: Draft) -> bool:
    """No markup of a chat template, no blank to be filled in, no talk of `the given prompt` (as WizardLM has it)."""
    return _TEMPLATE.search(_FENCED.sub("", draft.text)) is None


def no_answer(draft: Draft) -> bool:
    """It neither begins as assistants' answers do, nor goes on to one."""
    return not _ANSWER_OPENING.match(draft.text) and not _ANSWER_WITHIN.search(draft.text)


def not_repetitive(draft: Draft) -> bool:
    """No sentence three times in a row, and at most a fifth of the 10-grams of words repeated (Gopher, table A1)."""
    runs, ngrams = longest_sentence_run(draft.text), duplicate_ngram_frac(draft.text)
    return runs <= MAX_SENTENCE_RUN and ngrams <= MAX_DUPLICATE_NGRAM_FRAC


def asks(draft: Draft) -> bool:
    """It asks for something: ends with a question mark, has a sentence that begins as requests do, or a wish.

    Code between fences asks for nothing. Judged of English alone (a share of its function words): other languages are
    let pass.
    """
    text = _FENCED.sub("\n", draft.text).strip()
    all_words = words(text)
    if not all_words or text.rstrip("\"'”’) ").endswith("?"):
        return bool(all_words)
    if sum(word in _ENGLISH for word in all_words) < MIN_ENGLISH_FRAC * len(all_words):
        return True
    openings = {match[1].casefold() for match in _SENTENCE.finditer(text)}
    led_in = {match[1].casefold() for match in _LED_IN.finditer(text)}
    return bool(openings & (_VERBS | _QUESTIONS) or led_in & _VERBS) or _WISHES.search(text) is not None


def on_subject(draft: Draft) -> bool:
    """It shares a third of its longer words with the text it is to be about (or of that text's, if those are fewer).

    Words of four letters or more count, by their first five: crude stems, of languages that have spaces.
    """
    if draft.subject is None:
        return True
    ours, theirs = _stems(draft.text), _stems(draft.subject)
    if not ours:  # `Where is it?` is about nothing
        return all(len(word) == 1 for word in words(draft.text))
    return len(ours & theirs) >= MIN_SHARED_FRAC * min(len(ours), len(theirs))


RULES: dict[str, Callable[[Draft], bool]] = {  # by the reason with which one says no
    "truncated": ended,
    "control_tokens": no_control_tokens,
    "too_short": long_enough,
    "unprintable": printable,
    "other_script": same_scripts,
    "template_leftovers": no_template,
    "answer_like": no_answer,
    "repetitive": not_repetitive,
    "not_a_request": asks,
    "off_subject": on_subject,
}


def reason(draft: Draft) -> str | None:
    """The first rule that turns the draft away, by name; None where all keep it."""
    return next((name for name, keeps in RULES.items() if not keeps(draft)), None)


def _stems(text: str) -> set[str]:
    return {word[:5] for word in words(text) if len(word) > 3} - _QUESTIONS


def _script(character: str) -> str:
    return unicodedata.name(character, "UNKNOWN").split()[0]
