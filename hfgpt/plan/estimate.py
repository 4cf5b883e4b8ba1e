"""What a recipe costs, computed: parameters, tokens, memory, time, money.

In:  a resolved Config, the size of its vocabulary, and a card or a measured step.
Out: plain numbers in SI units (bytes, seconds, FLOP); the tables are made from them in hfgpt/plan/command.py.

Everything here is a formula: no torch, no measurement, answered at once. hfgpt/plan/simulate.py runs the step itself
and a test holds the two together.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from hfgpt.base import cards
from hfgpt.base import machine as hardware
from hfgpt.base.cards import Card
from hfgpt.base.errors import InputError
from hfgpt.config import Config
from hfgpt.config.fields import EVAL_BATCH
from hfgpt.model.sizes import (
    CHUNKS,
    ELEMENTS,
    LOGITS,
    NARROW_BLOCK,
    QUERIES,
    Kind,
    flops_per_token,
    flops_per_update,
    parameters,
)
from hfgpt.plan.survey import Survey

# ------------------------------------------------------------------------------------------------------ tokens

COMPUTE_OPTIMAL = 20  # tokens a parameter: Hoffmann et al. 2022, "Training compute-optimal large language models"


@dataclass(frozen=True)
class Tokens:
    """What a run trains on (chapter 5.2).

    Attributes:
        per_iter: targets of one optimizer step.
        total: targets of the whole run; a corpus smaller than that is seen several times.
        epochs: how often the corpus is seen; None where its size is not known.
        per_parameter: total over parameters; about 20 is compute-optimal.
    """

    per_iter: int
    total: int
    epochs: float | None
    per_parameter: float


def tokens(found: Survey) -> Tokens:
    """Tokens of a run, against its corpus and its parameters."""
    config = found.config
    total = config.tokens_per_iter * config.max_iters
    epochs = total / found.train_tokens if found.train_tokens else None
    return Tokens(config.tokens_per_iter, total, epochs, total / parameters(config, found.vocab_size).total)


BINDS = {
    "loss": "the head (logits, and the gradient of its weight), with the activations of all blocks",
    "last block": "the activations of all blocks, where the backward pass enters the last one",
    "attention": "attention weights, kept on a CPU with dropout or in bfloat16, in the backward pass of the last block",
    "first block": "the gradients of all weights, where the backward pass leaves the first block",
    "embedding": "two gradients of the token embedding, which the output head shares, at the end of the backward pass",
    "optimizer": "weights, gradients and the optimizer's averages, in the update",
}


@dataclass(frozen=True)
class Memory:
    """Peak memory of a training step in one process, in bytes, and what it is made of.

    Attributes:
        weights, gradients, optimizer: float32 weights, their gradients, and AdamW's two averages (with Muon, one of the
            matrices inside the blocks).
        activations: what the forward pass keeps for the backward pass, without the logits (chapter 5.2).
        logits: scores over the vocabulary, of the chunk that the loss handles at a time.
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
    drop_mask: int  # bytes an element that dropout keeps
    chunk: int  # rows of the logits that exist at a time
    weighs: int  # bytes of a number in attention that keeps its weights, as kernels.py does on a CPU; 0: fused
    document_mask: int  # bytes
    checkpointed: bool
    accumulates: bool
    state: int  # bytes of the optimizer's averages
    update: int  # bytes that the optimizer needs while it steps

    @property
    def block(self) -> int:
        """Bytes that the forward pass keeps in one block.

        In float32: the residual stream twice (before attention and before the MLP). In the narrow type: what enters
        the four matrix products (1 + 1 + 1 + 4 times C), query, key and value (3 C), and the MLP before its activation
        (4 C). Two layer norms keep a mean and a deviation each; fused attention a number a head. A CPU's attention with
        dropout or in bfloat16 keeps its weights (and a mask) where a query may look, and its outcome head by head.
        """
        narrow, weighs = self.narrow, self.weighs
        kept = 8 + 14 * narrow + 2 * self.drop_mask
        if weighs:
            # A single head's query, key and outcome need no copies.
            single = self.H == 1 and weighs == narrow
            kept += weighs * self.drop_mask if single else 4 * weighs - 3 * narrow
            attention = (weighs + self.drop_mask) * self.H * self.seen // self.T
        else:
            attention = 4 * self.H + (narrow * self.T if self.document_mask else 0)
        return self.N * (kept * self.C + attention + 16)

    @property
    def seen(self) -> int:
        """Pairs of a query and a key that a head of a sequence computes, where queries go in groups."""
        ends = [min(start + QUERIES, self.T) for start in range(0, self.T, QUERIES)]
        return sum((end - start) * end for start, end in zip(range(0, self.T, QUERIES), ends, strict=True))

    @property
    def casts(self) -> int:
        """Bytes of one block's weights in the narrow type, which mixed precision keeps beside the float32 ones."""
        return 24 * self.C**2 if self.narrow == 2 else 0


def _step(config: Config, vocab_size: int, kind: Kind, dtype: str) -> _Step:
    batch, length, heads = config.batch_size, config.block_size, config.n_head
    drops, narrow = config.dropout > 0, 4 if dtype == "float32" else 2
    keeps_weights = kind == "cpu" and (drops or (dtype == "bfloat16" and length <= NARROW_BLOCK))
    return _Step(
        N=batch * length,
        T=length,
        C=config.n_embd,
        L=config.n_layer,
        H=heads,
        V=vocab_size,
        P=parameters(config, vocab_size).total,
        narrow=narrow,
        drop_mask=1 if drops else 0,
        chunk=-(-batch * length // min(CHUNKS, -(-batch * length * vocab_size // LOGITS))),
        weighs=(2 if dtype == "bfloat16" else 4) if keeps_weights else 0,
        document_mask=batch * length * length if config.document_mask else 0,
        checkpointed=config.activation_checkpointing,
        accumulates=config.gradient_accumulation_steps > 1,
        state=8 * parameters(config, vocab_size).total - 4 * _muon_weights(config),
        update=_muon_workspace(config, kind),
    )


def _muon_weights(config: Config) -> int:
    """Weights that have one average instead of two: the matrices inside the blocks, with Muon."""
    return 12 * config.n_layer * config.n_embd**2 if config.optimizer == "muon" else 0


def _muon_workspace(config: Config, kind: Kind) -> int:
    """Bytes that the orthogonalisation of the largest batch of matrices takes: in float32, on a card in bfloat16.

    Square matrices: the averaged gradient, the iterate, its Gram matrix, a polynomial of that, and the next iterate.
    An MLP's, whose Gram matrices are a quarter as large, take less on a CPU; on a card they bind where the gradient,
    scaled, is cast.
    """
    if config.optimizer != "muon":
        return 0
    square = config.n_embd**2
    at_a_time = {parts: min(config.n_layer, max(1, ELEMENTS // (parts * square))) for parts in (1, 3, 4)}
    mlp, attention = 4 * square * at_a_time[4], square * max(3 * at_a_time[3], at_a_time[1])
    return 20 * attention if kind == "cpu" else max(10 * mlp, 12 * attention)


def memory(config: Config, vocab_size: int, kind: Kind, dtype: str) -> Memory:
    """Peak memory of a step of `config.batch_size` sequences a micro-batch, in closed form.

    Derived from the tensors that live at each moment of the step; hfgpt/plan/simulate.py runs the same step and agrees
    within 4%, mostly within half a percent (tests/test_simulate.py). Eager mode; torch.compile usually needs less.

    Args:
        config: with the shape of the model that is trained; batch_size is the micro-batch of a process.
        vocab_size: rows of the token embedding.
        kind: where: a CPU keeps more for dropout, and whole attention matrices with it.
        dtype: 'float32', or 'bfloat16' or 'float16' for mixed precision over float32 weights.
    """
    s = _step(config, vocab_size, kind, dtype)
    moments = _moments(s)
    binding = max(moments, key=lambda moment: moments[moment])
    kept = s.L * (4 * s.N * s.C if s.checkpointed else s.block) + s.N * (8 + s.drop_mask) * s.C
    return Memory(
        weights=4 * s.P,
        gradients=4 * s.P,
        optimizer=s.state,
        activations=kept + (s.block if s.checkpointed else 0),
        logits=s.chunk * s.V * (4 if s.narrow == 4 else 6),
        peak=moments[binding],
        binding=binding,
        allowance=ALLOWANCE_CPU if kind == "cpu" else ALLOWANCE_CARD + moments[binding] // 20,
    )


# What a process holds beside tensors: Python, torch and its libraries (resident, measured); a CUDA context with
# cuBLAS workspaces, and 5% of the peak for fragmentation (assumed, not measured here).
ALLOWANCE_CPU = 520 * 2**20

ALLOWANCE_CARD = 700 * 2**20


def _moments(s: _Step) -> dict[str, int]:
    """Bytes alive at each moment of the step that can be its peak."""
    stream = s.N * s.C
    head_gradient = 4 * s.V * s.C  # from the loss until the embedding's own gradient joins it
    always = 4 * s.P + s.state + (4 * s.P if s.accumulates else 0) + 24 * s.N  # and ids and targets
    always += s.document_mask if s.checkpointed else 0
    kept = s.L * (4 * stream if s.checkpointed else s.block + s.casts) + stream * s.drop_mask + 8 * s.N
    # The stream before and after the last norm, and its gradient, which comes with the loss.
    ends = always + kept + 12 * stream
    # Autocast keeps the casts of all weights to the end of the forward pass, also where nothing saves them.
    ends += s.L * s.casts if s.checkpointed else s.document_mask
    # Entering the last block, the head is done.
    entering = always + kept + head_gradient + 4 * stream
    if s.checkpointed:  # that block's activations are there again
        entering += s.block - 4 * stream + s.casts
    # From the last block to the first, activations go and gradients of weights come.
    freed = 4 * stream if s.checkpointed else s.block + s.casts
    gained = 0 if s.accumulates else 48 * s.C**2
    to_first = (s.L - 1) * (gained - freed)
    inside = {"last block": _mlp_backward(s), **_attention_backward(s)}
    return {
        "loss": ends + _chunk_of_the_head(s),
        **{moment: entering + more for moment, more in inside.items()},
        "first block": max(
            entering + max(inside.values()) + to_first,
            # or when only the query, key and value of the first block are left to do
            always + head_gradient + stream * (8 + 5 * s.narrow + s.drop_mask) + max(s.L * gained, 12 * s.C**2),
        ),
        "embedding": 8 * s.P + s.state + head_gradient * (2 if s.accumulates else 1) + 4 * stream,
        "optimizer": 8 * s.P + s.state + s.update,
    }


def _chunk_of_the_head(s: _Step) -> int:
    """Bytes of the head at its fullest: a chunk of the logits, or the gradients of its input and of its weight."""
    mixed, weight, rows = s.narrow == 2, s.V * s.C, s.chunk * s.C
    sum_so_far = 4 * weight if s.chunk < s.N else 0
    logits = s.chunk * s.V * (6 if mixed else 4) + sum_so_far
    of_input = s.narrow * (s.chunk * s.V + rows) + sum_so_far
    of_weight = s.narrow * (s.chunk * s.V + weight) + (4 * weight if mixed else sum_so_far)
    return max(logits, of_input, of_weight) + (2 * (weight + rows) if mixed else 0)


def _mlp_backward(s: _Step) -> int:
    """Bytes that the backward pass of an MLP adds to what it finds.

    A gradient as wide as its inside, that of its output's weight, and what enters them of the stream's gradient: cast
    narrow, or with dropout masked, the mask being done with.
    """
    incoming = s.narrow - s.drop_mask if s.drop_mask else 2 if s.narrow == 2 else 0
    return s.N * s.C * (4 * s.narrow + incoming) + 4 * s.narrow * s.C**2


def _attention_backward(s: _Step) -> dict[str, int]:
    """Bytes, beside what a block keeps, where attention keeps its weights; else nothing."""
    if not s.weighs:
        return {}
    after = s.N * s.C * (4 + 10 * s.narrow + 2 * s.drop_mask)  # kept by what comes after attention: no longer
    # Gradients of outcome, query, key and value, the last two as float32 sums; in a group one more of those and its
    # weights', or at the end the sums cast.
    group = s.weighs * (s.N * s.C + s.N * s.H * min(QUERIES, s.T))
    casts = 2 * s.N * s.C * s.narrow if s.narrow < 4 else 0
    gradients = s.N * s.C * (s.narrow + 2 * s.weighs + 8)
    return {"attention": gradients + max(group, casts) + 36 * s.C**2 - after}


# ------------------------------------------------------------------------------------------------------ the device

REFERENCE = "RTX 3060"  # the chapter's card (5.3), where a recipe asks for an accelerator and none is known


@dataclass(frozen=True)
class Target:
    """What a recipe runs on: one device of each of its processes.

    Attributes:
        name: the device, in words.
        kind: whose operations run.
        dtype: 'float32', 'bfloat16' or 'float16', 'auto' decided.
        narrow: the 16-bit type that it has arithmetic for; '' where it is slower than float32.
        memory_bytes: of the device; a CPU's processes share it.
        peak: FLOP/s of the device in matrix products of that type.
        utilisation: the share of it that training is taken to reach.
        power_w: of the device; None where it is not known.
        processes: how many of them.
        note: what was assumed.
    """

    name: str
    kind: Kind
    dtype: str
    narrow: str
    memory_bytes: int
    peak: float
    utilisation: float
    power_w: float | None
    processes: int
    note: str


def target(config: Config, gpu: str | None = None, vram: int | None = None, processes: int = 1) -> Target:
    """The device that a recipe runs on, as told or as found here.

    Args:
        config: its device and dtype are read.
        gpu: the name of a card; None: this machine's, where it has one and the recipe does not ask for the CPU.
        vram: memory in bytes, in place of the card's.
        processes: how many processes share the global batch.

    Raises:
        InputError: the card is not in the table, or contradicts the recipe.
    """
    if gpu and config.device == "cpu":
        raise InputError(f"gpu = {gpu!r}: the recipe trains on the CPU → leave out --gpu, or add --device=auto")
    local = None if gpu or config.device == "cpu" else hardware.local_accelerator()
    if not (gpu or local) and (config.device == "cpu" or (config.device == "auto" and vram is None)):
        return _cpu(config, vram, processes)
    note = ""
    try:
        card = cards.find(gpu or local or REFERENCE)
    except InputError:
        if gpu:
            raise
        card, note = cards.find(REFERENCE), f"{local} is not in the table of cards; speed as of a {REFERENCE}"
    if not (gpu or local):
        note = f"no card is named or found here; speed as of the chapter's {REFERENCE} (--gpu names another)"
    found = _on_card(config, card, vram, processes, note)
    return replace(found, name=f"a card of {vram / 2**30:.4g} GiB") if vram and not (gpu or local) else found


def _on_card(config: Config, card: Card, vram: int | None, processes: int, note: str) -> Target:
    narrow = "bfloat16" if card.bfloat16 else "float16"
    automatic = "float32" if card.is_apple else narrow  # as hfgpt/train/launch.py chooses
    dtype = automatic if config.dtype == "auto" else config.dtype
    peak = card.peak("tf32" if dtype == "float32" and card.tf32 else dtype)
    if peak is None:
        peak, note = card.float32, f"{card.name} has no {dtype} arithmetic: as slow as float32"
    return Target(
        name=card.name,
        kind="accelerator",
        dtype=dtype,
        narrow=narrow,
        memory_bytes=vram or card.memory_bytes,
        peak=peak,
        # Narrow matrices do not fill a card. 0.4 is what GPT-2's width of 768 reaches, 0.2 at 384 (nanoGPT's
        # published times on A100: 4 days for 124M, 3 minutes for the character model with its evaluations).
        utilisation=0.4 * min(1.0, config.n_embd / 768),
        power_w=card.power_w,
        processes=processes,
        note=note,
    )


def _cpu(config: Config, memory_bytes: int | None, processes: int) -> Target:
    cores = hardware.cpu_cores()
    return Target(
        name=f"CPU, {cores} cores",
        kind="cpu",
        dtype=hardware.cpu_dtype(config.n_embd) if config.dtype == "auto" else config.dtype,
        narrow="bfloat16" if hardware.cpu_dtype(config.n_embd) == "bfloat16" else "",
        memory_bytes=(memory_bytes or hardware.cpu_memory_bytes()) // processes,
        peak=cores * hardware.TYPICAL_CPU_CORE_FLOPS / processes,
        utilisation=0.5,
        power_w=None,
        processes=processes,
        note="a typical core's speed, which may be off by a factor of two or more: --probe measures this machine's",
    )


@dataclass(frozen=True)
class Time:
    """How long a run takes, in seconds.

    Attributes:
        seconds_per_step: one optimizer step.
        training_seconds: all steps.
        evaluation_seconds: both losses at every evaluation.
        total_seconds: both; without start, saving and sampling.
        tokens_per_second: of all processes together.
        mfu: model FLOPs utilisation, the share of the peak that the arithmetic of the model uses.
        measured: by a probe on this machine; else from the table of cards.
    """

    seconds_per_step: float
    training_seconds: float
    evaluation_seconds: float
    total_seconds: float
    tokens_per_second: float
    mfu: float
    measured: bool


@dataclass(frozen=True)
class Measured:
    """What a probe measured, in seconds: an optimizer step, a token at evaluation, the sample shown at each one.

    `peak` is the FLOP/s that the device can reach, `peak_bytes` the memory that a step allocates at most; None where
    they are not known.
    """

    seconds_per_step: float
    seconds_per_eval_token: float
    seconds_per_sample: float
    peak: float | None
    peak_bytes: int | None


def time(found: Survey, on: Target, measured: Measured | None = None) -> Time:
    """How long a run takes: from a probe, or from the device's peak and the utilisation taken."""
    config = found.config
    flops = flops_per_token(config, found.vocab_size)
    known = measured or _from_table(config, on, flops)
    training = known.seconds_per_step * config.max_iters
    times = evaluations(config)
    evaluating = times * known.seconds_per_eval_token * evaluation_tokens(found)
    evaluating += (times - 1) * known.seconds_per_sample  # before the first step nothing is sampled
    speed = config.tokens_per_iter / known.seconds_per_step
    return Time(
        seconds_per_step=known.seconds_per_step,
        training_seconds=training,
        evaluation_seconds=evaluating,
        total_seconds=training + evaluating,
        tokens_per_second=speed,
        mfu=speed * flops / ((known.peak or on.peak) * on.processes),
        measured=measured is not None,
    )


# An accelerator waits for the host to launch its kernels: about this long a block, forward and backward, in eager mode.
HOST_SECONDS_PER_BLOCK = 0.8e-3


def _from_table(config: Config, on: Target, flops: float) -> Measured:
    rate = on.peak * on.utilisation / flops  # tokens/s of a process
    per_process = config.tokens_per_iter / on.processes
    work = 4 / 3 if config.activation_checkpointing else 1  # a second forward pass
    step = per_process / rate * work
    if on.kind == "accelerator":
        micro_batches = config.global_batch / on.processes / config.micro_batch(on.processes)
        step = max(step, micro_batches * (config.n_layer + 2) * HOST_SECONDS_PER_BLOCK)
    step += flops_per_update(config, on.kind) / (on.peak * on.utilisation)
    return Measured(step, 1 / (3 * rate * on.processes), 0.0, None, None)


def evaluations(config: Config) -> int:
    """How often a run evaluates: before the first step, every eval_interval, and at the last step."""
    return 1 + -(-config.max_iters // config.eval_interval)


def evaluation_tokens(found: Survey) -> int:
    """Tokens of one evaluation, both splits."""
    config = found.config
    most = config.eval_iters * EVAL_BATCH * config.block_size
    if found.train_tokens is None:
        return 2 * most
    val_tokens = int(found.train_tokens * config.val_fraction / (1 - config.val_fraction))
    return min(most, found.train_tokens) + min(most, val_tokens)


@dataclass(frozen=True)
class Cost:
    """What a run costs: in money, where a price was given, and in energy, at most, where the card's power is known."""

    money: float | None
    energy_kwh: float | None


def cost(duration: Time, on: Target, price_per_hour: float | None) -> Cost:
    """Price and energy of a run. The price is of one device an hour; energy is the cards' full power all the time."""
    hours = duration.total_seconds / 3600 * on.processes
    return Cost(
        money=None if price_per_hour is None else price_per_hour * hours,
        energy_kwh=None if on.power_w is None else on.power_w / 1000 * hours,
    )


# ------------------------------------------------------------------------------------------------------ rules of thumb


@dataclass(frozen=True)
class RulesOfThumb:
    """The chapter's own figures for a recipe, to stand beside the computed ones.

    Attributes:
        parameters: 12 · n_layer · n_embd² (5.2): without embeddings, biases and norms.
        activation_bytes: batch_size · block_size · n_embd · n_layer · 4 (5.2).
        memory_bytes: weights, gradients and AdamW's averages of those parameters, and those activations (5.2).
        attention_bytes: batch_size · block_size² · n_embd · 4 (1.2), which no implementation stores.
        seconds_per_step: 0.5 (5.3), for the standard recipe on an RTX 3060, from experience.
    """

    parameters: int
    activation_bytes: int
    memory_bytes: int
    attention_bytes: int
    seconds_per_step: float


def rules_of_thumb(config: Config) -> RulesOfThumb:
    """The chapter's formulas on a recipe."""
    count = 12 * config.n_layer * config.n_embd**2
    activations = config.batch_size * config.block_size * config.n_embd * config.n_layer * 4
    attention = config.batch_size * config.block_size**2 * config.n_embd * 4
    return RulesOfThumb(count, activations, 16 * count + activations, attention, 0.5)
