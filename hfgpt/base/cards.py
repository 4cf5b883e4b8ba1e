"""The graphics cards that a run may be planned for: memory, speed, power, each with its source.

In:  a card's name, as its driver reports it or its owner types it; cards.csv, whose first entry is meant where several
     share the same words.
Out: a :class:`Card`, or an InputError that names the nearest ones.

Peaks are dense (no sparsity) with float32 accumulation, which is what training uses.
"""

from __future__ import annotations

import csv
import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from hfgpt.base.errors import InputError
from hfgpt.base.language import _, listed

GIB = 1024**3

TERA = 1e12


@dataclass(frozen=True)
class Card:
    """One accelerator."""

    name: str  # the maker's spelling
    memory_bytes: int  # total; for Apple's chips the smallest memory sold with the chip, shared with the system
    bandwidth: float  # memory bandwidth, bytes/s
    # peak FLOP/s by data type; None if the card does not support it
    float32: float
    tf32: float | None
    bfloat16: float | None
    float16: float | None
    power_w: float | None  # board power in watts; None if the maker does not state it
    source: str  # where the figures come from
    old: bool = False  # whether torch's default wheel has dropped its kernels

    def peak(self, dtype: str) -> float | None:
        """Return peak FLOP/s for 'float32', 'tf32', 'bfloat16' or 'float16'; None if the card does not support it."""
        value: float | None = getattr(self, dtype)
        return value

    @property
    def is_apple(self) -> bool:
        """Whether this is an Apple chip, which torch drives through MPS."""
        return self.source.startswith("Apple")


def _times(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


# Pascal and Volta: torch's default wheel, built for CUDA 13, starts at Turing (compute capability 7.5).
OLD = ("P100", "V100")


def _read(path: Path) -> Iterator[Card]:
    """Read the table: memory in GiB, bandwidth in GB/s, arithmetic in TFLOP/s, power in W; empty: does not exist."""
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            name, source = row.pop("name"), row.pop("source")
            figures = {key: float(text) if text else None for key, text in row.items()}
            yield Card(
                name=name,
                memory_bytes=int(float(row["memory_gib"]) * GIB),
                bandwidth=float(row["bandwidth_gb"]) * 1e9,
                float32=float(row["float32"]) * TERA,
                **{key: _times(figures[key], TERA) for key in ("tf32", "bfloat16", "float16")},
                power_w=figures["power_w"],
                source=source,
                old=name.startswith(OLD),
            )


CARDS: tuple[Card, ...] = tuple(_read(Path(__file__).with_name("cards.csv")))

# Words in a reported name that do not distinguish cards.
_MAKERS = "nvidia geforce tesla rtx gpu graphics amd instinct apple ada blackwell generation"
_BUSES = "hbm2 hbm2e hbm3 hbm3e sxm sxm2 sxm4 sxm5 sxm6 pcie oam vf"
_EDITIONS = "workstation server edition active ac"
_FILLER = frozenset(f"{_MAKERS} {_BUSES} {_EDITIONS}".split())

# A MIG slice, as the driver names it: "NVIDIA A100-SXM4-80GB MIG 3g.40gb".
_SLICE = re.compile(r"\bmig\s+(?:\d+c\.)?(\d)g\.(\d+)gb\b.*$", flags=re.IGNORECASE)
_SLICES = {"A30": 4}  # compute slices of a card; seven on all others (NVIDIA's MIG user guide)


def _words(name: str) -> tuple[frozenset[str], str | None]:
    """Return the words that distinguish a card, and its memory ('80gb') if the name states it."""
    text = re.sub(r"(\d)\s*gi?b\b", r"\1gb", name.lower())
    text = re.sub(r"\b(rtx|gtx)(?=\d)|(?<=\d)(?=(?:ti|super|pro|max|ultra)\b)", r"\1 ", text)
    words = re.findall(r"[a-z0-9]+", text.replace("super", " super "))
    memory = next((word for word in words if re.fullmatch(r"\d+gb", word)), None)
    return frozenset(word for word in words if word != memory), memory


def find(name: str) -> Card:
    """Return the card with this name, ignoring case, maker, spaces and bus, but not 'Ti', 'Super', 'Laptop' etc.

    A MIG slice, such as "A100 80GB MIG 3g.40gb", has its own memory and a share of everything else.

    Raises:
        InputError: the table has no such card; the message names the closest ones.
    """
    if part := _SLICE.search(name):
        return _slice(find(name[: part.start()]), int(part[1]), int(part[2]))
    wanted, wanted_memory = _words(name)
    best: tuple[int, int, Card] | None = None
    for card in CARDS:
        words, memory = _words(card.name)
        if not (words - {"rtx", "sxm"} <= wanted and wanted - words <= _FILLER):
            continue
        fit = (len(words & wanted), int(memory is not None and memory == wanted_memory))
        if best is None or fit > best[:2]:
            best = (*fit, card)
    if best is None:
        raise InputError(_unknown(name))
    return best[2]


def _slice(card: Card, compute: int, memory: int) -> Card:
    """Return a MIG slice with `compute` of the card's compute slices and `memory` GB."""
    share = min(1.0, compute / _SLICES.get(card.name, 7))
    return replace(
        card,
        name=f"{card.name} MIG {compute}g.{memory}gb",
        memory_bytes=memory * GIB,
        bandwidth=card.bandwidth * min(1.0, memory * GIB / card.memory_bytes),
        float32=card.float32 * share,
        tf32=_times(card.tf32, share),
        bfloat16=_times(card.bfloat16, share),
        float16=_times(card.float16, share),
        power_w=None,
    )


def _unknown(name: str) -> str:
    """Return the error for a card that is not in the table."""
    words = _words(name)[0] - _FILLER
    sharing = [card.name for card in CARDS if words & (_words(card.name)[0] - _FILLER - {"ti", "super", "pro", "max"})]
    spelled = {card.name.lower(): card.name for card in CARDS}
    close = [spelled[low] for low in difflib.get_close_matches(name.lower(), spelled, n=4, cutoff=0.6)]
    if nearest := list(dict.fromkeys(sharing + close))[:4]:
        return _(
            "gpu = {name}: is not in the table of cards; the nearest are {cards}\n    → give its memory: --vram=12GB",
            name=repr(name),
            cards=listed(nearest),
        )
    return _(
        "gpu = {name}: is not in the table of cards, which has, for example, {cards}\n"
        "    → give its memory: --vram=12GB",
        name=repr(name),
        cards=listed(EXAMPLES),
    )


EXAMPLES = ("RTX 3060", "RTX 4090", "T4", "A100 80GB", "H100 SXM", "M2 Pro")


def peak_flops(name: str, dtype: str) -> float | None:
    """Return a card's peak FLOP/s for 'float32', 'tf32', 'bfloat16' or 'float16'; None if unknown."""
    try:
        return find(name).peak(dtype)
    except InputError:
        return None
