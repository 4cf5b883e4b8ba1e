"""Muon on two CPU processes, replicated and in FSDP2's shards; started by torchrun from test_muon.py.

It prints the largest difference after three steps between the weights of one process and those of two, and how many
matrices each process orthogonalised in a step.
"""

import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from hfgpt import config
from hfgpt.model import gpt2 as model
from hfgpt.model import muon, optim

CPU = torch.device("cpu")


def told(line: str) -> None:
    """Print a line in one write, so that the lines of two processes are not mixed."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def network() -> tuple[model.LanguageModel, config.Config]:
    shape = {"n_layer": 3, "n_head": 2, "n_embd": 16, "block_size": 8, "optimizer": "muon", "n_inner": 40}
    recipe = config.build(shape, "run")
    torch.manual_seed(0)
    return model.build(recipe, 30, None), recipe


def stepped(net: nn.Module, recipe: config.Config) -> dict[str, torch.Tensor]:
    """Return the weights after three steps with the same gradients everywhere."""
    optimizer, draw = optim.build(net, recipe, CPU), torch.Generator().manual_seed(1)
    for _ in range(3):
        for parameter in net.parameters():
            gradient = torch.randn(parameter.shape, generator=draw)
            if isinstance(parameter, DTensor):
                gradient = distribute_tensor(gradient, parameter.device_mesh, parameter.placements)
            parameter.grad = gradient
        optimizer.step()
    return {n: p.full_tensor() if isinstance(p, DTensor) else p for n, p in net.named_parameters()}


def main() -> None:
    alone = stepped(*network())  # before a process group exists
    counted = [0]
    orthogonalise = muon.orthogonalise

    def counting(matrices: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        counted[0] += len(matrices)
        return orthogonalise(matrices, dtype)

    muon.orthogonalise = counting
    dist.init_process_group("gloo")
    replicated = stepped(*network())
    steps = counted[0] / 3
    net, recipe = network()
    for block in net.gpt2.transformer.h:
        fully_shard(block, mesh=init_device_mesh("cpu", (2,)))
    fully_shard(net, mesh=init_device_mesh("cpu", (2,)))
    sharded = stepped(net, recipe)
    for name, weights in (("replicated", replicated), ("sharded", sharded)):
        worst = max(float((weights[key] - alone[key]).abs().max()) for key in alone)
        if dist.get_rank() == 0:
            told(f"{name} {worst:.3g}")
    told(f"matrices {steps:.0f}")
    dist.destroy_process_group()


main()
