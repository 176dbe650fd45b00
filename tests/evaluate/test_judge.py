import json
import re
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import pytest
from support.fake_judge import KEY, FakeJudge, by_score, first_place, longer

import pipeline
from pipeline.config import Evaluate, Judge
from pipeline.errors import UserError
from pipeline.evaluate import judge
from pipeline.evaluate.judge import checks
from pipeline.judge.questions import JudgedAnswer

ROOT = Path(pipeline.__file__).parent.parent
NUM_ITEMS = 40
NUM_CHECKS = 20


def worth(question: str, answer: str) -> float:
    """How many points an answer makes about what was asked."""
    [topic] = re.findall(r"topic (\d+)", question)
    return len(re.findall(rf"About topic {topic},", answer))


fair = by_score(worth)


def answer(topic: int, points: int, padding: int = 0) -> str:
    return " ".join(
        [f"About topic {topic}, this is point {n}." for n in range(points)] + ["And so on, and so on."] * padding
    )


def points(arm: str, item: int) -> int:
    """Teacher 6; the student better for a quarter of the items, level for a quarter; the SFT-only one worse."""
    return {"teacher": 6, "student": (8, 6, 4, 4)[item % 4], "sft_only": 3}[arm]


def rows(arms: tuple[str, ...] = ("teacher", "student", "sft_only"), num: int = NUM_ITEMS) -> Any:
    return [
        {
            "item_id": f"i{item:02}",
            "category": ("low", "high")[item < num // 2],
            "turn": 0,
            "arm": arm,
            "question": f"What is there to say of topic {item}?",
            "answer": answer(item, points(arm, item), padding=item % 7 + (arm == "sft_only") * 10),
        }
        for arm in arms
        for item in range(num)
    ]


def judged(fake: FakeJudge, folder: Path, given: Any = None, **settings: Any) -> judge.Judged:
    chosen = Judge(**{"url": fake.url, "model": "fake-7b", "check_items": NUM_CHECKS, **settings})
    return judge.run(Evaluate(judge=chosen, bootstrap=500), given or rows(), folder, "HuggingFaceTB/SmolLM2")


def value(found: judge.Judged, place: str, name: str) -> float:
    return found.arms["student"][place][name]["value"]


def test_a_fair_judge_is_believed_and_gives_the_planted_win_rate(tmp_path: Path) -> None:
    with FakeJudge(fair, grade=lambda q, a: 1 + worth(q, a)) as fake:
        found = judged(fake, tmp_path)
    over = found.arms["student"]["over_teacher"]
    assert over["win_rate"]["value"] == pytest.approx(0.25 + 0.25 / 2)
    assert (over["won_frac"]["value"], over["tied_frac"]["value"]) == (0.25, 0.25)
    assert over["win_rate"]["low"] < 0.375 < over["win_rate"]["high"] < 0.55
    assert over["position_flip_frac"]["value"] == 0
    assert value(found, "over_sft_only", "win_rate") == 1
    assert {name: f["value"] for name, f in found.arms["student"]["checks"].items()} == {
        "identical_first_place_score": 0.5,
        "sound_over_cut_frac": 1,
        "sound_over_foreign_frac": 1,
        "invalid_frac": 0,
    }
    assert [found.arms[arm]["grade"]["value"] for arm in ("teacher", "student", "sft_only")] == [7, 6.5, 4]
    assert found.comparisons["judge_grade_less_teachers"]["value"] == pytest.approx(-0.5)
    assert found.comparisons["judge_win_rate_over_teacher"] == over["win_rate"]
    assert set(found.arms["student"]["over_teacher_by_category"]) == {"high", "low"}
    assert "passed its self-checks" in found.sentences[0]
    assert "37% (" in found.sentences[1] or "38% (" in found.sentences[1]
    assert found.sentences[2].endswith(": it is preferred.")


def test_a_judge_of_the_first_place_is_seen_through(tmp_path: Path) -> None:
    with FakeJudge(first_place) as fake:
        found = judged(fake, tmp_path)
    over = found.arms["student"]["over_teacher"]
    assert over["first_place_frac"]["value"] == 1
    # the quarter where both answers are the same was not asked
    assert over["position_flip_frac"]["value"] == 0.75
    assert over["win_rate"]["value"] == 0.5
    assert value(found, "checks", "identical_first_place_score") == 1
    assert value(found, "checks", "sound_over_cut_frac") == 0.5
    assert found.sentences[0].startswith("Do not believe the judge fake-7b: ")
    for doubt in ("shuffled and half of them gone", "two answers that are the same", "turns round with the order"):
        assert doubt in found.sentences[0]
    assert "no preference was shown" in found.sentences[1]


def test_a_judge_of_length_is_seen_through(tmp_path: Path) -> None:
    with FakeJudge(longer) as fake:
        found = judged(fake, tmp_path)
    over = found.arms["student"]["over_teacher"]
    assert over["longer_preferred_frac"]["value"] == 1
    assert over["position_flip_frac"]["value"] == 0
    assert value(found, "checks", "sound_over_cut_frac") == 1
    assert value(found, "checks", "sound_over_foreign_frac") == 0
    assert "Do not believe" in found.sentences[0]
    assert "a longer answer to another question" in found.sentences[0]
    assert "shuffled" not in found.sentences[0]


def test_a_judge_of_garbage_is_seen_through_and_asked_again(tmp_path: Path) -> None:
    (tmp_path / "once").mkdir()
    with FakeJudge(fair, garbage_frac=0.2) as fake:
        found = judged(fake, tmp_path / "once", retries=0)
        assert 0.08 < value(found, "over_teacher", "invalid_frac") < 0.35
        assert "can't be read" in found.sentences[0]
        # what is left is not bent by what could not be read
        assert value(found, "over_sft_only", "win_rate") == 1
        found = judged(fake, tmp_path, retries=4)
        assert value(found, "over_teacher", "invalid_frac") < 0.05
        assert value(found, "over_teacher", "win_rate") == pytest.approx(0.375, abs=0.03)
        assert "passed its self-checks" in found.sentences[0]


def test_a_coin_is_seen_through(tmp_path: Path) -> None:
    with FakeJudge(lambda q, a, b: "AB"[zlib.crc32(f"{a}|{b}".encode()) % 2]) as fake:
        found = judged(fake, tmp_path)
    assert "Do not believe" in found.sentences[0]


def test_what_is_judged_is_asked_once_and_costs_what_the_server_says(tmp_path: Path) -> None:
    with FakeJudge(fair) as fake:
        first = judged(fake, tmp_path, price_in=10.0, price_out=100.0, max_cost=20)
        num = fake.num_asked
        assert set(fake.asked.values()) == {1}
        again = judged(fake, tmp_path, price_in=10.0, price_out=100.0, max_cost=20)
        assert fake.num_asked == num
    assert again == first
    cost = first.arms["student"]["cost"]
    assert cost["verdicts"]["value"] == num
    assert cost["prompt_tokens"]["value"] == 100 * num
    assert cost["cost"]["value"] == pytest.approx(num * (100 * 10 + 10 * 100) / 1e6)
    # 30 items differ from the teacher, 40 from the SFT-only one, twice each; the checks; the grades but those ten's
    assert num == 2 * (30 + 40) + NUM_CHECKS * (1 + 2 + 2) + 3 * NUM_ITEMS - 10


def test_a_judge_that_is_too_dear_is_not_asked(tmp_path: Path) -> None:
    with FakeJudge(fair) as fake:
        with pytest.raises(
            UserError, match=r"350 verdicts may cost \d+\.\d+ in all, above evaluate\.judge\.max_cost=1;"
        ):
            judged(fake, tmp_path, price_out=10.0, max_cost=1)
        assert fake.num_asked == 0
        assert judged(fake, tmp_path, price_out=10.0, max_cost=2).sentences


def test_a_judge_that_gets_too_dear_is_stopped_and_what_was_paid_is_kept(tmp_path: Path) -> None:
    with FakeJudge(fair, usage=(100, 5000)) as fake:
        with pytest.raises(UserError, match="have cost 2"):
            judged(fake, tmp_path, price_out=10.0, max_cost=2, concurrency=4)
        assert 40 <= fake.num_asked <= 45
        kept = len((tmp_path / "verdicts.jsonl").read_text().splitlines())
        assert kept >= 40
        num = fake.num_asked
        judged(fake, tmp_path, price_out=10.0, max_cost=50)
        assert fake.num_asked == num + 350 - kept


def test_no_file_holds_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture) -> None:
    monkeypatch.setenv("RETORT_JUDGE_KEY", KEY)
    with FakeJudge(lambda q, a, b: f"A\n{KEY}", needs_key=True) as fake:
        judged(fake, tmp_path, rows(num=3))
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files
    assert all(KEY.encode() not in path.read_bytes() for path in files)
    assert KEY not in "".join(capfd.readouterr())


CHILD = """
import json, sys
from pathlib import Path
from pipeline.config import Evaluate, Judge
from pipeline.evaluate import judge
settings = Judge(url=sys.argv[1], model="fake-7b", check_items=20, concurrency=4)
judge.run(Evaluate(judge=settings, bootstrap=500), json.load(open(sys.argv[2])), Path(sys.argv[3]), "x")
"""


def test_a_killed_judgement_goes_on_where_it_was(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text(json.dumps(rows()))
    with FakeJudge(fair, delay_s=0.03) as fake:
        command = [sys.executable, "-c", CHILD, fake.url, str(tmp_path / "rows.json"), str(tmp_path)]
        child = subprocess.Popen(command, cwd=ROOT)
        began = time.monotonic()
        while fake.num_asked < 60 and time.monotonic() - began < 60:
            time.sleep(0.01)
        child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
        before = fake.num_asked
        kept = (tmp_path / "verdicts.jsonl").read_text().count("\n")
        assert before - 4 <= kept <= before < 350  # what was in flight is lost, no more
        fake.delay_s = 0
        found = judged(fake, tmp_path)
        assert fake.num_asked == before + 350 - kept
    assert value(found, "over_teacher", "win_rate") == 0.375


def test_two_turns_are_judged_each_and_count_as_one_item(tmp_path: Path) -> None:
    given = rows(("teacher", "student"), num=8)
    given += [{**row, "turn": 1, "system": "Be brief.", "reference": "So."} for row in given]
    with FakeJudge(fair) as fake:
        found = judged(fake, tmp_path, given)
    assert found.arms["student"]["over_teacher"]["win_rate"]["num"] == 8
    assert any("Earlier question" in text and "Be brief." in text and "\nSo.\n" in text for text in fake.asked)
    assert "over_sft_only" not in found.arms["student"]
    assert "sft_only" not in found.arms


def test_a_question_that_is_refused_is_told_and_asked_again_next_time(
    tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    given = rows(("teacher", "student"), num=8)
    with FakeJudge(fair, refuses="of topic 6?") as fake:
        found = judged(fake, tmp_path, given, check_items=1)
        assert value(found, "over_teacher", "invalid_frac") == pytest.approx(2 / 16)
        assert found.arms["student"]["over_teacher"]["win_rate"]["num"] == 7
        assert "4 questions were refused" in capfd.readouterr().err.replace("\n", " ")
        fake.refuses, num = "", fake.num_asked
        found = judged(fake, tmp_path, given, check_items=1)
        assert fake.num_asked == num + 4
        assert value(found, "over_teacher", "invalid_frac") == 0


def test_without_a_judge_there_is_nothing(tmp_path: Path) -> None:
    assert judge.run(Evaluate(), rows(), tmp_path, "x") == judge.Judged()
    assert list(tmp_path.iterdir()) == []


def test_a_judge_of_the_teachers_family_is_told(tmp_path: Path) -> None:
    with FakeJudge(fair) as fake:
        told = judged(fake, tmp_path, rows(num=4), model="org/SmolLM3-70B").sentences
    assert any("of the teacher's family (smollm)" in sentence for sentence in told)
    assert "Do not believe" in told[0]  # four items show nothing


def reply(item: int, text: str, turn: int = 0) -> JudgedAnswer:
    return JudgedAnswer(f"i{item}", "c", turn, None, "q", None, (), text)


def test_planted_answers_are_the_same_worse_and_of_another_item() -> None:
    sound = [reply(n, answer(n, 4 + n)) for n in range(6)] + [reply(7, "Short. One."), reply(8, "Other"), reply(9, "")]
    found = checks.planted([*sound, reply(1, "A second turn. Of many. Sentences.", 1)], 20, seed=0)
    named = {name: [pair for pair in found if pair.name == name] for name in ("identical", "cut", "foreign")}
    assert len(named["identical"]) == 8  # not the empty one, nor the second turn
    assert all(pair.one == pair.other for pair in named["identical"])
    assert len(named["cut"]) == 6  # not those of fewer than three sentences
    for pair in named["cut"]:
        whole, cut = (re.findall(r"point (\d+)", text) for text in (pair.one.answer, pair.other.answer))
        assert len(cut) == len(whole) // 2
        assert set(cut) < set(whole)
        assert cut != sorted(cut, key=int)
    assert len(named["foreign"]) == 7  # the longest has none above it
    for pair in named["foreign"]:
        assert len(pair.other.answer) > len(pair.one.answer)
        assert pair.other.answer in [r.answer for r in sound if r.item_id != pair.one.item_id]
        assert pair.other.item_id == pair.one.item_id
    assert found == checks.planted(list(reversed(sound)), 20, seed=0)
    assert len(checks.planted(sound, 2, seed=0)) == 6
