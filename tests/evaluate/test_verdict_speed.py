"""What the verdict says where the machine decided the speeds."""

from typing import Any

from pipeline.evaluate import verdict


def arm(rate: float, size: float) -> dict[str, Any]:
    return {"speed": {"output_tokens_per_s": {"value": rate}}, "cost": {"num_parameters": {"value": size}}}


def test_students_of_one_size_that_were_timed_far_apart_tell_of_noise() -> None:
    arms = {"teacher": arm(89, 134), "student": arm(168, 113), "sft_only": arm(98, 113), "untrained": arm(80, 113)}
    [sentence] = verdict._noise(arms)
    assert "3 students of the same size were timed at 80 to 168 tokens a second, 2.10× apart" in sentence
    assert "do not believe in differences of speed that are no larger" in sentence


def test_what_is_close_or_of_another_size_is_no_noise() -> None:
    assert verdict._noise({"teacher": arm(89, 134), "student": arm(110, 113), "untrained": arm(100, 113)}) == []
    assert verdict._noise({"teacher": arm(50, 134), "student": arm(110, 113)}) == []
    assert verdict._noise({"student": {"speed": {}, "cost": {}}}) == []
