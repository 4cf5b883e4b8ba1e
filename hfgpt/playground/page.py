"""A page to play with, in a browser: plan a run with sliders, watch runs, let a model write.

In:  a folder of runs and a recipe to start from.
Out: a Gradio page, on the loopback unless told otherwise, that fetches nothing from outside.

Here is what the page does; what it shows is in hfgpt/playground/view.py. All figures come from hfgpt/plan/command.py,
hfgpt/runs/compare.py, hfgpt/runs/diagnose.py and hfgpt/inference/sampling.py. torch is
loaded when the first text is written.
"""

from __future__ import annotations

import math
import os
import shlex
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from hfgpt import config as configs
from hfgpt.base import cards
from hfgpt.base.errors import ConfigError, Fault, InputError
from hfgpt.base.units import duration
from hfgpt.config import Config
from hfgpt.inference import exported
from hfgpt.inference import sampling as sample
from hfgpt.plan import command as plan
from hfgpt.plan import guide
from hfgpt.plan.recipe_file import recipe_text
from hfgpt.playground import view
from hfgpt.playground.view import word
from hfgpt.runs import answer as words
from hfgpt.runs import compare
from hfgpt.runs.comparison_plots import By
from hfgpt.runs.metrics import FILE_NAME
from hfgpt.runs.style import RUNS

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before gradio is imported, which reads it once

try:
    import gradio as gr
except ModuleNotFoundError:
    raise InputError('playground: needs Gradio → pip install -e ".[playground]"') from None

HERE = "here"  # the card that stands for this machine

REFRESH = 2.0  # seconds between two looks at the runs

PIECES = 0.05  # seconds between two pieces of a text on their way to the browser


# ----------------------------------------------------------------------------------------------------------- the plan


@dataclass(frozen=True)
class Knob:
    """A parameter on the page: a slider from low to high, or a choice, a flag, a number that may stay empty."""

    key: str
    low: float = 0
    high: float = 0
    step: float = 1
    choices: tuple[str, ...] = ()

    @property
    def slides(self) -> bool:
        """Whether it is a slider."""
        return self.high > 0


KNOBS = {
    "batch": (
        Knob("batch_size", 1, 128),
        Knob("block_size", 16, 2048, 16),
        Knob("gradient_accumulation_steps", 1, 64),
    ),
    "model": (
        Knob("n_layer", 1, 48),
        Knob("n_head", 1, 32),
        Knob("n_embd", 32, 2048, 8),
        Knob("dropout", 0, 0.9, 0.05),
    ),
    "text": (Knob("tokenizer", choices=("auto", "char", "bpe", "gpt2")), Knob("vocab_size")),
    "training": (
        Knob("learning_rate", 1e-5, 1e-2, 1e-5),
        Knob("max_iters", 100, 20_000, 100),
        Knob("min_lr"),
        Knob("warmup_iters"),
        Knob("lr_decay_iters"),
    ),
    "system": (
        Knob("dtype", choices=("auto", "float32", "bfloat16", "float16")),
        Knob("activation_checkpointing"),
    ),
}

ALL = tuple(knob for knobs in KNOBS.values() for knob in knobs)

SHAPE = ("n_layer", "n_head", "n_embd")  # what a pretrained model brings itself


@dataclass(frozen=True)
class Answer:
    """What is known of the values on the page: a plan, or the rules they break or a message that says why not."""

    plan: plan.Plan | None
    command: str
    config: Config | None = None
    faults: list[Fault] = field(default_factory=list)
    message: str = ""


def settings(recipe: str | None) -> dict[str, Any]:
    """The knobs' values in a recipe, as it gives them; None where a default follows from other values.

    Raises:
        InputError: the recipe cannot be used.
    """
    configs.load(recipe)
    values = configs.read_recipe(recipe) if recipe else {}
    return {knob.key: values.get(knob.key, Config.model_fields[knob.key].default) for knob in ALL}


def answer(recipe: str | None, typed: Mapping[str, Any], card: str | None) -> Answer:
    """Plan a recipe with the knobs' values.

    Args:
        recipe: its path; None: the defaults.
        typed: values of knobs; what equals the recipe's is not an override. A cleared field is None or "".
        card: of the table of cards; None: this machine.
    """
    try:
        values, before = configs.read_recipe(recipe) if recipe else {}, settings(recipe)
    except InputError as error:
        return Answer(None, "", message=str(error))
    changed = {key: new for key, value in typed.items() if (new := _tidy(value)) != before[key]}
    if card and values.get("device") == "cpu":
        changed["device"] = "auto"  # a card was chosen, so the recipe's CPU is not meant
    words = [_override(key, value) for key, value in changed.items()]
    command = shlex.join(["accelerate", "launch", "scripts/train.py", *([recipe] if recipe else []), *words])
    try:
        config = configs.build({**values, **changed}, Path(recipe).stem if recipe else "run")
        return Answer(plan.make(config, plan.Options(gpu=card)), command, config)
    except ConfigError as error:
        return Answer(None, command, faults=error.faults)
    except InputError as error:
        return Answer(None, command, message=str(error))


def _tidy(value: Any) -> Any:
    """A value from the browser: 0.30000000000000004 as 0.3, an empty field as None."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    return None if value == "" else value


def _override(key: str, value: Any) -> str:
    if isinstance(value, bool):
        return f"--{key}" if value else f"--no_{key}"
    return f"--{key}={'none' if value is None else f'{value:g}' if isinstance(value, float) else value}"


# ----------------------------------------------------------------------------------------------------------- the runs


def find(folder: Path, file: str) -> dict[str, Path]:
    """The folders up to three deep that hold a file, by their name inside `folder`; the newest first."""
    found = [path for depth in ("", "*/", "*/*/", "*/*/*/") for path in folder.glob(f"{depth}{file}")]
    dated = sorted(((path.stat().st_mtime, path.parent) for path in found if path.is_file()), reverse=True)
    inside = [path for _, path in dated if not any(part.startswith("checkpoint-") for part in path.parts)]
    return {str(path.relative_to(folder)) if path != folder else path.resolve().name: path for path in inside}


def compared(chosen: Mapping[str, Path]) -> compare.Comparison:
    """A comparison of runs under their names in the folder; of a single one too.

    Raises:
        InputError: one of them cannot be read, such as one that has recorded nothing yet.
    """
    folders = list(chosen.values())
    if len(folders) > 1:
        comparison = compare.of_folders(folders)
    else:  # alone, it has nothing to be compared with, but an outcome all the same
        comparison = compare.of_folders(folders * 2)
        comparison = compare.Comparison(comparison.title, comparison.entries[:1])
    for entry, name in zip(comparison.entries, chosen, strict=True):
        entry.label = name
    return comparison


# ---------------------------------------------------------------------------------------------------------- the texts


class Writer:
    """Writes with the models of a folder; the last one stays loaded until it is trained on or another is chosen."""

    def __init__(self) -> None:
        self._key: tuple[Path, int] | None = None
        self._loaded: Any = None
        self._lock = threading.Lock()

    def _load(self, folder: Path) -> Any:
        key = (folder, (exported.check_folder(folder) / "model.safetensors").stat().st_mtime_ns)
        with self._lock:
            if key != self._key:
                self._key, self._loaded = None, None  # the old one's memory goes first
                from hfgpt.base import threads

                threads.configure()
                self._key, self._loaded = key, exported.load_folder(folder)
            return self._loaded

    def write(self, folder: Path, prompt: str, how: sample.Sampling) -> Iterator[tuple[str, str, int]]:
        """The text so far, the characters of the prompt that the model does not know, and the tokens drawn so far.

        Raises:
            InputError: the folder holds no model that can be used.
        """
        model, tokenizer = self._load(folder)
        unknown, text, count, shown = exported.left_out(tokenizer, prompt), prompt, 0, 0.0
        yield text, unknown, count
        for piece in sample.generate(model, tokenizer, prompt, how):
            text, count = text + piece, count + 1
            if time.monotonic() - shown >= PIECES:
                shown = time.monotonic()
                yield text, unknown, count
        yield text, unknown, count


# ----------------------------------------------------------------------------------------------------------- the page


def slider(*given: Any, **more: Any) -> Any:
    """A slider whose typed values come as they are: what is wrong with one is said beside it, not in a passing note.

    (A subclass would be plainer, but Gradio writes a .pyi file beside the module of any subclass.)
    """
    made: Any = gr.Slider(*given, **more)
    made.preprocess = lambda value: value
    return made


class Page:
    """The page: :attr:`blocks` is what Gradio serves.

    Args:
        folder: holds the runs; may be empty or not there yet.
        recipe: to start from; None: recipes/standard.yaml where there is one, else the defaults.
        language: 'en' or 'zh', until the reader chooses.

    Raises:
        InputError: the recipe cannot be used.
    """

    def __init__(self, folder: str | Path = "out", recipe: str | None = None, language: str = "en") -> None:
        self.folder, self.writer = Path(folder), Writer()
        self.recipes = [str(path) for path in sorted(Path("recipes").glob("*.yaml"))]
        if recipe is None and "recipes/standard.yaml" in self.recipes:
            recipe = "recipes/standard.yaml"
        if recipe is not None and recipe not in self.recipes:
            self.recipes.insert(0, recipe)
        self._first, self._start = recipe or "", settings(recipe)
        self._start_language = language
        self._texts: list[tuple[Any, Callable[[str], dict[str, Any]]]] = []
        with gr.Blocks(title="hfgpt playground", analytics_enabled=False) as self.blocks:
            self._build()

    def _said(self, kind: Callable[..., Any], texts: Callable[[str], dict[str, Any]], *given: Any, **more: Any) -> Any:
        """Make a component whose `texts` follow the language."""
        component = kind(*given, **more, **texts(self._start_language))
        self._texts.append((component, texts))
        return component

    def _build(self) -> None:
        with gr.Row(elem_id="head"):
            self._said(gr.HTML, _title, padding=False)
            self.language = gr.Radio(
                [("English", "en"), ("中文", "zh")], value=self._start_language, show_label=False, container=False,
                elem_id="language",
            )  # fmt: skip
        with gr.Tabs():
            with self._said(gr.Tab, _texts(label="plan"), id="plan"):
                self._plan_tab()
            with self._said(gr.Tab, _texts(label="runs"), id="runs"):
                self._runs_tab()
            with self._said(gr.Tab, _texts(label="sample"), id="sample"):
                self._sample_tab()
        self._wire()

    # -- plan

    def _plan_tab(self) -> None:
        with gr.Row():
            self.recipe = self._said(
                gr.Dropdown,
                lambda lang: {
                    "label": word("recipe", lang),
                    "info": word("recipe_info", lang),
                    "choices": [(word("defaults", lang), ""), *((name, name) for name in self.recipes)],
                },
                value=self._first,
                interactive=True,
                elem_id="recipe",
            )
            self.card = self._said(
                gr.Dropdown,
                lambda lang: {
                    "label": word("card", lang),
                    "info": word("card_info", lang),
                    "choices": [
                        (word("this_machine", lang), HERE),
                        *((f"{c.name} · {c.memory_bytes // cards.GIB} GB", c.name) for c in cards.CARDS),
                    ],
                },
                value=HERE,
                interactive=True,
                elem_id="card",
            )
        self.summary = gr.HTML(elem_id="summary", padding=False)
        with gr.Row(elem_classes="halves"):
            with gr.Column(scale=5, min_width=300, elem_id="knobs"):
                self.knobs: dict[str, Any] = {}
                self.faults: dict[str, Any] = {}
                for group, knobs in KNOBS.items():
                    self._said(gr.HTML, partial(_heading, group), padding=False)
                    for knob in knobs:
                        with gr.Column(elem_classes="knob"):
                            kind, made = _control(knob, self._start[knob.key])
                            texts = partial(_knob_texts, knob.key)
                            self.knobs[knob.key] = self._said(kind, texts, **made)
                            self.faults[knob.key] = gr.HTML(visible=False, padding=False)
                            self._said(gr.HTML, partial(_explained, knob.key), padding=False)
            with gr.Column(scale=6, min_width=300, elem_id="result"):
                self.take = self._said(gr.Button, _texts(value="take"), size="sm", visible=False, elem_id="take")
                self.command = self._said(
                    gr.Code,
                    _texts(label="command"),
                    language="shell",
                    wrap_lines=True,
                    lines=1,
                    elem_id="command",
                )
                self.tables = gr.HTML(elem_id="tables", padding=False)
                with self._said(gr.Accordion, _texts(label="as_recipe"), open=False):
                    self.yaml = gr.Code(language="yaml", show_label=False, max_lines=30, wrap_lines=True)

    def _load_recipe(self, recipe: str) -> list[Any]:
        """The knobs' values in a recipe; a slider grows to reach them."""
        try:
            values, pretrained = settings(recipe or None), configs.load(recipe or None).pretrained
        except InputError as error:
            gr.Warning(str(error))
            return [gr.skip()] * len(ALL)
        updates = []
        for knob in ALL:
            value = values[knob.key]
            reach = {"maximum": max(knob.high, value)} if knob.slides else {}
            updates.append(gr.update(value=value, interactive=not (pretrained and knob.key in SHAPE), **reach))
        return updates

    def _answer(self, recipe: str, card: str, *values: Any) -> Answer:
        typed = dict(zip((knob.key for knob in ALL), values, strict=True))
        if recipe not in ("", *self.recipes):
            return Answer(None, "", message=f"recipe {recipe!r}: is not in the list")
        return answer(recipe or None, typed, None if card == HERE else card)

    def _plan(self, language: str, recipe: str, card: str, *values: Any) -> list[Any]:
        """Everything on the right of the knobs, and the marks beside them."""
        found = self._answer(recipe, card, *values)
        marks = {item.key: view.fault(item, language) for item in found.faults}
        if found.plan is None or found.config is None:
            shown = [view.refused(found.faults, found.message, language), gr.update(visible=False)]
            shown += [found.command, "", ""]
        else:
            fits, sentence = view.verdict(found.plan, language)
            if not fits:
                marks["batch_size"] = view.message(sentence, "bad")
            better = found.plan.recommendation.survey.config != found.plan.survey.config
            yaml = recipe_text(found.config.model_copy(update={"out_dir": None}), {}, found.command)
            shown = [view.summary(found.plan, language), gr.update(visible=better)]
            shown += [found.command, view.tables(found.plan, language), yaml]
        return shown + [gr.update(value=marks.get(key, ""), visible=key in marks) for key in self.faults]

    def _take(self, recipe: str, card: str, *values: Any) -> list[Any]:
        """The knobs set to what is recommended."""
        found = self._answer(recipe, card, *values).plan
        if found is None:
            return [gr.skip()] * len(ALL)
        before, after = found.survey.config, found.recommendation.survey.config
        return [
            gr.skip() if getattr(before, knob.key) == getattr(after, knob.key) else getattr(after, knob.key)
            for knob in ALL
        ]

    # -- runs

    def _runs_tab(self) -> None:
        names = list(find(self.folder, FILE_NAME))
        with gr.Row():
            self.chosen = self._said(
                gr.Dropdown,
                _texts(label="which_runs", info="which_runs_info"),
                choices=names,
                value=names[:1],
                multiselect=True,
                max_choices=len(RUNS),
                interactive=True,
                scale=3,
                elem_id="runs",
            )
            self.by = self._said(
                gr.Radio,
                lambda lang: {
                    "label": word("by", lang),
                    "choices": [(word(f"by_{by}", lang), by) for by in ("steps", "tokens", "time")],
                },
                value="steps",
                scale=1,
                min_width=260,
                elem_id="by",
            )
        self.diagnosis = gr.HTML(elem_id="diagnosis", padding=False)
        self.seen = gr.State("")
        self.clock = gr.Timer(REFRESH)

    def _watch(self, language: str, names: list[str], by: By, seen: str, models: str | None) -> list[Any]:
        """The runs as they are now; nothing where nothing has changed since `seen`."""
        runs, exported = find(self.folder, FILE_NAME), find(self.folder, "model.safetensors")
        chosen = {name: runs[name] for name in names or [] if name in runs}
        sizes = [(path / FILE_NAME).stat().st_size for path in chosen.values()]
        now = repr((language, list(chosen), by, sizes, list(runs), list(exported)))
        if now == seen:
            return [gr.skip()] * 4
        lists = [
            gr.update(choices=sorted(runs), value=list(chosen)),
            gr.update(choices=list(exported), value=models if models in exported else next(iter(exported), None)),
        ]
        if not chosen:
            command = "accelerate launch scripts/train.py recipes/quick_experiment.yaml"
            text = word("choose_runs", language) if runs else word("no_runs", language, f"{self.folder}/", command)
            return [view.message(text), now, *lists]
        try:
            comparison = compared(chosen)
        except InputError as error:
            return [view.message(str(error), "bad"), now, *lists]
        sentences = words.answer(comparison) if len(chosen) > 1 else []
        return [view.runs(comparison, sentences, by, language), now, *lists]

    # -- sample

    def _sample_tab(self) -> None:
        how, names = sample.Sampling(), list(find(self.folder, "model.safetensors"))
        with gr.Row(elem_classes="halves"):
            with gr.Column(scale=4, min_width=300):
                self.model = self._said(
                    gr.Dropdown,
                    _texts(label="which_run"),
                    choices=names,
                    value=next(iter(names), None),
                    interactive=True,
                    elem_id="model",
                )
                self.prompt = self._said(
                    gr.Textbox, _texts(label="prompt", info="prompt_info"), "ROMEO:", lines=3, elem_id="prompt"
                )
                plain = {"buttons": [], "interactive": True}
                self.how = [
                    self._said(
                        slider,
                        _texts(label="temperature", info="temperature_info"),
                        0,
                        2,
                        how.temperature,
                        step=0.05,
                        elem_id="temperature",
                        **plain,
                    ),
                    self._said(gr.Number, _texts(label="top_k", info="top_k_info"), how.top_k, elem_id="top_k"),
                    self._said(
                        slider,
                        _texts(label="max_new_tokens", info="max_new_tokens_info"),
                        1,
                        2000,
                        how.max_new_tokens,
                        step=1,
                        elem_id="max_new_tokens",
                        **plain,
                    ),
                    self._said(gr.Number, _texts(label="seed", info="seed_info"), how.seed, elem_id="seed"),
                ]
            with gr.Column(scale=6, min_width=300):
                with gr.Row():
                    buttons = (("write", "primary"), ("stop", "secondary"))
                    self.write, self.stop = (
                        self._said(
                            gr.Button,
                            _texts(value=name),
                            variant=variant,
                            min_width=100,
                            elem_id=name,
                        )
                        for name, variant in buttons
                    )
                self.status = gr.HTML(elem_id="status", padding=False)
                self.written = self._said(
                    gr.Textbox,
                    _texts(label="written"),
                    lines=18,
                    max_lines=18,
                    interactive=False,
                    buttons=["copy"],
                    elem_id="written",
                )

    def _write(
        self, language: str, name: str | None, prompt: str, temperature: Any, top_k: Any, tokens: Any, seed: Any
    ) -> Iterator[tuple[Any, str]]:
        """The text and a line about it, as it grows."""
        try:
            folders = find(self.folder, "model.safetensors")
            if name not in folders:
                raise InputError(word("choose_run", language, f"{self.folder}/"))
            how = sample.Sampling(
                max_new_tokens=_whole("max_new_tokens", tokens, language),
                temperature=math.nan if temperature is None else float(temperature),
                top_k=None if top_k in (None, "") else _whole("top_k", top_k, language),
                seed=_whole("seed", seed, language),
            )
            yield gr.skip(), view.message(word("loading", language, name))
            began, status = time.monotonic(), ""
            for text, unknown, count in self.writer.write(folders[name], prompt or "", how):
                took = duration(time.monotonic() - began)
                status = view.message(word("done", language, count, took))
                if unknown:
                    status += view.message(word("left_out", language, repr(unknown)), "bad")
                yield text, status
        except InputError as error:
            yield gr.skip(), view.message(str(error), "bad")
        except RuntimeError as error:  # torch's: memory, mostly
            yield gr.skip(), view.message(str(error).partition("\n")[0], "bad")

    # -- events

    def _wire(self) -> None:
        """What happens when something is moved, chosen or pressed."""
        knobs = list(self.knobs.values())
        asked = [self.recipe, self.card, *knobs]
        plan_all: dict[str, Any] = {
            "fn": self._plan,
            "inputs": [self.language, *asked],
            "outputs": [self.summary, self.take, self.command, self.tables, self.yaml, *self.faults.values()],
            "show_progress": "hidden",
        }
        watch: dict[str, Any] = {
            "fn": self._watch,
            "inputs": [self.language, self.chosen, self.by, self.seen, self.model],
            "outputs": [self.diagnosis, self.seen, self.chosen, self.model],
            "show_progress": "hidden",
            "concurrency_id": "runs",  # one picture at a time: matplotlib's style is the whole process's
        }
        # A slider that is dragged asks many times a second: the latest place is the one that counts.
        gr.on(
            [self.card.input, *(knob.input for knob in knobs)], trigger_mode="always_last", api_name="plan", **plan_all
        )
        self.recipe.input(self._load_recipe, self.recipe, knobs, show_progress="hidden").then(**plan_all)
        self.take.click(self._take, asked, knobs, show_progress="hidden").then(**plan_all)
        gr.on([self.chosen.input, self.by.input], trigger_mode="always_last", api_name="watch", **watch)
        self.clock.tick(**watch)
        writing = gr.on(
            [self.write.click, self.prompt.submit],
            self._write,
            [self.language, self.model, self.prompt, *self.how],
            [self.written, self.status],
            show_progress="hidden",
            api_name="write",
        )
        self.stop.click(None, cancels=[writing])
        texts = [component for component, _ in self._texts]
        relabel = self.language.input(
            lambda lang: [gr.update(**of(lang)) for _, of in self._texts], self.language, texts, show_progress="hidden"
        )
        relabel.then(**plan_all).then(**watch)
        self.blocks.load(self._load_recipe, self.recipe, knobs, show_progress="hidden").then(**plan_all)
        self.blocks.load(**watch)


def _texts(**names: str) -> Callable[[str], dict[str, Any]]:
    """A component's texts by language, from the names of words."""
    return lambda language: {part: word(name, language) for part, name in names.items()}


def _title(language: str) -> dict[str, Any]:
    return {"value": f"<h1>{word('title', language)}</h1><p>{word('subtitle', language)}</p>"}


def _heading(group: str, language: str) -> dict[str, Any]:
    return {"value": f"<h3>{word(group, language)}</h3>"}


def _explained(key: str, language: str) -> dict[str, Any]:
    return {"value": view.explained(key, language)}


def _control(knob: Knob, value: Any) -> tuple[Callable[..., Any], dict[str, Any]]:
    """The kind of component that a knob is, and what it is made with."""
    made: dict[str, Any] = {"value": value, "interactive": True, "elem_id": knob.key}
    if knob.slides:
        reach = {"minimum": knob.low, "maximum": max(knob.high, value), "step": knob.step}
        return slider, made | reach | {"buttons": []}
    if knob.choices:
        return gr.Dropdown, made | {"choices": list(dict.fromkeys((*knob.choices, value)))}
    return gr.Checkbox if isinstance(value, bool) else gr.Number, made


def _knob_texts(key: str, language: str) -> dict[str, Any]:
    unit, info = configs.unit_of(key), guide.entry(key, language).meaning
    derived = configs.default_of(key) if Config.model_fields[key].default is None else ""
    texts = {"label": f"{key} ({unit})" if unit and language == "en" else key, "info": info}
    return texts | ({"placeholder": word("derived", language, view.said(derived, language))} if derived else {})


def _whole(key: str, value: Any, language: str) -> int:
    """A whole number from the browser.

    Raises:
        InputError: it is none.
    """
    try:
        if (number := int(value)) == float(value):
            return number
    except (TypeError, ValueError, OverflowError):
        pass
    raise InputError(word("whole", language, f"{key} = {value!r}"))
