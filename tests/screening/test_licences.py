"""Licences: what the table says, how a model's is told, and what is warned of or refused before a token is drawn."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.config import Config, Source, validate
from pipeline.errors import UserError
from pipeline.models import lookup
from pipeline.screening import licences
from pipeline.screening.licences import TABLE, Found, check, check_source, of_model, tell, terms_of, with_card


def config(policy: str = "warn", student: dict[str, Any] | None = None, **changes: Any) -> Config:
    data = {
        "name": "x",
        "teacher": {"model": "./teacher", **changes},
        "licence_policy": policy,
        "prepare": {"sources": [{"path": "a.jsonl", "licence": "mit"}]},
        "student": student or {},
    }
    return validate(data, "test")


def teacher(folder: Path, card: str | None = None, licence: str | None = None) -> lookup.Model:
    folder.mkdir(exist_ok=True)
    if card is not None:
        (folder / "README.md").write_text(f"---\n{card}\n---\n# A model\n", encoding="utf-8")
    if licence is not None:
        (folder / "LICENSE").write_text(licence, encoding="utf-8")
    return lookup.Model("./teacher", folder)


def test_the_table_names_each_licence_once_and_says_where_to_read_it() -> None:
    ids = [name for entry in TABLE for name in entry.ids]
    assert len(ids) == len(set(ids))
    assert all(name == name.lower() for name in ids)
    assert all(entry.clause.endswith(".") and entry.read and entry.verdict in licences.MEANINGS for entry in TABLE)


@pytest.mark.parametrize(
    ("written", "verdict"),
    [
        ("apache-2.0", "free"),
        ("Apache 2.0", "free"),
        ("Apache License 2.0", "free"),
        ("MIT License", "free"),
        ("llama2", "own_family"),
        ("llama3", "own_family"),
        ("llama3.1", "duties"),
        ("Llama 3.3", "duties"),
        ("gemma", "duties"),
        ("qwen", "duties"),
        ("qwen-research", "non_commercial"),
        ("tongyi-qianwen", "own_family"),
        ("mrl", "non_commercial"),
        ("CC-BY-NC-4.0", "non_commercial"),
        ("CC BY 4.0", "duties"),
        ("openai", "forbidden"),
    ],
)
def test_a_licence_is_known_by_how_cards_write_it(written: str, verdict: str) -> None:
    entry = terms_of(written)
    assert entry is not None
    assert entry.verdict == verdict


@pytest.mark.parametrize("written", [None, "other", "acme-secret", ""])
def test_what_the_table_has_not_is_not_guessed(written: str | None) -> None:
    assert terms_of(written) is None


def test_a_models_licence_is_told_by_config_card_or_text(tmp_path: Path) -> None:
    found = {
        "configured": of_model(teacher(tmp_path / "a", "license: mit").path, "a", "gemma"),
        "card": of_model(teacher(tmp_path / "b", "license: llama3.1", "MIT License").path, "b", None),
        "named": of_model(teacher(tmp_path / "c", "license: other\nlicense_name: qwen").path, "c", None),
        "text": of_model(
            teacher(tmp_path / "d", None, "\n  Apache License\n  Version 2.0, January 2004").path, "d", None
        ),
        "card without": of_model(
            teacher(tmp_path / "e", "tags: [x]", "LLAMA 2 COMMUNITY LICENSE AGREEMENT").path, "e", None
        ),
        "nothing": of_model(teacher(tmp_path / "f", "]: no yaml: [").path, "f", None),
        "demo": of_model(tmp_path / "g", "demo", None),
    }
    assert {how: each.licence for how, each in found.items()} == {
        "configured": "gemma",
        "card": "llama3.1",
        "named": "qwen",
        "text": "apache-2.0",
        "card without": "llama2",
        "nothing": None,
        "demo": "apache-2.0",
    }
    assert (found["configured"].told_by, found["text"].told_by) == ("teacher.licence", "its LICENSE")


def test_a_non_commercial_text_is_not_taken_for_plain_attribution(tmp_path: Path) -> None:
    text = "Attribution-NonCommercial 4.0 International\n\nCreative Commons Attribution-NonCommercial 4.0 International"
    assert of_model(teacher(tmp_path / "a", None, text).path, "a", None).licence == "cc-by-nc-4.0"


def test_a_free_licence_is_nothing_to_speak_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(config(), teacher(tmp_path / "a", "license: mit")) == Found("mit", "its model card")
    tell(config(), Found("mit", "its model card"), [("a.jsonl", "mit")])
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("licence", "said"),
    [
        ("llama3.1", "begins its name with `Llama`"),
        ("mrl", "research that has no commercial end"),
        ("openai", "compete with OpenAI"),
        (
            "acme",
            "licence 'acme' is not in Retort's table; read whether it allows training on its texts, and go on where",
        ),
        ("other", "names no licence; find out which it has, and set teacher.licence, to mit, say"),
    ],
)
def test_duties_and_restrictions_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], licence: str, said: str
) -> None:
    found = check(config(licence=licence), teacher(tmp_path / "a"))
    tell(config(), found, [])
    assert said in " ".join(capsys.readouterr().err.split())
    tell(config("off"), check(config("off", licence=licence), teacher(tmp_path / "a")), [])
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("licence", ["mrl", "openai", "cc-by-nc-4.0"])
def test_enforce_refuses_what_is_restricted(tmp_path: Path, licence: str) -> None:
    with pytest.raises(UserError, match=r"teacher \./teacher: .* See .* licence_policy=warn"):
        check(config("enforce", licence=licence), teacher(tmp_path / "a"))


@pytest.mark.parametrize("licence", ["apache-2.0", "llama3.1", "gemma", "acme"])
def test_enforce_lets_pass_what_has_duties_or_is_not_known(tmp_path: Path, licence: str) -> None:
    assert check(config("enforce", licence=licence), teacher(tmp_path / "a")).licence == licence


def test_a_pruned_teacher_is_of_its_own_family(tmp_path: Path) -> None:
    pruned, other = {"keep_layers": "0-3"}, {"model": "./other"}
    assert check(config("enforce", pruned, licence="llama3"), teacher(tmp_path / "a")).licence == "llama3"
    with pytest.raises(UserError, match="of the same family alone"):
        check(config("enforce", other, licence="llama3"), teacher(tmp_path / "a"))


def test_a_source_is_held_to_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match=r"source corpus\.csv: Non-commercial"):
        check_source("corpus.csv", "cc-by-nc-4.0", "enforce")
    check_source("corpus.csv", "cc-by-nc-4.0", "warn")
    tell(config(), Found("mit", "a test"), [("corpus.csv", None), ("free.csv", "mit")])
    assert "source corpus.csv: names no licence" in " ".join(capsys.readouterr().err.split())
    given = validate(
        {
            "name": "x",
            "licence_policy": "enforce",
            "prepare": {"sources": [{"path": "c.csv", "licence": "cc-by-nc-4.0"}]},
        },
        "test",
    )
    with pytest.raises(UserError, match=r"source c\.csv"):
        check(given, lookup.Model("demo", tmp_path))


@pytest.mark.parametrize(
    ("written", "verdict"),
    [
        ("cc-by-nc-sa-2.0", "non_commercial"),
        ("cc-by-nc-nd-3.0", "non_commercial"),
        ("https://creativecommons.org/licenses/by-nc/4.0/", "non_commercial"),
        ("cc-by-nc-4.0 AND mit", "non_commercial"),
        ("mit AND apache-2.0", "free"),
        ("tongyi-qianwen-license-agreement", "own_family"),
        ("Llama 2 Community License", "own_family"),
        ("creativeml-openrail-m", "duties"),
        ("cc-by-sa-2.5", "duties"),
    ],
)
def test_other_ways_to_name_a_licence(written: str, verdict: str) -> None:
    entry = terms_of(written)
    assert entry is not None
    assert entry.verdict == verdict


def test_of_several_one_that_is_not_known_leaves_all_unknown() -> None:
    assert terms_of("mit AND somebody's own") is None


def test_a_card_that_says_other_gives_way_to_the_text_and_a_folder_is_none(tmp_path: Path) -> None:
    (tmp_path / "LICENSES").mkdir()
    (tmp_path / "README.md").write_text("---\nlicense: other\n---\n")
    assert of_model(tmp_path, "x", None).licence == "other"
    (tmp_path / "LICENSE.txt").write_text("LLAMA 2 COMMUNITY LICENSE AGREEMENT\n")
    assert of_model(tmp_path, "x", None).licence == "llama2"


def test_a_card_with_several_licences_has_them_all(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: [apache-2.0, cc-by-nc-4.0]\n---\n")
    assert of_model(tmp_path, "x", None).licence == "apache-2.0 AND cc-by-nc-4.0"


# --- the card of a dataset


def test_the_card_beside_the_files_tells_a_sources_licence(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n# A corpus\n", encoding="utf-8")
    file = tmp_path / "a.jsonl"
    for source in (Source(path=str(file)), Source(path=str(tmp_path)), Source(dataset=str(tmp_path))):
        assert with_card(source).licence == "cc-by-nc-4.0"
    assert with_card(Source(path=str(file), licence="mit")).licence == "mit"
    (tmp_path / "README.md").write_text("# No card\n", encoding="utf-8")
    assert with_card(Source(path=str(file))).licence is None


def test_the_card_of_a_dataset_on_the_hub_tells_its_licence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card, asked = tmp_path / "README.md", []
    card.write_text("---\nlicense: [mit, apache-2.0]\n---\n", encoding="utf-8")

    def hf_hub_download(*what: Any, **settings: Any) -> str:
        asked.append((*what, settings))
        if what[0] == "org/none":
            raise OSError("not there")
        return str(card)

    monkeypatch.setattr(licences, "hf_hub_download", hf_hub_download)
    assert with_card(Source(dataset="org/set", revision="v2")).licence == "apache-2.0 AND mit"
    assert with_card(Source(dataset="org/none")).licence is None
    assert asked[0] == ("org/set", "README.md", {"repo_type": "dataset", "revision": "v2"})


def test_a_restrictive_card_is_refused_before_a_row_is_read(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n", encoding="utf-8")
    given = config("enforce")
    prepare = given.prepare.model_copy(update={"sources": (Source(path=str(tmp_path)),)})
    with pytest.raises(UserError, match="Non-commercial"):
        check(given.model_copy(update={"prepare": prepare}), teacher(tmp_path / "t", "license: mit"))
