"""A plan as tables that a learner can read.

In:  a Plan (hfgpt/plan/command.py).
Out: text: coloured on a terminal, plain elsewhere; or single tables, for the page.
"""

from pathlib import Path

from rich.console import RenderableType

from hfgpt.base.command import typed
from hfgpt.base.language import N_, _, listed, sentences
from hfgpt.base.units import duration, number, short, signed, size
from hfgpt.config import yaml_scalar
from hfgpt.config.fields import EMBEDDED_DATASET
from hfgpt.model import schedule, sizes
from hfgpt.model.loss_law import outside
from hfgpt.plan import batches, chapter, timing
from hfgpt.plan.batches import Way
from hfgpt.plan.command import Options, Plan
from hfgpt.plan.corpus import LEAST_COUNTED
from hfgpt.plan.layout import Table, command, paragraph, show
from hfgpt.plan.memory import BINDS

RULE = N_("chapter's rule of thumb")
LONG = 2 * 3600  # seconds from which a run on a CPU gets a shorter one beside it


def render(plan: Plan, recipe: str | None, options: Options) -> str:
    """Render all tables of a plan, in the order of a reader's questions: size, text, memory, time, next steps."""
    head = _(
        "{recipe}: {dataset}, on {device}",
        recipe=_("a recipe chosen for the text") if plan.choice else recipe or _("the defaults"),
        dataset=_("{size} of text", size=size(options.size)) if options.size else plan.survey.config.dataset,
        device=_devices(plan),
    )
    parts: list[RenderableType] = [
        paragraph(head, bold=True),
        paragraph(_verdict(plan)),
        parameters(plan),
        _tokens(plan),
        memory(plan),
        time(plan, options.price_per_hour),
        paragraph(_("Learning rate (4.1)"), bold=True),
        paragraph(schedule.chart(plan.survey.config)),
    ]
    if not plan.fits or options.vram or options.gpu:
        parts += [remedies(plan), _by_memory(plan)]
    if plan.choice is None:
        parts.append(faster(plan))
    parts += [recommendation(plan, options.write), command(_next(plan, recipe, options))]
    return show(parts)


def _next(plan: Plan, recipe: str | None, options: Options) -> str:
    if options.write:
        return _("Next: {command}", command=typed("train", str(options.write)))
    if plan.choice:
        return _("Next: add --write recipes/mine.yaml, which makes a recipe of it, and train that.")
    if not plan.fits:
        if not plan.recommendation.fit.fits:
            return _("Next: take a change of the tables above, and plan again with it.")
        after = plan.recommendation.survey.config.model_dump()
        changes = {key: value for key, value in after.items() if value != getattr(plan.before, key)}
        values = [f"--{key}={yaml_scalar(value)}" for key, value in changes.items()]
        typed_before = [word for word in options.overrides if word[2:].partition("=")[0] not in changes]
        return _("Next: {command}", command=typed("train", *([recipe] if recipe else []), *typed_before, *values))
    trains = _("Next: {command}", command=typed("train", *([recipe] if recipe else []), *options.overrides))
    if plan.target.kind != "cpu" or plan.time.total_seconds < LONG:
        return trains
    dataset = plan.survey.config.dataset
    shorter = typed("plan", "--time-budget=10m", *([] if dataset == EMBEDDED_DATASET else [f"--data={dataset}"]))
    return trains + "\n" + _("In less time: {command}", command=shorter)


def _devices(plan: Plan) -> str:
    target = plan.target
    return f"{target.processes} x {target.name}" if target.processes > 1 else target.name


def _range(plan_time: timing.Time) -> str:
    return _("{low} to {high}", low=duration(plan_time.low_seconds), high=duration(plan_time.high_seconds))


def _verdict(plan: Plan) -> str:
    """Sum up memory, time and loss in a paragraph: only together do they show whether the run is a good one."""
    memory, target = plan.memory, plan.target
    values = {"needed": size(memory.needed), "memory": size(target.memory_bytes)}
    fits = (
        _("It needs {needed} of {memory}.", **values)
        if plan.fits
        else _("It does NOT fit: it needs {needed}, and the device has {memory}.", **values)
    )
    takes = _("It takes about {time} ({range}).", time=duration(plan.time.total_seconds), range=_range(plan.time))
    choice, spare = plan.choice, ""
    if choice and choice.budget and plan.survey.config.early_stopping_patience:
        spare = _("The {budget} are not used up: this text needs no more.", budget=duration(choice.budget))
    return sentences(fits, takes, spare, plan.forecast.sentence() if plan.forecast else no_forecast(plan))


def no_forecast(plan: Plan) -> str:
    """Explain why there is no loss forecast."""
    config = plan.survey.config
    if config.pretrained:
        return _("No loss is forecast: the laws are about models from scratch.")
    if config.tokenizer != "char":
        return _("No loss is forecast: the laws are about characters (tokenizer: char).")
    if (far := outside(config)) is not None:
        return _("No loss is forecast: no run behind the laws was like this one, by its {key} of {value}.",
                 key=far, value=getattr(config, far))  # fmt: skip
    if plan.survey.assumed:
        return _("No loss is forecast: that takes the text. Below, English plays of this size stand for it.")
    if plan.survey.text is not None and plan.survey.text.sample:
        return _("No loss is forecast: that takes a text of at least {n:,} characters.", n=LEAST_COUNTED)
    return _("No loss is forecast: that takes the text, and it is not on this machine or was not read.")


def parameters(plan: Plan) -> Table:
    """Tabulate the parameters by part."""
    survey = plan.survey
    config, parts = survey.config, sizes.parameters(survey.config, survey.vocab_size)
    rule = chapter.rules_of_thumb(config).parameters
    layers = _("{n} blocks", n=config.n_layer)
    named = [
        (
            _("token embedding"),
            parts.token_embedding,
            _("vocabulary {size} x n_embd {width}", size=f"{survey.vocab_size:,}", width=config.n_embd),
        ),
        (
            _("position embedding"),
            parts.position_embedding,
            _("block_size {size} x n_embd", size=f"{config.block_size:,}"),
        ),
        (_("attention"), parts.attention, _("{blocks} x (4 n_embd² + biases)", blocks=layers)),
        (_("MLP"), parts.mlp, _("{blocks} x (8 n_embd² + biases)", blocks=layers)),
        (_("layer norms"), parts.norms, _("gain and bias")),
    ]
    if parts.head:
        named.append((_("output head"), parts.head, named[0][2]))
    rows = [(name, f"{count:,}", f"{count / parts.total:.1%}", why) for name, count, why in named]
    rows.append((_("total"), f"{parts.total:,}", "100%", _("vocabulary: {source}", source=survey.vocabulary)))
    rows.append((_(RULE), f"{rule:,}", f"{rule / parts.total:.1%}", _("12 n_layer n_embd² (5.2)")))
    embeddings = parts.token_embedding + parts.position_embedding
    note = _(
        "The rule leaves out {missing}: embeddings {embeddings}, biases and norms {rest}.",
        missing=f"{parts.total - rule:,}",
        embeddings=f"{embeddings + parts.head:,}",
        rest=f"{parts.total - rule - embeddings - parts.head:,}",
    )
    if not parts.head:
        note = sentences(note, _("The output head is the token embedding, used a second time."))
    return Table(_("Parameters"), ("", _("count"), _("share"), _("where")), rows, note)


def _tokens(plan: Plan) -> Table:
    survey, tokens = plan.survey, chapter.tokens(plan.survey)
    config, source = survey.config, _("assumed: English plays") if survey.assumed else survey.config.dataset
    corpus = _("not on this machine") if survey.train_tokens is None else f"{survey.train_tokens:,}"
    if survey.approximate:
        corpus = _("about {n}", n=corpus)
    steps = f"x max_iters {config.max_iters:,}"
    if config.batch_warmup_iters:
        steps = _("{steps}, fewer in the first {warmup:,} steps", steps=steps, warmup=config.batch_warmup_iters)
    product = f"batch_size {config.batch_size} x block_size {config.block_size:,}"
    rows = [
        (_("a step"), f"{tokens.per_iter:,}", f"{product} x {config.gradient_accumulation_steps}"),
        (_("the run"), f"{tokens.total:,}", steps),
        (_("training text"), corpus, source),
    ]
    if tokens.epochs is not None:
        rows.append((_("epochs"), number(tokens.epochs), _("how often the text is seen")))
    optimal = _("about {n} is compute-optimal (Hoffmann et al. 2022)", n=chapter.COMPUTE_OPTIMAL)
    rows.append((_("tokens a parameter"), f"{tokens.per_parameter:.3g}", optimal))
    return Table(_("Tokens"), ("", _("count"), ""), rows)


AVERAGES = {
    "adamw": N_("AdamW's two averages"),
    "muon": N_("Muon's one average of the matrices inside the blocks, AdamW's two of the rest"),
}


def memory(plan: Plan) -> Table:
    """Tabulate the memory of a step by part."""
    memory, target = plan.memory, plan.target
    rules = chapter.rules_of_thumb(plan.survey.config)
    where = _("of {memory} ({device})", memory=size(target.memory_bytes), device=target.name)
    likely = _("{low} to {high}", low=size(memory.needed_low), high=size(memory.needed_high))
    kept = _("kept for the backward pass, {dtype}", dtype=target.dtype)
    rows = [
        (_("weights"), size(memory.weights), "float32"),
        (_("gradients"), size(memory.gradients), "float32"),
        (_("optimizer"), size(memory.optimizer), _(AVERAGES[plan.survey.config.optimizer])),
        (_("activations"), size(memory.activations), kept),
        (_("logits"), size(memory.logits), _("scores over the vocabulary, of one chunk of the micro-batch at a time")),
        (_("peak"), size(memory.peak), _("less than the sum; reached {moment}", moment=_(BINDS[memory.binding]))),
        (_("allowance"), size(memory.allowance), _("libraries, workspaces, fragmentation: assumed")),
        (_("needed"), size(memory.needed), _("{where}; {likely}", where=where, likely=likely)),
        (_(RULE), size(rules.memory_bytes), _("16 bytes a parameter and batch·block·n_embd·n_layer·4 (5.2)")),
    ]
    for name, value in ((_("peak, simulated"), plan.simulated), (_("peak, measured"), plan.measured)):
        if value is not None:
            rows.insert(
                6, (name, size(value), _("the formula is off by {share}", share=f"{memory.peak / value - 1:+.1%}"))
            )
    title = (
        _("Memory of a training step, {dtype}, each of {n} processes", dtype=target.dtype, n=target.processes)
        if target.processes > 1
        else _("Memory of a training step, {dtype}", dtype=target.dtype)
    )
    return Table(title, ("", _("size"), ""), rows)


SOURCES = {
    "probe": N_("measured by a probe, here"),
    "machine": N_("priced by this machine's speed, measured in a fraction of a second"),
    "card": N_("priced by the card's data sheet"),
}


def time(plan: Plan, price_per_hour: float | None = None) -> Table:
    """Tabulate the time of the run by part, and its cost."""
    took, target, config = plan.time, plan.target, plan.survey.config
    rules = chapter.rules_of_thumb(config)
    chapter_step = _("a step of the standard recipe on an RTX 3060, from experience (5.3)")
    evaluations = _("{n} times, with a sample", n=timing.evaluations(config))
    if config.eval_tasks:
        evaluations = _("{n} times, with a sample; the time of eval_tasks is not counted", n=timing.evaluations(config))
    steps = f"max_iters {config.max_iters:,}"
    if took.low_steps < took.high_steps:
        steps = _("{steps}; by the clock, {low:,} to {high:,}", steps=steps, low=took.low_steps, high=took.high_steps)
    rows = [
        (_("a step"), duration(took.seconds_per_step), _(SOURCES[took.source])),
        (_("tokens a second"), f"{took.tokens_per_second:,.0f}", f"MFU {took.mfu:.1%}"),
        (_("start"), duration(took.start_seconds), _("libraries, model, text")),
        (_("all steps"), duration(took.training_seconds), steps),
        (_("evaluation"), duration(took.evaluation_seconds), evaluations),
        (_("saving"), duration(took.saving_seconds), _("checkpoints and the model")),
        (_("total"), duration(took.total_seconds), _("19 of 20 runs: {range}", range=_range(took))),
        (_(RULE), duration(rules.seconds_per_step), chapter_step),
    ]
    cost = timing.cost(took, target, price_per_hour)
    if cost.money is not None:
        price = _("at {price} an hour for each device", price=f"{price_per_hour:g}")
        rows.append((_("cost"), f"{cost.money:,.2f}", price))
    if cost.energy_kwh is not None:
        power = _("at most: {watts} W all the time", watts=f"{target.power_w:g}")
        rows.append((_("energy"), f"{number(cost.energy_kwh)} kWh", power))
    notes = [_("{sentence}.", sentence=target.note[:1].upper() + target.note[1:]) if target.note else ""]
    if took.source == "probe" and took.busy:
        notes = [_("Other work ran on this machine while the probe measured; without it, it is faster.")]
    return Table(_("Time on {device}", device=_devices(plan)), ("", "", ""), rows, sentences(*notes))


def recommendation(plan: Plan, written: Path | None = None) -> Table:
    """Tabulate the recommended values, with the reason for each."""
    advice, target, choice = plan.recommendation, plan.target, plan.choice
    before, after = plan.before, advice.survey.config
    changed = [
        (key, short(getattr(before, key)), short(value), advice.reasons.get(key, ""))
        for key, value in after.model_dump().items()
        if key in advice.reasons or value != getattr(before, key)
    ]
    # For a recipe chosen for a time, the earlier values do not matter.
    columns = ("", _("value"), _("why")) if choice else ("", _("now"), _("then"), _("why"))
    rows = [(key, then, why) for key, _now, then, why in changed] if choice else changed
    notes = []
    if not advice.fit.fits:
        values = {"memory": size(target.memory_bytes), "needed": size(advice.fit.memory.needed)}
        notes.append(_("Nothing fits {memory}: one sequence takes {needed}.", **values))
    elif advice.needs:
        remedies = listed(_(name) for name in dict.fromkeys(advice.needs))
        notes.append(_("No micro-batch fits without these remedies, which are applied: {remedies}.", remedies=remedies))
    if choice:
        if choice.second_best:
            shape = dict(choice.second_best)
            loss, difference = shape.pop("loss", None), signed(shape.pop("loss_difference", 0.0))
            what = listed(f"{key} {short(value)}" for key, value in shape.items())
            notes.append(
                _("Second best, with an expected difference of {nats} nats: {values}.", nats=difference, values=what)
                if loss is None
                else _(
                    "Slower, with nearly the same expected loss of {loss}: {values}.", loss=f"{loss:.3f}", values=what
                )
                if choice.faster
                else _("Second best, with an expected loss of {loss}: {values}.", loss=f"{loss:.3f}", values=what)
            )
        if choice.trial_seconds:
            notes.append(_("Trials took {time}.", time=duration(choice.trial_seconds)))
        if choice.busy:
            notes.append(
                _(
                    "Other work ran on this machine during the trials, so they do not count; while it runs, "
                    "training takes longer than stated here."
                )
            )
        layers = chapter.layers_for(plan.survey.corpus_bytes)
        notes.append(_("The chapter's rule of thumb (2.1): n_layer {n} for this text.", n=layers))
    by_chapter = _(
        "The chapter's rule of thumb (1.1): batch_size 32 for beginners, 8 if memory is short, 64 for speed."
    )
    if target.kind == "accelerator":
        rule = "{} x {}".format(*chapter.chapter_batch(target.memory_bytes))
        memory = f"{target.memory_bytes / 2**30:.4g} GiB"
        by_chapter = sentences(by_chapter, _("For {memory} it says {batch} (1.3).", memory=memory, batch=rule))
    notes.append(by_chapter)
    if written:
        notes.append(_("Written to {path}.", path=written))
    return Table(_("Chosen") if choice else _("Recommended"), columns, rows, "\n".join(notes))


def _changes(way: Way) -> str:
    """Show what to type for it, or why there is nothing to type."""
    if not way.change:
        return _("applied already") if way.applied else _("does not apply here")
    return "\n".join(f"--{key}" if value is True else f"--{key}={short(value)}" for key, value in way.change.items())


def remedies(plan: Plan) -> Table:
    """Tabulate the ways to save memory."""
    now = plan.memory.peak
    rows = []
    for remedy in batches.remedies(plan.survey, plan.target):
        after = "" if remedy.memory is None else size(remedy.memory.peak)
        saved = "" if remedy.memory is None else f"{1 - remedy.memory.peak / now:.0%}"
        rows.append((_(remedy.name), _changes(remedy), after, saved, _(remedy.chapter), _(remedy.price)))
    return Table(
        _("If memory does not suffice (6.1), from a peak of {size}", size=size(now)),
        ("", _("change"), _("peak"), _("saves"), _("chapter"), _("what it costs")),
        rows,
        words=(0, 1, 4, -1),
    )


def faster(plan: Plan) -> Table:
    """Tabulate the ways to save time."""
    now = plan.time.total_seconds
    rows = []
    for way in batches.ways(plan.survey, plan.target, now):
        takes = "" if way.seconds is None else duration(way.seconds)
        gained = "" if way.seconds is None else _("{n} x", n=f"{now / way.seconds:.2f}")
        claim = _(way.chapter) if way.chapter else ""
        rows.append((_(way.name), _changes(way), takes, gained, claim, _(way.price)))
    return Table(
        _("If it is too slow (6.2), from {time}", time=duration(now)),
        ("", _("change"), _("the run"), _("faster"), _("chapter"), _("what it costs")),
        rows,
        words=(0, 1, 4, -1),
    )


def _by_memory(plan: Plan) -> Table:
    rows = []
    for gib, by_chapter, best in batches.fits_by_memory(plan.survey, plan.target):
        batch = f"{best.batch_size} x {best.gradient_accumulation_steps}" if best.fits else _("nothing fits")
        rows.append((f"{gib} GB", f"{by_chapter[0]} x {by_chapter[1]}", batch, size(best.memory.needed)))
    return Table(
        _("batch_size x gradient_accumulation_steps by memory (1.3)"),
        (_("memory"), _("chapter"), _("fits here"), _("needed")),
        rows,
        _(
            "The chapter's batches make 64 sequences a step, whatever the model; the computed ones keep this recipe's "
            "{n}.",
            n=plan.survey.config.global_batch,
        ),
    )
