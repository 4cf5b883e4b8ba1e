"""The sizes of a GPT-2: parameters and arithmetic, as formulas that need no torch.

In:  a resolved Config and the size of its vocabulary.
Out: counts of numbers and of floating-point operations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

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


# ------------------------------------------------------------------------------------------------ the step's pieces

Kind = Literal["cpu", "accelerator"]

# Sizes of the pieces that a step works in; the step itself and the formulas of memory and time read them here.

LOGITS = 2**24  # the head makes at most so many logits at a time,

CHUNKS = 8  # unless more than so many pieces would be needed

QUERIES = 64  # a CPU's attention takes so many queries at a time

NARROW_BLOCK = 512  # the longest block whose attention weights a CPU keeps in bfloat16, without dropout

ELEMENTS = 2**23  # that Muon orthogonalises at a time: many small matrices in one product, or one large one

ITERATIONS = 5  # of Muon's Newton-Schulz iteration


# ------------------------------------------------------------------------------------------------------ arithmetic


def flops_per_token(config: Config, vocab_size: int) -> float:
    """Arithmetic of one token, forward and backward: 6N + 12 · n_layer · n_embd · block_size.

    N is all parameters but the position embeddings (PaLM's appendix B, as nanoGPT counts it). Recomputing activations
    is not counted, since it trains nothing.
    """
    weights = parameters(config, vocab_size).total - config.block_size * config.n_embd
    return 6 * weights + 12 * config.n_layer * config.n_embd * config.block_size


def flops_per_update(config: Config, kind: Kind) -> float:
    """Arithmetic of the optimizer in a step, where it counts: Muon's matrix products (hfgpt/model/optim.py).

    A block has four matrices of C x C and two of C x 4C. An iteration takes three products, 6C³ and 18C³. On a CPU the
    wide ones are done by their Gram matrices: 8C³ before and after, and five products of C x C in an iteration, but
    three fewer in all.
    """
    wide = 18 * ITERATIONS if kind == "accelerator" else 8 + 2 * (4 * ITERATIONS - 3) + 8
    products = config.n_layer * (4 * 6 * ITERATIONS + 2 * wide)
    return products * config.n_embd**3 if config.optimizer == "muon" else 0
