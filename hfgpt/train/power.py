"""How busy a card is, and what it draws, as NVIDIA's driver says.

In:  the device of a process.
Out: figures for a record: utilisation, watts, joules; nothing for another device, or if the driver does not say.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch


class Power:
    """Reads NVML. Counts joules from `joules` on, which a run had used before.

    Args:
        device: where the process trains.
        joules: of the run so far.
    """

    def __init__(self, device: torch.device, joules: float) -> None:
        self._handle, self._nvml = _open(device)
        self._before = joules - self._energy()

    def figures(self) -> dict[str, float]:
        """`gpu_utilization` (share of the last moments), `gpu_watts`, `gpu_joules` (since the run began)."""
        if self._handle is None:
            return {}
        figures = dict[str, float]()
        with suppress(Exception):  # a card or a driver that does not say one of them
            figures["gpu_utilization"] = self._nvml.nvmlDeviceGetUtilizationRates(self._handle).gpu / 100
        with suppress(Exception):
            figures["gpu_watts"] = self._nvml.nvmlDeviceGetPowerUsage(self._handle) / 1000
        if energy := self._energy():
            figures["gpu_joules"] = self._before + energy
        return figures

    def _energy(self) -> float:
        """The card's joules since the driver was loaded; 0 if it does not say."""
        if self._handle is None:
            return 0.0
        try:
            return float(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)) / 1000
        except Exception:
            return 0.0


def _open(device: torch.device) -> tuple[Any, Any]:
    """NVML's handle of this card, found by its UUID whatever CUDA_VISIBLE_DEVICES says, and the library; or None."""
    if device.type != "cuda":
        return None, None
    try:
        import pynvml

        pynvml.nvmlInit()
        uuid = str(torch.cuda.get_device_properties(device).uuid)
        return pynvml.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith("GPU-") else f"GPU-{uuid}"), pynvml
    except Exception:  # not installed, no driver, a MIG slice
        return None, None
