"""What is found in a text, what is left alone, and which tokens of an answer a find covers."""

from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.planted_personal import KINDS, LOOK_ALIKES, NUM, Item, items

from pipeline.config import PII_KINDS, Privacy, validate
from pipeline.errors import UserError
from pipeline.screening import presidio
from pipeline.screening.privacy import Span, decide, find, masked_tokens, redact, redacted_answer, replaced, shown

ALL = Privacy()
AZURE = "Zm9vYmFyQmF6UXV4MTIzNDU2Nzg5MGFiY2RlZmdoaWo+Lw=="
CUT = "-----BEGIN PRIVATE KEY-----\nMIIEvQ and the answer was cut"


@pytest.fixture(scope="module")
def byte(byte_tokenizer: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(byte_tokenizer)


@pytest.fixture(scope="module")
def demo(demo_teacher: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(demo_teacher)


def response(tokenizer: Any, text: str, **changes: Any) -> Any:
    token_ids = tokenizer(text, add_special_tokens=False).input_ids
    return {"response_id": "a-0", "text": text.strip(), "reasoning": None, "token_ids": token_ids, **changes}


@pytest.mark.parametrize("kind", KINDS)
def test_planted_items_are_found_whole_and_as_what_they_are(kind: str) -> None:
    planted = [item for seed in (0, 1) for item in items(seed) if item.kind == kind]
    assert len(planted) == 2 * NUM
    assert len({item.secret for item in planted}) == 2 * NUM
    missed = []
    for item in planted:
        start = item.text.index(item.secret)
        spans = find(item.text, ALL)
        is_found = any(
            span.kind == kind and span.start <= start and start + len(item.secret) <= span.end for span in spans
        )
        missed += [] if is_found else [(item.text, spans)]
    assert missed == []


@pytest.mark.parametrize(
    "item", [item for item in items() if item.kind != "secret"][:: NUM // 15], ids=lambda i: i.secret
)
def test_no_more_than_the_item_is_taken(item: Item) -> None:
    [span] = find(item.text, ALL)
    assert item.text[span.start : span.end].strip() == item.secret


def test_look_alikes_are_left_alone() -> None:
    assert len(LOOK_ALIKES) >= 60
    assert {text: found for text in LOOK_ALIKES if (found := find(text, ALL))} == {}


def test_the_shipped_prompts_hold_nothing_personal() -> None:
    import json

    root = Path(__file__).parents[2]
    for name in ("seeds", "chat_eval", "tasks", "risks"):
        for line in (root / f"prompts/{name}.jsonl").read_text(encoding="utf-8").splitlines():
            counts: Counter[str] = Counter()
            redact(json.loads(line), ALL, counts)
            assert not counts, line


def test_only_the_kinds_that_are_asked_for_are_looked_for() -> None:
    text = "ada@acme.io, 81.2.69.142"
    assert [span.kind for span in find(text, ALL)] == ["email", "ip"]
    assert [span.kind for span in find(text, Privacy(kinds=("ip",)))] == ["ip"]
    assert find(text, Privacy(kinds=())) == []


def test_numbers_of_other_countries_are_found_where_they_are_named() -> None:
    text = "Chiamami al 347 123 4567, grazie."
    assert find(text, ALL) == []
    assert [span.kind for span in find(text, Privacy(phone_regions=("IT",)))] == ["phone"]


def test_without_regions_only_numbers_with_a_plus_are_found() -> None:
    text = "(212) 736-5000 or +1 212-736-5001"
    assert [text[s.start : s.end] for s in find(text, Privacy(phone_regions=()))] == ["+1 212-736-5001"]


@pytest.mark.parametrize(("text", "num"), [("Call me: 2127365000", 1), ("The sum is 2127365000", 0)])
def test_ten_digits_are_a_telephone_after_a_word_that_says_so(text: str, num: int) -> None:
    assert len(find(text, ALL)) == num


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("api_key = 'q9Zt7Lm2Xc4Vb6Nn8Pq1'", "q9Zt7Lm2Xc4Vb6Nn8Pq1"),
        ('{"client_secret": "3f9a1c7be2d84056a1b2c3d4e5f60718"}', "3f9a1c7be2d84056a1b2c3d4e5f60718"),
        ("PASSWORD=h7Kd92mQz04LpTx8", "h7Kd92mQz04LpTx8"),
        ("Authorization: Bearer 8s7dF6g5H4j3K2l1Q0w9", "8s7dF6g5H4j3K2l1Q0w9"),
        ("postgres://ada:h7Kd92mQ@db.acme.io/x", "ada:h7Kd92mQ"),
        (f"AccountKey={AZURE};", AZURE),
        (CUT, CUT),
    ],
)  # fmt: skip
def test_secrets_are_told_by_what_stands_before_them(text: str, secret: str) -> None:
    first = find(text, Privacy(kinds=("secret",)))[0]
    assert text[first.start : first.end] == secret


def test_finds_that_overlap_are_one_of_the_kind_that_comes_first() -> None:
    text = "https://ada:h7Kd92mQ@mail.acme.io/"
    [span] = find(text, ALL)
    assert (span.kind, text[span.start : span.end]) == ("secret", "ada:h7Kd92mQ@mail.acme.io")
    assert PII_KINDS[0] == "secret"


def test_a_message_is_redacted_wherever_it_holds_text() -> None:
    message = {
        "role": "assistant",
        "content": "Mail ada@acme.io and bob@acme.io.",
        "tool_calls": [
            {"function": {"name": "ping", "arguments": {"host": "81.2.69.142", "port": 80, "more": [None, True]}}}
        ],
    }
    counts: Counter[str] = Counter()
    clean = redact(message, ALL, counts)
    assert clean["content"] == "Mail <EMAIL> and <EMAIL>."
    assert clean["tool_calls"][0]["function"]["arguments"] == {"host": "<IP>", "port": 80, "more": [None, True]}
    assert counts == {"email": 2, "ip": 1}
    assert message["content"].startswith("Mail ada"), "what was given is as it was"


def test_a_text_may_be_shown_as_the_answers_are_dealt_with() -> None:
    text = "Mail ada@acme.io!"
    assert [shown(text, Privacy(answers=how)) for how in ("mask", "drop", "off")] == [*["Mail <EMAIL>!"] * 2, text]


def first_mention(*names: str) -> Any:
    """In place of a tagger: finds the first mention of each name, and then no more of it."""

    def find_names(text: str, settings: Any) -> list[tuple[int, int, str]]:
        return [(text.index(name), text.index(name) + len(name), "person") for name in names if name in text]

    return find_names


LEE = "Ann Lee signed it. Later ann wrote: thanks, Ann Lee"


def test_what_is_found_once_is_taken_out_wherever_it_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presidio, "find", first_mention("Ann Lee"))
    counts: Counter[str] = Counter()
    assert redact(LEE, ALL, counts) == shown(LEE, ALL) == "<PERSON> signed it. Later ann wrote: thanks, <PERSON>"
    assert counts == {"person": 2}
    only_first = lambda text, settings: [(0, 2, "person")] if text.startswith("Al ") else []  # noqa: E731
    monkeypatch.setattr(presidio, "find", only_first)
    said = [{"role": "user", "content": "Al is here."}, {"role": "user", "content": "Also Al. Alas!"}]
    assert [each["content"] for each in redact(said, ALL, Counter())] == ["<PERSON> is here.", "Also <PERSON>. Alas!"]


def test_the_words_of_a_call_stay_though_a_name_is_one_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presidio, "find", lambda text, settings: [(0, 4, "person")] if text == "user x" else [])
    assert redact({"role": "user", "content": "user x"}, ALL, Counter()) == {"role": "user", "content": "<PERSON> x"}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(["Ann Lee", "ann", "Annika", " ", ". ", "ada@acme.io", "é", "Lee"]), max_size=12))
def test_no_name_that_is_masked_is_left_in_the_text(byte: Any, parts: list[str]) -> None:
    row = response(byte, " ".join(parts)) | {"text": " ".join(parts)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(presidio, "find", first_mention("Ann Lee"))
        spans = masked_tokens(row, byte, ALL)
        clean = redacted_answer(row | {"masked_spans": spans}, ALL)
    assert clean is not None
    placeholders = sum(clean["text"].count(f"<{kind}>") for kind in ("PERSON", "EMAIL"))
    assert placeholders == len(spans) == parts.count("ada@acme.io") + " ".join(parts).count("Ann Lee")


def test_an_answer_whose_finds_are_not_all_seen_in_its_text_is_not_handed_on(byte: Any) -> None:
    """As where the tagger sees a name beside special tokens alone, and an address everywhere."""
    find_names = lambda text, settings: [(0, 3, "person")] if "<|im_end|>" in text else []  # noqa: E731
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(presidio, "find", find_names)
        row = response(byte, "Ann has ada@acme.io<|im_end|>") | {"text": "Ann has ada@acme.io"}
        spans = masked_tokens(row, byte, ALL)
        assert [span.kind for span in spans] == ["person", "email"]
        assert redacted_answer(row | {"masked_spans": spans}, ALL) is None
        assert redacted_answer(row | {"masked_spans": spans[1:]}, ALL) is not None


@pytest.mark.parametrize("item", items()[::7], ids=lambda item: item.kind)
def test_what_was_redacted_has_nothing_more_in_it(item: Item) -> None:
    clean = replaced(item.text, find(item.text, ALL))
    assert find(clean, ALL) == []
    assert item.secret not in clean


def test_a_region_that_is_none_is_refused() -> None:
    with pytest.raises(UserError, match=r"privacy\.phone_regions: no such region: UK; write countries like US, GB, DE"):
        validate({"name": "x", "privacy": {"phone_regions": ["UK"]}}, "test")


# --- tokens


def uncovered(tokenizer: Any, token_ids: list[int], spans: list[Span]) -> list[str]:
    """What the tokens outside the spans decode to, piece by piece."""
    pieces, start = [], 0
    for span in [*spans, Span(len(token_ids), len(token_ids), "")]:
        pieces.append(tokenizer.decode(token_ids[start : span.start]))
        start = span.end
    return pieces


@pytest.mark.parametrize("name", ["byte", "demo"])
def test_the_tokens_of_a_find_are_those_that_hold_any_of_it(name: str, request: pytest.FixtureRequest) -> None:
    tokenizer = request.getfixturevalue(name)
    for item in items():
        row = response(tokenizer, item.text)
        spans = masked_tokens(row, tokenizer, ALL)
        assert [span.kind for span in spans] == [item.kind]
        before, after = uncovered(tokenizer, row["token_ids"], spans)
        assert item.before.startswith(before)
        assert item.after.endswith(after)
        if name == "byte":
            assert len(item.before) - len(before) + len(item.after) - len(after) <= 1


def test_a_character_that_tokens_share_goes_with_the_find(byte: Any) -> None:
    """`é` is two bytes, so two tokens; it begins the address."""
    row = response(byte, "🙂é.muller@acme.io🙂")
    [span] = masked_tokens(row, byte, ALL)
    assert (span.start, span.end) == (4, len(row["token_ids"]) - 4)


def test_bytes_that_are_no_text_leave_the_rest_to_be_found(byte: Any) -> None:
    ids = byte("x ada@acme.io y").input_ids
    broken = byte("🙂").input_ids[:2]
    token_ids = [*broken, *ids, *broken]
    row = {"text": byte.decode(token_ids), "reasoning": None, "token_ids": token_ids}
    [span] = masked_tokens(row, byte, ALL)
    assert byte.decode(token_ids[span.start : span.end]) == "ada@acme.io"


def test_reasoning_is_looked_at_too(byte: Any) -> None:
    whole = "<think>her mail is ada@acme.io</think>Hello."
    row = response(byte, whole) | {"text": "Hello.", "reasoning": "her mail is ada@acme.io"}
    [span] = masked_tokens(row, byte, ALL)
    assert byte.decode(row["token_ids"][span.start : span.end]) == "ada@acme.io"


def test_what_is_seen_in_the_text_alone_masks_all_of_it(byte: Any) -> None:
    """A special token within it, which the text leaves out."""
    row = response(byte, "ada@ac<|im_start|>me.io") | {"text": "ada@acme.io"}
    assert masked_tokens(row, byte, ALL) == [Span(0, len(row["token_ids"]), "email")]


@settings(max_examples=60, deadline=None)
@given(before=st.text(max_size=30), after=st.text(max_size=30), number=st.integers(0, 6 * NUM - 1), name=st.booleans())
def test_whatever_stands_around_an_item_none_of_it_is_left(
    byte: Any, demo: Any, before: str, after: str, number: int, name: bool
) -> None:
    tokenizer, item = (byte, demo)[name], items()[number]
    text = f"{before} {item.secret} {after}"
    row = response(tokenizer, text)
    row["text"] = tokenizer.decode(row["token_ids"])
    if not any(item.secret in row["text"][s.start : s.end] for s in find(row["text"], ALL)):
        return  # what stands around it makes it part of something else
    spans = masked_tokens(row, tokenizer, ALL)
    masked = {place for span in spans for place in range(span.start, span.end)}
    start = row["text"].index(item.secret)
    lengths = [len(tokenizer.decode(row["token_ids"][:n])) for n in range(len(row["token_ids"]) + 1)]
    for n, (first, end) in enumerate(pairwise(lengths)):
        if first < start + len(item.secret) and end > start and "\ufffd" not in row["text"]:
            assert n in masked


def test_decisions_are_given_spans_or_a_reason(byte: Any) -> None:
    rows = [response(byte, "ada@acme.io and bob@acme.io"), response(byte, "nothing")]

    def decided(**how: Any) -> Any:
        decisions: Any = [{"kept": True, "reasons": [], "scores": []} for _ in rows]
        decide(rows, decisions, Privacy(**how), byte)
        return decisions

    masked, plain = decided()
    assert masked["masked_spans"] == [
        {"start": 0, "end": 11, "kind": "email"},
        {"start": 16, "end": 27, "kind": "email"},
    ]
    assert (masked["kept"], masked["scores"], plain["scores"]) == (True, [("pii", 2.0)], [("pii", 0.0)])
    dropped, plain = decided(answers="drop")
    assert (dropped["kept"], dropped["reasons"], plain["kept"]) == (False, ["pii"], True)
    assert [d["masked_spans"] for d in decided(answers="off")] == [[], []]
    assert [d["scores"] for d in decided(answers="off")] == [[], []]


KEY = "Zk3x9Qv7Lm2Tp8Rw4Ys6"


@pytest.mark.parametrize("after", ["<|im_end|>", "</think>", ""])
def test_a_secret_that_a_special_token_follows_is_masked_beside_another_find(byte: Any, after: str) -> None:
    written = f"Write to anna.k@posteo.de and use api_key={KEY}"
    row = response(byte, f"{written}{after}") | {"text": written}
    spans = masked_tokens(row, byte, ALL)
    assert {span.kind for span in spans} == {"email", "secret"}
    left = [token for n, token in enumerate(row["token_ids"]) if not any(s.start <= n < s.end for s in spans)]
    assert KEY not in byte.decode(left)
    assert "posteo" not in byte.decode(left)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (f"token={KEY}<br>", "secret"),
        (f"<key>api_key={KEY}</key>", "secret"),
        ("Ask _john@posteo.de_ first.", "email"),
        ("Ask john@posteo.de[1] first.", "email"),
        ("Ask john@posteo.de(work) first.", "email"),
        ("It came from _84.23.11.5_ at night.", "ip"),
    ],
)
def test_marks_beside_an_item_do_not_hide_it(text: str, kind: str) -> None:
    assert [span.kind for span in find(text, ALL)] == [kind]


@pytest.mark.parametrize("text", ["y = a@b.dot(c)", "loss = x@weights.reshape(3)", "z = left@right.values[0]"])
def test_a_product_of_matrices_is_no_address(text: str) -> None:
    assert find(text, ALL) == []


def test_numbers_and_keys_of_a_call_are_looked_at() -> None:
    counts: Counter[str] = Counter()
    call = {"card": 4111111111111111, "anna.k@posteo.de": True, "n": 3, "share": 0.5}
    assert redact(call, ALL, counts) == {"card": "<CARD>", "<EMAIL>": True, "n": 3, "share": 0.5}
    assert counts == {"card": 1, "email": 1}


@pytest.mark.timeout(10)
@pytest.mark.parametrize(
    ("text", "found", "num"),
    [
        ("rule " + "1" * 33 + " # 93.184.216.34", "93.184.216.34", 1),
        ("rule 203.0.113.5 198.51.100.17 => 93.184.216.34 " * 200, "93.184.216.34", 200),
        ("0123456789abcdef" * 6000 + " https://posteo.de", None, 0),
        ("0123456789abcdef" * 6000 + " ada@posteo.de", "ada@posteo.de", 1),
        ("token" * 20_000, None, 0),
        ("token" * 20_000 + f"={KEY}", KEY, 1),
        ("key=" * 20_000, None, 0),
        ("key=" * 20_000 + f" api_key={KEY}", KEY, 1),
    ],
)
def test_no_text_takes_long_and_what_is_in_it_is_found(text: str, found: str | None, num: int) -> None:
    spans = find(text, ALL)
    assert [text[span.start : span.end] for span in spans] == [found] * num


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("password: hunter2secret99", "hunter2secret99"),
        ("password = 'Gr7vnQ2xLpZt'", "Gr7vnQ2xLpZt"),
        ("PASSWORD=Xk9!fQ2pLz7w in my env file", "Xk9!fQ2pLz7w"),
        ("My password is Tr0ub4dor&3.", "Tr0ub4dor&3"),
        ("Mein Passwort: Sonne2024!", "Sonne2024"),
    ],
)
def test_passwords_are_told_by_the_word_before_them(text: str, secret: str) -> None:
    [span] = find(text, ALL)
    assert (span.kind, text[span.start : span.end]) == ("secret", secret)


@pytest.mark.parametrize(
    "text",
    [
        "The password is at least 12 characters long.",
        'password = "password123"',
        "password = get_password1(user)",
        "Your password: <your password here>",
        "password=config.user.password1",
        "The password is correct, and so are 99999999 others.",
    ],
)
def test_talk_of_passwords_is_none(text: str) -> None:
    assert find(text, ALL) == []
