"""Every parameter is explained in both languages, and the effects of other values are computed for the recipe."""

from __future__ import annotations

import re

import pytest

from hfgpt import config
from hfgpt.base.language import LANGUAGES, using
from hfgpt.config import Config
from hfgpt.model import sizes
from hfgpt.plan import guide
from hfgpt.plan.target import Target, find_target

FIELDS = list(Config.model_fields)
# The chapter's quick-reference table, and those of its fields that have larger and smaller values.
QUICK_REFERENCE = (
    "batch_size", "block_size", "learning_rate", "n_layer", "n_embd", "dropout", "weight_decay", "grad_clip",
)  # fmt: skip


def standard() -> Config:
    return config.load("recipes/standard.yaml")


def device(changed: Config) -> Target:
    return find_target(changed, "RTX 3060")


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_is_explained_in_both_languages(name: str) -> None:
    """In whole sentences, and in each field's own."""
    english, chinese = guide.entry(name, "en"), guide.entry(name, "zh")
    assert english.name == ""
    for part in ("meaning", "when"):
        text, translated = getattr(english, part), getattr(chinese, part)
        assert re.fullmatch(r"[A-Za-z0-9][^一-鿿]*[.)]", text)
        assert re.search(r"[一-鿿]{4}.*[。）]$", translated, flags=re.DOTALL)
        for language, own in (("en", text), ("zh", translated)):
            assert [field for field in FIELDS if getattr(guide.entry(field, language), part) == own] == [name]
    assert bool(english.more) == bool(english.less) == bool(chinese.more) == bool(chinese.less)


def test_nothing_else_is_explained() -> None:
    assert set(guide._book()) == set(FIELDS)


@pytest.mark.parametrize("name", QUICK_REFERENCE)
def test_the_quick_reference_is_complete(name: str) -> None:
    for language in LANGUAGES:
        entry = guide.entry(name, language)
        told = {part for part, text in vars(entry).items() if text}
        assert told | {"name"} == set(vars(entry)), "meaning, more, less, when, section and the recommended value"
        assert ("name" in told) == (language == "zh"), "the chapter's word for it"


@pytest.mark.parametrize("name", FIELDS)
def test_every_page_can_be_made(name: str) -> None:
    for language, when in (("en", "When to change it: "), ("zh", "什么时候调整：")):
        with using(language):
            page = guide.explain(standard(), name, device)
        assert re.match(rf"{name}(（\S[^）]*）)? ?= ", page), page[:80]
        assert when in page


def test_neighbours() -> None:
    recipe = standard()
    assert guide.neighbours(recipe, "n_layer") == [{"n_layer": 4}, {"n_layer": 6}, {"n_layer": 8}]
    assert guide.neighbours(recipe, "n_head") == [{"n_head": 4}, {"n_head": 6}, {"n_head": 8}]
    assert guide.neighbours(recipe, "n_embd") == [
        {"n_embd": 256, "n_head": 4},
        {"n_embd": 384, "n_head": 6},
        {"n_embd": 512, "n_head": 8},
    ]
    assert guide.neighbours(recipe, "batch_size") == [{"batch_size": size} for size in (32, 64, 128)]
    assert guide.neighbours(recipe, "learning_rate") == []


def test_what_grows_is_computed() -> None:
    page = guide.as_json(standard(), "n_layer", device)
    four, six, eight = page["neighbours"]
    assert six["parameters"] == sizes.parameters(standard(), 330).total
    assert eight["parameters"] - six["parameters"] == six["parameters"] - four["parameters"]
    for key in ("peak_bytes", "flops_per_step", "seconds_per_step", "total_seconds"):
        assert four[key] < six[key] < eight[key]


def test_heads_change_no_number_of_parameters() -> None:
    assert "parameters" not in guide.explain(standard(), "n_head", device).split("On this recipe")[-1]
    rows = guide.as_json(standard(), "n_head", device)["neighbours"]
    assert len({row["parameters"] for row in rows}) == 1


def test_a_parameter_without_effect_on_size_says_so() -> None:
    assert "its neighbours differ in neither" in guide.explain(standard(), "seed", device)
    with using("zh"):
        assert "相邻取值" in guide.explain(standard(), "seed", device)


@pytest.mark.parametrize("name", ["tokenizer", "dataset", "time_budget"])
def test_a_parameter_whose_values_cannot_be_listed_says_nothing_of_neighbours(name: str) -> None:
    assert "neighbours" not in guide.explain(standard(), name, device)


def test_the_optimizers_are_compared() -> None:
    page = guide.explain(standard(), "optimizer", device)
    assert {"optimizer=adamw", "optimizer=muon"} <= set(page.split())
    assert "peak memory" in page


def test_the_row_in_use_is_marked_for_auto_too() -> None:
    """`dtype: auto` is bfloat16 on this card."""
    page = guide.explain(standard(), "dtype", device)
    assert "dtype=bfloat16 (now)" in " ".join(page.split())
    assert "dtype=float32 (now)" not in " ".join(page.split())


def test_a_page_fits_80_columns_with_whole_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for name in ("batch_size", "n_embd", "block_size"):
        for in_language in LANGUAGES:
            with using(in_language):
                page = guide.explain(standard(), name, device)
            assert f"{name}={getattr(standard(), name)}" in page
            assert "…" not in page.split("\n\n")[-1]
