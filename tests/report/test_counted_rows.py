"""The rows that claims were counted from, on the page and beside it."""

import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support import fabricated_run
from support.fabricated_run import PLANTED

from pipeline.report import page
from pipeline.report.figures import ARM_NAMES
from pipeline.report.tables import counted_rows
from pipeline.run.rundir import RunDir

VERDICTS = [
    {
        "about": {"compared": "over_teacher", "item_id": "item-1", "turn": 1, "order": 1},
        "choice": "A",
        "reply": f"{'x' * 500} {PLANTED}\u2028Verdict: A",
    },
    {"about": {"graded": "sft_only", "item_id": "item-2", "turn": 0}, "choice": 7.5, "reply": "Grade: 7.5"},
    {"about": {"graded": "student", "item_id": "item-3", "turn": 0}, "choice": None, "reply": ""},
]


def write_verdicts(run_dir: RunDir) -> None:
    text = "".join(f"{json.dumps(verdict, ensure_ascii=False)}\n" for verdict in VERDICTS)
    (run_dir.path / "evaluate" / "verdicts.jsonl").write_text(text + '{"about": {', encoding="utf-8")


def test_each_claim_leads_to_its_rows_where_they_are(run_dir: RunDir) -> None:
    html = page.render(run_dir)
    claims = re.findall(r"<li>(The student is|It writes|The judge)(.*)", html.partition('id="claims"')[2])
    assert [bool("href" in rest) for _, rest in claims] == [True, True, False]  # there are no verdicts
    write_verdicts(run_dir)
    html = page.render(run_dir)
    chapters = set(re.findall(r'<section id="(\w+)"', html))
    places = set(re.findall(r'href="#([\w-]+)"', html)) - (chapters - {"answers"})
    assert places == {"rows-fidelity", "rows-speed", "rows-tasks", "rows-risks", "rows-verdicts", "answers"}
    assert all(html.count(f'id="{place}"') == 1 for place in places)


def test_links_lead_to_files_of_the_run(run_dir: RunDir) -> None:
    write_verdicts(run_dir)
    linked = re.findall(r'href="(evaluate/[\w.]+)"', page.render(run_dir))
    assert len(linked) == 5
    assert all((run_dir.path / name).is_file() for name in linked)


def test_the_prompts_where_the_student_is_farthest_come_first(run_dir: RunDir) -> None:
    path = run_dir.path / "evaluate" / "fidelity.parquet"
    more = [
        {"section": "fidelity", "arm": arm, "cluster": f"c{n:03d}", "num_tokens": 1000 + n, "forward_kl_nats": kl}
        for n in range(counted_rows.MAX_ROWS)
        for arm, kl in (("teacher", 0.0), ("student", n / 1000))
    ]
    pq.write_table(pa.concat_tables([pq.read_table(path), pa.Table.from_pylist(more)]), path)
    (_, note, table), *_ = counted_rows.tables(run_dir, {arm: {} for arm in ARM_NAMES})
    assert f"the first {counted_rows.MAX_ROWS} of {counted_rows.MAX_ROWS + 1}" in note
    first, second = table.rows[:2]
    assert first[0].startswith("Say 5.")  # what was asked, and of the teacher's own KL nothing
    assert [cell.value for cell in first[1]] == ["1.500", "3.000", "4.500", "24", "prompt5"]
    assert (second[0], second[1][0].value, second[1][1].value) == ("c299", "0.299", "–")
    assert len(table.rows) == counted_rows.MAX_ROWS


def test_rounds_and_verdicts_are_told_one_by_one(run_dir: RunDir) -> None:
    write_verdicts(run_dir)
    _, (_, _, speed), (_, _, verdicts) = counted_rows.tables(run_dir, {})
    assert [cell.value for cell in speed.rows[3][1]] == ["123.5", "–", "0.5"]
    assert speed.rows[3][0] == "Student, round 2"
    told = [[name, *(cell.value for cell in cells[:4])] for name, cells in verdicts.rows]
    assert told == [
        ["over teacher", "item-1", "2", "as B", "A"],
        ["grade of SFT only", "item-2", "1", "", "7.5"],
        ["grade of Student", "item-3", "1", "", "none"],
    ]
    reply = verdicts.rows[0][1][-1].value
    assert len(reply) == counted_rows.REPLY_CHARS
    assert reply.endswith("Verdict: A")


def test_tasks_say_which_checks_failed_and_probes_what_was_found(run_dir: RunDir) -> None:
    (_, _, tasks), (_, note, probes) = counted_rows.answers(run_dir)
    assert {row["arm"]: row["mark"] for row in tasks} == {"teacher": "✓", "student": "✗ json valid"}
    assert [(row["item_id"], row["mark"]) for row in probes] == [("unanswerable", "✗ the risk is there")]
    assert "pairs are judged together" in note


def test_what_models_and_judges_said_is_text(run_dir: RunDir) -> None:
    write_verdicts(run_dir)
    assert PLANTED not in page.render(run_dir)


@pytest.mark.parametrize("name", list(fabricated_run.counted_rows()))
def test_a_run_without_a_file_has_the_rest(run_dir: RunDir, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (run_dir.path / "evaluate" / name).unlink()
    monkeypatch.setattr(RunDir, "check_files", lambda *_: None)
    html = page.render(run_dir)
    assert counted_rows.PLACES[name] not in html
    assert '<section id="rows"' in html


def test_prompts_are_known_by_their_ids_where_filters_folder_is_gone(run_dir: RunDir, tmp_path: Path) -> None:
    (run_dir.path / "filter").rename(tmp_path / "gone")
    (_, _, table), *_ = counted_rows.tables(run_dir, {arm: {} for arm in ARM_NAMES})
    assert table.rows[0][0] == "prompt5"
