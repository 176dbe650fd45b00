"""Documents, cut into passages."""

import gzip
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import Privacy, Source
from pipeline.errors import UserError
from pipeline.prepare.synthesis.passages import MAX_WORDS, MIN_WORDS, Passage, cut, read

SENTENCE = "The harbour of the old town is closed in winter. "  # ten words


def source(path: Path, **settings: Any) -> tuple[Source, ...]:
    return (Source(path=str(path), **settings),)


@pytest.mark.parametrize("num_sentences", [4, 20])
def test_a_short_text_is_one_passage(num_sentences: int) -> None:
    text = (SENTENCE * num_sentences).strip()
    assert cut(text) == [text]


def test_paragraphs_are_kept_together_and_their_border_stays() -> None:
    paragraph = (SENTENCE * 9).strip()
    assert cut("\n\n".join([paragraph] * 4)) == [f"{paragraph}\n\n{paragraph}"] * 2


def test_a_long_paragraph_is_cut_at_sentences() -> None:
    passages = cut(SENTENCE * 45)
    assert [len(passage.split()) for passage in passages] == [200, 200, 50]
    assert all(passage.endswith("winter.") for passage in passages)


def test_a_heading_stands_with_what_follows_it() -> None:
    paragraph = (SENTENCE * 6).strip()
    assert cut(f"# Harbours\n\n{paragraph}") == [f"# Harbours\n\n{paragraph}"]


def test_what_is_too_short_or_can_not_be_cut_is_left_out() -> None:
    assert cut(SENTENCE * 3) == []
    assert cut("word " * (MAX_WORDS + 1)) == []
    assert cut("") == []
    assert MIN_WORDS == 40


def test_files_of_text_are_one_document_each_and_rows_one_each(tmp_path: Path) -> None:
    text = (SENTENCE * 5).strip()
    (tmp_path / "a.md").write_text(text)
    (tmp_path / "b.csv").write_text(f"body\n{text}\n")
    documents = source(tmp_path / "a.md") + source(tmp_path / "b.csv", prompt="body")
    assert read(documents, "error", Privacy(), "warn") == [
        Passage(f"{tmp_path}/a.md, passage 1", text, f"{tmp_path}/a.md"),
        Passage(f"{tmp_path}/b.csv:2, passage 1", text, f"{tmp_path}/b.csv"),
    ]


def test_a_row_without_text_is_told_or_skipped(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f"body\n{SENTENCE * 5}\n")
    with pytest.raises(UserError, match=r"a\.csv:2: no text in column 'prompt' \(name yours.*the row has: \w+\)"):
        read(source(tmp_path / "a.csv"), "error", Privacy(), "warn")
    with pytest.raises(UserError, match="hold no passage of at least 40 words"):
        read(source(tmp_path / "a.csv"), "skip", Privacy(), "warn")


def test_what_is_no_utf8_or_not_there_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"a\.txt: not UTF-8 text"):
        read(source(tmp_path / "a.txt"), "error", Privacy(), "warn")
    with pytest.raises(UserError, match=r"b\.txt: no such document"):
        read(source(tmp_path / "b.txt"), "error", Privacy(), "warn")


def test_a_packed_text_is_one_document(tmp_path: Path) -> None:
    (tmp_path / "a.TXT.gz").write_bytes(gzip.compress(SENTENCE.join("\n" * 6).encode()))
    [passage] = read(source(tmp_path / "a.TXT.gz"), "error", Privacy(), "warn")
    assert passage.place == f"{tmp_path}/a.TXT.gz, passage 1"


def test_personal_data_is_taken_out_of_passages_or_they_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(
        f"prompt,licence\n{SENTENCE * 5} Write to ada@skerry-mill.co.uk.,mit\n{SENTENCE * 5},\n"
    )
    documents = source(tmp_path / "a.csv", licence="cc-by-4.0")
    with_it, without = read(documents, "error", Privacy(), "warn")
    assert "Write to <EMAIL>." in with_it.text
    assert (with_it.redacted, with_it.licence) == ({"email": 1}, "mit")
    assert (without.redacted, without.licence) == ({}, "cc-by-4.0")
    assert [passage.text for passage in read(documents, "error", Privacy(prompts="drop"), "warn")] == [without.text]
    assert "ada@skerry-mill.co.uk" in read(documents, "error", Privacy(prompts="off"), "warn")[0].text


def test_a_key_with_a_blank_line_is_taken_out_before_the_text_is_cut(tmp_path: Path) -> None:
    body = "\n".join(f"MIIBOgIBAAJBAKj34GkxFhD90vcNLYLInFEX6Ppy1tPf9Cnz{n:02d}" for n in range(60))
    key = f"-----BEGIN RSA PRIVATE KEY-----\nDEK-Info: AES-128-CBC,3F17\n\n{body}\n-----END RSA PRIVATE KEY-----"
    (tmp_path / "a.txt").write_text(f"{SENTENCE * 18}\n\n{key}\n\n{SENTENCE * 5}")
    passages = read(source(tmp_path / "a.txt"), "error", Privacy(), "warn")
    assert sum(passage.redacted.get("secret", 0) for passage in passages) == 1
    assert not [passage for passage in passages if "MIIB" in passage.text]


def test_a_documents_licence_is_refused_before_anything_is_asked(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f"prompt,licence\n{SENTENCE * 5},cc-by-nc-4.0\n")
    with pytest.raises(UserError, match=r"a\.csv: Non-commercial"):
        read(source(tmp_path / "a.csv"), "error", Privacy(), "enforce")
