"""What the verdict says where the machine decided the speeds."""

from typing import Any

import pytest

from pipeline.evaluate import verdict


def arm(rate: float, size: float) -> dict[str, Any]:
    return {"speed": {"output_tokens_per_s": {"value": rate}}, "cost": {"num_parameters": {"value": size}}}


def test_students_of_one_size_that_were_timed_far_apart_tell_of_noise() -> None:
    arms = {"teacher": arm(89, 134), "student": arm(168, 113), "sft_only": arm(98, 113), "untrained": arm(80, 113)}
    [sentence] = verdict._noise(arms)
    assert "Students of the same size were timed 2.10× apart" in sentence
    assert "Smaller differences of speed mean nothing" in sentence


def test_what_is_close_or_of_another_size_is_no_noise() -> None:
    assert verdict._noise({"teacher": arm(89, 134), "student": arm(110, 113), "untrained": arm(100, 113)}) == []
    assert verdict._noise({"teacher": arm(50, 134), "student": arm(110, 113)}) == []
    assert verdict._noise({"student": {"speed": {}, "cost": {}}}) == []


def on_gpus(num: int | None) -> dict[str, Any]:
    return {"cost": {} if num is None else {"num_gpus": {"value": num}}}


@pytest.mark.parametrize(
    ("student", "teacher", "said"),
    [
        (None, None, "3.00× as many tokens a second as the teacher (timed one after the other)."),
        (
            1,
            4,
            "3.00× as many tokens a second per GPU as the teacher (timed one after the other; it ran on 1 GPU, the"
            " teacher on 4 GPUs).",
        ),
    ],
)
def test_on_gpus_the_ratio_is_of_each(student: int | None, teacher: int | None, said: str) -> None:
    ratio = {"value": 3.0, "low": None, "high": None, "num": 1}
    compared: Any = {"speed_over_teacher": ratio, "parameters_over_teacher": ratio}
    sentence, _ = verdict._speed({"student": on_gpus(student), "teacher": on_gpus(teacher)}, compared)
    assert said in sentence


def test_arms_of_one_size_are_alike_for_each_gpu() -> None:
    arms = {"teacher": arm(400, 113), "student": arm(100, 113)}
    arms["teacher"]["cost"]["num_gpus"], arms["student"]["cost"]["num_gpus"] = {"value": 4}, {"value": 1}
    assert verdict._noise(arms) == []
