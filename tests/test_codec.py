"""Packed log-probs: what goes in comes out, up to what float16 keeps; and damage is noticed."""

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import codec

quick = settings(max_examples=80, deadline=None, database=None)
MAX_KL_NATS = 1e-4
HEADER_BYTES = 16
Rows = tuple[np.ndarray, np.ndarray, np.ndarray]


def from_logits(logits_NV: np.ndarray, K: int, first_id: int, rng: np.random.Generator) -> Rows:
    """The K best of each row, best first, and the log of what is left; float32 as an engine gives them."""
    N = len(logits_NV)
    shifted_NV = logits_NV - logits_NV.max(axis=1, keepdims=True)
    with np.errstate(divide="ignore"):
        logprobs_NV = shifted_NV - np.log(np.exp(shifted_NV).sum(axis=1, keepdims=True))
        order_NV = np.argsort(-logprobs_NV, axis=1)
        sorted_NV = np.take_along_axis(logprobs_NV, order_NV, 1)
        tail_N = np.log(np.exp(sorted_NV[:, K:]).sum(axis=1))
    ids_NK = first_id + order_NV[:, :K] + rng.integers(0, 2, (N, 1))
    return ids_NK.astype(np.int32), sorted_NV[:, :K].astype(np.float32), tail_N.astype(np.float32)


@st.composite
def responses(draw: st.DrawFn) -> Rows:
    """Any N and K, ids on both sides of 65535, rows from flat to a single certain token."""
    N, K, outside = draw(st.integers(0, 12)), draw(st.integers(1, 80)), draw(st.integers(1, 200))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    logits_NV = rng.normal(size=(N, K + outside)) * draw(st.sampled_from([0.0, 1e-3, 1.0, 5.0, 50.0, 1e4]))
    first_id = draw(st.sampled_from([0, 60_000, (1 << 16) - K - outside - 1, 1 << 16, 200_000, (1 << 31) - 400]))
    return from_logits(logits_NV, K, first_id, rng) if N else empty(K)


@st.composite
def extreme_responses(draw: st.DrawFn) -> Rows:
    """Rows element by element: no mass at all (−inf) beside log-probs far below what float16 holds, and tiny tails."""
    N, K = draw(st.integers(1, 3)), draw(st.integers(1, 6))
    low = st.sampled_from([-np.inf, -3e38, -7e4, -65504.0, -65000.0, -1e3, -88.0, -17.0])
    element = low | st.floats(-20, 0)
    logits = [[draw(st.floats(-30, 0)), *(draw(element) for _ in range(K))] for _ in range(N)]
    return from_logits(np.array(logits, np.float64), K, 0, np.random.default_rng(0))


def empty(K: int) -> Rows:
    return np.zeros((0, K), np.int32), np.zeros((0, K), np.float32), np.zeros(0, np.float32)


def kl_nats(before: Rows, after: Rows) -> np.ndarray:
    """Forward KL of each row with its tail as one more outcome."""
    log_p = np.concatenate([before[1], before[2][:, None]], axis=1).astype(np.float64)
    log_q = np.concatenate([after[1], after[2][:, None]], axis=1).astype(np.float64)
    mass = np.exp(log_p)
    with np.errstate(invalid="ignore"):
        return np.where(mass > 0, mass * (log_p - log_q), 0).sum(axis=1)


def check_round_trip(rows: Rows) -> None:
    after = codec.decode(codec.encode(*rows))
    assert (after[0].dtype, after[1].dtype, after[2].dtype) == (np.int32, np.float32, np.float32)
    np.testing.assert_array_equal(after[0], rows[0])
    sums = np.exp(after[1].astype(np.float64)).sum(axis=1) + np.exp(after[2].astype(np.float64))
    np.testing.assert_allclose(sums, 1, atol=2e-6)
    assert np.all(kl_nats(rows, after) <= MAX_KL_NATS)


@quick
@given(rows=responses())
def test_round_trip_keeps_ids_and_distributions(rows: Rows) -> None:
    check_round_trip(rows)


@quick
@given(rows=extreme_responses())
def test_round_trip_keeps_distributions_with_extreme_log_probs(rows: Rows) -> None:
    check_round_trip(rows)


@quick
@given(rows=responses())
def test_best_first_stays_best_first(rows: Rows) -> None:
    _, logprobs_NK, _ = codec.decode(codec.encode(*rows))
    assert np.all(np.diff(logprobs_NK, axis=1) <= 0)


@quick
@given(rows=responses())
def test_the_size_is_six_or_four_bytes_an_entry_four_a_token_and_the_header(rows: Rows) -> None:
    ids_NK = rows[0]
    N, K = ids_NK.shape
    width = 4 if ids_NK.size and ids_NK.max() > 65535 else 2
    assert len(codec.encode(*rows)) == HEADER_BYTES + N * K * (width + 2) + 4 * N


@pytest.mark.parametrize(("largest", "width"), [(65535, 2), (65536, 4), ((1 << 31) - 1, 4)])
def test_ids_at_the_edge_of_two_bytes(largest: int, width: int) -> None:
    packed = codec.encode(
        np.array([[largest, 0]], np.int32), np.log([[0.5, 0.25]]).astype("f4"), np.log([0.25]).astype("f4")
    )
    assert struct.unpack_from("<I", packed, 12) == (width,)
    assert codec.decode(packed)[0].tolist() == [[largest, 0]]


def test_the_bytes_are_laid_out_as_documented() -> None:
    """A reader made from the docstring alone reads it: header, id planes, log-prob planes, tails."""
    ids, logprobs, tails = [[258, 7], [65535, 1]], [[-0.5, -1.5], [-0.25, -3.0]], [-1.75, -np.inf]
    packed = codec.encode(np.array(ids, np.int32), np.array(logprobs, np.float32), np.array(tails, np.float32))
    assert struct.unpack("<4sIII", packed[:16]) == (b"RTL1", 2, 2, 2)
    assert packed[16:24] == bytes([2, 7, 255, 1]) + bytes([1, 0, 255, 0])
    halves = [struct.pack("<e", value) for row in logprobs for value in row]
    assert packed[24:32] == bytes(half[0] for half in halves) + bytes(half[1] for half in halves)
    assert struct.unpack("<2f", packed[32:]) == tuple(tails)


def test_an_entry_without_mass_stays_without() -> None:
    rows = np.array([[3, 9]], np.int32), np.array([[0.0, -np.inf]], np.float32), np.array([-np.inf], np.float32)
    _, logprobs_NK, log_tail_N = codec.decode(codec.encode(*rows))
    assert np.exp(logprobs_NK).tolist() == [[1.0, 0.0]]
    assert log_tail_N.tolist() == [-np.inf]


def test_float16_error_is_taken_out_of_the_row_and_its_tail_alike() -> None:
    """A row whose float16 values sum to something else than 1 comes back renormalised, proportions kept."""
    logprobs_NK = np.log([[0.7, 0.2]]).astype(np.float32)
    _, after_NK, tail_N = codec.decode(
        codec.encode(np.array([[0, 1]], np.int32), logprobs_NK, np.log([0.1]).astype("f4"))
    )
    halves = logprobs_NK.astype(np.float16).astype(np.float64)
    total = np.log(np.exp(halves).sum() + 0.1)
    np.testing.assert_allclose(after_NK, halves - total, atol=1e-6)
    np.testing.assert_allclose(tail_N, np.log(0.1) - total, atol=1e-6)


@pytest.mark.parametrize(
    ("probabilities", "tail"),
    [([0.5, 0.25], 0.25), ([0.9, 0.05], 0.05), ([0.999, 0.0], 0.001), ([0.01, 0.01], 0.98)],
)
def test_the_tail_is_what_is_left_of_the_mass(probabilities: list[float], tail: float) -> None:
    with np.errstate(divide="ignore"):
        logprobs_NK = np.log(np.array([probabilities])).astype(np.float32)
    np.testing.assert_allclose(np.exp(codec.log_tail(logprobs_NK, 1000)), [tail], atol=1e-6)


@pytest.mark.parametrize("over", [-5e-8, 0.0, 1e-8, 1e-6, 1e-3])
def test_a_row_with_all_the_mass_up_to_a_rounding_has_no_tail(over: float) -> None:
    logprobs_NK = np.log([[0.75 + over, 0.25]])
    assert codec.log_tail(logprobs_NK, 1000).tolist() == [-np.inf]


def test_rows_that_hold_the_whole_vocabulary_have_no_tail() -> None:
    logprobs_NK = np.log([[0.6, 0.3999]])
    assert codec.log_tail(logprobs_NK, 2).tolist() == [-np.inf]
    assert np.isfinite(codec.log_tail(logprobs_NK, 3)).all()


@pytest.mark.parametrize("shapes", [((2, 3), (2, 4), 2), ((2, 3), (3, 3), 2), ((2, 3), (2, 3), 3)])
def test_shapes_that_disagree_are_refused(shapes: tuple[tuple[int, int], tuple[int, int], int]) -> None:
    ids, logprobs, tail = shapes
    with pytest.raises(ValueError, match="do not agree"):
        codec.encode(np.zeros(ids, np.int32), np.zeros(logprobs, np.float32), np.zeros(tail, np.float32))


@quick
@given(rows=responses(), data=st.data())
def test_a_value_that_was_cut_or_has_bytes_to_spare_is_refused(rows: Rows, data: st.DataObject) -> None:
    packed = codec.encode(*rows)
    damaged = packed[: data.draw(st.integers(0, len(packed) - 1))] if data.draw(st.booleans()) else packed + b"\0"
    with pytest.raises(ValueError, match="packed log-probs"):
        codec.decode(damaged)


@quick
@given(body=st.binary(max_size=64), magic=st.sampled_from([b"", b"RTL1", b"RTL2"]))
def test_other_bytes_are_refused(body: bytes, magic: bytes) -> None:
    damaged = magic + b"\x07" + body
    with pytest.raises(ValueError, match="packed log-probs"):
        codec.decode(damaged)


def test_a_width_that_no_version_has_is_refused() -> None:
    with pytest.raises(ValueError, match="packed log-probs"):
        codec.decode(struct.pack("<4sIII", b"RTL1", 1, 1, 3) + bytes(9))
