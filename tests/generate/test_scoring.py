"""Text that exists, scored by real vLLM on the demo teacher; reasoning captured, marked, and given to the real loss."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from support.commands import ROOT, retort

from pipeline.config import Train
from pipeline.inference.engine import Engine, Request
from pipeline.models import lookup
from pipeline.models.tokenizer.chat_template import ChatTemplate
from pipeline.train import contract
from pipeline.train.batches import collate
from pipeline.train.targets import IGNORED

pytestmark = [pytest.mark.engine, pytest.mark.ci, pytest.mark.timeout(900)]
K, BATCH_TOKENS = 20, 96
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{{ opening }}{% endif %}"
)
SEA = "The sea is salt because rivers carry minerals from the rocks of the land, and the water leaves them behind."
CONVERSATION = [
    {"role": "user", "content": "Why is the sea salt?"},
    {"role": "assistant", "content": f"<think>\nRivers, I think.\n</think>\n\n{SEA}"},
    {"role": "user", "content": "And lakes?"},
    {
        "role": "assistant",
        "content": "<think>\nMost are not.\n</think>\n\nMost lakes have a river that leads out of them.",
    },
]


# --- the engine, set up for scoring


@pytest.fixture(scope="module")
def engine(demo_teacher: Path) -> Engine:
    args = {"max_model_len": 512, "max_num_seqs": 4, "max_num_batched_tokens": BATCH_TOKENS, "block_size": 32}
    return Engine(str(demo_teacher), args, k=K, scoring=True)


def pair(tokenizer: Any, name: str, question: str, answer: str) -> Request:
    prompt = ChatTemplate(tokenizer).render([{"role": "user", "content": question}])
    completion = tuple(tokenizer(f"{answer}<|im_end|>", add_special_tokens=False).input_ids)
    return Request(name, prompt, 1, 1.0, 0, K, completion_token_ids=completion)


def check(engine: Engine, reference: Any, asked: list[Request]) -> None:
    """Each answer against a forward pass of transformers on the same ids."""
    answers = {answer.request.request_id: answer for answer in engine.answers(asked)}
    assert answers.keys() == {request.request_id for request in asked}
    for request in asked:
        answer, completion = answers[request.request_id], list(request.completion_token_ids or ())
        P, T = len(request.prompt_token_ids), len(completion)
        with torch.no_grad():
            logits = reference(torch.tensor([request.prompt_token_ids + completion])).logits[0, P - 1 : -1]
        wanted_TV = logits.double().log_softmax(dim=1).numpy()
        assert answer.token_ids == completion
        assert answer.logprobs_TK.shape == (T, K)
        np.testing.assert_allclose(wanted_TV[np.arange(T), completion], answer.token_logprobs, atol=1e-3)
        np.testing.assert_allclose(np.take_along_axis(wanted_TV, answer.ids_TK, 1), answer.logprobs_TK, atol=1e-3)
        np.testing.assert_allclose(np.sort(wanted_TV, axis=1)[:, ::-1][:, :K], answer.logprobs_TK, atol=1e-3)


def test_text_longer_than_a_batch_is_scored_as_a_forward_pass_has_it(
    engine: Engine, demo_tokenizer: Any, reference: Any
) -> None:
    asked = [
        pair(demo_tokenizer, "short", "Hi", "Hello."),
        pair(demo_tokenizer, "long", "Why is the sea salt?", SEA * 6),
        pair(demo_tokenizer, "long prompt", "Why is the sea salt? " * 30, "Rivers."),
    ]
    assert max(len(request.completion_token_ids or ()) for request in asked) > BATCH_TOKENS
    check(engine, reference, asked)


def test_what_earlier_requests_left_in_the_cache_is_used_for_prompts_alone(
    engine: Engine, demo_tokenizer: Any, reference: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    added: list[str] = []
    add = engine._add
    monkeypatch.setattr(engine, "_add", lambda r, *a, **k: (added.append(r.request_id), add(r, *a, **k)))
    question = "Tell me about the sea. " * 20
    check(engine, reference, [pair(demo_tokenizer, "first", question, SEA)])
    check(engine, reference, [pair(demo_tokenizer, "other", question, "No.")])  # shares the prompt
    assert added == ["first", "other"]
    # the completion's own beginning is in the cache now: without log-probs, so it is scored anew
    check(engine, reference, [pair(demo_tokenizer, "same beginning", question, SEA * 3)])
    assert added == ["first", "other", "same beginning", "same beginning"]


# --- as a user runs it, with a teacher that reasons


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory, demo_teacher: Path) -> Path:
    """The demo teacher under a template that opens the reasoning where `opening` says so."""
    folder = tmp_path_factory.mktemp("thinker")
    lookup.Model("demo", demo_teacher).tokenizer().save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    for name in ("config.json", "generation_config.json", "model.safetensors"):
        (folder / name).symlink_to(demo_teacher / name)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, thinker: Path) -> Callable[..., Path]:
    """`run(name, verbs, rows, *overrides)` does the stages on a source of these rows; returns the run."""
    folder = tmp_path_factory.mktemp("runs")

    def do(name: str, verbs: list[str], rows: list[dict[str, Any]], *overrides: str) -> Path:
        source = folder / f"{name}.jsonl"
        source.write_text("".join(json.dumps(row) + "\n" for row in rows))
        settings = [
            f"name={name}",
            f"runs_dir={folder}",
            f"teacher.model={thinker}",
            f"prepare.sources=[{{path: {source}}}]",
        ]
        settings += ["prepare.held_out_frac=0", "generate.k=16", "generate.shard_responses=2"]
        settings += ["teacher.engine.max_model_len=512", "teacher.engine.max_num_seqs=4", *overrides]
        for verb in verbs:
            done = retort(verb, str(ROOT / "configs/quickstart.yaml"), *settings)
            assert done.returncode == 0, done.stderr
        return folder / name

    return do


def rows_of(run: Path, stage: str) -> list[dict[str, Any]]:
    return [row for path in sorted((run / stage).glob("*-0*.parquet")) for row in pq.read_table(path).to_pylist()]


@pytest.fixture(scope="module")
def scored(run: Callable[..., Path]) -> Path:
    plain = {"prompt": "Name a fruit.", "completion": "An apple."}
    masked = [dict(message, **({"weight": 0} if place == 1 else {})) for place, message in enumerate(CONVERSATION)]
    rows = [{"messages": CONVERSATION}, {"messages": masked}, plain]
    return run("scored", ["prepare", "generate", "filter"], rows, "generate.mode=score")


def test_a_corpus_is_scored_turn_by_turn(scored: Path, thinker: Path) -> None:
    tokenizer = lookup.Model("thinker", thinker).tokenizer()
    responses = rows_of(scored, "generate")
    written = [tokenizer.decode(row["prompt_token_ids"] + row["token_ids"]) for row in responses]
    chat = [f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>" for m in CONVERSATION]
    assert written == [
        "\n".join(chat[:2]),
        "\n".join(chat),
        "<|im_start|>user\nName a fruit.<|im_end|>\n<|im_start|>assistant\nAn apple.<|im_end|>",
    ]
    assert [row["text"] for row in responses] == [SEA, "Most lakes have a river that leads out of them.", "An apple."]
    assert {row["finish_reason"] for row in responses} == {"stop"}
    manifest = json.loads((scored / "prepare/manifest.json").read_text())
    assert manifest["counts"]["duplicates"] == 1  # the masked conversation's second turn is the first one's


def test_a_scored_corpus_is_verified_and_shown(scored: Path) -> None:
    for verb in ("verify", "show"):
        done = retort(verb, str(scored))
        assert done.returncode == 0, done.stderr


def test_reasoning_in_scored_answers_is_marked_with_its_tokens(scored: Path, thinker: Path) -> None:
    tokenizer = lookup.Model("thinker", thinker).tokenizer()
    responses = rows_of(scored, "generate")
    assert [row["reasoning"] for row in responses] == ["Rivers, I think.", "Most are not.", None]
    for row in responses[:2]:
        first, inside, last, answer = (
            tokenizer.decode(row["token_ids"][slice(*places)])
            for places in (
                (0, row["reasoning_start"]),
                (row["reasoning_start"], row["reasoning_end"]),
                (row["reasoning_end"], row["reasoning_tokens"]),
                (row["reasoning_tokens"], None),
            )
        )
        assert (first.strip(), inside.strip(), last.strip()) == ("<think>", row["reasoning"], "</think>")
        assert answer.strip() == f"{row['text']}<|im_end|>"
    assert [row["reasoning_tokens"] for row in responses[2:]] == [0]


def test_each_way_of_training_on_reasoning_goes_through_the_real_loss(scored: Path, reference: Any) -> None:
    """The teacher itself as student: what it learns given all that the teacher saw has a KL of 0."""
    responses = [{**row, "masked_spans": []} for row in rows_of(scored, "generate")]  # filter found nothing
    vocab_size = reference.get_output_embeddings().weight.shape[0]
    kl, num = {}, {}
    for how in ("keep", "mask", "drop"):
        batch = collate(responses, 0, vocab_size, Train.model_validate({"reasoning": how}))
        ce_N, kl_N = contract.losses_nats(reference, batch, 64)
        num[how], kl[how] = len(ce_N), kl_N.mean().item()
        assert int((batch["labels"] != IGNORED).sum()) == len(kl_N) == len(batch["teacher_ids_NK"])
    num_reasoning = sum(row["reasoning_tokens"] for row in responses)
    assert num["keep"] == sum(len(row["token_ids"]) for row in responses)
    assert num["mask"] == num["drop"] == num["keep"] - num_reasoning
    assert abs(kl["keep"]) < 1e-3
    assert abs(kl["mask"]) < 1e-3
    assert kl["drop"] > 2e-3  # the rows know of the reasoning, the student does not


def test_a_student_learns_from_a_scored_corpus_without_its_reasoning(
    scored: Path, run: Callable[..., Path], tmp_path: Path
) -> None:
    del tmp_path
    rows = [json.loads(line) for line in (scored.parent / "scored.jsonl").read_text().splitlines()]
    short = ["student.keep_layers=0-3,26-29", "train.dtype=float32", "train.epochs=1", "train.batch_size=1"]
    run("scored", ["train"], rows, "generate.mode=score", "train.reasoning=drop", "train.sft_only_arm=false", *short)
    counts = json.loads((scored / "train/manifest.json").read_text())["counts"]
    learnt = sum(len(row["token_ids"]) - row["reasoning_tokens"] for row in rows_of(scored, "generate"))
    assert (counts["rows"], counts["steps"], counts["answer_tokens"]) == (3, 3, learnt)


def test_a_teacher_whose_template_opens_the_reasoning_thinks_for_real(run: Callable[..., Path]) -> None:
    opened = 'teacher.chat_template_kwargs={opening: "<think>\\n"}'
    made = run("sampled", ["prepare", "generate"], [{"prompt": "Name a fruit."}], opened, "generate.max_tokens=12")
    [row] = rows_of(made, "generate")
    T = len(row["token_ids"])
    assert row["finish_reason"] == "length"
    assert (row["reasoning_tokens"], row["reasoning_start"], row["reasoning_end"], row["text"]) == (T, 0, T, "")
    assert row["reasoning"]
