"""What a recipe costs, computed: parameters, tokens, memory, time, money.

In:  a resolved Config, the size of its vocabulary, and a card or a measured step.
Out: plain numbers in SI units (bytes, seconds, FLOP); the tables are made from them in hfgpt/plan.py.

Everything here is a formula: no torch, no measurement, answered at once. hfgpt/simulate.py runs the step itself
and a test holds the two together.
"""

from __future__ import annotations

from dataclasses import dataclass

from hfgpt.config import Config


@dataclass(frozen=True)
class Parameters:
    """Trained numbers of a GPT-2 with biases and a tied head, by where they sit.

    The output head is the token embedding used once more, so it adds nothing.
    """

    token_embedding: int
    position_embedding: int
    attention: int
    mlp: int
    norms: int

    @property
    def total(self) -> int:
        """All of them: equal to GPT2LMHeadModel.num_parameters()."""
        return self.token_embedding + self.position_embedding + self.attention + self.mlp + self.norms


def parameters(config: Config, vocab_size: int) -> Parameters:
    """Count the parameters exactly; the chapter's 12 · n_layer · n_embd² (5.2) is attention and MLP without biases."""
    layers, width = config.n_layer, config.n_embd
    return Parameters(
        token_embedding=vocab_size * width,
        position_embedding=config.block_size * width,
        attention=layers * (4 * width * width + 4 * width),  # query, key, value (3) and output projection, with biases
        mlp=layers * (8 * width * width + 5 * width),  # up to 4 · n_embd and back, with biases
        norms=layers * 4 * width + 2 * width,  # two a block and the last one, gain and bias each
    )
