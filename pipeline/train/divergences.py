"""Divergences between teacher and student over the stored support and its tail: K + 1 buckets a token.

Axes: N tokens, K stored support, V vocabulary, H hidden, B batch, T tokens of a padded row.
"""

import torch
from torch import Tensor


def forward_kl_nats(
    teacher_logprobs_NK: Tensor, teacher_log_tail_N: Tensor, logprobs_NK: Tensor, log_tail_N: Tensor
) -> Tensor:
    """KL(teacher ‖ student) per token, shape (N,), nats: Σ p·(log p − log q) over the support and the tail bucket.

    It includes the teacher's entropy, so 0 is its floor; merging the tail into one bucket can only lower it
    (data-processing inequality). Hinton et al. 2015, arXiv:1503.02531.
    """
    teacher_NC = torch.cat([teacher_logprobs_NK, teacher_log_tail_N[:, None]], dim=1)
    student_NC = torch.cat([logprobs_NK, log_tail_N[:, None]], dim=1)
    p_NC = teacher_NC.exp()
    # A bucket without teacher mass adds 0, whatever the student's log-prob there, −inf included.
    return torch.where(p_NC > 0, p_NC * (teacher_NC - student_NC), 0.0).sum(dim=1)
