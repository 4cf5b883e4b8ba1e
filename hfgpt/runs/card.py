"""The model card: a run folder's README.md, which the Hub displays.

In:  a run folder: config.json and, if present, recipe.yaml, metrics.jsonl, loss.png and samples.jsonl (whose last
     sample is shown).
Out: Markdown with YAML front matter: licence, library, task, tags, data, and the evaluated figures as `model-index`
     (the Hub's model card metadata, https://huggingface.co/docs/hub/model-cards).

Text from outside, such as names and samples, is escaped. No path of this machine is revealed. Imports neither torch nor
transformers.
"""

import itertools
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from hfgpt import config as configs
from hfgpt.base.errors import UNREADABLE, InputError
from hfgpt.base.files import check_regular, replace_file
from hfgpt.base.language import N_, _, sentences
from hfgpt.base.terminal import visible
from hfgpt.config import EMBEDDED_DATASET, Config
from hfgpt.config.yaml_text import corpora
from hfgpt.model import sizes
from hfgpt.runs import markdown, metrics, public, segments
from hfgpt.runs.metrics import Record
from hfgpt.runs.segments import Segment

FILE_NAME = "README.md"
MAX_ROWS = 12
LARGEST = 10**9  # upper limit of any number in a shape
HUB_ID = re.compile(r"^\w[\w.-]*/\w[\w.-]*$")

# Our name of a figure, the Hub's name of its metric, and the name that readers see.
FIGURES = (
    ("val_loss", "loss", N_("Validation loss (nats per token)")),
    ("val_perplexity", "perplexity", N_("Validation perplexity")),
    ("val_bits_per_character", "bits_per_character", N_("Validation bits per character")),
)


def write(run_dir: str | Path, license: str | None = None) -> Path:
    """Write the card into the run folder atomically (see :func:`model_card`) and return its path."""
    path = Path(run_dir) / FILE_NAME
    replace_file(path, model_card(run_dir, license))
    return path


def model_card(run_dir: str | Path, license: str | None = None) -> str:
    """Return the card of a run, finished or in progress, or of an imported model.

    Args:
        license: the model's licence, by the Hub's name for it ('mit', 'apache-2.0', 'other' …). None: the recipe's; a
            model without a recipe, such as an imported one, states no licence.

    Raises:
        InputError: the folder has no GPT-2 config.json, or a file in it is damaged; names the file.
    """
    folder = Path(run_dir)
    shape = _shape(folder)
    recipe = configs.load(folder / "recipe.yaml") if (folder / "recipe.yaml").is_file() else None
    records = metrics.read(folder / metrics.FILE_NAME) if (folder / metrics.FILE_NAME).is_file() else []
    evaluations, best = [record for record in records if "val_loss" in record], metrics.best(records)
    name = folder.resolve().name
    sections = [
        f"---\n{_front_matter(name, recipe, best, license)}---",
        f"# {markdown.text(name)}\n\n{_what_it_is(shape, recipe, metrics.branch_step(records))}",
        _section(_("How to use it"), _usage(shape, recipe)),
        _figures(evaluations, best, recipe, folder),
        _apart(records, best),
        _sample(folder),
        _recipe(recipe, segments.read(folder), int(records[-1]["step"]) if records else 0),
        _section(_("Limits"), _limits(shape, recipe)),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _shape(folder: Path) -> dict[str, int]:
    """Return n_layer, n_head, n_embd, block_size, vocab_size and the parameter count of the exported model."""
    path = folder / "config.json"
    names = {"n_layer": "n_layer", "n_head": "n_head", "n_embd": "n_embd", "n_positions": "block_size"}
    try:
        check_regular(path)
        saved = json.loads(path.read_text(encoding="utf-8"))
        shape = {ours: int(saved[theirs]) for theirs, ours in names.items()}
        vocabulary = int(saved["vocab_size"])
        total = sizes.exported_parameters(saved).total
        if not all(1 <= number <= LARGEST for number in (vocabulary, *shape.values())):
            raise ValueError("not the shape of a model")
    except FileNotFoundError:
        raise InputError(
            "{folder!r}: has no config.json; a model is exported at the first evaluation", folder=str(folder)
        ) from None
    except (OSError, *UNREADABLE):
        raise InputError("{path}: not the description of a GPT-2 model", path=path) from None
    return {**shape, "vocab_size": vocabulary, "parameters": total}


def _front_matter(name: str, recipe: Config | None, best: Record | None, license: str | None) -> str:
    if license is None and recipe is not None:
        license = recipe.license
    fields: dict[str, Any] = {
        **({} if license is None else {"license": license}),
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["hfgpt", "gpt2", "text-generation"],
    }
    if recipe is not None and _is_hub_id(recipe.dataset):
        fields["datasets"] = [recipe.dataset]
    if recipe is not None and _is_hub_id(recipe.init_from):
        fields["base_model"] = recipe.init_from
    if recipe is not None and best is not None:
        fields["model-index"] = [{"name": name, "results": [_result(recipe, best)]}]
    return yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)


def _result(recipe: Config, best: Record) -> dict[str, Any]:
    dataset = {"name": _dataset_name(recipe), "type": recipe.dataset if _is_hub_id(recipe.dataset) else "text"}
    return {
        "task": {"type": "text-generation", "name": _("Language modelling")},
        "dataset": {**dataset, "split": "validation"},
        "metrics": [
            {"type": metric, "value": round(best[key], 4), "name": _(title)}
            for key, metric, title in FIGURES
            if math.isfinite(best.get(key, math.nan))
        ],
    }


def _is_hub_id(source: str) -> bool:
    return bool(HUB_ID.match(source)) and not Path(source).exists()


def _dataset_name(recipe: Config) -> str:
    """Return the card's name for the data; for a mix, the names of its corpora."""
    names = [name if _is_hub_id(name) else public.name(name) for name, _weight in corpora(recipe.dataset)]
    return visible(", ".join(dict.fromkeys(names)))


def _section(heading: str, text: str) -> str:
    return f"## {heading}\n\n{text}"


def _what_it_is(shape: dict[str, int], recipe: Config | None, branch_step: int | None) -> str:
    lines = [
        _("A GPT-2 language model of {parameters:,} parameters: {n_layer} layers, {n_head} heads, width {n_embd}, a "
          "context of {block_size} tokens and a vocabulary of {vocab_size:,}.", **shape)
    ]  # fmt: skip
    if recipe is not None:
        names = {"dataset": f"**{markdown.text(_dataset_name(recipe))}**",
                 "tokenizer": markdown.code(public.name(recipe.tokenizer)),
                 "tokens": recipe.tokens_per_iter}  # fmt: skip
        if recipe.pretrained:
            lines.append(_(
                "Trained from the weights of {weights} on {dataset} with hfgpt, tokenizer {tokenizer}, {tokens:,} "
                "tokens an optimizer step.", weights=markdown.code(public.name(recipe.init_from)), **names
            ))  # fmt: skip
        else:
            lines.append(_(
                "Trained from scratch on {dataset} with hfgpt, tokenizer {tokenizer}, {tokens:,} tokens an optimizer "
                "step.", **names
            ))  # fmt: skip
        if branch_step is not None:
            lines.append(_("It is a branch: its first {step:,} steps are those of another run, whose text and recipe "
                           "may have been others.", step=branch_step))  # fmt: skip
        if not _is_hub_id(recipe.dataset):
            lines.append(_("If the text has no validation split of its own, its last {share:.0%} was kept apart to "
                           "evaluate on.", share=recipe.val_fraction))  # fmt: skip
    return "\n".join(lines)


USAGE = """\
```python
from transformers import pipeline

generate = pipeline("text-generation", model="MODEL")
print(generate("The")[0]["generated_text"])
```"""


def _usage(shape: dict[str, int], recipe: Config | None) -> str:
    """Show how to load the model, with a prompt that fits its training text."""
    prompt = "The" if recipe is None or recipe.dataset == EMBEDDED_DATASET else recipe.sample_prompt or "\n"
    return "\n\n".join((
        _("With Transformers alone; put the repository's name, or the folder, for `MODEL`:"),
        USAGE.replace('"The"', json.dumps(prompt, ensure_ascii=False)),
        _("Prompt and new text together fill at most the context of {tokens} tokens. `hfgpt sample MODEL` continues "
          "past it.", tokens=shape["block_size"]),
    ))  # fmt: skip


def _figures(evaluations: Sequence[Record], best: Record | None, recipe: Config | None, folder: Path) -> str:
    if not evaluations:
        return ""
    columns = (_("step"), _("tokens"), _("train loss"), _("val loss"), _("perplexity"), _("bits per character"))
    lines = [f"## {_('Figures')}", "", f"| {' | '.join(columns)} |", "|--:" * len(columns) + "|"]
    for record in _some(evaluations, best):
        bold = "**" if record is best else ""
        tokens = f"{recipe.tokens_by(int(record['step'])):,}" if recipe else ""
        cells = [f"{bold}{record['step']:,}{bold}", tokens]
        for key in ("train_eval_loss", "val_loss", "val_perplexity", "val_bits_per_character"):
            cells.append(f"{bold}{record[key]:.4f}{bold}" if key in record else "")
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", _("Losses in nats per token, over the same blocks each time.")]
    if best is not None:
        lines[-1] = sentences(lines[-1], _("The weights here are those of the bold row."))
    if (folder / "loss.png").is_file():
        lines += ["", f"![{_('Loss over the steps')}](loss.png)"]
    return "\n".join(lines)


def _apart(records: Sequence[Record], best: Record | None) -> str:
    """Return the figures of tasks and single validation texts: at the step of the weights, or where last measured."""
    figures = metrics.apart(records)
    if not figures:
        return ""
    lines = [f"| {_('measured')} | {_('value')} |", "|:--|--:|"]
    for key, last in figures.items():
        value = best.get(key, last) if best else last
        lines.append(f"| {markdown.code(key)} | {value:.4f} |")
    return _section(_("Tasks and other texts"), "\n".join(lines))


def _some(evaluations: Sequence[Record], best: Record | None) -> list[Record]:
    """Pick at most MAX_ROWS + 1 evenly spread evaluations, including the first, the last and the best."""
    last = len(evaluations) - 1
    rows = min(len(evaluations), MAX_ROWS)
    chosen = {round(i * last / max(1, rows - 1)) for i in range(rows)}
    chosen |= {i for i, record in enumerate(evaluations) if record is best}
    return [evaluations[i] for i in sorted(chosen)]


def _sample(folder: Path) -> str:
    samples = metrics.read_samples(folder / metrics.SAMPLES)
    if not samples:
        return ""
    step, text = list(samples.items())[-1]
    written = _("As written at step {step:,}:", step=step)
    return _section(_("A sample"), f"{written}\n\n{markdown.block(text)}")


def _recipe(recipe: Config | None, changes: Sequence[Segment], last_step: int) -> str:
    """Return the recipe, and where earlier segments of the run differed from it."""
    if recipe is None:
        return ""
    text = _("Every setting of the run; `recipe.yaml` beside this card holds it, and trains it again.")
    if len(changes) > 1:
        text = _("The settings of the run's last segment, which `recipe.yaml` beside this card holds.")
    for before, now in itertools.pairwise(changes):
        values = segments.in_words(before.recipe, now.recipe)
        text += "\n- " + _("From step {step:,} on: {values}", step=now.step, values=markdown.code(values))
    if last_step > recipe.max_iters and not recipe.time_budget:  # there the clock decides the length
        text += "\n\n" + _("The record continues to step {step:,}, beyond this recipe's max_iters.", step=last_step)
    return _section(_("Recipe"), f"{text}\n\n{markdown.block(public.recipe(configs.to_yaml(recipe)), 'yaml')}")


def _limits(shape: dict[str, int], recipe: Config | None) -> str:
    text = _(
        "It continues text. It was not taught to answer, to be right or to be safe, and it writes falsehoods with the "
        "same ease as anything else. It sees {tokens} tokens at a time.", tokens=shape["block_size"],
    )  # fmt: skip
    if recipe is not None:
        name = markdown.text(_dataset_name(recipe))
        knows = _("It knows what is in {dataset}, its biases and errors with it, and little else.", dataset=name)
        text = sentences(text, knows)
    return text
