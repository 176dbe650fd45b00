"""The verdict that a manager reads: at most five sentences, short, each with one claim and one figure."""

import itertools
import re
from typing import Any

import pytest
from support.fabricated_run import figure, scores

from pipeline.report.summary import summary

MAX_SENTENCES, MAX_WORDS = 5, 25
LOOPS, NOTHING = {"repetition_frac": {"value": 0.39, "low": 0.2, "high": 0.5, "num": 20}}, {}


def arms(num: int, passed: int, rates: tuple[float, float, float], quality: dict[str, Any]) -> dict[str, Any]:
    def arm(kl: float, done: int, rate: float, size: float) -> dict[str, Any]:
        return {
            "fidelity": {"forward_kl_nats": figure(kl, num=num), "top1_agreement_frac": figure(0.65, num=num)},
            "quality": {"task_pass_frac": figure(done / 40, num=40), **quality},
            "speed": {"output_tokens_per_s": figure(rate)},
            "cost": {"num_parameters": figure(size)},
        }

    return {
        "teacher": arm(0.0, 12, rates[0], 135e6),
        "student": arm(0.5, passed, rates[1], 113e6),
        "sft_only": arm(0.7, 3, rates[2], 113e6),
    }


KLS = {"kl_over_sft_only": [None, figure(0.78, 0.75, 0.8), figure(1.2, 1.1, 1.3), figure(0.98, 0.9, 1.1), figure(0.9)]}
SPEEDS = [figure(1.23, 1.16, 1.25, 3), figure(0.6, 0.5, 0.7, 3), figure(1.1, 0.8, 1.4, 3), None]


@pytest.mark.parametrize(("kl", "speed"), itertools.product(KLS["kl_over_sft_only"], SPEEDS))
@pytest.mark.parametrize("num", [1, 12, 48])
@pytest.mark.parametrize("passed", [0, 12, 14])
@pytest.mark.parametrize("apart", [1.0, 2.0])
def test_five_short_sentences_of_one_figure_whatever_came_out(
    kl: Any, speed: Any, num: int, passed: int, apart: float
) -> None:
    verdict = {"kl_over_sft_only": kl, "kl_over_untrained": figure(0.6, 0.5, 0.7), "speed_over_teacher": speed}
    told = summary(arms(num, passed, (100, 120, 120 * apart), LOOPS), verdict)
    assert 3 <= len(told) <= MAX_SENTENCES
    for sentence, rows in told:
        assert sentence.count(".") - len(re.findall(r"\d\.\d", sentence)) == 1, "one sentence"
        assert sentence.endswith(".")
        assert len(sentence.split()) <= MAX_WORDS
        figures = re.findall(r"\d[\d.,]*", re.sub(r"\bof \d+ checked", "of checked", sentence))
        assert len(figures) <= 1
        assert rows.endswith(".parquet")
    assert ("which may be chance" in " ".join(s.text for s in told)) is (passed != 12)
    assert any("too few to rely on" in s.text for s in told) is (num < 20)


def test_each_claim_is_as_its_interval_says() -> None:
    base = arms(48, 4, (100, 120, 121), NOTHING)

    def told(**verdict: Any) -> str:
        return " ".join(sentence.text for sentence in summary(base, verdict))

    assert "brought it 22% closer" in told(kl_over_sft_only=figure(0.78, 0.75, 0.8))
    assert "left it 20% farther" in told(kl_over_sft_only=figure(1.2, 1.1, 1.3))
    assert "was not shown to bring it closer" in told(kl_over_sft_only=figure(0.98, 0.9, 1.1))
    assert "Training brought it 40% closer to the teacher than it was before" in told(
        kl_over_untrained=figure(0.6, 0.5, 0.7)
    )
    assert "1.23 times as many tokens" in told(speed_over_teacher=figure(1.23, 1.16, 1.25))
    assert "not shown to be faster" in told(speed_over_teacher=figure(1.1, 0.8, 1.4))
    assert "passes 8 fewer of 40 checked tasks than the teacher, which may be chance" in told(
        task_p_teacher=figure(0.2)
    )
    assert "passes 8 fewer of 40 checked tasks than the teacher." in told(task_p_teacher=figure(0.01))


def test_equal_models_timed_far_apart_leave_the_speed_unknown() -> None:
    noisy = arms(48, 4, (100, 120, 240), NOTHING)
    told = " ".join(sentence.text for sentence in summary(noisy, {"speed_over_teacher": figure(1.23, 1.16, 1.25)}))
    assert "Its speed is unknown" in told
    assert "1.23" not in told


@pytest.mark.parametrize("scored", [{}, {"student": {}}, scores()["arms"]])
def test_what_was_not_measured_is_left_out(scored: dict[str, Any]) -> None:
    assert len(summary(scored, {})) <= MAX_SENTENCES
