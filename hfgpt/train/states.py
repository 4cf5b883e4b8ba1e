"""Read and set weights, optimizer averages and random generators, whichever engine trains.

In:  a model and an optimizer as Accelerate prepared them: alone, under DDP, in FSDP's shards, or in DeepSpeed's.
Out: {name: tensor} and {name: {average: tensor}}, unsharded, on the CPU of the main process; and the reverse.

So a checkpoint has the same files with any engine, and no file is a pickle. Reading and setting weights and averages
is collective; each process has its own generators.
"""

from typing import Any, cast

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

Averages = dict[str, dict[str, Tensor]]

WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)  # unsharded, and on the main process
EVERYWHERE = StateDictOptions(full_state_dict=True)
ADAM = ("exp_avg", "exp_avg_sq")


def weights(accelerator: Accelerator, model: nn.Module, on_device: bool = False) -> dict[str, Tensor]:
    """Return the float32 weights by name. `model` is the plain one, inside the wrappers.

    With `on_device`, replicas stay on their device, to be copied from there; shards are gathered on the CPU.
    """
    if not _deepspeed(accelerator):
        return cast(dict[str, Tensor], get_model_state_dict(model, options=_gathered(accelerator, on_device)))
    from deepspeed.utils import safe_get_full_fp32_param

    return {name: safe_get_full_fp32_param(parameter).cpu() for name, parameter in model.named_parameters()}


def _gathered(accelerator: Accelerator, on_device: bool) -> StateDictOptions:
    return EVERYWHERE if on_device and accelerator.distributed_type != DistributedType.FSDP else WHOLE


def averages(accelerator: Accelerator, model: nn.Module, optimizer: Any, on_device: bool = False) -> Averages:
    """Return AdamW's averages and step count, and Muon's average, by name; empty before the first update.

    torch would create a fresh optimizer's averages by a step without gradients, which AdamW counts as a step.
    """
    if _deepspeed(accelerator):
        return _of_deepspeed(model, optimizer)
    if not optimizer.optimizer.state:
        return {}
    options = _gathered(accelerator, on_device)
    return cast(Averages, get_optimizer_state_dict(model, optimizer.optimizer, options=options).get("state", {}))


def load(accelerator: Accelerator, model: nn.Module, optimizer: Any, new: dict[str, Tensor], means: Averages) -> None:
    """Load weights and averages, as returned by :func:`weights` and :func:`averages`.

    Raises:
        RuntimeError, KeyError, ValueError: they belong to another model.
    """
    if _deepspeed(accelerator):
        _into_deepspeed(model, optimizer, new, means)
        return
    set_model_state_dict(model, cast(dict[str, Any], new), options=EVERYWHERE)
    if means:
        groups = get_optimizer_state_dict(model, optimizer.optimizer)["param_groups"]
        state = {"state": means, "param_groups": groups}
        set_optimizer_state_dict(model, optimizer.optimizer, state, options=EVERYWHERE)  # type: ignore[arg-type]


def generators(accelerator: Accelerator) -> dict[str, Tensor]:
    """Return the states of this process's random generators by "<device>.<process>"."""
    rank, device = accelerator.process_index, accelerator.device
    states = {f"cpu.{rank}": torch.get_rng_state()}
    if device.type != "cpu":
        states[f"{device.type}.{rank}"] = torch.get_device_module(device).get_rng_state()
    return states


def load_generators(accelerator: Accelerator, saved: dict[str, Tensor]) -> None:
    """Restore this process's random generators from the result of :func:`generators`.

    A generator that was not saved, as after a run on another kind of device, keeps its state: call :func:`seed` first.
    """
    rank, device = accelerator.process_index, accelerator.device
    torch.set_rng_state(saved[f"cpu.{rank}"])
    if device.type != "cpu" and f"{device.type}.{rank}" in saved:
        torch.get_device_module(device).set_rng_state(saved[f"{device.type}.{rank}"])


def seed(accelerator: Accelerator, seed: int, step: int) -> None:
    """Seed this process, so that its dropout differs from the others' and depends on these numbers alone."""
    words = (seed, accelerator.process_index, accelerator.num_processes, step)
    torch.manual_seed(int(np.random.SeedSequence(words).generate_state(1)[0]))


def _deepspeed(accelerator: Accelerator) -> bool:
    return bool(accelerator.distributed_type == DistributedType.DEEPSPEED)


def _inner(optimizer: Any) -> torch.optim.Optimizer:
    """Return torch's optimizer from inside Accelerate's and DeepSpeed's wrappers."""
    inner: torch.optim.Optimizer = optimizer.optimizer.optimizer
    return inner


def _of_deepspeed(model: nn.Module, optimizer: Any) -> Averages:
    from deepspeed.utils import safe_get_full_optimizer_state

    steps = [state["step"] for state in _inner(optimizer).state.values() if "step" in state]
    if not steps:
        return {}
    _link_deepspeed(optimizer)
    return {
        name: {key: safe_get_full_optimizer_state(parameter, key).cpu() for key in ADAM}
        | {"step": torch.as_tensor(float(steps[0]))}
        for name, parameter in model.named_parameters()
    }


def _link_deepspeed(optimizer: Any) -> None:
    """Make DeepSpeed's per-parameter accessors see the averages of every group.

    DeepSpeed 0.19 links them once, after the first group's step, when the other groups do not have any yet.
    """
    optimizer.optimizer._hp_optimizer_states_linked = False
    optimizer.optimizer._lazy_init_hp_params_optimizer_state()


def _into_deepspeed(model: nn.Module, optimizer: Any, new: dict[str, Tensor], means: Averages) -> None:
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

    if means:  # a fresh optimizer has no averages to set yet
        step = next(iter(means.values()))["step"]
        for flat in optimizer.optimizer.single_partition_of_fp32_groups:
            zeros = {key: torch.zeros_like(flat) for key in ADAM}
            # a fused AdamW has its step count on the device
            _inner(optimizer).state[flat] = {"step": step.to(flat.device, torch.float32, copy=True), **zeros}
    _link_deepspeed(optimizer)
    for name, parameter in model.named_parameters():
        safe_set_full_fp32_param(parameter, new[name])
        parameter.data.copy_(new[name])
        for key in ADAM if means else ():
            safe_set_full_optimizer_state(parameter, means[name][key], key)
