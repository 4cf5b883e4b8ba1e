"""Recommendations fit, keep the global batch, follow the chapter's trees, and become recipes that load unchanged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hfgpt import config
from hfgpt.base.errors import InputError
from hfgpt.config import Config
from hfgpt.plan import batches, chapter, command
from hfgpt.plan.survey import Survey
from hfgpt.plan.target import Target, find_target

GIB = 2**30


def recipe(**values: Any) -> Config:
    return config.build(values, "run")


def found(vocab_size: int = 50257, corpus_bytes: int | None = 5_000_000, **values: Any) -> Survey:
    tokens = None if corpus_bytes is None else corpus_bytes * 9 // 10
    return Survey(recipe(**values), vocab_size, "", corpus_bytes, tokens, False)


def card(what: Survey, gib: float, processes: int = 1) -> Target:
    return find_target(what.config, "A100", int(gib * GIB), processes)


# ------------------------------------------------------------------------------------------------------ memory


@pytest.mark.parametrize("gib", [4, 8, 16, 24, 80])
@pytest.mark.parametrize("processes", [1, 4])
def test_the_largest_micro_batch_that_fits(gib: int, processes: int) -> None:
    what = found(gradient_accumulation_steps=40)  # GPT-2 124M, 480 sequences a step
    on = card(what, gib, processes)
    best = batches.fit(what, on)
    assert best.fits
    assert best.batch_size * best.gradient_accumulation_steps == 480, "the global batch stays"
    assert 480 // processes % best.batch_size == 0
    assert best.memory.needed <= gib * GIB
    larger = [size for size in range(best.batch_size + 1, 480 // processes + 1) if 480 // processes % size == 0]
    if larger:
        assert batches.memory(batches.with_batch(what, larger[0]), on).needed > gib * GIB


def test_a_cpu_keeps_its_batch() -> None:
    what = found(batch_size=4, gradient_accumulation_steps=4, device="cpu", n_layer=1, vocab_size=300, tokenizer="bpe")
    best = batches.fit(what, find_target(what.config))
    assert (best.batch_size, best.gradient_accumulation_steps) == (4, 4)


def test_remedies_in_the_chapter_s_order_each_computed() -> None:
    what = found(
        vocab_size=330, n_layer=6, n_head=6, n_embd=384, batch_size=64, block_size=256, dtype="float32"
    )  # the chapter's own example
    on = card(what, 8)
    rows = batches.remedies(what, on)
    names = [row.name for row in rows]
    assert names[:5] == ["smaller batch", "accumulate", "shorter block", "smaller model", "16-bit arithmetic"]
    changes = {row.name: row.change for row in rows}
    assert changes["smaller batch"] == {"batch_size": 32}  # 6.1, strategy 1
    assert changes["accumulate"] == {"batch_size": 16, "gradient_accumulation_steps": 4}  # strategy 3
    assert changes["shorter block"] == {"block_size": 128}  # strategy 2
    assert changes["smaller model"] == {"n_layer": 4, "n_head": 4, "n_embd": 256}  # strategy 4
    assert changes["16-bit arithmetic"] == {"dtype": "bfloat16"}  # strategy 5
    assert changes["smaller vocabulary"] == {}, "a character model needs all of its vocabulary"
    now = batches.memory(what, on).peak
    for row in rows:
        if row.memory is not None:
            assert row.memory.peak < now, row.name
    by_name = {row.name: row.memory for row in rows}
    narrow = by_name["16-bit arithmetic"]
    assert narrow is not None
    assert 1 - narrow.peak / now < 0.5, "the chapter's 50% is too much: float32 masters stay"


def test_remedies_that_are_not_to_be_had() -> None:
    what = found(batch_size=1, n_layer=1, n_head=1, n_embd=8, block_size=1, activation_checkpointing=True)
    rows = [row for row in batches.remedies(what, card(what, 8)) if row.name != "smaller model"]
    assert all(row.change == {} and row.memory is None for row in rows)
    assert {row.name for row in rows if row.applied} == {"16-bit arithmetic", "activation checkpointing"}
    fine_tuned = found(init_from="gpt2")
    assert not next(
        row for row in batches.remedies(fine_tuned, card(fine_tuned, 8)) if row.name == "smaller model"
    ).change


def test_where_nothing_fits_remedies_are_taken() -> None:
    what = found(gradient_accumulation_steps=40)
    advice = batches.recommend(what, card(what, 2.0))
    assert advice.fit.fits
    assert advice.needs
    assert advice.fit.memory.needed <= 2 * GIB
    assert advice.survey.config.global_batch == 480
    assert advice.survey.config.n_embd % advice.survey.config.n_head == 0
    hopeless = batches.recommend(what, card(what, 0.1))
    assert not hopeless.fit.fits


def test_the_chapter_s_table() -> None:
    sizes = [chapter.chapter_batch(gib * GIB) for gib in (2, 4, 6, 8, 12, 16, 24, 80)]
    assert sizes == [(8, 8), (8, 8), (8, 8), (16, 4), (16, 4), (32, 2), (64, 1), (64, 1)]
    what = found(gradient_accumulation_steps=40)
    rows = list(batches.fits_by_memory(what, card(what, 8)))
    assert [row[0] for row in rows] == [4, 8, 16, 24]
    micro = [row[2].batch_size for row in rows]
    assert micro == sorted(micro)


# ------------------------------------------------------------------------------------------------------ time and data


@pytest.mark.parametrize(
    ("size", "layers"), [(1e5, 6), (9.9e6, 6), (10e6, 12), (100e6, 12), (5e8, 12), (1.1e9, 24), (None, 24)]
)
def test_layers_by_the_text(size: float | None, layers: int) -> None:
    assert chapter.layers_for(None if size is None else int(size)) == layers  # 2.1


# ------------------------------------------------------------------------------------------------------ recipes


@pytest.mark.parametrize(
    "values",
    [
        {},
        {
            "tokenizer": "bpe",
            "lr_schedule": "hold_cosine",
            "compile": True,
            "max_time": "1h30m",
            "dataset": "a b/ü.txt",
        },
        {"init_from": "gpt2", "learning_rate": 1e-4, "lr_schedule": "constant", "early_stopping_patience": 3},
        {"sample_prompt": "a: # 'b'\n", "grad_clip": 0.0, "warmup_iters": 0, "cpu_threads": 4, "dropout": 0.1},
    ],
)
def test_a_written_recipe_loads_to_the_same_config(values: dict[str, Any], tmp_path: Path) -> None:
    shape = recipe(**values)
    path = tmp_path / "mine.yaml"
    reasons = {"n_layer": "a reason: with a colon, and a # mark", "learning_rate": "another"}
    written = command.write_recipe(path, shape.model_copy(update={"out_dir": None}), reasons, "Head\n\n  command")
    assert config.load(path) == written == shape.model_copy(update={"out_dir": "out/mine"})
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# Head\n#\n#   command\n")
    assert "a reason: with a colon" in text
    assert list(tmp_path.iterdir()) == [path]


def test_an_out_dir_that_was_given_is_kept(tmp_path: Path) -> None:
    written = command.write_recipe(tmp_path / "mine.yaml", recipe(out_dir="elsewhere"), {}, "x")
    assert config.load(tmp_path / "mine.yaml") == written
    assert written.out_dir == "elsewhere"


def test_a_recipe_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("n_layer: 3\n")
    with pytest.raises(InputError, match="exists already"):
        command.write_recipe(path, recipe(), {}, "x")
    assert path.read_text() == "n_layer: 3\n"
