"""Dropout and attention compute what torch's operators compute, in values and gradients."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hfgpt.model import kernels


def leaf(*shape: int) -> Tensor:
    return torch.randn(*shape, requires_grad=True)


# ------------------------------------------------------------------------------------------------------------ dropout


def test_dropout_keeps_the_share_it_should_and_its_scale() -> None:
    torch.manual_seed(0)
    x = torch.ones(1000, 1000)
    y = kernels.Dropout(0.2)(x)
    assert torch.equal(y.unique(), torch.tensor([0.0, 1.25]))
    assert float((y > 0).float().mean()) == pytest.approx(0.8, abs=4 * math.sqrt(0.16 / 1e6))


def test_dropout_draws_each_element_by_itself() -> None:
    """Four elements share a 64-bit draw; no two elements of a row or of neighbouring rows may be correlated."""
    torch.manual_seed(0)
    kept = kernels.keep_mask(torch.Size([200_000, 8]), 0.5).float() - 0.5
    correlation = kept.T @ kept / len(kept) * 4
    assert float((correlation - torch.eye(8)).abs().max()) < 5 / math.sqrt(len(kept))
    assert float((kept[1:] * kept[:-1]).mean(0).abs().max()) * 4 < 5 / math.sqrt(len(kept))


def test_random_bits_are_splitmix64s(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference implementation in C gives these first numbers for the seed 1234567."""
    monkeypatch.setattr(Tensor, "random_", lambda tensor, *_: tensor.fill_(1234567))
    assert [number % 2**64 for number in kernels.random_bits(3).tolist()] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
    ]


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5])
def test_dropouts_gradient_has_the_forward_passs_mask(p: float) -> None:
    torch.manual_seed(0)
    x = leaf(33, 7)
    y = kernels.Dropout(p)(x)
    y.sum().backward()
    assert torch.equal(x.grad, torch.where(y == 0, 0.0, 1 / (1 - p)))


def test_dropout_repeats_with_the_seed_and_goes_on_with_the_state() -> None:
    dropout, x = kernels.Dropout(0.3), torch.ones(50)
    torch.manual_seed(7)
    first = dropout(x)
    state = torch.get_rng_state()
    second = dropout(x)
    torch.set_rng_state(state)
    assert torch.equal(dropout(x), second)
    torch.manual_seed(7)
    assert torch.equal(dropout(x), first)
    assert not torch.equal(first, second)


def test_dropout_leaves_evaluation_alone() -> None:
    x = torch.randn(5, 5)
    assert torch.equal(kernels.Dropout(0.5).eval()(x), x)
    assert torch.equal(kernels.Dropout(1.0)(x), torch.zeros(5, 5))


# ---------------------------------------------------------------------------------------------------------- attention


def dense(q: Tensor, k: Tensor, v: Tensor, p: float, look: Tensor | None = None) -> Tensor:
    """Compute attention with whole matrices and the masks that the kernel draws."""
    batch, heads, time, width = q.shape
    kept = torch.ones(batch * heads, time, time, dtype=torch.bool)
    for start in range(0, time, kernels.QUERIES) if p else ():
        end = min(start + kernels.QUERIES, time)
        kept[:, start:end, :end] = kernels.keep_mask(torch.Size([batch * heads, end - start, end]), p)
    look = torch.ones(time, time).tril().bool() if look is None else look
    scores = (q @ k.mT / math.sqrt(width)).masked_fill(~look, -math.inf)
    return scores.softmax(-1) * kept.view(batch, heads, time, time) / (1 - p) @ v


@pytest.mark.parametrize("time", [1, 5, 64, 65, 150])
def test_attention_with_dropout_is_attention_with_dropout(time: int) -> None:
    torch.manual_seed(1)
    qkv = leaf(3, 2, 3, time, 16)
    torch.manual_seed(2)
    ours, _ = kernels.attention(nn.Module(), *qkv, None, dropout=0.25)
    upstream = torch.randn_like(ours)
    (ours_gradient,) = torch.autograd.grad(ours, qkv, upstream)
    torch.manual_seed(2)
    theirs = dense(*qkv, 0.25).transpose(1, 2)
    (gradient,) = torch.autograd.grad(theirs, qkv, upstream)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours_gradient, gradient, rtol=1e-4, atol=1e-5)


def test_attention_stays_inside_its_mask() -> None:
    """Two documents of 40 and 60 tokens side by side: the same result as for each alone."""
    qkv, weights = torch.randn(3, 2, 2, 100, 8), torch.randn(2, 100, 2, 8)
    document = (torch.arange(100) >= 40).long()
    mask = (document[:, None] == document[None, :]).tril().expand(2, 1, 100, 100)
    leafs = [qkv.clone().requires_grad_() for _ in range(2)]
    torch.manual_seed(0)
    both, _ = kernels.attention(nn.Module(), *leafs[0], mask, dropout=1e-9)
    alone = [kernels.attention(nn.Module(), *part, None, dropout=1e-9)[0] for part in leafs[1].split([40, 60], 3)]
    torch.testing.assert_close(both, torch.cat(alone, 1))
    (both * weights).sum().backward()
    (torch.cat(alone, 1) * weights).sum().backward()
    torch.testing.assert_close(leafs[0].grad, leafs[1].grad)


def test_attentions_dropout_has_the_mean_of_attention_without() -> None:
    torch.manual_seed(0)
    qkv = torch.randn(3, 1, 2, 70, 8)
    mean = torch.stack([kernels.attention(nn.Module(), *qkv, None, dropout=0.2)[0] for _ in range(2000)]).mean(0)
    exact = F.scaled_dot_product_attention(*qkv, is_causal=True).transpose(1, 2)
    assert float((mean - exact).abs().max()) < 0.1
    assert float((mean - exact).abs().mean()) < 0.01


def test_attention_never_looks_ahead() -> None:
    qkv = leaf(3, 1, 1, 100, 8)
    torch.manual_seed(0)
    kernels.attention(nn.Module(), *qkv, None, dropout=0.1)[0][:, :80].sum().backward()
    assert float(qkv.grad[:, :, :, 80:].abs().max()) == 0 < float(qkv.grad[:, :, :, :80].abs().max())


@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("p", [0.0, 0.25])
def test_attention_in_bfloat16_is_as_exact_as_torchs_products(p: float, documents: bool) -> None:
    """The error may be a fifth larger than that of whole matrices in bfloat16, both against float64."""
    torch.manual_seed(1)
    values, upstream = torch.randn(3, 2, 3, 150, 16), torch.randn(2, 150, 3, 16)
    start = (torch.arange(150) // 50 if documents else torch.zeros(150)).long()
    look = (start[:, None] == start[None, :]).tril().expand(2, 1, 150, 150)

    def of(dtype: torch.dtype, attend: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        torch.manual_seed(2)
        qkv = values.to(dtype).requires_grad_()
        out = attend(qkv)
        return out, torch.autograd.grad(out, qkv, upstream.to(dtype))[0]

    narrow = torch.bfloat16
    ours = of(narrow, lambda x: kernels.attention(nn.Module(), *x, look if documents else None, dropout=p)[0])
    whole = of(narrow, lambda x: dense(*x, p, look).transpose(1, 2))
    exact = of(torch.float64, lambda x: dense(*x, p, look).transpose(1, 2))
    for mine, other, true in zip(ours, whole, exact, strict=True):
        assert mine.dtype == narrow
        assert float((mine - true).detach().norm()) < 1.2 * float((other - true).detach().norm())


def test_attention_keeps_the_narrow_type() -> None:
    qkv = torch.randn(3, 1, 2, 30, 8).bfloat16().requires_grad_()
    out, _ = kernels.attention(nn.Module(), *qkv, None, dropout=0.1)
    out.sum().backward()
    assert (out.dtype, qkv.grad.dtype) == (torch.bfloat16, torch.bfloat16)
