import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import statistics
from pipeline.evaluate import fidelity
from pipeline.evaluate.fidelity import MEASURES, calibration
from pipeline.evaluate.fidelity.calibration import NUM_BINS, Bins, ece_frac
from pipeline.statistics import Figure, ratio
from pipeline.statistics.per_prompt import PerPrompt, intervals


def slow_ece(confidence: np.ndarray, accuracy: np.ndarray) -> float:
    """Tokens in the order of their confidence, in fifteen parts of one size."""
    order = np.argsort(confidence)
    parts = np.array_split(order, 15)
    return sum(len(p) * abs(confidence[p].mean() - accuracy[p].mean()) for p in parts) / len(confidence)


def ece(bins: Bins, resamples: int, seed: int) -> Figure:
    [figure] = intervals(lambda totals: ece_frac(totals)[:, None], bins.sums(), resamples, seed)
    return figure


def tokens(num: int, seed: int, overconfident: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    confidence = generator.beta(2, 1, num)
    accuracy = (confidence - overconfident * generator.random(num)).clip(0, 1)
    return confidence, accuracy


def filled(confidence: np.ndarray, accuracy: np.ndarray, num_prompts: int) -> Bins:
    bins = Bins()
    for number, rows in enumerate(np.array_split(np.arange(len(confidence)), num_prompts)):
        bins.add(f"prompt{number}", confidence[rows], accuracy[rows])
    return bins


@given(st.integers(2, 40), st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_ece_equals_tokens_sorted_into_parts_of_one_size(size: int, seed: int) -> None:
    confidence, accuracy = tokens(NUM_BINS * size, seed)
    assert ece(filled(confidence, accuracy, 7), 10, 0)["value"] == pytest.approx(
        slow_ece(confidence, accuracy), rel=1e-5
    )


def test_bins_hold_as_many_tokens_each() -> None:
    sums = filled(*tokens(15 * 200, 0), 20).sums().reshape(20, NUM_BINS, 3)
    assert (sums[:, :, 2].sum(axis=0) == 200).all()


def test_an_arm_as_sure_as_it_is_right_has_no_error_and_one_too_sure_has_its_excess() -> None:
    confidence = np.linspace(0.2, 0.99, 600)
    assert ece(filled(confidence, confidence, 5), 10, 0)["value"] == pytest.approx(0, abs=1e-9)
    assert ece(filled(confidence, confidence - 0.15, 5), 10, 0)["value"] == pytest.approx(0.15, rel=1e-5)


def test_errors_that_cancel_over_all_tokens_are_seen_bin_by_bin() -> None:
    confidence = np.linspace(0.3, 0.9, 600)
    accuracy = np.where(confidence < 0.6, confidence + 0.1, confidence - 0.1)
    assert (confidence - accuracy).mean() == pytest.approx(0, abs=1e-3)
    assert ece(filled(confidence, accuracy, 5), 10, 0)["value"] == pytest.approx(0.1, rel=0.1)


def test_edges_of_the_first_tokens_serve_those_that_come_later(monkeypatch: pytest.MonkeyPatch) -> None:
    confidence, accuracy = tokens(15 * 1000, 3)
    whole = ece(filled(confidence, accuracy, 300), 200, 0)
    monkeypatch.setattr(calibration, "EDGE_TOKENS", 1500)
    bins = filled(confidence, accuracy, 300)
    assert not bins._waiting
    in_bins = bins.sums().reshape(300, NUM_BINS, 3)[:, :, 2].sum(axis=0)
    assert in_bins.sum() == 15_000
    assert in_bins.min() > 600
    assert in_bins.max() < 1500
    assert ece(bins, 200, 0)["value"] == pytest.approx(whole["value"], rel=0.02)


def test_figures_are_what_drawn_tokens_give_on_average() -> None:
    """Accuracy and Brier score of labels that are drawn from the teacher, many times."""
    generator = torch.Generator().manual_seed(0)
    teacher_NV, student_NV = ((2 * torch.randn(4, 9, generator=generator)).log_softmax(dim=1) for _ in range(2))
    of = fidelity.compare(fidelity.Reference.of(teacher_NV), student_NV, torch.zeros(4, dtype=torch.long))
    drawn_ND = torch.multinomial(teacher_NV.exp(), 200_000, replacement=True, generator=generator)
    onehot_NDV = torch.nn.functional.one_hot(drawn_ND, 9)
    brier_N = (student_NV.exp()[:, None, :] - onehot_NDV).square().sum(dim=2).mean(dim=1)
    accuracy_N = (drawn_ND == student_NV.argmax(dim=1)[:, None]).double().mean(dim=1)
    np.testing.assert_allclose(of[:, MEASURES.index("brier_score")], brier_N, atol=0.01)
    np.testing.assert_allclose(of[:, MEASURES.index("accuracy_frac")], accuracy_N, atol=0.01)


def slow_interval(bins_PB3: np.ndarray, resamples: int) -> tuple[float, float]:
    """Whole prompts drawn one list at a time."""
    generator = np.random.default_rng(5)
    drawn = []
    for _ in range(resamples):
        some_B3 = bins_PB3[generator.integers(0, len(bins_PB3), len(bins_PB3))].sum(axis=0)
        drawn.append(sum(abs(conf - acc) for conf, acc, _ in some_B3) / sum(num for _, _, num in some_B3))
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(low), float(high)


def test_the_interval_is_over_prompts() -> None:
    """Prompts differ in how sure the arm is of itself: drawing tokens apart would be far too certain."""
    generator = np.random.default_rng(0)
    bins = Bins()
    for number in range(40):
        confidence = generator.beta(2, 1, 30)
        bins.add(f"prompt{number}", confidence, (confidence - generator.uniform(0, 0.3)).clip(0, 1))
    figure = ece(bins, 10_000, 0)
    low, high = slow_interval(bins.sums().reshape(40, NUM_BINS, 3), 4000)
    assert figure["num"] == 40
    assert figure["low"] == pytest.approx(low, rel=0.03)
    assert figure["high"] == pytest.approx(high, rel=0.03)


def test_intervals_of_quotients_are_those_of_ratio(monkeypatch: pytest.MonkeyPatch) -> None:

    generator = np.random.default_rng(0)
    sums = generator.gamma(2, 1, (30, 3))
    wanted = [ratio(sums[:, column], sums[:, 2], 2000, 3) for column in (0, 1)]
    for max_weights in (50_000_000, 30 * 7):  # at once, and in pieces
        monkeypatch.setattr(statistics, "MAX_WEIGHTS", max_weights)
        got = intervals(lambda totals: totals[:, :2] / totals[:, 2:], sums, 2000, 3)
        assert [figure == pytest.approx(other) for figure, other in zip(got, wanted, strict=True)] == [True, True]
    [alone] = intervals(lambda totals: totals[:, :1] / totals[:, 2:], sums[:1], 2000, 3)
    assert alone == {"value": sums[0, 0] / sums[0, 2], "low": None, "high": None, "num": 1}


@given(st.lists(st.tuples(st.sampled_from("abcdefghijklmnopqrstuvwxyz"), st.integers(0, 9)), min_size=1, max_size=200))
def test_sums_by_prompt_are_as_a_dictionary_has_them(added: list[tuple[str, int]]) -> None:
    sums = PerPrompt(2)
    wanted: dict[str, int] = {}
    for prompt, value in added:
        sums.add(prompt, np.array([value, 1.0]))
        wanted[prompt] = wanted.get(prompt, 0) + value
    assert sums.prompts() == list(wanted)
    assert sums.sums()[:, 0].tolist() == list(wanted.values())
    assert sums.sums()[:, 1].sum() == len(added)
