"""Personal data made up for tests, 60 of each kind, in sentences of many shapes; and what only looks like it.

Check digits are computed here, by other code than that under test.
"""

import base64
import random
import string
from dataclasses import dataclass

import phonenumbers

NUM = 60
KINDS = ("secret", "email", "iban", "card", "ip", "phone")
ALNUM = string.ascii_letters + string.digits

CONTEXTS = (
    "You can reach her at {} on weekdays.",
    "{}",
    "Contact: {}",
    "Please write it down: {}. Then close the file.",
    'The record reads {{"value": "{}", "ok": true}} as you can see.',
    "- name: Ada\n- detail: {}\n- city: Turin",
    "| field | value |\n|---|---|\n| detail | {} |",
    "```python\nvalue = '{}'\nprint(value)\n```",
    "Is it ({}) or not?",
    "他的资料是{}，请保密。",
    "Voilà : {} — merci !",
    "🙂 {} 🙂",
    "First line.\n\n{}\n\nLast line.",
    "It was «{}», he said, “{{}}” aside.",
    "**{}**, and nothing else",
)


@dataclass(frozen=True)
class Item:
    """A text, and what in it is personal."""

    kind: str
    text: str
    secret: str

    @property
    def before(self) -> str:
        return self.text[: self.text.index(self.secret)]

    @property
    def after(self) -> str:
        return self.text[self.text.index(self.secret) + len(self.secret) :]


def items(seed: int = 0) -> list[Item]:
    """NUM of each kind, no two alike."""
    made: list[Item] = []
    for kind in KINDS:
        rng = random.Random(f"{kind} {seed}")
        seen: set[str] = set()
        while len(seen) < NUM:
            secret = MAKERS[kind](rng, len(seen))
            if secret not in seen:
                context = CONTEXTS[len(seen) % len(CONTEXTS)]
                made.append(Item(kind, context.format(secret), secret))
                seen.add(secret)
    return made


def _text(rng: random.Random, length: int, letters: str = ALNUM) -> str:
    return "".join(rng.choice(letters) for _ in range(length))


def _digits(rng: random.Random, length: int) -> str:
    return _text(rng, length, string.digits)


def email(rng: random.Random, number: int) -> str:
    first, last = _text(rng, 5, string.ascii_lowercase), _text(rng, 7, string.ascii_lowercase)
    local = (f"{first}.{last}", f"{first}{_digits(rng, 2)}", f"{first}_{last}", f"{first[0]}-{last}+news", last.title())
    host = ("gmail.com", "mail.acme.co.uk", "t-online.de", f"{last}.org", "sub.uni-jena.de", "proton.me")
    at = (" [at] ", "(at)", " {at} ")[number % 3] if number % 12 == 11 else "@"
    return f"{local[number % 5]}{at}{host[number % 6]}"


def card(rng: random.Random, number: int) -> str:
    prefix, length = (("4", 16), ("52", 16), ("2301", 16), ("37", 15), ("6011", 16), ("3530", 16), ("36", 14))[
        number % 7
    ]
    digits = prefix + _digits(rng, length - len(prefix) - 1)
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit) * (2 if place % 2 == 0 else 1)
        total += value - 9 if value > 9 else value
    digits += str(-total % 10)
    groups = [4, 6, length - 10] if length < 16 else [4, 4, 4, 4]
    separator = ("", " ", "-", "\u00a0")[number % 4]
    parts, place = [], 0
    for size in groups:
        parts.append(digits[place : place + size])
        place += size
    return separator.join(parts)


def iban(rng: random.Random, number: int) -> str:
    country, bban = (
        ("DE", _digits(rng, 18)),
        ("GB", "WEST" + _digits(rng, 14)),
        ("FR", _digits(rng, 10) + _text(rng, 11, string.digits + "ABCDEFGH") + _digits(rng, 2)),
        ("NL", "ABNA" + _digits(rng, 10)),
        ("CH", _digits(rng, 17)),
        ("AT", _digits(rng, 16)),
        ("NO", _digits(rng, 11)),
    )[number % 7]
    value = int("".join(str(int(letter, 36)) for letter in f"{bban}{country}00"))
    whole = f"{country}{98 - value % 97:02d}{bban}"
    return whole if number % 2 else " ".join(whole[n : n + 4] for n in range(0, len(whole), 4))


def ip(rng: random.Random, number: int) -> str:
    if number % 3 == 2:
        groups = [f"{rng.randrange(0x100, 0x10000):x}" for _ in range(4)]
        head = rng.choice(["2a00:1450", "2a02:8108", "2607:f8b0", "2400:cb00", "2a01:4f8"])
        return (
            f"{head}:{groups[0]}:{groups[1]}::{groups[2]}" if number % 2 else f"{head}:{':'.join(groups)}:1:{groups[0]}"
        )
    first = rng.choice([23, 31, 46, 62, 81, 87, 91, 109, 151, 178, 185, 212, 217])
    return ".".join(map(str, [first, rng.randrange(20, 255), rng.randrange(255), rng.randrange(1, 255)]))


def phone(rng: random.Random, number: int) -> str:
    region = ("US", "GB", "DE", "FR", "IT", "IN", "BR", "JP")[number % 8]
    nationally = region in ("US", "GB", "DE", "FR") and number % 3 == 0
    style = phonenumbers.PhoneNumberFormat.NATIONAL if nationally else phonenumbers.PhoneNumberFormat.INTERNATIONAL
    if number % 5 == 4:
        style = phonenumbers.PhoneNumberFormat.E164
    while True:
        example = phonenumbers.example_number_for_type(region, phonenumbers.PhoneNumberType.MOBILE)
        assert example is not None
        national = str(example.national_number)
        given = phonenumbers.PhoneNumber(
            country_code=example.country_code, national_number=int(national[:-6] + _digits(rng, 6))
        )
        if phonenumbers.is_valid_number(given) and "55501" not in str(given.national_number):
            return phonenumbers.format_number(given, style)


def secret(rng: random.Random, number: int) -> str:
    jwt = ".".join(
        base64.urlsafe_b64encode(part.encode()).decode().rstrip("=")
        for part in ('{"alg":"HS256","typ":"JWT"}', f'{{"sub":"{_digits(rng, 10)}"}}', _text(rng, 32))
    )
    body = "\n".join(_text(rng, 64) for _ in range(3))
    shapes = (
        f"AKIA{_text(rng, 16, string.ascii_uppercase + string.digits)}",
        f"ghp_{_text(rng, 36)}",
        f"sk-proj-A7{_text(rng, 40)}",
        f"AIza{_text(rng, 35)}",
        f"xoxb-{_digits(rng, 11)}-{_text(rng, 24)}",
        f"hf_{_text(rng, 34)}",
        jwt,
        f"-----BEGIN RSA PRIVATE KEY-----\n{body}\n-----END RSA PRIVATE KEY-----",
        f"sk_live_{_text(rng, 24)}",
        f"glpat-{_text(rng, 20)}",
        f"github_pat_{_text(rng, 60)}",
        f"{_digits(rng, 9)}:AA{_text(rng, 33)}",
    )
    return shapes[number % len(shapes)]


MAKERS = {"secret": secret, "email": email, "iban": iban, "card": card, "ip": ip, "phone": phone}

LOOK_ALIKES = (
    "Upgrade from version 10.14.6.23 to 11.2.0.18 first.",
    "Chrome/120.0.6099.71 and Safari/605.1.15 differ.",
    "pip install package==12.24.31.44",
    "See section 12.14.31.22 of the manual.",
    "The firmware is 21.14.33.8, released in May.",
    "v12.31.44.8 fixes it.",
    "Listen on 127.0.0.1:8080 or 0.0.0.0.",
    "The router is 192.168.1.1, the host 10.0.0.17 and the gateway 172.16.4.2.",
    "RFC 5737 keeps 192.0.2.44, 198.51.100.7 and 203.0.113.99 for documents.",
    "The prefix 2001:db8::1 is for documentation, ::1 is loopback, fe80::1 is link-local.",
    "A resolver such as 8.8.8.8 or 1.1.1.1 will do.",
    "std::vector<int> a; abc::def::fed(a);",
    "At 12:34:56 the MAC 00:1A:2B:3C:4D:5E was seen.",
    "Its OID is 1.3.6.1.4.1.311.21.7.",
    "Multicast goes to 224.0.0.251.",
    "300.12.14.999 is no address.",
    "Order 4539578763621487 was not found.",  # a card's shape, a wrong check digit
    "Order number 1234567890123456 ships on Monday.",
    "Invoice 2023-000123-4567, total 1,234,567.89 EUR",
    "ISBN 978-3-16-148410-0 is a book.",
    "ISBN-10: 0-306-40615-2, ISBN-13: 978-0-306-40615-7",
    "ISSN 2049-3630, DOI 10.1000/182, EAN 4006381333931",
    "IMEI 356938035643809 is a phone's own number.",
    "Pi is 3.14159265358979323846, e is 2.718281828459045.",
    "0.4111111111111111 is 37/90.",
    "The answer is 4111111111111112.",
    "2^64 = 18446744073709551616 and 2^53 = 9007199254740992.",
    "12345678 * 87654321 = 1082152022374638",
    "1, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 233, 377, 610",
    "10 20 30 40 50 60 70 80 90 100",
    "In 1969 - 1972 there were 6 landings, 12 people.",
    "On 2024-03-15 at 14:30:00+01:00, or 15/03/2024.",
    "The timestamp 1710509400 is 2024-03-15T13:30:00Z.",
    "Between 1914-1918 and 1939-1945 lie 21 years.",
    "Divide 415 by 26, and 7128 by 12.",
    "Coordinates: 52.520008, 13.404954.",
    "ZIP 94103-1234, Postfach 10 06 21, SW1A 1AA",
    "commit 9fceb02d0ae598e95dc970b74767f19372d61af8",
    "sha256: e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "id 550e8400-e29b-41d4-a716-446655440000",
    "Write to info@example.com or ada@example.org.",
    "user@localhost, root@server.local and x@test.invalid are nobody's.",
    "git clone git@github.com:owner/name.git",
    "npm install lodash@4.17.21 react@18.2.0 @types/node@20",
    "@app.route('/x')\ndef f(): return q @ k.T",
    "scores = q@k.transpose(-2, -1)",
    "Follow @ada on the site; the price is 3 @ 4.50.",
    "api_key = os.environ['API_KEY_FOR_SERVICE']",
    "api_key = 'YOUR_API_KEY_HERE_1234'",
    "token = tokenizer.encode(text_to_encode_2)",
    "password = getpass.getpass('Password: ')",
    "access_token: <your-access-token>",
    "secret = secrets.token_urlsafe(32)",
    "AKIAIOSFODNN7EXAMPLE stands in every manual.",
    "class='sk-spinner-double-bounce-item-inner'",
    "The token bucket algorithm refills tokens at a constant rate.",
    "postgres://user:password@localhost:5432/db",
    "https://docs.site.org/guide/v12/api#section-4",
    "sk-learn, ghost_town and pypi-stats are names.",
    "password: correct-horse-battery-staple is a joke",
    "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----",
    "DE is Germany, GB29 a road, FR76 a bus line of 2024.",
    "DE00123456789012345678 has wrong check digits.",
    "Part no. AB12 3456 7890 1234 5678",
    "In films one calls (212) 555-0123, or 020 7946 0958 in London.",
    "Flight LH 4567 on 12-10, seats 12A 14C, gate 22",
    "Page 123-456, lines 789-1011; pp. 1021-1033.",
    "Call the function twice: f(1234567890) and g(9876543210).",
    "He ran 10.5 km in 45:30, 4:20 min/km.",
    "Price: 1 234 567,89 €; that is 12 345 678 cents",
    "matrix = [[1, 0, 0], [0, 1, 0], [0, 0, 1]]",
    "x = 0x7fff5fbff8c0; y = 1e-10; z = 6.02214076e23",
)
