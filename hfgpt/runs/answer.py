"""The conclusions of a comparison, in sentences with their numbers.

In:  a :class:`hfgpt.runs.compare.Comparison`.
Out: sentences: which setting is best and whether the seeds support that, what a value does, at which cost.
"""

import math
import re
from collections.abc import Sequence

from hfgpt.base import language
from hfgpt.base.language import _, sentences
from hfgpt.base.units import duration, is_number, quantity
from hfgpt.runs import comparison_plots, statistics
from hfgpt.runs.compare import UNDISTURBED, Comparison, Entry, Setting, mean
from hfgpt.runs.comparison_plots import By
from hfgpt.runs.findings import TITLES

SAME = 0.01  # relative: single-seed losses closer than this may differ by the seed alone


def answer(comparison: Comparison) -> list[str]:
    ended = comparison.ended
    if not ended:
        return [_("No run came to an end with a loss; see the outcomes below.")]
    sentences = [*_comparable(comparison), *_unfinished(comparison)]
    if comparison.same_models:
        sentences += [_cost(ended), *_trouble(comparison)]
        return [sentence for sentence in sentences if sentence]
    sentences += [*_best(comparison), *_certainty(comparison)]
    axes = comparison.axes
    if len(axes) == 1 and comparison.joined and not _all_tie(comparison):
        sentences += _trend(axes[0], ended)
    if comparison.keys == ["learning_rate"]:
        sentences += [_rates(comparison), *_refuted(comparison)]
    sentences += [_at_equal(comparison, by) for by in ("tokens", "time")]
    sentences += [_cost(ended), *_trouble(comparison)]
    return [sentence for sentence in sentences if sentence]


def _comparable(comparison: Comparison) -> list[str]:
    """Warn of losses on different texts, or in different tokens: each has a scale of its own."""
    if not comparison.measured_on:
        return []
    return [
        _("The runs differ in {fields}: losses on different texts, or in different tokens, cannot be compared. The "
          "order below means something only if all runs were evaluated on the same tokens.",
          fields=listed(comparison.measured_on))
    ]  # fmt: skip


def _unfinished(comparison: Comparison) -> list[str]:
    """Warn of runs in progress or stopped: their last loss is not that of the whole recipe."""
    runs = [(entry, entry.config.max_iters) for entry in comparison.entries
            if entry.config and entry.outcome in ("running", "stopped")]  # fmt: skip
    return [
        _("{run} is at step {step:,} of {steps:,} ({outcome}): its loss below is not that of its end.",
          run=entry.label, step=entry.steps, steps=steps, outcome=ended(entry.outcome))
        for entry, steps in runs
    ]  # fmt: skip


def _best(comparison: Comparison) -> list[str]:
    best, *others = comparison.ended
    if not others:
        return [_("The final validation loss is {loss:.4f}, with {best}.", loss=best.final, best=best.label)]
    worst = others[-1]
    if indistinct(best.final, worst.final):
        return [_("All of them end with the same validation loss, {loss:.4f}.", loss=best.final)]
    sentence = _("The lowest final validation loss is {low:.4f}, with {best}; the highest is {high:.4f}, with {worst}.",
                 low=best.final, best=best.label, high=worst.final, worst=worst.label)  # fmt: skip
    return [*_exported(comparison), sentence]


def _exported(comparison: Comparison) -> list[str]:
    """Compare the lowest losses, whose models are exported, if a run ends above its own."""
    lowest = [
        (mean([entry.best[0] for entry in setting.entries if entry.best]), setting) for setting in comparison.ended
    ]
    known = sorted(((loss, s) for loss, s in lowest if loss is not None), key=lambda pair: pair[0])
    if not any(setting.final is not None and setting.final > loss * (1 + SAME) for loss, setting in known):
        return []
    (low, first), (high, last) = known[0], known[-1]
    sentence = _(
        "The models kept are those of each run's lowest loss: {low:.4f} with {first}, up to {high:.4f} with {last}.",
        low=low, first=first.label, high=high, last=last.label,
    )  # fmt: skip
    close = near(low, high) and comparison.ranking is None and not comparison.measured_on
    return [sentences(sentence, _("Another seed may reverse their order.") if close else "")]


def _certainty(comparison: Comparison) -> list[str]:
    """Say whether the best setting is better by more than chance."""
    if comparison.ranking is not None:
        lost = [setting for setting in comparison.ended if len(setting.finals) < len(setting.by_seed)]
        unpaired = any(each is not None and not each.paired for each in comparison.ranking.behind.values())
        return [
            *statistics.in_words(comparison.ranking),
            *([_("The settings read the text in different orders, so seeds are not compared in pairs "
                 "(Welch's t-test).")] if unpaired and not comparison.same_order else []),
            *(_("{setting}: {lost} of {all} seeds ended without a loss, and the mean leaves them out.",
                setting=setting.label, lost=len(setting.by_seed) - len(setting.finals), all=len(setting.by_seed))
              for setting in lost),
        ]  # fmt: skip
    best, *others = comparison.ended
    if comparison.measured_on:  # a seed does not make other texts comparable
        return []
    if others and not indistinct(best.final, others[0].final) and near(best.final, others[0].final):
        return [
            _("The second, {second}, is {difference:.4f} behind, less than {share:.0%}: another seed may reverse their "
              "order, and `sweep --seeds` measures whether it does.", second=others[0].label,
              difference=(others[0].final or 0) - (best.final or 0), share=SAME)
        ]  # fmt: skip
    return []


def _all_tie(comparison: Comparison) -> bool:
    """Whether the settings are not told apart: then a trend over them is chance."""
    ended, ranking = comparison.ended, comparison.ranking
    if ranking is not None and len(ranking.ties) == len(ranking.behind):
        return True
    return indistinct(ended[0].final, ended[-1].final)


def _trend(key: str, ended: Sequence[Setting]) -> list[str]:
    """Say how the loss depends on a value, if it is a number and at least three were tried."""
    pairs = [(value, setting.final) for setting in ended if is_number(value := setting.value(key))]
    ordered = sorted((value, loss) for value, loss in pairs if loss is not None)
    if len({value for value, _loss in ordered}) < 3:
        return []
    losses = [loss for _value, loss in ordered]
    values = {"key": key, "first": number(ordered[0][0]), "last": number(ordered[-1][0]),
              "losses": " → ".join(f"{loss:.3f}" for loss in losses)}  # fmt: skip
    if losses == sorted(losses, reverse=True):
        return [_("From {key} {first} to {last} the loss falls all the way: {losses}.", **values)]
    if losses == sorted(losses):
        return [_("From {key} {first} to {last} the loss rises all the way: {losses}.", **values)]
    best = number(ordered[losses.index(min(losses))][0])
    return [_("From {key} {first} to {last} the loss goes {losses}, lowest at {best}.", best=best, **values)]


def number(value: float) -> str:
    """Format a parameter's value, briefly."""
    return quantity(value) if value >= 10_000 else f"{value:g}"


def _rates(comparison: Comparison) -> str:
    """Answer experiment 2 of the chapter: which rate converges best, which oscillates, which is too slow."""
    best = comparison.ended[0]
    best_rate = best.value("learning_rate")
    if not is_number(best_rate):
        return ""
    ties = comparison.ranking.ties if comparison.ranking is not None else []
    tied = [number(setting.value("learning_rate")) for setting in comparison.settings if setting.label in ties]
    parts = [_("{rate:g} converges best", rate=best_rate)]
    if tied:
        parts = [_("{rate:g} ends lowest, but is not told apart from {others}", rate=best_rate, others=listed(tied))]
    for setting in comparison.settings:
        rate = setting.value("learning_rate")
        close = comparison.ranking is None and setting.final is not None and near(setting.final, best.final)
        if setting is best or close or setting.label in ties:
            continue
        behind = None if setting.final is None or best.final is None else setting.final - best.final
        if rate < best_rate:
            parts += (
                [_("{rate:g} is too slow (it ends {behind:.2f} above)", rate=rate, behind=behind)] if behind else []
            )
        elif behind is None:
            diverged = any(entry.outcome == "diverged" for entry in setting.entries)
            parts.append(_("{rate:g} diverges", rate=rate) if diverged else _("{rate:g} failed", rate=rate))
        elif any("learning_rate_too_high" in entry.kinds for entry in setting.entries):
            parts.append(_("{rate:g} is too high and unsteady (it ends {behind:.2f} above)", rate=rate, behind=behind))
        else:
            parts.append(_("{rate:g} is too high (it ends {behind:.2f} above)", rate=rate, behind=behind))
    return _("Of the learning rates: {list}.", list=_("; ").join(parts))


def _refuted(comparison: Comparison) -> list[str]:
    """Say what a single run seems to show but the comparison refutes."""
    refuted = [entry.label for entry in comparison.entries if set(entry.kinds) - set(kinds(comparison, entry))]
    if not refuted:
        return []
    return [
        _("{labels}: the loss leaps as it does when a learning rate is too high or too low, but the other rates that "
          "were tried on that side end worse.", labels=listed(refuted))
    ]  # fmt: skip


def kinds(comparison: Comparison, entry: Entry) -> list[str]:
    """Return the findings about a run that the comparison does not refute.

    A learning rate is not called too high if every lower one that was tried ended worse, nor too low if every higher
    one did.
    """
    rate = entry.values.get("learning_rate")
    if comparison.keys != ["learning_rate"] or entry.final is None or not is_number(rate):
        return entry.kinds
    rates = [(setting.value("learning_rate"), setting.final or math.inf) for setting in comparison.settings]
    refuted = set()
    for kind, side in (("learning_rate_too_high", -1), ("learning_rate_too_low", 1)):
        tried = [loss for other, loss in rates if is_number(other) and (other - rate) * side > 0]
        if tried and all(loss > entry.final for loss in tried):
            refuted.add(kind)
    return [kind for kind in entry.kinds if kind not in refuted]


def _at_equal(comparison: Comparison, by: By) -> str:
    """Compare the losses at the end of the shortest run, if the runs' lengths differ much."""
    ended = [setting for setting in comparison.ended if all(entry.run for entry in setting.entries)]
    lengths = [_length(entry, by) for setting in ended for entry in setting.entries if entry.final is not None]
    known = [length for length in lengths if length is not None]
    if len(ended) < 2 or len(known) < len(lengths):
        return ""
    work = {(e.tokens, e.config.n_layer, e.config.n_embd) for s in ended for e in s.entries if e.config}
    if by == "time" and len(work) == 1:
        return ""  # the same work: their times differ only because of the machine
    shortest, longest = min(known), max(known)
    if longest < 1.2 * shortest:
        return ""
    runs = {setting.label: [entry for entry in setting.entries if entry.final is not None] for setting in ended}
    ends = [(s, mean([_loss_at(entry, by, shortest) for entry in runs[s.label]])) for s in ended]
    ordered = sorted(((s, loss) for s, loss in ends if loss is not None), key=lambda pair: pair[1])
    if len(ordered) < 2:
        return ""
    order = listed([_("{loss:.3f} with {label}", loss=loss, label=setting.label) for setting, loss in ordered])
    recipes = [entry.config for entries in runs.values() for entry in entries]
    falls = not any(recipe is not None and recipe.lr_schedule == "constant" for recipe in recipes)
    still_high = _("The longer runs' learning rate had not come down yet.") if falls else ""
    if by == "tokens":
        said = _("At equal tokens ({tokens} tokens, where the shortest run ends) the order is: {order}.",
                 tokens=quantity(shortest), order=order)  # fmt: skip
    else:
        said = _("At equal time ({time} of training, where the shortest run ends) the order is: {order}.",
                 time=duration(shortest), order=order)  # fmt: skip
    return sentences(said, still_high)


def _length(entry: Entry, by: By) -> float | None:
    return entry.tokens if by == "tokens" else entry.last("seconds")


def _loss_at(entry: Entry, by: By, place: float) -> float | None:
    """Interpolate the validation loss at a number of tokens or seconds; None if it is not known or not finite there."""
    if entry.run is None:
        return None
    xs, losses = comparison_plots.along(entry.run, "val_loss", by)
    loss = losses[-1] if xs and math.isclose(xs[-1], place, rel_tol=0.02) else math.nan
    for x0, x1, y0, y1 in zip(xs, xs[1:], losses, losses[1:], strict=False):
        if x0 <= place <= x1 and x1 > x0:
            loss = y0 + (y1 - y0) * (place - x0) / (x1 - x0)
            break
    return loss if math.isfinite(loss) else None


def _cost(ended: Sequence[Setting]) -> str:
    """Say how long the runs took that came to their end."""
    done = {s.label: [e for e in s.entries if e.outcome == "finished" and e.final is not None] for s in ended}
    times = [(setting, mean([entry.last("seconds") for entry in done[setting.label]])) for setting in ended]
    timed = sorted(((s, seconds) for s, seconds in times if seconds is not None), key=lambda pair: pair[1])
    if len(timed) < 2:
        return ""
    shown = []
    for setting, seconds in timed:
        speed = mean([entry.tokens_per_second for entry in done[setting.label]])
        values = {"time": duration(seconds), "label": setting.label}
        shown.append(_("{time} ({speed} tokens/s) with {label}", speed=quantity(speed), **values)
                     if speed else _("{time} with {label}", **values))  # fmt: skip
    return _("Training took {list}.", list=listed(shown))


def listed(parts: Sequence[str]) -> str:
    """Format a list in a sentence; of many entries, the first three and the last."""
    return _(", ").join(parts if len(parts) <= 6 else [*parts[:3], "…", parts[-1]])


def _trouble(comparison: Comparison) -> list[str]:
    """Say which runs had trouble, with the seeds of a setting together."""
    sentences = []
    for setting in comparison.settings:
        troubles = dict[str, set[int]]()  # the trouble → its seeds
        for seed, entry in [(seed, entry) for seed, entries in setting.by_seed.items() for entry in entries]:
            trouble = [kind for kind in kinds(comparison, entry) if kind != "healthy"]
            if entry.outcome not in UNDISTURBED:
                troubles.setdefault(ended(entry.outcome), set()).add(seed)
            elif trouble:
                troubles.setdefault(titles(trouble), set()).add(seed)
        for what, seeds in troubles.items():
            if len(setting.by_seed) > 1:
                what = _("{what} ({n} of {all} seeds)", what=what, n=len(seeds), all=len(setting.by_seed))
            label = setting.entries[0].label if len(setting.entries) == 1 else setting.label
            sentences.append(_("{label}: {what}", label=label, what=what))
    return [_("The diagnosis of the single runs: {list}.", list=_("; ").join(sentences))] if sentences else []


def titles(kinds: Sequence[str]) -> str:
    """Return the titles of findings, in the current language."""
    names: dict[str, str] = {kind: title for kind, title in TITLES.items()}
    return language.listed(_(names[kind]) for kind in kinds)


def ended(outcome: str) -> str:
    """Translate a recorded outcome such as 'finished', 'pruned at 40%' or 'failed: reason'."""
    words = {"finished": _("finished"), "running": _("running"), "diverged": _("diverged"), "failed": _("failed"),
             "waiting": _("waiting"), "stopped": _("stopped before its end")}  # fmt: skip
    kind, _colon, reason = outcome.partition(": ")
    if kind.startswith("pruned at "):
        return _("pruned at {share}", share=kind.removeprefix("pruned at "))
    translated = words.get(kind, kind)
    if not reason:
        return translated
    if code := re.match(r"exit code (-?\d+): ", reason):
        rest = reason[code.end() :]
        return _("{kind}, exit code {code}: {reason}", kind=translated, code=code[1], reason=_(rest) if rest else "")
    return _("{label}: {what}", label=translated, what=_(reason))


def indistinct(a: float | None, b: float | None) -> bool:
    """Whether two losses are equal to the four decimals that are shown: they may differ by rounding alone."""
    return a is not None and b is not None and f"{a:.4f}" == f"{b:.4f}"


def near(a: float | None, b: float | None) -> bool:
    """Whether two single-seed losses may differ by the seed alone."""
    return a is not None and b is not None and abs(a - b) < SAME * min(a, b)
