"""The model card: a run folder's README.md, as the Hub shows it.

In:  a run folder: config.json, and where there are recipe.yaml, metrics.jsonl, loss.png and samples.jsonl (one JSON
     object a line with ``step`` and ``text``; the last line is shown).
Out: Markdown with YAML front matter: licence, library, task, tags, data, and the evaluated figures as `model-index`
     (the Hub's model card metadata, https://huggingface.co/docs/hub/model-cards).

Reads files alone; imports neither torch nor transformers.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from hfgpt import config as configs
from hfgpt.base.errors import InputError
from hfgpt.config import Config
from hfgpt.model import sizes
from hfgpt.runs import metrics
from hfgpt.runs.metrics import Record

FILE_NAME = "README.md"

MAX_ROWS = 12

HUB_ID = re.compile(r"^[\w.-]+/[\w.-]+$")

# Our name of a figure, the Hub's name of its metric, and what a reader calls it.
FIGURES = (
    ("val_loss", "loss", "Validation loss (nats per token)"),
    ("val_perplexity", "perplexity", "Validation perplexity"),
    ("val_bits_per_character", "bits_per_character", "Validation bits per character"),
)


def write(run_dir: str | Path, license: str = "mit") -> Path:
    """Write the card into the run folder, in one step (see :func:`model_card`); returns its path."""
    path = Path(run_dir) / FILE_NAME
    temporary = path.with_name(f".{FILE_NAME}.writing")
    temporary.write_text(model_card(run_dir, license), encoding="utf-8")
    os.replace(temporary, path)
    return path


def model_card(run_dir: str | Path, license: str = "mit") -> str:
    """The card of a run, finished or in progress, or of an imported model.

    Args:
        run_dir: the run folder.
        license: the model's licence by the Hub's name of it ('mit', 'apache-2.0', 'other' …).

    Raises:
        InputError: the folder holds no config.json of a GPT-2, or a file in it is damaged; names the file.
    """
    folder = Path(run_dir)
    shape = _shape(folder)
    recipe = configs.load(folder / "recipe.yaml") if (folder / "recipe.yaml").is_file() else None
    records = metrics.read(folder / metrics.FILE_NAME) if (folder / metrics.FILE_NAME).is_file() else []
    evaluations = [record for record in records if "val_loss" in record]
    name = folder.resolve().name
    sections = [
        f"---\n{_front_matter(name, recipe, _best(evaluations), license)}---",
        f"# {name}\n\n{_what_it_is(shape, recipe)}",
        "## How to use it\n\n" + _usage(shape),
        _figures(evaluations, recipe, folder),
        _sample(folder),
        _recipe(recipe),
        "## Limits\n\n" + _limits(shape, recipe),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _shape(folder: Path) -> dict[str, int]:
    """n_layer, n_head, n_embd, block_size, vocab_size and the number of parameters of the exported model."""
    path = folder / "config.json"
    names = {"n_layer": "n_layer", "n_head": "n_head", "n_embd": "n_embd", "n_positions": "block_size"}
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        shape = {ours: int(saved[theirs]) for theirs, ours in names.items()}
        vocabulary = int(saved["vocab_size"])
    except FileNotFoundError:
        raise InputError(
            f"{str(folder)!r}: holds no config.json; a model is exported at the first evaluation"
        ) from None
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"{path}: is not the description of a GPT-2 model") from None
    total = sizes.parameters(Config().model_copy(update=shape), vocabulary).total
    return {**shape, "vocab_size": vocabulary, "parameters": total}


def _best(evaluations: Sequence[Record]) -> Record | None:
    """The evaluation whose model is the exported one."""
    finite = [record for record in evaluations if math.isfinite(record["val_loss"])]
    return min(finite, key=lambda record: record["val_loss"]) if finite else None


def _front_matter(name: str, recipe: Config | None, best: Record | None, license: str) -> str:
    fields: dict[str, Any] = {
        "license": license,
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
        "task": {"type": "text-generation", "name": "Language modelling"},
        "dataset": {**dataset, "split": "validation"},
        "metrics": [
            {"type": metric, "value": round(best[key], 4), "name": title}
            for key, metric, title in FIGURES
            if key in best
        ],
    }


def _is_hub_id(source: str) -> bool:
    return bool(HUB_ID.match(source)) and not Path(source).exists()


def _dataset_name(recipe: Config) -> str:
    if _is_hub_id(recipe.dataset):
        return recipe.dataset
    return Path(recipe.dataset).name or recipe.dataset  # the recipe has the whole path


def _what_it_is(shape: dict[str, int], recipe: Config | None) -> str:
    lines = [
        f"A GPT-2 language model of {shape['parameters']:,} parameters: {shape['n_layer']} layers, "
        f"{shape['n_head']} heads, width {shape['n_embd']}, a context of {shape['block_size']} tokens and a vocabulary "
        f"of {shape['vocab_size']:,}."
    ]
    if recipe is not None:
        start = "from scratch" if not recipe.pretrained else f"from the weights of `{recipe.init_from}`"
        lines.append(
            f"Trained {start} on **{_dataset_name(recipe)}** with hfgpt, tokenizer `{recipe.tokenizer}`, "
            f"{recipe.tokens_per_iter:,} tokens an optimizer step."
        )
        if not _is_hub_id(recipe.dataset):
            lines.append(f"The last {recipe.val_fraction:.0%} of the text was kept apart to evaluate on.")
    return "\n".join(lines)


def _usage(shape: dict[str, int]) -> str:
    return f"""\
With Transformers alone; put the repository's name, or the folder, for `MODEL`:

```python
from transformers import pipeline

generate = pipeline("text-generation", model="MODEL")
print(generate("The")[0]["generated_text"])
```

Prompt and new text together fill at most the context of {shape["block_size"]} tokens. `python scripts/sample.py MODEL`
of hfgpt goes on past it."""


def _figures(evaluations: Sequence[Record], recipe: Config | None, folder: Path) -> str:
    if not evaluations:
        return ""
    best = _best(evaluations)
    columns = ("step", "tokens", "train loss", "val loss", "perplexity", "bits per character")
    lines = ["## Figures", "", f"| {' | '.join(columns)} |", "|--:" * len(columns) + "|"]
    for record in _some(evaluations, best):
        bold = "**" if record is best else ""
        tokens = f"{record['step'] * recipe.tokens_per_iter:,}" if recipe else ""
        cells = [f"{bold}{record['step']:,}{bold}", tokens]
        for key in ("train_eval_loss", "val_loss", "val_perplexity", "val_bits_per_character"):
            cells.append(f"{bold}{record[key]:.4f}{bold}" if key in record else "")
        lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        "Losses in nats per token, over the same blocks each time. The weights here are those of the bold row.",
    ]
    if (folder / "loss.png").is_file():
        lines += ["", "![Loss over the steps](loss.png)"]
    return "\n".join(lines)


def _some(evaluations: Sequence[Record], best: Record | None) -> list[Record]:
    """At most MAX_ROWS + 1 evaluations, spread evenly, the first, the last and the best among them."""
    last = len(evaluations) - 1
    rows = min(len(evaluations), MAX_ROWS)
    chosen = {round(i * last / max(1, rows - 1)) for i in range(rows)}
    chosen |= {i for i, record in enumerate(evaluations) if record is best}
    return [evaluations[i] for i in sorted(chosen)]


def _sample(folder: Path) -> str:
    samples = metrics.read_samples(folder / metrics.SAMPLES)
    if not samples:
        return ""
    step = next(reversed(samples))
    text = samples[step].strip("\n")
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"## A sample\n\nAs written at step {step:,}:\n\n{fence}text\n{text}\n{fence}"


def _recipe(recipe: Config | None) -> str:
    if recipe is None:
        return ""
    return (
        "## Recipe\n\nEvery setting of the run; `recipe.yaml` beside this card holds it, and trains it again.\n\n"
        f"```yaml\n{configs.to_yaml(recipe).strip()}\n```"
    )


def _limits(shape: dict[str, int], recipe: Config | None) -> str:
    text = (
        "It continues text. It was not taught to answer, to be right or to be safe, and it writes falsehoods with the "
        f"same ease as anything else. It sees {shape['block_size']} tokens at a time."
    )
    if recipe is not None:
        text += f" It knows what is in {_dataset_name(recipe)}, its biases and errors with it, and little else."
    return text
