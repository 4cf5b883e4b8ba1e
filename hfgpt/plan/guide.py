"""The explanation of a parameter: its meaning, the effect of raising and lowering it, and figures for this recipe.

In:  a Config and the name of one of its fields; the texts are in hfgpt/plan/guide.yaml, in English and Chinese.
Out: a page of text or JSON: the explanation, and computed figures for neighbouring values.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from hfgpt import config as configs
from hfgpt.base import course, language
from hfgpt.base.language import LANGUAGES, N_, _
from hfgpt.base.units import duration, number, size
from hfgpt.config import Config
from hfgpt.model import sizes
from hfgpt.plan import batches, chapter, timing
from hfgpt.plan.layout import Table, paragraph, show
from hfgpt.plan.survey import survey_of
from hfgpt.plan.target import Target

Device = Callable[[Config], Target]  # find_target with all arguments but the config filled in


@dataclass(frozen=True)
class Entry:
    """The texts on a parameter in one language; empty if there is nothing to say."""

    name: str  # the chapter's word for it, in Chinese
    meaning: str
    more: str
    less: str
    when: str
    section: str
    recommended: str


HEADINGS = {
    "more": N_("More"),
    "less": N_("Less"),
    "when": N_("When to change it"),
    "recommended": N_("Chapter's quick reference"),
}


@lru_cache(maxsize=1)
def _book() -> dict[str, Any]:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    book: dict[str, Any] = yaml.load((Path(__file__).parent / "guide.yaml").read_text(encoding="utf-8"), loader)
    return book


def entry(name: str, in_language: str | None = None) -> Entry:
    """Return the explanation of a field of Config, in 'en' or 'zh'; by default in the current language."""
    page, in_language = _book()[name], in_language or language.current()
    text = page[in_language]
    return Entry(
        name=text.get("name", ""),
        meaning=language.of_device(text["meaning"]),
        more=language.of_device(text.get("more", "")),
        less=language.of_device(text.get("less", "")),
        when=language.of_device(text["when"]),
        section=language.listed(page.get("section", "").split(", ")),
        recommended=page.get("recommended", "").replace(" to ", " to " if in_language == "en" else "–"),
    )


def neighbours(config: Config, name: str) -> list[dict[str, Any]]:
    """Return values around a field's present one, in order and including it, as changes to the config."""
    value = getattr(config, name)
    if name == "n_layer":
        return [{name: layers} for layers in (value - 2, value, value + 2) if layers > 0]
    if name == "n_head":
        divisors = [heads for heads in range(1, config.n_embd + 1) if config.n_embd % heads == 0]
        at = divisors.index(value)
        return [{name: heads} for heads in divisors[max(0, at - 1) : at + 2]]
    if name == "n_embd":  # at the same head size
        channels, heads = config.n_embd // config.n_head, config.n_head
        return [{name: n * channels, "n_head": n} for n in (heads - 2, heads, heads + 2) if n > 0]
    if name == "dropout":
        return [{name: share} for share in sorted({0.0, 0.1, 0.2, value})]
    if name == "dtype":
        return [{name: dtype} for dtype in ("float32", "bfloat16")]
    if name == "optimizer":
        return [{name: kind} for kind in ("adamw", "muon")]
    if isinstance(value, bool):
        return [{name: False}, {name: True}]
    if isinstance(value, int):
        return [{name: number} for number in dict.fromkeys((max(1, value // 2), value, value * 2))]
    return []


def computed(config: Config, change: dict[str, Any], device: Device) -> dict[str, float]:
    """Compute the sizes and times of the recipe with a change."""
    survey = survey_of(config.model_copy(update=change))
    target = device(survey.config)
    time, tokens = timing.time(survey, target), chapter.tokens(survey)
    figures = {
        "parameters": sizes.parameters(survey.config, survey.vocab_size).total,
        "peak_bytes": batches.memory(survey, target).peak,
        "tokens_per_step": tokens.per_iter,
        "flops_per_step": sizes.flops_per_token(survey.config, survey.vocab_size) * tokens.per_iter,
        "seconds_per_step": time.seconds_per_step,
        "total_seconds": time.total_seconds,
    }
    return figures | ({} if tokens.epochs is None else {"epochs": tokens.epochs})


Rows = Sequence[tuple[dict[str, Any], dict[str, float]]]  # a change, and the figures computed with it


def explain(config: Config, name: str, device: Device) -> str:
    """Return the page of a parameter, with figures for this recipe, in the current language.

    Raises:
        InputError: the recipe's data, model or device cannot be used.
    """
    with language.about_card(device(config).own_memory):
        return _explain(config, name, device)


def _explain(config: Config, name: str, device: Device) -> str:
    text, rows, value = entry(name), _rows(config, name, device), getattr(config, name)
    shown = _("unset") if value is None else configs.yaml_scalar(value)
    title = f"{name} = {shown}"
    if text.name:
        title = _("{key} ({name}) = {value}", key=name, name=text.name, value=shown)
    if text.section:
        title = _("{title}  (chapter {section}: {pages})", title=title, section=text.section,
                  pages=course.pages(text.section))  # fmt: skip
    parts: list[Any] = [paragraph(title, bold=True), paragraph(text.meaning)]
    for key, heading in HEADINGS.items():
        if passage := getattr(text, key):
            finer = {"more": N_("More precise"), "less": N_("Less precise")} if name == "dtype" else {}
            parts.append(paragraph(_("{heading}: {text}", heading=_(finer.get(key, heading)), text=passage)))
    parts.append(paragraph(_("--{name} takes {allowed}.", name=name, allowed=configs.allowed(name))))
    if rows:
        parts.append(_table(_now(config, name, device), rows, name))
    return show(parts)


def as_json(config: Config, name: str, device: Device) -> dict[str, Any]:
    """Return the page as data, in both languages. Raises the errors of :func:`explain`."""
    return {
        "parameter": name,
        "value": getattr(config, name),
        "takes": configs.allowed(name),
        "explanation": {in_language: vars(entry(name, in_language)) for in_language in LANGUAGES},
        "neighbours": [{"change": change, **figures} for change, figures in _rows(config, name, device)],
    }


def _rows(config: Config, name: str, device: Device) -> Rows:
    return [(change, computed(config, change, device)) for change in neighbours(config, name)]


def _now(config: Config, name: str, device: Device) -> Any:
    """Return the effective value: what 'auto' resolves to on this device."""
    return device(config).dtype if name == "dtype" else getattr(config, name)


# Figures in the table of neighbours: heading, and format.
COLUMNS: dict[str, tuple[str, Callable[[float], str]]] = {
    "parameters": (N_("parameters"), "{:,.0f}".format),
    "peak_bytes": (N_("peak memory"), size),
    "tokens_per_step": (N_("tokens a step"), "{:,.0f}".format),
    "flops_per_step": (N_("GFLOP a step"), lambda flops: f"{flops / 1e9:,.4g}"),
    "seconds_per_step": (N_("a step"), duration),
    "total_seconds": (N_("the run"), duration),
    "epochs": (N_("epochs"), number),
}


def _table(value: Any, rows: Rows, name: str) -> Any:
    """Format neighbours as columns and their differences as rows, 80 columns wide; a sentence if nothing differs."""
    present = next((figures for change, figures in rows if change[name] == value), rows[0][1] if rows else {})
    differing = [key for key in present if any(figures[key] != present[key] for _change, figures in rows)]
    if not differing:
        return paragraph(_("On this recipe its neighbours differ in neither parameters, memory, arithmetic nor time."))

    def cell(key: str, figures: dict[str, float]) -> str:
        text, ratio = COLUMNS[key][1](figures[key]), figures[key] / present[key] - 1
        return text if figures is present or not ratio else f"{text} ({ratio:+.0%})"

    heads = []
    for change, figures in rows:
        typed = "\n".join(f"{key}={configs.yaml_scalar(new)}" for key, new in change.items())
        heads.append(_("{value} (now)", value=typed) if figures is present else typed)
    body = [[_(COLUMNS[key][0]), *(cell(key, figures) for _change, figures in rows)] for key in differing]
    return Table(_("On this recipe"), ["", *heads], body, words=(0,))
