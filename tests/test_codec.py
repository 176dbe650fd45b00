"""Packed log-probs: what goes in comes out, up to what the docstring says is lost; and damage is noticed."""

import copy
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import codec

quick = settings(max_examples=80, deadline=None, database=None)
Rows = tuple[np.ndarray, np.ndarray, np.ndarray]


def from_logits(logits_NV: np.ndarray, K: int, first_id: int) -> Rows:
    """The K best of each row, best first, and the log of what is left; float32 as an engine gives them."""
    shifted_NV = logits_NV - logits_NV.max(axis=1, keepdims=True)
    logprobs_NV = shifted_NV - np.log(np.exp(shifted_NV).sum(axis=1, keepdims=True))
    order_NV = np.argsort(-logprobs_NV, axis=1)
    sorted_NV = np.take_along_axis(logprobs_NV, order_NV, 1)
    with np.errstate(divide="ignore"):
        tail_N = np.log(np.exp(sorted_NV[:, K:]).sum(axis=1))
    return (
        (first_id + order_NV[:, :K]).astype(np.int32),
        sorted_NV[:, :K].astype(np.float32),
        tail_N.astype(np.float32),
    )


@st.composite
def responses(draw: st.DrawFn, ragged: bool = False) -> Rows:
    """Any N and K, ids in any of the three bytes, rows from flat to a single certain token."""
    N, K, outside = draw(st.integers(0, 12)), draw(st.integers(1, 80)), draw(st.integers(1, 200))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    logits_NV = rng.normal(size=(N, K + outside)) * draw(st.sampled_from([0.0, 1e-3, 1.0, 5.0, 50.0]))
    first_id = draw(st.sampled_from([0, 60_000, (1 << 16) - K - outside, 200_000, (1 << 24) - K - outside]))
    if not N:
        return np.zeros((0, K), np.int32), np.zeros((0, K), np.float32), np.zeros(0, np.float32)
    ids_NK, logprobs_NK, log_tail_N = from_logits(logits_NV, K, first_id)
    if ragged:
        is_kept_NK = np.arange(K) < rng.integers(1, K + 1, (N, 1))
        logprobs_NK = np.where(is_kept_NK, logprobs_NK, -np.inf).astype(np.float32)
        log_tail_N = codec.log_tail(logprobs_NK, 1 << 24)
    return ids_NK, logprobs_NK, log_tail_N


@st.composite
def draws(draw: st.DrawFn) -> Rows:
    """Counts that sum to the same in every row, of distinct ids, with a tail."""
    N, K, num_draws = draw(st.integers(0, 12)), draw(st.integers(1, 60)), draw(st.integers(1, codec.MAX_DRAWS))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shares = rng.dirichlet(np.full(K, draw(st.sampled_from([0.01, 0.3, 5.0]))), size=N)
    counts_NK = np.array([rng.multinomial(num_draws, p) for p in shares]).reshape(N, K)
    ids_NK = np.array([rng.choice(150_000, K, replace=False) for _ in range(N)], np.int32).reshape(N, K)
    return ids_NK, counts_NK, np.log(rng.random(N)).astype(np.float32)


def entries(ids_NK: np.ndarray, logprobs_NK: np.ndarray) -> list[dict[int, float]]:
    return [
        {int(i): float(v) for i, v in zip(ids, values, strict=True) if v > -np.inf}
        for ids, values in zip(ids_NK, logprobs_NK, strict=True)
    ]


def check_round_trip(rows: Rows) -> None:
    """Ids as they were; log-probs within half a level once rows sum as they did; the tail to 1e-4."""
    ids_NK, logprobs_NK, log_tail_N = codec.decode(codec.encode(*rows))
    assert (ids_NK.dtype, logprobs_NK.dtype, log_tail_N.dtype) == (np.int32, np.float32, np.float32)
    mass_N, tail_N = np.exp(logprobs_NK.astype(np.float64)).sum(axis=1), np.exp(log_tail_N.astype(np.float64))
    np.testing.assert_allclose(mass_N + tail_N, 1, atol=2e-6)
    np.testing.assert_allclose(tail_N, np.exp(rows[2].astype(np.float64)), atol=2.01e-4)
    is_likely_N = tail_N < 0.999
    np.testing.assert_allclose(tail_N[is_likely_N], np.exp(rows[2].astype(np.float64))[is_likely_N], atol=1.01e-4)
    for before, after, total in zip(entries(*rows[:2]), entries(ids_NK, logprobs_NK), tail_N, strict=True):
        assert before.keys() == after.keys()
        was, now = np.array([before[i] for i in before]), np.array([after[i] for i in before])
        was_summing = was - np.log(np.exp(was).sum()) + np.log1p(-total)
        shift = np.median(now - was_summing) if len(was) > 2 else 0.0
        allowed = 2 * codec.level_error_nats(was) + 1e-4 + abs(shift)
        assert (np.abs(now - was_summing) <= allowed)[was > -100].all()


@quick
@given(rows=responses())
def test_round_trip_keeps_ids_and_distributions(rows: Rows) -> None:
    check_round_trip(rows)


@quick
@given(rows=responses(ragged=True))
def test_rows_may_differ_in_length(rows: Rows) -> None:
    check_round_trip(rows)


@quick
@given(rows=responses(ragged=True))
def test_a_shorter_row_is_filled_with_its_first_id_without_mass(rows: Rows) -> None:
    ids_NK, logprobs_NK, _ = codec.decode(codec.encode(*rows))
    lengths_N = (rows[1] > -np.inf).sum(axis=1)
    assert ids_NK.shape[1] == lengths_N.max(initial=0)
    for ids, values, length in zip(ids_NK, logprobs_NK, lengths_N, strict=True):
        assert (values[:length] > -np.inf).all()
        assert (values[length:] == -np.inf).all()
        assert (ids[length:] == ids[0]).all()


@quick
@given(rows=responses())
def test_best_first_stays_best_first(rows: Rows) -> None:
    _, logprobs_NK, _ = codec.decode(codec.encode(*rows))
    assert np.all(np.diff(logprobs_NK, axis=1) <= 0)


@quick
@given(rows=draws())
def test_counts_come_back_exactly(rows: Rows) -> None:
    ids_NK, counts_NK, log_tail_N = rows
    packed = codec.encode_draws(ids_NK, counts_NK, log_tail_N, codec.SYSTEMATIC)
    decoded_ids_NK, logprobs_NK, decoded_tail_N = codec.decode(packed)
    tail_N = np.exp(decoded_tail_N.astype(np.float64))
    np.testing.assert_allclose(tail_N, np.exp(log_tail_N), atol=2.01e-4)
    for ids, counts, after, tail in zip(ids_NK, counts_NK, entries(decoded_ids_NK, logprobs_NK), tail_N, strict=True):
        shares = {i: np.exp(value) / (1 - tail) * packed["num_draws"] for i, value in after.items()}
        assert shares == pytest.approx({int(i): int(n) for i, n in zip(ids, counts, strict=True) if n}, rel=1e-4)


def test_what_the_codec_loses_on_distributions_like_a_models_is_below_a_thousandth_of_a_nat() -> None:
    """Forward KL between the buckets; laws p ∝ rank^−s of every steepness, jittered, as a model's rows have them."""
    rng, V, K = np.random.default_rng(0), 5000, 50
    slopes_N1 = rng.uniform(0.8, 4.0, (400, 1))
    logits_NV = -slopes_N1 * np.log(np.arange(1, V + 1)) + rng.normal(0, 0.5, (400, V))
    rows = from_logits(logits_NV, K, 0)
    after = codec.decode(codec.encode(*rows))
    kl_nats = 0.0
    for before, now in zip(entries(*rows[:2]), entries(*after[:2]), strict=True):
        kl_nats += sum(np.exp(value) * (value - now[i]) for i, value in before.items())
    tails, after_tails = np.exp(rows[2].astype(np.float64)), np.exp(after[2].astype(np.float64))
    is_tail = after_tails > 0
    kl_nats += (tails * np.log(tails / np.where(is_tail, after_tails, 1)))[is_tail].sum()
    assert 0 < kl_nats / len(rows[0]) < 1e-3


def read_by_the_docstring(packed: dict[str, Any]) -> list[dict[int, float]]:
    """Probabilities by id of each row: a second reader, entry by entry, made from the docstring alone."""
    nats = [0.0]
    for _ in range(255):
        nats.append(nats[-1] + min(1.0, np.exp(nats[-1] / 2) / 48))
    n = packed["num_draws"]
    N, K = packed["num_tokens"], 0 if n else packed["width"]
    symbols, place, rows = list(packed["codes"]), 0, []
    for row in range(N):
        if n:
            counts: list[int] = []
            while True:
                symbol = symbols.pop(0)
                counts += [symbol // 2] if symbol > 1 else []
                if symbol % 2:
                    break
            rows.append(counts + [1] * (n - sum(counts)))
        else:
            length = K or int.from_bytes(packed["lengths"][2 * row : 2 * row + 2], "little")
            at = [(row + e * N) if K else place + e for e in range(length)]
            rows.append(np.cumsum([symbols[i] for i in at]).tolist())
            place += length
    read, place = [], 0
    for row, values in enumerate(rows):
        ids: list[int] = []
        for e, value in enumerate(values):
            i = (row + e * N) if K else place
            step = packed["ids_0"][i] + 256 * packed["ids_1"][i] + 65536 * (packed["ids_2"] or bytes(i + 1))[i]
            ids.append(step + (ids[-1] if e and values[e - 1] == value else 0))
            place += 1
        tail = 2e-4 * (packed["tail_0"][row] + 256 * packed["tail_1"][row])
        weights = [value / n if n else np.exp(-nats[value]) for value in values]
        read.append({i: (1 - tail) * w / sum(weights) for i, w in zip(ids, weights, strict=True)})
    return read


@quick
@given(rows=responses() | responses(ragged=True), counts=draws())
def test_another_reader_made_from_the_docstring_reads_the_same(rows: Rows, counts: Rows) -> None:
    for packed in (codec.encode(*rows), codec.encode_draws(*counts, codec.INDEPENDENT)):
        ids_NK, logprobs_NK, _ = codec.decode(packed)
        for mine, theirs in zip(entries(ids_NK, logprobs_NK), read_by_the_docstring(packed), strict=True):
            assert {i: np.exp(value) for i, value in mine.items()} == pytest.approx(theirs, rel=1e-4, abs=1e-30)


def test_the_columns_of_a_small_response_are_as_documented() -> None:
    ids = np.array([[258, 7, 9], [70_000, 1, 65_535]], np.int32)
    logprobs = -codec.NATS[[[0, 3, 3], [2, 4, 9]]].astype(np.float32)
    packed = codec.encode(ids, logprobs, np.log([0.0202, 0.6]).astype(np.float32))
    assert (packed["version"], packed["num_tokens"], packed["width"], packed["num_draws"]) == (2, 2, 3, 0)
    assert packed["codes"] == bytes([0, 2, 3, 2, 0, 5])
    assert packed["ids_0"] == bytes([2, 70_000 & 255, 7, 1, 2, 255])
    assert packed["ids_1"] == bytes([1, 70_000 >> 8 & 255, 0, 0, 0, 255])
    assert packed["ids_2"] == bytes([0, 1, 0, 0, 0, 0])
    assert (packed["tail_0"], packed["tail_1"]) == (bytes([101, 3000 & 255]), bytes([0, 3000 >> 8]))
    counts = np.array([[1, 2, 0, 1], [4, 0, 0, 0], [1] * 4])
    drawn = codec.encode_draws(np.array([[5, 3, 9, 4]] * 3), counts, logprobs[0], codec.SYSTEMATIC)
    assert drawn["codes"] == bytes([2 * 2 + 1, 2 * 4 + 1, 1])
    assert drawn["ids_0"] == bytes([3, 4, 1, 5, 3, 1, 1, 4])
    assert (drawn["kind"], drawn["width"], drawn["num_draws"], drawn["lengths"]) == (1, 4, 4, b"")


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


def test_a_row_with_hardly_any_mass_keeps_its_proportions() -> None:
    logprobs_NK = np.log([[4e-6, 1e-6]]).astype(np.float32)
    _, after_NK, _ = codec.decode(codec.encode(np.array([[5, 6]], np.int32), logprobs_NK, np.zeros(1, np.float32)))
    assert np.isfinite(after_NK).all()
    assert after_NK[0, 0] - after_NK[0, 1] == pytest.approx(np.log(4), abs=1.0)


@pytest.mark.parametrize("shapes", [((2, 3), (2, 4), 2), ((2, 3), (3, 3), 2), ((2, 3), (2, 3), 3)])
def test_shapes_that_disagree_are_refused(shapes: tuple[tuple[int, int], tuple[int, int], int]) -> None:
    ids, logprobs, tail = shapes
    with pytest.raises(ValueError, match="do not agree"):
        codec.encode(np.zeros(ids, np.int32), np.zeros(logprobs, np.float32), np.zeros(tail, np.float32))


@pytest.mark.parametrize(
    ("ids", "logprobs", "said"),
    [
        ([[1, 2]], [[-np.inf, -np.inf]], "no entry"),
        ([[1, 1 << 24]], [[-1.0, -2.0]], "token ids"),
        ([[1, -1]], [[-1.0, -2.0]], "token ids"),
        ([[1, 2]], [[np.nan, -2.0]], "is not a number"),
    ],
)
def test_rows_that_can_not_be_kept_are_refused(ids: Any, logprobs: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        codec.encode(np.array(ids, np.int32), np.array(logprobs, np.float32), np.zeros(1, np.float32))


@pytest.mark.parametrize("counts", [[[2, 1], [2, 2]], [[0, 0]], [[128, 0]]])
def test_draws_that_do_not_add_up_are_refused(counts: list[list[int]]) -> None:
    with pytest.raises(ValueError, match=r"draws|no entry"):
        codec.encode_draws(np.array([[0, 1]] * len(counts), np.int32), np.array(counts), np.zeros(len(counts), "f4"), 1)


def packed_samples() -> list[dict[str, Any]]:
    rng = np.random.default_rng(1)
    rows = from_logits(rng.normal(size=(5, 100)) * 3, 12, 100_000)
    ragged = np.where(np.arange(12) < rng.integers(1, 13, (5, 1)), rows[1], -np.inf).astype(np.float32)
    counts_NK = rng.multinomial(30, np.full(12, 1 / 12), size=5)
    return [
        codec.encode(*rows),
        codec.encode(rows[0], ragged, rows[2]),
        codec.encode_draws(rows[0], counts_NK, rows[2], 1),
    ]


@pytest.mark.parametrize(
    ("kind", "stream"),
    [(kind, stream) for kind in range(3) for stream in codec.STREAMS if packed_samples()[kind][stream]],
)
@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: data + b"\0"])
def test_a_stream_that_was_cut_or_has_bytes_to_spare_is_refused(kind: int, stream: str, change: Any) -> None:
    packed = copy.copy(packed_samples()[kind])
    packed[stream] = change(packed[stream])
    with pytest.raises(ValueError, match="damaged"):
        codec.decode(packed)


@pytest.mark.parametrize(
    ("kind", "change", "said"),
    [
        (0, {"version": 1}, "version 2"),
        (0, {"kind": 5}, "there is no kind 5"),
        (0, {"tail_1": b"\xff" * 5}, "a tail holds all the mass"),
        (0, {"num_tokens": 6}, "damaged"),
        (0, {"codes": b"\xff" * 60}, "level is out of range"),
        (0, {"ids_2": b"\xff" * 60, "codes": bytes(60)}, "id is out of range"),
        (1, {"lengths": bytes(10)}, "damaged"),
        (2, {"num_draws": 3}, "more than all draws"),
        (2, {"codes": b"\x01" * 4}, "counts of 4 rows, not 5"),
    ],
)
def test_values_that_no_encoder_writes_are_refused(kind: int, change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        codec.decode({**packed_samples()[kind], **change})


def test_the_first_versions_bytes_are_refused_with_what_to_do() -> None:
    with pytest.raises(ValueError, match="version 2; generate them again"):
        codec.decode(b"RTL1\0\0\0\0")  # type: ignore[arg-type]
