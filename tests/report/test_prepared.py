"""What the page says of prepare: from its manifest, and nothing that it doesn't hold."""

from typing import Any

import pytest
from support.fabricated_run import PLANTED
from support.report_reader import Reader

from pipeline.report import page
from pipeline.run.files import write_json
from pipeline.run.rundir import RunDir
from pipeline.screening import licences as table

MIT, BY = (
    f"{table.MEANINGS[entry.verdict]}. {entry.clause} ({entry.name}: {entry.read})"
    for name in ("mit", "cc-by-4.0")
    if (entry := table.terms_of(name))
)


def told(run_dir: RunDir, stage: str, *gone: str, **facts: Any) -> None:
    """Facts put into a manifest as the stage writes them, and others taken out."""
    manifest = {**run_dir.manifest(stage), **facts}
    write_json(run_dir.stage_path(stage) / "manifest.json", {key: manifest[key] for key in manifest if key not in gone})


def section(run_dir: RunDir) -> str:
    """The text of the section about prompts, white space made even."""
    html = page.render(run_dir).partition('<section id="prompts">')[2].partition("</section>")[0]
    return " ".join(html.split())


def test_sources_are_told_with_what_was_read_kept_and_left_out(run_dir: RunDir) -> None:
    licences = {
        "teacher": {"licence": "gemma", "told_by": "its model card"},
        "sources": [
            {"source": "a.jsonl", "licence": "mit", "prompts": 1200},
            {"source": "a.jsonl", "licence": "cc-by-4.0", "prompts": 30},
        ],
        "written": [{"method": "self_instruct", "licence": "mit", "prompts": 7}],
    }
    left_out = [
        {"source": "a.jsonl", "reason": "near_duplicates", "prompts": 4},
        {"source": "a.jsonl", "reason": "personal", "prompts": 2},
        {"source": "b.csv", "reason": "bad_rows", "prompts": 3},
    ]
    told(run_dir, "prepare", licences=licences, left_out=left_out)
    shown = Reader(page.render(run_dir))
    assert shown.rows_of("a.jsonl") == [
        ["a.jsonl", "1\u202f236", "1\u202f230", "near duplicates 4, personal 2"],
        ["a.jsonl", "mit", "1\u202f200", MIT],
        ["a.jsonl", "cc-by-4.0", "30", BY],
    ]
    assert shown.rows_of("b.csv") == [["b.csv", "3", "0", "bad rows 3"]]
    [teacher] = shown.rows_of("teacher: ./no-such-teacher")
    assert teacher[1:3] == ["gemma", "–"]
    assert "with duties" in teacher[3]
    assert shown.rows_of("written by the teacher (self instruct)")[0][1:3] == ["mit", "7"]
    assert "the teacher's found in its model card" in page.render(run_dir).replace("&#39;", "'")
    assert "licence_policy=warn" in section(run_dir)


def test_personal_data_and_evaluation_items_are_told(run_dir: RunDir) -> None:
    screening = run_dir.manifest("prepare")["screening"]
    found = {**screening, "personal": {"email": 4, "phone": 1}, "prompts": {**screening["prompts"], "personal": 3}}
    sets = [{"path": "mine.jsonl", "dataset": None}, {"path": None, "dataset": "org/bench"}]
    made = {**run_dir.manifest("prepare")["fingerprint"], "prepare.decontaminate": sets}
    counts = {**run_dir.manifest("prepare")["counts"], "contaminated": 2, "near_duplicates": 5}
    told(run_dir, "prepare", screening=found, fingerprint=made, counts=counts)
    waterfall = [*run_dir.manifest("filter")["waterfall"], {"reason": "contaminated", "dropped": 1, "alone": 1}]
    told(run_dir, "filter", waterfall=waterfall)
    text = section(run_dir)
    assert "found in 3 (email 4, phone 1); replaced by placeholders before the teacher read them." in text
    assert "Compared with mine.jsonl, org/bench. Left out because they repeat an item: 2 prompts, 1 answer." in text
    assert "6 prompts, 1 of them held out. Left out: near duplicates 5, contaminated 2, bad rows 2." in text


def test_what_an_earlier_version_did_not_record_is_not_claimed(run_dir: RunDir) -> None:
    told(run_dir, "prepare", "licences", "left_out", "screening")
    text = section(run_dir)
    assert text.count("did not record it") == 3
    assert "found in none" not in text
    assert "Prompts by source" not in text


@pytest.mark.parametrize("gone", ["filter", "config.yaml"])
def test_the_section_stands_without_what_is_not_prepares(run_dir: RunDir, gone: str) -> None:
    lost = run_dir.path / gone
    (lost if lost.is_file() else lost / "manifest.json").unlink()
    assert "found in none" in section(run_dir)


def test_a_run_without_prepare_has_no_section(run_dir: RunDir) -> None:
    (run_dir.path / "prepare" / "manifest.json").unlink()
    assert section(run_dir) == ""


def test_names_of_sources_are_text(run_dir: RunDir) -> None:
    licences = run_dir.manifest("prepare")["licences"]
    sources = [{"source": PLANTED, "licence": PLANTED, "prompts": 6}]
    left_out = [{"source": PLANTED, "reason": PLANTED, "prompts": 1}]
    told(run_dir, "prepare", licences={**licences, "sources": sources}, left_out=left_out)
    text = section(run_dir)
    assert PLANTED not in text
    assert "<img" not in text
    assert text.count("&lt;script&gt;window.pwned") == 4  # as source twice, as licence, as reason
