"""Checks of wording: counts, words that must or must not stand there, beginnings and ends, case, language."""

import re
import unicodedata
from typing import Annotated, Literal

from pydantic import Field

from pipeline.text.language import detector

Count = Annotated[int, Field(ge=0)]
Text = Annotated[str, Field(min_length=1)]
Texts = Annotated[list[Text], Field(min_length=1)]
Script = Literal[
    "latin", "cyrillic", "greek", "arabic", "hebrew", "devanagari", "thai", "hangul", "japanese", "chinese"
]

# How Unicode's names of a script's letters begin.
SCRIPTS = {"japanese": ("HIRAGANA", "KATAKANA", "CJK"), "chinese": ("CJK",)}
MIN_SCRIPT_FRAC = 0.9  # of the letters: a name or a unit may be in another
_WORD = re.compile(r"\S*\w\S*")
_MARKER = re.compile(r"^[ \t]*(?:[-*+•]|\d+[.)]|#+)\s+", re.MULTILINE)  # of a list or a heading
_ABBREVIATION = re.compile(r"\b(?:Mrs?|Ms|Dr|Prof|St|vs|etc|e\.g|i\.e|P\.S)\.(?=\s+\S)")
_SENTENCE_END = re.compile(r"[.!?…]+[\"'”’)\]*_]*(?=\s|$)|[。！？]|\n\s*\n|\n(?=- )")
_QUOTES = str.maketrans("“”„«»‘’‚", '"""""\'\'\'')


def plain(text: str) -> str:
    """A text without white space around it, its quotation marks straight."""
    return text.strip().translate(_QUOTES)


def words_of(text: str) -> list[str]:
    """What stands between spaces and has a letter or a digit: `well-known` is one word, a dash is none."""
    return _WORD.findall(_MARKER.sub("", text))


def sentences_of(text: str) -> list[str]:
    """Pieces that end in a full stop, a question or exclamation mark, or with a paragraph or list item."""
    text = _MARKER.sub("- ", text.strip())
    text = _ABBREVIATION.sub(lambda abbreviation: abbreviation[0].replace(".", ""), text)
    return [piece for piece in _SENTENCE_END.split(text) if re.search(r"\w", piece)]


def within(num: int, low: int | None, high: int | None) -> bool:
    """Whether low ≤ num ≤ high. Raises ValueError where neither is given, for then nothing is asked."""
    if low is None and high is None:
        raise ValueError("give low, high or both")
    if low is not None and high is not None and low > high:
        raise ValueError("low is above high")
    return (low is None or num >= low) and (high is None or num <= high)


def _times(word: str, text: str) -> int:
    """How often a word or phrase stands in a text, whole, in any case."""
    spaced = r"\s+".join(map(re.escape, plain(word).split()))
    return len(re.findall(rf"(?<!\w){spaced}(?!\w)", plain(text), re.IGNORECASE))


def num_words(answer: str, low: Count | None = None, high: Count | None = None) -> bool:
    """So many words."""
    return within(len(words_of(answer)), low, high)


def num_sentences(answer: str, low: Count | None = None, high: Count | None = None) -> bool:
    """So many sentences."""
    return within(len(sentences_of(answer)), low, high)


def num_paragraphs(answer: str, low: Count | None = None, high: Count | None = None) -> bool:
    """So many paragraphs, with empty lines between them."""
    return within(len([part for part in re.split(r"\n\s*\n", answer) if part.strip()]), low, high)


def num_lines(answer: str, low: Count | None = None, high: Count | None = None) -> bool:
    """So many lines that are not empty."""
    return within(len([line for line in answer.splitlines() if line.strip()]), low, high)


def num_characters(answer: str, low: Count | None = None, high: Count | None = None) -> bool:
    """So many characters, spaces between words included."""
    return within(len(answer.strip()), low, high)


def num_questions(answer: str, low: Count | None = None, high: Count | None = None) -> bool:
    """So many sentences that end in a question mark."""
    return within(len(re.findall(r"[?？]+", answer)), low, high)


def num_capital_words(answer: str, low: Count | None = None, high: Count | None = None) -> bool:
    """So many words of two or more letters, all of them capitals."""
    return within(sum(word.isupper() and sum(map(str.isalpha, word)) > 1 for word in words_of(answer)), low, high)


def word_frequency(answer: str, word: Text, low: Count | None = None, high: Count | None = None) -> bool:
    """A word or phrase stands there so often, whole, in any case."""
    return within(_times(word, answer), low, high)


def text_frequency(answer: str, text: Text, low: Count | None = None, high: Count | None = None) -> bool:
    """A letter, a mark or any text occurs so often, inside words too, in any case."""
    return within(plain(answer).casefold().count(plain(text).casefold()), low, high)


def includes(answer: str, words: Texts) -> bool:
    """All these words or phrases stand there, whole, in any case."""
    return all(_times(word, answer) for word in words)


def excludes(answer: str, words: Texts) -> bool:
    """None of these words or phrases stands there, whole, in any case."""
    return not any(_times(word, answer) for word in words)


def lacks(answer: str, characters: Text) -> bool:
    """None of these characters occurs, in any case: no commas, no letter e."""
    return not set(characters.casefold()) & set(answer.casefold())


def starts_with(answer: str, text: Text) -> bool:
    """It begins so, in any case."""
    return plain(answer).casefold().startswith(plain(text).casefold())


def ends_with(answer: str, text: Text) -> bool:
    """It ends so, in any case, and nothing comes after."""
    return plain(answer).casefold().endswith(plain(text).casefold())


def lower_case(answer: str) -> bool:
    """It has letters, and no capital."""
    return answer.islower()


def upper_case(answer: str) -> bool:
    """It has letters, and only capitals."""
    return answer.isupper()


def wrapped(answer: str, opening: Text, closing: Text) -> bool:
    """All of it stands between these marks; straight and curly quotation marks are the same."""
    text, first, last = plain(answer), plain(opening), plain(closing)
    inside = text[len(first) : len(text) - len(last)]
    return text.startswith(first) and text.endswith(last) and bool(inside.strip())


def sentence_words(answer: str, high: Annotated[int, Field(ge=1)]) -> bool:
    """No sentence has more words than this."""
    return all(len(words_of(sentence)) <= high for sentence in sentences_of(answer))


def word_letters(answer: str, low: Count | None = None, high: Count | None = None) -> bool:
    """Each word has so many letters."""
    lengths = [sum(map(str.isalpha, word)) for word in words_of(answer)]
    within(0, low, high)  # what is asked must be something, also of no words
    return all(within(length, low, high) for length in lengths)


def word_initials(answer: str, letter: Annotated[str, Field(min_length=1, max_length=1)]) -> bool:
    """Each word begins with this letter, in any case."""
    return all(word.lstrip("\"'([*_“‘").casefold().startswith(letter.casefold()) for word in words_of(answer))


def no_word_twice(answer: str) -> bool:
    """No word stands there a second time, in any case."""
    folded = [re.sub(r"^\W+|\W+$", "", word).casefold() for word in words_of(answer)]
    return len(set(folded)) == len(folded)


def script(answer: str, script: Script) -> bool:
    """Its letters are of this script, but for a tenth."""
    letters = [unicodedata.name(character, "") for character in answer if character.isalpha()]
    beginnings = SCRIPTS.get(script, (script.upper(),))
    return bool(letters) and sum(name.startswith(beginnings) for name in letters) >= MIN_SCRIPT_FRAC * len(letters)


def language(answer: str, code: Annotated[str, Field(pattern="^[a-z]{2,3}$")]) -> bool:
    """Its likeliest language by fastText's small model (Joulin et al. 2016) has this ISO 639 code."""
    text = " ".join(_MARKER.sub("", answer).split())
    return bool(text) and detector().detect(text.lower(), k=1)[0]["lang"] == code
