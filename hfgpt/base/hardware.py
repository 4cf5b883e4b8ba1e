"""Hardware: this machine's accelerator, cores and memory, and the graphics cards that a run may be planned for.

In:  what the operating system reports, within a container's limits; a card's name, as its driver reports it or its
     owner types it; cards.csv, each figure with its source.
Out: names and numbers; a :class:`Card`, or an InputError that names the nearest ones. Only :func:`measured_cpu_peak`
     loads torch, so that planning answers at once.

Peaks of cards are dense (no sparsity) with float32 accumulation, which is what training uses. Where several cards share
the words of a name, the first in the file is meant.
"""

import csv
import ctypes
import difflib
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from hfgpt.base.errors import InputError
from hfgpt.base.language import _, listed


def local_accelerator() -> str | None:
    """Return the name of this machine's first accelerator, without loading torch; None if there is not one.

    Hidden cards (CUDA_VISIBLE_DEVICES empty or -1) do not count; the first of those that it lists is meant. torch may
    disagree if it was built without support for the card.
    """
    if platform.system() == "Darwin" and platform.machine() == "arm64":
        return _output(["sysctl", "-n", "machdep.cpu.brand_string"])
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.strip() in ("", "-1"):
        return None
    cards = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    for information in cards if visible is None or len(cards) == 1 else []:
        if model := re.search(r"^Model:\s*(.+)$", information.read_text(), flags=re.MULTILINE):
            return model[1].strip()
    return _of_the_driver("name")


def local_memory() -> int | None:
    """Return the bytes of memory of this machine's first NVIDIA card; None if its driver does not say."""
    mib = (_of_the_driver("memory.total") or "").removesuffix("MiB").strip()
    return int(mib) << 20 if mib.isdigit() else None


def _of_the_driver(query: str) -> str | None:
    """Return what NVIDIA's driver says of the first card that CUDA sees."""
    if not shutil.which("nvidia-smi"):
        return None
    first = (os.environ.get("CUDA_VISIBLE_DEVICES") or "").partition(",")[0].strip()
    return _output(["nvidia-smi", *(["-i", first] if first else []), f"--query-gpu={query}", "--format=csv,noheader"])


def _output(command: list[str]) -> str | None:
    """Return the first line that a command prints; None if it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip().partition("\n")[0] or None


def began(process: int) -> float | None:
    """Return when a process of this machine began, by a clock that nobody can set; None if it has ended.

    Linux counts it from its own start, in seconds. psutil gives it from 1970, which whoever sets the clock moves.
    """
    try:
        if sys.platform == "linux":
            state, *figures = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
            return None if state == "Z" else int(figures[18]) / os.sysconf("SC_CLK_TCK")
        info = psutil.Process(process)
        return None if info.status() == psutil.STATUS_ZOMBIE else float(info.create_time())
    except (OSError, psutil.Error):
        return None


def is_hidden(process: int) -> bool:
    """Whether another user's process runs that this user does not see, since /proc is mounted with hidepid."""
    if sys.platform != "linux" or began(process) is not None:
        return False
    try:
        os.kill(process, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return False


def process_began() -> float:
    """Return when this process started, on the clock of time.monotonic."""
    return time.monotonic() - max(0.0, time.time() - psutil.Process().create_time())


def cpu_memory_bytes() -> int:
    """Return the memory that this process may use: the machine's, or its container's limit if that is less."""
    total: int = psutil.virtual_memory().total
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        text = Path(limit).read_text().strip() if Path(limit).is_file() else ""
        if text.isdigit():
            return min(total, int(text))
    return total


# The width from which bfloat16 pays on a CPU with instructions for it. Measured on a Zen 4, a step in bfloat16 takes
# this multiple of its float32 time: width 32 1.27, 64 0.93, 128 0.7 to 0.8, 256 0.61.
BFLOAT16_PAYS_FROM = 128

CPUINFO = Path("/proc/cpuinfo")  # where Linux lists a processor's features


def cpu_dtype(n_embd: int) -> str:
    """Return the faster precision for a model of this width on this CPU: 'bfloat16' or 'float32'.

    bfloat16 if the processor multiplies faster in it than in float32.
    """
    return "bfloat16" if usual_bfloat16_ratio() > 1 and n_embd >= BFLOAT16_PAYS_FROM else "float32"


def usual_bfloat16_ratio() -> float:
    """Return the speed of bfloat16 matrix products relative to float32's on a CPU with this one's instructions.

    Measured with torch: 1.9 on an AMD Zen 4, 4.4 on a Zen 5; AMX is faster than 1.9, but was not measured here. Intel's
    AVX512-BF16 is slower than its float32 (a Xeon of family 6, model 207: 165 against 320 GFLOP/s). AVX-512 alone
    emulates bfloat16 at a tenth. Without it torch multiplies one number at a time (an AMD Zen 3: 0.83 against
    65 GFLOP/s).
    """
    able = set(_cpu("flags").split())
    if "avx512_bf16" in able and _cpu("vendor_id") == "AuthenticAMD":
        return 4.4 if int(_cpu("cpu family") or 0) >= ZEN_5 else 1.9
    if "amx_bf16" in able:
        return 1.9
    return 0.5 if "avx512_bf16" in able else 0.1 if "avx512f" in able else 0.013


def intel_cpu() -> bool:
    """Whether the processor is Intel's, for which torch's CPU matrix products (MKL) are tuned. Known on Linux only."""
    return _cpu("vendor_id") == "GenuineIntel"


def _cpu(key: str) -> str:
    """Return the processor's fields as Linux reports them; empty on other systems."""
    try:
        field = re.search(rf"^{key}\s*:(.*)$", CPUINFO.read_text(), flags=re.MULTILINE)
    except OSError:
        return ""
    return field[1].strip() if field else ""


ZEN_5 = 26  # AMD's number of the family


def processor() -> str:
    """Return the processor's name and model, as the system reports them."""
    fields = [_cpu(key) for key in ("model name", "cpu family", "model", "stepping")]
    return " ".join(filter(None, fields)) or platform.processor()


def processor_family() -> str:
    """Return the maker and the family, such as 'AuthenticAMD 26' for a Zen 5; empty where Linux does not say it."""
    return " ".join(filter(None, (_cpu("vendor_id"), _cpu("cpu family"))))


def measured_cpu_peak(dtype: str = "float32") -> float:
    """Measure this CPU's FLOP/s in a large square matrix product, with torch's current threads.

    Takes 0.2 to 0.4 s. The size grows until a product takes long enough to measure, so a slow type (bfloat16 on a CPU
    without it) costs no more time than a fast one.
    """
    import torch

    best, size, end = 0.0, 256, time.perf_counter() + 0.2
    while time.perf_counter() < end:
        left = torch.full((size, size), 0.5, dtype=getattr(torch, dtype))  # no draw from the run's generator
        left @ left  # warm-up: the first product of a size initializes the library
        start = time.perf_counter()
        left @ left
        seconds = time.perf_counter() - start
        best = max(best, 2 * size**3 / seconds)
        if seconds < 0.01 and size < 4096:
            size *= 2
    return best


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # from glibc's malloc.h


def keep_freed_memory() -> None:
    """Make glibc keep the memory that a step frees for the next one, instead of returning it to the system.

    Each returned page later costs a page fault: 2,000 in a step of the small recipes, a tenth of its time in bfloat16.
    The process grows as large as its largest step, as on a card. Other C libraries do not have this setting.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    mallopt(_M_MMAP_THRESHOLD, 2**30)


# --------------------------------------------------------------------------------------------------- the table of cards


GIB = 1024**3
TERA = 1e12


@dataclass(frozen=True)
class Card:
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

    def training_peak(self, dtype: str) -> float:
        """Return the peak FLOP/s of a run in `dtype`: its float32 products are TF32's, a missing type float32's."""
        return self.peak("tf32" if dtype == "float32" and self.tf32 else dtype) or self.float32

    @property
    def is_apple(self) -> bool:
        """Whether this is an Apple chip, which torch drives through MPS."""
        return self.source.startswith("Apple")


def _times(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


# Pascal and Volta: torch's default wheel, built for CUDA 13, starts at Turing (compute capability 7.5).
OLD = ("P100", "V100")


def _read_cards(path: Path) -> Iterator[Card]:
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


CARDS: tuple[Card, ...] = tuple(_read_cards(Path(__file__).with_name("cards.csv")))

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


def find_card(name: str) -> Card:
    """Return the card with this name, ignoring case, maker, spaces and bus, but not 'Ti', 'Super', 'Laptop' etc.

    A MIG slice, such as "A100 80GB MIG 3g.40gb", has its own memory and a share of everything else.

    Raises:
        InputError: the table has no such card; the message names the closest ones.
    """
    if part := _SLICE.search(name):
        return _slice(find_card(name[: part.start()]), int(part[1]), int(part[2]))
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
    card, stated = best[2], int((wanted_memory or "0gb")[:-2]) * GIB
    differs = stated and abs(stated - card.memory_bytes) > 0.1 * card.memory_bytes  # another version of the card
    return replace(card, memory_bytes=stated) if differs else card


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


def training_peak(name: str, dtype: str) -> float | None:
    """Return a named card's peak FLOP/s in a run; None if the card is not in the table."""
    try:
        return find_card(name).training_peak(dtype)
    except InputError:
        return None
