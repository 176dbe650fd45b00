"""What a first student can still learn of each answer: its mean KL from the teacher, on the stored rows.

An answer that the student already gives as the teacher does teaches nothing; one on which it is furthest off is out of
its reach, or noise. Which is which, a share of the run's answers decides. Those that are held out stay, whatever their
KL: an evaluation on what some student found easy would flatter students. One forward pass of the student over all
answers, committed shard by shard beside the run's stages and used again by every filter with the same student.

Axes: N tokens, K stored support, V vocabulary.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.codec import decode
from pipeline.config import Config
from pipeline.console import progress, say
from pipeline.errors import UserError
from pipeline.models import lookup
from pipeline.models.tokenizer import tokens
from pipeline.rows import DecisionRow
from pipeline.run.files import read_committed, text_hash, write_table
from pipeline.run.rundir import RunDir
from pipeline.run.shards import read_shards, shard_paths

if TYPE_CHECKING:
    from torch import Tensor

LEARNT, WILD = "learnt_already", "out_of_reach"
REASONS = (LEARNT, WILD)
FOLDER = "learnability"  # in the run
COLUMNS = ["response_id", "split", "prompt_token_ids", "token_ids", "logprobs"]
SCORES = pa.schema([("response_id", pa.string()), ("split", pa.string()), ("kl_nats", pa.float32())])

Row = dict[str, Any]


def fingerprint(config: Config) -> Row:
    """The first student's weights, by hash; nothing where there is none."""
    name = config.filter.learnability.student
    return {} if name is None else {"filter.learnability.weights": lookup.find(name).weights_hash()}


class LearnabilityLimits:
    """The first student's KL of every answer, and the limits that the run's answers set."""

    def __init__(self, config: Config, run_dir: RunDir, weights_hash: str | None) -> None:
        self._settings = config.filter.learnability
        self.limits: dict[str, float | None] = {"min_kl_nats": None, "max_kl_nats": None}
        self._files: list[Path] = []
        if self._settings.student is not None:
            self._files = _measured(config, run_dir, self._settings.student, weights_hash)
            self._set_limits()

    def decide(self, number: int, decisions: list[DecisionRow]) -> None:
        """Complete the decisions about the answers of shard `number`: scores and reasons."""
        if not self._files:
            return
        low, high = self.limits["min_kl_nats"], self.limits["max_kl_nats"]
        measured = read_committed(self._files[number], SCORES.names).to_pylist()
        for decision, row in zip(decisions, measured, strict=True):
            kl_nats = row["kl_nats"]
            if kl_nats is not None and row["split"] == "train":
                refused = {LEARNT: low is not None and kl_nats < low, WILD: high is not None and kl_nats > high}
                decision["scores"] += [(reason, kl_nats) for reason in REASONS]
                decision["reasons"] += [reason for reason in REASONS if refused[reason]]
                decision["kept"] = not decision["reasons"]

    def _set_limits(self) -> None:
        """Quantiles over the answers to train on."""
        of_train = (
            [row["kl_nats"] for row in read_committed(path, SCORES.names).to_pylist() if row["split"] == "train"]
            for path in self._files
        )
        kl_nats = np.array([value for values in of_train for value in values if value is not None], np.float32)
        least, most = self._settings.learnt_frac, self._settings.wildest_frac
        if len(kl_nats):
            self.limits["min_kl_nats"] = float(np.quantile(kl_nats, least)) if least else None
            self.limits["max_kl_nats"] = float(np.quantile(kl_nats, 1 - most)) if most else None


def _measured(config: Config, run_dir: RunDir, name: str, weights_hash: str | None) -> list[Path]:
    """The files of scores, one for each shard of answers; what is missing is measured."""
    student = _student(run_dir, name)
    key = text_hash(f"{weights_hash} {run_dir.output_hash('generate')}")[:16]
    paths = shard_paths(run_dir, "generate")
    files = [run_dir.path / FOLDER / f"{key}-{number:05d}.parquet" for number in range(len(paths))]
    if all(path.exists() for path in files):
        return files
    from pipeline.models.forward.forced import load

    say(f"filter: what {name} can still learn of each answer (one forward pass)")
    files[0].parent.mkdir(exist_ok=True)
    dtype = lookup.teacher_dtype(run_dir)
    model = load(student.path, dtype, f"filter.learnability.student {name}")
    num_answers = sum(pq.read_metadata(path).num_rows for path in paths)
    with progress("answers") as bar:
        task = bar.add_task("student's KL", total=num_answers, note="")
        for path, shard in zip(files, read_shards(run_dir, "generate", COLUMNS), strict=True):
            if not path.exists():
                rows = [
                    {"response_id": row["response_id"], "split": row["split"], "kl_nats": kl_nats}
                    for row, kl_nats in _scored(model, shard.to_pylist(), config.evaluate.batch_tokens)
                ]
                write_table(pa.Table.from_pylist(rows, schema=SCORES), path)
            bar.update(task, advance=shard.num_rows)
    return files


def _student(run_dir: RunDir, name: str) -> lookup.Model:
    """Raises UserError where it reads other tokens than the teacher, or filter would delete it."""
    student = lookup.find(name)
    if student.path.resolve().is_relative_to(run_dir.path.resolve()):
        raise UserError(
            f"filter.learnability.student {name} belongs to this run, and filtering again discards its training:"
            " copy the run's prepare and generate to another name (cp -r), and filter that"
        )
    if found := tokens.difference(lookup.teacher_of(run_dir).tokenizer(), student.tokenizer()):
        raise UserError(
            f"filter.learnability.student {name}: its tokens differ from the teacher's ({found}); choose a student of"
            " the teacher's family"
        )
    return student


def _scored(model: Any, rows: list[Row], batch_tokens: int) -> Iterator[tuple[Row, float | None]]:
    """Each answer with the model's mean KL from the stored rows, nats a token; None where it has no tokens."""
    from pipeline.models.forward.forced import ForcedResponse, batches

    by_id = {row["response_id"]: row for row in rows if row["token_ids"]}
    texts = [ForcedResponse(name, row["prompt_token_ids"], row["token_ids"]) for name, row in by_id.items()]
    means: dict[str, float] = {}
    for batch in batches(texts, batch_tokens):
        stored = [decode(by_id[text.cluster]["logprobs"]) for text in batch]
        means |= zip((text.cluster for text in batch), _mean_kl_nats(model, batch, stored), strict=True)
    for row in rows:
        yield row, means.get(row["response_id"])


def _mean_kl_nats(model: Any, batch: list[Any], stored: list[tuple[npt.NDArray[Any], ...]]) -> list[float]:
    import torch

    from pipeline.models.forward.forced import CHUNK_TOKENS, answer_states, logprobs
    from pipeline.models.forward.head import head_of

    with torch.no_grad():
        states_NH, owners_N = answer_states(model, batch)
        head = head_of(model)
        K, vocab_size = max(ids.shape[1] for ids, _, _ in stored), len(model.get_output_embeddings().weight)
        missing = [((0, 0), (0, K - ids.shape[1])) for ids, _, _ in stored]  # columns; an id repeats one of its row
        ids_NK = np.concatenate([np.pad(ids, of, "edge") for (ids, _, _), of in zip(stored, missing, strict=True)])
        logprobs_NK = np.concatenate(
            [np.pad(nats, of, constant_values=-np.inf) for (_, nats, _), of in zip(stored, missing, strict=True)]
        )
        tail_N = np.concatenate([tail for _, _, tail in stored])
        kl_N = torch.cat(
            [
                kl_of_rows(
                    logprobs(head, states_NH[rows], vocab_size, torch.device("cpu")),
                    *(torch.from_numpy(part[rows]) for part in (ids_NK, logprobs_NK, tail_N)),
                )
                for rows in (slice(start, start + CHUNK_TOKENS) for start in range(0, len(owners_N), CHUNK_TOKENS))
            ]
        ).numpy()
    return [float(kl_N[owners_N == owner].mean()) for owner in range(len(batch))]


def kl_of_rows(student_NV: "Tensor", ids_NK: "Tensor", logprobs_NK: "Tensor", tail_N: "Tensor") -> "Tensor":
    """KL(stored row ‖ student) over the support and, as one more token, all else: (N,), nats, float64.

    `student_NV` are log-probs; of a stored row's padding, which repeats an id of the row, the log-prob is −inf. Ids
    beyond the student's vocabulary (of a teacher that is padded wider) are part of all else. That of the student is
    summed, not taken from 1, which would lose it.
    """
    import torch

    V = student_NV.shape[1]
    q_NV = torch.nn.functional.pad(student_NV.double(), (0, 1), value=-torch.inf)  # column V: any id beyond
    ids_NK, p_NK = ids_NK.long().clamp(max=V), logprobs_NK.double().exp()
    is_entry_NK = (logprobs_NK > -torch.inf) & (ids_NK < V)
    difference_NK = logprobs_NK.double() - q_NV.gather(1, ids_NK)
    support_N = torch.where(is_entry_NK, p_NK * difference_NK, 0.0).sum(dim=1)
    else_p_N = tail_N.double().exp() + torch.where(ids_NK == V, p_NK, 0.0).sum(dim=1)
    else_q_N = q_NV.scatter(1, ids_NK, -torch.inf).logsumexp(dim=1)
    return support_N + torch.where(else_p_N > 0, else_p_N * (else_p_N.log() - else_q_N), 0.0)
