"""The graphics cards that a run may be planned for: memory, speed, power, each with its source.

In:  a card's name, as its driver reports it or its owner types it.
Out: a :class:`Card`, or an InputError that names the nearest ones.

Peaks are dense (no sparsity) with float32 accumulation, which is what training uses.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, replace

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
        return self.source is APPLE


TURING = "NVIDIA Turing GPU architecture whitepaper"

AMPERE = "NVIDIA Ampere GA102 GPU architecture whitepaper"

ADA = "NVIDIA Ada GPU architecture whitepaper"

BLACKWELL = "NVIDIA RTX Blackwell GPU architecture whitepaper"

HOPPER = "NVIDIA H100 Tensor Core GPU datasheet"

HGX = "NVIDIA HGX datasheet (a GPU is an eighth of the board)"

GRACE = "NVIDIA GB200 and GB300 NVL72 datasheets (a GPU is a 72nd of the rack)"

LAPTOP = (
    "NVIDIA GeForce laptop comparison table; arithmetic: cores x 2 x the highest boost clock, tensor cores twice that"
)

PRO = "NVIDIA RTX Blackwell PRO GPU architecture whitepaper"

A100 = "NVIDIA A100 Tensor Core GPU datasheet"

CDNA3 = "AMD Instinct MI300X datasheet"

APPLE = "Apple's technical specifications; arithmetic: GPU cores x 128 lanes x 2 x clock (metal-benchmarks, P. Turner)"

Row = tuple[str, float, float, float, float | None, float | None, float | None, float | None, str]

# fmt: off
# name, memory GiB, bandwidth GB/s, then TFLOP/s: float32, tf32, bfloat16, float16; power W; source.
# If two entries share the same words, the bare name means the first.
_TABLE: tuple[Row, ...] = (
    ("RTX 2060",            6,  336,  6.5, None, None, 25.8, 160, TURING),
    ("RTX 2070",            8,  448,  7.5, None, None, 29.9, 175, TURING),
    ("RTX 2080",            8,  448, 10.1, None, None, 40.3, 215, TURING),
    ("RTX 2080 Ti",        11,  616, 13.4, None, None, 53.8, 250, TURING),
    ("RTX 3050",            8,  224,  9.1,  9.1, 18.2, 18.2, 130, AMPERE),
    ("RTX 3060",           12,  360, 12.7, 12.7, 25.5, 25.5, 170, AMPERE),
    ("RTX 3060 Ti",         8,  448, 16.2, 16.2, 32.4, 32.4, 200, AMPERE),
    ("RTX 3070",            8,  448, 20.3, 20.3, 40.6, 40.6, 220, AMPERE),
    ("RTX 3070 Ti",         8,  608, 21.7, 21.7, 43.5, 43.5, 290, AMPERE),
    ("RTX 3080 10GB",      10,  760, 29.8, 29.8, 59.5, 59.5, 320, AMPERE),
    ("RTX 3080 12GB",      12,  912, 30.6, 30.6, 61.3, 61.3, 350, AMPERE),
    ("RTX 3080 Ti",        12,  912, 34.1, 34.1, 68.2, 68.2, 350, AMPERE),
    ("RTX 3090",           24,  936, 35.6, 35.6, 71.0, 71.0, 350, AMPERE),
    ("RTX 3090 Ti",        24, 1008, 40.0, 40.0, 80.0, 80.0, 450, AMPERE),
    ("RTX 4060",            8,  272, 15.1, 15.1, 30.2, 30.2, 115, ADA),
    ("RTX 4060 Ti 8GB",     8,  288, 22.1, 22.1, 44.1, 44.1, 160, ADA),
    ("RTX 4060 Ti 16GB",   16,  288, 22.1, 22.1, 44.1, 44.1, 165, ADA),
    ("RTX 4070",           12,  504, 29.1, 29.1, 58.3, 58.3, 200, ADA),
    ("RTX 4070 Super",     12,  504, 35.5, 35.5, 71.0, 71.0, 220, ADA),
    ("RTX 4070 Ti",        12,  504, 40.1, 40.1, 80.2, 80.2, 285, ADA),
    ("RTX 4070 Ti Super",  16,  672, 44.1, 44.1, 88.2, 88.2, 285, ADA),
    ("RTX 4080",           16,  717, 48.7, 48.7, 97.5, 97.5, 320, ADA),
    ("RTX 4080 Super",     16,  736, 52.2, 52.2, 104.4, 104.4, 320, ADA),
    ("RTX 4090",           24, 1008, 82.6, 82.6, 165.2, 165.2, 450, ADA),
    ("RTX 4090 D",         24, 1008, 73.5, 73.5, 147.1, 147.1, 425, "NVIDIA GeForce RTX 4090 D product page"),
    ("RTX 5060",            8,  448, 19.2, 19.2, 38.4, 38.4, 145, BLACKWELL),
    ("RTX 5060 Ti",        16,  448, 23.7, 23.7, 47.4, 47.4, 180, BLACKWELL),
    ("RTX 5070",           12,  672, 30.9, 30.9, 61.7, 61.7, 250, BLACKWELL),
    ("RTX 5070 Ti",        16,  896, 43.9, 43.9, 87.9, 87.9, 300, BLACKWELL),
    ("RTX 5080",           16,  960, 56.3, 56.3, 112.6, 112.6, 360, BLACKWELL),
    ("RTX 5090",           32, 1792, 104.8, 104.8, 209.5, 209.5, 575, BLACKWELL),
    ("RTX 5090 D",         32, 1792, 104.8, 74.2, 148.4, 148.4, 575, "NVIDIA GeForce RTX 5090 D product page"),
    ("RTX 3050 Laptop",     4,  192,  7.1,  7.1, 14.2, 14.2,  80, LAPTOP),
    ("RTX 3060 Laptop",     6,  336, 13.1, 13.1, 26.2, 26.2, 115, LAPTOP),
    ("RTX 3070 Laptop",     8,  448, 16.6, 16.6, 33.2, 33.2, 125, LAPTOP),
    ("RTX 3080 Laptop 8GB", 8,  448, 21.0, 21.0, 42.0, 42.0, 150, LAPTOP),
    ("RTX 3080 Laptop 16GB", 16, 448, 21.0, 21.0, 42.0, 42.0, 150, LAPTOP),
    ("RTX 4050 Laptop",     6,  192, 12.1, 12.1, 24.3, 24.3, 115, LAPTOP),
    ("RTX 4060 Laptop",     8,  256, 14.6, 14.6, 29.1, 29.1, 115, LAPTOP),
    ("RTX 4070 Laptop",     8,  256, 20.0, 20.0, 40.1, 40.1, 115, LAPTOP),
    ("RTX 4080 Laptop",    12,  432, 33.9, 33.9, 67.7, 67.7, 150, LAPTOP),
    ("RTX 4090 Laptop",    16,  576, 39.7, 39.7, 79.4, 79.4, 150, LAPTOP),
    ("RTX 5060 Laptop",     8,  384, 16.6, 16.6, 33.2, 33.2, 100, LAPTOP),
    ("RTX 5070 Laptop",     8,  384, 21.6, 21.6, 43.3, 43.3, 100, LAPTOP),
    ("RTX 5070 Ti Laptop", 12,  672, 26.1, 26.1, 52.3, 52.3, 115, LAPTOP),
    ("RTX 5080 Laptop",    16,  896, 35.1, 35.1, 70.3, 70.3, 150, LAPTOP),
    ("RTX 5090 Laptop",    24,  896, 45.3, 45.3, 90.7, 90.7, 150, LAPTOP),
    ("P100",               16,  732,  9.3, None, None, 18.7, 250, "NVIDIA Tesla P100 PCIe datasheet"),
    ("T4",                 16,  320,  8.1, None, None, 65.0,  70, "NVIDIA T4 datasheet"),
    ("V100 16GB",          16,  900, 15.7, None, None, 125.0, 300, "NVIDIA V100 datasheet"),
    ("V100 32GB",          32,  900, 15.7, None, None, 125.0, 300, "NVIDIA V100 datasheet"),
    ("A10",                24,  600, 31.2, 62.5, 125.0, 125.0, 150, "NVIDIA A10 datasheet"),
    ("A10G",               24,  600, 31.5, 35.0, 70.0, 70.0, 300, "NVIDIA A10G datasheet (AWS)"),
    ("A30",                24,  933, 10.3, 82.0, 165.0, 165.0, 165, "NVIDIA A30 datasheet"),
    ("A40",                48,  696, 37.4, 74.8, 149.7, 149.7, 300, "NVIDIA A40 datasheet"),
    ("A4000",              16,  448, 19.2, 38.3, 76.7, 76.7, 140, "NVIDIA RTX A4000 datasheet"),
    ("A5000",              24,  768, 27.8, 55.6, 111.1, 111.1, 230, "NVIDIA RTX A5000 datasheet"),
    ("A6000",              48,  768, 38.7, 77.4, 154.8, 154.8, 300, "NVIDIA RTX A6000 datasheet"),
    ("A100 40GB",          40, 1555, 19.5, 156.0, 312.0, 312.0, 400, A100),
    ("A100 80GB",          80, 2039, 19.5, 156.0, 312.0, 312.0, 400, A100),
    ("A800 40GB",          40, 1555, 19.5, 156.0, 312.0, 312.0, 240, "NVIDIA A800 40GB Active datasheet"),
    ("A800 80GB",          80, 2039, 19.5, 156.0, 312.0, 312.0, 400, "NVIDIA A800 datasheet: an A100 of slower NVLink"),
    ("L4",                 24,  300, 30.3, 60.0, 121.0, 121.0,  72, "NVIDIA L4 datasheet"),
    ("L40",                48,  864, 90.5, 90.5, 181.0, 181.0, 300, "NVIDIA L40 datasheet"),
    ("L40S",               48,  864, 91.6, 183.0, 362.0, 362.0, 350, "NVIDIA L40S datasheet"),
    ("L20",                48,  864, 59.8, 59.8, 119.5, 119.5, 275, "NVIDIA L20 datasheet"),
    ("RTX 6000 Ada",       48,  960, 91.1, 182.1, 364.2, 364.2, 300, "NVIDIA RTX 6000 Ada datasheet"),
    ("RTX PRO 6000",       96, 1792, 125.0, 251.9, 503.8, 503.8, 600, PRO),
    ("RTX PRO 6000 Max-Q", 96, 1792, 110.0, 219.0, 438.0, 438.0, 300, PRO),
    ("H20",                96, 4000, 44.0, 74.0, 148.0, 148.0, 400, "NVIDIA H20 datasheet"),
    ("H800 SXM",           80, 3350, 67.0, 494.0, 989.0, 989.0, 700, "NVIDIA H800 datasheet: an H100 of slower NVLink"),
    ("H800 PCIe",          80, 2039, 51.0, 378.0, 756.0, 756.0, 350, "NVIDIA H800 datasheet: an H100 of slower NVLink"),
    ("H100 SXM",           80, 3350, 67.0, 494.0, 989.0, 989.0, 700, HOPPER),
    ("H100 PCIe",          80, 2039, 51.0, 378.0, 756.0, 756.0, 350, HOPPER),
    ("H100 NVL",           94, 3900, 60.0, 417.0, 835.0, 835.0, 400, HOPPER),
    ("H200",              141, 4800, 67.0, 494.0, 989.0, 989.0, 700, "NVIDIA H200 datasheet"),
    ("H200 NVL",          141, 4800, 60.0, 417.0, 835.0, 835.0, 600, "NVIDIA H200 datasheet"),
    ("GH200",              96, 4000, 67.0, 494.0, 989.0, 989.0, 900, "NVIDIA GH200 datasheet"),
    ("B200",              180, 7700, 75.0, 1125.0, 2250.0, 2250.0, 1000, HGX),
    ("B300",              270, 7700, 75.0, 1125.0, 2250.0, 2250.0, 1100, HGX),
    ("GB200",             186, 8000, 80.0, 1250.0, 2500.0, 2500.0, 1200, GRACE),
    ("GB300",             279, 8000, 80.0, 1250.0, 2500.0, 2500.0, 1400, GRACE),
    ("MI300X",            192, 5300, 163.4, 653.7, 1307.4, 1307.4, 750, CDNA3),
    ("M1",                  8,   68,  2.6, None,  2.6,  2.6, None, APPLE),
    ("M1 Pro",             16,  200,  5.2, None,  5.2,  5.2, None, APPLE),
    ("M1 Max",             32,  400, 10.4, None, 10.4, 10.4, None, APPLE),
    ("M1 Ultra",           64,  800, 20.8, None, 20.8, 20.8, None, APPLE),
    ("M2",                  8,  100,  3.6, None,  3.6,  3.6, None, APPLE),
    ("M2 Pro",             16,  200,  6.8, None,  6.8,  6.8, None, APPLE),
    ("M2 Max",             32,  400, 13.6, None, 13.6, 13.6, None, APPLE),
    ("M2 Ultra",           64,  800, 27.2, None, 27.2, 27.2, None, APPLE),
    ("M3",                  8,  100,  3.5, None,  3.5,  3.5, None, APPLE),
    ("M3 Pro",             18,  150,  6.4, None,  6.4,  6.4, None, APPLE),
    ("M3 Max",             36,  400, 14.1, None, 14.1, 14.1, None, APPLE),
    ("M3 Ultra",           96,  819, 28.3, None, 28.3, 28.3, None, APPLE),
    ("M4",                 16,  120,  4.0, None,  4.0,  4.0, None, APPLE),
    ("M4 Pro",             24,  273,  8.1, None,  8.1,  8.1, None, APPLE),
    ("M4 Max",             36,  546, 16.2, None, 16.2, 16.2, None, APPLE),
)


# fmt: on


def _times(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def _card(row: Row) -> Card:
    name, memory, bandwidth, float32, tf32, bfloat16, float16, power, source = row
    return Card(
        name=name,
        memory_bytes=int(memory * GIB),
        bandwidth=bandwidth * 1e9,
        float32=float32 * TERA,
        tf32=_times(tf32, TERA),
        bfloat16=_times(bfloat16, TERA),
        float16=_times(float16, TERA),
        power_w=power,
        source=source,
        old=name.startswith(OLD),
    )


# Pascal and Volta: torch's default wheel, built for CUDA 13, starts at Turing (compute capability 7.5).
OLD = ("P100", "V100")

CARDS: tuple[Card, ...] = tuple(_card(row) for row in _TABLE)

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
    close = [spelled[low] for low in difflib.get_close_matches(name.lower(), spelled, n=4, cutoff=0.5)]
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
