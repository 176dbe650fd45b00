import torch

from pipeline.train.divergences import forward_kl_nats


def split(logprobs_NV: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    return logprobs_NV[:, :k], logprobs_NV[:, k:].logsumexp(dim=1)


def test_it_is_zero_for_equal_distributions_and_positive_otherwise() -> None:
    torch.manual_seed(0)
    p_NV, q_NV = (torch.randn(6, 11, dtype=torch.float64).log_softmax(dim=1) for _ in range(2))
    assert forward_kl_nats(*split(p_NV, 4), *split(p_NV, 4)).abs().max() < 1e-14
    assert forward_kl_nats(*split(p_NV, 4), *split(q_NV, 4)).min() > 0


def test_it_is_the_teachers_kl_and_not_the_reverse() -> None:
    p_N2 = torch.tensor([[0.9, 0.1]], dtype=torch.float64).log()
    q_N2 = torch.tensor([[0.5, 0.5]], dtype=torch.float64).log()
    kl_nats = forward_kl_nats(*split(p_N2, 1), *split(q_N2, 1))
    torch.testing.assert_close(
        kl_nats, torch.nn.functional.kl_div(q_N2, p_N2, log_target=True, reduction="none").sum(1)
    )


def test_the_tail_bucket_never_exceeds_the_full_vocabulary() -> None:
    torch.manual_seed(1)
    p_NV, q_NV = (3 * torch.randn(50, 30, dtype=torch.float64) for _ in range(2))
    p_NV, q_NV = p_NV.log_softmax(dim=1), q_NV.log_softmax(dim=1)
    full_N = (p_NV.exp() * (p_NV - q_NV)).sum(dim=1)
    bucketed_N = forward_kl_nats(*split(p_NV, 8), *split(q_NV, 8))
    assert (bucketed_N <= full_N + 1e-12).all()


def test_a_teacher_without_tail_costs_nothing_there() -> None:
    support = torch.tensor([[0.25, 0.75]]).log()
    no_tail = torch.tensor([-torch.inf])
    student = torch.tensor([[0.2, 0.6]]).log(), torch.tensor([0.2]).log()
    kl_nats = forward_kl_nats(support, no_tail, *student)
    torch.testing.assert_close(kl_nats, torch.tensor([0.25 * 0.2231436 + 0.75 * 0.2231436]))
