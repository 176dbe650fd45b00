"""What a first student can still learn: its KL on stored rows, the limits, and which answers they drop."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import tiny_model
from support.captured import Filtered, Row, reasons, response

from pipeline import codec
from pipeline.console import progress
from pipeline.errors import UserError
from pipeline.filter import learnability
from pipeline.filter.learnability import kl_of_rows
from pipeline.models import lookup

V, K = 7, 3
OFF = {"near_duplicates": None, "drop_exact_duplicates": False, "worst_nll_frac": None, "drop_control_tokens": False}


def test_the_kl_is_that_of_the_support_and_all_else_as_one_token() -> None:
    torch.manual_seed(0)
    p_NV, q_NV = torch.randn(5, V).double().softmax(1), torch.randn(5, V).double().softmax(1)
    ids_NK = p_NV.topk(K).indices
    rest_p_N, rest_q_N = (1 - each.gather(1, ids_NK).sum(1) for each in (p_NV, q_NV))
    expected_N = (p_NV * (p_NV / q_NV).log()).gather(1, ids_NK).sum(1) + rest_p_N * (rest_p_N / rest_q_N).log()
    stored_NK = p_NV.gather(1, ids_NK).log()
    wide = torch.cat([ids_NK, ids_NK[:, :1]], 1), torch.cat([stored_NK, torch.full((5, 1), -torch.inf)], 1)
    for ids, stored in ((ids_NK, stored_NK), wide):
        torch.testing.assert_close(kl_of_rows(q_NV.log(), ids, stored, rest_p_N.log()), expected_N)


def test_a_teacher_that_is_padded_wider_has_its_padding_in_all_else() -> None:
    q_NV = torch.tensor([[0.5, 0.3, 0.2]]).log()
    ids, stored = torch.tensor([[0, 3]]), torch.tensor([[0.6, 0.1]]).log()
    got = kl_of_rows(q_NV, ids, stored, torch.tensor([0.3]).log())
    assert got.item() == pytest.approx(0.6 * np.log(0.6 / 0.5) + 0.4 * np.log(0.4 / 0.5), abs=1e-6)


def test_no_mass_outside_the_support_costs_nothing_there() -> None:
    q_NV = torch.tensor([[0.5, 0.3, 0.2]]).log()
    got = kl_of_rows(q_NV, torch.tensor([[0]]), torch.tensor([[0.0]]), torch.tensor([-torch.inf]))
    assert got.item() == pytest.approx(np.log(2), abs=1e-6)


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory, teacher: Path) -> Path:
    """A tiny model with the teacher's tokens."""
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("student")
    tiny_model.make(0, V).save_pretrained(folder)
    AutoTokenizer.from_pretrained(teacher).save_pretrained(folder)
    return folder


def own_logprobs(student: Path, token_ids: list[int]) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(student).eval()
    with torch.no_grad():
        return model(torch.tensor([[0, *token_ids]])).logits[0, :-1].double().log_softmax(1)


def packed(logprobs_NV: torch.Tensor, noise: float) -> tuple[Row, torch.Tensor]:
    """Rows of a teacher that is the student with noise, packed; and their log-probs."""
    torch.manual_seed(1)
    stored_NV = (logprobs_NV + noise * torch.randn(logprobs_NV.shape).double()).log_softmax(1)
    values_NK, ids_NK = stored_NV.topk(K)
    parts = (ids_NK.int().numpy(), values_NK.float().numpy())
    return codec.encode(*parts, codec.log_tail(values_NK.numpy(), V).astype(np.float32)), stored_NV


def answers(student: Path, noises: list[float], **changes: Any) -> list[Row]:
    """One answer for each noise, those with none like the student's own."""
    token_ids = [2, 3, 4, 2, 1]
    own_NV = own_logprobs(student, token_ids)
    return [
        response(
            f"p{n:02d}-0",
            token_ids=token_ids,
            token_logprobs=[-1.0] * len(token_ids),
            logprobs=packed(own_NV, noise)[0],
            **changes,
        )
        for n, noise in enumerate(noises)
    ]


def test_the_least_and_the_greatest_kl_are_dropped(filtered: Filtered, student: Path) -> None:
    noises = [0.0, 0.4, 0.6, 0.8, 1.0, 1.2, 1.4, 1.6, 1.8, 6.0]
    rows = answers(student, noises)
    settings = {"student": str(student), "learnt_frac": 0.1, "wildest_frac": 0.1}
    decisions = filtered.captured(rows[:4], rows[4:]).do(learnability=settings, **OFF)
    expected = {f"p{n:02d}-0": [] for n in range(10)} | {"p00-0": ["learnt_already"], "p09-0": ["out_of_reach"]}
    assert reasons(decisions) == expected
    own_NV = own_logprobs(student, rows[0]["token_ids"])
    for n in (0, 3, 9):
        _, stored_NV = packed(own_NV, noises[n])
        values_NK, ids_NK = stored_NV.topk(K)
        rest = (1 - values_NK.exp().sum(1)).log()
        exact = kl_of_rows(own_NV, ids_NK, values_NK, rest).mean().item()
        assert dict(decisions[f"p{n:02d}-0"]["scores"])["learnt_already"] == pytest.approx(exact, abs=5e-3, rel=0.02)
    manifest = filtered.run_dir.manifest("filter")
    assert 0 < manifest["limits"]["min_kl_nats"] < manifest["limits"]["max_kl_nats"]
    assert manifest["settings"]["learnability.learnt_frac"] == 0.1


def test_held_out_answers_stay_and_set_no_limits(filtered: Filtered, student: Path) -> None:
    rows = answers(student, [0.5, 0.7, 0.9, 1.1])
    held_out = [row | {"response_id": f"h{n}-0", "prompt_id": f"h{n}", "split": "held_out"} for n, row in
                enumerate(answers(student, [0.0, 9.0]))]  # fmt: skip
    settings = {"student": str(student), "learnt_frac": 0.2, "wildest_frac": 0.2}
    decisions = filtered.captured([*rows, *held_out]).do(learnability=settings, **OFF)
    dropped = {name for name, row in decisions.items() if not row["kept"]}
    assert dropped == {"p00-0", "p03-0"}


def test_the_student_is_asked_once_and_other_limits_take_its_scores(
    filtered: Filtered, student: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filtered.captured(answers(student, [0.0, 0.5, 1.0, 5.0]))
    filtered.do(learnability={"student": str(student)}, **OFF)
    filtered.run_dir.discard_from("filter")
    monkeypatch.setattr(learnability, "_scored", None)
    decisions = filtered.do(learnability={"student": str(student), "wildest_frac": 0.5, "learnt_frac": None}, **OFF)
    assert {name for name, row in decisions.items() if not row["kept"]} == {"p02-0", "p03-0"}


def test_a_killed_pass_goes_on_with_the_next_shard(
    filtered: Filtered, student: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, scored, asked = answers(student, [0.0, 0.5, 1.0, 5.0]), learnability._scored, []

    def counted(model: Any, rows: list[Row], batch_tokens: int) -> Any:
        asked.append([row["response_id"] for row in rows])
        if len(asked) == 2:
            raise KeyboardInterrupt
        return scored(model, rows, batch_tokens)

    monkeypatch.setattr(learnability, "_scored", counted)
    filtered.captured(rows[:2], rows[2:])
    with pytest.raises(KeyboardInterrupt):
        filtered.do(learnability={"student": str(student)}, **OFF)
    filtered.do(learnability={"student": str(student)}, **OFF)
    assert asked == [["p00-0", "p01-0"], ["p02-0", "p03-0"], ["p02-0", "p03-0"]]


def test_a_student_of_this_very_run_and_one_of_other_tokens_are_refused(
    filtered: Filtered, student: Path, byte_tokenizer: Path, tmp_path: Path
) -> None:
    filtered.captured(answers(student, [0.0, 0.5]))
    own = filtered.run_dir.path / "train/student"
    own.parent.mkdir()
    own.mkdir()
    for path in student.iterdir():
        (own / path.name).write_bytes(path.read_bytes())
    with pytest.raises(UserError, match="belongs to this run, and filtering again discards its training"):
        filtered.do(learnability={"student": str(own)}, **OFF)
    other = tmp_path / "other"
    other.mkdir()
    for path in (*student.iterdir(), *byte_tokenizer.iterdir()):
        (other / path.name).write_bytes(path.read_bytes())
    with pytest.raises(UserError, match="its tokens differ from the teacher's"):
        filtered.do(learnability={"student": str(other)}, **OFF)


def test_the_students_weights_are_hashed_once_and_answers_are_counted(
    filtered: Filtered, student: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_model, hashed, bars = lookup.Model.weights_hash, [], []

    class Bar(type(progress(""))):
        def update(self, task_id: Any, **fields: Any) -> None:
            super().update(task_id, **fields)
            bars.append((self.tasks[0].completed, self.tasks[0].total))

    def counted(model: lookup.Model) -> str:
        hashed.append(model.name)
        return of_model(model)

    monkeypatch.setattr(lookup.Model, "weights_hash", counted)
    monkeypatch.setattr(learnability, "progress", lambda unit: Bar(unit))
    rows = answers(student, [0.0, 0.5, 1.0])
    filtered.captured(rows[:1], rows[1:]).do(learnability={"student": str(student)}, **OFF)
    assert hashed == [str(student)]
    assert bars == [(1, 3), (3, 3)]
