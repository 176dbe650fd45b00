"""Sizes of KV caches: by what is asked, within what there is; halved if vLLM refuses, shared if several are up."""

import itertools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import tiny_model
from transformers import (
    DeepseekV3Config,
    FalconConfig,
    Gemma3Config,
    GPT2Config,
    LlamaConfig,
    MambaConfig,
    Qwen3Config,
)

from pipeline.errors import UserError
from pipeline.inference import kv_cache
from pipeline.inference.kv_cache import Cache, Load, RefusedError
from pipeline.machine import hardware

GIB = hardware.GIB
LAYERS, HEADS, WIDTH, VOCAB = 2, 2, 8, 300
TOKEN_BYTES = LAYERS * 2 * HEADS * WIDTH * 4
BLOCK = 128 * TOKEN_BYTES
REFUSAL = (
    "Available memory on node 0 (5.75/7.59 GiB) on kv cache allocation is less than requested memory for kv (9.0 GiB)."
    " Decrease --kv-cache-memory-bytes, VLLM_CPU_KVCACHE_SPACE, or reduce CPU memory used by other processes."
)


def shape(layers: int, heads: int, kv_heads: int, **more: Any) -> dict[str, Any]:
    return {"num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv_heads, **more}


@pytest.mark.parametrize(
    ("config", "item_bytes", "expected"),
    [
        (LlamaConfig(**shape(32, 32, 8, hidden_size=4096)), 2, 128 * 1024),
        (
            Qwen3Config(**shape(28, 16, 8, head_dim=128, hidden_size=1024)),
            2,
            28 * 2 * 8 * 128 * 2,
        ),  # heads wider than hidden ÷ heads
        (Gemma3Config(text_config=shape(34, 8, 4, head_dim=256)), 2, 34 * 2 * 4 * 256 * 2),  # its language model's
        (DeepseekV3Config(), 2, 61 * (512 + 64) * 2),  # one latent for all of 128 heads
        (GPT2Config(), 4, 12 * 2 * 768 * 4),  # names of its own
        (FalconConfig(num_kv_heads=8, hidden_size=8192, num_attention_heads=128, num_hidden_layers=60), 2, 122880),
        (MambaConfig(hidden_size=64, num_hidden_layers=3), 4, 3 * 2 * 64 * 4),  # no attention at all
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_token_takes_what_its_architecture_keeps_of_it(config: Any, item_bytes: int, expected: int) -> None:
    assert kv_cache.token_bytes(config, item_bytes) == expected


def test_a_layers_activations_are_those_of_its_widest_parts() -> None:
    config = LlamaConfig(**shape(32, 32, 8, hidden_size=4096, intermediate_size=14336))
    assert kv_cache._activation_bytes(config, 2) == (2 * 14336 + 4 * 4096) * 2


ACTIVE = (2 * 24 + 4 * 16) * 4  # bytes of a token of `model`


@pytest.mark.parametrize(
    ("load", "settings", "batch_tokens", "logits_bytes"),
    [
        (Load(8, 100), {}, 800, 8 * 12),  # all prompts that are under way
        (Load(1000, 100), {}, 4096, 128 * 12),  # as many as vLLM takes at once, or a whole context
        (Load(1000, 100), {"max_num_batched_tokens": 512}, 512, 128 * 12),
        (Load(1000, 100), {"max_num_seqs": 2}, 200, 2 * 12),
        (Load(1000, 100), {"max_num_batched_tokens": 512, "enable_chunked_prefill": True}, 512, 512 * 6),  # scored
    ],
)
def test_a_batch_is_no_larger_than_vllm_makes_it(
    model: str, load: Load, settings: dict[str, Any], batch_tokens: int, logits_bytes: int
) -> None:
    need = kv_cache._need(model, {"dtype": "float32", **settings}, load)
    assert need.batch_bytes == batch_tokens * ACTIVE
    assert need.process_bytes == kv_cache.PROGRAM_BYTES + logits_bytes * VOCAB


@pytest.mark.parametrize(("room", "cache"), [(100, 75), (40, 30), (1000, 960)])
def test_a_small_cache_bounds_its_own_batches(room: int, cache: int) -> None:
    """Of a token's bytes three in four are the cache's; a whole batch takes 40."""
    need = kv_cache._Need(0, 0, 40, 1, 10**9, 1, cache_part=0.75)
    assert need.cache_in(room) == cache


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a model of some 50 kB."""
    folder = tmp_path_factory.mktemp("model")
    tiny_model.make(0, VOCAB, max_position_embeddings=4096).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`free(gib, vllm_gib)`: a CPU with so much memory, of which vLLM sees so much; the user has set nothing.

    Beside weights and cache an engine takes 1 GiB.
    """

    def make(gib: float, vllm_gib: float | None = None) -> None:
        monkeypatch.setattr(hardware, "is_cpu", lambda: True)
        monkeypatch.setattr(hardware, "available_bytes", lambda one_node=False: int(gib * GIB))
        monkeypatch.setattr(hardware, "vllm_bytes", lambda: int((gib if vllm_gib is None else vllm_gib) * GIB))
        monkeypatch.setattr(hardware, "make_room", lambda num_bytes: None)
        monkeypatch.setattr(kv_cache, "PROGRAM_BYTES", GIB)
        monkeypatch.setattr(kv_cache, "_activation_bytes", lambda *_: 0)
        monkeypatch.delenv(kv_cache.VARIABLE, raising=False)

    return make


def sized(model: str, load: Load, **settings: Any) -> Cache:
    cache = kv_cache.size(model, {"model": model, "dtype": "float32", "max_model_len": -1, **settings}, load)
    assert cache
    return cache


@pytest.mark.parametrize(
    ("load", "settings", "blocks"),
    [
        (Load(10, 100), {}, 10 + 1),  # vLLM keeps one for itself
        (Load(10, 129), {}, 2 * 10 + 1),
        (Load(1000, 100), {}, 128 + 1),  # as many at once as vLLM takes
        (Load(1000, 100), {"max_num_seqs": 16}, 16 + 1),
        (Load(10, 10**6), {}, 10 * 32 + 1),  # none is longer than the context
        (Load(10, 100), {"max_model_len": 1024}, 10 + 1),
        (Load(2, 100), {"max_model_len": 1024}, 8 + 1),  # vLLM wants room for one of the length it is told
        (Load(10, 100), {"dtype": "bfloat16"}, (10 + 1) / 2),
        (Load(10, 100), {"kv_cache_dtype": "fp8"}, (10 + 1) / 4),
        (Load(4), {}, 4 * 16 + 1),  # of unknown length: of the usual one
        (Load(1), {}, 32 + 1),  # but the whole context has room
    ],
)
def test_a_cache_is_as_large_as_its_requests_need(
    model: str, free: Any, load: Load, settings: dict[str, Any], blocks: float
) -> None:
    free(100)
    assert sized(model, load, **settings).num_bytes == blocks * BLOCK


@pytest.mark.parametrize(("gib", "vllm_gib", "most_gib"), [(8, 8, 6.3), (8, 3, 2.7), (2.5, 8, 1.35)])
def test_a_cache_stays_within_what_is_free_and_what_vllm_sees(
    model: str, free: Any, monkeypatch: pytest.MonkeyPatch, gib: float, vllm_gib: float, most_gib: float
) -> None:
    """9/10 of it: of the machine's beside the engine's own GiB, of vLLM's as it is."""
    free(gib, vllm_gib)
    monkeypatch.setattr(kv_cache, "token_bytes", lambda *_: 10**6)
    assert sized(model, Load(100, 1000)).num_bytes == pytest.approx(most_gib * GIB, rel=1e-3)


def test_of_requests_that_nobody_knows_half_the_memory_is_left(
    model: str, free: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    free(9)
    monkeypatch.setattr(kv_cache, "token_bytes", lambda *_: 10**6)
    assert sized(model, Load(100)).num_bytes == pytest.approx(4 * GIB, rel=1e-3)


def test_where_memory_is_short_one_request_finds_room(model: str, free: Any) -> None:
    free(0.5)
    cache = sized(model, Load(100, 1000))
    assert cache.num_bytes == cache.least_bytes == (8 + 1) * BLOCK


def test_a_model_that_no_memory_holds_is_refused_with_what_is_there_and_needed(model: str, free: Any) -> None:
    free(0.001)
    with pytest.raises(UserError) as caught:
        sized(model, Load(100, 4096))
    said = str(caught.value)
    assert said.startswith("VLLM_CPU_KVCACHE_SPACE: the KV cache of one request of 4096 tokens needs 1.0 MiB, and")
    assert "1.0 MiB are free" in said
    assert "\n" not in said


@pytest.mark.parametrize(("given", "num_bytes"), [("4", 4 * GIB), ("0.5", GIB // 2), (" 1.25 ", 5 * GIB // 4)])
def test_the_users_own_size_wins_in_parts_of_a_gib_too(
    model: str, free: Any, monkeypatch: pytest.MonkeyPatch, given: str, num_bytes: int
) -> None:
    free(1)
    monkeypatch.setenv(kv_cache.VARIABLE, given)
    assert list(sized(model, Load(10, 100), kv_cache_memory_bytes=5).tries()) == [num_bytes]


@pytest.mark.parametrize("given", ["much", "-1", "nan", "inf"])
def test_a_size_that_is_no_number_is_told(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setenv(kv_cache.VARIABLE, given)
    with pytest.raises(UserError, match=f"^VLLM_CPU_KVCACHE_SPACE={given}: give the size in GiB, such as 4 or 0.5$"):
        kv_cache.own_bytes()


@pytest.mark.parametrize("given", ["", "0"])
def test_no_size_is_none(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setenv(kv_cache.VARIABLE, given)
    assert kv_cache.own_bytes() is None


def test_vllm_sizes_it_on_a_gpu_and_as_the_engines_setting_says(
    model: str, free: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    free(8)
    assert kv_cache.size(model, {kv_cache.SETTING: 1}, Load()) is None
    monkeypatch.setattr(hardware, "is_cpu", lambda: False)
    assert kv_cache.size(model, {}, Load()) is None


class Machine:
    """vLLM on a machine that grants so many bytes."""

    def __init__(self, grants: int) -> None:
        self.grants, self.asked = grants, []

    def start(self, settings: dict[str, Any]) -> str:
        self.asked.append(settings.get(kv_cache.SETTING))
        if self.asked[-1] is None or self.asked[-1] > self.grants:
            kv_cache.check_refused(f"ValueError: {REFUSAL}")
        return "up"


def start(model: str, machine: Machine, load: Load, **settings: Any) -> str:
    return kv_cache.start({"model": model, "dtype": "float32", **settings}, load, machine.start)


def test_what_vllm_refuses_is_tried_again_with_half(model: str, free: Any, capfd: pytest.CaptureFixture[str]) -> None:
    free(100)
    machine = Machine(grants=40 * BLOCK)
    assert start(model, machine, Load(128, 128)) == "up"
    assert machine.asked == [129 * BLOCK, 129 * BLOCK // 2, 129 * BLOCK // 4]
    assert "vLLM finds 5.75 of 7.59 GiB free on memory node 0; trying a KV cache of" in capfd.readouterr().err


def test_the_smallest_cache_is_one_requests_and_its_refusal_one_line(model: str, free: Any) -> None:
    free(100)
    machine = Machine(grants=0)
    with pytest.raises(UserError) as caught:
        start(model, machine, Load(128, 128))
    assert machine.asked[-1] == 2 * BLOCK
    said = str(caught.value)
    assert said.startswith("VLLM_CPU_KVCACHE_SPACE: the KV cache of one request of 128 tokens needs 0.1 MiB, but")
    assert "vLLM finds 5.75 of 7.59 GiB free on memory node 0" in said
    assert "\n" not in said


@pytest.mark.parametrize(
    ("variable", "settings", "said"),
    [
        ("9", {}, "VLLM_CPU_KVCACHE_SPACE asks for more memory than is free"),
        ("", {kv_cache.SETTING: 9 * GIB}, "teacher.engine.kv_cache_memory_bytes asks for more memory than is free"),
    ],
)
def test_the_users_own_size_is_asked_for_once(
    model: str, free: Any, monkeypatch: pytest.MonkeyPatch, variable: str, settings: dict[str, Any], said: str
) -> None:
    free(100)
    monkeypatch.setenv(kv_cache.VARIABLE, variable)
    machine = Machine(grants=GIB)
    with pytest.raises(UserError, match=said):
        start(model, machine, Load(), **settings)
    assert machine.asked == [9 * GIB]


def test_what_else_goes_wrong_is_no_refusal(model: str, free: Any) -> None:
    free(100)
    for text in ("To serve at least one request with the model's max seq len (8192)", "", "No available memory"):
        kv_cache.check_refused(text)
    with pytest.raises(RefusedError):
        kv_cache.check_refused(REFUSAL)


@given(least=st.integers(1, 10**6), more=st.integers(0, 10**9))
def test_sizes_fall_by_half_to_the_least(least: int, more: int) -> None:
    tries = list(Cache(least + more, least, 1).tries())
    assert (tries[0], tries[-1]) == (least + more, least)
    assert all(b == max(least, a // 2) for a, b in itertools.pairwise(tries))


@pytest.mark.parametrize(
    ("gib", "expected_gib"),
    [
        (100, [1 + 12.9, 1 + 12.9, 1 + 12.9]),  # all that each needs
        (20, [6, 6, 6]),  # nine tenths of it
        (5, [1.5, 1.5, 1.5]),
        (3.6, None),  # not even one request each
    ],
)
def test_arms_share_the_memory(
    model: str, free: Any, monkeypatch: pytest.MonkeyPatch, gib: float, expected_gib: list[float] | None
) -> None:
    free(gib)
    monkeypatch.setattr(kv_cache, "token_bytes", lambda *_: GIB // 1280)  # a block: 0.1 GiB
    shares = kv_cache.shares([(model, {"dtype": "float32"})] * 3, Load(1000, 128))
    assert shares == (expected_gib and pytest.approx([part * GIB for part in expected_gib], rel=1e-3))


def test_an_arms_cache_is_what_its_share_leaves(model: str, free: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    free(20)
    monkeypatch.setattr(kv_cache, "token_bytes", lambda *_: GIB // 1280)
    cache = sized(model, Load(1000, 128, memory_bytes=6 * GIB))
    assert cache.num_bytes == pytest.approx(5 * GIB, rel=1e-3)


def test_arms_that_need_little_leave_the_rest_to_those_that_need_much(
    model: str, free: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    free(10)
    monkeypatch.setattr(kv_cache, "token_bytes", lambda *_: GIB // 1280)
    engines: list[tuple[str, dict[str, Any]]] = [(model, {"max_num_seqs": 1}), (model, {})]
    shares = kv_cache.shares(engines, Load(1000, 128))
    assert shares == pytest.approx([1.2 * GIB, 7.8 * GIB], rel=1e-3)


@pytest.mark.parametrize(
    ("weights", "own", "free_gib", "parts"),
    [
        ([14, 1, 1], [None] * 3, 80, [0.35, 0.1875 + 0.05 / 2, 0.2125]),
        ([14, 1], [0.9, None], 80, None),
        ([14, 1], [0.5, None], 80, [0.5, 0.4]),
        ([14, 1], [0.3, 0.2], 80, [0.3, 0.2]),
        ([14, 1], [None, None], 40, [(14 + 10.5) / 80, (1 + 10.5) / 80]),  # half of the card is another's
        ([70, 10], [None, None], 80, None),
    ],
)
def test_arms_on_one_gpu_share_it_by_weights_and_the_users_own_part_stays(
    weights: list[int], own: list[float | None], free_gib: int, parts: list[float] | None
) -> None:
    card = [size * GIB for size in weights], own, free_gib * GIB, 80 * GIB
    if parts is None:
        with pytest.raises(UserError, match=r"evaluate\.interleave_speed=true holds 2 models on one GPU at once"):
            kv_cache.gpu_shares(*card)
        return
    shares = kv_cache.gpu_shares(*card)
    if None in own:
        assert sum(shares) * 80 == pytest.approx(0.9 * free_gib)
    assert shares == pytest.approx(parts, abs=0.15 if len(parts) == 3 else 1e-6)


def test_a_gpus_weights_are_those_of_one_card(tmp_path: Path) -> None:
    tiny_model.make(0, VOCAB).to("cpu").bfloat16().save_pretrained(tmp_path)
    whole = kv_cache.gpu_weights_bytes(str(tmp_path), {"dtype": "auto"})
    assert kv_cache.gpu_weights_bytes(str(tmp_path), {"dtype": "float32"}) == 2 * whole
    assert kv_cache.gpu_weights_bytes(str(tmp_path), {"tensor_parallel_size": 2}) == whole // 2


@pytest.mark.parametrize(("holds", "is_enough"), [(100, False), (200, True), (4096, True)])
def test_a_cache_that_holds_no_whole_request_is_told(model: str, holds: int, is_enough: bool) -> None:
    settings = {"model": model, "max_model_len": -1}
    if is_enough:
        kv_cache.check_context(holds, settings, Load(1, 200))
    else:
        with pytest.raises(UserError, match="holds 100 tokens, but the longest request has 200"):
            kv_cache.check_context(holds, settings, Load(1, 200))
    kv_cache.check_context(holds, {**settings, "max_model_len": holds}, Load(1, 200))  # the user's own limit
