"""What of a stored answer becomes the target: vocabulary, tail, positions; and batches of it."""

from typing import Any

import numpy as np
import pytest
import torch

from pipeline import codec
from pipeline.config import Generate, Train
from pipeline.errors import UserError
from pipeline.generate import support
from pipeline.train.batches import collate
from pipeline.train.targets import IGNORED, entropy_nats

VOCAB, TEACHER_VOCAB, K = 40, 64, 8
TOP, DRAWN = Generate(), Generate(support="sampled", num_draws=9)


def row_of(
    num_tokens: int = 12, seed: int = 0, settings: Generate = TOP, vocab_size: int = VOCAB, spread: float = 1.5
) -> tuple[dict[str, Any], np.ndarray]:
    """A stored row, and the whole distributions that it was made from, (N, V)."""
    rng = np.random.default_rng(seed)
    logits_NV = rng.normal(size=(num_tokens, vocab_size)) * spread * rng.uniform(0.2, 3, (num_tokens, 1))
    logprobs_NV = logits_NV - np.logaddexp.reduce(logits_NV, axis=1, keepdims=True)
    ids_NK = np.argsort(-logprobs_NV, axis=1)[:, :K].astype(np.int32)
    best_NK = np.take_along_axis(logprobs_NV, ids_NK, axis=1).astype(np.float32)
    tokens = [int(rng.choice(min(vocab_size, VOCAB))) for _ in range(num_tokens)]
    row: dict[str, Any] = {"response_id": f"r{seed}-0", "masked_spans": None, "token_ids": tokens}
    row["prompt_token_ids"] = [1, 2, 3][: 1 + seed % 3]
    return {**row, "logprobs": support.pack(ids_NK, best_NK, vocab_size, settings, f"r{seed}-0")}, logprobs_NV


def by_id(ids_K: Any, logprobs_K: Any) -> dict[int, float]:
    """Probabilities by id; an id twice is wrong but for fills."""
    entries = [(int(i), float(np.exp(p))) for i, p in zip(ids_K, logprobs_K, strict=True) if p > -np.inf]
    assert len({i for i, _ in entries}) == len(entries)
    return dict(entries)


def soft(batch: dict[str, torch.Tensor]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    ids_NK, logprobs_NK, log_tail_N = (batch[f"teacher_{n}"].numpy() for n in ("ids_NK", "logprobs_NK", "log_tail_N"))
    return ids_NK, logprobs_NK, log_tail_N


def mass(batch: dict[str, torch.Tensor]) -> np.ndarray:
    _, logprobs_NK, log_tail_N = soft(batch)
    return np.exp(logprobs_NK).sum(axis=1) + np.exp(log_tail_N)


def test_bucket_keeps_the_stored_rows_and_floors_an_empty_tail() -> None:
    row, _ = row_of(spread=6)
    ids_NK, logprobs_NK, log_tail_N = codec.decode(row["logprobs"])
    assert set(np.isinf(log_tail_N).tolist()) == {True, False}
    got_ids_NK, got_NK, got_tail_N = soft(collate([row], 0, VOCAB, Train()))
    np.testing.assert_array_equal(got_ids_NK, ids_NK)
    np.testing.assert_array_equal(got_NK, logprobs_NK)
    np.testing.assert_allclose(got_tail_N, np.where(log_tail_N > -np.inf, log_tail_N, np.log(1e-6)), rtol=1e-6)


def test_a_row_of_the_whole_vocabulary_has_no_tail() -> None:
    row, _ = row_of(vocab_size=K)
    row["token_ids"] = [0] * 12
    assert (soft(collate([row], 0, K, Train()))[2] == -np.inf).all()
    assert (soft(collate([row], 0, K + 1, Train()))[2] > -np.inf).all()


def test_the_whole_vocabulary_of_a_narrower_student_has_all_the_mass() -> None:
    row, _ = row_of(vocab_size=K, spread=0.3)
    row["token_ids"] = [0] * 12
    batch = collate([row], 0, K - 2, Train())
    assert (soft(batch)[2] == -np.inf).all()
    np.testing.assert_allclose(mass(batch), 1, atol=1e-5)


def test_label_gives_the_tail_to_the_sampled_token() -> None:
    row, _ = row_of(num_tokens=40)
    ids_NK, logprobs_NK, log_tail_N = codec.decode(row["logprobs"])
    batch = collate([row], 0, VOCAB, Train(tail="label"))
    got_ids_NK, got_NK, got_tail_N = soft(batch)
    assert (got_tail_N == -np.inf).all()
    inside = 0
    for n, token in enumerate(row["token_ids"]):
        wanted = by_id(ids_NK[n], logprobs_NK[n])
        inside += token in wanted
        wanted[token] = wanted.get(token, 0) + float(np.exp(log_tail_N[n]))
        wanted = {i: p for i, p in wanted.items() if p > 0}
        assert by_id(got_ids_NK[n], got_NK[n]) == pytest.approx(wanted, rel=1e-5)
    assert 0 < inside < 40, "both kinds were there"
    np.testing.assert_allclose(mass(batch), 1, atol=1e-5)
    assert got_ids_NK.max() < VOCAB


def test_label_adds_no_column_where_every_sampled_token_has_an_entry() -> None:
    row, _ = row_of()
    row["token_ids"] = codec.decode(row["logprobs"])[0][:, -1].tolist()
    assert soft(collate([row], 0, VOCAB, Train(tail="label")))[0].shape == (12, K)


def test_renormalise_shares_the_tail_out() -> None:
    row, _ = row_of()
    _, logprobs_NK, log_tail_N = codec.decode(row["logprobs"])
    batch = collate([row], 0, VOCAB, Train(tail="renormalise"))
    _, got_NK, got_tail_N = soft(batch)
    assert (got_tail_N == -np.inf).all()
    np.testing.assert_allclose(got_NK, logprobs_NK - np.log1p(-np.exp(log_tail_N))[:, None], atol=1e-5)
    np.testing.assert_allclose(mass(batch), 1, atol=1e-5)


@pytest.mark.parametrize("tail", ["bucket", "label", "renormalise"])
def test_counts_are_learnt_as_shares_whatever_the_tail(tail: str) -> None:
    row, _ = row_of(settings=DRAWN)
    batch = collate([row], 0, VOCAB, Train.model_validate({"tail": tail}))
    ids_NK, logprobs_NK, log_tail_N = codec.decode(row["logprobs"])
    np.testing.assert_array_equal(soft(batch)[0], ids_NK)
    np.testing.assert_allclose(
        np.exp(soft(batch)[1]), np.exp(logprobs_NK) / (1 - np.exp(log_tail_N))[:, None], atol=1e-6
    )
    assert (soft(batch)[2] == -np.inf).all()


@pytest.mark.parametrize("kind", ["top", "nucleus", "drawn"])
def test_ids_beyond_the_students_vocabulary_go_into_the_tail(kind: str) -> None:
    settings = Generate.model_validate({"support": kind, "num_draws": 12, "nucleus_mass": 0.9, "nucleus_min": 4})
    row, _ = row_of(settings=settings, vocab_size=TEACHER_VOCAB, spread=0.4)
    ids_NK, logprobs_NK, log_tail_N = codec.decode(row["logprobs"])
    assert (ids_NK[:, 0] >= VOCAB).any(), "the first id, which fills, is among them"
    batch = collate([row], 0, VOCAB, Train())
    got_ids_NK, got_NK, got_tail_N = soft(batch)
    assert got_ids_NK.max() < VOCAB
    for n in range(12):
        whole = by_id(ids_NK[n], logprobs_NK[n])
        assert by_id(got_ids_NK[n], got_NK[n]) == pytest.approx({i: p for i, p in whole.items() if i < VOCAB})
        outside = sum(p for i, p in whole.items() if i >= VOCAB) + np.exp(log_tail_N[n])
        assert np.exp(got_tail_N[n]) == pytest.approx(outside, rel=1e-4)
        is_fill_K = got_NK[n] == -np.inf
        first = next(i for i, p in zip(ids_NK[n], logprobs_NK[n], strict=True) if i < VOCAB and p > -np.inf)
        assert set(got_ids_NK[n][is_fill_K].tolist()) <= {int(first)}


def test_what_cannot_be_merged_is_an_error() -> None:
    row, _ = row_of(vocab_size=TEACHER_VOCAB, spread=0.4)
    ids_NK, logprobs_NK, log_tail_N = codec.decode(row["logprobs"])
    row["logprobs"] = codec.encode(ids_NK % 8 + VOCAB, logprobs_NK, log_tail_N)
    with pytest.raises(UserError, match="r0-0: a row holds no id of the student's vocabulary of 40"):
        collate([row], 0, VOCAB, Train())
    drawn, _ = row_of(settings=DRAWN, vocab_size=TEACHER_VOCAB, spread=0.4)
    with pytest.raises(UserError, match="r0-0: draws of a token id outside"):
        collate([drawn], 0, VOCAB, Train())
    for name in ("prompt_token_ids", "token_ids"):
        bad, _ = row_of()
        bad[name] = [*bad[name][:-1], VOCAB]
        with pytest.raises(UserError, match="r0-0: a token id is outside the student's vocabulary of 40"):
            collate([bad], 0, VOCAB, Train())


def test_damaged_rows_are_named() -> None:
    row, _ = row_of()
    row["logprobs"]["codes"] = row["logprobs"]["codes"][:-1]
    with pytest.raises(UserError, match="r0-0: packed log-probs are damaged"):
        collate([row], 0, VOCAB, Train())


def test_an_answer_to_nothing_is_refused() -> None:
    row, _ = row_of()
    with pytest.raises(UserError, match="r0-0: an empty prompt"):
        collate([{**row, "prompt_token_ids": []}], 0, VOCAB, Train())


def test_entropy_is_that_of_the_stored_buckets() -> None:
    row, logprobs_NV = row_of()
    ids_NK, _, _ = codec.decode(row["logprobs"])
    probs_NV = np.exp(logprobs_NV)
    inside_NK = np.take_along_axis(probs_NV, ids_NK.astype(np.int64), axis=1)
    buckets_NC = np.concatenate([inside_NK, 1 - inside_NK.sum(axis=1, keepdims=True)], axis=1)
    wanted_N = -(buckets_NC * np.log(buckets_NC)).sum(axis=1)
    np.testing.assert_allclose(entropy_nats(*codec.decode(row["logprobs"])[1:]), wanted_N, atol=2e-2)
    assert entropy_nats(np.array([[0, -np.inf]], np.float32), np.array([-np.inf], np.float32)) == 0


@pytest.mark.parametrize("frac", [0.1, 0.25, 0.3, 0.99])
@pytest.mark.parametrize("kind", [TOP, DRAWN])
def test_the_positions_of_highest_entropy_keep_label_and_row(frac: float, kind: Generate) -> None:
    rows = [row_of(10 + seed, seed, kind)[0] for seed in range(4)]
    settings = Train(positions_frac=frac)
    batch, whole = collate(rows, 0, VOCAB, settings), collate(rows, 0, VOCAB, Train())
    assert torch.equal(batch["input_ids"], whole["input_ids"])
    first = 0
    for b, row in enumerate(rows):
        n, start = len(row["token_ids"]), len(row["prompt_token_ids"])
        entropies_N = entropy_nats(*codec.decode(row["logprobs"])[1:])
        best = sorted(sorted(range(n), key=lambda t: (-entropies_N[t], t))[: int(np.ceil(frac * n - 1e-9))])
        labels = batch["labels"][b].tolist()
        assert {t: label for t, label in enumerate(labels) if label != IGNORED} == {
            start + t: row["token_ids"][t] for t in best
        }
        for name in ("teacher_logprobs_NK", "teacher_log_tail_N"):
            alone = collate([row], 0, VOCAB, Train())[name][best]
            got = batch[name][first : first + len(best)]
            assert torch.equal(got[:, : alone.shape[1]] if alone.dim() > 1 else got, alone)
        first += len(best)
    assert first == len(batch["teacher_ids_NK"])


def test_of_equal_entropies_the_earlier_stays_and_whole_shares_are_not_rounded_up() -> None:
    row, _ = row_of(num_tokens=1)
    ids_NK, logprobs_NK, log_tail_N = codec.decode(row["logprobs"])
    packed = codec.encode(ids_NK.repeat(100, axis=0), logprobs_NK.repeat(100, axis=0), log_tail_N.repeat(100))
    same = {**row, "token_ids": [5] * 100, "logprobs": packed}
    labels = collate([same], 0, VOCAB, Train(positions_frac=0.07))["labels"][0]
    assert (labels != IGNORED).nonzero()[:, 0].tolist() == list(range(1, 8))


def test_positions_are_chosen_among_what_is_learnt() -> None:
    row, _ = row_of(num_tokens=20)
    row |= {"reasoning_tokens": 12, "reasoning_start": 1, "reasoning_end": 11}
    labels = collate([row], 0, VOCAB, Train(positions_frac=0.5, reasoning="mask"))["labels"][0]
    assert (labels != IGNORED).sum() == 4
    assert (labels[: 1 + 12] == IGNORED).all()


def spans(*places: tuple[int, int]) -> list[dict[str, Any]]:
    return [{"start": start, "end": end, "kind": "email"} for start, end in places]


def test_masked_tokens_are_context_without_label_and_without_row() -> None:
    whole = row_of(num_tokens=12)[0]
    masked = whole | {"masked_spans": spans((0, 2), (5, 9))}
    left = [2, 3, 4, 9, 10, 11]
    batch, all_of_it = collate([masked], 0, VOCAB, Train()), collate([whole], 0, VOCAB, Train())
    assert torch.equal(batch["input_ids"], all_of_it["input_ids"])
    labels = batch["labels"][0].tolist()
    assert {place - 1: label for place, label in enumerate(labels) if label != IGNORED} == {
        place: whole["token_ids"][place] for place in left
    }
    for name in ("teacher_ids_NK", "teacher_logprobs_NK", "teacher_log_tail_N"):
        assert torch.equal(batch[name], all_of_it[name][left])


def test_masked_tokens_have_no_part_in_the_choice_of_positions() -> None:
    row, _ = row_of(num_tokens=20)
    entropies_N = entropy_nats(*codec.decode(row["logprobs"])[1:])
    best = int(entropies_N.argmax())
    row["masked_spans"] = spans((best, best + 1))
    labels = collate([row], 0, VOCAB, Train(positions_frac=0.5))["labels"][0]
    assert (labels != IGNORED).sum() == 10, "half of 19, rounded up"
    assert labels[1 + best] == IGNORED


@pytest.mark.parametrize("how", ["mask", "drop"])
def test_masked_tokens_of_reasoning_and_of_the_answer_are_told_apart(how: str) -> None:
    row, _ = row_of(num_tokens=20)
    row |= {"reasoning_tokens": 12, "reasoning_start": 1, "reasoning_end": 11, "masked_spans": spans((3, 5), (14, 16))}
    settings = Train.model_validate({"reasoning": how})
    batch = collate([row], 0, VOCAB, settings)
    kept = [label for label in batch["labels"][0].tolist() if label != IGNORED]
    assert kept == [row["token_ids"][place] for place in (12, 13, 16, 17, 18, 19)]
    assert len(batch["teacher_ids_NK"]) == 6


def test_a_batch_of_nothing_but_masked_tokens_is_refused() -> None:
    row, _ = row_of()
    with pytest.raises(UserError, match="r0-0: filter masked every token"):
        collate([row | {"masked_spans": spans((0, 12))}], 0, VOCAB, Train())
