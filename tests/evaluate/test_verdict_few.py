"""What the verdict and the tables say of a set that is too small to go by."""

from typing import Any

import pytest
from support import fabricated_run

from pipeline.evaluate import verdict
from pipeline.report import figures


def arms(num: int) -> dict[str, Any]:
    own = {name: fabricated_run.figure(0.5, 0.4, 0.6, num) for name in ("forward_kl_nats", "top1_agreement_frac")}
    return {"student": {"fidelity": own}}


@pytest.mark.parametrize(("num", "told"), [(1, "On 1 held-out prompt the"), (19, "On 19 held-out prompts the")])
def test_too_few_held_out_prompts_are_told_with_what_helps(num: int, told: str) -> None:
    first, _, third = verdict._fidelity(arms(num), {})
    assert first.startswith(told)
    assert "too few held-out prompts to rely on: intervals need about 20" in third
    assert "prepare.held_out_frac" in third


def test_of_enough_nothing_is_said() -> None:
    assert len(verdict._fidelity(arms(20), {})) == 2


@pytest.mark.parametrize(("num", "told"), [(1, "over 1 held-out prompt."), (48, "over 48 held-out prompts.")])
def test_the_notes_to_a_table_count_in_plain_english(num: int, told: str) -> None:
    [note] = figures.table(arms(num), figures.FIDELITY).notes
    assert note.endswith(told)
