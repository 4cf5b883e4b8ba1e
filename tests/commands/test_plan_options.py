"""The arguments of the command `plan`."""

from __future__ import annotations

import pytest
from conftest import ROOT

from hfgpt.base.errors import InputError
from hfgpt.commands import plan

STANDARD = str(ROOT / "recipes" / "standard.yaml")


def test_options_and_overrides_in_any_order() -> None:
    arguments = plan.reader().read(
        ["--vram", "8GB", "recipe.yaml", "--n_layer=4", "--json", "--time-budget=1h30m", "--gpu=RTX 3060", "--compile"]
    )
    assert (arguments.vram, arguments.time_budget, arguments.gpu) == (8 * 2**30, 5400, "RTX 3060")
    assert (arguments.json, arguments.probe) == (True, False)
    assert (arguments.recipe, arguments.overrides) == ("recipe.yaml", ["--n_layer=4", "--compile=true"])


@pytest.mark.parametrize(
    ("text", "size"),
    [("8GB", 8 * 2**30), ("8", 8 * 2**30), ("8 GiB", 8 * 2**30), ("0.5g", 2**29), ("8192MB", 8 * 2**30), ("1T", 2**40)],
)
def test_sizes(text: str, size: int) -> None:
    assert plan.read_bytes(text) == size


@pytest.mark.parametrize(
    ("words", "messages"),
    [
        (["--vram=lots"], ["vram = 'lots': must be a size"]),
        (["--vram", "0"], ["vram"]),
        (["--vram"], ["vram: needs a value"]),
        (["--json=yes"], ["json = 'yes': takes no value"]),
        (["--time-budget=soon"], ["such as 1h"]),
        (["--price-per-hour=-3"], ["must be a number"]),
        (["--processes=0"], ["at least 1"]),
        (["--explain=n_layr"], ["did you mean 'n_layer'"]),
        (["--vrm=8GB"], ["vrm: is not a parameter", "did you mean 'vram'"]),
        (["--n_head=5"], ["must divide n_embd"]),
        (["--gpu=rtx3600"], ["the nearest are"]),
        (["--gpu=t4", "--device=cpu"], ["trains on the CPU"]),
        (["--processes=7"], ["cannot be shared equally"]),
        (["--data=none.txt"], ["no such file"]),
        (["--time-budget=1s"], ["give more time"]),
        (["--vram=x", "--prob", "--n_head=5", "--n_layer"], ["vram = 'x'", "prob:", "n_head = 5", "n_layer: needs"]),
    ],
)
def test_bad_input_is_said_all_at_once(words: list[str], messages: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        plan.run([STANDARD, *words])
    assert all(message in str(caught.value) for message in messages), caught.value
