"""The model card: the Hub's metadata, what a user does with it, and folders that lack some files."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from hfgpt import config as configs
from hfgpt.base.errors import InputError
from hfgpt.runs import card, public

SHAPE = {"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 32}
LOSSES = {0: 4.2, 10: 3.0, 20: 2.5, 30: 2.75}


def write_run(folder: Path, losses: dict[int, float], **recipe: Any) -> Path:
    folder.mkdir()
    sizes = {"n_layer": 2, "n_head": 2, "n_embd": 16, "n_positions": 32, "vocab_size": 65}
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2", **sizes}), encoding="utf-8")
    config = configs.build({**SHAPE, "max_iters": 40, "batch_size": 4, **recipe}, "tiny")
    (folder / "recipe.yaml").write_text(configs.to_yaml(config), encoding="utf-8")
    with open(folder / "metrics.jsonl", "w", encoding="utf-8") as file:
        for step, loss in losses.items():
            figures = {"val_loss": loss, "val_perplexity": 2.718**loss, "val_bits_per_character": loss / 0.693}
            file.write(json.dumps({"step": step, "train_eval_loss": loss - 0.1, **figures}) + "\n")
            file.write(json.dumps({"step": step + 1, "train_loss": loss}) + "\n")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_run(tmp_path / "bard", LOSSES)


def front(text: str) -> dict[str, Any]:
    _, matter, _ = text.split("---\n", 2)
    return dict(yaml.safe_load(matter))


def body(text: str) -> str:
    return text.split("---\n", 2)[2]


def test_the_front_matter_is_what_the_hub_reads(folder: Path) -> None:
    matter = front(card.model_card(folder, "apache-2.0"))
    assert matter["license"] == "apache-2.0"
    assert matter["library_name"] == "transformers"
    assert matter["pipeline_tag"] == "text-generation"
    assert "gpt2" in matter["tags"]
    (entry,) = matter["model-index"]
    assert entry["name"] == "bard"
    (result,) = entry["results"]
    assert {metric["type"]: metric["value"] for metric in result["metrics"]} == {
        "loss": 2.5,
        "perplexity": round(2.718**2.5, 4),
        "bits_per_character": round(2.5 / 0.693, 4),
    }


def test_the_licence_is_the_recipes_unless_another_is_named(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "bard", LOSSES, license="cc-by-4.0")
    assert front(card.model_card(folder))["license"] == "cc-by-4.0"
    assert front(card.model_card(folder, "mit"))["license"] == "mit"


def test_huggingface_hub_reads_the_figures_back(folder: Path) -> None:
    from huggingface_hub import ModelCard

    read = ModelCard(card.model_card(folder))
    assert {(result.metric_type, result.metric_value) for result in read.data.eval_results} >= {("loss", 2.5)}
    assert {result.dataset_name for result in read.data.eval_results} == {"shakespeare"}


def test_the_body_has_the_shape_the_figures_and_the_recipe(folder: Path) -> None:
    text = body(card.model_card(folder))
    parameters = 12 * 2 * 16**2 + 13 * 2 * 16 + 2 * 16 + 65 * 16 + 32 * 16
    assert f"{parameters:,} parameters" in text
    assert "| **20** | 2,560 | **2.4000** | **2.5000** |" in text  # the best row is marked; 4 x 32 tokens a step
    assert "| 30 | 3,840 | 2.6500 | 2.7500 |" in text
    recipe = text.split("```yaml\n")[1].split("```")[0]
    written = yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))
    assert yaml.safe_load(recipe) == {key: value for key, value in written.items() if key != "out_dir"}
    assert 'pipeline("text-generation"' in text
    assert "loss.png" not in text


def test_the_code_in_it_is_code(folder: Path) -> None:
    compile(body(card.model_card(folder)).split("```python\n")[1].split("```")[0], "card", "exec")


def test_picture_and_sample_are_shown_where_there_are_some(folder: Path) -> None:
    (folder / "loss.png").write_bytes(b"")
    lines = [{"step": 10, "text": "old"}, {"step": 20, "text": "\nBAPTISTA: ```who```?\n"}]
    torn = '{"step": 30, "te'
    (folder / "samples.jsonl").write_text("\n".join([*map(json.dumps, lines), torn]), encoding="utf-8")
    text = card.model_card(folder)
    assert "![Loss over the steps](loss.png)" in text
    assert "````text\nBAPTISTA: ```who```?\n````" in text
    assert "step 20" in text


def test_a_long_record_shows_first_last_and_best(tmp_path: Path) -> None:
    losses = {step: 5 - step / 1000 + (step > 500) for step in range(0, 1001, 7)}
    text = body(card.model_card(write_run(tmp_path / "long", losses)))
    rows = [line for line in text.splitlines() if line.startswith("| ")][1:]
    assert len(rows) <= card.MAX_ROWS + 1
    best = min(losses, key=lambda step: losses[step])
    steps = [row.split("|")[1].strip() for row in rows]
    assert (steps[0], steps[-1]) == ("0", str(max(losses)))
    assert f"**{best}**" in steps


def test_the_figures_of_a_branch_are_its_own(folder: Path) -> None:
    """The copied record ends lower than the branch, but the weights are the branch's."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    lines[0] |= {"branched": 1.7e9, "branch_step": 25, "accuracy/x": 0.75}
    lines[-1]["accuracy/y"] = 0.5
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = card.model_card(folder)
    assert front(text)["model-index"][0]["results"][0]["metrics"][0]["value"] == 2.75
    assert "| **30** |" in text
    assert "| 20 |" in text
    assert ("accuracy/x" in text, "accuracy/y" in text) == (False, True), "the trunk's tasks are not measured on it"


def test_a_diverged_evaluation_is_never_the_best(tmp_path: Path) -> None:
    matter = front(card.model_card(write_run(tmp_path / "nan", {0: 4.0, 10: float("nan")})))
    assert matter["model-index"][0]["results"][0]["metrics"][0]["value"] == 4.0


def test_hub_names_are_linked_and_paths_are_not(tmp_path: Path) -> None:
    matter = front(card.model_card(write_run(tmp_path / "hub", LOSSES, dataset="ada/poems", init_from="ada/base")))
    assert (matter["datasets"], matter["base_model"]) == (["ada/poems"], "ada/base")
    text = card.model_card(write_run(tmp_path / "local", LOSSES, dataset="/home/ada/secret/poems.txt"))
    assert "datasets" not in front(text)
    assert "**poems.txt**" in text


def test_an_imported_model_has_a_card_too(folder: Path) -> None:
    for name in ("recipe.yaml", "metrics.jsonl"):
        (folder / name).unlink()
    text = card.model_card(folder)
    assert not {"model-index", "license"} & front(text).keys(), "its licence is its author's to state"
    assert "## Figures" not in text
    assert "## How to use it" in text


def test_it_is_written_in_one_step(folder: Path) -> None:
    path = card.write(folder, "mit")
    assert path.read_text(encoding="utf-8") == card.model_card(folder, "mit")
    assert not list(folder.glob(".*"))


@pytest.mark.parametrize("damage", [None, "{", '{"n_layer": "many"}'])
def test_a_folder_without_a_model_is_one_message(folder: Path, damage: str | None) -> None:
    (folder / "config.json").unlink()
    if damage:
        (folder / "config.json").write_text(damage, encoding="utf-8")
    with pytest.raises(InputError, match=r"config\.json"):
        card.model_card(folder)


def test_it_imports_neither_torch_nor_transformers() -> None:
    code = "import sys, hfgpt.runs.card; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_card_shows_the_segments_and_never_contradicts_the_record(folder: Path) -> None:
    assert "segment" not in card.model_card(folder)
    lines = [{"step": 0, "recipe": {"max_iters": 20, "learning_rate": 1e-3}},
             {"step": 20, "recipe": {"max_iters": 40, "learning_rate": 1e-4}}]  # fmt: skip
    (folder / "segments.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    text = card.model_card(folder)
    assert "From step 20 on: `max_iters 20 → 40, learning_rate 0.001 → 0.0001`" in text
    recipe = (folder / "recipe.yaml").read_text(encoding="utf-8")
    (folder / "recipe.yaml").write_text(re.sub("max_iters: 40", "max_iters: 20", recipe), encoding="utf-8")
    assert "The record continues to step 31, beyond this recipe's max_iters." in card.model_card(folder)


NASTY = "<img src=x onerror=alert(1)> `x` ``` **b** [a](javascript:alert(1)) | #"


def test_names_and_samples_from_outside_are_shown_and_not_obeyed(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run <b>", LOSSES, dataset=f"data/{NASTY}.txt", tokenizer=f"t/{NASTY}")
    (folder / "samples.jsonl").write_text(json.dumps({"step": 20, "text": f"````\n{NASTY}\x1b[2J"}), encoding="utf-8")
    text = body(card.model_card(folder))
    assert "\x1b" not in text
    outside, fence = [], ""
    for line in text.splitlines():
        mark = line[: len(line) - len(line.lstrip("`"))]
        if len(mark) >= 3 and (not fence or mark == fence == line):
            fence = "" if fence else mark
        elif not fence:
            outside.append(line)
    assert not fence, "every block of code ends"
    shown = "\n".join(line for line in outside if "tokenizer" not in line)
    assert "<img" not in shown
    assert "&lt;img" in shown
    assert "](javascript" not in shown
    assert "**b**" not in shown


def test_no_path_of_this_machine_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/home/lovelace/hfgpt/scripts/train.py"])
    secret = {
        "dataset": "/home/lovelace/secret/poems.txt",
        "tokenizer": "~lovelace/secret/tok",
        "init_from": "C:\\Users\\lovelace\\gpt",
    }
    text = card.model_card(write_run(tmp_path / "local", LOSSES, out_dir="/home/lovelace/out", **secret))
    for word in ("/home", "lovelace", "secret", "Users", "out_dir"):
        assert word not in text
    for name in ("poems.txt", "tok", "gpt"):
        assert name in text


@pytest.mark.parametrize(("source", "shown"), [
    ("data/poems.txt", "data/poems.txt"), ("ada/poems", "ada/poems"), ("shakespeare", "shakespeare"),
    ("/home/ada/poems", "poems"), ("/", "data"), ("../ada/poems.txt", "poems.txt"), ("data/../../ada/x", "x"),
    ("~/x.txt", "x.txt"), ("C:\\ada\\x.txt", "x.txt"), ("\\\\server\\ada\\x.txt", "x.txt"), ("d:\\x.txt", "x.txt"),
])  # fmt: skip
def test_a_name_for_a_path(source: str, shown: str) -> None:
    assert public.name(source) == shown


def test_a_public_recipe_keeps_its_comments_and_loses_its_paths() -> None:
    text = "# mine\ndataset:\n- name: /home/ada/a.txt\n  weight: 1\n- {name: b, weight: 2}\n\n"
    text += "n_layer: 2  # two\nout_dir: /x/y\neval_tasks: tasks/two.jsonl, /home/ada/one.jsonl,~/three.jsonl\n"
    text += "val_datasets: wiki=/home/ada/wiki.txt, news.txt\n"
    recipe = public.recipe(text)
    assert yaml.safe_load(recipe) == {
        "dataset": [{"name": "a.txt", "weight": 1}, {"name": "b", "weight": 2}],
        "n_layer": 2,
        "eval_tasks": "tasks/two.jsonl,one.jsonl,three.jsonl",
        "val_datasets": "wiki=wiki.txt,news.txt",
    }
    assert recipe.startswith("# mine\n")
    assert "n_layer: 2  # two" in recipe
    assert public.hidden(text) == {
        "/home/ada/a.txt": "a.txt",
        "/home/ada/one.jsonl": "one.jsonl",
        "~/three.jsonl": "three.jsonl",
        "wiki=/home/ada/wiki.txt": "wiki=wiki.txt",
        "/x/y": "y",
    }


def test_a_derived_path_is_not_public_either(tmp_path: Path) -> None:
    """A pretrained model brings its tokenizer, which is a comment in the run's recipe."""
    (tmp_path / "lovelace").mkdir()
    config = configs.build({"init_from": str(tmp_path / "lovelace"), "block_size": 8}, "tiny")
    text = configs.to_yaml(config, in_folder=True)
    assert f"# tokenizer: {tmp_path}/lovelace" in text
    shown = public.recipe(text.replace("lovelace", "its name"))
    assert str(tmp_path) not in shown
    assert "# tokenizer: its name  (derived)\n" in shown


def test_the_name_of_a_text_cannot_turn_the_cards_direction(tmp_path: Path) -> None:
    text = card.model_card(write_run(tmp_path / "local", LOSSES, dataset="a\u202eb.txt"))
    assert "\u202e" not in text.split("## ")[0]


def test_a_mix_keeps_its_weights_and_loses_its_paths(tmp_path: Path) -> None:
    """As a list, and as an argument of a command line; two corpora that differ only in their folders stay two."""
    mix = [{"name": "/home/ada/x.txt", "weight": 1}, {"name": "/home/bob/x.txt", "weight": 2}]
    shown = [{"name": "x.txt", "weight": 1}, {"name": "x.txt (2)", "weight": 2}]
    for written in (mix, json.dumps(mix)):
        text = public.recipe(yaml.safe_dump({"dataset": written, "n_layer": 2}))
        assert configs.build(yaml.safe_load(text), "tiny").dataset == json.dumps(shown)
    folder = write_run(tmp_path / "mixed", LOSSES, dataset=mix)
    written = card.model_card(folder)
    assert not re.search("/home|bob", written)
    assert front(written)["model-index"][0]["results"][0]["dataset"]["name"] == "x.txt"
    assert public.hidden((folder / "recipe.yaml").read_text())["/home/bob/x.txt"] == "x.txt"


@pytest.mark.parametrize("change", [
    {"n_layer": 10**7 * 1000}, {"n_head": 0}, {"n_layer": "x"}, {"vocab_size": 1e400}, {"n_embd": [1]},
    {"n_positions": -1},
])  # fmt: skip
def test_a_hostile_config_is_one_message(folder: Path, change: dict[str, Any]) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(InputError):
        card.model_card(folder)


def test_a_config_nested_without_end_is_one_message(folder: Path) -> None:
    (folder / "config.json").write_text("[" * 100_000)
    with pytest.raises(InputError, match=r"config\.json"):
        card.model_card(folder)
