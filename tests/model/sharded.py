"""A step of the model in FSDP2's shards, on two CPU processes; started by torchrun from test_model.py.

On a CPU, Accelerate silently replaces FSDP by DDP. So this script calls torch's own function and shards as
accelerate_configs/fsdp2.yaml does: each block, then the rest. It prints the difference to the same step of the whole
model.
"""

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from hfgpt import config
from hfgpt.model import gpt2 as model


def main() -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    recipe = config.build({"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 8, "dropout": 0.0}, "run")
    torch.manual_seed(0)
    whole = model.build(recipe, 30, None)
    torch.manual_seed(0)
    parts = model.build(recipe, 30, None)
    mesh = init_device_mesh("cpu", (2,))
    for block in parts.gpt2.transformer.h:
        fully_shard(block, mesh=mesh)
    fully_shard(parts, mesh=mesh)
    tokens = torch.randint(0, 30, (4, 9))
    whole(tokens[:, :-1], tokens[:, 1:]).backward()
    mine = tokens[2 * rank : 2 * rank + 2]
    parts(mine[:, :-1], mine[:, 1:]).backward()  # FSDP averages over the processes
    worst = 0.0
    for (name, expected), (_, sharded) in zip(whole.named_parameters(), parts.named_parameters(), strict=True):
        assert isinstance(sharded.grad, DTensor), f"{name} is not in shards"
        worst = max(worst, float((2 * sharded.grad.full_tensor() - expected.grad).abs().max()))
    if rank == 0:
        print(f"largest difference {worst:.3g}")
    dist.destroy_process_group()


main()
