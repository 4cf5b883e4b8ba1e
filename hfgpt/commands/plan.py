"""Estimate a recipe's cost before it runs: as tables, or with --json as figures by name."""

import difflib
import re
from pathlib import Path

from hfgpt import config as configs
from hfgpt.base.command import Reader, at_least, typed
from hfgpt.base.language import _, about_card
from hfgpt.base.terminal import json_text
from hfgpt.base.units import seconds_of
from hfgpt.config import Config
from hfgpt.plan.command import Options, check_text, make, write
from hfgpt.plan.figures import as_json
from hfgpt.plan.survey import survey_of
from hfgpt.plan.target import Target, find_target


def reader() -> Reader:
    """Return the parser of the command's arguments."""
    parser = Reader(
        "plan",
        _(
            "Say what a recipe costs before it runs: parameters, tokens, memory, time, money; and what to change so "
            "that it fits."
        ),
        [
            ("recipes/standard.yaml", _("all of it, for this machine")),
            ("recipes/standard.yaml --vram 8GB", _("what fits a card with this much memory")),
            ('recipes/standard.yaml --gpu "RTX 3060"', _("... or this card")),
            ("recipes/standard.yaml --probe", _("the time of a step, measured here in a few steps")),
            (
                "--time-budget 3m --data my_text.txt --write recipes/mine.yaml",
                _("the recipe that makes the most of three minutes with this text"),
            ),
            ("--time-budget 1h --size 300MB --gpu T4", _("... of an hour on this card, with a text that is elsewhere")),
            ("recipes/standard.yaml --explain n_layer", _("what a parameter does, computed for this recipe")),
        ],
        _("--key=value changes the recipe, as in {command}.", command=typed("train")),
        # not the field of this name: here, the time for which a recipe is chosen
        parameters={key: kind for key, kind in configs.PARAMETERS.items() if key != "time_budget"},
        called=configs.CALLED,
    )
    parser.argument(
        "recipe", _("RECIPE"), _("a YAML file, a recipe's name or a run folder; the defaults without"), required=False
    )
    parser.option("vram", _("SIZE"), _("memory of the device, such as 8GB"), read_bytes)
    parser.option("gpu", _("NAME"), _('a card by its name, such as "RTX 4090", T4, A100, H100, "M2 Pro"'))
    parser.option("processes", "N", _("how many devices share each step's batch; memory is one's"), at_least(1), 1)
    parser.flag("probe", _("measure the time of a step here, with the training loop's own step"))
    parser.flag("no_trials", _("choose by the shipped laws alone, without training candidates for a moment"))
    parser.flag("simulate", _("check the memory formula by running a step on tensors without content"))
    parser.option("time_budget", _("TIME"), _("choose the whole recipe for a time, such as 3m, 1h, 1h30m"), _seconds)
    parser.option("data", _("FILE"), _("... and for this text"))
    parser.option("size", _("SIZE"), _("... or for a text of this size that is elsewhere, such as 20MB"), _text_bytes)
    parser.option("write", _("FILE"), _("write the recommended recipe, commented"), Path)
    parser.flag("overwrite", _("replace the file of --write"))
    parser.option("price_per_hour", "X", _("of one device, in any currency"), _price)
    parser.option("explain", _("PARAMETER"), _("its meaning, what grows with it and by how much here"), _field)
    parser.flag("json", _("the same figures as data"))
    return parser


def main(words: list[str]) -> None:
    print(run(words))


def run(words: list[str]) -> str:
    """Return the output for these arguments. Raises: InputError: an argument cannot be used."""
    arguments = reader().read(words)
    config = configs.load(arguments.recipe, arguments.overrides, arguments.faults)
    options = Options(
        **{key: getattr(arguments, key) for key in Options.__dataclass_fields__ if hasattr(arguments, key)}
    )
    if arguments.explain:
        return _explain(config, arguments.explain, options)
    plan = make(config, options)
    with about_card(plan.target.own_memory):
        written = write(plan, options.write, arguments.recipe, options.overwrite) if options.write else None
        if options.json:
            figures = as_json(plan, options)
            figures["written"] = str(options.write) if written else None
            return json_text(figures)
        from hfgpt.plan import tables

        return tables.render(plan, arguments.recipe, options)


def _explain(config: Config, name: str, options: Options) -> str:
    from hfgpt.plan import guide

    check_text(survey_of(config))

    def device(changed: Config) -> Target:
        return find_target(changed, options.gpu, options.vram, options.processes)

    if options.json:
        return json_text(guide.as_json(config, name, device))
    return guide.explain(config, name, device)


def read_bytes(text: str) -> int:
    """Read '8GB', '8G', '8' (all 8 GiB, as cards are sold) or '8192MB' as bytes."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:([GMT])i?B?)?", text.strip(), flags=re.IGNORECASE)
    if not match or not 0 < float(match[1]) < 2**40:
        raise ValueError(_("must be a size such as 8GB or 8192MB"))
    return int(float(match[1]) * {"M": 2**20, "G": 2**30, "T": 2**40}[(match[2] or "G").upper()])


def _text_bytes(text: str) -> int:
    """Read '200kB', '20MB' or '5GB' as bytes, in powers of 1000 as files are listed."""
    match = re.fullmatch(r"(\d{1,6}(?:\.\d+)?)\s*([kMGT])B?", text.strip(), flags=re.IGNORECASE)
    if not match or not float(match[1]):
        raise ValueError(_("must be a size with its unit, such as 200kB, 20MB or 5GB"))
    return int(float(match[1]) * 1000 ** (1 + "KMGT".index(match[2].upper())))


def _seconds(text: str) -> int:
    if not (seconds := seconds_of(text)):
        raise ValueError(_("must be a time with its unit (h, m or s), such as 11h30m, 90m or 45s"))
    return seconds


def _price(text: str) -> float:
    if not re.fullmatch(r"\d{1,12}(\.\d+)?", text):
        raise ValueError(_("must be a number, in any currency, for one device an hour"))
    return float(text)


def _field(text: str) -> str:
    name = configs.CALLED.get(text, text.replace("-", "_"))
    if name not in Config.model_fields:
        close = difflib.get_close_matches(name, Config.model_fields, n=1)
        if close:
            raise ValueError(_("is not a parameter; did you mean {name}?", name=repr(close[0])))
        raise ValueError(_("is not a parameter"))
    return name
