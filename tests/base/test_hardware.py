"""The card table knows the names that people type and that torch reports; this machine can be measured."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hfgpt import config
from hfgpt.base import hardware
from hfgpt.base.errors import InputError
from hfgpt.plan.target import find_target

NAMES = {
    "NVIDIA GeForce RTX 3060": "RTX 3060",
    "rtx3060": "RTX 3060",
    "3060": "RTX 3060",
    "RTX 3060 Ti": "RTX 3060 Ti",
    "rtx3060ti": "RTX 3060 Ti",
    "NVIDIA GeForce RTX 3080": "RTX 3080 10GB",
    "RTX 3080 12GB": "RTX 3080 12GB",
    "rtx 4070 ti super": "RTX 4070 Ti Super",
    "RTX 4090": "RTX 4090",
    "Tesla T4": "T4",
    "Tesla V100-SXM2-16GB": "V100 16GB",
    "V100 32 GB": "V100 32GB",
    "a100": "A100 40GB",
    "NVIDIA A100-SXM4-80GB": "A100 80GB",
    "NVIDIA A100 80GB PCIe": "A100 80GB",
    "NVIDIA A10G": "A10G",
    "NVIDIA L40S": "L40S",
    "NVIDIA RTX A6000": "A6000",
    "NVIDIA RTX 6000 Ada Generation": "RTX 6000 Ada",
    "NVIDIA H100 80GB HBM3": "H100 SXM",
    "NVIDIA H100 PCIe": "H100 PCIe",
    "NVIDIA H100 NVL": "H100 NVL",
    "NVIDIA H200": "H200",
    "NVIDIA GH200 480GB": "GH200",
    "NVIDIA B200": "B200",
    "NVIDIA A800-SXM4-80GB": "A800 80GB",
    "NVIDIA A800 80GB PCIe": "A800 80GB",
    "NVIDIA A800 40GB Active": "A800 40GB",
    "NVIDIA H800": "H800 SXM",
    "NVIDIA H800 PCIe": "H800 PCIe",
    "NVIDIA H20": "H20",
    "NVIDIA L20": "L20",
    "NVIDIA GeForce RTX 4090 D": "RTX 4090 D",
    "NVIDIA GeForce RTX 5090 D": "RTX 5090 D",
    "NVIDIA H200 NVL": "H200 NVL",
    "NVIDIA B300 SXM6 AC": "B300",
    "NVIDIA GB200": "GB200",
    "NVIDIA GB300": "GB300",
    "NVIDIA RTX PRO 6000 Blackwell Workstation Edition": "RTX PRO 6000",
    "NVIDIA RTX PRO 6000 Blackwell Server Edition": "RTX PRO 6000",
    "NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition": "RTX PRO 6000 Max-Q",
    "NVIDIA GeForce RTX 3060 Laptop GPU": "RTX 3060 Laptop",
    "NVIDIA GeForce RTX 4060 Laptop GPU": "RTX 4060 Laptop",
    "NVIDIA GeForce RTX 5070 Ti Laptop GPU": "RTX 5070 Ti Laptop",
    "Apple M2 Pro": "M2 Pro",
    "m1max": "M1 Max",
}


@pytest.mark.parametrize(("typed", "card"), NAMES.items())
def test_find_understands_torch_and_people(typed: str, card: str) -> None:
    assert hardware.find_card(typed).name == card


@pytest.mark.parametrize("card", hardware.CARDS, ids=lambda card: card.name)
def test_every_card_answers_to_its_own_name(card: hardware.Card) -> None:
    assert hardware.find_card(card.name) == card
    assert hardware.find_card(f"  {card.name.lower().replace(' ', '-')} ") == card


@pytest.mark.parametrize(
    "name", ["NVIDIA GeForce RTX 2060 Laptop GPU", "RTX 3600", "GTX 1080 Ti", "Quadro RTX 6000", "RTX 4090 E", ""]
)
def test_an_unknown_card_is_never_taken_for_another(name: str) -> None:
    with pytest.raises(InputError, match="not in the table"):
        hardware.find_card(name)
    assert hardware.training_peak(name, "float32") is None


def test_the_nearest_cards_are_named() -> None:
    with pytest.raises(InputError, match="RTX 2060, "):
        hardware.find_card("NVIDIA GeForce RTX 2060 Laptop GPU")
    with pytest.raises(InputError, match="A10, A10G"):
        hardware.find_card("A110")


def test_figures_are_of_the_right_size() -> None:
    for card in hardware.CARDS:
        assert 4 * hardware.GIB <= card.memory_bytes <= 288 * hardware.GIB
        assert 5e10 < card.bandwidth < 1e13
        assert 1e12 < card.float32 < 2e14
        peaks = [peak for peak in (card.bfloat16, card.float16) if peak is not None]
        assert peaks, "every card has some 16-bit arithmetic"
        assert all(card.float32 <= peak < 4e15 for peak in peaks)
        # The 5090 D's tensor cores are slower; its other units are not.
        assert card.tf32 is None or card.tf32 >= card.float32 or card.name == "RTX 5090 D"
        assert card.source


def test_a_slice_has_its_own_memory_and_its_share_of_the_speed() -> None:
    part = hardware.find_card("NVIDIA A100-SXM4-80GB MIG 3g.40gb")
    assert part.memory_bytes == 40 * hardware.GIB
    assert part.bfloat16 == pytest.approx(3 / 7 * 312e12)
    assert part.bandwidth == pytest.approx(2039e9 / 2)
    assert hardware.find_card("NVIDIA H100 80GB HBM3 MIG 1g.10gb").memory_bytes == 10 * hardware.GIB
    assert hardware.find_card("NVIDIA A30 MIG 2g.12gb").bfloat16 == pytest.approx(165e12 / 2)
    with pytest.raises(InputError, match="not in the table"):
        hardware.find_card("NVIDIA X9 MIG 1g.10gb")


def test_cards_that_the_default_wheel_of_torch_has_left_behind() -> None:
    assert {card.name for card in hardware.CARDS if card.old} == {"P100", "V100 16GB", "V100 32GB"}


def test_peaks_by_type() -> None:
    assert hardware.find_card("NVIDIA A100-SXM4-40GB").peak("tf32") == 156e12
    assert hardware.find_card("RTX 3060").peak("float32") == 12.7e12
    assert hardware.find_card("Tesla T4").peak("bfloat16") is None


def test_a_run_multiplies_in_what_the_card_has() -> None:
    assert hardware.training_peak("NVIDIA A100-SXM4-40GB", "bfloat16") == 312e12
    assert hardware.training_peak("NVIDIA A100-SXM4-40GB", "float32") == 156e12  # TF32
    assert hardware.training_peak("Tesla T4", "float16") == 65e12
    assert hardware.training_peak("Tesla T4", "float32") == hardware.training_peak("Tesla T4", "bfloat16") == 8.1e12


@pytest.mark.parametrize(
    ("named", "memory"),
    [("RTX 3060 8GB", 8), ("RTX 5060 Ti 8GB", 8), ("RTX 3050 6GB", 6), ("P100-PCIE-12GB", 12), ("H100 96GB", 96),
     ("RTX 3060", 12), ("NVIDIA A100-SXM4-80GB", 80), ("NVIDIA H100 80GB HBM3", 80)],
)  # fmt: skip
def test_a_memory_that_the_name_states_is_the_cards(named: str, memory: int) -> None:
    assert hardware.find_card(named).memory_bytes == memory * hardware.GIB


def test_the_card_that_cuda_sees_and_its_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    driver = tmp_path / "nvidia-smi"
    driver.write_text("""#!/bin/sh
case "$*" in
  *"-i 1"*name*) echo "NVIDIA GeForce RTX 4060 Ti" ;;
  *"-i 1"*memory*) echo "16380 MiB" ;;
  *name*) echo "Tesla T4" ;;
  *memory*) echo "15360 MiB" ;;
esac
""")
    driver.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr("platform.system", lambda: "Linux")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert (hardware.local_accelerator(), hardware.local_memory()) == ("Tesla T4", 15360 << 20)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,0")
    assert (hardware.local_accelerator(), hardware.local_memory()) == ("NVIDIA GeForce RTX 4060 Ti", 16380 << 20)
    planned = find_target(config.build({}, "test"))
    assert (planned.name, planned.memory_bytes) == ("RTX 4060 Ti 16GB", 16380 << 20)
    driver.write_text('#!/bin/sh\ncase "$*" in *name*) echo "RTX 2060 SUPER" ;; *) echo "8192 MiB" ;; esac\n')
    unknown = find_target(config.build({}, "test"))
    assert (unknown.name, unknown.memory_bytes) == ("RTX 2060 SUPER", 8192 << 20)
    assert "its speed is assumed" in unknown.note


def test_hidden_cards_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr("platform.system", lambda: "Linux")
    assert hardware.local_accelerator() is None


def test_this_machine() -> None:
    assert 2**28 < hardware.cpu_memory_bytes() < 2**44
    assert 1e8 < hardware.measured_cpu_peak("float32") < 1e14


def test_the_table_needs_no_torch() -> None:
    code = "import sys, hfgpt.base.hardware, hfgpt.plan.survey, hfgpt.plan.timing; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("vendor", "flags", "n_embd", "dtype"),
    [
        ("AuthenticAMD", "fpu avx2 avx512_bf16", 256, "bfloat16"),
        ("AuthenticAMD", "fpu avx2 avx512_bf16", 128, "bfloat16"),
        ("GenuineIntel", "fpu avx2 avx512_bf16 amx_bf16", 768, "bfloat16"),
        ("GenuineIntel", "fpu avx2 avx512_bf16", 768, "float32"),  # its instruction takes longer than float32's
        ("GenuineIntel", "fpu avx512_bf16 amx_bf16", 64, "float32"),  # its matrices are too small to make it pay off
        ("AuthenticAMD", "fpu avx2 avx512f", 768, "float32"),
    ],
)
def test_a_cpus_precision(
    vendor: str, flags: str, n_embd: int, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nvendor_id\t: {vendor}\nflags\t\t: {flags}\n")
    monkeypatch.setattr(hardware, "CPUINFO", tmp_path / "cpuinfo")
    assert hardware.cpu_dtype(n_embd) == dtype
    assert hardware.intel_cpu() == (vendor == "GenuineIntel")
    monkeypatch.setattr(hardware, "CPUINFO", tmp_path / "none")
    assert hardware.cpu_dtype(n_embd) == "float32"
    assert not hardware.intel_cpu()
