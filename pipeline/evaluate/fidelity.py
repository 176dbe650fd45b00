"""How close a model's next-token distributions are to the teacher's, teacher-forced, over the full vocabulary.

Axes: N answer tokens, V vocabulary, H hidden, M measures.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.forced import CHUNK_TOKENS, ForcedText, answer_states, batches, logprobs

MEASURES = ("forward_kl_nats", "reverse_kl_nats", "top1_agreement_frac", "acceptance_frac", "nll_nats")


class Sums:
    """Per prompt: the sum of each measure over its answer tokens, and their number."""

    def __init__(self) -> None:
        self._place: dict[str, int] = {}
        self._sums: list[npt.NDArray[np.float64]] = []

    def add(self, cluster: str, values_NM: Tensor) -> None:
        place = self._place.setdefault(cluster, len(self._place))
        if place == len(self._sums):
            self._sums.append(np.zeros(len(MEASURES) + 1))
        self._sums[place] += np.append(values_NM.double().sum(dim=0).cpu().numpy(), len(values_NM))

    def of(self, measure: str) -> npt.NDArray[np.float64]:
        """The prompts' sums of one measure, in the order the prompts came."""
        return np.stack(self._sums)[:, MEASURES.index(measure)]

    def num_tokens(self) -> npt.NDArray[np.float64]:
        return np.stack(self._sums)[:, -1]


@torch.no_grad()
def measure(teacher: Any, arms: dict[str, Any], texts: list[ForcedText], batch_tokens: int) -> dict[str, Sums]:
    """Every arm against the teacher on the same texts, one teacher pass; the arms are `transformers` causal LMs."""
    sums = {name: Sums() for name in arms}
    device = next(teacher.parameters()).device
    # models of one family pad the same vocabulary differently; no text has the ids beyond
    vocab_size = min(len(model.get_output_embeddings().weight) for model in (teacher, *arms.values()))
    for batch in batches(texts, batch_tokens):
        teacher_NH, owners = answer_states(teacher, batch, device)
        states = {
            name: teacher_NH if model is teacher else answer_states(model, batch, device)[0]
            for name, model in arms.items()
        }
        labels_N = torch.tensor([token for text in batch for token in text.token_ids], device=device)
        for start in range(0, len(labels_N), CHUNK_TOKENS):
            rows = slice(start, start + CHUNK_TOKENS)
            teacher_NV = logprobs(teacher, teacher_NH[rows], vocab_size)
            for name, model in arms.items():
                values_NM = compare(teacher_NV, logprobs(model, states[name][rows], vocab_size), labels_N[rows])
                _share_out(sums[name], batch, owners[rows], values_NM)
    return sums


def compare(teacher_NV: Tensor, student_NV: Tensor, labels_N: Tensor) -> Tensor:
    """The measures per token, in the order of MEASURES; shape (N, M). Inputs are log-probs, nats.

    Acceptance is Σ min(p, q): the chance that speculative decoding keeps the student's draft
    (Leviathan et al. 2023, arXiv:2211.17192). NLL is the student's on the label.
    """
    p_NV, q_NV = teacher_NV.exp(), student_NV.exp()
    difference_NV = teacher_NV - student_NV
    return torch.stack(
        [
            (p_NV * difference_NV).sum(dim=1),
            -(q_NV * difference_NV).sum(dim=1),
            (teacher_NV.argmax(dim=1) == student_NV.argmax(dim=1)).to(p_NV.dtype),
            torch.minimum(p_NV, q_NV).sum(dim=1).clamp(max=1),
            -student_NV.gather(1, labels_N[:, None]).squeeze(1),
        ],
        dim=1,
    )


def _share_out(sums: Sums, batch: list[ForcedText], owners_N: npt.NDArray[np.int64], values_NM: Tensor) -> None:
    for owner in np.unique(owners_N):
        sums.add(batch[owner].cluster, values_NM[torch.from_numpy(owners_N == owner)])
