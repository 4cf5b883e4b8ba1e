"""The head's chunked loss equals torch's cross entropy, in values and gradients."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from hfgpt.model import head


def leaf(*shape: int) -> Tensor:
    return torch.randn(*shape, requires_grad=True)


@pytest.mark.parametrize("logits", [1, 190, 2**24])
@pytest.mark.parametrize("scale", [1.0, 0.01])
def test_cross_entropy_in_chunks_is_cross_entropy(logits: int, scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "LOGITS", logits)
    torch.manual_seed(0)
    hidden, weight, targets = leaf(50, 8), leaf(11, 8), torch.randint(0, 11, (50,))
    targets[::7] = -100
    ours = head.linear_cross_entropy(hidden, weight, targets, -100)
    theirs = F.cross_entropy(hidden @ weight.T, targets, reduction="sum", ignore_index=-100)
    torch.testing.assert_close(ours, theirs)
    gradients = [torch.autograd.grad(loss * scale, (hidden, weight)) for loss in (ours, theirs)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("logits", [1, 190, 2**24])
def test_the_z_loss_is_in_the_gradients_and_not_in_the_value(logits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "LOGITS", logits)
    torch.manual_seed(0)
    hidden, weight, targets = leaf(50, 8), leaf(11, 8), torch.randint(0, 11, (50,))
    targets[::7] = -100
    ours = head.linear_cross_entropy(hidden, weight, targets, -100, z_loss=0.03)
    scores = hidden @ weight.T
    nll = F.cross_entropy(scores, targets, reduction="sum", ignore_index=-100)
    penalty = scores.logsumexp(1)[targets != -100].square().sum()
    torch.testing.assert_close(ours, nll)
    gradients = [torch.autograd.grad(loss, (hidden, weight)) for loss in (ours, nll + 0.03 * penalty)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("z_loss", [0.0, 0.03])
def test_added_rows_change_nothing(z_loss: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Products are faster with them on a card; three chunks, the last of which is not full."""
    monkeypatch.setattr(head, "LOGITS", 190)
    torch.manual_seed(0)
    hidden, weight, targets = leaf(50, 8), leaf(11, 8), torch.randint(0, 11, (50,))
    targets[::7] = -100
    results = []
    for rows in (0, 53):
        monkeypatch.setattr(head, "rows_to_add", lambda weight, rows=rows: rows)
        loss = head.linear_cross_entropy(hidden, weight, targets, -100, z_loss) / len(targets)
        results.append((loss.detach(), *torch.autograd.grad(loss, (hidden, weight))))
    torch.testing.assert_close(*results, rtol=1e-6, atol=1e-6)


def test_rows_are_added_on_a_card_alone() -> None:
    with FakeTensorMode():
        for device, dtype, rows in (
            ("cuda", torch.bfloat16, 47),  # as FSDP2 hands it over
            ("cuda", torch.float32, 47),
            ("cpu", torch.bfloat16, 0),
        ):
            assert head.rows_to_add(torch.empty(50257, 8, device=device, dtype=dtype)) == rows


def test_the_gradient_of_a_narrow_weight_is_summed_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight chunks: summed in bfloat16, their rounding errors would add up. FSDP2's weight is narrow."""
    monkeypatch.setattr(head, "LOGITS", 1)
    torch.manual_seed(0)
    hidden, targets = torch.randn(512, 32), torch.randint(0, 64, (512,))
    weight = torch.randn(64, 32).bfloat16()

    def gradient(dtype: torch.dtype) -> Tensor:
        leaf = weight.to(dtype, copy=True).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            head.linear_cross_entropy(hidden, leaf, targets, -100).backward()
        assert leaf.grad is not None
        return leaf.grad

    assert torch.equal(gradient(torch.bfloat16), gradient(torch.float32).bfloat16())


def peak(step: Callable[[], Tensor]) -> int:
    """Return the largest number of bytes allocated at one time in a step with its backward pass."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        step().backward()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))


@pytest.mark.filterwarnings("ignore")  # torch warns while it compiles
def test_compiled_it_takes_hardly_more_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """It must not hold the weight's gradients of all chunks at one time, which takes half as much again."""
    monkeypatch.setattr(head, "LOGITS", 1)
    hidden, weight, targets = leaf(256, 128), leaf(4000, 128), torch.randint(0, 4000, (256,))

    def loss() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return head.linear_cross_entropy(hidden, weight, targets, -100)

    compiled = torch.compile(loss, fullgraph=True, dynamic=False)
    compiled().backward()  # compiles it
    hidden.grad = weight.grad = None
    expected = peak(loss)
    hidden.grad = weight.grad = None
    assert peak(compiled) < 1.25 * expected


def test_cross_entropy_of_nothing_is_nothing() -> None:
    hidden, weight = leaf(4, 8), leaf(11, 8)
    loss = head.linear_cross_entropy(hidden, weight, torch.full((4,), -100), -100)
    loss.backward()
    assert float(loss.detach()) == 0 == float(hidden.grad.abs().max()) == float(weight.grad.abs().max())


def test_cross_entropy_without_gradients_computes_none() -> None:
    hidden, weight, targets = leaf(6, 8), leaf(11, 8), torch.randint(0, 11, (6,))
    with torch.no_grad():
        loss = head.linear_cross_entropy(hidden, weight, targets, -100)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, F.cross_entropy(hidden @ weight.T, targets, reduction="sum"))


def test_cross_entropy_under_autocast_is_as_exact_as_torchs() -> None:
    torch.manual_seed(0)
    hidden, weight, targets = leaf(64, 32), leaf(100, 32), torch.randint(0, 100, (64,))
    exact = torch.autograd.grad(F.cross_entropy(hidden @ weight.T, targets, reduction="sum"), (hidden, weight))
    with torch.autocast("cpu", torch.bfloat16):
        theirs = F.cross_entropy((hidden @ weight.T).float(), targets, reduction="sum")
        ours = head.linear_cross_entropy(hidden, weight, targets, -100)
    assert ours.dtype == torch.float32
    assert float(ours.detach()) == pytest.approx(float(theirs.detach()), rel=1e-3)
    for mine, other, true in zip(
        torch.autograd.grad(ours, (hidden, weight)), torch.autograd.grad(theirs, (hidden, weight)), exact, strict=True
    ):
        assert float((mine - true).norm()) < 1.2 * float((other - true).norm())
