"""A run whose prompts and answers hold planted personal data."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from support.planted_personal import LOOK_ALIKES, items

from pipeline import codec, prepare
from pipeline import filter as filter_stage
from pipeline.config import Config, Train, validate
from pipeline.records import RESPONSES
from pipeline.run.rundir import RunDir
from pipeline.train.batches import collate_items, sampler
from pipeline.train.batches import items as batch_items
from pipeline.train.examples import TrainingExamples, kept_answers
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

    def answers(self, how: str = "keep") -> TrainingExamples:
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


def examples(run: Run, settings: Train) -> list[tuple[list[int], list[int]]]:
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
