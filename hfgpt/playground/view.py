"""What the playground shows: its words in English and Chinese, its pieces of HTML, its style.

In:  a Plan, runs and their findings, faults (hfgpt/plan/command.py, hfgpt/runs/compare.py, hfgpt/config/fields.py).
Out: HTML in the page's own colours, light and dark. Every text from outside is escaped.

The figures are those of hfgpt/plan, written as plan.py writes them; nothing is
computed here. Imports neither gradio nor torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from html import escape
from pathlib import Path
from typing import Any

import yaml

from hfgpt import config as configs
from hfgpt.base.errors import Fault
from hfgpt.base.language import _, using
from hfgpt.base.units import duration, size
from hfgpt.model import sizes
from hfgpt.plan import batches, chapter, guide, timing
from hfgpt.plan.command import Plan
from hfgpt.plan.layout import number
from hfgpt.plan.memory import BINDS
from hfgpt.runs import comparison_plots
from hfgpt.runs.compare import Comparison, Entry
from hfgpt.runs.comparison_plots import By
from hfgpt.runs.diagnose import diagnose, notes
from hfgpt.runs.findings import Finding, Remedy
from hfgpt.runs.style import RUNS, quantity


@lru_cache(maxsize=1)
def _book() -> dict[str, Any]:
    text = (Path(__file__).parent / "page.yaml").read_text(encoding="utf-8")
    book: dict[str, Any] = yaml.safe_load(text)
    return book


def word(name: str, language: str, *values: Any) -> str:
    """A label of playground.yaml in 'en' or 'zh', its {} filled in."""
    text: str = _book()["words"][name][language]
    return text.format(*values)


def said(sentence: str, language: str) -> str:
    """What another module says in English, in the page's language as far as playground.yaml knows it."""
    if language == "zh":
        for pattern, chinese in _book()["phrases"]:
            sentence = re.sub(rf"(?<![A-Za-z_-]){pattern}" if pattern[0].isalpha() else pattern, chinese, sentence)
    return sentence


# ------------------------------------------------------------------------------------------------------ small pieces


def message(text: str, kind: str = "note") -> str:
    """One sentence in a frame; kind: 'note', 'good' or 'bad'."""
    return f'<p class="said {kind}">{escape(text)}</p>'


def fault(fault: Fault, language: str) -> str:
    """A broken rule beside its value, with the fix below it."""
    fix = f'<span class="fix">→ {escape(said(fault.fix, language))}</span>' if fault.fix else ""
    return f'<p class="said bad">{escape(said(fault.rule, language))}{fix}</p>'


def explained(key: str, language: str) -> str:
    """The guide's page of a parameter, folded."""
    text = guide.entry(key, language)
    with using(language):
        parts = [
            f"<dt>{escape(_(heading))}</dt><dd>{escape(getattr(text, part))}</dd>"
            for part, heading in guide.HEADINGS.items()
            if getattr(text, part)
        ]
    section = f" · {word('chapter', language, text.section)}" if text.section else ""
    return f"<details><summary>{word('takes', language)}{section}</summary><dl>{''.join(parts)}</dl></details>"


def _table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]], note: str = "", notes: bool = True
) -> str:
    """A table that scrolls inside itself. A row whose first cell begins with '=' is a result and stands out.

    `notes` says that the last column holds words, which wrap.
    """
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = []
    for row in rows:
        strong = ' class="result"' if str(row[0]).startswith("=") else ""
        cells = [escape(str(cell).removeprefix("=")) for cell in row]
        if notes:
            cells[-1] = f"<span>{cells[-1]}</span>"
        body.append(f"<tr{strong}>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    return (
        f'<section class="figures">{f"<h3>{escape(title)}</h3>" if title else ""}<div class="scrolls"><table>'
        f"{f'<thead><tr>{head}</tr></thead>' if any(columns) else ''}<tbody>{''.join(body)}</tbody></table></div>"
        f"{f'<p>{escape(note)}</p>' if note else ''}</section>"
    )


def _typed(change: dict[str, Any], between: str = ", ") -> str:
    return between.join(f"{key} {_value(value)}" for key, value in change.items())


def _value(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else configs.yaml_scalar(value)


# ----------------------------------------------------------------------------------------------------------- the plan


def verdict(plan: Plan, language: str) -> tuple[bool, str]:
    """Whether a plan fits its device, and what to do if it does not, in a sentence."""
    memory, on, advice = plan.memory, plan.target, plan.recommendation
    if memory.needed <= on.memory_bytes:
        return True, word("fits", language)
    needs = word("too_much", language, size(memory.needed), size(on.memory_bytes))
    then = size(advice.fit.memory.needed)
    before, after = plan.survey.config, advice.survey.config.model_dump()
    change = _typed({key: value for key, value in after.items() if value != getattr(before, key)})
    if not advice.fit.fits:
        remedy = word("nothing_fits", language, then)
    elif advice.needs:
        remedy = word("instead_with", language, change, then)
    else:
        remedy = word("instead", language, change, before.global_batch, then)
    return False, f"{needs} → {remedy}"


def summary(plan: Plan, language: str) -> str:
    """The four figures that one looks at while a slider moves, and whether it fits."""
    found, memory, on, time = plan.survey, plan.memory, plan.target, plan.time
    parts, tokens = sizes.parameters(found.config, found.vocab_size), chapter.tokens(found)
    fits, sentence = verdict(plan, language)
    share = min(100, round(100 * memory.needed / on.memory_bytes))
    ratio = number(tokens.per_parameter)
    seen = (
        word("a_parameter", language, ratio)
        if tokens.epochs is None
        else word("epochs", language, number(tokens.epochs), ratio)
    )
    device = said(on.name, language)
    tiles = [
        ("parameters", quantity(parts.total), word("vocabulary", language, f"{found.vocab_size:,}")),
        ("memory", size(memory.needed), word("of", language, size(on.memory_bytes), device)),
        ("time", duration(time.total_seconds), word("a_step", language, duration(time.seconds_per_step))),
        ("tokens", quantity(tokens.total), seen),
    ]
    shown = "".join(
        f'<div class="tile {"bad" if name == "memory" and not fits else ""}" id="figure-{name}">'
        f"<span>{word(name, language)}</span><b>{escape(figure)}</b><small>{escape(below)}</small>"
        + (f'<i class="bar"><i style="width:{share}%"></i></i>' if name == "memory" else "")
        + "</div>"
        for name, figure, below in tiles
    )
    lead = "" if fits else f"<b>{word('fits_not', language)}</b> "
    return f'<div class="tiles">{shown}</div><p class="said {"good" if fits else "bad"}">{lead}{escape(sentence)}</p>'


def refused(faults: Sequence[Fault], text: str, language: str) -> str:
    """Why a recipe cannot be planned: broken rules, or a message."""
    items = [
        f"<li><code>{escape(f'{fault.key} = {_value(fault.value)}' if fault.value is not None else fault.key)}</code> "
        f"{escape(said(fault.rule, language))}"
        + (f'<span class="fix">→ {escape(said(fault.fix, language))}</span>' if fault.fix else "")
        + "</li>"
        for fault in faults
    ]
    items += [f"<li>{escape(text)}</li>"] if text else []
    return f'<div class="said bad"><b>{word("broken", language)}</b><ul>{"".join(items)}</ul></div>'


def tables(plan: Plan, language: str) -> str:
    """Where the parameters, the memory and the time go, and what would fit."""
    parts = [_memory(plan, language), _time(plan, language), _parameters(plan, language), _recommended(plan, language)]
    if plan.memory.needed > plan.target.memory_bytes:
        parts.insert(0, _remedies(plan, language))
    return "".join(parts)


def _parameters(plan: Plan, language: str) -> str:
    found = plan.survey
    parts = sizes.parameters(found.config, found.vocab_size)
    rule = chapter.rules_of_thumb(found.config).parameters
    rows = [(word(name, language), f"{count:,}", f"{count / parts.total:.1%}") for name, count in vars(parts).items()]
    rows.append((f"={word('total', language)}", f"{parts.total:,}", "100%"))
    rows.append((word("rule", language), f"{rule:,}", "12 n_layer n_embd² (5.2)"))
    note = word("vocabulary", language, f"{found.vocab_size:,}")
    return _table(word("where", language), ("", "", ""), rows, f"{note}: {said(found.vocabulary, language)}")


def _memory(plan: Plan, language: str) -> str:
    memory, on = plan.memory, plan.target
    names = ("weights", "gradients", "optimizer", "activations", "logits")
    rows = [(word(name, language), size(getattr(memory, name)), "") for name in names]
    binding = said(BINDS[memory.binding], language)
    rows.append((word("peak", language), size(memory.peak), word("peak_why", language, binding)))
    rows.append((word("allowance", language), size(memory.allowance), word("allowance_why", language)))
    of = word("of", language, size(on.memory_bytes), said(on.name, language))
    rows.append((f"={word('needed', language)}", size(memory.needed), of))
    return _table(word("memory_of", language, on.dtype), ("", "", ""), rows)


def _time(plan: Plan, language: str) -> str:
    time, on, config = plan.time, plan.target, plan.survey.config
    rows = [
        (word("step", language), duration(time.seconds_per_step), f"{on.peak / 1e12:,.4g} TFLOP/s × {time.mfu:.0%}"),
        (word("speed", language), f"{time.tokens_per_second:,.0f}", ""),
        (word("all_steps", language), duration(time.training_seconds), f"max_iters {config.max_iters:,}"),
        (
            word("evaluation", language),
            duration(time.evaluation_seconds),
            word("times", language, timing.evaluations(config)),
        ),
        (f"={word('total', language)}", duration(time.total_seconds), ""),
    ]
    if (energy := timing.cost(time, on, None).energy_kwh) is not None:
        rows.append((word("energy", language), f"{number(energy)} kWh", word("at_most", language)))
    note = said(on.note, language)
    return _table(word("time_on", language, said(on.name, language)), ("", "", ""), rows, note)


def _recommended(plan: Plan, language: str) -> str:
    before, advice = plan.survey.config, plan.recommendation
    rows = [
        (key, _value(getattr(before, key)), _value(value), said(advice.reasons.get(key, ""), language))
        for key, value in advice.survey.config.model_dump().items()
        if value != getattr(before, key)
    ]
    heads = ["", *(word(name, language) for name in ("now", "then", "why"))]
    title = word("recommended", language)
    return _table(title, heads, rows) if rows else _table(title, ("",), [(word("as_it_is", language),)])


def _remedies(plan: Plan, language: str) -> str:
    rows = [
        (
            said(remedy.name, language),
            _typed(remedy.change, "\n"),
            size(remedy.memory.needed),
            said(remedy.price, language),
        )
        for remedy in batches.remedies(plan.survey, plan.target)
        if remedy.memory is not None
    ]
    heads = ["", *(word(name, language) for name in ("change", "needed", "costs"))]
    return _table(word("remedies", language), heads, rows)


# ----------------------------------------------------------------------------------------------------------- the runs


def runs(comparison: Comparison, sentences: Sequence[str], by: By, language: str) -> str:
    """Up to six runs: their curves, a table, what their comparison says, and each one's diagnosis, side by side."""
    entries = comparison.entries
    curves = [comparison_plots.Curve(entry.label, entry.run) for entry in entries if entry.run is not None]
    pictures = "".join(
        f'<figure id="{key}"><h3>{word(key, language)}</h3>{drawn}</figure>'
        for key in ("val_loss", "train_loss")
        if (drawn := comparison_plots.panel(curves, key, by))
    )
    heads = [word(n, language) for n in ("run", "steps", "parameters", "time", "train", "val", "best_val", "at_step")]
    listed = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
    coloured = list(zip(entries, RUNS, strict=False))
    cards = "".join(_diagnosis(entry, colour, language) for entry, colour in coloured)
    legend = "".join(f"<span>{_dot(colour)} {escape(entry.label)}</span>" for entry, colour in coloured)
    note = word("english_only", language)
    return (
        f'<div class="legend">{legend}</div><div class="curves">{pictures}</div>'
        + _table("", heads, [_row(entry, language) for entry in entries], notes=False)
        + (f'<ul class="answer">{listed}</ul>' if listed else "")
        + f'<div class="cards">{cards}</div>'
        + (f'<p class="small">{escape(note)}</p>' if note else "")
    )


def _dot(colour: str) -> str:
    return f'<i class="dot" style="background:{colour}"></i>'


def _row(entry: Entry, language: str) -> tuple[str, ...]:
    def loss(value: float | None) -> str:
        return "–" if value is None else f"{value:.4f}"

    best, count, seconds = entry.best, entry.parameters, entry.last("seconds")
    return (
        entry.label,
        f"{entry.steps:,}",
        "–" if count is None else quantity(count),
        "–" if seconds is None else duration(seconds),
        loss(entry.last("train_eval_loss")),
        loss(entry.last("val_loss")),
        loss(best[0] if best else None),
        f"{best[1]:,}" if best else "–",
    )


def _diagnosis(entry: Entry, colour: str, language: str) -> str:
    assert entry.run is not None, "the page shows runs that it has read"
    found = diagnose(entry.run.records, entry.run.config)
    told = "".join(f"<li>{escape(note)}</li>" for note in notes(entry.run.records, entry.run.config))
    state = word("running" if entry.outcome == "running" else "finished", language)
    return (
        f'<article><h3>{_dot(colour)} {escape(entry.label)}</h3><p class="small">{state}</p>'
        f"{''.join(_finding(finding, language) for finding in found)}{f'<ul>{told}</ul>' if told else ''}</article>"
    )


def _finding(finding: Finding, language: str) -> str:
    well = finding.kind == "healthy"
    since = "" if well or not finding.since_step else word("since", language, f"{finding.since_step:,}")
    kind = _book()["kinds"][finding.kind][language]
    steps = "".join(f"<li>{_remedy(remedy, language)}</li>" for remedy in finding.remedies)
    return (
        f'<p class="said {"good" if well else "bad"}"><b>{kind}{since}</b><br>{escape(finding.evidence)}</p>'
        f"{f'<ol>{steps}</ol>' if steps else ''}"
    )


def _remedy(remedy: Remedy, language: str) -> str:
    words = " ".join(f"<code>{escape(word)}</code>" for word in (remedy.override or "").split())
    typed = f"<br>{words}" if words else ""
    return f"{escape(remedy.what)} <small>({word('chapter', language, remedy.chapter)})</small>{typed}"


# -------------------------------------------------------------------------------------------------------------- style

# System fonts alone: nothing is fetched. The Chinese ones come after the Latin ones, so that figures stay the same.
FONTS = ("system-ui", "-apple-system", "Segoe UI", "Noto Sans", "PingFang SC", "Microsoft YaHei", "Noto Sans CJK SC")

MONOSPACE = ("ui-monospace", "SFMono-Regular", "Menlo", "DejaVu Sans Mono", "Noto Sans Mono CJK SC")

CSS = """
:root { --good: #00704f; --good-back: #e7f5ef; --bad: #b3401a; --bad-back: #fdeee7; }
.dark { --good: #63d3ae; --good-back: #12332a; --bad: #ff9d73; --bad-back: #40221a; }
.gradio-container { width: 100% !important; min-width: 0; max-width: 1240px !important; margin: 0 auto !important;
  overflow: clip !important; /* hidden would keep the figures from staying in sight */ }
.gradio-container :is(.main, .wrap, .contain) { width: 100%; min-width: 0; max-width: 100%; }
#head { align-items: center; }
#head h1 { font-size: 1.35rem; margin: 0; } #head p { margin: 0; color: var(--body-text-color-subdued); }
#language { min-width: 190px !important; flex-grow: 0 !important; }
#knobs { gap: .5rem; }
#knobs h3 { margin: .8rem 0 .1rem .6rem; font-size: 1rem; color: var(--body-text-color); font-weight: 650; }
.knob { gap: 0 !important; border-left: 3px solid transparent; padding-left: .6rem; }
.knob:has(.said.bad) { border-left-color: var(--bad); }
.knob details { font-size: .85rem; color: var(--body-text-color-subdued); margin: .15rem 0 .25rem .2rem; }
.knob summary { cursor: pointer; color: var(--link-text-color); }
.knob dl { margin: .4rem 0; } .knob dt { font-weight: 600; } .knob dd { margin: 0 0 .4rem; }
.knob .said { margin: .3rem 0; }
.halves > div { min-width: min(300px, 100%) !important; }
#summary { position: sticky; top: 0; z-index: 60; overflow: visible; background: var(--body-background-fill);
  padding: .3rem 0 .1rem !important; }
#result { position: sticky; top: 11rem; align-self: flex-start; }
.tiles { display: grid; grid-template-columns: repeat(4, minmax(0, 1fr)); gap: .6rem; }
.tile { border: 1px solid var(--border-color-primary); border-radius: 10px; padding: .5rem .8rem;
  background: var(--background-fill-secondary); display: flex; flex-direction: column; min-width: 0; }
.tile span { font-size: .8rem; color: var(--body-text-color-subdued); }
.tile b { font-size: 1.35rem; font-variant-numeric: tabular-nums; line-height: 1.4; color: var(--body-text-color); }
.tile small { color: var(--body-text-color-subdued); overflow-wrap: anywhere; }
.tile.bad { border-color: var(--bad); } .tile.bad b { color: var(--bad); }
.bar { display: block; height: 4px; border-radius: 2px; background: var(--border-color-primary); margin-top: .4rem; }
.bar > i { display: block; height: 4px; border-radius: 2px; background: var(--good); }
.bad .bar > i { background: var(--bad); }
.said { border-radius: 8px; padding: .4rem .75rem; margin: .5rem 0; font-size: .9rem; overflow-wrap: anywhere;
  background: var(--background-fill-secondary); color: var(--body-text-color); }
.said.good { background: var(--good-back); color: var(--good); }
.said.bad { background: var(--bad-back); color: var(--bad); }
.said b, .said code { color: inherit; } .said ul { margin: .3rem 0 0 1.1rem; list-style: disc; }
.said code, article code { overflow-wrap: anywhere; white-space: normal; }
article code { display: inline-block; max-width: 100%; }
.fix { display: block; font-weight: 600; }
.figures { margin: 0 0 1.1rem; }
.figures h3, .cards h3 { font-size: .95rem; margin: 0 0 .3rem; overflow-wrap: anywhere; }
.figures p, .small { font-size: .8rem; color: var(--body-text-color-subdued); margin: .3rem 0; }
.scrolls { overflow-x: auto; border: 1px solid var(--border-color-primary); border-radius: 10px; }
.scrolls table { width: 100%; border-collapse: collapse; margin: 0; font-size: .86rem;
  font-variant-numeric: tabular-nums; }
.scrolls :is(table, thead, tbody, tr) { border: 0 !important; box-shadow: none !important; }
.scrolls :is(td, th) { padding: .34rem .75rem !important; text-align: right; white-space: pre; border: 0 !important;
  color: var(--body-text-color); }
.scrolls tr + tr > td, .scrolls thead + tbody td { border-top: 1px solid var(--border-color-primary) !important; }
.scrolls th { font-weight: 600; color: var(--body-text-color-subdued); }
.scrolls :is(td, th):first-child { text-align: left; }
.scrolls td > span { display: block; text-align: left; white-space: normal; min-width: 10rem;
  color: var(--body-text-color-subdued); }
.scrolls tr.result td { font-weight: 700; background: var(--background-fill-secondary); }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; font-size: .9rem; margin: .3rem 0; }
.dot { display: inline-block; width: .7em; height: .7em; border-radius: 50%; }
.curves { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); gap: .8rem;
  margin-bottom: 1rem; }
.curves figure { margin: 0; border: 1px solid var(--border-color-primary); border-radius: 10px; padding: .6rem;
  min-width: 0; } .curves h3 { font-size: .9rem; margin: 0; }
.curves svg { width: 100%; height: auto; display: block; }
.curves svg text { fill: var(--body-text-color) !important; font-family: var(--font) !important; }
.dark .curves svg [style*="stroke: #e6e6e6"] { stroke: #334155 !important; }
.answer { margin: .6rem 0 .6rem 1.1rem; font-size: .9rem; list-style: disc; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 300px), 1fr)); gap: .8rem; }
.cards article { border: 1px solid var(--border-color-primary); border-radius: 10px; padding: .8rem; min-width: 0;
  font-size: .88rem; }
.cards ol { list-style: decimal; margin: 0 0 .6rem 1.3rem; } .cards ol li { margin-bottom: .3rem; }
.cards ul { list-style: disc; margin-left: 1.2rem; color: var(--body-text-color-subdued); }
#written textarea { font-family: var(--font-mono); line-height: 1.5; }
@media (max-width: 900px) {
  .halves { flex-direction: column; } .halves > div { width: 100%; }
  #result { position: static; }
}
@media (max-width: 600px) {
  .gradio-container { padding: 0 .5rem !important; }
  #head h1 { font-size: 1.1rem; } #head p { display: none; }
  .curves svg text { font-size: 15px !important; }
  .tiles { gap: .3rem; grid-template-columns: 5fr 6fr 5fr 5fr; }
  .tile { padding: .25rem .35rem; border-radius: 8px; } .tile small { display: none; }
  .tile span { font-size: .66rem; white-space: nowrap; } .bar { margin-top: .15rem; }
  .tile b { font-size: .85rem; white-space: nowrap; }
  #summary .said { max-height: 7rem; overflow-y: auto; margin: .3rem 0; padding: .3rem .6rem; font-size: .82rem; }
}
"""
