"""A plan as tables that a learner can read.

In:  a Plan (hfgpt/plan/command.py).
Out: text: coloured on a terminal, plain elsewhere.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from hfgpt.model import sizes
from hfgpt.plan import advise, estimate
from hfgpt.plan.command import Options, Plan
from hfgpt.plan.estimate import BINDS

RULE = "chapter's rule of thumb"


def render(plan: Plan, recipe: str | None, options: Options) -> str:
    """All tables of a plan, in the order in which one asks: how big, how much text, does it fit, how long, and then."""
    on = f"{plan.on.processes} x {plan.on.name}" if plan.on.processes > 1 else plan.on.name
    head = paragraph(f"{recipe or 'the defaults'}: {plan.found.config.dataset}, on {on}", bold=True)
    parts: list[RenderableType] = [
        head,
        _parameters(plan),
        _tokens(plan),
        _memory(plan),
        _time(plan, options),
        _recommendation(plan, options),
    ]
    if options.vram or options.gpu or plan.memory.needed > plan.on.memory_bytes:
        parts += [_remedies(plan), _by_memory(plan)]
    return show(parts)


def show(parts: Iterable[RenderableType]) -> str:
    """Tables and paragraphs as text for standard output."""
    terminal = sys.stdout.isatty()
    buffer = io.StringIO()
    console = Console(file=buffer, force_terminal=terminal, width=None if terminal else 120, highlight=False)
    for part in parts:
        console.print(part)
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines())


def table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]], note: str = "", words: Sequence[int] = (0, -1)
) -> Group:
    """A titled table with a note below it; the columns in `words` are aligned left, numbers right."""
    made = Table(box=box.SIMPLE_HEAD, show_header=any(columns), pad_edge=False)
    left = {index % len(columns) for index in words}
    for index, column in enumerate(columns):
        made.add_column(column, justify="left" if index in left else "right", no_wrap=index < len(columns) - 1)
    for row in rows:
        made.add_row(*(Text(str(cell)) for cell in row))
    return Group(Text(title, style="bold"), made, Text(f"{note}\n" if note else ""))


def size(amount: float) -> str:
    """Bytes as MiB or GiB."""
    return f"{amount / 2**30:,.2f} GiB" if amount >= 2**30 else f"{amount / 2**20:,.1f} MiB"


def number(value: float) -> str:
    """Three digits, and all of them before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def duration(seconds: float) -> str:
    """Seconds as 12 ms, 3.4 s, 12m05s, 3h10m or 4.2 days."""
    if seconds < 1:
        return f"{seconds * 1000:.3g} ms"
    if seconds < 60:
        return f"{seconds:.3g} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 2 * 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{seconds / 86400:,.1f} days"


def _parameters(plan: Plan) -> Group:
    found = plan.found
    config, parts = found.config, sizes.parameters(found.config, found.vocab_size)
    rule = estimate.rules_of_thumb(config).parameters
    names = {
        "token embedding": (parts.token_embedding, f"vocabulary {found.vocab_size:,} x n_embd {config.n_embd}"),
        "position embedding": (parts.position_embedding, f"block_size {config.block_size:,} x n_embd"),
        "attention": (parts.attention, f"{config.n_layer} blocks x (4 n_embd² + biases)"),
        "MLP": (parts.mlp, f"{config.n_layer} blocks x (8 n_embd² + biases)"),
        "layer norms": (parts.norms, "gain and bias"),
    }
    rows = [(name, f"{count:,}", f"{count / parts.total:.1%}", why) for name, (count, why) in names.items()]
    rows.append(("total", f"{parts.total:,}", "100%", f"vocabulary: {found.vocabulary}"))
    rows.append((RULE, f"{rule:,}", f"{rule / parts.total:.1%}", "12 n_layer n_embd² (5.2)"))
    embeddings = parts.token_embedding + parts.position_embedding
    note = (
        f"The rule leaves out {parts.total - rule:,}: embeddings {embeddings:,}, biases and norms "
        f"{parts.total - rule - embeddings:,}. The output head is the token embedding used again."
    )
    return table("Parameters", ("", "count", "share", "where"), rows, note)


def _tokens(plan: Plan) -> Group:
    found, tokens = plan.found, estimate.tokens(plan.found)
    config = found.config
    about = "about " if found.approximate else ""
    corpus = "not on this machine" if found.train_tokens is None else f"{about}{found.train_tokens:,}"
    rows = [
        (
            "a step",
            f"{tokens.per_iter:,}",
            f"batch_size {config.batch_size} x block_size {config.block_size:,} x accumulation "
            f"{config.gradient_accumulation_steps}",
        ),
        ("the run", f"{tokens.total:,}", f"x max_iters {config.max_iters:,}"),
        ("training text", corpus, config.dataset),
    ]
    if tokens.epochs is not None:
        rows.append(("epochs", number(tokens.epochs), "how often the text is seen"))
    rows.append(
        ("tokens a parameter", f"{tokens.per_parameter:.3g}", "about 20 is compute-optimal (Hoffmann et al. 2022)")
    )
    return table("Tokens", ("", "count", ""), rows)


AVERAGES = {
    "adamw": "AdamW's two averages",
    "muon": "Muon's one average of the matrices inside the blocks, AdamW's two of the rest",
}


def _memory(plan: Plan) -> Group:
    memory, on = plan.memory, plan.on
    rules = estimate.rules_of_thumb(plan.found.config)
    fits = "fits" if memory.needed <= on.memory_bytes else "does NOT fit"
    rows = [
        ("weights", size(memory.weights), "float32"),
        ("gradients", size(memory.gradients), "float32"),
        ("optimizer", size(memory.optimizer), AVERAGES[plan.found.config.optimizer]),
        ("activations", size(memory.activations), f"kept for the backward pass, {on.dtype}"),
        ("logits", size(memory.logits), "scores over the vocabulary, of a chunk of the micro-batch at a time"),
        ("peak", size(memory.peak), f"not all at once; set by {BINDS[memory.binding]}"),
        ("allowance", size(memory.allowance), "libraries, workspaces, fragmentation: assumed"),
        ("needed", size(memory.needed), f"{fits} in {size(on.memory_bytes)} ({on.name})"),
        (RULE, size(rules.memory_bytes), "16 bytes a parameter and batch·block·n_embd·n_layer·4 (5.2)"),
    ]
    for name, value in (("peak, simulated", plan.simulated), ("peak, measured", plan.measured)):
        if value is not None:
            rows.insert(6, (name, size(value), f"the formula is off by {memory.peak / value - 1:+.1%}"))
    per = f", each of {on.processes} processes" if on.processes > 1 else ""
    note = "A predicted peak of the allocator; confirmed on CPUs, not yet on a GPU." if on.kind == "accelerator" else ""
    return table(f"Memory of a training step, {on.dtype}{per}", ("", "size", ""), rows, note)


def _time(plan: Plan, options: Options) -> Group:
    time, on = plan.time, plan.on
    rules = estimate.rules_of_thumb(plan.found.config)
    how = "measured here" if time.measured else f"{on.peak / 1e12:,.4g} TFLOP/s x {on.utilisation:.0%} utilisation"
    rows = [
        ("a step", duration(time.seconds_per_step), how),
        ("tokens a second", f"{time.tokens_per_second:,.0f}", f"MFU {time.mfu:.1%}"),
        ("all steps", duration(time.training_seconds), f"max_iters {plan.found.config.max_iters:,}"),
        ("evaluation", duration(time.evaluation_seconds), f"{estimate.evaluations(plan.found.config)} times"),
        ("total", duration(time.total_seconds), "without starting and saving"),
        (RULE, duration(rules.seconds_per_step), "a step of the standard recipe on an RTX 3060, from experience (5.3)"),
    ]
    cost = estimate.cost(time, on, options.price_per_hour)
    if cost.money is not None:
        rows.append(("cost", f"{cost.money:,.2f}", f"at {options.price_per_hour:g} an hour a device"))
    if cost.energy_kwh is not None:
        rows.append(("energy", f"{number(cost.energy_kwh)} kWh", f"at most: {on.power_w:g} W all the time"))
    devices = f"{on.processes} x {on.name}" if on.processes > 1 else on.name
    return table(f"Time on {devices}", ("", "", ""), rows, _sentence(on.note))


def _recommendation(plan: Plan, options: Options) -> Group:
    advice, on = plan.recommendation, plan.on
    before, after = plan.found.config, advice.found.config
    rows = [
        (key, _value(getattr(before, key)), _value(value), advice.reasons.get(key, ""))
        for key, value in after.model_dump().items()
        if key in advice.reasons or value != getattr(before, key)
    ]
    notes = []
    if not advice.fit.fits:
        notes.append(f"Nothing fits {size(on.memory_bytes)}: one sequence takes {size(advice.fit.memory.needed)}.")
    elif advice.needs:
        notes.append(f"No micro-batch fits without: {', '.join(dict.fromkeys(advice.needs))} (applied above).")
    if plan.designed:
        seconds = estimate.time(advice.found, on).total_seconds
        layers = advise.layers_for(plan.found.corpus_bytes)
        notes.append(f"It takes about {duration(seconds)}. {RULE.capitalize()} (2.1): n_layer {layers} for this text.")
    by_memory = "{} x {} for this memory (1.3)".format(*advise.chapter_batch(on.memory_bytes))
    notes.append(
        f"{RULE.capitalize()} (1.1): batch_size 32 for beginners, 8 where memory is short, 64 for speed"
        + (f"; {by_memory}." if on.kind == "accelerator" else ".")
    )
    if options.write:
        notes.append(f"Written to {options.write}.")
    return table("Recommended", ("", "now", "then", "why"), rows, " ".join(notes))


def _value(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _remedies(plan: Plan) -> Group:
    now = plan.memory.peak
    rows = []
    for remedy in advise.remedies(plan.found, plan.on):
        change = "\n".join(f"--{key}={_value(value)}" for key, value in remedy.change.items()) or "not to be had here"
        after = "" if remedy.memory is None else size(remedy.memory.peak)
        saved = "" if remedy.memory is None else f"{1 - remedy.memory.peak / now:.0%}"
        rows.append((remedy.name, change, after, saved, remedy.chapter, remedy.price))
    return table(
        f"If memory does not suffice (6.1), from a peak of {size(now)}",
        ("", "change", "peak", "saves", "chapter says", "what it costs"),
        rows,
        words=(0, 1, -1),
    )


def _by_memory(plan: Plan) -> Group:
    rows = []
    for gib, chapter, best in advise.fits_by_memory(plan.found, plan.on):
        here = f"{best.batch_size} x {best.gradient_accumulation_steps}" if best.fits else "nothing fits"
        rows.append((f"{gib} GB", f"{chapter[0]} x {chapter[1]}", here, size(best.memory.needed)))
    return table(
        "batch_size x gradient_accumulation_steps by memory (1.3)",
        ("memory", "chapter says", "fits here", "needed"),
        rows,
        "The chapter's batches make 64 sequences a step whatever the model; the computed ones keep this recipe's "
        f"{plan.found.config.global_batch}.",
    )


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "." if text else ""


def paragraph(text: str, bold: bool = False) -> Text:
    """A paragraph and an empty line."""
    return Text(f"{text}\n", style="bold" if bold else "")
