"""The documents' paths exist and their commands work.

Every command of README.md, CONTRIBUTING.md and docs/ is run here, or NOT_HERE gives the reason why not. Trainings are
cut to a few steps of a tiny model. test_ecosystem.py runs the commands of docs/ecosystem.md.
"""

from __future__ import annotations

import ast
import json
import pkgutil
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import workshop
from conftest import ROOT
from share import test_nanogpt
from workshop import Workshop

from hfgpt import config
from hfgpt.commands.choice import COMMANDS as INSTALLED
from hfgpt.commands.choice import SHARED
from hfgpt.config import RENAMED, Config
from hfgpt.model.schedule import learning_rate

DOCS = ROOT / "docs"
ENGLISH = sorted(path.relative_to(DOCS / "en") for path in (DOCS / "en").rglob("*.md"))
# Each English page and its Chinese twin.
TWINS = {"README.md": "README.zh-CN.md"} | {
    f"docs/en/{page}": f"docs/zh/{page}" for page in map(Path.as_posix, ENGLISH)
}
ALONE = ("CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "benchmarks/README.md")
PAGES = [name for name in (*ALONE, *TWINS, *TWINS.values()) if (ROOT / name).exists()]
TEXTS = {name: (ROOT / name).read_text("utf-8") for name in PAGES}
COMMANDS = {name: workshop.commands(text) for name, text in TEXTS.items()}
EVERY_COMMAND = sorted({command for commands in COMMANDS.values() for command in commands})
# A Chinese page has the commands of its English twin. test_course.py runs the course, test_ecosystem.py that page.
TYPED = [name for name in TWINS if COMMANDS[name] and "/course/" not in name and name != "docs/en/ecosystem.md"] + [
    "CONTRIBUTING.md"
]


EIGHT = "needs eight GPUs; test_end_to_end.py cuts the recipe for a CPU"
TWO_HOSTS = "needs two hosts; test_reliability_long.py makes them of network namespaces"
GRID = "three real trainings; test_sweep.py reads the grid, and a grid is run from the same page"
TESTS = "the tests themselves"
PAGE = "listens until it is stopped; test_server.py starts it"
HUB = "needs the Hub and an account; test_hub.py pushes to a Hub on the loopback and pulls from it"
PART = "a part of a command, or the name of one"
MEASURED = "minutes of training; test_measured.py compares what it left with what the page says"

NOT_HERE = {
    "pip install -e .": "installs an environment",
    "pip install -e '.[playground]'": "installs an environment",
    "python scripts/playground.py": PAGE,
    "python scripts/playground.py out --recipe recipes/learning.yaml --lang zh --port 8000": PAGE,
    "pip install -e '.[elsewhere]'": "installs an environment",
    "make test": TESTS,
    "make test-long": TESTS,
    "make unit": TESTS,
    "make coverage": TESTS,
    "make check": "what continuous integration runs beside the tests",
    "make docs": "builds the site, in continuous integration",
    "make pages": "writes into the checkout; test_course.py and test_architecture.py compare what it writes",
    "make format": "changes the checkout",
    "python benchmarks/long_run.py": "takes 13 minutes",
    "accelerate launch --config_file accelerate_configs/multi_gpu.yaml scripts/train.py recipes/production.yaml": EIGHT,
    "accelerate launch --config_file accelerate_configs/fsdp2.yaml scripts/train.py recipes/production.yaml": EIGHT,
    "accelerate launch --config_file accelerate_configs/multi_gpu.yaml --num_processes 2 scripts/train.py "
    "recipes/production.yaml": "needs two GPUs",
    "accelerate launch --quiet --config_file accelerate_configs/single_gpu.yaml scripts/train.py "
    "recipes/standard.yaml": "needs a GPU",
    "accelerate launch --config_file accelerate_configs/multi_node.yaml --machine_rank 0 --main_process_ip 10.0.0.1 "
    "scripts/train.py recipes/production.yaml": TWO_HOSTS,
    "accelerate launch --config_file accelerate_configs/multi_node.yaml --machine_rank 1 --main_process_ip 10.0.0.1 "
    "scripts/train.py recipes/production.yaml": TWO_HOSTS,
    "python scripts/sweep.py recipes/experiments/batch_size.yaml": GRID,
    "python scripts/sweep.py recipes/experiments/learning_rate.yaml": GRID,
    "python scripts/sweep.py recipes/experiments/model_size.yaml": GRID,
    "python scripts/push.py out/learning user/shakespeare --include_checkpoints": HUB,
    "python scripts/pull.py user/shakespeare out/pulled": HUB,
    "hfgpt train --resume=hf://user/run": "needs the Hub; test_origin.py types it with a Hub on the loopback",
    **{command: GRID for command in COMMANDS["docs/en/experiments.md"]},
    "make gpu": "needs a GPU; test_gpu.py tries the command on a CPU",
    "make kernels": "needs a CUDA build of torch",
    "make fuzz FUZZ_MINUTES=60": "an hour",
    "python benchmarks/reference_curves.py": MEASURED,
    "python benchmarks/reference_curves.py standard finetune": "needs a GPU",
    "python benchmarks/sweeps.py aa": MEASURED,
    "python benchmarks/sweeps.py options": MEASURED,
    "git clone": PART,
    "hfgpt plan": PART,
    "hfgpt train": PART,
    "python scripts/plan.py": PART,
    "python scripts/train.py": PART,
    "python scripts/diagnose.py": PART,
    "python scripts/compare.py": PART,
    "python scripts/evaluate.py": PART,
    "accelerate launch --num_processes": PART,
    "accelerate launch --max_restarts N": PART,
    "accelerate launch --config_file accelerate_configs/fsdp2.yaml": PART,
}


def run(place: Workshop, command: str) -> str:
    """Run a command, shortened if it trains.

    `accelerate launch` with a configuration starts the launcher. Without one it is the plain command, on one process.
    """
    words = shlex.split(command)
    if words[0] == "make":  # the command that make would run in its environment
        lines = place.shell("make", "--no-print-directory", "-n", "-o", ".venv/.ready", *words[1:]).splitlines()
        words = shlex.split(lines[0])  # the rest tells how to go on
        words[0] = Path(words[0]).name
    if words[:2] == ["accelerate", "launch"] and "--config_file" not in words:
        words = ["python", *words[words.index("scripts/train.py") :]]
    return place.type(words)


def prepare_coming_from(place: Workshop) -> None:
    """Write the files of a nanoGPT user: a configuration, prepared data, and a checkpoint with its characters."""
    (place.folder / "out").mkdir()
    torch.save(
        test_nanogpt.checkpoint() | {"config": {"dataset": "shakespeare_char"}}, place.folder / "out" / "ckpt.pt"
    )
    data = place.folder / "data" / "shakespeare_char"
    test_nanogpt.write_meta(data / "meta.pkl")
    for name in ("train", "val"):
        np.resize(np.arange(20, dtype=np.uint16), 2000).tofile(data / f"{name}.bin")
    (place.folder / "config").mkdir()
    (place.folder / "config" / "train_shakespeare_char.py").write_text(
        "out_dir = 'out-shakespeare-char'\ndataset = 'shakespeare_char'\nbatch_size = 64\n", encoding="utf-8"
    )


@pytest.mark.e2e
@pytest.mark.parametrize("page", TYPED)
def test_what_a_page_has_one_type_works(page: str, place: Workshop) -> None:
    if page == "docs/en/coming-from.md":
        prepare_coming_from(place)
    if page in ("README.md", "docs/en/planning.md"):
        shutil.copy(ROOT / "README.md", place.folder / "my_text.txt")
    if page == "docs/en/going-on.md":
        question = {"context": "To be, or not to", "choices": [" be", " eat"], "answer": 0}
        (place.folder / "questions.jsonl").write_text(json.dumps(question) + "\n", encoding="utf-8")
        (place.folder / "notes.txt").write_text("What is asked here is known elsewhere.\n" * 50, encoding="utf-8")
    if page == "docs/en/parameters.md":  # its command writes the page itself
        (place.folder / "docs").unlink()
    for command in dict.fromkeys(COMMANDS[page]):
        if command not in NOT_HERE:
            try:
                run(place, command)
            except AssertionError as error:
                raise AssertionError(f"{page}: {command}\n{error}") from None
    for program in workshop.blocks(TEXTS[page], "python"):
        place.program(program)


@pytest.mark.parametrize("page", ["docs/en/going-on.md", "docs/zh/going-on.md"])
def test_the_change_of_a_run_is_that_of_its_commands(page: str) -> None:
    [*typed] = (shlex.split(command) for command in COMMANDS[page] if "--out_dir=out/trunk" in command)
    before, now = (config.load(ROOT / words[2], [w for w in words[3:] if w != "--resume"]) for words in typed)
    [block] = [block for block in workshop.blocks(TEXTS[page], "text") if "max_iters" in block]
    told = re.findall(r"(\w+): (\w+) → (\w+)", block)
    assert ("max_iters", str(before.max_iters), str(now.max_iters)) in told
    assert [(key, str(getattr(before, key)), str(getattr(now, key))) for key, *_values in told] == told
    rates = learning_rate(before.max_iters + 1, now), learning_rate(before.max_iters, before)
    for shown in (str(before.max_iters), str(before.max_iters + 1), *(f"{rate:.3g}" for rate in rates)):
        assert re.search(rf"(?<![\d.]){re.escape(shown)}(?![\d.])", block), shown


def test_what_is_not_run_is_documented() -> None:
    assert NOT_HERE.keys() <= set(EVERY_COMMAND)


@pytest.mark.parametrize("page", TEXTS)
def test_links_lead_somewhere(page: str) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", TEXTS[page])
    assert [link for link in links if not (ROOT / page).parent.joinpath(link).exists()] == []


@pytest.mark.parametrize("command", [line for line in EVERY_COMMAND if re.search(r"scripts/|^hfgpt \w", line)])
def test_commands_name_what_exists(command: str) -> None:
    script = re.search(r"scripts/(\w+)\.py|^hfgpt (\w+)", command)
    assert script
    name = script[1] or script[2]
    assert (ROOT / "scripts" / f"{name}.py").is_file() or name in INSTALLED
    for path in re.findall(r"(?:recipes|accelerate_configs)/[\w/]+\.yaml", command):
        assert (ROOT / path).is_file() or f"--write {path}" in command
    code = [ROOT / "hfgpt" / "base" / "command.py", ROOT / "hfgpt" / "commands" / f"{SHARED.get(name, name)}.py"]
    known = "".join(path.read_text("utf-8") for path in code if path.exists())
    for flag in re.findall(r"--([\w-]+)", command[script.end() :]):
        key = flag.replace("-", "_").removeprefix("no_")
        assert key in Config.model_fields or key in RENAMED or f'"{key}"' in known, flag


@pytest.mark.parametrize("page", ["docs/en/reference.md", "docs/zh/reference.md"])
def test_the_reference_names_what_there_is(page: str) -> None:
    names = re.findall(r"^::: (\S+)$", TEXTS[page], re.M)
    assert len(names) > 30
    assert [name for name in names if pkgutil.resolve_name(name) is None] == []


def test_both_trees_have_the_same_pages() -> None:
    assert sorted(path.relative_to(DOCS / "zh") for path in (DOCS / "zh").rglob("*.md")) == ENGLISH


@pytest.mark.parametrize("english", TWINS)
def test_a_chinese_page_mirrors_the_english_one(english: str) -> None:
    ours, twin = TEXTS[english], TEXTS[TWINS[english]]
    for pattern in (r"^#+ ", r"^```\w*", r"^\|", r"!\["):
        assert len(re.findall(pattern, twin, re.M)) == len(re.findall(pattern, ours, re.M)), pattern
    assert COMMANDS[TWINS[english]] == COMMANDS[english]
    assert workshop.blocks(twin, "sh") == workshop.blocks(ours, "sh")
    assert [without_words(block) for block in workshop.blocks(twin, "python")] == [
        without_words(block) for block in workshop.blocks(ours, "python")
    ]
    assert len(re.findall(r"[一-鿿]", twin)) > 50


class _WithoutWords(ast.NodeTransformer):
    """A program's messages are in the page's language."""

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.AST:
        return ast.Tuple([self.visit(part.value) for part in node.values if isinstance(part, ast.FormattedValue)])

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        return ast.Constant("") if isinstance(node.value, str) else node


def without_words(program: str) -> str:
    """Return a program's structure, without texts and comments."""
    return ast.dump(_WithoutWords().visit(ast.parse(program)))
