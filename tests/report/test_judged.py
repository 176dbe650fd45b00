from pathlib import Path
from typing import Any

from support.fabricated_run import PLANTED, figure, make, scores
from support.fake_judge import FakeJudge, by_score
from support.report_reader import Reader

from pipeline.config import Evaluate, Judge
from pipeline.evaluate import judge
from pipeline.report import page
from pipeline.report.tables import judged


def judged_scores(tmp_path: Path) -> Any:
    """scores.json with what a real judgement of a few answers gives, by a judge that likes a larger number."""
    rows: Any = [
        {
            "item_id": f"i{item}",
            "category": PLANTED if item == 0 else "maths",
            "turn": 0,
            "arm": arm,
            "question": "How many?",
            "answer": f"One. Two. Three.{'!' * item} Worth {worth + item}",
        }
        for arm, worth in (("teacher", 50), ("student", 40), ("sft_only", 30))
        for item in range(6)
    ]
    worth = by_score(lambda question, answer: float((answer.split() or ["0"])[-1]) if answer[-1].isdigit() else 0)
    (tmp_path / "judged").mkdir()
    with FakeJudge(worth, grade=lambda question, answer: 7) as fake:
        chosen = Judge(url=fake.url, model="fake", check_items=3, price_out=1e3, max_cost=1e4)
        found = judge.run(Evaluate(judge=chosen, bootstrap=200), rows, tmp_path / "judged", "teacher")
    scored = scores()
    for arm, section in found.arms.items():
        scored["arms"][arm]["judge"] = section
    scored["verdict"] |= found.comparisons
    scored["verdict"]["claims"] += [{"text": told, "rows": "verdicts.jsonl"} for told in found.sentences]
    return scored


def test_a_judgement_has_a_section_with_every_table(tmp_path: Path) -> None:
    scored = judged_scores(tmp_path)
    html = page.render(make(tmp_path, scored=scored))
    reader = Reader(html)
    assert reader.sections[reader.sections.index("health") + 1] == "judge"
    [wins] = [row for row in reader.rows_of("the teacher's") if len(row) == 7]
    assert wins == ["the teacher's", "0.0 %", wins[2], "0.0 %", "0.0 %", "100.0 %", "6"]
    assert reader.rows_of("the SFT-only student's")[0][1] == "100.0 %"
    [maths] = reader.rows_of("maths")
    assert maths[1] == "0.0 %"
    assert maths[3] == "100.0 %"
    assert maths[-1] == "5"
    assert ["Teacher", "7.00", "0.0 %", "6"] in reader.rows_of("Teacher")
    [same] = [row for row in reader.rows if row and row[0].startswith("The same answer twice")]
    assert same[1].startswith("50.0 %")
    assert same[2:] == ["50 %", "3"]
    assert "at a cost of " in html
    assert "only a model has rated" in " ".join(html.split())
    assert PLANTED not in html
    assert scored["verdict"]["claims"][-1]["text"][:20] in html


def test_every_figure_of_a_judgement_has_its_four_fields(tmp_path: Path) -> None:
    scored = judged_scores(tmp_path)
    seen = 0
    waiting: list[Any] = [scored["arms"]["student"]["judge"], scored["arms"]["teacher"]["judge"]]
    while waiting:
        each = waiting.pop()
        if "value" in each:
            assert set(each) == {"value", "low", "high", "num"}
            seen += 1
        else:
            waiting += each.values()
    assert seen > 30


def test_without_a_judge_there_is_no_section(tmp_path: Path) -> None:
    html = page.render(make(tmp_path))
    assert "judge" not in Reader(html).sections
    assert "nobody has rated" in " ".join(html.split())
    assert judged.tables({}) == []
    assert judged.tables({"student": {"judge": {}}}) == []
    assert judged.cost({}) == ""


def test_tables_stand_with_what_there_is() -> None:
    arms = {"student": {"judge": {"over_teacher": {"invalid_frac": figure(1.0)}}}}
    [wins, leanings] = judged.tables(arms)
    assert [cell.value for cell in wins.rows[0][1]] == ["–"] * 5 + ["48"]
    assert leanings.rows[0][1][3].value == "100.0 %"
