"""360 planted items through prepare and filter as a run has them, and what train then reads: none of them is learnt."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from planted_personal import KINDS, LOOK_ALIKES, NUM, items

from pipeline import codec, prepare
from pipeline import filter as filter_stage
from pipeline.config import Config, Privacy, Train, validate
from pipeline.export import corpus
from pipeline.records import RESPONSES
from pipeline.run.rundir import RunDir
from pipeline.screening.privacy import find
from pipeline.train.batches import collate_items, sampler
from pipeline.train.batches import items as batch_items
from pipeline.train.contract import proof_batch
from pipeline.train.rows import Answers, kept_answers
from pipeline.train.targets import IGNORED

Row = dict[str, Any]
PER_SHARD = 100
YES = "\n\nYes."  # what a teacher writes after its reasoning
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class Run:
    """A run whose prompts and answers hold the items, and the look-alikes, one in each."""

    look_alikes: tuple[str, ...] = LOOK_ALIKES

    def __init__(self, folder: Path, tokenizer: Any, **sections: Any) -> None:
        self.folder, self.tokenizer = folder, tokenizer
        self.teacher = folder / "teacher"
        self.sections = sections
        self.planted = items()
        self.numbers: dict[str, int] = {}
        self._make_teacher()
        self.run_dir = RunDir(folder / "runs/trial")

    def config(self) -> Config:
        data = {
            "name": "trial",
            "runs_dir": str(self.folder / "runs"),
            "teacher": {"model": str(self.teacher), "licence": "mit"},
            "generate": {"max_tokens": 8},
            "filter": {"drop_exact_duplicates": False, "max_duplicate_ngram_frac": None},
            "prepare": {"sources": [{"path": str(self.folder / "a.jsonl"), "licence": "cc0-1.0"}], "held_out_frac": 0},
        }
        return validate({**data, **self.sections}, "test")

    def prepared(self) -> "Run":
        texts = [*(item.text for item in self.planted), *self.look_alikes]
        lines = [json.dumps({"prompt": f"{number}. What of this? {text}"}) for number, text in enumerate(texts)]
        (self.folder / "a.jsonl").write_text("\n".join(lines), encoding="utf-8")
        prepare.run(self.config(), self.run_dir)
        return self

    def prompts(self) -> list[Row]:
        files = sorted((self.run_dir.path / "prepare").glob("*.parquet"))
        return [row for path in files for row in pq.read_table(path).to_pylist()]

    def filtered(self) -> "Run":
        """Answers to the prompts in place of generate's, half of the items in the reasoning; then filter."""
        texts = [*(item.text for item in self.planted), *self.look_alikes]
        rows = [self._response(number, prompt, texts[number]) for number, prompt in enumerate(self.prompts())]
        fingerprint = {"teacher.model": str(self.teacher), "teacher.weights": "0", "generate.num_samples": 1}
        fingerprint |= {f"generate.{key}": 0 for key in ("temperature", "top_p", "top_k", "max_tokens", "seed")}
        stage = self.run_dir.begin("generate", self.config(), {**fingerprint, "vllm": "none"})
        names = []
        for first in range(0, len(rows), PER_SHARD):
            names.append(f"responses-{first // PER_SHARD:05d}.parquet")
            stage.commit(pa.Table.from_pylist(rows[first : first + PER_SHARD], schema=RESPONSES), names[-1])
        stage.finish([stage.path / name for name in names], {"responses": len(rows)})
        filter_stage.run(self.config(), self.run_dir)
        return self

    def decisions(self) -> list[Row]:
        files = sorted((self.run_dir.path / "filter").glob("*.parquet"))
        return [row for path in files for row in pq.read_table(path).to_pylist()]

    def answers(self, how: str = "keep") -> Answers:
        return kept_answers(self.run_dir, "train", 4096, how)

    def number_of(self, row: Row) -> int:
        """Which item, or after those which look-alike, an answer is about."""
        return self.numbers[row["response_id"]]

    def _response(self, number: int, prompt: Row, text: str) -> Row:
        """Every second answer has the item in its reasoning, and then says yes."""
        is_reasoned = number % 2 == 1
        ids, yes = (self.tokenizer(part, add_special_tokens=False).input_ids for part in (text, YES))
        token_ids = [*ids, *(yes if is_reasoned else []), self.tokenizer.eos_token_id]
        ids_NK = np.array([[token, *(n for n in range(5) if n != token)][:4] for token in token_ids], np.int32)
        logprobs_NK = np.tile(np.log([0.6, 0.2, 0.1, 0.05]), (len(token_ids), 1)).astype(np.float32)
        response_id = f"{prompt['prompt_id']}-0"
        self.numbers[response_id] = number
        return {
            "response_id": response_id,
            "conversation_id": prompt["conversation_id"],
            "prompt_id": prompt["prompt_id"],
            "sample": 0,
            "split": prompt["split"],
            "category": "chat",
            "text": YES.strip() if is_reasoned else text.strip(),
            "reasoning": text.strip() if is_reasoned else None,
            "finish_reason": "stop",
            "prompt_token_ids": prompt["prompt_token_ids"],
            "token_ids": token_ids,
            "token_logprobs": logprobs_NK[:, 0].tolist(),
            "logprobs": codec.encode(ids_NK, logprobs_NK, codec.log_tail(logprobs_NK, len(self.tokenizer))),
            "reasoning_tokens": len(ids) if is_reasoned else 0,
            "reasoning_start": 0,
            "reasoning_end": len(ids) if is_reasoned else 0,
        }

    def _make_teacher(self) -> None:
        from safetensors.numpy import save_file

        self.tokenizer.chat_template = TEMPLATE
        self.tokenizer.save_pretrained(self.teacher)
        shape = {"model_type": "llama", "max_position_embeddings": 8192, "vocab_size": len(self.tokenizer)}
        (self.teacher / "config.json").write_text(json.dumps(shape))
        save_file({}, self.teacher / "model.safetensors")


@pytest.fixture(scope="module", params=["bytes", "demo"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """By tokens that are bytes, and by the demo teacher's."""
    from transformers import AutoTokenizer

    folder = request.getfixturevalue("byte_tokenizer" if request.param == "bytes" else "demo_teacher")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return Run(tmp_path_factory.mktemp(request.param), tokenizer).prepared().filtered()


def lessons(run: Run, settings: Train) -> list[tuple[list[int], list[int]]]:
    """`(input_ids, labels)` of each answer, from the very batches that the trainer is given."""
    answers = run.answers(settings.reasoning)
    dataset, found = batch_items(answers, settings), []
    order = list(sampler(dataset, settings))
    for first in range(0, len(order), settings.batch_size):
        chosen = [dataset[number] for number in order[first : first + settings.batch_size]]
        batch = collate_items(chosen, answers, 0, len(run.tokenizer), settings)
        assert len(batch["teacher_ids_NK"]) == int((batch["labels"] != IGNORED).sum())
        if settings.pack_tokens is None:
            found += list(zip(batch["input_ids"].tolist(), batch["labels"].tolist(), strict=True))
        else:
            ends = batch["cu_seq_lens_q"].tolist()
            found += [
                (batch["input_ids"][0, start:end].tolist(), batch["labels"][0, start:end].tolist())
                for start, end in pairwise(ends)
            ]
    assert len(found) == len(answers) > 0
    return found


def learnt(run: Run, labels: list[int]) -> list[str]:
    """The texts that a row's labels spell, one for each run of labels that are not ignored."""
    pieces: list[list[int]] = [[]]
    for label in labels:
        if label != IGNORED:
            pieces[-1].append(label)
        elif pieces[-1]:
            pieces.append([])
    return [run.tokenizer.decode(piece) for piece in pieces if piece]


def test_no_prompt_that_the_teacher_is_given_holds_an_item(run: Run) -> None:
    prompts = run.prompts()
    assert len(prompts) == 6 * NUM + len(LOOK_ALIKES)
    for item, prompt in zip(run.planted, prompts, strict=False):
        rendered = run.tokenizer.decode(prompt["prompt_token_ids"])
        [message] = prompt["messages"]
        for text in (rendered, message["content"]):
            assert item.secret not in text
            assert f"<{item.kind.upper()}>" in text
            assert find(text, Privacy()) == []
        assert dict(prompt["redacted"]) == {item.kind: 1}
    for text, prompt in zip(LOOK_ALIKES, prompts[6 * NUM :], strict=True):
        assert prompt["messages"][0]["content"].endswith(text)
        assert prompt["redacted"] == []
    manifest = run.run_dir.manifest("prepare")["screening"]
    assert manifest["personal"] == dict.fromkeys(KINDS, NUM)
    assert manifest["prompts"]["personal"] == 6 * NUM


def test_every_item_is_found_in_its_answer_and_nothing_else_is(run: Run) -> None:
    kinds = [[span["kind"] for span in decision["masked_spans"]] for decision in run.decisions()]
    assert kinds == [*([item.kind] for item in run.planted), *([] for _ in LOOK_ALIKES)]
    assert all(decision["kept"] for decision in run.decisions())
    assert run.run_dir.manifest("filter")["screening"]["personal"] == dict.fromkeys(KINDS, NUM)


@pytest.mark.parametrize(
    "settings",
    [
        Train(batch_size=7),
        Train(batch_size=3, pack_tokens=2048),
        Train(batch_size=7, positions_frac=0.5),
        Train(batch_size=7, reasoning="mask"),
        Train(batch_size=3, pack_tokens=2048, reasoning="drop"),
        Train(batch_size=7, tail="label"),
    ],
    ids=["padded", "packed", "positions", "reasoning masked", "reasoning dropped", "label"],
)
def test_no_label_that_train_reads_spells_any_part_of_an_item(run: Run, settings: Train) -> None:
    secrets = {item.secret for item in run.planted}
    num_pieces = 0
    for input_ids, labels in lessons(run, settings):
        whole = run.tokenizer.decode(input_ids)
        is_planted = any(secret in whole for secret in secrets)
        for piece in learnt(run, labels):
            num_pieces += 1
            assert not any(secret in piece for secret in secrets)
            if is_planted or settings.positions_frac == 1:  # half a look-alike may look like something else
                assert find(piece, Privacy()) == []
    assert num_pieces > 6 * NUM / 2


def test_all_else_is_learnt(run: Run) -> None:
    """Of each answer what stands before and after the item, but for letters that share a token with it."""
    answers, settings = run.answers(), Train(batch_size=1)
    seen = 0
    for number in range(len(answers)):
        row = answers[number]
        which = run.number_of(row)
        batch = collate_items([{"rows": [number]}], answers, 0, len(run.tokenizer), settings)
        labels = batch["labels"][0].tolist()[len(row["prompt_token_ids"]) :]
        masked = [place for place, label in enumerate(labels) if label == IGNORED]
        if which >= len(run.planted):
            assert masked == []
            continue
        item, seen = run.planted[which], seen + 1
        assert masked == list(range(masked[0], masked[-1] + 1))
        before, after = (
            run.tokenizer.decode(ids) for ids in (row["token_ids"][: masked[0]], row["token_ids"][masked[-1] + 1 :])
        )
        rest = item.after + (YES if which % 2 else "") + run.tokenizer.eos_token
        assert item.before.startswith(before)
        assert rest.endswith(after)
        assert len(item.before) - len(before) + len(rest) - len(after) <= 24
        assert batch["teacher_ids_NK"][:, 0].tolist() == [label for label in labels if label != IGNORED]
    assert seen == 6 * NUM


def test_the_proof_before_training_learns_nothing_of_them_either(run: Run) -> None:
    batch = proof_batch(run.answers(), len(run.tokenizer))
    assert len(batch["token_logprobs_N"]) == len(batch["teacher_ids_NK"]) == int((batch["labels"] != IGNORED).sum())
    for labels in batch["labels"].tolist():
        assert all(find(piece, Privacy()) == [] for piece in learnt(run, labels))


def test_what_is_masked_stays_as_context(run: Run) -> None:
    """Said, not hidden: a later token is predicted from all that the teacher saw."""
    item = run.planted[2 * NUM]
    rows = [row for row in run.answers() if run.number_of(row) == 2 * NUM]
    assert item.secret in run.tokenizer.decode(rows[0]["token_ids"])


def test_the_exported_corpus_has_placeholders_in_their_place(run: Run) -> None:
    import pyarrow.dataset as ds

    folder = corpus.write(run.run_dir)
    rows = ds.dataset(folder / "data", format="parquet").to_table().to_pylist()
    assert len(rows) == 6 * NUM + len(LOOK_ALIKES)
    placed = 0
    for row in rows:
        which = run.number_of(row)
        text = json.dumps(row, ensure_ascii=False)
        if which < len(run.planted):
            item = run.planted[which]
            assert item.secret not in text
            assert json.dumps(item.secret)[1:-1] not in text
            told = row["messages"][-1]
            placed += f"<{item.kind.upper()}>" in (told["content"] + (told["reasoning_content"] or ""))
    assert placed == 6 * NUM
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert f"{6 * NUM} have placeholders; 0 more were left out" in card


def test_what_goes_with_token_ids_leaves_answers_with_items_out(run: Run) -> None:
    import pyarrow.dataset as ds

    folder = corpus.write(run.run_dir, with_logprobs=True)
    rows = ds.dataset(folder / "data", format="parquet").to_table().to_pylist()
    assert [run.number_of(row) - 6 * NUM for row in rows] == list(range(len(LOOK_ALIKES)))
    assert f"0 have placeholders; {6 * NUM} more were left out" in (folder / "README.md").read_text(encoding="utf-8")


def test_the_sample_of_kinds_is_whole() -> None:
    assert [sum(item.kind == kind for item in items()) for kind in KINDS] == [NUM] * 6
