"""What the arms' engines are told of their work, and whether all are up at once."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.config import Evaluate
from pipeline.errors import UserError
from pipeline.eval_sets.chat_set import ChatItem
from pipeline.evaluate.risks.memorization import RECITED_TOKENS, Opening
from pipeline.evaluate.speed import memory
from pipeline.evaluate.tasks.chat import ChatFormat
from pipeline.inference import kv_cache
from pipeline.inference.kv_cache import Load
from pipeline.machine import hardware, meters
from pipeline.models.tokenizer.chat_template import ChatTemplate

ARMS = ("teacher", "student", "untrained")
ENGINES: memory.Engines = {arm: (Path("models") / arm, {}) for arm in ARMS}
LOAD = Load(8, 100)
FREE = 10 * hardware.GIB


class Words:
    """A tokenizer whose tokens are words; a template adds two for each message."""

    def __init__(self, tokens_a_word: int = 1) -> None:
        self.tokens_a_word = tokens_a_word

    def __call__(self, texts: list[str], **_: Any) -> Any:
        ids = [[0] * len(text.split()) * self.tokens_a_word for text in texts]
        return type("Encoded", (), {"input_ids": ids})

    def apply_chat_template(self, messages: list[dict[str, Any]], **_: Any) -> list[int]:
        return [0] * sum(2 + len(message["content"].split()) * self.tokens_a_word for message in messages)


def load_of(items: list[ChatItem], openings: list[Opening], *tokenizers: Any, **settings: Any) -> Load:
    chat_formats = [ChatFormat(ChatTemplate(tokenizer)) for tokenizer in tokenizers or (Words(),)]
    asked = Evaluate(speed_concurrency=(1, 2), speed_tokens=4, **settings)
    return memory.load_of([(items, 50), ([], 1000)], openings, chat_formats, asked)


def test_the_longest_request_is_a_talks_last_turn_after_answers_as_long_as_may_be() -> None:
    talk = ChatItem(id="a", system="be kind", turns=("one two three", "four"))
    short = ChatItem(id="b", turns=("one",))
    assert load_of([short, talk], []) == Load(2, (2 + 3 + 1) + 3 * 3 + 2 * 50)


def test_openings_count_too_and_so_does_the_timing() -> None:
    openings = [Opening(str(n), "verbatim_train", [0] * 500, []) for n in range(5)]
    assert load_of([], openings) == Load(5, 500 + RECITED_TOKENS)
    assert load_of([], []) == Load(2, 3 + 4)


def test_the_tokenizer_that_cuts_finest_counts() -> None:
    [short] = items = [ChatItem(id="b", turns=("one two",))]
    wide = load_of(items, [], Words(), Words(tokens_a_word=5))
    assert wide.tokens == 5 * len(short.turns[0].split()) + (2 + 5) + 50


@pytest.fixture
def cpu(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(hardware, "is_cpu", lambda: True)
    return monkeypatch


@pytest.mark.parametrize(
    ("interleave", "is_cpu", "fits", "together"),
    [
        (None, True, True, True),
        (None, True, False, False),  # one at a time rather than none
        (None, False, True, False),
        (True, True, False, True),
        (True, False, True, True),
        (False, True, True, False),
    ],
)
def test_all_arms_are_up_at_once_on_a_cpu_that_holds_them(
    cpu: pytest.MonkeyPatch, interleave: bool | None, is_cpu: bool, fits: bool, together: bool
) -> None:
    cpu.setattr(hardware, "is_cpu", lambda: is_cpu)
    cpu.setattr(kv_cache, "shares", lambda *_: [1, 2, 3] if fits else None)
    assert memory.are_up_together(ENGINES, LOAD, Evaluate(interleave_speed=interleave)) is together


def test_on_a_cpu_each_arm_is_told_its_share(cpu: pytest.MonkeyPatch) -> None:
    cpu.setattr(kv_cache, "shares", lambda *_: [1, 2, 3])
    given = memory.shared_out(ENGINES, LOAD)
    assert {arm: load.memory_bytes for arm, (_, load) in given.items()} == dict(zip(ARMS, (1, 2, 3), strict=True))
    assert all((load.num_requests, load.tokens) == (8, 100) for _, load in given.values())


def test_an_arm_alone_has_all_there_is(cpu: pytest.MonkeyPatch) -> None:
    alone: memory.Engines = {"student": (Path("s"), {"dtype": "float32"})}
    assert memory.shared_out(alone, LOAD) == {"student": ({"dtype": "float32"}, LOAD)}


def test_arms_that_are_told_to_be_up_at_once_and_do_not_fit_are_refused(cpu: pytest.MonkeyPatch) -> None:
    cpu.setattr(kv_cache, "shares", lambda *_: None)
    cpu.setattr(hardware, "available_bytes", lambda: FREE)
    with pytest.raises(
        UserError, match=r"interleave_speed=true needs 3 models in memory at once, but they do not fit the 10\.0 GiB"
    ):
        memory.shared_out(ENGINES, LOAD)


def test_on_a_gpu_each_arm_gets_its_part_of_the_card_and_the_users_own_stays(cpu: pytest.MonkeyPatch) -> None:
    cpu.setattr(hardware, "is_cpu", lambda: False)
    cpu.setattr(meters, "fullest_gpu", lambda: (FREE, 2 * FREE))
    cpu.setattr(kv_cache, "gpu_weights_bytes", lambda path, _: hardware.GIB)
    parts = {arm: given["gpu_memory_utilization"] for arm, (given, _) in memory.shared_out(ENGINES, LOAD).items()}
    assert parts == dict.fromkeys(ARMS, 0.15)  # of 20 GiB half is free: 9 GiB for three
    own: memory.Engines = {**ENGINES, "teacher": (Path("t"), {"gpu_memory_utilization": 0.25})}
    parts = {arm: given["gpu_memory_utilization"] for arm, (given, _) in memory.shared_out(own, LOAD).items()}
    assert parts == {"teacher": 0.25, "student": 0.1, "untrained": 0.1}


def test_a_gpu_that_can_not_be_asked_is_left_to_vllm(cpu: pytest.MonkeyPatch) -> None:
    cpu.setattr(hardware, "is_cpu", lambda: False)
    cpu.setattr(meters, "fullest_gpu", lambda: None)
    assert memory.shared_out(ENGINES, LOAD) == {arm: ({}, LOAD) for arm in ARMS}
