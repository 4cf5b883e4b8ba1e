"""The tab for planning and starting a run.

In:  the recipe to start from, the knobs' values, a card.
Out: figures, marks beside values that break a rule, the command, the recipe file, a run.
"""

from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from hfgpt import config as configs
from hfgpt.base import hardware
from hfgpt.base.errors import InputError
from hfgpt.base.language import N_, _, about_card, current
from hfgpt.config import Config
from hfgpt.plan import guide
from hfgpt.plan.command import recipe_text
from hfgpt.playground import plan_view
from hfgpt.playground.knobs import ALL, KNOBS, SHAPE, Answer, Knob, answer, settings, suited_recipe
from hfgpt.playground.pieces import Labels, in_language, message, slider
from hfgpt.playground.trainer import Trainer

HERE = "here"  # the card that stands for this machine

HEADINGS = {"batch": N_("Batch"), "model": N_("Model"), "text": N_("Vocabulary"), "optimizer": N_("Optimizer"),
            "schedule": N_("Learning-rate schedule"), "system": N_("Speed and memory")}  # fmt: skip


class PlanTab:
    """The tab's components and their handlers."""

    def __init__(self, labels: Labels, recipe: str | None, trainer: Trainer) -> None:
        self.recipes = [f"recipes/{name}.yaml" for name in configs.shipped_recipes() if "/" not in name]
        recipe = suited_recipe() if recipe is None else recipe
        if recipe not in self.recipes:
            self.recipes.insert(0, recipe)
        self.first, self._start, self._trainer = recipe, settings(recipe), trainer
        self.knobs: dict[str, Any] = {}
        self.faults: dict[str, Any] = {}
        with gr.Row():
            self.recipe = labels.add(
                gr.Dropdown, self._recipe_texts, value=self.first, interactive=True, min_width=250, elem_id="recipe"
            )
            self.card = labels.add(
                gr.Dropdown, _card_texts, value=HERE, interactive=True, min_width=250, elem_id="card"
            )
        self.summary = gr.HTML(elem_id="summary", padding=False)
        with gr.Row(elem_classes="halves"):
            with gr.Column(scale=5, min_width=300, elem_id="knobs"):
                for group, knobs in KNOBS.items():
                    labels.add(gr.HTML, partial(_heading, group), padding=False)
                    for knob in knobs:
                        self._add(labels, knob)
            with gr.Column(scale=6, min_width=300, elem_id="result"):
                self._add_results(labels)

    def _add(self, labels: Labels, knob: Knob) -> None:
        with gr.Column(elem_classes="knob"):
            kind, options = _control(knob, self._start[knob.key])
            self.knobs[knob.key] = labels.add(kind, lambda: _knob_texts(knob.key), **options)
            self.faults[knob.key] = gr.HTML(visible=False, padding=False)
            labels.add(gr.HTML, lambda: {"value": plan_view.explained(knob.key)}, padding=False)

    def _add_results(self, labels: Labels) -> None:
        self.take = labels.add(
            gr.Button, lambda: {"value": _("Take the recommended values")}, size="sm", visible=False, elem_id="take"
        )
        with gr.Row(visible=self._trainer.can_train, elem_id="begin"):
            self.name = labels.add(
                gr.Textbox,
                lambda: {"label": _("Name of the run"), "info": _("Its folder is created beside the other runs.")},
                value=Path(self.first).stem,
                elem_id="name",
                scale=2,
            )
            self.start = labels.add(
                gr.Button, lambda: {"value": _("Train")}, variant="primary", elem_id="train-this", min_width=110
            )
        self.started = gr.HTML(elem_id="started", padding=False)
        self.command = labels.add(
            gr.Code,
            lambda: {"label": _("The same in a terminal")},
            language="shell",
            wrap_lines=True,
            lines=1,
            elem_id="command",
        )
        self.tables = gr.HTML(elem_id="tables", padding=False)
        with labels.add(gr.Accordion, lambda: {"label": _("As a recipe file")}, open=False):
            self.yaml = gr.Code(language="yaml", show_label=False, max_lines=30, wrap_lines=True)

    @property
    def asked(self) -> list[Any]:
        """The components whose values a plan uses."""
        return [self.recipe, self.card, *self.knobs.values()]

    @property
    def answered(self) -> list[Any]:
        """The components that :meth:`plan` fills."""
        return [self.summary, self.take, self.command, self.tables, self.yaml, *self.faults.values(), self.start]

    def _recipe_texts(self) -> dict[str, Any]:
        return {
            "label": _("Recipe to start from"),
            "info": _("Its values go into the fields below."),
            "choices": [(_("the defaults"), ""), *((name, name) for name in self.recipes)],
        }

    @in_language
    def load(self, recipe: str) -> list[Any]:
        """Load a recipe's values into the knobs, extending sliders where needed, and suggest a name for its run."""
        try:
            values, pretrained = settings(recipe or None), configs.load(recipe or None).pretrained
        except InputError as error:
            gr.Warning(str(error))
            return [gr.skip()] * (len(ALL) + 1)
        updates = []
        for knob in ALL:
            value = values[knob.key]
            reach = {"maximum": max(knob.high, value)} if knob.slides else {}
            updates.append(gr.update(value=value, interactive=not (pretrained and knob.key in SHAPE), **reach))
        return [*updates, Path(recipe).stem if recipe else "run"]

    def _answer(self, recipe: str, card: str, *values: Any) -> Answer:
        typed = dict(zip((knob.key for knob in ALL), values, strict=True))
        if recipe not in ("", *self.recipes):
            return Answer(None, "", message=_("recipe {recipe!r}: is not in the list", recipe=recipe))
        return answer(recipe or None, typed, None if card == HERE else card)

    @in_language
    def plan(self, recipe: str, card: str, *values: Any) -> list[Any]:
        """Update everything besides the knobs, and mark those that break a rule."""
        result = self._answer(recipe, card, *values)
        marks, runs = {item.key: plan_view.fault(item) for item in result.faults}, False
        if result.plan is None or result.config is None:
            shown = [plan_view.refused(result.faults, result.message), gr.update(visible=False)]
            shown += [result.command, "", ""]
        else:
            better = result.plan.recommendation.survey.config != result.plan.survey.config
            yaml = recipe_text(result.config.model_copy(update={"out_dir": None}), {}, result.command)
            with about_card(result.plan.target.own_memory):
                kind, sentence = plan_view.verdict(result.plan)
                shown = [plan_view.summary(result.plan), gr.update(visible=better)]
                shown += [result.command, plan_view.tables(result.plan), yaml]
            runs = kind != "bad"
            if not runs:
                marks["batch_size"] = message(sentence, "bad")
        shown += [gr.update(value=marks.get(key, ""), visible=key in marks) for key in self.faults]
        return [*shown, gr.update(interactive=runs)]

    @in_language
    def recommend(self, recipe: str, card: str, *values: Any) -> list[Any]:
        """Set the knobs to the recommended values."""
        result = self._answer(recipe, card, *values).plan
        if result is None:
            return [gr.skip()] * len(ALL)
        before, after = result.survey.config, result.recommendation.survey.config
        return [
            gr.skip() if getattr(before, knob.key) == getattr(after, knob.key) else getattr(after, knob.key)
            for knob in ALL
        ]

    @in_language
    def begin(self, name: str, recipe: str, card: str, *values: Any) -> list[Any]:
        """Start a run with these values; return a message, the tab to open and the run to watch."""
        result = self._answer(recipe, HERE, *values)
        try:
            if result.config is None:
                raise InputError("This recipe cannot run as it stands.")
            if result.plan is not None:
                with about_card(result.plan.target.own_memory):
                    kind, sentence = plan_view.verdict(result.plan)
                if kind == "bad":
                    raise InputError(sentence)
            self._trainer.start(name, result.config)
        except InputError as error:
            return [message(str(error), "bad"), gr.skip(), gr.skip()]
        names = self._trainer.names()
        return ["", gr.Tabs(selected="train"), gr.update(choices=names, value=name.strip())]


def _card_texts() -> dict[str, Any]:
    return {
        "label": _("Runs on"),
        "info": _("A card's memory and speed come from its data sheet; this machine's are measured."),
        "choices": [
            (_("this machine"), HERE),
            *((f"{card.name} · {card.memory_bytes // hardware.GIB} GB", card.name) for card in hardware.CARDS),
        ],
    }


def _heading(group: str) -> dict[str, Any]:
    return {"value": f"<h3>{_(HEADINGS[group])}</h3>"}


def _control(knob: Knob, value: Any) -> tuple[Any, dict[str, Any]]:
    """Return a knob's kind of component, and its arguments."""
    options: dict[str, Any] = {"value": value, "interactive": True, "elem_id": knob.key}
    if knob.slides:
        reach = {"minimum": knob.low, "maximum": max(knob.high, value), "step": knob.step}
        return slider, options | reach | {"buttons": []}
    if knob.choices:
        return gr.Dropdown, options | {"choices": list(dict.fromkeys((*knob.choices, value)))}
    return gr.Checkbox if isinstance(value, bool) else gr.Number, options


NAMES = {
    "batch_size": N_("batch_size (sequences)"), "block_size": N_("block_size (tokens of context)"),
    "gradient_accumulation_steps": N_("gradient_accumulation_steps (micro-batches)"), "n_layer": N_("n_layer (blocks)"),
    "n_head": N_("n_head (heads)"), "n_embd": N_("n_embd (channels)"), "dropout": N_("dropout (probability)"),
    "tokenizer": N_("tokenizer"), "vocab_size": N_("vocab_size (tokens)"), "optimizer": N_("optimizer (adamw or muon)"),
    "learning_rate": N_("learning_rate"), "muon_learning_rate": N_("muon_learning_rate"),
    "weight_decay": N_("weight_decay"), "grad_clip": N_("grad_clip (gradient norm)"),
    "max_iters": N_("max_iters (steps)"),
    "lr_schedule": N_("lr_schedule"), "warmup_iters": N_("warmup_iters (steps)"),
    "lr_decay_iters": N_("lr_decay_iters (steps)"), "min_lr": N_("min_lr"), "dtype": N_("dtype"),
    "activation_checkpointing": N_("activation_checkpointing"),
}  # fmt: skip


def _knob_texts(key: str) -> dict[str, Any]:
    texts = {"label": _(NAMES[key]), "info": guide.entry(key, current()).meaning}
    derived = configs.default_of(key) if Config.model_fields[key].default is None else ""
    return texts | ({"placeholder": _("empty: {default}", default=_(derived))} if derived else {})
