"""Accelerate, set up as the recipe says.

In:  a resolved Config, and the environment that a launcher set.
Out: an Accelerator with the recipe's device, precision and accumulation; its tracker; or an InputError.
"""

import importlib.util
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import Accelerator, PartialState
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    GradientAccumulationPlugin,
    ProjectConfiguration,
    TorchDynamoPlugin,
    parse_flag_from_env,
)
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.rendezvous import rendezvous

from hfgpt.base import hardware
from hfgpt.base.errors import InputError, first_line
from hfgpt.base.language import _
from hfgpt.config import Config
from hfgpt.model import sizes
from hfgpt.train.collective import UNHURRIED

PRECISION = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}  # the recipe's names → Accelerate's


@contextmanager
def _faults_as_messages() -> Iterator[None]:
    """Turn what torch and Accelerate raise for invalid launcher variables into an InputError."""
    try:
        yield
    except ValueError as error:
        raise InputError(
            "the launch cannot be set up: {reason}\n    → unset the variables that another launcher has left, or start "
            "with accelerate launch or torchrun",
            reason=first_line(error),
        ) from None


@_faults_as_messages()
def make_accelerator(config: Config) -> Accelerator:
    """Return an Accelerator for the recipe, which overrides the environment and an Accelerate configuration.

    Raises:
        InputError: the device, the precision or the tracker is not available here.
    """
    # Accelerate connects launched CPU processes over gloo only if it is told that it is on a CPU.
    cpu = config.device == "cpu" or parse_flag_from_env("ACCELERATE_USE_CPU")
    if not torch.accelerator.is_available() and not parse_flag_from_env("ACCELERATE_USE_DEEPSPEED"):
        cpu = True
    join_after_restart("gloo" if cpu else None)
    state = PartialState(cpu=cpu, timeout=UNHURRIED)
    device = state.device.type
    if config.device not in ("auto", device):
        raise InputError(
            "device = {asked!r}: is not available here → leave it out, or set it to {device!r}",
            asked=config.device,
            device=device,
        )
    dtype = choose_dtype(config.dtype, device, config.n_embd)
    if config.report_to != "none" and importlib.util.find_spec(config.report_to) is None:
        raise InputError("report_to = {tracker!r}: is not installed → pip install {tracker}", tracker=config.report_to)
    steps = config.of_process(state.num_processes).gradient_accumulation_steps
    compiles = wants_compilation(config, device, dtype, state.num_processes) and _can_compile(device)
    _overrule("ACCELERATE_MIXED_PRECISION", PRECISION[dtype], {"no"}, "dtype")
    _overrule("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", str(steps), {"1"}, "gradient_accumulation_steps")
    _overrule("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR" if compiles else "NO", {"NO", "no"}, "compile")
    if device == "cuda":
        torch.set_float32_matmul_precision("high")
    if config.deterministic:
        _be_deterministic()
    if device == "cpu":
        hardware.keep_freed_memory()
    if compiles:
        _compile_for_resuming(config.deterministic)
    dynamo = TorchDynamoPlugin(backend="inductor" if compiles else "no", dynamic=False)
    accelerator = Accelerator(
        cpu=cpu,
        mixed_precision=PRECISION[dtype],
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=steps, sync_with_dataloader=False),
        dynamo_plugin=dynamo,
        kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)],
        log_with=None if config.report_to == "none" else config.report_to,
        project_config=ProjectConfiguration(config.out_dir, logging_dir=str(config.run_dir / "logs")),
    )
    accelerator.state.dynamo_plugin = dynamo  # Accelerate keeps that of the process's first Accelerator
    if accelerator.distributed_type == DistributedType.FSDP:
        _keep_sums_wide(accelerator, dtype)
    return accelerator


def _keep_sums_wide(accelerator: Accelerator, dtype: str) -> None:
    """Have FSDP2 gather weights in the narrow type, but reduce gradients and sum losses in float32.

    Accelerate's own policy uses the narrow type for all of them. In bfloat16 the losses then differ from DDP's by up to
    0.013; in float16 the summed loss, which is above 65,504 nats, is infinite.

    Raises:
        InputError: the configuration asks for FSDP1.
    """
    plugin = accelerator.state.fsdp_plugin
    if plugin.fsdp_version != 2:
        raise InputError(
            "fsdp_version = {version}: only 2 is supported → set it in the Accelerate configuration "
            "(accelerate_configs/fsdp2.yaml)",
            version=plugin.fsdp_version,
        )
    narrow = None if dtype == "float32" else getattr(torch, dtype)
    plugin.mixed_precision_policy = MixedPrecisionPolicy(param_dtype=narrow, reduce_dtype=torch.float32)


def check_engine(config: Config, engine: DistributedType) -> None:
    """Refuse settings that the engine cannot honour.

    DeepSpeed gives the optimizer one flat tensor of all weights, but Muon needs the separate matrices. It also updates
    the weights inside its backward pass, before the gradient norm is known here.

    Raises:
        InputError: names the setting and what to do.
    """
    if engine != DistributedType.DEEPSPEED:
        return
    if config.optimizer == "muon":
        raise InputError(
            "optimizer = 'muon': needs the weights as matrices, and DeepSpeed flattens them → launch with FSDP2, "
            "which shards as much (accelerate_configs/fsdp2.yaml), or set optimizer to 'adamw'"
        )
    if config.batch_warmup_iters:
        raise InputError(
            "batch_warmup_iters = {steps}: DeepSpeed takes as many micro-batches in every step → leave it out, or "
            "launch with DDP or FSDP2 (accelerate_configs/multi_gpu.yaml, fsdp2.yaml)",
            steps=config.batch_warmup_iters,
        )
    for key, is_set in (("spike_guard", config.spike_guard is not None), ("max_bad_steps", config.max_bad_steps > 1)):
        if is_set:
            raise InputError(
                "{key} = {value}: DeepSpeed updates the weights before the gradient norm is known → leave {key} "
                "out, or launch with DDP or FSDP2 (accelerate_configs/multi_gpu.yaml, fsdp2.yaml)",
                key=key,
                value=getattr(config, key),
            )


def start_tracker(accelerator: Accelerator, config: Config) -> None:
    """Begin the run, named after its folder, in the recipe's tracker, if it names one.

    Raises:
        InputError: the tracker failed, for example without a login or a network.
    """
    if config.report_to == "none":
        return
    named = {"name": config.run_dir.name}
    try:
        accelerator.init_trackers(config.project, config.model_dump(), {"wandb": named, "trackio": named})
    except Exception as error:  # each tracker raises its own errors
        reason = first_line(error)
        if config.report_to == "wandb":
            fix = _("log in with `wandb login`, or set WANDB_MODE=offline; or leave report_to out")
        else:
            fix = _("leave report_to out")
        raise InputError(
            _("report_to = {tracker!r}: cannot be started: {reason}", tracker=config.report_to, reason=reason)
            + f" → {fix}"
        ) from None


def configure_deepspeed(accelerator: Accelerator, config: Config, micro_batch: int) -> None:
    """Give DeepSpeed the recipe's numbers, since it accumulates and clips by itself."""
    accelerator.state.deepspeed_plugin.deepspeed_config.update(
        train_micro_batch_size_per_gpu=micro_batch,
        gradient_accumulation_steps=accelerator.gradient_accumulation_steps,
        gradient_clipping=config.grad_clip,
    )


def restarts() -> int:
    """Return how often torchrun has restarted all processes because one died."""
    times = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return int(times) if times.isdecimal() else 0


def launch_id() -> str:
    """Return what distinguishes torchrun's launch from any other, the same after a restart; empty without torchrun."""
    if "TORCHELASTIC_RESTART_COUNT" not in os.environ:
        return ""
    if (given := os.environ.get("TORCHELASTIC_RUN_ID", "none")) != "none":
        return given
    # <a folder that torchrun makes for each launch>/attempt_0/0/error.json
    parents = Path(os.environ.get("TORCHELASTIC_ERROR_FILE", "")).parents
    parent = os.getppid()
    return str(parents[2]) if len(parents) > 2 else f"{parent} {hardware.began(parent)}"


def join_after_restart(backend: str | None) -> None:
    """Connect the processes through a prefix of torchrun's store that belongs to this attempt alone.

    The store outlives a restart, and so do the addresses of processes that have ended: gloo may read a stale one and
    fail to connect (torch 2.13, either rendezvous backend).

    Args:
        backend: the one that Accelerate would choose. With None, torch creates one for every kind of device; on a CPU
            the last process then sometimes did not end.
    """
    if not restarts() or dist.is_initialized():
        return
    store, rank, world = next(rendezvous("env://", timeout=UNHURRIED))
    store = PrefixStore(f"restart{restarts()}", store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=UNHURRIED)


def choose_dtype(dtype: str, device: str, n_embd: int) -> str:
    """Resolve `dtype: auto` for a device: bfloat16 where it is fast, float16 on older CUDA cards, otherwise float32.

    Raises:
        InputError: float16 on a CPU; its small range needs loss scaling, which only accelerators have.
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


def _overrule(variable: str, value: str, neutral: set[str], key: str) -> None:
    """Warn where the recipe overrides the environment or an Accelerate configuration."""
    given = os.environ.get(variable)
    if given is not None and given.lower() != value.lower():
        if given not in neutral and PartialState().is_main_process:
            warnings.warn(
                _(
                    "{variable}={given} is overruled by the recipe's {key}: {value}",
                    variable=variable,
                    given=given,
                    key=key,
                    value=value,
                ),
                stacklevel=3,
            )
        os.environ[variable] = value


def _be_deterministic() -> None:
    """Make torch choose kernels that sum in a fixed order, so that a step gives the same bits each time.

    CPU kernels already do. On a card the backward passes of attention and embeddings otherwise add their parts in the
    order of arrival (torch: Reproducibility). torch would also fill new memory, which is for programs that read what
    they have not written.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it creates its first handle
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False


def _compile_for_resuming(deterministic: bool) -> None:
    """Make the compiled step depend on nothing that a checkpoint lacks."""
    from torch._functorch import config as autograd
    from torch._inductor import config as inductor

    # torch would draw the dropout that checkpointing recomputes from generators of its own.
    autograd.graphsafe_rng_functionalization = False
    # Timings would choose between kernels that round differently.
    inductor.deterministic = deterministic


def wants_compilation(config: Config, device: str, dtype: str, processes: int) -> bool:
    """Whether to compile: as the recipe says; with `auto`, on a CUDA card if an eager run would take long."""
    if config.compile != "auto":
        return config.compile
    if device != "cuda":
        return False
    peak = hardware.training_peak(torch.cuda.get_device_name(), dtype) or 50e12
    return sizes.eager_seconds(config, peak, processes) > sizes.COMPILING


def _can_compile(device: str) -> bool:
    """Whether torch.compile has what it needs (a C++ compiler, Triton); warns if it does not."""
    try:
        torch.compile(lambda x: x * 2 + 1)(torch.ones(8, device=device))
    except Exception as error:  # whatever the backend raises, training works without it
        reason = first_line(error)
        warnings.warn(
            _("compile: true is left out, since torch.compile does not work here: {reason}", reason=reason),
            stacklevel=2,
        )
        return False
    return True
