"""The rows of the table: what is measured on each side, and how.

In:  a :class:`Setting`: the peers' locations, how much to measure, the machine's ceiling.
Out: a :class:`Result`: samples of hfgpt and of its peer. Their names, units and goals are in ROWS.

A row alternates its sides, A B A B …, so that other load on the machine affects both. The threads of both are bound to
cores, except in rows about users who set nothing.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import peers
import scaling
import watch
from data_preparation import write_text
from peers import GPT2, QUICK, SMALL, STANDARD, Shape, Tokens
from table import median, summary

from hfgpt.base import hardware

NANOGPT_MISSING = "no peer: NANOGPT=path, a checkout of nanoGPT, was not given"


@dataclass
class Setting:
    """The settings of a row."""

    scratch: Path
    nanogpt: Path | None  # a checkout
    text: Path | None  # None: the corpus included in hfgpt
    gpt2_tokenizer: Path | None  # a folder with GPT-2's tokenizer
    device: str
    threads: int
    quick: bool = False  # one round, without compilation
    iterations: int | None = None  # iterations of a side in a round; None: the row's own number
    allocator: bool = False  # whether the peers, too, keep memory that a step frees
    numbers: itertools.count = field(default_factory=itertools.count)

    @functools.cached_property
    def characters(self) -> Tokens:
        """Return the text as character tokens, for both sides."""
        return peers.character_tokens(peers.read_text(self.text), self.scratch)

    @functools.cached_property
    def home(self) -> Path | None:
        """Return the folder in which nanoGPT is started; None without a checkout."""
        return peers.home(self.nanogpt, self.scratch) if self.nanogpt else None

    @functools.cached_property
    def tiktoken_files(self) -> Path:
        """Return a cache for tiktoken with GPT-2's vocabulary, taken byte for byte from the tokenizer's files.

        tiktoken names a file by the SHA-1 of its address, and would otherwise download it.
        """
        folder = self.scratch / "tiktoken"
        folder.mkdir()
        for theirs, ours in (("vocab.bpe", "merges.txt"), ("encoder.json", "vocab.json")):
            address = f"https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/{theirs}"
            shutil.copy(self.gpt2_tokenizer / ours, folder / hashlib.sha1(address.encode()).hexdigest())
        return folder

    @property
    def bound(self) -> dict[str, str]:
        """Return the environment of a comparison; with an accelerator nothing is bound."""
        return watch.environment(self.threads if self.device == "cpu" else None, self.scratch, self.allocator)

    @property
    def unbound(self) -> dict[str, str]:
        """Return the environment of a user who sets nothing."""
        return watch.environment(None, self.scratch, self.allocator)

    def rounds(self, usual: int) -> int:
        """Return how often the sides alternate."""
        return 1 if self.quick else usual

    def steps(self, usual: int) -> int:
        """Return how many iterations of a side count in a round."""
        return self.iterations or usual

    def folder(self) -> Path:
        """Return a new run folder."""
        return self.scratch / "runs" / str(next(self.numbers))

    def inside(self, name: str, **arguments: Any) -> Any:
        """Run a measurement of inside.py in its own process."""
        return watch.script("inside.py", self.bound, name, json.dumps(arguments))


@dataclass
class Result:
    """Samples of both sides, in the row's unit; higher or lower is better as the row says."""

    ours: list[float]
    peer: list[float] | None = None
    note: str = ""
    flops: float | None = None  # of one unit (a token), if the share of the ceiling is meaningful
    dtypes: tuple[str, str] = ("float32", "float32")  # of hfgpt's matrix products, and of the peer's


# ------------------------------------------------------------------------------------------------------------ training


def our_run(
    setting: Setting, shape: Shape, tokens: Tokens, steps: int, warm: int, *more: str, until_step: int | None = None
) -> tuple[list[float], watch.Finished]:
    """Return the steps' seconds after the first `warm`; with `until_step` the run is stopped once that is recorded."""
    folder = setting.folder()
    command = peers.our_command(shape, tokens, warm + steps, setting.device, folder, *more)
    metrics = folder / "metrics.jsonl"
    until = (lambda _: trained(metrics, until_step)) if until_step else None
    done = watch.run(command, setting.bound, until=until)
    # The first difference is that of steps 1 and 2.
    seconds = peers.our_steps(peers.records(metrics))[max(0, warm - 1) :]
    shutil.rmtree(folder)
    return seconds, done


def trained(metrics: Path, step: int) -> bool:
    """Whether a run has recorded this step."""
    return any("train_loss" in line and line["step"] >= step for line in peers.records(metrics))


def nanogpt_run(
    setting: Setting, shape: Shape, tokens: Tokens, steps: int, warm: int, compiled: bool
) -> tuple[list[float], watch.Finished]:
    """Return the iterations' seconds after the first `warm`."""
    command = peers.nanogpt_command(shape, tokens, warm + steps, setting.device, compiled)
    done = watch.run(command, setting.bound, cwd=setting.home)
    return peers.nanogpt_steps(done.lines)[max(0, warm - 1) :], done


def rates(seconds: list[float], tokens: int) -> list[float]:
    """Return the tokens per second of each step."""
    return [tokens / each for each in seconds]


def training(
    setting: Setting, shape: Shape, steps: int, warm: int, rounds: int, compiled: bool = False, dtype: str = "auto"
) -> Result:
    """Measure tokens/s of both training scripts; with `compiled` nanoGPT runs both ways, and the better one counts.

    On a CPU nanoGPT computes in float32; `dtype` is hfgpt's there. On a card both have bfloat16.
    """
    tokens, ours, modes = setting.characters, list[float](), dict[bool, list[float]]()
    on_card = setting.device == "cuda"
    for _ in range(setting.rounds(rounds)):
        precision = () if on_card else (f"--dtype={dtype}",)
        ours += rates(our_run(setting, shape, tokens, setting.steps(steps), warm, *precision)[0], shape.tokens)
        for mode in {on_card, compiled or on_card} if setting.home else ():
            taken, _ = nanogpt_run(setting, shape, tokens, setting.steps(steps), warm, mode)
            modes.setdefault(mode, []).extend(rates(taken, shape.tokens))
    flops = shape.flops(tokens.vocabulary) / shape.tokens
    dtypes = ("bfloat16", "bfloat16") if on_card else (chosen_dtype(shape, dtype), "float32")
    if not modes:
        return Result(ours, None, NANOGPT_MISSING, flops, dtypes)
    best = max(modes, key=lambda mode: median(modes[mode]))
    words = [f"{'compiled' if mode else 'eager'} {median(each):,.0f}" for mode, each in modes.items()]
    return Result(ours, modes[best], ", ".join(words) if len(words) > 1 else "", flops, dtypes)


def chosen_dtype(shape: Shape, dtype: str = "auto") -> str:
    """Return hfgpt's dtype on this CPU."""
    return hardware.cpu_dtype(shape.n_embd) if dtype == "auto" else dtype


def small(setting: Setting) -> Result:
    """The small shape. nanoGPT compiles for a minute in the first round; later ones use torch's cache."""
    return training(setting, SMALL, steps=50, warm=10, rounds=6, compiled=not setting.quick)


def small_float32(setting: Setting) -> Result:
    """The small shape again, both sides in float32."""
    return training(setting, SMALL, steps=50, warm=10, rounds=4, dtype="float32")


def standard(setting: Setting) -> Result:
    """The standard shape at a batch of 8."""
    return training(setting, STANDARD, steps=5, warm=2, rounds=2)


def standard_float32(setting: Setting) -> Result:
    """The standard shape again, both sides in float32."""
    return training(setting, STANDARD, steps=5, warm=2, rounds=2, dtype="float32")


def loops(setting: Setting, dtype: str) -> Result:
    """Measure steps of hfgpt's loop and of one in run_clm's style, each in its own processes, which alternate."""
    vocabulary, samples = setting.characters.vocabulary, dict[str, list[float]]()
    on_card = setting.device == "cuda"
    arguments = {"iterations": setting.steps(30), "vocabulary": vocabulary, "device": setting.device}
    for _ in range(setting.rounds(3)):
        for side in ("ours", "peer"):
            taken = setting.inside("run_clm", side=side, dtype="bfloat16" if on_card else dtype, **arguments)
            samples.setdefault(side, []).extend(rates(taken, SMALL.tokens))
    dtypes = ("bfloat16", "bfloat16") if on_card else (chosen_dtype(SMALL, dtype), "float32")
    return Result(samples["ours"], samples["peer"], "", SMALL.flops(vocabulary) / SMALL.tokens, dtypes)


def run_clm(setting: Setting) -> Result:
    """The small shape, with each side's defaults."""
    return loops(setting, "auto")


def run_clm_float32(setting: Setting) -> Result:
    """The small shape again, both sides in float32."""
    return loops(setting, "float32")


# nanoGPT's README, "I only have a macbook"; the number of iterations is the benchmark's.
NANOGPT_README = [
    "config/train_shakespeare_char.py",
    "--device=cpu",
    "--compile=False",
    "--eval_iters=20",
    "--log_interval=1",
    "--block_size=64",
    "--batch_size=12",
    "--n_layer=4",
    "--n_head=4",
    "--n_embd=128",
    "--dropout=0.0",
]
CPU_RECIPE = "recipes/shakespeare_char_cpu.yaml"
FAST_RECIPE = "recipes/fast_cpu.yaml"


def as_typed(setting: Setting) -> Result:
    """Both READMEs' commands for the CPU run, shortened; threads as each side sets them by default."""
    steps, ours, peer = max(setting.steps(150), 110), list[float](), list[float]()  # more than the warm-up of both
    tokens = SMALL.tokens
    for _ in range(setting.rounds(5)):
        folder = setting.folder()
        command = [*LAUNCH, "scripts/train.py", CPU_RECIPE, f"--max_iters={steps}", f"--out_dir={folder}"]
        command += [f"--lr_decay_iters={steps}"] + ([f"--dataset={setting.text}"] if setting.text else [])
        watch.run(command, setting.unbound)
        ours += rates(peers.our_steps(peers.records(folder / "metrics.jsonl")), tokens)
        if setting.home is not None:
            data = f"--dataset={setting.characters.nanogpt}"
            command = [sys.executable, "train.py", *NANOGPT_README, f"--max_iters={steps}", data]
            lines = watch.run(command, setting.unbound, cwd=setting.home).lines
            peer += rates(peers.nanogpt_steps(lines)[10:], tokens)
    flops = SMALL.flops(setting.characters.vocabulary) / tokens  # hfgpt's own 256 byte tokens are not counted
    return Result(ours, peer or None, "" if peer else NANOGPT_MISSING, flops, (chosen_dtype(SMALL), "float32"))


LAUNCH = [sys.executable, "-m", "accelerate.commands.launch"]


def time_to_loss(setting: Setting) -> Result:
    """Measure the whole command, with start, evaluations and writing, to nanoGPT's loss on its CPU recipe.

    nanoGPT's run goes once; `recipes/fast_cpu.yaml` with three seeds, each of which must end at or below its loss. All
    losses are over the same 200 x 12 fixed windows of the validation split.
    """
    if setting.home is None:
        return Result([], None, NANOGPT_MISSING)
    tokens = setting.characters
    steps = max(setting.steps(2000), 110)  # more than the warm-up
    command = [sys.executable, "train.py", *NANOGPT_README, f"--dataset={tokens.nanogpt}", "--out_dir=long"]
    command += [f"--max_iters={steps}", f"--lr_decay_iters={steps}", f"--eval_interval={min(250, steps)}"]
    windows = {"block_size": SMALL.block_size, "eval_iters": 200}
    theirs = watch.run(command, setting.bound, cwd=setting.home).seconds
    checkpoint = str(setting.home / "long" / "ckpt.pt")
    limit = setting.inside("held_out", folder=checkpoint, nanogpt=str(setting.home), tokens=str(tokens.ours), **windows)
    ours, losses = list[float](), list[float]()
    for seed in range(3):
        folder = setting.folder()
        command = [sys.executable, "scripts/train.py", FAST_RECIPE, *tokens.flags, f"--out_dir={folder}"]
        ours.append(watch.run([*command, f"--seed={seed}"], setting.bound).seconds)
        reached = setting.inside("held_out", folder=str(folder), nanogpt=None, tokens=str(tokens.ours), **windows)
        losses.append(reached["loss"])
    note = f"losses {', '.join(f'{loss:.4f}' for loss in losses)}; nanoGPT {limit['loss']:.4f}"
    if max(losses) > limit["loss"]:
        return Result([], [theirs], f"not reached: {note}")
    return Result(ours, [theirs], note)


def launched(setting: Setting, processes: int, threads: int, steps: int) -> tuple[list[float], int]:
    """Seconds of the steps, and peak bytes of one process, of so many processes with so many threads each.

    hfgpt gives each process cores of its own; an environment that binds would put all of them on the first.
    """
    folder = setting.folder()
    command = peers.our_command(SMALL, setting.characters, 20 + steps, "cpu", folder, f"--cpu_threads={threads}")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    watch.run(launcher + command[1:] if processes > 1 else command, setting.unbound)
    lines = peers.records(folder / "metrics.jsonl")
    return peers.our_steps(lines)[20:], max(line.get("memory_bytes", 0) for line in lines)


# ----------------------------------------------------------------------------------------------------------- generation


def generation(setting: Setting, shape: Shape, new: int, batch: int, rounds: int, vocabulary: int = 65) -> Result:
    """Measure tokens/s of both sides' generation, in one process."""
    samples = setting.inside(
        "generation",
        shape=dataclasses.asdict(shape),
        vocabulary=vocabulary,
        new=setting.steps(new),
        batch=batch,
        rounds=setting.rounds(rounds),
        nanogpt=str(setting.home) if setting.home else None,
        device=setting.device,
    )
    made = setting.steps(new) * batch
    peer = samples.get("peer")
    return Result(rates(samples["ours"], made), peer and rates(peer, made), "" if peer else NANOGPT_MISSING)


def generate_within(setting: Setting) -> Result:
    """63 tokens of the small shape, within its block of 64."""
    return generation(setting, SMALL, 63, 1, rounds=10)


def generate_past(setting: Setting) -> Result:
    """500 tokens of the small shape, past its block of 64: nanoGPT crops, hfgpt slides."""
    return generation(setting, SMALL, 500, 1, rounds=3)


def generate_gpt2(setting: Setting) -> Result:
    """200 tokens of the 124M shape."""
    return generation(setting, GPT2, 200, 1, rounds=3, vocabulary=peers.GPT2_VOCABULARY)


def generate_batch(setting: Setting) -> Result:
    """Eight texts of 63 tokens, small shape: one batch here, one after another in nanoGPT's sample.py."""
    return generation(setting, SMALL, 63, 8, rounds=3)


# --------------------------------------------------------------------------------------------------------------- data


ALMOST_NOTHING = 100_000  # characters
MEGABYTES = 60


def preparation(setting: Setting, tokenizer: str, script: str, rounds: int) -> Result:
    """MB/s from text to tokens on disk, on all cores.

    hfgpt's side is all that `data.prepare` does, starting workers and writing the cache included; of nanoGPT's script
    what it takes for almost no text (Python's start, imports, GPT-2's vocabulary) is left out, as imports are on ours.
    """
    ours, peer, note = list[float](), list[float](), ""
    write_text(setting.scratch / "text.txt", MEGABYTES)
    text = (setting.scratch / "text.txt").read_text()
    env = setting.unbound | ({"TIKTOKEN_CACHE_DIR": str(setting.tiktoken_files)} if setting.gpt2_tokenizer else {})

    def taken(action: Callable[[Path], float], size: int | None) -> float:
        """Return the seconds for the text's beginning, in its own folder, since hfgpt's cache is beside the text."""
        folder = setting.folder()
        folder.mkdir(parents=True)
        (folder / "input.txt").write_text(text[:size])
        seconds = action(folder)
        shutil.rmtree(folder)
        return seconds

    def mine(folder: Path) -> float:
        arguments = ("--only", str(folder / "input.txt"), "--tokenizer", tokenizer)
        return watch.script("data_preparation.py", setting.unbound, *arguments)["seconds"]

    def theirs(folder: Path) -> float:
        shutil.copy(setting.nanogpt / "data" / script / "prepare.py", folder)
        return watch.run([sys.executable, "prepare.py"], env, cwd=folder).seconds

    for _ in range(setting.rounds(rounds)):
        ours.append(MEGABYTES / taken(mine, None))
        if setting.nanogpt is None:
            note = NANOGPT_MISSING
            continue
        try:
            peer.append(MEGABYTES / (taken(theirs, None) - taken(theirs, ALMOST_NOTHING)))
        except watch.Failed as failure:
            note = f"no peer: nanoGPT's script ends with {failure}"
    return Result(ours, peer or None, note)


def prepare_characters(setting: Setting) -> Result:
    """By characters, against data/shakespeare_char/prepare.py (Python and numpy)."""
    return preparation(setting, "char", "shakespeare_char", rounds=3)


def prepare_bpe(setting: Setting) -> Result:
    """By GPT-2's tokens, against data/shakespeare/prepare.py (tiktoken)."""
    if setting.gpt2_tokenizer is None:
        return Result([], None, "not measured: GPT2_TOKENIZER=path, a folder with GPT-2's tokenizer, was not given")
    return preparation(setting, str(setting.gpt2_tokenizer), "shakespeare", rounds=3)


# ------------------------------------------------------------------------------------------------ start, memory, losses


def start(setting: Setting) -> Result:
    """Seconds from the README's command to the end of the first step, with warm caches."""
    return to_first_step(setting, LAUNCH)


def start_python(setting: Setting) -> Result:
    """The same without the launcher, like nanoGPT: `python scripts/train.py`, which suffices for one process."""
    return to_first_step(setting, [sys.executable])


def to_first_step(setting: Setting, launcher: list[str]) -> Result:
    """Measure the seconds from the command to the end of the first step; both sides evaluate before it."""
    ours, peer = list[float](), list[float]()
    for number in range(1 + setting.rounds(3)):  # the first run fills caches
        folder = setting.folder()
        metrics = folder / "metrics.jsonl"
        command = [*launcher, "scripts/train.py", "recipes/quick_experiment.yaml", f"--out_dir={folder}"]
        command += [f"--dataset={setting.text}"] if setting.text else []
        taken = watch.run(command, setting.unbound, until=lambda _, metrics=metrics: trained(metrics, 1)).seconds
        ours += [taken] if number else []
        if setting.home is not None:
            command = peers.nanogpt_command(QUICK, setting.characters, 500, "cpu", False, "--eval_iters=20")
            done = watch.run(command, setting.unbound, cwd=setting.home, until=first_iteration)
            peer += [done.seconds] if number else []
    return Result(ours, peer or None, "" if peer else NANOGPT_MISSING)


def first_iteration(lines: list[str]) -> bool:
    """Whether nanoGPT has printed an iteration."""
    return any(peers.ITERATION.match(line) for line in list(lines))


def memory(setting: Setting, shape: Shape, tokens: Tokens, rounds: int) -> Result:
    """Peak resident MB of both training scripts over their first steps, on a CPU."""
    ours, peer = list[float](), list[float]()
    for _ in range(setting.rounds(rounds)):
        # Stopped at the second step, when the optimizer has its averages: an evaluation adds time but no memory.
        _, done = our_run(setting, shape, tokens, 10, 0, "--dtype=float32", until_step=2)
        ours.append((done.peak_bytes or 0) / 1e6)
        if setting.home is not None:
            _, done = nanogpt_run(setting, shape, tokens, 2, 0, compiled=False)
            peer.append((done.peak_bytes or 0) / 1e6)
    return Result(ours, peer or None, "" if peer else NANOGPT_MISSING)


def memory_standard(setting: Setting) -> Result:
    """The standard shape."""
    return memory(setting, STANDARD, setting.characters, rounds=3)


def memory_gpt2(setting: Setting) -> Result:
    """The 124M shape, blocks of 1024, a batch of 4: 4096 x 50,257 logits."""
    return memory(setting, GPT2, peers.gpt2_tokens(GPT2.block_size, setting.scratch), rounds=1)


def evaluation(setting: Setting) -> Result:
    """Share (%) of the standard recipe's time that goes to its evaluations and checkpoints beyond their arithmetic.

    Measured on the standard shape at a batch of 8, with an evaluation of few blocks after every second step: the
    seconds that the record counts between a step and the end of the evaluation, less the arithmetic of the blocks as
    timed by itself; and between that and the next step's beginning, for export and checkpoint.
    """
    tokens, folder, eval_iters = setting.characters, setting.folder(), 1
    evaluations = setting.steps(3)
    flags = ["--eval_interval=2", f"--eval_iters={eval_iters}"]
    command = peers.our_command(STANDARD, tokens, 2 * evaluations, setting.device, folder)
    watch.run([word for word in command if not word.startswith("--eval_")] + flags, setting.bound)
    timed = setting.inside("arithmetic", vocabulary=tokens.vocabulary, device=setting.device)
    token = timed["evaluated_token"]
    lines, lost = peers.records(folder / "metrics.jsonl"), list[float]()
    evaluated = 2 * eval_iters * 12 * STANDARD.block_size  # both splits
    for before, line, after in zip(lines, lines[1:], lines[2:], strict=False):
        if "val_loss" in line and "train_loss" in before and "train_loss" in after:
            step = STANDARD.tokens / after["tokens_per_second"]
            evaluating = line["seconds"] - before["seconds"] - evaluated * token
            lost.append(evaluating + after["seconds"] - line["seconds"] - step)
    # The recipe: 64 sequences a step, an evaluation of 200 x 12 blocks of both splits every 250 steps.
    interval = 250 * timed["step"] * 64 / STANDARD.batch_size + 200 * evaluated * token
    note = f"{median(lost):.3f} s an evaluation, {interval / 250:.2f} s a step of the recipe; no peer"
    return Result([100 * each / (interval + each) for each in lost], None, note)


def checkpoint_delay(setting: Setting) -> Result:
    """The seconds by which a background checkpoint of 124M weights and their averages delays the steps."""
    seconds = setting.inside(
        "checkpoints", folder=str(setting.folder()), rounds=setting.steps(4), device=setting.device
    )
    return Result(seconds, None, "the first one included; no peer")


# ------------------------------------------------------------------------------------------------------------ the table


@dataclass(frozen=True)
class Row:
    """A row of the table. A ratio is above 1 if hfgpt is better, whether higher or lower values are better."""

    measure: Callable[[Setting], Result]
    title: str
    unit: str
    peer: str
    seconds: int  # approximate seconds on two slow cores, for the time left
    goal: float | None = 1.0  # ratio
    lower: bool = False  # is better
    long: bool = False  # runs with --long, or by its name
    cpu_only: bool = False

    @property
    def name(self) -> str:
        """As --only takes it."""
        return self.measure.__name__


# fmt: off
ROWS = (
    Row(small, "training, small shape (4 layers, 128, block 64, batch 12)", "tokens/s", "nanoGPT", 200, 1.25),
    Row(small_float32, "the same, hfgpt in float32 too", "tokens/s", "nanoGPT", 70, 1.25, cpu_only=True),
    Row(standard, "training, standard shape (6 layers, 384, block 256, batch 8)", "tokens/s", "nanoGPT", 80, 1.3),
    Row(standard_float32, "the same, hfgpt in float32 too", "tokens/s", "nanoGPT", 90, 1.3, cpu_only=True),
    Row(run_clm, "training loop, small shape", "tokens/s", "run_clm style", 45, 1.4),
    Row(run_clm_float32, "the same, hfgpt in float32 too", "tokens/s", "run_clm style", 45, 1.4, cpu_only=True),
    Row(as_typed, "the README's CPU command, nothing set", "tokens/s", "nanoGPT's README", 190, 1.25, cpu_only=True),
    Row(time_to_loss, "to nanoGPT's recipe's loss", "s", "nanoGPT", 300, 2.0, lower=True, long=True, cpu_only=True),
    Row(generate_within, "63 tokens within the block", "tokens/s", "nanoGPT", 20, 1.5),
    Row(generate_past, "500 tokens past a block of 64", "tokens/s", "nanoGPT", 40, 1.5),
    Row(generate_gpt2, "200 tokens, 124M shape", "tokens/s", "nanoGPT", 110, 8.0),
    Row(generate_batch, "eight texts of 63 tokens", "tokens/s", "nanoGPT", 25, 20.0),
    Row(prepare_characters, "text to blocks, characters", "MB/s", "nanoGPT's prepare.py", 40, cpu_only=True),
    Row(prepare_bpe, "text to blocks, GPT-2's tokens", "MB/s", "nanoGPT's prepare.py", 55, cpu_only=True),
    Row(start, "command to first step, quick_experiment", "s", "nanoGPT", 50, lower=True, cpu_only=True),
    Row(start_python, "the same, without accelerate launch", "s", "nanoGPT", 40, lower=True, cpu_only=True),
    Row(memory_standard, "peak memory, standard shape", "MB", "nanoGPT", 70, 1.11, lower=True, cpu_only=True),
    Row(memory_gpt2, "peak memory, 124M, 1024 x 4", "MB", "nanoGPT", 500, 1.43, lower=True, long=True, cpu_only=True),
    Row(evaluation, "lost to evaluations and checkpoints", "% of the time", "", 80, goal=None, lower=True),
    Row(checkpoint_delay, "delay by a checkpoint of 124M behind the steps", "s", "", 60, goal=None, lower=True),
)
# fmt: on


def measure_scaling(setting: Setting) -> list[dict[str, Any]]:
    """Measure the factors of one process, and the number of processes."""
    factors = watch.script("scaling.py", setting.bound, *(["--quick"] if setting.quick else []))
    counts = [count for count in (1, 2, 4) if count <= setting.threads]
    if len(counts) > 1:
        taken = [launched(setting, count, 1, setting.steps(40)) for count in counts]
        seconds, held = [summary(each) for each, _ in taken], [each for _, each in taken]
        factors.append(
            {
                "factor": "processes",
                "values": counts,
                "seconds": seconds,
                "bytes": held,
                "time_exponent": scaling.exponent(counts, [each["median"] for each in seconds]),
                "time_theory": -1.0,
                "memory_exponent": scaling.exponent(counts, held),
                "memory_theory": 0.0,
            }
        )
    return factors


def measure_profile(setting: Setting) -> dict[str, Any]:
    """Measure where a step's time goes, by shape and number type."""
    found = dict[str, Any]()
    for name, shape in (("small", SMALL), ("standard", STANDARD)):
        for dtype in sorted({"float32", chosen_dtype(shape)}):
            found[f"{name}, {dtype}"] = watch.script("profile_step.py", setting.bound, name, dtype)
    return found
