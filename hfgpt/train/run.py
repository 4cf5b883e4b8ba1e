"""One run: its parts, made from a recipe, saved and brought back.

In:  a resolved Config and what launched this process.
Out: a :class:`Run`, ready for the loop in :mod:`hfgpt.train.loop`; its checkpoints and exported model.

A process owns a :class:`Run`; what differs between the processes is their share of each batch, and their generators.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import shutil
import warnings
from bisect import bisect_right
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from accelerate import Accelerator, PartialState
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    GradientAccumulationPlugin,
    ProjectConfiguration,
    TorchDynamoPlugin,
    broadcast_object_list,
    gather_object,
    parse_flag_from_env,
)
from torch.distributed.distributed_c10d import _set_pg_timeout

from hfgpt import config as configs
from hfgpt.base import files, threads
from hfgpt.base import machine as hardware
from hfgpt.base.errors import InputError
from hfgpt.base.units import seconds_of
from hfgpt.config import Config
from hfgpt.data import corpus as data
from hfgpt.data import tokenizer as tokenizers
from hfgpt.model import gpt2 as models
from hfgpt.model import optim, sizes
from hfgpt.runs.metrics import FILE_NAME, SAMPLES, MetricsWriter, truncate_samples
from hfgpt.share import export, hub
from hfgpt.train import checkpoint, states
from hfgpt.train.display import Display

PRECISION = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}  # the recipe's names and Accelerate's

PREPARING = timedelta(days=1)  # one process may tokenise a large corpus for as long, while the others wait for it

# Whatever else a resume may change, these decide which run it is.
IDENTITY = ("seed", "block_size", "val_fraction", "document_mask", "streaming", "optimizer")


@dataclass
class Progress:
    """Where a run is: what changes from step to step, beside weights, averages and generators."""

    step: int = 0
    evaluated_step: int | None = None
    best_val_loss: float | None = None
    best_step: int | None = None
    evaluations_without_improvement: int = 0
    seconds: float = 0.0  # since the run began, without the time between a stop and its resume
    overflows: int = 0  # float16 steps whose update loss scaling left out
    bad_steps: int = 0  # steps in a row whose loss or gradient was not finite
    spikes: int = 0  # steps whose update the spike guard left out
    average_norm: float | None = None  # running average of the gradient norm


@dataclass
class Run:
    """One process's view of a run in progress."""

    config: Config
    accelerator: Accelerator
    corpus: data.Corpus
    model: torch.nn.Module  # a LanguageModel in Accelerate's wrappers
    optimizer: Any  # in Accelerate's wrapper
    display: Display
    metrics: MetricsWriter
    micro_batch: int  # sequences on this device at a time
    val_characters: int  # that the targets of the evaluated validation blocks stand for
    progress: Progress = field(default_factory=Progress)
    drawn: tuple[int, dict[str, Any]] = (-1, {})  # a step, and the state of the data before its batches were drawn
    pusher: hub.BackgroundPusher | None = None  # on the main process, where the recipe says push_to_hub

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.config.run_dir

    @property
    def device(self) -> torch.device:
        """Where this process trains."""
        return self.accelerator.device

    @property
    def main(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.accelerator.is_main_process

    @property
    def sharded(self) -> bool:
        """Whether each process holds a part of the weights only (FSDP)."""
        return self.accelerator.distributed_type == DistributedType.FSDP

    @property
    def plain(self) -> models.LanguageModel:
        """The LanguageModel inside the wrappers of DDP and compile.

        Its forward keeps Accelerate's mixed precision: asking for the model without would take it from the run.
        """
        return self.accelerator.unwrap_model(self.model, keep_torch_compile=False)


# ------------------------------------------------------------------------------------------------------ the start


def start(config: Config, *, resume: bool = False, overwrite: bool = False) -> Run:
    """Everything that a run needs, checked before the first step; the folder is touched last.

    Raises:
        InputError: config, data, model, launch or folder do not go together; nothing was written.
    """
    # torchrun starts all processes anew when one has died; what they were doing goes on.
    if restarts():
        resume, overwrite = True, False
    resume = resume or config.init_from == "resume"
    if not config.eval_only:
        check_folder(config, resume, overwrite)
    accelerator = make_accelerator(config)
    check_optimizer(config, accelerator.distributed_type)
    micro_batch = config.micro_batch(accelerator.num_processes)
    check_size(config, accelerator)
    display = Display(config.max_iters, accelerator.is_main_process)
    corpus = prepare_corpus(config, accelerator)
    saved = find_checkpoint(config, display) if resume else None
    patience = timedelta(seconds=seconds_of(config.process_timeout))
    torch.manual_seed(config.seed)
    vocab_size = tokenizers.vocabulary_size(corpus.tokenizer)
    model = models.build(config, vocab_size, corpus.tokenizer.eos_token_id)
    run = Run(
        config=config,
        accelerator=accelerator,
        corpus=corpus,
        model=model,
        optimizer=optim.build(model, config, accelerator.device),
        display=display,
        metrics=MetricsWriter(config.run_dir / FILE_NAME),
        micro_batch=micro_batch,
        val_characters=count_characters(config, corpus),
    )
    if saved is not None:
        check_identity(run, saved)
    if not config.eval_only:
        start_tracker(run)
        claim_folder(run, overwrite, None if not resume else saved.state["step"] if saved else -1)
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        tell_deepspeed(run)
    run.model, run.optimizer = accelerator.prepare(run.model, run.optimizer)
    if saved is not None:
        restore(run, saved)
    else:
        seed_process(run)
    if run.main and config.push_to_hub and not config.eval_only:
        run.pusher = hub.BackgroundPusher(
            run.folder,
            config.hub_model_id or run.folder.name,
            private=config.hub_private or None,
            overwrite=overwrite,
            warn=display.warn,
        )
    if accelerator.num_processes > 1:  # from here on no process has reason to be late
        _set_pg_timeout(patience)
    return run


def make_accelerator(config: Config) -> Accelerator:
    """Accelerate as the recipe says, whatever the environment or an Accelerate configuration says differently.

    Raises:
        InputError: the device, the precision or the tracker is not to be had here.
    """
    # Told that it is on a CPU, Accelerate joins the launched processes over gloo; by itself it would stay alone.
    cpu = config.device == "cpu" or parse_flag_from_env("ACCELERATE_USE_CPU")
    if not torch.accelerator.is_available() and not parse_flag_from_env("ACCELERATE_USE_DEEPSPEED"):
        cpu = True
    join_after_restart("gloo" if cpu else None)
    state = PartialState(cpu=cpu, timeout=PREPARING)
    device = state.device.type
    if config.device not in ("auto", device):
        raise InputError(f"device = {config.device!r}: not available here, where training runs on {device!r}")
    dtype = choose_dtype(config.dtype, device, config.n_embd)
    if config.report_to != "none" and importlib.util.find_spec(config.report_to) is None:
        raise InputError(f"report_to = {config.report_to!r}: is not installed → pip install {config.report_to}")
    steps = config.global_batch // state.num_processes // config.micro_batch(state.num_processes)
    _overrule("ACCELERATE_MIXED_PRECISION", PRECISION[dtype], {"no"}, "dtype")
    _overrule("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", str(steps), {"1"}, "gradient_accumulation_steps")
    _overrule("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR" if config.compile else "NO", {"NO", "no"}, "compile")
    if device == "cuda":
        torch.set_float32_matmul_precision("high")
    if device == "cpu":
        _keep_freed_memory()
    compiles = config.compile and _can_compile(device)
    return Accelerator(
        cpu=cpu,
        mixed_precision=PRECISION[dtype],
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=steps, sync_with_dataloader=False),
        dynamo_plugin=TorchDynamoPlugin(backend="inductor" if compiles else "no"),
        kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)],
        log_with=None if config.report_to == "none" else config.report_to,
        project_config=ProjectConfiguration(config.out_dir, logging_dir=str(config.run_dir / "logs")),
    )


def check_optimizer(config: Config, engine: DistributedType) -> None:
    """Muon needs whole matrices, with their gradients, in every process.

    Raises:
        InputError: the engine keeps shards of them, or puts an optimizer of its own in the place of ours.
    """
    if config.optimizer == "muon" and engine in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        raise InputError(
            f"optimizer = 'muon': needs whole matrices, and {engine.value} shards them → set optimizer to 'adamw', or "
            "launch without shards (accelerate_configs/multi_gpu.yaml)"
        )


def start_tracker(run: Run) -> None:
    """Begin the run in the recipe's tracker, if it names one.

    Raises:
        InputError: the tracker refuses, for want of a login or a network.
    """
    config = run.config
    if config.report_to == "none":
        return
    named = {"name": config.run_dir.name}  # in a tracker a run is called what its folder is called
    try:
        run.accelerator.init_trackers(config.project, config.model_dump(), {"wandb": named, "trackio": named})
    except Exception as error:  # each tracker has its own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        ways = {"wandb": "log in with `wandb login`, or set WANDB_MODE=offline; or "}.get(config.report_to, "")
        raise InputError(
            f"report_to = {config.report_to!r}: cannot be started: {reason} → {ways}leave report_to out"
        ) from None


def tell_deepspeed(run: Run) -> None:
    """DeepSpeed accumulates and clips by itself: give it the recipe's numbers."""
    run.accelerator.state.deepspeed_plugin.deepspeed_config.update(
        train_micro_batch_size_per_gpu=run.micro_batch,
        gradient_accumulation_steps=run.accelerator.gradient_accumulation_steps,
        gradient_clipping=run.config.grad_clip,
    )


def restarts() -> int:
    """How often torchrun has started all processes anew since one of them died."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))


def join_after_restart(backend: str | None) -> None:
    """Find the other processes in a corner of torchrun's store that is this attempt's own.

    The store outlives a restart, and with it the addresses of processes that are gone: gloo may read one before its
    owner has put the new one there, and fails to connect (torch 2.13, either rendezvous backend).

    Args:
        backend: as Accelerate would choose; with None (torch makes one for every kind of device) on a CPU, the last
            process now and then did not come to its end.
    """
    if not restarts() or dist.is_initialized():
        return
    store, rank, world = next(dist.rendezvous("env://", timeout=PREPARING))
    store = dist.PrefixStore(f"restart{restarts()}", store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=PREPARING)


def choose_dtype(dtype: str, device: str, n_embd: int) -> str:
    """What `dtype: auto` is on a device: bfloat16 where it is fast, float16 on older CUDA cards, else float32.

    Raises:
        InputError: float16 on a CPU, whose small range needs the loss scaling that accelerators have.
    """
    if dtype == "auto":
        if device == "cuda":
            return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
        if device == "cpu":
            return hardware.cpu_dtype(n_embd)
        return "bfloat16" if device == "xpu" else "float32"
    if dtype == "float16" and device == "cpu":
        raise InputError("dtype = 'float16': needs an accelerator, and this run is on a CPU → set dtype to 'float32'")
    return dtype


def _overrule(variable: str, ours: str, neutral: set[str], key: str) -> None:
    """The recipe is the truth: say so where the environment, or an Accelerate configuration, says something else."""
    theirs = os.environ.get(variable)
    if theirs is not None and theirs.lower() != ours.lower():
        if theirs not in neutral and PartialState().is_main_process:
            warnings.warn(f"{variable}={theirs} is overruled by the recipe's {key}: {ours}", stacklevel=3)
        os.environ[variable] = ours


def _keep_freed_memory() -> None:
    """Let glibc keep what a step frees for the next one, instead of giving it back to the system.

    Each page that comes back costs a fault: 2,000 in a step of the small recipes, a tenth of its time in bfloat16.
    The process ends up as large as its largest step, as it does on a card. Another C library has no such setting.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    mallopt(_M_MMAP_THRESHOLD, 2**30)


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # as glibc's malloc.h numbers them


def _can_compile(device: str) -> bool:
    """Whether torch.compile finds what it needs (a C++ compiler, Triton); warns where it does not."""
    try:
        torch.compile(lambda x: x * 2 + 1)(torch.ones(8, device=device))
    except Exception as error:  # whatever the backend raises, training without it works
        reason = str(error).strip().splitlines()[0]
        warnings.warn(f"compile: true is left out, torch.compile does not work here: {reason}", stacklevel=2)
        return False
    return True


STATE = 16  # bytes a parameter: weight, gradient and AdamW's two averages, in float32


def check_size(config: Config, accelerator: Accelerator) -> None:
    """Refuse a model that no step of could fit, before a corpus is prepared for it or the system ends the process.

    What is counted is less than a run takes: the blocks alone, without embeddings, activations and libraries. So
    nothing is refused that might train; what is too large by less is found at the first step.

    Raises:
        InputError: the blocks take more than there is; says how much, and which n_embd would do.
    """
    if config.pretrained:  # its own shape is not known yet
        return
    total, where = memory_for_state(accelerator)
    each = 4 if config.eval_only else STATE
    need = each * _block_parameters(config)
    if total is None or need <= total:
        return
    head = config.n_head
    widths = range(head, config.n_embd, head)
    fitting = bisect_right(widths, total, key=lambda width: each * _block_parameters(config, width))
    advice = f"n_embd = {widths[fitting - 1]} at most with this n_layer" if fitting else "a smaller n_layer and n_embd"
    parts = "weights" if config.eval_only else "weights, gradients and optimizer"
    raise InputError(
        f"n_layer = {config.n_layer}, n_embd = {config.n_embd}: {_block_parameters(config):,} parameters; their "
        f"{parts} take {need / 2**30:,.1f} GiB, and {where} {total / 2**30:,.1f} GiB\n"
        f"    → {advice}; python scripts/plan.py says what a recipe takes"
    )


def _block_parameters(config: Config, width: int | None = None) -> int:
    """Parameters of the Transformer blocks, also with another n_embd."""
    counted = sizes.parameters(config.model_copy(update={"n_embd": width or config.n_embd}), vocab_size=0)
    return counted.attention + counted.mlp + counted.norms


def memory_for_state(accelerator: Accelerator) -> tuple[int | None, str]:
    """Bytes that one copy of weights, gradients and averages may take, and whose; None where that is not known.

    Replicas on a CPU share the machine's memory; shards (FSDP) have all of their devices' together.
    """
    kind, device, processes = accelerator.distributed_type, accelerator.device, accelerator.num_processes
    sharded = kind == DistributedType.FSDP
    if kind == DistributedType.DEEPSPEED or (sharded and accelerator.state.fsdp_plugin.cpu_offload):
        return None, ""  # the state may be in host memory, or on a disk
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device).total_memory
        return (card * processes, f"{processes} cards have") if sharded else (card, "the card has")
    if device.type not in ("cpu", "mps"):
        return None, ""
    here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    memory = hardware.cpu_memory_bytes()
    if sharded:
        return memory * processes // here, "this machine has" if here == processes else "these machines have"
    return memory // here, f"each of {here} processes here has" if here > 1 else "this machine has"


def prepare_corpus(config: Config, accelerator: Accelerator) -> data.Corpus:
    """The corpus, made by one process of each machine and read from the cache by the others.

    Raises:
        InputError: on every process alike, so that none waits for another.
    """
    problem: InputError | None = None
    with threads.unpinned(), accelerator.local_main_process_first():
        try:
            return data.prepare(config)
        except InputError as error:
            problem = error
    raise problem


def count_characters(config: Config, corpus: data.Corpus) -> int:
    """The characters that the evaluated validation targets stand for."""
    blocks = data.evaluation_blocks(corpus.val, config.block_size, config.eval_iters)
    return data.CharacterCounter(corpus.tokenizer)(corpus.val.blocks(blocks, config.block_size)[:, 1:])


def seed_process(run: Run) -> None:
    """Dropout differs between processes, and after a resume on another number of them, but never by chance."""
    words = (run.config.seed, run.accelerator.process_index, run.accelerator.num_processes, run.progress.step)
    torch.manual_seed(int(np.random.SeedSequence(words).generate_state(1)[0]))


# ----------------------------------------------------------------------------------------------------- the folder

_RUN_FILES = (FILE_NAME, SAMPLES, "model.safetensors", "loss.png", "README.md", "recipe.yaml")


def holds_run(folder: Path) -> bool:
    """Whether a run has written here."""
    return (folder / FILE_NAME).exists() or (folder / "model.safetensors").exists() or bool(checkpoint.steps(folder))


def check_folder(config: Config, resume: bool, overwrite: bool) -> None:
    """A run is never overwritten unasked.

    Raises:
        InputError: what is in out_dir does not fit what was asked.
    """
    folder = config.run_dir
    if resume and overwrite:
        raise InputError("--resume and --overwrite: one goes on with the run, the other replaces it; give one of them")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"out_dir = {str(folder)!r}: is a file → name a folder")
    if holds_run(folder) and not resume and not overwrite:
        raise InputError(
            f"out_dir = {str(folder)!r}: holds a run → --resume goes on with it, --overwrite replaces it, "
            "--out_dir=… puts the new one elsewhere"
        )


def claim_folder(run: Run, overwrite: bool, resumed_step: int | None) -> None:
    """Make out_dir, and write the resolved recipe there. Collective.

    Args:
        overwrite: empty it of an older run first.
        resumed_step: forget what the record says of later steps; None where a run begins.

    Raises:
        InputError: it is not writable; on every process alike.
    """
    problems = [_claim(run, overwrite, resumed_step) if run.main else ""]
    if problem := broadcast_object_list(problems)[0]:
        raise InputError(f"out_dir = {str(run.folder)!r}: cannot be written: {problem}")


def _claim(run: Run, overwrite: bool, resumed_step: int | None) -> str:
    """What kept the folder from being claimed; "" where nothing did."""
    folder = run.folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if overwrite:
            for _, path in checkpoint.folders(folder):
                shutil.rmtree(path)
            for name in _RUN_FILES:
                (folder / name).unlink(missing_ok=True)
        checkpoint.discard_unfinished(folder)
        files.replace_file(folder / "recipe.yaml", configs.to_yaml(run.config))
        if resumed_step is not None:
            run.metrics.truncate_after(resumed_step)
            truncate_samples(folder / SAMPLES, resumed_step)
    except OSError as error:
        return error.strerror or str(error)
    return ""


# ----------------------------------------------------------------------------------------------- saving and resuming


def save(run: Run) -> None:
    """Write a checkpoint of the step that is done. Collective: every process calls it.

    Raises:
        OSError: the disk is full or not writable; what was there before is untouched.
    """
    weights = export.weights(states.weights(run.accelerator, run.plain))
    averages = states.averages(run.accelerator, run.plain, run.optimizer)
    rng = {name: state for states in gather_object([_generators(run)]) for name, state in states.items()}
    if run.main:
        checkpoint.write(
            run.folder,
            run.progress.step,
            weights,
            checkpoint.flatten({name.removeprefix("gpt2."): state for name, state in averages.items()}),
            rng,
            {
                "progress": asdict(run.progress),
                "identity": identity(run),
                "processes": run.accelerator.num_processes,
                "data": run.corpus.batches.state_dict(),
                "scaler": run.accelerator.scaler.state_dict() if run.accelerator.scaler else None,
            },
        )
        checkpoint.rotate(run.folder, run.progress.step, run.config.save_total_limit, run.progress.best_step)
    run.accelerator.wait_for_everyone()


def export_model(run: Run) -> None:
    """Write the model as it is now for Transformers, into the run folder itself. Collective."""
    weights = export.weights(states.weights(run.accelerator, run.plain))
    if run.main:
        export.write(run.folder, run.plain.gpt2, run.corpus.tokenizer, weights)


def _generators(run: Run) -> dict[str, torch.Tensor]:
    rank = run.accelerator.process_index
    states = {f"cpu.{rank}": torch.get_rng_state()}
    if run.device.type == "cuda":
        states[f"cuda.{rank}"] = torch.cuda.get_rng_state(run.device)
    return states


def identity(run: Run) -> dict[str, Any]:
    """What a run and its resume must have in common: the model's shape and the sequence of batches."""
    shape = run.plain.gpt2.config  # not the config's, which a pretrained model replaces
    return {
        **{key: getattr(run.config, key) for key in IDENTITY},
        **{key: getattr(shape, key) for key in ("n_layer", "n_head", "n_embd")},
        "global batch (batch_size x gradient_accumulation_steps)": run.config.global_batch,
        "tokenizer": tokenizers.fingerprint(run.corpus.tokenizer),
        "data": run.corpus.fingerprint,
    }


def find_checkpoint(config: Config, display: Display) -> checkpoint.Checkpoint | None:
    """The newest valid checkpoint; None where no checkpoint was written yet, so that the run begins.

    Raises:
        InputError: there are checkpoints, and all of them are damaged.
    """
    if not checkpoint.steps(config.run_dir):
        display.say(f"{config.run_dir} holds no checkpoint yet: beginning at step 0")
        return None
    return checkpoint.newest_valid(config.run_dir, display.warn)


def check_identity(run: Run, saved: checkpoint.Checkpoint) -> None:
    """A resume goes on with the same run.

    Raises:
        InputError: naming each difference.
    """
    then, now = {"optimizer": "adamw", **saved.state["identity"]}, identity(run)  # it was the only one once
    different = [key for key in now if then.get(key) != now[key]]
    if different:
        lines = [f"  {key}: {then.get(key)!r} in the checkpoint, {now[key]!r} now" for key in different]
        raise InputError(
            f"{saved.path} is a checkpoint of another run:\n" + "\n".join(lines) + "\n"
            f"    → resume with its own recipe, {run.folder / 'recipe.yaml'}, or set another out_dir"
        )


def restore(run: Run, saved: checkpoint.Checkpoint) -> None:
    """Bring a checkpoint back into a run that is prepared. Collective."""
    weights = {f"gpt2.{name}": tensor for name, tensor in export.with_tied_head(saved.model).items()}
    averages = {f"gpt2.{name}": state for name, state in checkpoint.unflatten(saved.optimizer).items()}
    try:
        states.load(run.accelerator, run.plain, run.optimizer, weights, averages)
    except (RuntimeError, KeyError, ValueError) as error:
        raise InputError(f"{saved.path} does not fit this model: {str(error).splitlines()[0]}") from None
    run.progress = Progress(**saved.state["progress"])
    run.corpus.batches.load_state_dict(saved.state["data"])
    if run.accelerator.scaler is not None and saved.state["scaler"]:
        run.accelerator.scaler.load_state_dict(saved.state["scaler"])
    if saved.state["processes"] == run.accelerator.num_processes:
        rank = run.accelerator.process_index
        torch.set_rng_state(saved.rng[f"cpu.{rank}"])
        if f"cuda.{rank}" in saved.rng and run.device.type == "cuda":
            torch.cuda.set_rng_state(saved.rng[f"cuda.{rank}"], run.device)
    else:
        seed_process(run)
        if run.config.dropout:
            run.display.say("the number of processes has changed: same batches, other dropout masks from here on")
