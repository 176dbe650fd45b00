"""The loss of a model that FSDP2 keeps in parts, each process with half of the rows; started by torchrun."""

import sys

import torch
from support.listed import VOCAB, captured, settings, tiny
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from trl.models.utils import _ForwardRedirection

from pipeline.train.batches import collate
from pipeline.train.losses import token_losses


def main() -> None:
    distributed.init_process_group("gloo")
    rank, world = distributed.get_rank(), distributed.get_world_size()
    rows, asked = list(captured(tiny().eval(), 8)), settings(head_chunk_tokens=7)
    batch = collate(rows[rank::world], 0, VOCAB, asked)
    model = tiny(1)
    mesh = init_device_mesh("cpu", (world,))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    losses = _ForwardRedirection()(model, model, token_losses, model, batch, asked)
    num = torch.tensor(sum(len(row["token_ids"]) for row in rows))
    loss = (losses.ce_N + losses.kl_N).sum() / num * world  # gradients are averaged over processes
    loss.backward()
    distributed.all_reduce(total := loss.detach() / world)
    gradients = {name: p.grad.full_tensor() for name, p in model.named_parameters() if p.grad is not None}
    if rank == 0:
        torch.save(
            {"loss": total, "gradients": gradients, "is_sharded": hasattr(model.lm_head.weight, "placements")},
            sys.argv[1],
        )
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
