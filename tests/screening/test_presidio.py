"""Microsoft Presidio as a finder: the real package, with spaCy pipelines that are made here. None is downloaded."""

import importlib.util
import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import settings as cases
from hypothesis import strategies as st
from support.planted_personal import LOOK_ALIKES, Item
from support.planted_run import Run, examples, learnt

from pipeline.cli import named_files
from pipeline.config import Config, Train, validate
from pipeline.config import Privacy as PrivacySettings
from pipeline.errors import UserError
from pipeline.export import cards
from pipeline.screening import presidio, privacy
from pipeline.screening.privacy import Span, find, masked_tokens, redact

NAME = "Ada Lovelace"
SSN = "536-90-4399"
ENTITIES = ["CRYPTO", "MEDICAL_LICENSE", "US_SSN", "US_PASSPORT"]
PLANTED = {  # kind: how it is written, and what of it is personal
    "person": (NAME, NAME),
    "us_ssn": (f"SSN {SSN}", SSN),
    "crypto": ("16Yeky6GMjeNkAiNcBY7ZhrLoMSgg1BoyZ", "16Yeky6GMjeNkAiNcBY7ZhrLoMSgg1BoyZ"),
    "medical_license": ("BB1388568", "BB1388568"),  # a DEA number: its last digit is a check digit
    "us_passport": ("passport 912803456", "912803456"),  # told by the word before it alone
}
CONTEXTS = (
    "{}",
    "Voilà : {} — merci !",
    "🙂 {} 🙂",
    "Müller e\u0301tait là:\n«{}»",
    "第三号 {} 请保密。",
    "- ß ﬁ: {}.",
)

needs_presidio = pytest.mark.skipif(
    importlib.util.find_spec("presidio_analyzer") is None,
    reason='Presidio is not installed: pip install -e ".[presidio]"',
)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: socket.socket, address: Any) -> None:
        raise AssertionError(f"asks the network: {address}")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def make_pipeline(folder: Path, *names: str) -> str:
    """A spaCy pipeline on disk whose only component tells these names: spaCy's own, without a trained model."""
    import spacy  # pyright: ignore[reportMissingImports]

    nlp = spacy.blank("en")
    if names:
        ruler: Any = nlp.add_pipe("entity_ruler")
        ruler.add_patterns([{"label": "PERSON", "pattern": name} for name in names])
    nlp.to_disk(folder)
    return str(folder)


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> PrivacySettings:
    """Settings with a pipeline that knows NAME."""
    model = make_pipeline(tmp_path_factory.mktemp("named") / "names", NAME)
    return settings_with(model, "PERSON", *ENTITIES)


def settings_with(model: str, *entities: str, **others: Any) -> PrivacySettings:
    return PrivacySettings.model_validate({"presidio": {"model": model, "entities": entities, **others}})


def planted() -> Iterator[Item]:
    for kind, (written, secret) in PLANTED.items():
        for context in CONTEXTS:
            yield Item(kind, context.format(written), secret)


# --- without the package


@pytest.fixture
def not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "presidio_analyzer" else object())


def config(**settings: Any) -> Config:
    return validate({"name": "x", "privacy": {"presidio": settings}}, "test")


def test_where_it_is_not_installed_that_is_told_before_anything_runs(not_installed: None) -> None:
    told = r'privacy\.presidio\.model: Presidio is not installed: pip install -e "\.\[presidio\]"$'
    for use in (
        lambda: named_files.check(config(model="blank:en")),
        lambda: privacy.fingerprint(settings_with("blank:zu", "CRYPTO")),
        lambda: find("Hello there.", settings_with("blank:zu", "CRYPTO")),
    ):
        with pytest.raises(UserError, match=told):
            use()
    named_files.check(config())


def test_it_is_off_unless_a_pipeline_is_named(not_installed: None) -> None:
    assert find(f"{NAME}, ada@acme.io, SSN {SSN}", PrivacySettings()) == [Span(14, 25, "email")]
    assert not any("presidio" in key for key in privacy.fingerprint(PrivacySettings()))


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"entities": ["PERSON", "EMAIL_ADDRESS"]}, r"entities: privacy\.kinds has EMAIL_ADDRESS already: email"),
        ({"entities": []}, "at least 1 entry"),
        ({"min_score": 2}, "must be at most 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(given: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        config(**given)


@given(st.text("ab \n🙂", max_size=90))
@example("x" * 90)
def test_long_texts_are_cut_into_pieces_that_are_all_of_them(text: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(presidio, "MAX_CHARS", 20)
        pieces = list(presidio._pieces(text))
    assert "".join(piece for _, piece in pieces) == text
    assert all(0 < len(piece) <= 20 and text.startswith(piece, first) for first, piece in pieces)


def test_cards_say_what_presidio_looked_for(tmp_path: Path) -> None:
    from export.test_cards import SCREENED, told
    from support.fabricated_run import make

    run_dir = make(tmp_path)
    assert "Names, street addresses" in cards.personal_section(run_dir)
    by = {"model": "en_core_web_sm", "entities": ["PERSON", "US_SSN"], "min_score": 0.4}
    screened = {**SCREENED, "privacy": {**SCREENED["privacy"], "presidio": by}, "personal": {}, "labels": {}}
    told(run_dir, "filter", screening={**screened, "answers": {"personal": 0}})
    assert cards.personal_section(run_dir).count("were not looked for") == 1  # in prompts
    told(run_dir, "prepare", screening={**screened, "prompts": {"personal": 0}})
    text = cards.personal_section(run_dir)
    assert "spaCy pipeline en_core_web_sm, from a score of 0.4 on: PERSON, US_SSN." in text
    assert "were not looked for" not in text


# --- with it


@needs_presidio
@pytest.mark.parametrize("item", list(planted()), ids=lambda item: item.kind)
def test_items_are_found_where_they_stand_among_any_letters(named: PrivacySettings, item: Item) -> None:
    start = item.text.index(item.secret)
    assert find(item.text, named) == [Span(start, start + len(item.secret), item.kind)]


@needs_presidio
@cases(max_examples=60, deadline=None)
@given(before=st.text(max_size=30), after=st.text(max_size=30), kind=st.sampled_from(["person", "us_ssn"]))
def test_whatever_stands_around_a_find_it_is_at_its_place(
    named: PrivacySettings, before: str, after: str, kind: str
) -> None:
    secret = PLANTED[kind][1]
    text = f"{before}\n{secret}\n{after}"
    start = len(before) + 1
    assert any(span.start <= start and start + len(secret) <= span.end for span in find(text, named))


@needs_presidio
def test_without_names_a_blank_pipeline_leaves_the_patterns(tmp_path: Path) -> None:
    text = f"{NAME}: SSN {SSN}"
    for model in ("blank:en", make_pipeline(tmp_path / "blank")):
        assert find(text, settings_with(model, *ENTITIES)) == [Span(18, 29, "us_ssn")]
        with pytest.raises(UserError, match=r"\(en\), finds PERSON; they find CRYPTO, .*US_SSN"):
            find(text, settings_with(model, "PERSON", "US_SSN"))


@needs_presidio
def test_a_score_that_a_weak_shape_has_not_leaves_it(named: PrivacySettings) -> None:
    text = "passport 912803456"
    strict = settings_with(named.presidio.model or "", *ENTITIES, min_score=0.5)
    assert ([span.kind for span in find(text, named)], find(text, strict)) == (["us_passport"], [])
    assert find("It is 912803456.", named) == [], "no word beside it says what it is"


@needs_presidio
def test_a_pipeline_that_is_not_there_is_told_and_not_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    import spacy.cli  # pyright: ignore[reportMissingImports]

    monkeypatch.setattr(spacy.cli, "download", lambda *_: pytest.fail("downloads"))
    with pytest.raises(UserError, match=r"privacy\.presidio\.model no_such_pipeline: no spaCy pipeline can be loaded"):
        privacy.fingerprint(settings_with("no_such_pipeline", "PERSON"))


@needs_presidio
def test_finds_that_overlap_ours_are_one_of_our_kind(tmp_path: Path) -> None:
    named = settings_with(make_pipeline(tmp_path / "names", "ada@acme.io Ada", "Ada"), "PERSON")
    assert find("Ada, ada@acme.io Ada!", named) == [Span(0, 3, "person"), Span(5, 20, "email")]


@needs_presidio
def test_a_message_is_redacted_but_for_the_words_of_its_form(tmp_path: Path) -> None:
    words = ("role", "user", "content", "getWeather", "name", "PERSON", "EMAIL")
    named = settings_with(make_pipeline(tmp_path / "names", NAME, *words), "PERSON", "US_SSN")
    message = {"role": "user", "content": f"Who is {NAME}? <PERSON>, <EMAIL>", "name": "getWeather", "ssn": [SSN]}
    counts: Counter[str] = Counter()
    clean = redact(message, named, counts)
    assert clean == {"role": "user", "content": "Who is <PERSON>? <PERSON>, <EMAIL>", "name": "getWeather"} | {
        "ssn": ["<US_SSN>"]
    }
    assert counts == {"person": 1, "us_ssn": 1}
    assert redact(clean, named, counts) == clean


@needs_presidio
def test_finds_in_a_text_of_many_pieces_are_where_they_are(named: PrivacySettings) -> None:
    lines = [f"Zeile {number} über 🙂 Straßen, SSN {SSN}, {NAME} wohnt da." for number in range(800)]
    text = "\n".join(lines)
    assert len(text) > 2 * presidio.MAX_CHARS
    found = find(text, named)
    for kind, secret in (("us_ssn", SSN), ("person", NAME)):
        first, expected = -1, []
        while (first := text.find(secret, first + 1)) >= 0:
            expected.append(Span(first, first + len(secret), kind))
        assert [span for span in found if span.kind == kind] == expected
        assert len(expected) == len(lines)


@needs_presidio
def test_a_name_that_a_special_token_follows_is_masked_as_a_word(tmp_path: Path, byte_tokenizer: Path) -> None:
    """The pipeline sees it in the text alone: among the tokens a mark stands beside it. Also is not Al."""
    from transformers import AutoTokenizer

    byte: Any = AutoTokenizer.from_pretrained(byte_tokenizer)
    named = settings_with(make_pipeline(tmp_path / "names", "Al"), "PERSON")
    token_ids = byte("Also ask é Al<|im_end|>", add_special_tokens=False).input_ids
    row = {"text": "Also ask é Al", "reasoning": None, "token_ids": token_ids}
    [span] = masked_tokens(row, byte, named)
    assert (byte.decode(token_ids[span.start : span.end]), span.start) == ("Al", len("Also ask é ".encode()))


@needs_presidio
def test_what_it_finds_with_is_part_of_the_fingerprint(tmp_path: Path) -> None:
    from importlib.metadata import version

    one, two = (make_pipeline(tmp_path / name, name) for name in ("Ada", "Bob"))
    first, second = (privacy.fingerprint(settings_with(model, "PERSON")) for model in (one, two))
    assert first["presidio.versions"] == {name: version(name) for name in ("presidio-analyzer", "spacy")}
    assert first["presidio.model.hash"] != second["presidio.model.hash"]
    assert privacy.fingerprint(settings_with(one, "PERSON", min_score=1))["presidio.min_score"] == 1
    blank = privacy.fingerprint(settings_with("blank:en", "CRYPTO"))
    assert (blank["presidio.model"], blank["presidio.model.hash"]) == ("blank:en", None)


@pytest.fixture(scope="module", params=["bytes", "demo"])
def run(request: pytest.FixtureRequest, named: PrivacySettings, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The items in prompts and answers, through prepare and filter."""
    from transformers import AutoTokenizer

    folder = request.getfixturevalue("byte_tokenizer" if request.param == "bytes" else "demo_teacher")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    made = Run(tmp_path_factory.mktemp(request.param), tokenizer, privacy=named.model_dump(mode="json"))
    made.planted, made.look_alikes = list(planted()), LOOK_ALIKES[:12]
    return made.prepared().filtered()


@needs_presidio
def test_no_prompt_that_the_teacher_is_given_holds_an_item(run: Run) -> None:
    prompts = run.prompts()
    assert len(prompts) == len(run.planted) + len(run.look_alikes)
    for item, prompt in zip(run.planted, prompts, strict=False):
        rendered = run.tokenizer.decode(prompt["prompt_token_ids"])
        assert item.secret not in rendered
        assert f"<{item.kind.upper()}>" in rendered
        assert dict(prompt["redacted"]) == {item.kind: 1}
    screening = run.run_dir.manifest("prepare")["screening"]
    assert screening["personal"] == dict.fromkeys(PLANTED, len(CONTEXTS))


@needs_presidio
def test_no_label_and_no_distribution_that_train_reads_is_of_an_item(run: Run, named: PrivacySettings) -> None:
    assert [[span["kind"] for span in decision["masked_spans"]] for decision in run.decisions()] == [
        *([item.kind] for item in run.planted),
        *([] for _ in run.look_alikes),
    ]
    secrets, seen = {item.secret for item in run.planted}, 0
    for settings in (Train(batch_size=7), Train(batch_size=3, pack_tokens=2048)):
        for input_ids, labels in examples(run, settings):  # which sees that no more rows have distributions than labels
            seen += any(secret in run.tokenizer.decode(input_ids) for secret in secrets)
            for piece in learnt(run, labels):
                assert not any(secret in piece for secret in secrets)
                assert find(piece, named) == []
    assert seen == 2 * len(run.planted)


@needs_presidio
def test_a_run_made_with_other_settings_is_refused_by_name(run: Run) -> None:
    made = run.sections["privacy"]
    run.sections["privacy"] = {**made, "presidio": {**made["presidio"], "min_score": 0.9}}
    try:
        with pytest.raises(UserError, match=r"privacy\.presidio\.min_score was 0\.4"):
            run.prepared()
    finally:
        run.sections["privacy"] = made
