"""Without a judge: which of two answers the teacher finds likelier. It prefers its own kind, so this is not a win-rate.

A text is likely to a model where the model would have written it: answers in the teacher's own manner, short and
repetitive ones too, come out ahead whether or not they are right. It says how much more like the teacher one student
writes than another, in its own answers, where fidelity is measured on the teacher's.

Axes: N answer tokens, V vocabulary.
"""

from typing import Any

import numpy as np
import torch

from pipeline.evaluate.fidelity.forced_responses import of_row
from pipeline.models.forward.forced import CHUNK_TOKENS, ForcedResponse, answer_states, batches, logprobs
from pipeline.models.forward.head import head_of, input_device
from pipeline.rows import SampleRow
from pipeline.statistics import Figure, FloatVector, ratio

Rows = list[SampleRow]
LABEL = "self_preference"


@torch.no_grad()
def mean_logprobs_nats(teacher: Any, texts: list[ForcedResponse], batch_tokens: int) -> FloatVector:
    """The teacher's mean log-prob per token of each text, in the order of the texts; one that is empty is NaN."""
    device, vocab_size = input_device(teacher), len(teacher.get_output_embeddings().weight)
    sums, places = np.zeros(len(texts)), {id(text): place for place, text in enumerate(texts)}
    for batch in batches([text for text in texts if text.token_ids], batch_tokens):
        hidden_NH, owners = answer_states(teacher, batch)
        head = head_of(teacher)
        labels_N = torch.tensor([token for text in batch for token in text.token_ids], device=device)
        owner_places = np.array([places[id(text)] for text in batch])[owners]
        for start in range(0, len(labels_N), CHUNK_TOKENS):
            chunk = slice(start, start + CHUNK_TOKENS)
            logprobs_NV = logprobs(head, hidden_NH[chunk], vocab_size, device)
            given_N = logprobs_NV.gather(1, labels_N[chunk, None]).squeeze(1)
            np.add.at(sums, owner_places[chunk], given_N.double().cpu().numpy())
    lengths = np.array([len(text.token_ids) for text in texts], dtype=np.float64)
    return np.divide(sums, lengths, out=np.full(len(texts), np.nan), where=lengths > 0)


def self_preference(
    teacher: Any, rows: Rows, rivals: tuple[str, ...], batch_tokens: int, resamples: int, seed: int
) -> dict[str, dict[str, Figure]]:
    """How often the teacher finds the student's answer likelier than a rival's, per token, and by how much.

    `{rival: {"self_preference_frac": share of turns, ties half, "self_preference_nats": mean difference per token}}`,
    with intervals over items. `rows` are as records.SAMPLES has them; compared are the turns that both answered given
    the same prompt (a later turn has each arm's own history before it). A rival without such a turn is left out.
    """
    vocab_size = len(teacher.get_output_embeddings().weight)
    given = {
        (row["arm"], row["item_id"], row["turn"]): of_row(row, vocab_size)
        for row in rows
        if row["arm"] in ("student", *rivals)
    }
    texts = {place: text for place, text in given.items() if text.token_ids}
    means = dict(zip(texts, mean_logprobs_nats(teacher, list(texts.values()), batch_tokens), strict=True))
    found = {}
    for rival in rivals:
        by_item: dict[str, list[float]] = {}
        for (arm, item, turn), text in texts.items():
            other = (rival, item, turn)
            if arm == "student" and other in texts and texts[other].prompt_token_ids == text.prompt_token_ids:
                by_item.setdefault(text.cluster, []).append(float(means[arm, item, turn] - means[other]))
        if by_item:
            found[rival] = _figures(list(by_item.values()), resamples, seed)
    return found


def _figures(differences: list[list[float]], resamples: int, seed: int) -> dict[str, Figure]:
    counts = np.array([len(each) for each in differences], dtype=np.float64)
    preferred = np.array([sum(0.5 * (1 + np.sign(d)) for d in each) for each in differences], dtype=np.float64)
    nats = np.array([sum(each) for each in differences], dtype=np.float64)
    return {
        f"{LABEL}_frac": ratio(preferred, counts, resamples, seed),
        f"{LABEL}_nats": ratio(nats, counts, resamples, seed),
    }
