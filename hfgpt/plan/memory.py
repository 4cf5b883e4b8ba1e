"""The peak memory of a training step, in closed form.

In:  a resolved Config, the size of its vocabulary, the kind of device and the precision.
Out: :class:`Memory`: bytes, by what they hold, and the moment of the peak.

Derived from the tensors alive at each moment of the step. hfgpt/plan/simulate.py runs the step itself on tensors
without data, and a test keeps the two consistent.
"""

from dataclasses import dataclass

from hfgpt.base.language import N_
from hfgpt.config import Config
from hfgpt.model.sizes import CHUNKS, ELEMENTS, LOGITS, NARROW_BLOCK, QUERIES, Kind, mlp_width, parameters

BINDS = {
    "loss": N_("at the output head (logits and the gradient of its weight), with the activations of all blocks alive"),
    "last block": N_("where the backward pass enters the last block, with the activations of all blocks alive"),
    "attention": N_("in the attention of the last block's backward pass: its weights are kept on this device"),
    "first block": N_("where the backward pass leaves the first block, with the gradients of all weights alive"),
    "embedding": N_("at the end of the backward pass: two gradients of the token embedding, which is also the head"),
    "optimizer": N_("in the update: weights, gradients and the optimizer's averages"),
}


@dataclass(frozen=True)
class Memory:
    """Peak memory of a training step in one process, in bytes, and its parts."""

    # float32 weights, their gradients, and AdamW's two averages (with Muon, one of the matrices inside the blocks)
    weights: int
    gradients: int
    optimizer: int
    activations: int  # what the forward pass keeps for the backward pass, without the logits (chapter 5.2)
    logits: int  # logits of the chunk that the loss processes at a time
    peak: int  # the most alive at once; less than the sum, since not all parts are alive together
    binding: str  # the moment of the peak, a key of BINDS
    spread: float  # the peak is likely within this share of it
    allowance: int  # not in `peak`: the device's context, libraries' workspaces, fragmentation. An estimate.

    @property
    def needed(self) -> int:
        """The memory that the device should have: the peak and the allowance."""
        return self.peak + self.allowance

    @property
    def needed_low(self) -> int:
        """The likely minimum, with half of the allowance."""
        return int(self.peak * (1 - self.spread)) + self.allowance // 2

    @property
    def needed_high(self) -> int:
        """The likely maximum."""
        return int(self.peak * (1 + self.spread)) + self.allowance * 3 // 2


@dataclass(frozen=True)
class _Step:
    """The sizes that determine a step's memory; N = tokens of a micro-batch, C = n_embd, and so on."""

    N: int
    T: int
    C: int
    F: int  # channels inside an MLP: 4 C unless n_inner is set
    L: int
    H: int
    V: int
    P: int
    padded: int  # rows of the head's weight in its products
    narrow: int  # bytes of a number in the matrix products: 4, or 2 under mixed precision
    drop_mask: int  # bytes per element kept by dropout
    chunk: int  # rows of the logits that exist at a time
    logit: int  # bytes that one of them takes, with its gradient
    weighs: int  # bytes of a number in unfused attention (kernels.py on a CPU); 0: fused
    document_mask: int  # bytes
    checkpointed: bool
    held: bool  # memory for all gradients is taken while new ones are computed: by earlier ones, or by DDP's buckets
    compiled: bool
    squares: bool  # the activation is relu²
    tied: bool
    state: int  # bytes of the optimizer's averages
    update: int  # bytes that the optimizer needs during its step

    @property
    def block(self) -> int:
        """Bytes that the forward pass keeps in one block.

        In float32: the residual stream twice (before attention and before the MLP). In the narrow type: the inputs of
        the four matrix products (3 C and F), query, key and value (3 C), and the MLP before its activation (F). Two
        layer norms keep a mean and a deviation each; fused attention keeps one number per head. A CPU's attention with
        dropout or in bfloat16 keeps its causal weights (and a mask), and each head's output.
        """
        narrow, weighs = self.narrow, self.weighs
        kept = 8 + 6 * narrow + 2 * self.drop_mask
        if weighs:
            # A single head's query, key and output need no copies.
            single = self.H == 1 and weighs == narrow
            kept += weighs * self.drop_mask if single else 4 * weighs - 3 * narrow
            attention = (weighs + self.drop_mask) * self.H * self.seen // self.T
        else:
            attention = 4 * self.H + (narrow * self.T if self.document_mask else 0)
        return self.N * (kept * self.C + 2 * narrow * self.F + attention + 16)

    @property
    def seen(self) -> int:
        """Query-key pairs that a head computes per sequence, if queries are processed in groups."""
        ends = [min(start + QUERIES, self.T) for start in range(0, self.T, QUERIES)]
        return sum((end - start) * end for start, end in zip(range(0, self.T, QUERIES), ends, strict=True))

    @property
    def casts(self) -> int:
        """Bytes of one block's weights in the narrow type, which mixed precision keeps beside the float32 ones."""
        return 2 * self.matrices if self.narrow == 2 else 0

    @property
    def matrices(self) -> int:
        """The number of elements in one block's matrices."""
        return 4 * self.C**2 + 2 * self.C * self.F


def _step(config: Config, vocab_size: int, kind: Kind, dtype: str, processes: int, compiled: bool) -> _Step:
    batch, length, heads = config.batch_size, config.block_size, config.n_head
    drops, narrow = config.dropout > 0, 4 if dtype == "float32" else 2
    slow = dtype == "bfloat16" and length <= NARROW_BLOCK and not compiled
    keeps_weights = kind == "cpu" and (drops or slow)
    return _Step(
        N=batch * length,
        T=length,
        C=config.n_embd,
        F=mlp_width(config),
        L=config.n_layer,
        H=heads,
        V=vocab_size,
        P=parameters(config, vocab_size).total,
        padded=vocab_size if kind == "cpu" else -(-vocab_size // 64) * 64,
        narrow=narrow,
        drop_mask=1 if drops else 0,
        logit=_logit_bytes(narrow, kind, compiled),
        chunk=-(-batch * length // min(CHUNKS, -(-batch * length * vocab_size // LOGITS))),
        weighs=(2 if dtype == "bfloat16" else 4) if keeps_weights else 0,
        document_mask=batch * length * length if config.document_mask else 0,
        checkpointed=config.activation_checkpointing,
        held=processes > 1 or config.gradient_accumulation_steps > 1,
        compiled=compiled,
        squares=config.activation_function == "relu2",
        tied=config.tie_word_embeddings,
        state=8 * parameters(config, vocab_size).total - 4 * _muon_weights(config),
        update=_muon_workspace(config, kind),
    )


def _logit_bytes(narrow: int, kind: Kind, compiled: bool) -> int:
    """Return the bytes of a logit in the loss: eagerly it becomes its float32 gradient in place.

    A compiled loss writes the gradient elsewhere: beside the logits or, on a CPU, beside their float32 exponentials,
    which Inductor does not compute twice there.
    """
    if not compiled:
        return 4 if narrow == 4 else 6
    return 8 if kind == "cpu" else narrow + 4


def _muon_weights(config: Config) -> int:
    """Return the number of weights with one average instead of two: the blocks' matrices, with Muon."""
    width, inner = config.n_embd, mlp_width(config)
    return config.n_layer * (4 * width**2 + 2 * width * inner) if config.optimizer == "muon" else 0


def _muon_workspace(config: Config, kind: Kind) -> int:
    """Return the bytes that orthogonalising the largest batch of matrices takes: in float32, on a card in bfloat16.

    Square matrices: the averaged gradient, the iterate, its Gram matrix, a polynomial of that, and the next iterate.
    An MLP's, whose Gram matrices are a quarter as large, take less on a CPU; on a card they set the peak when the
    scaled gradient is cast.
    """
    if config.optimizer != "muon":
        return 0
    square = config.n_embd**2
    inside = config.n_embd * mlp_width(config)
    at_a_time = {size: size * min(config.n_layer, max(1, ELEMENTS // size)) for size in (square, 3 * square, inside)}
    mlp, attention = at_a_time[inside], max(at_a_time[square], at_a_time[3 * square])
    return 20 * attention if kind == "cpu" else max(10 * mlp, 12 * attention)


def estimate(
    config: Config, vocab_size: int, kind: Kind, dtype: str, processes: int = 1, compiled: bool = False
) -> Memory:
    """Estimate the peak memory of a step with `config.batch_size` sequences per micro-batch, in closed form.

    hfgpt/plan/simulate.py runs the same eager step and agrees within 4%, mostly within half a percent
    (tests/plan/test_simulate.py). A compiled step keeps as much for its backward pass, which its partitioner decides.
    What its kernels need meanwhile depends on how they are fused: the formula is then within 10%.

    Args:
        config: with the shape of the trained model; batch_size is the micro-batch of a process.
        vocab_size: rows of the token embedding.
        kind: of device: a CPU keeps more for dropout, including whole attention matrices.
        dtype: 'float32', or 'bfloat16' or 'float16' for mixed precision over float32 weights.
        processes: with several, DDP has buckets for all gradients, during accumulation beside the gradients.
        compiled: whether torch.compile makes the step.
    """
    s = _step(config, vocab_size, kind, dtype, processes, compiled)
    moments = _moments(s)
    if processes > 1 and config.gradient_accumulation_steps > 1:
        moments = {moment: value + 4 * s.P for moment, value in moments.items()}
    binding = max(moments, key=lambda moment: moments[moment])
    kept = s.L * (4 * s.N * s.C if s.checkpointed else s.block) + s.N * (8 + s.drop_mask) * s.C
    return Memory(
        weights=4 * s.P,
        gradients=4 * s.P,
        optimizer=s.state,
        activations=kept + (s.block if s.checkpointed else 0),
        logits=s.chunk * s.padded * s.logit,
        peak=moments[binding],
        binding=binding,
        spread=0.1 if compiled else 0.04,
        allowance=ALLOWANCE_CPU if kind == "cpu" else ALLOWANCE_CARD + moments[binding] // 20,
    )


# A process's memory besides tensors: Python, torch and its libraries (resident, measured); a CUDA context with cuBLAS
# workspaces, and 5% of the peak for fragmentation (assumed, not measured here).
ALLOWANCE_CPU = 520 * 2**20

ALLOWANCE_CARD = 700 * 2**20


def _moments(s: _Step) -> dict[str, int]:
    """Return the bytes alive at each moment of the step that can be its peak."""
    stream = s.N * s.C
    head_gradient = 4 * s.V * s.C  # from the loss until the embedding's own gradient is added
    always = 4 * s.P + s.state + (4 * s.P if s.held else 0) + 24 * s.N  # and ids and targets
    always += s.document_mask if s.checkpointed else 0
    kept = s.L * (4 * stream if s.checkpointed else s.block + s.casts) + stream * s.drop_mask + 8 * s.N
    # The stream before and after the last norm, and its gradient, which the loss computes.
    ends = always + kept + 12 * stream
    # Autocast keeps the casts of all weights to the end of the forward pass, even if nothing saves them.
    ends += s.L * s.casts if s.checkpointed else s.document_mask
    # When the backward pass enters the last block, the head is done.
    adds = s.held and not s.compiled  # each gradient as soon as it is computed; a compiled backward pass ends first
    if not s.tied and adds:
        head_gradient = 0
    entering = always + kept + head_gradient + 4 * stream
    if s.checkpointed:  # that block's activations have been recomputed
        entering += s.block - 4 * stream + s.casts
    # From the last block to the first, activations are freed and gradients of weights appear.
    freed = 4 * stream if s.checkpointed else s.block + s.casts
    gained = 0 if adds else 4 * s.matrices
    to_first = (s.L - 1) * (gained - freed)
    embedding_gradients = int(s.tied) + int(adds)  # beside those that the weights keep
    ended = 8 * s.P + s.state
    if s.compiled:  # it has been seen to hold 2 bytes for each narrow weight to its end
        ended += (4 * s.P if s.held else 0) + s.L * s.casts
    inside = {"last block": _mlp_backward(s), **_attention_backward(s)}
    return {
        "loss": ends + _chunk_of_the_head(s),
        **{moment: entering + more for moment, more in inside.items()},
        "first block": max(
            entering + max(inside.values()) + to_first,
            # or when only the first block's query, key and value are left
            always + head_gradient + stream * (8 + 5 * s.narrow + s.drop_mask) + max(s.L * gained, 12 * s.C**2),
        ),
        "embedding": ended + embedding_gradients * 4 * s.V * s.C + 4 * stream,
        "optimizer": 8 * s.P + s.state + s.update,
    }


def _chunk_of_the_head(s: _Step) -> int:
    """Return the head's peak bytes: a chunk of the logits, or the gradients of its input and of its weight.

    Beside them is the weight that the products use, if it is narrow or padded.
    """
    mixed, weight, rows, chunk = s.narrow == 2, s.V * s.C, s.chunk * s.C, s.chunk * s.padded
    sum_so_far = 4 * weight if s.chunk < s.N else 0
    logits = chunk * s.logit + sum_so_far
    of_input = s.narrow * (chunk + rows) + sum_so_far
    of_weight = s.narrow * (chunk + weight) + (4 * weight if mixed else sum_so_far)
    copied = s.narrow * s.padded * s.C if mixed or s.padded > s.V else 0
    padding = 2 * weight if mixed and s.padded > s.V else 0  # the narrow weight beside its padded copy
    inputs = 2 * rows if mixed else 0
    return max(max(logits, of_input, of_weight) + inputs, padding) + copied


def _mlp_backward(s: _Step) -> int:
    """Return the bytes that an MLP's backward pass adds.

    They are a gradient of the inner width, that of the output weight, and the stream's gradient as their input: cast
    narrow or, with dropout, masked, after which the mask is freed.
    """
    incoming = s.narrow - s.drop_mask if s.drop_mask else 2 if s.narrow == 2 else 0
    inside = (3 if s.squares else 1) * s.narrow * s.F  # the gradient of a square multiplies two more tensors
    return s.N * (inside + s.C * incoming) + s.narrow * s.C * s.F


def _attention_backward(s: _Step) -> dict[str, int]:
    """Return the bytes beside those that a block keeps, if attention keeps its weights; otherwise 0."""
    if not s.weighs:
        return {}
    after = s.N * s.C * (4 + 10 * s.narrow + 2 * s.drop_mask)  # no longer kept by what follows attention
    # Gradients of output, query, key and value, the last two as float32 sums; in a group one more of those and its
    # weights', or at the end the cast sums.
    group = s.weighs * (s.N * s.C + s.N * s.H * min(QUERIES, s.T))
    casts = 2 * s.N * s.C * s.narrow if s.narrow < 4 else 0
    gradients = s.N * s.C * (s.narrow + 2 * s.weighs + 8)
    return {"attention": gradients + max(group, casts) + 4 * s.C**2 + 8 * s.C * s.F - after}
