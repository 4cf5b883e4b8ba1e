"""Muon steps each matrix as torch's Muon does; all other parameters are stepped as by AdamW."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TWO
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from hfgpt import config
from hfgpt.config import Config
from hfgpt.model import gpt2 as model
from hfgpt.model import muon, optim, schedule, sizes


def made(**values: Any) -> Config:
    return config.build(values, "test")


CPU = torch.device("cpu")
MUON = {"optimizer": "muon", "n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": 8, "learning_rate": 1e-3}


def network(**values: Any) -> tuple[model.LanguageModel, Config]:
    """Return a network with the same weights at every call."""
    recipe = made(**{**MUON, **values})
    torch.manual_seed(0)
    return model.build(recipe, vocab_size=11, eos_token_id=None), recipe


def give_gradients(net: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in net.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator) * 0.01


def as_linear(weight: Tensor, name: str) -> list[Tensor]:
    """Return a Conv1D's (inputs, outputs) weight as nn.Linear stores it; query, key and value apart."""
    parts = 3 if "c_attn" in name else 1
    return [part.T.detach().clone() for part in weight.chunk(parts, dim=1)]


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.bfloat16, 0.04), (torch.float32, 1e-4)])
def test_a_step_is_that_of_torchs_muon_on_every_matrix(
    dtype: torch.dtype, rounding: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two steps, so that the average has a history; in bfloat16, as on a GPU, and in float32, as on a CPU.

    torch's own Muon computes in bfloat16 on every device, so in the float32 case its cast is disabled.
    """
    monkeypatch.setattr(optim, "fast_dtype", lambda device: dtype)
    if dtype == torch.float32:
        monkeypatch.setattr(Tensor, "bfloat16", Tensor.clone)
    net, recipe = network(weight_decay=0.3, muon_momentum=0.9, muon_learning_rate=0.05)
    ours = optim.build(net, recipe, CPU)
    weights = {n: p for n, p in net.named_parameters() if p.dim() == 2 and ".h." in n}
    assert len(weights) == 8
    theirs = {n: [nn.Parameter(part) for part in as_linear(p, n)] for n, p in weights.items()}
    torchs = torch.optim.Muon(
        [part for parts in theirs.values() for part in parts],
        lr=0.05, weight_decay=0.3, momentum=0.9, adjust_lr_fn="original",
    )  # fmt: skip
    before = {n: as_linear(p, n) for n, p in weights.items()}
    for step in range(2):
        give_gradients(net, step)
        for name, weight in weights.items():
            assert weight.grad is not None
            for part, gradient in zip(theirs[name], as_linear(weight.grad, name), strict=True):
                part.grad = gradient
        ours.step()
        torchs.step()
    for name, weight in weights.items():
        for new, part, old in zip(as_linear(weight, name), theirs[name], before[name], strict=True):
            moved = part.detach() - old
            assert (new - part.detach()).norm() < rounding * moved.norm(), name


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 16, 64), (2, 64, 16)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_singular_values_come_near_1_and_directions_stay(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    left, _, right = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    values = torch.logspace(0, -2, left.shape[-1])
    result = muon.orthogonalise(17 * left @ torch.diag(values) @ right, dtype)
    assert result.dtype == dtype
    inside = left.mT @ result.float() @ right.mT  # diagonal if the singular vectors are the same
    diagonal = inside.diagonal(dim1=-2, dim2=-1)
    assert 0.6 < diagonal.min() <= diagonal.max() < 1.25
    # A wide matrix in float32 goes through the Gram matrix, whose error is larger: see _iterated.
    limit = {torch.bfloat16: 0.05, torch.float32: 2e-4 if max(shape[1:]) > 2 * min(shape[1:]) else 1e-4}[dtype]
    assert (inside - torch.diag_embed(diagonal)).abs().max() < limit


def test_a_matrix_without_a_gradient_so_far_is_not_moved_to_nan() -> None:
    assert not muon.orthogonalise(torch.zeros(1, 4, 4), torch.float32).any()


def test_embeddings_norms_and_biases_are_stepped_as_by_adamw() -> None:
    nets = {}
    for optimizer in ("adamw", "muon"):
        nets[optimizer], recipe = network(optimizer=optimizer)
        stepper = optim.build(nets[optimizer], recipe, CPU)
        for step in range(3):
            give_gradients(nets[optimizer], step)
            optim.set_learning_rate(stepper, 1e-3 / (step + 1))
            stepper.step()
    theirs = dict(nets["adamw"].named_parameters())
    same = {name for name, parameter in nets["muon"].named_parameters() if torch.equal(parameter, theirs[name])}
    matrices = {f"gpt2.transformer.h.{i}.{name}.weight" for i in (0, 1)
                for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")}  # fmt: skip
    assert same == theirs.keys() - matrices


def test_many_matrices_at_a_time_are_each_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for elements in (1, 10**9):
        monkeypatch.setattr(muon, "ELEMENTS", elements)
        net, recipe = network()
        give_gradients(net, 0)
        optim.build(net, recipe, CPU).step()
        results.append(dict(net.named_parameters()))
    for name, parameter in results[0].items():
        torch.testing.assert_close(parameter, results[1][name], rtol=1e-4, atol=1e-6)


def test_one_schedule_for_both_rates() -> None:
    net, recipe = network(muon_learning_rate=0.03, warmup_iters=10, max_iters=100)
    optimizer = optim.build(net, recipe, CPU)
    assert {group["lr"] for group in optimizer.param_groups} == {1e-3, 0.03}
    for step in (1, 5, 10, 50, 100):
        rate = schedule.learning_rate(step, recipe)
        optim.set_learning_rate(optimizer, rate)
        rates = {"parts" in group: group["lr"] for group in optimizer.param_groups}
        assert rates == {False: rate, True: pytest.approx(30 * rate)}


def test_what_is_frozen_is_left_alone_by_muon_too() -> None:
    net, recipe = network()
    for parameter in net.gpt2.transformer.h[0].parameters():
        parameter.requires_grad_(False)
    members = [p for group in optim.build(net, recipe, CPU).param_groups for p in group["params"]]
    assert set(members) == {p for p in net.parameters() if p.requires_grad}
    assert len(members) == len(set(members))


def test_loss_scaling_leaves_out_an_overflow() -> None:
    net, recipe = network()
    optimizer, scaler = optim.build(net, recipe, CPU), torch.amp.GradScaler("cpu", init_scale=2.0)
    before = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
    for overflow in (True, False):
        scaler.scale(net(torch.zeros(1, 8, dtype=torch.long), torch.ones(1, 8, dtype=torch.long))).backward()
        if overflow:
            net.gpt2.transformer.ln_f.bias.grad.fill_(math.inf)
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        moved = {name for name, parameter in net.named_parameters() if not torch.equal(parameter, before[name])}
        assert bool(moved) != overflow


@pytest.mark.parametrize(
    ("optimizer", "kind", "dtype"),
    [("adamw", "cpu", torch.float32), ("muon", "cpu", torch.float32), ("muon", "accelerator", torch.bfloat16)],
)
@pytest.mark.parametrize("inner", [None, 40, 16, 8])
def test_the_arithmetic_of_an_update_is_the_formula(
    optimizer: str, kind: Any, dtype: torch.dtype, inner: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optim, "fast_dtype", lambda device: dtype)
    net, recipe = network(optimizer=optimizer, n_inner=inner)
    give_gradients(net, 0)
    with FlopCounterMode(display=False) as counter:
        optim.build(net, recipe, CPU).step()
    assert counter.get_total_flops() == sizes.flops_per_update(recipe, kind)


@pytest.mark.parametrize("smallest", [0.1, 1e-3, 1e-7])
@pytest.mark.parametrize("shape", [(2, 32, 128), (2, 128, 32)])
def test_the_way_by_gram_matrices_is_the_iteration(shape: tuple[int, ...], smallest: float) -> None:
    """It holds even if singular values lie far below float32's rounding of the Gram matrix."""
    torch.manual_seed(0)
    left, _, right = torch.linalg.svd(torch.randn(shape, dtype=torch.float64), full_matrices=False)
    matrices = left @ torch.diag(torch.logspace(0, math.log10(smallest), 32, dtype=torch.float64)) @ right
    expected = muon.orthogonalise(matrices, torch.float64)  # step by step
    result = muon.orthogonalise(matrices.float(), torch.float32)
    assert (result.double() - expected).norm() < 5e-4 * expected.norm()


def test_the_dtype_is_the_devices_fast_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert muon.fast_dtype(CPU) == torch.float32
    assert muon.fast_dtype(torch.device("mps")) == torch.float32
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for has, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, has=has: has)
        assert muon.fast_dtype(torch.device("cuda")) == dtype


@pytest.mark.e2e
def test_two_processes_share_the_work_and_step_as_one_does(run_script: Any) -> None:
    """Replicated as under DDP, and in FSDP2's shards; each process takes about 9 of the 18 matrices."""
    done = run_script(Path(__file__).parent / "muon_processes.py", launch=TWO)
    assert done.returncode == 0, done.stderr
    told = [line.split() for line in done.stdout.splitlines()]
    assert all(float(value) < 1e-5 for name, value in told if name in ("replicated", "sharded")), told
    assert sum(float(value) for name, value in told if name == "matrices") == 18
