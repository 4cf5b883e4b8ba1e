"""The decoder computes the logits of Transformers' own forward pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from hfgpt.inference import decoder
from hfgpt.inference.decoder import Decoder

SHAPE: dict[str, Any] = {
    "n_layer": 3, "n_head": 2, "n_embd": 16, "n_positions": 12, "vocab_size": 30, "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"activation_function": "gelu"},
        {"activation_function": "gelu_pytorch_tanh", "tie_word_embeddings": False},
        {"scale_attn_weights": False, "n_inner": 24},
        {"scale_attn_by_inverse_layer_idx": True, "layer_norm_epsilon": 1e-2},
    ],
)
def test_every_position_is_as_transformers_has_it(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(**SHAPE, **options, initializer_range=0.5))  # in training mode, with dropout
    ids = torch.randint(0, 30, (3, 12))
    reader = Decoder(model, batch=3)
    logits = [reader(ids[:, :5])] + [reader(ids[:, [place]]) for place in range(5, 12)]
    with torch.no_grad():
        expected = model.eval()(ids).logits[:, 4:]
    torch.testing.assert_close(torch.stack(logits, 1), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("batch", [1, 3, decoder.FEW + 1])
def test_matrices_in_parts_are_the_same_matrices(monkeypatch: pytest.MonkeyPatch, batch: int) -> None:
    """Split matrices as for large models, here for a small one: widths divisible by two, a vocabulary that is not."""
    monkeypatch.setattr(decoder, "LARGE", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(decoder.hardware, "intel_cpu", lambda: False)
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(**SHAPE | {"vocab_size": 31}, initializer_range=0.5)).eval()
    ids = torch.randint(0, 30, (batch, 7))
    reader = Decoder(model, batch)
    logits = [reader(ids[:, :3])] + [reader(ids[:, [place]]) for place in range(3, 7)]
    with torch.no_grad():
        expected = model(ids).logits[:, 2:]
    torch.testing.assert_close(torch.stack(logits, 1), expected, rtol=1e-4, atol=1e-4)


def test_a_new_text_knows_nothing_of_the_last_one() -> None:
    reader = Decoder(GPT2LMHeadModel(GPT2Config(**SHAPE)))
    first = reader(torch.tensor([[4, 5]]))
    reader(torch.tensor([[6]]))
    reader.forget()
    assert torch.equal(reader(torch.tensor([[4, 5]])), first)


def test_a_full_block_says_so() -> None:
    reader = Decoder(GPT2LMHeadModel(GPT2Config(**SHAPE)))
    reader(torch.zeros(1, 11, dtype=torch.int64))
    assert not reader.full
    reader(torch.zeros(1, 1, dtype=torch.int64))
    assert reader.full
    with pytest.raises(ValueError, match="block of 12"):
        reader(torch.zeros(1, 1, dtype=torch.int64))
