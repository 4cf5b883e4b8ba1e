"""A parameter explained: what it means, what more and less of it does, and what that is on this recipe.

In:  a Config and the name of one of its fields; the words are in hfgpt/plan/guide.yaml, English and Chinese.
Out: a page of text, or the same as JSON: the explanation, and the field's neighbouring values computed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from hfgpt import config as configs
from hfgpt.config import Config
from hfgpt.model import sizes
from hfgpt.plan import advise, estimate
from hfgpt.plan.estimate import Target
from hfgpt.plan.survey import survey

Device = Callable[[Config], Target]  # what a config runs on: estimate.target with its other arguments filled in

LANGUAGES = ("en", "zh")

# Headings by language.
WORDS = {
    "en": {
        "more": "More",
        "less": "Less",
        "when": "When to change it",
        "section": "chapter",
        "recommended": "Chapter's quick reference",
        "here": "On this recipe",
        "same": "On this recipe its neighbours differ in neither parameters, memory, arithmetic nor time.",
        "parameters": "parameters",
        "peak_bytes": "peak memory",
        "flops_per_step": "arithmetic a step",
        "tokens_per_step": "tokens a step",
        "seconds_per_step": "a step",
        "total_seconds": "the run",
        "epochs": "epochs",
        "now": "now",
    },
    "zh": {
        "more": "增大",
        "less": "减小",
        "when": "什么时候调整",
        "section": "章节",
        "recommended": "章节速查表的推荐值",
        "here": "在这份配置上",
        "same": "在这份配置上，相邻取值的参数量、显存、计算量和时间都相同。",
        "parameters": "参数量",
        "peak_bytes": "显存峰值",
        "flops_per_step": "每步计算量",
        "tokens_per_step": "每步 token",
        "seconds_per_step": "每步时间",
        "total_seconds": "总时间",
        "epochs": "轮数",
        "now": "当前",
    },
}


@dataclass(frozen=True)
class Entry:
    """What is said of a parameter in one language; empty where there is nothing to say."""

    meaning: str
    more: str
    less: str
    when: str
    section: str
    recommended: str


@lru_cache(maxsize=1)
def _book() -> dict[str, Any]:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    book: dict[str, Any] = yaml.load((Path(__file__).parent / "guide.yaml").read_text(encoding="utf-8"), loader)
    return book


def entry(name: str, language: str = "en") -> Entry:
    """The explanation of a field of Config, in 'en' or 'zh'."""
    page = _book()[name]
    text = page[language]
    return Entry(
        meaning=text["meaning"],
        more=text.get("more", ""),
        less=text.get("less", ""),
        when=text["when"],
        section=page.get("section", ""),
        recommended=page.get("recommended", "").replace(" to ", " to " if language == "en" else "–"),
    )


# ---------------------------------------------------------------------------------------------- neighbours, computed


def neighbours(config: Config, name: str) -> list[dict[str, Any]]:
    """Values around a field's own, as changes to the config, in order; the own one is among them."""
    value = getattr(config, name)
    if name == "n_layer":
        return [{name: layers} for layers in (value - 2, value, value + 2) if layers > 0]
    if name == "n_head":
        divisors = [heads for heads in range(1, config.n_embd + 1) if config.n_embd % heads == 0]
        at = divisors.index(value)
        return [{name: heads} for heads in divisors[max(0, at - 1) : at + 2]]
    if name == "n_embd":  # at the same size of a head
        channels, heads = config.n_embd // config.n_head, config.n_head
        return [{name: n * channels, "n_head": n} for n in (heads - 2, heads, heads + 2) if n > 0]
    if name == "dropout":
        return [{name: share} for share in sorted({0.0, 0.1, 0.2, value})]
    if name == "dtype":
        return [{name: dtype} for dtype in ("float32", "bfloat16")]
    if isinstance(value, bool):
        return [{name: False}, {name: True}]
    if isinstance(value, int):
        return [{name: number} for number in dict.fromkeys((max(1, value // 2), value, value * 2))]
    return []


def computed(config: Config, change: dict[str, Any], device: Device) -> dict[str, float]:
    """The sizes and times of the recipe with a change."""
    found = survey(config.model_copy(update=change))
    on = device(found.config)
    time, tokens = estimate.time(found, on), estimate.tokens(found)
    figures = {
        "parameters": sizes.parameters(found.config, found.vocab_size).total,
        "peak_bytes": advise.memory(found, on).peak,
        "tokens_per_step": tokens.per_iter,
        "flops_per_step": sizes.flops_per_token(found.config, found.vocab_size) * tokens.per_iter,
        "seconds_per_step": time.seconds_per_step,
        "total_seconds": time.total_seconds,
    }
    return figures | ({} if tokens.epochs is None else {"epochs": tokens.epochs})


Rows = Sequence[tuple[dict[str, Any], dict[str, float]]]  # a change, and what is computed with it


def explain(config: Config, name: str, device: Device, language: str = "en") -> str:
    """The page of one parameter, computed on this recipe.

    Raises:
        InputError: the recipe's data, model or device cannot be used.
    """
    return _page(config, name, _rows(config, name, device), language)


def as_json(config: Config, name: str, device: Device) -> dict[str, Any]:
    """The same as data, in both languages. Raises as :func:`explain`."""
    return {
        "parameter": name,
        "value": getattr(config, name),
        "takes": configs.allowed(name),
        "explanation": {language: vars(entry(name, language)) for language in LANGUAGES},
        "neighbours": [{"change": change, **figures} for change, figures in _rows(config, name, device)],
    }


def _rows(config: Config, name: str, device: Device) -> Rows:
    return [(change, computed(config, change, device)) for change in neighbours(config, name)]


def _page(config: Config, name: str, rows: Rows, language: str) -> str:
    from hfgpt.plan.tables import paragraph, show

    words, text, value = WORDS[language], entry(name, language), getattr(config, name)
    section = f"  ({words['section']} {text.section})" if text.section else ""
    parts: list[Any] = [
        paragraph(f"{name} = {configs.yaml_scalar(value)}{section}", bold=True),
        paragraph(text.meaning),
    ]
    for key in ("more", "less", "when", "recommended"):
        if said := getattr(text, key):
            separator = ": " if language == "en" else "："
            parts.append(paragraph(f"{words[key]}{separator}{said}"))
    if language == "en":
        parts.append(paragraph(f"--{name} takes {configs.allowed(name)}."))
    parts.append(_table(value, rows, name, words) if rows else paragraph(words["same"]))
    return show(parts)


def _table(value: Any, rows: Rows, name: str, words: dict[str, str]) -> Any:
    """The neighbours in columns that differ; a sentence where none does."""
    from hfgpt.plan.tables import duration, paragraph, size, table

    own = next((figures for change, figures in rows if change[name] == value), rows[0][1])
    differing = [key for key in own if any(figures[key] != own[key] for _, figures in rows)]
    if not differing:
        return paragraph(words["same"])
    written = {"peak_bytes": size, "seconds_per_step": duration, "total_seconds": duration, "epochs": "{:.3g}".format}
    written |= {"flops_per_step": lambda flops: f"{flops / 1e9:,.4g} GFLOP"}

    def cell(key: str, figures: dict[str, float]) -> str:
        text = written.get(key, "{:,.0f}".format)(figures[key])
        ratio = figures[key] / own[key] - 1
        return text if figures is own or not ratio else f"{text} ({ratio:+.0%})"

    body = []
    for change, figures in rows:
        typed = " ".join(f"{key}={configs.yaml_scalar(new)}" for key, new in change.items())
        body.append([typed, *(cell(key, figures) for key in differing), words["now"] if figures is own else ""])
    return table(words["here"], ["", *(words[key] for key in differing), ""], body)
