"""The device that a recipe runs on: named, described by its memory, or this machine's.

In:  a resolved Config, and the user's options for the device.
Out: a :class:`Target`: memory, arithmetic, and the precision that `dtype: auto` resolves to.
"""

from dataclasses import dataclass, replace

from hfgpt.base import hardware
from hfgpt.base.errors import InputError
from hfgpt.base.hardware import Card
from hfgpt.base.language import _, plural
from hfgpt.config import Config
from hfgpt.model.sizes import Kind
from hfgpt.plan import speed
from hfgpt.plan.speed import Speed

REFERENCE = "RTX 3060"  # the chapter's card (5.3), if a recipe asks for an unnamed accelerator


@dataclass(frozen=True)
class Target:
    """What a recipe runs on: one device per process."""

    name: str  # the device, in words
    kind: Kind  # whose operations run
    dtype: str  # 'float32', 'bfloat16' or 'float16', with 'auto' resolved
    narrow: str  # its 16-bit type; '' if that is slower than float32
    memory_bytes: int  # of the device; processes on a CPU share it
    peak: float  # FLOP/s of the device in matrix products of that type
    bandwidth: float  # bytes/s of its memory
    utilisation: float  # the share of the peak that training is assumed to reach
    power_w: float | None  # of the device; None if unknown
    processes: int  # number of devices
    note: str  # the assumptions
    speed: Speed | None = None  # a CPU's, as measured on this machine; None for a card
    own_memory: bool = False  # whether it is a card with its own memory; Apple's chips share the machine's


def find_target(config: Config, gpu: str | None = None, vram: int | None = None, processes: int = 1) -> Target:
    """Find the device that a recipe runs on: the one that the user names, or this machine's.

    Args:
        config: its device and dtype are read.
        gpu: the name of a card; None: this machine's, if it has one and the recipe does not ask for the CPU.
        vram: memory in bytes, in place of the card's.
        processes: how many processes share the global batch.

    Raises:
        InputError: the card is not in the table, or contradicts the recipe.
    """
    if gpu and config.device == "cpu":
        raise InputError("gpu = {gpu!r}: the recipe trains on the CPU → leave out --gpu, or add --device=auto", gpu=gpu)
    local = None if gpu or config.device == "cpu" else hardware.local_accelerator()
    if not (gpu or local) and (config.device == "cpu" or (config.device == "auto" and vram is None)):
        return _cpu(config, vram, processes)
    note, wanted = "", gpu or local or REFERENCE
    if local and vram is None and (vram := hardware.local_memory()):  # it tells the versions of a card apart
        wanted = f"{local} {round(vram / hardware.GIB)}GB"
    try:
        card = hardware.find_card(wanted)
    except InputError:
        if gpu:
            raise
        card = replace(hardware.find_card(REFERENCE), name=str(local))
        note = _("{card} is not in the table of cards; its speed is assumed to be an {reference}'s",
                 card=local, reference=REFERENCE)  # fmt: skip
    if not (gpu or local):
        note = _("the card is not named (--gpu NAME); its speed is assumed to be the chapter's {reference}'s",
                 reference=REFERENCE)  # fmt: skip
    target = _on_card(config, card, vram, processes, note)
    if vram and not (gpu or local):
        return replace(target, name=_("a card of {memory}", memory=f"{vram / 2**30:.4g} GiB"))
    return target


def _on_card(config: Config, card: Card, vram: int | None, processes: int, note: str) -> Target:
    narrow = "bfloat16" if card.bfloat16 else "float16"
    automatic = "float32" if card.is_apple else narrow  # the same choice as in hfgpt/train/run.py
    dtype = automatic if config.dtype == "auto" else config.dtype
    if card.peak(dtype) is None:
        note = _("{card} has no {dtype} arithmetic: it is as slow as float32", card=card.name, dtype=dtype)
    if card.old:
        note = _(
            "torch's default build, for CUDA 13, does not run on a {card}: install one for CUDA 12", card=card.name
        )
    return Target(
        name=card.name,
        kind="accelerator",
        dtype=dtype,
        narrow=narrow,
        memory_bytes=vram or card.memory_bytes,
        peak=card.training_peak(dtype),
        bandwidth=card.bandwidth,
        # Compiled. Narrow matrices do not fill a card: 0.4 is what GPT-2's width of 768 reaches, 0.2 at 384
        # (nanoGPT's published times on A100: 4 days for 124M, 3 minutes for the character model).
        utilisation=0.4 * min(1.0, config.n_embd / 768),
        power_w=card.power_w,
        processes=processes,
        note=note,
        own_memory=not card.is_apple,
    )


def _cpu(config: Config, memory_bytes: int | None, processes: int) -> Target:
    measured, fast = speed.this_machine(config.cpu_threads), hardware.cpu_dtype(config.n_embd)
    dtype = fast if config.dtype == "auto" else config.dtype
    return Target(
        name=plural("CPU, {n} core", "CPU, {n} cores", measured.cores),
        kind="cpu",
        dtype=dtype,
        narrow=fast if fast != "float32" else "",
        memory_bytes=(memory_bytes or hardware.cpu_memory_bytes()) // processes,
        peak=measured.peak(dtype) / processes,
        bandwidth=measured.memory / processes,
        utilisation=1.0,
        power_w=None,
        processes=processes,
        note=measured.note(dtype),
        speed=measured,
    )
