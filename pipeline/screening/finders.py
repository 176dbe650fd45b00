"""Finders of personal data and secrets by their shape, one for each of config.PII_KINDS: see FINDERS.

Each yields the places of its kind; what costs is done only where a text has the marks of that kind. Left alone is what
by its own standard belongs to nobody: example.com (RFC 2606), documentation, private and loopback addresses (RFC 5737,
3849, 1918), telephone numbers kept for fiction.
"""

import ipaddress
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from phonenumbers import Leniency, PhoneNumberMatcher
from stdnum import iban, luhn

from pipeline.config import Privacy

Places = Iterator[tuple[int, int]]  # start and end of each find, in characters

SPACE = " \u00a0\u202f"  # also those that don't break a line

LETTER = r"A-Za-z0-9\u00c0-\u024f"  # Latin ones: what stands before without a space, in Chinese say, is not taken in
EMAIL = re.compile(
    rf"(?<![{LETTER}_.+%-])[{LETTER}_][{LETTER}_.+%'-]{{0,63}}(?:@|\s?[\[({{]\s?at\s?[\])}}]\s?)"
    rf"(?:[{LETTER}][{LETTER}-]{{0,61}}(?:\.|\s?[\[({{]\s?dot\s?[\])}}]\s?)){{1,8}}([A-Za-z]{{2,24}})(?![{LETTER}])",
    re.IGNORECASE,
)
COMMON_END = re.compile("[a-z]{2}|com|org|net|edu|gov|mil|info|biz|dev|app|xyz|online|cloud|email", re.IGNORECASE)
NOBODYS_DOMAIN = re.compile(
    r"(?:^|\.)(?:example\.(?:com|org|net|edu)|example|test|invalid|localhost|local|internal|lan)$", re.IGNORECASE
)


def emails(text: str, settings: Privacy) -> Places:
    """Addresses with a domain of several labels, also written `name [at] host [dot] org`; not those of RFC 2606."""
    if "@" not in text and "at]" not in text and "at)" not in text and "at}" not in text:
        return
    for match in EMAIL.finditer(text):
        local, _, domain = match[0].partition("@")
        is_remote = local == "git" and text[match.end() : match.end() + 1] in (":", "/")  # git@github.com:owner/name
        is_call = text[match.end() : match.end() + 1] in ("(", "[") and not COMMON_END.fullmatch(
            match[1]
        )  # a @ b.dot(c)
        if not is_remote and not is_call and not NOBODYS_DOMAIN.search(domain):
            yield match.span()


SEPARATOR = rf"[{SPACE}\t.\-\u2010-\u2015/()~]"
DIGITS = re.compile(rf"[0-9](?:{SEPARATOR}{{0,3}}[0-9]){{6,}}")
CALL = re.compile(
    r"(?:\b(?:tel|telephone|phone|mobile|cell|fax|call|ring|text|sms|whatsapp|dial|handy|telefon|téléphone|tél)\b"
    r"[\w\s.'(]{0,16}[:\s(]\s*)$",
    re.IGNORECASE,
)
BOOK = re.compile(r"(?:isbn|issn|doi|ean|gtin)\W*(?:-?1[03])?\W*$", re.IGNORECASE)
FICTION = (  # after the country's code: NANPA keeps 555-0100 to 555-0199, Ofcom these for drama
    (1, re.compile(r"[2-9][0-9]{2}55501[0-9]{2}")),
    (44, re.compile(r"1632960[0-9]{3}|7700900[0-9]{3}|2079460[0-9]{3}|1[0-9]{2}4960[0-9]{3}")),
)


def phones(text: str, settings: Privacy) -> Places:
    """Valid numbers (libphonenumber): with a + anywhere; of `privacy.phone_regions` as they are written there.

    Without a + a number must be written in groups, or follow a word such as `tel`: else ten digits are any number.
    """
    for digits in DIGITS.finditer(text):
        before = text[max(0, digits.start() - 32) : digits.start()].rstrip("(+\uff0b ")
        has_plus = text[max(0, digits.start() - 3) : digits.start()].strip(" (").endswith(("+", "\uff0b"))
        is_called = CALL.search(f"{before} ") is not None
        if not has_plus and (BOOK.search(before) or not (is_called or re.search(SEPARATOR, digits[0]))):
            continue
        first = max(0, digits.start() - 4)
        around = text[first : digits.end() + 8]
        for region in settings.phone_regions or (None,):
            for start, end in _numbers(around, region, is_called):
                yield first + start, first + end


def _numbers(text: str, region: str | None, is_called: bool) -> Places:
    matches = list(PhoneNumberMatcher(text, region, leniency=Leniency.VALID))
    if not matches:
        return
    strict = PhoneNumberMatcher(text, region, leniency=Leniency.STRICT_GROUPING)
    grouped = {match.start for match in strict if re.search(SEPARATOR, match.raw_string)}
    for match in matches:
        is_international = match.raw_string.lstrip("(").startswith(("+", "\uff0b"))
        if (is_international or is_called or match.start in grouped) and not _in_fiction(match.number):
            is_open = match.raw_string.startswith("(") and ")" not in match.raw_string
            yield match.start + is_open, match.end


def _in_fiction(number: Any) -> bool:
    country, national = number.country_code, str(number.national_number)
    return any(country == code and shape.fullmatch(national) for code, shape in FICTION)


CARD = re.compile(
    rf"(?<![\w.])(?:(?:4[0-9]{{3}}|5[1-5][0-9]{{2}}|2[2-7][0-9]{{2}}|6(?:011|4[4-9][0-9]|5[0-9]{{2}})|62[0-9]{{2}}"
    rf"|35(?:2[89]|[3-8][0-9]))([{SPACE}-]?)[0-9]{{4}}\1[0-9]{{4}}\1[0-9]{{4}}"
    rf"|3[47][0-9]{{2}}([{SPACE}-]?)[0-9]{{6}}\2[0-9]{{5}}|3(?:0[0-5]|[68][0-9])[0-9]([{SPACE}-]?)[0-9]{{6}}\3[0-9]{{4}})"
    r"(?!\w|[.,][0-9])",
    re.ASCII,
)


def cards(text: str, settings: Privacy) -> Places:
    """Numbers of 14 to 16 digits with an issuer's prefix and a right check digit (ISO/IEC 7812, Luhn).

    One in ten numbers of such a shape has that digit by chance.
    """
    if not DIGITS.search(text):
        return
    for match in CARD.finditer(text):
        if luhn.is_valid(re.sub(r"\D", "", match[0])):
            yield match.span()


IBAN = re.compile(rf"(?<!\w)[A-Z]{{2}}[0-9]{{2}}(?:[{SPACE}-]?[A-Z0-9]){{11,30}}", re.IGNORECASE | re.ASCII)


def ibans(text: str, settings: Privacy) -> Places:
    """Account numbers of the length and shape of their country, with right check digits (ISO 13616, mod 97)."""
    if not DIGITS.search(text):
        return
    for match in IBAN.finditer(text):
        ends = [place.end() for place in re.finditer(r"[A-Za-z0-9](?![A-Za-z0-9])", match[0])]
        for end in reversed(ends):  # what follows may look like more of it
            number = re.sub(r"[^A-Za-z0-9]", "", match[0][:end])
            if 15 <= len(number) <= 34 and iban.is_valid(number, check_country=False):
                yield match.start(), match.start() + end
                break


DOTTED = re.compile(r"[0-9]\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]")
IPV4 = re.compile(r"(?<![^\W_]|[.-])(?<!\w/)(?<![=<>!~]=)[0-9]{1,3}(?:\.[0-9]{1,3}){3}(?![^\W_]|-|\.\w)", re.ASCII)
IPV6 = re.compile(r"[23](?<![\w:.].)[0-9A-Fa-f]{3}:[0-9A-Fa-f:.]{2,40}(?!\w)", re.ASCII)
VERSION = re.compile(
    r"(?:\b(?:versions?|ver|v|releases?|build|firmware|software|driver|kernel|update|revision|rev|section|chapter|clause"
    r"|paragraph|figure|table|rule|article|oid|tag)\b|§)\.?(?:\s|number|no\.|from|to|and|or|is|was|in|at|[0-9.]|[,:=(\"'`])*$",
    re.IGNORECASE,
)
GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")


def ips(text: str, settings: Privacy) -> Places:
    """Addresses that the whole Internet can reach; not those kept for documents, private nets and the machine itself.

    Four numbers below 10, and four after a word such as `version`, are taken as a version or a section: so are the
    best-known public resolvers (1.1.1.1, 8.8.8.8), which are nobody's either.
    """
    if DOTTED.search(text):
        for match in IPV4.finditer(text):
            octets = match[0].split(".")
            before = text[max(0, match.start() - 40) : match.start()]
            if all(len(octet) == 1 for octet in octets) or VERSION.search(before):
                continue
            if _is_reachable(match[0]):
                yield match.span()
    if ":" in text:
        for match in IPV6.finditer(text):
            written = match[0].rstrip(".:") + ("::" if match[0].endswith("::") else "")
            if _is_reachable(written):
                yield match.start(), match.start() + len(written)


def _is_reachable(written: str) -> bool:
    try:
        address = ipaddress.ip_address(written)
    except ValueError:
        return False
    return address.is_global and not address.is_multicast and (address.version == 4 or address in GLOBAL_UNICAST)


# What a text must hold before its pattern is tried; group 1, where there is one, is the secret.
SECRETS: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (mark, re.compile(pattern, re.ASCII))
    for mark, pattern in (
        ("PRIVATE KEY-----", r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY-----(?s:.*?)(?:-----END [A-Z0-9 ]+-----|\Z)"),
        ("eyJ", r"(?<![\w-])eyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]{8,}"),  # JSON Web Token
        ("AKIA", r"(?<!\w)AKIA[A-Z0-9]{16}(?!\w)"),  # Amazon
        ("ASIA", r"(?<!\w)ASIA[A-Z0-9]{16}(?!\w)"),
        ("AIza", r"(?<![\w-])AIza[\w-]{35}(?![\w-])"),  # Google
        ("ya29.", r"(?<![\w-])ya29\.[\w-]{20,}"),
        ("AccountKey=", r"AccountKey=([A-Za-z0-9+/]{40,}={0,2})"),  # Azure
        ("gh", r"(?<!\w)gh[pousr]_[A-Za-z0-9]{36,255}(?!\w)"),  # GitHub
        ("github_pat_", r"(?<!\w)github_pat_\w{40,}"),
        ("glpat-", r"(?<!\w)glpat-[\w-]{20,}"),  # GitLab
        ("xox", r"(?<!\w)xox[abeoprs]-[A-Za-z0-9-]{10,}"),  # Slack
        ("hooks.slack.com", r"hooks\.slack\.com/services/[A-Za-z0-9/]{20,}"),
        ("sk-", r"(?<![\w-])sk-(?=[\w-]*[0-9])(?=[\w-]*[A-Z])[\w-]{20,}"),  # OpenAI, Anthropic and others
        ("k_live_", r"(?<!\w)[sr]k_live_[A-Za-z0-9]{16,}"),  # Stripe
        ("k_test_", r"(?<!\w)[sr]k_test_[A-Za-z0-9]{16,}"),
        ("hf_", r"(?<!\w)hf_[A-Za-z0-9]{30,}"),  # Hugging Face
        ("npm_", r"(?<!\w)npm_[A-Za-z0-9]{36}(?!\w)"),
        ("pypi-", r"(?<!\w)pypi-[\w-]{50,}"),
        ("SG.", r"(?<!\w)SG\.[\w-]{20,24}\.[\w-]{40,46}"),  # SendGrid
        (":AA", r"(?<!\w)[0-9]{8,10}:AA[\w-]{32,34}(?![\w-])"),  # Telegram
        (
            "://",
            r"(?<![a-z0-9+.-])[a-z][a-z0-9+.-]{0,30}://([^\s:/@<>{}$]+:[^\s/@<>{}$]+)@",
        ),  # name and password in a URL
    )
)
ASSIGNED = re.compile(
    r"(?:api[_-]?key|access[_-]?key|secret[_-]?key|client[_-]?secret|secret|auth[_-]?token|access[_-]?token|token"
    r"|passwo?r?d|pwd|bearer)[\w-]{0,40}[\"'`]?(?:\s*(?:=>|[:=])\s*|\s+)[\"'`]?([A-Za-z0-9+/_\-.~]{15,}[A-Za-z0-9+/_\-~]={0,2})(?![\w(\[{])",
    re.IGNORECASE,
)
PASSWORD = re.compile(
    r"\b(?:password|passwort|passwd|passphrase|pwd)\b[\"'`]?(?:\s+(?:is|ist)\s*:?\s+|\s*(?:=|:=?)\s*)[\"'`]?"
    r"([^\s\"'`<>(){}\[\],;$]{8,64})(?!\()",
    re.IGNORECASE,
)
ASSIGNS = ("key", "secret", "token", "passw", "passphrase", "pwd", "bearer")
PLACEHOLDER = re.compile(
    r"example|sample|dummy|your|change|insert|replace|xxxx|placeholder|0000|1234567890$|:(?:pass\w*|pwd|pw|secret|token|\*+)$",
    re.IGNORECASE,
)
MIN_PASSWORD = 8  # characters without white space
MIN_SECRET_BITS = 3.0  # entropy of its characters, each: random hexadecimal ones have up to 4, others up to 6


def secrets(text: str, settings: Privacy) -> Places:
    """Keys and tokens that are known by their prefix, private keys, passwords in URLs, and what looks random behind
    `api_key=` and its like: letters and digits in turn, MIN_SECRET_BITS a character; and behind `password:` what has
    both, eight characters or more."""
    longest = max(map(len, text.split()), default=0)
    if "PRIVATE KEY-----" not in text and longest < MIN_PASSWORD:
        return
    for mark, pattern in SECRETS:
        if mark in text:
            for match in pattern.finditer(text):
                place = match.span(1 if pattern.groups else 0)
                if not PLACEHOLDER.search(text[slice(*place)]) or mark == "PRIVATE KEY-----":
                    yield place
    lower = text.lower()
    if any(word in lower for word in ASSIGNS):
        for match in ASSIGNED.finditer(text):
            if _looks_random(match[1]) and not PLACEHOLDER.search(match[1]):
                yield match.span(1)
        for match in PASSWORD.finditer(text):
            secret = match[1].rstrip(".!?:")
            if _is_password(secret):
                yield match.start(1), match.start(1) + len(secret)


def _is_password(value: str) -> bool:
    """Letters and digits both, eight characters or more, and no stand-in or name of a variable."""
    has_both = any(map(str.isalpha, value)) and any(map(str.isdigit, value))
    is_stand_in = PLACEHOLDER.search(value) or re.match(r"(?i)pass|secret\d*$|[a-z_]\w*(?:\.[a-z_]\w*)+$", value)
    return len(value) >= 8 and has_both and not is_stand_in


def _looks_random(value: str) -> bool:
    """Letters and digits take turns, which they don't in names such as `my_token_v2`, and few of them return."""
    num_turns = len(re.findall(r"(?<=[A-Za-z])(?=[0-9])|(?<=[0-9])(?=[A-Za-z])", value))
    counts = Counter(value.rstrip("="))
    total = counts.total()
    bits = -sum(count / total * math.log2(count / total) for count in counts.values())
    return num_turns >= total / 8 and bits >= MIN_SECRET_BITS


FINDERS: dict[str, Callable[[str, Privacy], Places]] = {
    "secret": secrets,
    "email": emails,
    "iban": ibans,
    "card": cards,
    "ip": ips,
    "phone": phones,
}
