"""The sizes of a GPT-2: parameters and arithmetic, as formulas without torch.

In:  a resolved Config, or a model's config.json, and the vocabulary size.
Out: counts of numbers and of floating-point operations.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from hfgpt.config import Config

COMPILING = 180.0  # seconds of an eager run on a card above which a minute of compiling pays off

# Seconds for the host to launch one block's kernels, forward and backward, in eager mode; the card waits for it.
HOST_SECONDS_PER_BLOCK = 0.8e-3

EAGER = 0.25  # share of a card's peak that an eager step reaches, approximately


@dataclass(frozen=True)
class Parameters:
    """Trained parameters of a GPT-2 with biases, by component.

    A tied head reuses the token embedding, and counts 0.
    """

    token_embedding: int
    position_embedding: int
    attention: int
    mlp: int
    norms: int
    head: int = 0

    @property
    def total(self) -> int:
        """The total, equal to GPT2LMHeadModel.num_parameters()."""
        return self.token_embedding + self.position_embedding + self.attention + self.mlp + self.norms + self.head


def parameters(config: Config, vocab_size: int) -> Parameters:
    """Count the parameters exactly; the chapter's 12 · n_layer · n_embd² (5.2) is attention and MLP without biases."""
    layers, width, inner = config.n_layer, config.n_embd, mlp_width(config)
    return Parameters(
        token_embedding=vocab_size * width,
        position_embedding=config.block_size * width,
        attention=layers * (4 * width * width + 4 * width),  # query, key, value (3) and output projection, with biases
        mlp=layers * (2 * width * inner + inner + width),  # up to n_inner and back, with biases
        norms=layers * 4 * width + 2 * width,  # two in each block and the final one, each with gain and bias
        head=0 if config.tie_word_embeddings else vocab_size * width,
    )


def mlp_width(config: Config) -> int:
    """Return the channels inside an MLP: n_inner, by default 4 · n_embd."""
    return config.n_inner or 4 * config.n_embd


def exported_parameters(saved: Mapping[str, Any]) -> Parameters:
    """Count the parameters of the GPT-2 that a config.json describes.

    Raises:
        KeyError, TypeError, ValueError: the file describes something else.
    """
    names = {"n_layer": "n_layer", "n_head": "n_head", "n_embd": "n_embd", "n_positions": "block_size"}
    shape: dict[str, Any] = {ours: int(saved[theirs]) for theirs, ours in names.items()}
    shape |= {key: saved[key] for key in ("n_inner", "tie_word_embeddings") if key in saved}
    return parameters(Config(**shape), int(saved["vocab_size"]))


Kind = Literal["cpu", "accelerator"]

# Sizes of the chunks of a step, shared by the step itself and the formulas for memory and time.

LOGITS = 2**24  # the head computes at most this many logits at a time,
CHUNKS = 8  # unless that takes more than this many chunks
QUERIES = 64  # queries in a chunk of attention on a CPU
NARROW_BLOCK = 512  # longest block whose attention weights a CPU stores in bfloat16, without dropout
ELEMENTS = 2**23  # numbers that Muon orthogonalises at a time: many small matrices in one product, or one large one
ITERATIONS = 5  # steps of Muon's Newton-Schulz iteration


def flops_per_token(config: Config, vocab_size: int) -> float:
    """Return the FLOPs of one token, forward and backward: 6N + 12 · n_layer · n_embd · block_size.

    N counts the parameters in matrix products: all except the position embeddings, and the token embedding if the head
    is separate (PaLM's appendix B, as nanoGPT counts it). Recomputing activations is not counted, since it trains
    nothing.
    """
    counted = parameters(config, vocab_size)
    weights = (
        counted.total - counted.position_embedding - (0 if config.tie_word_embeddings else counted.token_embedding)
    )
    return 6 * weights + 12 * config.n_layer * config.n_embd * config.block_size


def eager_seconds(config: Config, peak: float, processes: int) -> float:
    """Return a lower bound of all steps' time without compilation: the blocks' arithmetic, or the host's launches.

    Args:
        config: with its shape. peak: FLOP/s of a card. processes: that share a step.
    """
    work = flops_per_token(config, vocab_size=0) * config.tokens_per_iter / processes / (peak * EAGER)
    micro_batches = config.global_batch / processes / config.micro_batch(processes)
    host = micro_batches * config.n_layer * HOST_SECONDS_PER_BLOCK
    return float(config.max_iters * max(work, host))


def flops_per_update(config: Config, kind: Kind) -> float:
    """Return the optimizer's FLOPs in a step, if significant: Muon's matrix products (hfgpt/model/optim.py).

    A block has four matrices of C x C and two of C x F. An iteration takes three products, two of them along the longer
    side. On a CPU, a matrix more than twice as long as wide is iterated by its Gram matrix. Those two products are then
    computed only once, and an iteration takes four of the shorter side's square, but three fewer in total.
    """
    if config.optimizer != "muon":
        return 0
    width, inner = config.n_embd, mlp_width(config)
    short, long = min(width, inner), max(width, inner)
    if kind == "cpu" and long > 2 * short:
        mlp = 4 * short**2 * long + 2 * (4 * ITERATIONS - 3) * short**3
    else:
        mlp = ITERATIONS * (4 * short**2 * long + 2 * short**3)
    return config.n_layer * (4 * 6 * ITERATIONS * width**3 + 2 * mlp)
