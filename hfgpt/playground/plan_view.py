"""The page's view of a plan: four figures, a verdict, the schedule, tables; and of values that break a rule.

In:  a Plan (hfgpt/plan/command.py), or faults.
Out: HTML. The figures are those of hfgpt/plan, as plan.py prints them; nothing is computed here.
"""

from collections.abc import Sequence
from html import escape

from hfgpt.base.errors import Fault
from hfgpt.base.language import N_, _, sentences
from hfgpt.base.units import duration, number, quantity, size
from hfgpt.config import Config
from hfgpt.model import schedule, sizes
from hfgpt.plan import chapter, guide
from hfgpt.plan import tables as figures
from hfgpt.plan.command import Plan
from hfgpt.playground.knobs import suited_recipe
from hfgpt.playground.pieces import changes, table, tile, tiles, value

LONG = {"cpu": 3600, "accelerator": 24 * 3600}  # seconds; a longer run gets a caution, not a green light


def fault(fault: Fault) -> str:
    """Show a broken rule beside its value, with the fix below it."""
    fix = f'<span class="fix">→ {escape(fault.fix)}</span>' if fault.fix else ""
    return f'<p class="notice bad">{escape(fault.rule)}{fix}</p>'


def explained(key: str) -> str:
    """Show the guide's page on a parameter, collapsed."""
    text = guide.entry(key)
    parts = [
        f"<dt>{escape(_(heading))}</dt><dd>{escape(getattr(text, part))}</dd>"
        for part, heading in guide.HEADINGS.items()
        if getattr(text, part)
    ]
    label = _("What it does (chapter {section})", section=text.section) if text.section else _("What it does")
    return f"<details><summary>{escape(label)}</summary><dl>{''.join(parts)}</dl></details>"


def verdict(plan: Plan) -> tuple[str, str]:
    """Return 'good', 'warn' or 'bad', and a sentence on whether a plan fits its device and the user's time."""
    memory, target, advice = plan.memory, plan.target, plan.recommendation
    if memory.needed <= target.memory_bytes:
        if plan.time.total_seconds <= LONG[target.kind]:
            return "good", _("It fits: {memory} of {all}, about {time}.", memory=size(memory.needed),
                             all=size(target.memory_bytes), time=duration(plan.time.total_seconds))  # fmt: skip
        return "warn", _(
            "It fits the memory, but takes about {time} → lower max_iters, n_layer or n_embd, choose a faster device, "
            "or start from {recipe}.",
            time=duration(plan.time.total_seconds), recipe=suited_recipe(),
        )  # fmt: skip
    needs = {"needed": size(memory.needed), "memory": size(target.memory_bytes), "then": size(advice.fit.memory.needed)}
    before, after = plan.survey.config, advice.survey.config.model_dump()
    change = changes({key: new for key, new in after.items() if new != getattr(before, key)})
    if not advice.fit.fits:
        return "bad", _(
            "It does not fit: it needs {needed}, the device has {memory}. Even one sequence takes {then}: choose a "
            "larger card or a smaller model.", **needs,
        )  # fmt: skip
    if advice.needs:
        return "bad", _(
            "It does not fit: it needs {needed}, the device has {memory} → set {change}: then it takes {then}",
            change=change, **needs,
        )  # fmt: skip
    return "bad", _(
        "It does not fit: it needs {needed}, the device has {memory} → set {change}: the same {sequences} sequences "
        "a step in {then}", change=change, sequences=before.global_batch, **needs,
    )  # fmt: skip


def summary(plan: Plan) -> str:
    """Show the four figures to watch while a slider moves, and whether the plan fits."""
    survey, memory, target, time = plan.survey, plan.memory, plan.target, plan.time
    parts, tokens = sizes.parameters(survey.config, survey.vocab_size), chapter.tokens(survey)
    kind, sentence = verdict(plan)
    if plan.forecast is not None and kind != "bad":
        sentence = sentences(sentence, plan.forecast.sentence())
    ratio = number(tokens.per_parameter)
    if tokens.epochs is None:
        seen = _("{ratio} a parameter", ratio=ratio)
    else:
        seen = _("{epochs} epochs, {ratio} a parameter", epochs=number(tokens.epochs), ratio=ratio)
    share = round(100 * memory.needed / target.memory_bytes)
    of = _("of {memory} on {device}", memory=size(target.memory_bytes), device=target.name)
    vocabulary = _("vocabulary {count:,}", count=survey.vocab_size)
    step = _("{time} a step", time=duration(time.seconds_per_step))
    return (
        tiles(
            [
                tile("parameters", _("parameters"), quantity(parts.total), vocabulary),
                tile("memory", _("memory"), size(memory.needed), of, share, kind == "bad"),
                tile("time", _("time"), duration(time.total_seconds), step),
                tile("tokens", _("tokens trained on"), quantity(tokens.total), seen),
            ]
        )
        + f'<p class="notice {kind}">{escape(sentence)}</p>'
    )


def refused(faults: Sequence[Fault], text: str) -> str:
    """Show why a recipe cannot be planned: broken rules, or a message."""
    items = [f"<li>{escape(text)}</li>"] if text else []
    for item in faults:
        key = item.key if item.value is None else f"{item.key} = {value(item.value)}"
        fix = f'<span class="fix">→ {escape(item.fix)}</span>' if item.fix else ""
        items.append(f"<li><code>{escape(key)}</code>{escape(_(': {rule}', rule=item.rule))}{fix}</li>")
    head = escape(_("This recipe cannot run as it stands."))
    return f'<div class="notice bad"><b>{head}</b><ul>{"".join(items)}</ul></div>'


def drawn_schedule(config: Config) -> str:
    """Draw the learning rate over the run, with a sentence that describes it."""
    points, top = schedule.points(config, 400), config.learning_rate
    last = max(2, config.max_iters)
    line = " ".join(
        f"{40 + 350 * (point['step'] - 1) / (last - 1):.1f},{10 + 90 * (1 - point['learning_rate'] / top):.1f}"
        for point in points
    )
    title, text = escape(_("Learning rate over the run")), escape(schedule.explained(config))
    return (
        f'<figure id="schedule"><h3>{title}</h3>'
        f'<svg viewBox="0 0 400 120" role="img" aria-label="{text}">'
        '<path class="axes" d="M40 10V100H390"/>'
        f'<polyline points="{line}"/><text x="36" y="14" text-anchor="end">{top:.2g}</text>'
        f'<text x="36" y="103" text-anchor="end">0</text><text x="40" y="115">1</text>'
        f'<text x="390" y="115" text-anchor="end">{config.max_iters:,}</text></svg><p>{text}</p></figure>'
    )


def tables(plan: Plan) -> str:
    """Tabulate parameters, memory and time by part, and what would fit."""
    parts = [figures.time(plan), figures.memory(plan), figures.parameters(plan), figures.recommendation(plan)]
    if plan.memory.needed > plan.target.memory_bytes:
        parts.insert(0, figures.remedies(plan))
    elif verdict(plan)[0] == "warn":
        parts.insert(0, figures.faster(plan))
    shown = [table(part.title, part.columns, part.rows, part.note, results=RESULTS) for part in parts]
    return drawn_schedule(plan.survey.config) + "".join(shown)


RESULTS = (N_("total"), N_("needed"))  # the rows that stand out
