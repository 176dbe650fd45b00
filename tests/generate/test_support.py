"""Which entries are stored: all, the likeliest, or draws that are unbiased and the same every time."""

from typing import Any

import numpy as np
import pytest

from pipeline import codec
from pipeline.config import Generate
from pipeline.errors import UserError
from pipeline.generate import support
from pipeline.run import alignment

VOCAB = 200


def settings(**changes: Any) -> Generate:
    return Generate.model_validate({"support": "sampled", "num_draws": 32, **changes})


def rows(num_tokens: int, k: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The k best of random distributions over VOCAB, best first, and their log-probs."""
    logits_NV = np.random.default_rng(seed).normal(size=(num_tokens, VOCAB)) * 3
    logprobs_NV = logits_NV - np.log(np.exp(logits_NV).sum(axis=1, keepdims=True))
    order_NV = np.argsort(-logprobs_NV, axis=1)[:, :k]
    return order_NV.astype(np.int32), np.take_along_axis(logprobs_NV, order_NV, 1).astype(np.float32)


def test_draws_are_unbiased_within_the_k_best() -> None:
    """Over many responses the shares of the draws are the probabilities; each within six deviations."""
    _, logprobs_NK = rows(1, 20)
    many, num = np.repeat(logprobs_NK, 4000, axis=0), settings()
    counts_NK = support.counts_of_draws(many, support.uniforms(len(many), num, "r-0"))
    p_K = np.exp(logprobs_NK[0].astype(np.float64)) / np.exp(logprobs_NK[0].astype(np.float64)).sum()
    deviation_K = np.sqrt(p_K * (1 - p_K) / (32 * len(many)))
    assert (np.abs(counts_NK.mean(axis=0) / 32 - p_K) < 6 * deviation_K).all()
    assert (counts_NK.sum(axis=1) == 32).all()


def test_systematic_draws_are_the_expected_count_rounded_and_vary_less() -> None:
    _, logprobs_NK = rows(500, 40)
    p_NK = np.exp(logprobs_NK.astype(np.float64))
    p_NK /= p_NK.sum(axis=1, keepdims=True)
    independent_ND = np.random.default_rng(0).random((500, 32))  # as random-sampling KD draws
    drawn = {"systematic": support.uniforms(500, settings(), "r-0"), "independent": independent_ND}
    off = {how: support.counts_of_draws(logprobs_NK, uniforms_ND) - 32 * p_NK for how, uniforms_ND in drawn.items()}
    assert np.abs(off["systematic"]).max() < 1
    assert np.abs(off["independent"]).max() > 2
    assert (off["systematic"] ** 2).mean() < 0.5 * (off["independent"] ** 2).mean()


def test_draws_are_a_function_of_seed_response_and_position() -> None:
    first = support.uniforms(8, settings(), "r-0")
    np.testing.assert_array_equal(first, support.uniforms(8, settings(), "r-0"))
    np.testing.assert_array_equal(first[:5], support.uniforms(5, settings(), "r-0"), "a longer answer, the same draws")
    assert (first != support.uniforms(8, settings(), "r-1")).all()
    assert (first != support.uniforms(8, settings(seed=1), "r-0")).all()
    assert len(np.unique(first[:, 0])) == 8


def test_rows_with_padding_and_with_one_certain_token_are_drawn_from() -> None:
    logprobs_NK = np.array([[0.0, -np.inf, -np.inf], [np.log(0.5), np.log(0.25), -np.inf]], np.float32)
    counts_NK = support.counts_of_draws(logprobs_NK, support.uniforms(2, settings(), "r-0"))
    assert counts_NK[0].tolist() == [32, 0, 0]
    assert counts_NK[1, 2] == 0
    assert abs(counts_NK[1, 0] - 64 / 3) < 1


def test_the_nucleus_holds_its_mass_and_no_more_than_it_needs() -> None:
    _, logprobs_NK = rows(50, 60)
    kept_NK = support.nucleus(logprobs_NK, 0.9, 4)
    mass_N = np.exp(kept_NK.astype(np.float64)).sum(axis=1)
    lengths_N = (kept_NK > -np.inf).sum(axis=1)
    whole_N = np.exp(logprobs_NK.astype(np.float64)).sum(axis=1)
    assert ((mass_N >= 0.9) | (whole_N < 0.9)).all()
    least_N = np.exp(kept_NK[np.arange(50), lengths_N - 1].astype(np.float64))
    assert ((mass_N - least_N < 0.9) | (lengths_N == 4)).all()
    assert lengths_N.min() == 4
    assert len(set(lengths_N)) > 3


def test_a_small_tail_and_near_ties_are_no_misalignment() -> None:
    """A token drawn from a tail of 2.8e-4, which is stored as 2e-4; and 64 entries that all round the same way."""
    for masses, token in (([0.5, 0.3, 0.19, 0.00972], 9), ([0.7 / 64] * 64, 3)):
        ids_NK, k = np.arange(len(masses), dtype=np.int32)[None] + 100, len(masses)
        logprobs_NK = np.log(np.array([masses])).astype(np.float32)
        tail = 1 - sum(masses)
        inside = token == 3
        row = {
            "response_id": "r-0",
            "token_ids": [103 if inside else token],
            "token_logprobs": [float(np.log(masses[3] if inside else tail))],
            "logprobs": support.pack(ids_NK, logprobs_NK, VOCAB, settings(support="top", k=k), "r-0"),
        }
        alignment.check(row, VOCAB)


def test_drawn_entries_keep_their_own_log_probs_and_all_else_is_the_tail() -> None:
    ids_NK, logprobs_NK = rows(40, 60)
    packed = support.pack(ids_NK, logprobs_NK, VOCAB, settings(support="drawn", num_draws=8), "r-0")
    counts_NK = support.counts_of_draws(logprobs_NK, support.uniforms(40, settings(num_draws=8), "r-0"))
    after_ids_NK, after_NK, log_tail_N = codec.decode(packed)
    for ids, values, counts, after_ids, after, tail in zip(
        ids_NK, logprobs_NK, counts_NK, after_ids_NK, after_NK, np.exp(log_tail_N), strict=True
    ):
        drawn = dict(zip(ids[counts > 0].tolist(), values[counts > 0].tolist(), strict=True))
        kept = {int(i): float(p) for i, p in zip(after_ids, after, strict=True) if p > -np.inf}
        assert kept.keys() == drawn.keys()
        assert tail == pytest.approx(1 - np.exp(list(drawn.values())).sum(), abs=2e-4)
        assert all(abs(kept[i] - drawn[i]) < 0.6 for i in kept)


@pytest.mark.parametrize(
    "chosen",
    [{"support": "top"}, {"support": "nucleus"}, {"support": "drawn"}, {}, {"num_draws": 7}],
)
def test_every_support_keeps_the_contract_and_a_shift_is_seen(chosen: dict[str, Any]) -> None:
    """Tokens drawn from the rows themselves, the whole vocabulary included, pass; moved by one token they don't."""
    rng = np.random.default_rng(1)
    for number in range(20):
        all_ids_NV, all_logprobs_NV = rows(30, VOCAB, seed=number)
        drawn = np.array([rng.choice(VOCAB, p=np.exp(p) / np.exp(p).sum()) for p in all_logprobs_NV.astype(np.float64)])
        at = (np.arange(30), drawn)
        row = {
            "response_id": "r-0",
            "token_ids": all_ids_NV[at].tolist(),
            "token_logprobs": all_logprobs_NV[at].tolist(),
            "logprobs": support.pack(all_ids_NV[:, :100], all_logprobs_NV[:, :100], VOCAB, settings(**chosen), "r-0"),
        }
        assert alignment.check(row, VOCAB) < 0.1
        late = np.roll(all_ids_NV[:, :100], 1, axis=0), np.roll(all_logprobs_NV[:, :100], 1, axis=0)
        with pytest.raises(UserError, match="not aligned"):
            alignment.check({**row, "logprobs": support.pack(*late, VOCAB, settings(**chosen), "r-0")}, VOCAB)


def test_what_is_stored_and_its_tail_are_all_the_mass() -> None:
    ids_NK, logprobs_NK = rows(40, 30)
    for name in ("top", "nucleus", "drawn", "sampled"):
        packed = support.pack(ids_NK, logprobs_NK, VOCAB, settings(support=name, nucleus_mass=0.8), "r-0")
        _, stored_NK, log_tail_N = codec.decode(packed)
        np.testing.assert_allclose(np.exp(stored_NK).sum(axis=1) + np.exp(log_tail_N), 1, atol=1e-5)
        if name in ("top", "sampled"):
            outside_N = 1 - np.exp(logprobs_NK.astype(np.float64)).sum(axis=1)
            np.testing.assert_allclose(np.exp(log_tail_N), outside_N, atol=1.01e-4)
