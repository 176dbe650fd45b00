"""How close a model's next-token distributions are to the teacher's, teacher-forced, over the full vocabulary.

With p the teacher's distribution after a context and q the arm's, each measure is a mean over the tokens of the texts:

- `forward_kl_nats` Σ p ln(p/q), `reverse_kl_nats` Σ q ln(q/p)
- `js_divergence_nats` the mean of both distributions' KL to their average, at most ln 2 (Lin 1991, IEEE TIT 37(1))
- `top1_agreement_frac` same first choice; `top5_overlap_frac` share of the teacher's first five among the arm's
- `acceptance_frac` Σ min(p, q): the chance that speculative decoding keeps the arm's draft
  (Leviathan et al. 2023, arXiv:2211.17192)
- `nll_nats` of the text's own token, −ln q
- `brier_score`, `confidence_frac`, `accuracy_frac`: see pipeline/evaluate/fidelity/calibration.py

Axes: N answer tokens, V vocabulary, H hidden, M measures, P prompts, B buckets.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.evaluate.fidelity.calibration import Bins
from pipeline.models.forward.forced import ForcedResponse, answer_states, batches, logprobs
from pipeline.models.forward.head import head_of, input_device
from pipeline.run import metrics
from pipeline.statistics import FloatVector
from pipeline.statistics.per_prompt import FloatMatrix, PerPrompt

MEASURES = (
    metrics.FORWARD_KL_NATS,
    metrics.REVERSE_KL_NATS,
    metrics.JS_DIVERGENCE_NATS,
    metrics.TOP1_AGREEMENT_FRAC,
    metrics.TOP5_OVERLAP_FRAC,
    metrics.ACCEPTANCE_FRAC,
    metrics.NLL_NATS,
    metrics.BRIER_SCORE,
    metrics.CONFIDENCE_FRAC,
    metrics.ACCURACY_FRAC,
)
# What tokens are told apart by: the buckets' names, and where each begins.
BUCKETS = {
    "position": {"1-8": 1, "9-32": 9, "33-128": 33, "129+": 129},  # of the token in its answer, from 1
    "entropy": {"0-0.1": 0, "0.1-0.5": 0.1, "0.5-1": 0.5, "1-2": 1, "2+": 2},  # of the teacher's distribution, nats
    "length": {"1-32": 1, "33-128": 33, "129-512": 129, "513+": 513},  # of the whole answer, tokens
}
CHUNK_TOKENS = 128  # whose vocabulary log-probs are held at once, of each model: enough for the matrix product
# Entries of V-wide rows that are compared at once: what a core's cache holds. 512 rows at once took five times as long.
CPU_BLOCK_ENTRIES = 2**18

Bucket = tuple[str, str]  # (dimension, name)
ALL: Bucket = ("", "")  # of every token


class Sums:
    """Per prompt: the sum of each measure over its answer tokens, and their number; for all tokens and by bucket."""

    def __init__(self) -> None:
        self._of: dict[Bucket, PerPrompt] = {ALL: PerPrompt(len(MEASURES) + 1)}
        self.bins = Bins()
        self.num_texts = 0

    def add(self, text: ForcedResponse, values_NM: FloatMatrix, member_BN: FloatMatrix, buckets: list[Bucket]) -> None:
        """A text's tokens; `member_BN` is 1 where a token is of a bucket."""
        counted_NM = np.column_stack([values_NM, np.ones(len(values_NM))])
        for bucket, sums_M in zip(buckets, member_BN @ counted_NM, strict=True):
            if bucket not in self._of:
                self._of[bucket] = PerPrompt(len(sums_M))
            self._of[bucket].add(text.cluster, sums_M)
        confidence_N, accuracy_N = (
            values_NM[:, MEASURES.index(name)] for name in (metrics.CONFIDENCE_FRAC, metrics.ACCURACY_FRAC)
        )
        self.bins.add(text.cluster, confidence_N, accuracy_N)
        self.num_texts += 1

    def of(self, measure: str, bucket: Bucket = ALL) -> FloatVector:
        """Sums of one measure by prompt, in the order the prompts came: of those that have tokens in the bucket."""
        return self._of[bucket].sums()[:, MEASURES.index(measure)]

    def num_tokens(self, bucket: Bucket = ALL) -> FloatVector:
        return self._of[bucket].sums()[:, -1]

    def prompts(self) -> list[str]:
        return self._of[ALL].prompts()

    def buckets(self) -> list[Bucket]:
        """Those with tokens, but for ALL: dimensions as they came, their buckets from the lowest on."""
        found = [bucket for bucket in self._of if bucket != ALL]
        dimensions = list(dict.fromkeys(dimension for dimension, _ in found))
        return sorted(found, key=lambda bucket: (dimensions.index(bucket[0]), _place(bucket), bucket[1]))


@dataclass(frozen=True)
class Reference:
    """The teacher's side of every comparison, computed once for all arms."""

    logprobs_NV: Tensor
    probs_NV: Tensor
    entropy_N: Tensor  # nats
    purity_N: Tensor  # Σ p²
    first_N5: Tensor  # ids of the likeliest tokens, best first

    @classmethod
    def of(cls, logprobs_NV: Tensor) -> "Reference":
        probs_NV = logprobs_NV.exp()
        entropy_N = -(probs_NV * logprobs_NV).sum(dim=1)
        return cls(logprobs_NV, probs_NV, entropy_N, probs_NV.square().sum(dim=1), _first(logprobs_NV))


@torch.no_grad()
def measure(teacher: Any, arms: dict[str, Any], texts: Iterable[ForcedResponse], batch_tokens: int) -> dict[str, Sums]:
    """Every arm against the teacher on the same texts, one teacher pass; the arms are `transformers` causal LMs.

    Memory does not grow with the number of texts, but for some hundred sums a prompt.
    """
    sums = {name: Sums() for name in arms}
    # models of one family pad the same vocabulary differently; no text has the ids beyond
    vocab_size = min(len(model.get_output_embeddings().weight) for model in (teacher, *arms.values()))
    for batch in batches(texts, batch_tokens):
        values, entropy_N = _values(teacher, arms, batch, vocab_size)
        ends = np.cumsum([len(text.token_ids) for text in batch])
        for text, end in zip(batch, ends, strict=True):
            rows = slice(end - len(text.token_ids), end)
            buckets, member_BN = membership(text, entropy_N[rows])
            for name in arms:
                sums[name].add(text, values[name][rows], member_BN, buckets)
    return sums


def compare(teacher: Reference, student_NV: Tensor, labels_N: Tensor) -> Tensor:
    """The measures per token, in the order of MEASURES; shape (N, M). `student_NV` are log-probs, nats."""
    p_NV, q_NV = teacher.probs_NV, student_NV.exp()
    difference_NV = teacher.logprobs_NV - student_NV
    # log of the average of p and q; where both vanish it has no weight, and must be finite
    middle_NV = (p_NV + q_NV).mul_(0.5).clamp_(min=torch.finfo(q_NV.dtype).tiny).log_()
    js_N = (p_NV * (teacher.logprobs_NV - middle_NV)).sum(dim=1) + (q_NV * (student_NV - middle_NV)).sum(dim=1)
    first_N5 = _first(student_NV)
    top_N1 = first_N5[:, :1]
    overlap_N = (teacher.first_N5[:, :, None] == first_N5[:, None, :]).sum(dim=(1, 2))
    return torch.stack(
        [
            (p_NV * difference_NV).sum(dim=1),
            -(q_NV * difference_NV).sum(dim=1),
            0.5 * js_N,
            (teacher.first_N5[:, 0] == top_N1[:, 0]).to(p_NV.dtype),
            overlap_N / first_N5.shape[1],
            torch.minimum(p_NV, q_NV).sum(dim=1).clamp(max=1),
            -student_NV.gather(1, labels_N[:, None]).squeeze(1),
            (q_NV - p_NV).square_().sum(dim=1) + 1 - teacher.purity_N,  # Σ q² − 2 Σ p q + 1
            q_NV.gather(1, top_N1).squeeze(1),
            p_NV.gather(1, top_N1).squeeze(1),
        ],
        dim=1,
    )


def membership(text: ForcedResponse, entropy_N: FloatVector) -> tuple[list[Bucket], FloatMatrix]:
    """The buckets that an answer's tokens are in, and which: (B, N) of ones and zeros."""
    num = len(text.token_ids)
    values = {"position": np.arange(1, num + 1), "entropy": entropy_N, "length": np.full(num, num)}
    buckets, members = [ALL], [np.ones(num)]
    for dimension, starts in BUCKETS.items():
        places_N = np.searchsorted(list(starts.values()), values[dimension], side="right") - 1
        places_N = places_N.clip(min=0)  # an entropy of 0 may come out as −1e-9
        for place in np.unique(places_N):
            buckets.append((dimension, list(starts)[place]))
            members.append((places_N == place).astype(np.float64))
    buckets += text.groups.items()
    return buckets, np.stack([*members, *[np.ones(num)] * len(text.groups)])


def _values(
    teacher: Any, arms: dict[str, Any], batch: list[ForcedResponse], vocab_size: int
) -> tuple[dict[str, FloatMatrix], FloatVector]:
    """Each arm's measures of the batch's answer tokens, (N, M), and the teacher's entropies, (N,), nats."""
    device = input_device(teacher)
    teacher_NH, _ = answer_states(teacher, batch)
    states = {name: teacher_NH if model is teacher else answer_states(model, batch)[0] for name, model in arms.items()}
    teacher_head, heads = head_of(teacher), {name: head_of(model) for name, model in arms.items()}
    labels_N = torch.tensor([token for text in batch for token in text.token_ids], device=device)
    values: dict[str, list[Tensor]] = {name: [] for name in arms}
    entropies: list[Tensor] = []
    for start in range(0, len(labels_N), CHUNK_TOKENS):
        rows = slice(start, start + CHUNK_TOKENS)
        teacher_NV = logprobs(teacher_head, teacher_NH[rows], vocab_size, device)
        of_arms = {
            name: teacher_NV if model is teacher else logprobs(heads[name], states[name][rows], vocab_size, device)
            for name, model in arms.items()
        }
        for block in _blocks(teacher_NV):
            reference = Reference.of(teacher_NV[block])
            entropies.append(reference.entropy_N)
            for name, student_NV in of_arms.items():
                values[name].append(compare(reference, student_NV[block], labels_N[rows][block]))
    return {name: torch.cat(of).double().cpu().numpy() for name, of in values.items()}, _numbers(entropies)


def _blocks(logprobs_NV: Tensor) -> Iterator[slice]:
    """Rows that are compared at once: few on a CPU, whose cache is small, all on a GPU."""
    num, vocab_size = logprobs_NV.shape
    size = max(1, CPU_BLOCK_ENTRIES // vocab_size) if logprobs_NV.device.type == "cpu" else num
    return (slice(start, start + size) for start in range(0, num, size))


def _first(logprobs_NV: Tensor) -> Tensor:
    return logprobs_NV.topk(min(5, logprobs_NV.shape[1]), dim=1).indices


def _numbers(parts: list[Tensor]) -> FloatVector:
    return torch.cat(parts).double().cpu().numpy()


def _place(bucket: Bucket) -> int:
    dimension, name = bucket
    return list(BUCKETS[dimension]).index(name) if dimension in BUCKETS else 0
