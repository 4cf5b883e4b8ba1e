"""The decoder gives the logits of Transformers' own forward pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from hfgpt.decoder import Decoder

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
    decoder = Decoder(model, batch=3)
    logits = [decoder(ids[:, :5])] + [decoder(ids[:, [place]]) for place in range(5, 12)]
    with torch.no_grad():
        expected = model.eval()(ids).logits[:, 4:]
    torch.testing.assert_close(torch.stack(logits, 1), expected, rtol=1e-4, atol=1e-4)


def test_a_new_text_knows_nothing_of_the_last_one() -> None:
    decoder = Decoder(GPT2LMHeadModel(GPT2Config(**SHAPE)))
    first = decoder(torch.tensor([[4, 5]]))
    decoder(torch.tensor([[6]]))
    decoder.forget()
    assert torch.equal(decoder(torch.tensor([[4, 5]])), first)


def test_a_full_block_says_so() -> None:
    decoder = Decoder(GPT2LMHeadModel(GPT2Config(**SHAPE)))
    decoder(torch.zeros(1, 11, dtype=torch.int64))
    assert not decoder.full
    decoder(torch.zeros(1, 1, dtype=torch.int64))
    assert decoder.full
    with pytest.raises(ValueError, match="block of 12"):
        decoder(torch.zeros(1, 1, dtype=torch.int64))
