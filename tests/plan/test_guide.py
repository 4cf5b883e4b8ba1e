"""Every parameter is explained in both languages, and its neighbours are computed on the recipe."""

from __future__ import annotations

import re

import pytest

from hfgpt import config
from hfgpt.config import Config
from hfgpt.model import sizes
from hfgpt.plan import estimate, guide
from hfgpt.plan.estimate import Target

FIELDS = list(Config.model_fields)
# The chapter's quick-reference table, and those fields of it that can be turned up and down.
QUICK_REFERENCE = (
    "batch_size", "block_size", "learning_rate", "n_layer", "n_embd", "dropout", "weight_decay", "grad_clip",
)  # fmt: skip


def standard() -> Config:
    return config.load("recipes/standard.yaml")


def device(changed: Config) -> Target:
    return estimate.target(changed, "RTX 3060")


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_is_explained_in_both_languages(name: str) -> None:
    english, chinese = guide.entry(name, "en"), guide.entry(name, "zh")
    for text in (english.meaning, english.when):
        assert len(text) > 10
        assert not re.search(r"[一-鿿]", text)
    for text in (chinese.meaning, chinese.when):
        assert re.search(r"[一-鿿]{4}", text)
    assert bool(english.more) == bool(english.less) == bool(chinese.more) == bool(chinese.less)


def test_nothing_else_is_explained() -> None:
    assert set(guide._book()) == set(FIELDS)


@pytest.mark.parametrize("name", QUICK_REFERENCE)
def test_the_quick_reference_is_complete(name: str) -> None:
    for language in guide.LANGUAGES:
        entry = guide.entry(name, language)
        assert all(vars(entry).values()), "meaning, more, less, when, section and the recommended value"


@pytest.mark.parametrize("name", FIELDS)
def test_every_page_can_be_made(name: str) -> None:
    for language in guide.LANGUAGES:
        page = guide.explain(standard(), name, device, language)
        assert page.startswith(f"{name} = ")
        assert guide.WORDS[language]["when"] in page


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
    assert "parameters" not in guide.explain(standard(), "n_head", device).split("On this recipe")[-1].splitlines()[0]
    rows = guide.as_json(standard(), "n_head", device)["neighbours"]
    assert len({row["parameters"] for row in rows}) == 1


def test_a_parameter_without_effect_on_size_says_so() -> None:
    assert guide.WORDS["en"]["same"] in guide.explain(standard(), "seed", device)
    assert guide.WORDS["zh"]["same"] in guide.explain(standard(), "learning_rate", device, "zh")
