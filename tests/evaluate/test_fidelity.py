import copy
import gc
import tracemalloc
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import tiny_model

from pipeline.config import Evaluate
from pipeline.evaluate import fidelity
from pipeline.evaluate.fidelity import ALL, BUCKETS, MEASURES, Sums, calibration, fidelity_figures
from pipeline.models.forward import forced
from pipeline.models.forward.forced import ForcedResponse

VOCAB_SIZE = 37
UPWARDS = ("top1_agreement_frac", "top5_overlap_frac", "acceptance_frac", "accuracy_frac")  # more is closer
DOWNWARDS = ("forward_kl_nats", "reverse_kl_nats", "js_divergence_nats", "nll_nats", "brier_score")


def tiny(seed: int, vocab_size: int = VOCAB_SIZE) -> Any:
    return tiny_model.make(seed, vocab_size)


TEXTS = [
    ForcedResponse("a", [1, 2, 3], [4, 5, 6, 7], {"category": "maths", "turn": "1"}),
    ForcedResponse("b", [9], [8, 30], {"category": "code", "turn": "1"}),
    ForcedResponse("a", [1, 2, 3], [11, 12, 13, 14, 15, 16, 17, 18, 19, 20], {"category": "maths", "turn": "2"}),
]


def many(num: int, seed: int = 0) -> Iterator[ForcedResponse]:
    """Texts of three lengths, each a prompt of its own."""
    generator = np.random.default_rng(seed)
    for number in range(num):
        ids = generator.integers(0, VOCAB_SIZE, 4 + 3 * (number % 3) + 12).tolist()
        yield ForcedResponse(f"prompt{number}", ids[:4], ids[4:])


def teachers_own(teacher: Any, num: int) -> list[ForcedResponse]:
    """What the teacher writes at temperature 1, as a run's answers are."""
    torch.manual_seed(1)
    prompts = torch.randint(VOCAB_SIZE, (num, 3))
    written = teacher.generate(prompts, do_sample=True, min_new_tokens=12, max_new_tokens=12, pad_token_id=0, top_k=0)
    return [ForcedResponse(f"prompt{n}", row[:3], row[3:]) for n, row in enumerate(written.tolist())]


def distributions(model: Any, text: ForcedResponse) -> np.ndarray:
    """The model's distributions at the answer's tokens, (N, V), from one unpadded forward pass, in float64."""
    ids = torch.tensor([text.prompt_token_ids + text.token_ids])
    with torch.no_grad():
        return model(ids).logits[0].double().softmax(dim=1)[len(text.prompt_token_ids) - 1 : -1].numpy()


def plain(p: np.ndarray, q: np.ndarray, label: int) -> list[float]:
    """One token's measures, each written out as its definition has it."""
    m = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
    by_p, by_q = (sorted(range(len(x)), key=lambda token, x=x: -x[token]) for x in (p, q))
    ids = range(len(p))
    return [
        sum(p[v] * np.log(p[v] / q[v]) for v in ids),
        sum(q[v] * np.log(q[v] / p[v]) for v in ids),
        sum(p[v] * np.log(p[v] / m[v]) / 2 + q[v] * np.log(q[v] / m[v]) / 2 for v in ids),
        float(by_p[0] == by_q[0]),
        len(set(by_p[:5]) & set(by_q[:5])) / 5,
        sum(min(p[v], q[v]) for v in ids),
        -np.log(q[label]),
        # the expectation over the teacher's next token, token by token
        sum(p[y] * sum((q[v] - (v == y)) ** 2 for v in ids) for y in ids),
        max(q),
        p[by_q[0]],
    ]


def reference(teacher: Any, student: Any, text: ForcedResponse) -> np.ndarray:
    """(N, M): the measures of every token of a text."""
    p_NV, q_NV = distributions(teacher, text), distributions(student, text)
    return np.array([plain(p, q, label) for p, q, label in zip(p_NV, q_NV, text.token_ids, strict=True)])


def by_prompt(sums: Sums, bucket: tuple[str, str] = ALL) -> np.ndarray:
    return np.stack([sums.of(name, bucket) for name in MEASURES], axis=1)


@pytest.mark.parametrize("batch_tokens", [1, 32, 1000], ids=["unpadded", "two batches", "padded"])
@pytest.mark.parametrize(("chunk", "block"), [(3, 2), (512, 512)], ids=["chunked", "whole"])
def test_sums_by_prompt_equal_plain_float64(
    batch_tokens: int, chunk: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fidelity, "CHUNK_TOKENS", chunk)
    monkeypatch.setattr(fidelity, "CPU_BLOCK_ENTRIES", block * VOCAB_SIZE)
    teacher, student = tiny(0), tiny(1)
    sums = fidelity.measure(teacher, {"student": student}, TEXTS, batch_tokens)["student"]
    first, second, third = (reference(teacher, student, text).sum(axis=0) for text in TEXTS)
    wanted = {"a": first + third, "b": second}
    np.testing.assert_allclose(by_prompt(sums), [wanted[prompt] for prompt in sums.prompts()], rtol=1e-4)
    assert dict(zip(sums.prompts(), sums.num_tokens(), strict=True)) == {"a": 14, "b": 2}
    assert sums.num_texts == 3


def test_every_bucket_has_the_tokens_that_belong_in_it() -> None:
    teacher, student = tiny(0), tiny(1)
    sums = fidelity.measure(teacher, {"student": student}, TEXTS, 100)["student"]
    wanted: dict[tuple[str, str], np.ndarray] = {}
    for text in TEXTS:
        p_NV = distributions(teacher, text)
        for t, row in enumerate(reference(teacher, student, text)):
            entropy = -(p_NV[t] * np.log(p_NV[t])).sum()
            of_token = [
                ("position", "1-8" if t < 8 else "9-32"),
                ("entropy", ["0-0.1", "0.1-0.5", "0.5-1", "1-2", "2+"][int(np.sum(entropy >= [0.1, 0.5, 1, 2]))]),
                ("length", "1-32"),
                *text.groups.items(),
            ]
            for bucket in of_token:
                wanted[bucket] = wanted.get(bucket, 0) + np.append(row, 1)
    assert set(sums.buckets()) == set(wanted)
    assert ("position", "9-32") in wanted
    for bucket, total in wanted.items():
        got = np.append(by_prompt(sums, bucket).sum(axis=0), sums.num_tokens(bucket).sum())
        np.testing.assert_allclose(got, total, rtol=1e-4, err_msg=str(bucket))


def test_a_bucket_has_the_prompts_alone_that_have_tokens_in_it() -> None:
    sums = fidelity.measure(tiny(0), {"s": tiny(1)}, TEXTS, 100)["s"]
    assert len(sums.of("nll_nats")) == 2
    assert list(sums.num_tokens(("position", "9-32"))) == [2]  # two tokens of prompt a
    assert list(sums.num_tokens(("turn", "2"))) == [10]


@given(st.lists(st.integers(1, 700), min_size=1, max_size=4), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_buckets_of_a_dimension_share_the_tokens_out(lengths: list[int], seed: int) -> None:
    generator = np.random.default_rng(seed)
    for length in lengths:
        entropies = generator.gamma(0.5, 1.5, length)
        text = ForcedResponse("a", [0], [0] * length)
        buckets, member_BN = fidelity.membership(text, entropies)
        for dimension in BUCKETS:
            of_dimension = [place for place, bucket in enumerate(buckets) if bucket[0] == dimension]
            assert (member_BN[of_dimension].sum(axis=0) == 1).all()
        for bucket, row in zip(buckets, member_BN, strict=True):
            if bucket[0] == "entropy":
                start, end = (*bucket[1].removesuffix("+").split("-"), np.inf)[:2]
                assert (entropies[row == 1] >= float(start)).all()
                assert (entropies[row == 1] < float(end)).all()


def test_buckets_come_from_the_lowest_to_the_highest() -> None:
    long = ForcedResponse("a", [1], [*range(VOCAB_SIZE)] * 5)
    sums = fidelity.measure(tiny(0), {"s": tiny(1)}, [*TEXTS[::-1], long], 10_000)["s"]
    names = [name for dimension, name in sums.buckets() if dimension == "position"]
    assert names == list(BUCKETS["position"])
    assert [name for dimension, name in sums.buckets() if dimension == "turn"] == ["1", "2"]


def test_the_teacher_against_itself_is_perfect() -> None:
    """Of an arm that is the very teacher, and of a copy, whose states are computed apart."""
    teacher = tiny(0)
    arms = {"teacher": teacher, "copy": copy.deepcopy(teacher)}
    for sums in fidelity.measure(teacher, arms, TEXTS, 100).values():
        tokens = sums.num_tokens()
        for name in ("forward_kl_nats", "reverse_kl_nats", "js_divergence_nats"):
            assert np.abs(sums.of(name)).max() < 1e-6, name
        assert (sums.of("top1_agreement_frac") == tokens).all()
        assert (sums.of("top5_overlap_frac") == tokens).all()
        np.testing.assert_allclose(sums.of("acceptance_frac"), tokens, rtol=1e-6)
        assert calibration.ece_frac(sums.bins.sums().sum(axis=0)) < 1e-6


def test_a_student_with_shuffled_layers_is_worse_by_every_measure() -> None:
    """Than a student that is a little off; the intervals do not touch."""
    teacher = tiny(0)
    near, broken = copy.deepcopy(teacher), copy.deepcopy(teacher)
    broken.model.layers = torch.nn.ModuleList(list(broken.model.layers)[::-1])
    with torch.no_grad():
        near.lm_head.weight.add_(0.02 * torch.randn_like(near.lm_head.weight))
    found = fidelity.measure(teacher, {"near": near, "broken": broken}, teachers_own(teacher, 60), 1000)
    figures = {arm: fidelity_figures.figures(sums, Evaluate(bootstrap=500)) for arm, sums in found.items()}
    for name in (*UPWARDS, *DOWNWARDS, "ece_frac"):
        near_low, near_high, broken_low, broken_high = (
            figures[arm][name][end] or 0.0 for arm in ("near", "broken") for end in ("low", "high")
        )
        assert broken_high < near_low if name in UPWARDS else broken_low > near_high, name


def test_a_student_padded_wider_is_measured_on_the_teachers_vocabulary() -> None:
    teacher, narrow = tiny(0), tiny(1)
    wide = tiny(2, vocab_size=VOCAB_SIZE + 11)
    wide.model.load_state_dict(narrow.model.state_dict() | {"embed_tokens.weight": wide.model.embed_tokens.weight})
    with torch.no_grad():
        wide.model.embed_tokens.weight[:VOCAB_SIZE] = narrow.model.embed_tokens.weight
        wide.lm_head.weight[:VOCAB_SIZE] = narrow.lm_head.weight
    found = fidelity.measure(teacher, {"narrow": narrow, "wide": wide}, TEXTS, 100)
    np.testing.assert_allclose(by_prompt(found["wide"]), by_prompt(found["narrow"]), rtol=1e-5)


def test_distributions_without_a_common_token_are_finite() -> None:
    """Log-probs so low that their exponentials are 0."""
    teacher_NV, student_NV = torch.full((1, 8), -300.0), torch.full((1, 8), -300.0)
    teacher_NV[0, 0] = student_NV[0, 7] = 0
    of = fidelity.compare(fidelity.Reference.of(teacher_NV), student_NV, torch.tensor([0]))[0]
    values = dict(zip(MEASURES, of.tolist(), strict=True))
    assert values["forward_kl_nats"] == values["reverse_kl_nats"] == values["nll_nats"] == 300
    assert values["js_divergence_nats"] == pytest.approx(np.log(2))
    assert values["acceptance_frac"] == values["accuracy_frac"] == 0
    assert values["brier_score"] == pytest.approx(2)


@given(st.integers(0, 10_000), st.floats(0.1, 8))
@settings(max_examples=40, deadline=None)
def test_measures_keep_their_bounds(seed: int, spread: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    teacher_NV, student_NV = ((spread * torch.randn(6, 50, generator=generator)).log_softmax(dim=1) for _ in range(2))
    labels_N = torch.randint(50, (6,), generator=generator)
    of = dict(zip(MEASURES, fidelity.compare(fidelity.Reference.of(teacher_NV), student_NV, labels_N).T, strict=True))
    total_variation_N = 1 - of["acceptance_frac"]
    assert (of["forward_kl_nats"] >= 2 * total_variation_N**2 - 1e-5).all()  # Pinsker's inequality
    assert (of["reverse_kl_nats"] >= 2 * total_variation_N**2 - 1e-5).all()
    assert (of["js_divergence_nats"] <= np.log(2) * total_variation_N + 1e-5).all()
    assert (of["js_divergence_nats"] >= total_variation_N**2 / 2 - 1e-5).all()
    assert ((of["brier_score"] >= 0) & (of["brier_score"] <= 2)).all()
    assert (of["confidence_frac"] >= of["accuracy_frac"] - total_variation_N.abs() - 1e-5).all()


def test_memory_does_not_grow_with_the_number_of_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts come one by one, and all answer the same twenty prompts: nothing but sums may stay."""
    monkeypatch.setattr(forced, "WINDOW_TEXTS", 64)
    monkeypatch.setattr(calibration, "EDGE_TOKENS", 500)
    teacher, student = tiny(0), tiny(1)
    alive: list[int] = []  # tensors, whose memory tracemalloc does not see

    def coming(num: int) -> Iterator[ForcedResponse]:
        for number, text in enumerate(many(num)):
            yield ForcedResponse(f"prompt{number % 20}", text.prompt_token_ids, text.token_ids)
        alive.append(sum(type(each) is torch.Tensor for each in gc.get_objects()))

    def peak_bytes(num: int) -> int:
        gc.collect()
        tracemalloc.start()
        sums = fidelity.measure(teacher, {"student": student}, coming(num), 512)["student"]
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert sums.num_texts == num
        return peak

    peak_bytes(64)  # what is made once
    few, ten_times = peak_bytes(200), peak_bytes(2000)
    assert ten_times < 1.1 * few
    assert alive[2] <= alive[1] + 10


def test_an_iterator_gives_what_a_list_gives_whatever_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, student = tiny(0), tiny(1)
    whole = fidelity.measure(teacher, {"s": student}, list(many(20)), 64)["s"]
    monkeypatch.setattr(forced, "WINDOW_TEXTS", 7)
    windows = fidelity.measure(teacher, {"s": student}, many(20), 64)["s"]
    by_name = [dict(zip(sums.prompts(), by_prompt(sums), strict=True)) for sums in (whole, windows)]
    for prompt, values in by_name[0].items():
        np.testing.assert_allclose(by_name[1][prompt], values, rtol=1e-4)


def test_no_texts_are_no_sums() -> None:
    assert fidelity.measure(tiny(0), {"s": tiny(1)}, iter([]), 64)["s"].num_texts == 0
