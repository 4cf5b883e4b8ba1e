"""A trace of a few steps, the time of a step, and a card's power: none changes the run."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from survival import figures

from hfgpt import config
from hfgpt.runs import metrics
from hfgpt.train import loop as train
from hfgpt.train.meter import Power


def test_a_trace_of_a_few_steps(tiny: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Perfetto and TensorBoard can read it; the ten largest operations are printed; the run has the same bits."""
    assert train.train(config.build(tiny | {"dropout": 0.2}, "test"), profile=True) == 0
    [path] = (Path(tiny["out_dir"]) / "profile").iterdir()
    assert path.name == "steps-4-6.pt.trace.json"
    events = json.loads(path.read_text())["traceEvents"]
    assert any(event.get("name") == "aten::addmm" for event in events)
    said = capsys.readouterr().out
    lines = said[said.index("the 10 largest operations of 3 steps:") :].splitlines()
    shares = [float(line.split("%")[0]) for line in lines[1:11]]
    assert shares == sorted(shares, reverse=True)
    assert 30 < sum(shares) <= 100.5
    assert str(path) in lines[11]
    plain = tiny | {"dropout": 0.2, "out_dir": str(tmp_path / "plain")}
    assert train.train(config.build(plain, "test")) == 0
    assert figures(Path(plain["out_dir"])) == figures(Path(tiny["out_dir"]))


@pytest.mark.parametrize(
    ("values", "share", "teaches"),
    [
        ({}, 0.0, True),
        ({"optimizer": "muon", "n_embd": 32}, 0.0, True),
        ({}, 1e6, False),  # as if other work had taken the processor
        ({"max_iters": 8}, 0.0, False),  # too few steps
        ({"batch_warmup_iters": 19}, 0.0, False),  # its steps are not the recipe's
        ({"compile": True}, 0.0, False),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore")  # torch warns while it compiles
def test_a_run_teaches_how_long_its_steps_took(
    tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch, values: dict[str, Any], share: float, teaches: bool
) -> None:
    monkeypatch.setattr("hfgpt.train.meter.BUSY", share)
    recipe = config.build(tiny | {"max_iters": 20, "eval_interval": 20} | values, "test")
    seen = list[tuple[Any, ...]]()
    began = time.monotonic()
    assert train.train(recipe, began=began - 2.0, timed=lambda *what: seen.append(what)) == 0
    took = time.monotonic() - began
    assert len(seen) == teaches
    for ran, pace in seen:
        speeds = [record["tokens_per_second"] for record in metrics.read(recipe.run_dir / metrics.FILE_NAME)[2:]
                  if "tokens_per_second" in record]  # fmt: skip
        assert (ran.n_embd, ran.optimizer, pace.dtype) == (recipe.n_embd, recipe.optimizer, "float32")
        assert pace.vocab_size == load_file(recipe.run_dir / "model.safetensors")["transformer.wte.weight"].shape[0]
        assert min(speeds) / 3 < recipe.tokens_per_iter / pace.step_seconds < 3 * max(speeds)
        assert 2.0 < pace.start_seconds < took + 2.0


@pytest.mark.e2e
def test_torch_writes_nothing_between_the_runs_lines(
    tiny: dict[str, Any], write_recipe: Callable[..., Path], run_script: Any
) -> None:
    done = run_script("train.py", write_recipe(tiny), "--profile")
    assert done.returncode == 0, done.stderr
    assert "the 10 largest operations" in done.stdout
    assert done.stderr == ""


def test_a_run_that_ends_within_the_trace(tiny: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    values = tiny | {"max_iters": 4, "eval_interval": 4}
    assert train.train(config.build(values, "test"), profile=True) == 0
    assert [path.name for path in (Path(tiny["out_dir"]) / "profile").iterdir()] == ["steps-4-4.pt.trace.json"]
    assert "the 10 largest operations of 1 step:" in capsys.readouterr().out


def test_a_run_that_ends_before_the_trace_says_so(tiny: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    values = tiny | {"max_iters": 3, "eval_interval": 3}
    assert train.train(config.build(values, "test"), profile=True) == 0
    assert not (Path(tiny["out_dir"]) / "profile").exists()
    assert "nothing: it records from step 4 on, and the run ends after step 3" in capsys.readouterr().out


class Driver(ModuleType):
    """A card's NVML, with the interface of nvidia-ml-py."""

    def __init__(self, millijoules: float | None) -> None:
        super().__init__("pynvml")
        self.millijoules = millijoules

    def nvmlInit(self) -> None:
        pass

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        assert uuid == "GPU-abc"
        return uuid

    def nvmlDeviceGetUtilizationRates(self, _handle: str) -> Any:
        return SimpleNamespace(gpu=87)

    def nvmlDeviceGetPowerUsage(self, _handle: str) -> int:
        return 312_500

    def nvmlDeviceGetTotalEnergyConsumption(self, _handle: str) -> float:
        if self.millijoules is None:
            raise RuntimeError("Not Supported")
        return self.millijoules


def test_what_a_card_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(5_000_000)
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _device: SimpleNamespace(uuid="abc"))
    power = Power(torch.device("cuda"), joules=100.0)
    driver.millijoules = 5_060_000
    assert power.figures() == {"gpu_utilization": 0.87, "gpu_watts": 312.5, "gpu_joules": 160.0}
    driver.millijoules = None
    assert power.figures() == {"gpu_utilization": 0.87, "gpu_watts": 312.5}
    assert Power(torch.device("cpu"), 0.0).figures() == {}
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert Power(torch.device("cuda"), 0.0).figures() == {}
