"""What a recipe costs, computed: parameters, tokens, memory, time, money.

In:  a resolved Config, the size of its vocabulary, and a card or a measured step.
Out: plain numbers in SI units (bytes, seconds, FLOP); the tables are made from them in hfgpt/plan.py.

Everything here is a formula: no torch, no measurement, answered at once. hfgpt/simulate.py runs the step itself
and a test holds the two together.
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


# ------------------------------------------------------------------------------------------------------ memory

Kind = Literal["cpu", "accelerator"]

BINDS = {
    "forward": "the logits, in several copies, at the end of the forward pass",
    "loss": "the logits, in three float32 copies, where the backward pass begins",
    "last block": "the activations of all blocks, where the backward pass enters the last one",
    "attention": "the attention weights (block_size² a head), in the backward pass of the last block",
    "first block": "the gradients of all weights, where the backward pass leaves the first block",
    "embedding": "two gradients of the token embedding, which the output head shares, at the end of the backward pass",
    "optimizer": "weights, gradients and AdamW's two averages, in the update",
}


@dataclass(frozen=True)
class Memory:
    """Peak memory of a training step in one process, in bytes, and what it is made of.

    Attributes:
        weights, gradients, optimizer: float32 weights, their gradients, and AdamW's two averages.
        activations: what the forward pass keeps for the backward pass, without the logits (chapter 5.2).
        logits: scores over the vocabulary and what the loss makes of them, at their most.
        peak: the most that is alive at once. Less than the sum, since not all of it is alive at the same time.
        binding: the moment of the peak, a key of BINDS.
        allowance: not in `peak`: the device's context, libraries' workspaces, fragmentation. An estimate.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    peak: int
    binding: str
    allowance: int

    @property
    def needed(self) -> int:
        """What the device should have: the peak and the allowance."""
        return self.peak + self.allowance


@dataclass(frozen=True)
class _Step:
    """The sizes that the memory of a step is made of; N = tokens of a micro-batch, C = n_embd, and so on."""

    N: int
    T: int
    C: int
    L: int
    H: int
    V: int
    P: int
    narrow: int  # bytes of a number in the matrix products: 4, or 2 under mixed precision
    resid_mask: int  # bytes an element that dropout keeps, in a block
    embed_mask: int  # and at the embedding
    whole: bool  # whether attention makes whole matrices of block_size² a head
    document_mask: int  # bytes
    checkpointed: bool
    accumulates: bool

    @property
    def block(self) -> int:
        """Bytes that the forward pass keeps in one block.

        In float32: the residual stream twice (before attention and before the MLP). In the narrow type: what enters
        the four matrix products (1 + 1 + 1 + 4 times C), query, key and value (3 C), and the MLP before its activation
        (4 C). Two layer norms keep a mean and a deviation each; fused attention a number a head. Whole attention keeps
        its weights, the dropped weights and the mask in float32, and so it does query, key and value.
        """
        narrow = self.narrow
        kept = 8 + 14 * narrow + 2 * self.resid_mask
        if self.whole:
            # With a single head the value needs no copy, and the query, key and value it is cut from stay.
            kept += 12 - 3 * narrow + (8 if self.H == 1 and narrow == 4 else 0)
            attention = 12 * self.H * self.T
        else:
            attention = 4 * self.H + (narrow * self.T if self.document_mask else 0)
        return self.N * (kept * self.C + attention + 16)

    @property
    def casts(self) -> int:
        """Bytes of one block's weights in the narrow type, which mixed precision keeps beside the float32 ones."""
        return 24 * self.C**2 if self.narrow == 2 else 0


def _step(config: Config, vocab_size: int, kind: Kind, dtype: str) -> _Step:
    batch, length, heads = config.batch_size, config.block_size, config.n_head
    drops, narrow = config.dropout > 0, 4 if dtype == "float32" else 2
    return _Step(
        N=batch * length,
        T=length,
        C=config.n_embd,
        L=config.n_layer,
        H=heads,
        V=vocab_size,
        P=parameters(config, vocab_size).total,
        narrow=narrow,
        resid_mask=(narrow if kind == "cpu" else 1) if drops else 0,
        embed_mask=(4 if kind == "cpu" else 1) if drops else 0,
        whole=kind == "cpu" and drops,  # the CPU's fused attention has no dropout
        document_mask=batch * length * length if config.document_mask else 0,
        checkpointed=config.activation_checkpointing,
        accumulates=config.gradient_accumulation_steps > 1,
    )


def memory(config: Config, vocab_size: int, kind: Kind, dtype: str) -> Memory:
    """Peak memory of a step of `config.batch_size` sequences a micro-batch, in closed form.

    Derived from the tensors that live at each moment of the step; hfgpt/simulate.py runs the same step and agrees
    within 2% (tests/test_simulate.py). Eager mode; torch.compile usually needs less.

    Args:
        config: with the shape of the model that is trained; batch_size is the micro-batch of a process.
        vocab_size: rows of the token embedding.
        kind: where: a CPU keeps more for dropout, and whole attention matrices with it.
        dtype: 'float32', or 'bfloat16' or 'float16' for mixed precision over float32 weights.
    """
    s = _step(config, vocab_size, kind, dtype)
    moments = _moments(s)
    binding = max(moments, key=lambda moment: moments[moment])
    kept = s.L * (4 * s.N * s.C if s.checkpointed else s.block) + s.N * (4 + s.narrow + s.embed_mask) * s.C
    return Memory(
        weights=4 * s.P,
        gradients=4 * s.P,
        optimizer=8 * s.P,
        activations=kept + (s.block if s.checkpointed else 0),
        logits=12 * s.N * s.V,
        peak=moments[binding],
        binding=binding,
        allowance=ALLOWANCE_CPU if kind == "cpu" else ALLOWANCE_CARD + moments[binding] // 20,
    )


# What a process holds beside tensors: Python, torch and its libraries (resident, measured); a CUDA context with
# cuBLAS workspaces, and 5% of the peak for fragmentation (assumed, not measured here).
ALLOWANCE_CPU = 450 * 2**20
ALLOWANCE_CARD = 700 * 2**20


def _moments(s: _Step) -> dict[str, int]:
    """Bytes alive at each moment of the step that can be its peak."""
    stream, mixed = s.N * s.C, s.narrow == 2
    head_cast = 2 * s.V * s.C if mixed else 0
    head_gradient = 4 * s.V * s.C  # kept until the embedding's own gradient joins it
    always = 12 * s.P + (4 * s.P if s.accumulates else 0) + 24 * s.N  # and ids and targets
    always += s.document_mask if s.checkpointed else 0
    ends = stream * (4 + s.narrow + s.embed_mask) + 8 * s.N  # around the last norm; dropout of the embedding
    kept = s.L * (4 * stream if s.checkpointed else s.block + s.casts) + ends
    full = always + kept + head_cast
    # Entering the last block, the head is done; the gradient of the residual stream has replaced the stream itself.
    entering = full - head_cast + head_gradient - s.narrow * stream
    if s.checkpointed:  # that block's activations are there again
        entering += s.block - 4 * stream + s.casts
    # From the last block to the first, activations go and gradients of weights come.
    freed = 4 * stream if s.checkpointed else s.block + s.casts
    gained = 0 if s.accumulates else 48 * s.C**2
    to_first = (s.L - 1) * (gained - freed)
    inside = {"last block": _mlp_backward(s), **_whole_attention(s)}
    return {
        # Autocast keeps the casts of all weights to the end of the forward pass, also where nothing saves them.
        "forward": full + s.N * s.V * (10 if mixed else 8) + (s.L * s.casts if s.checkpointed else s.document_mask),
        "loss": full + 12 * s.N * s.V,
        **{moment: entering + more for moment, more in inside.items()},
        "first block": max(
            entering + max(inside.values()) + to_first,
            # or when only the query, key and value of the first block are left to do
            always + head_gradient + stream * (8 + 5 * s.narrow + s.embed_mask) + max(s.L * gained, 12 * s.C**2),
        ),
        "embedding": 16 * s.P
        + head_gradient * (2 if s.accumulates else 1)
        + (4 * stream if mixed else max(4 * stream, head_gradient)),
        "optimizer": 16 * s.P,
    }


def _mlp_backward(s: _Step) -> int:
    """Bytes that the backward pass of an MLP adds to what it finds.

    A gradient as wide as its inside, that of its output's weight, and what enters them of the stream's gradient: cast
    narrow, or with dropout masked, the mask being done with.
    """
    incoming = s.narrow - s.resid_mask if s.resid_mask else 2 if s.narrow == 2 else 0
    return s.N * s.C * (4 * s.narrow + incoming) + 4 * s.narrow * s.C**2


def _whole_attention(s: _Step) -> dict[str, int]:
    """Bytes, beside what a block keeps, where attention makes whole matrices of block_size² a head; else nothing."""
    if not s.whole:
        return {}
    after = s.N * s.C * (4 + 10 * s.narrow + 2 * s.resid_mask)  # kept by what comes after attention: not yet, no longer
    matrix = s.H * s.N * s.T
    backward = 8 * s.N * s.C + 4 * matrix + 36 * s.C**2
    forward = 4 * s.T**2 + (2 * matrix + 14 * s.N * s.C if s.narrow == 2 else 8 * s.N * s.C)  # the causal mask, copies
    return {"attention": max(backward, forward) - after}
