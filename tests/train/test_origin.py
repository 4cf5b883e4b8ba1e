"""A run that resumes from the Hub, and a new run that continues from a checkpoint."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import hub_server
import pytest
import yaml
from safetensors.torch import load_file
from survival import differences, do_train, figures
from warm_python import warm_python

from hfgpt.base.errors import InputError
from hfgpt.base.lock import FolderLock
from hfgpt.commands import train
from hfgpt.runs import metrics, segments
from hfgpt.runs.facts import Facts
from hfgpt.share import hub
from hfgpt.train import checkpoint, origin

LONG = {"dropout": 0.2, "max_iters": 24, "lr_decay_iters": 24, "save_total_limit": 9}


def test_a_branch_with_the_same_recipe_is_the_same_run(tiny: dict[str, Any], tmp_path: Path) -> None:
    """It starts with the checkpoint's weights, averages, generators and data. The other run does not change."""
    trunk = do_train(tiny | LONG)
    before = {file: file.read_bytes() for file in trunk.rglob("*") if file.is_file()}
    branch = do_train(tiny | LONG | {"out_dir": str(tmp_path / "branch")}, branch_from=trunk / "checkpoint-8")
    assert figures(branch) == figures(trunk)
    assert checkpoint.steps(branch) == [24, 20, 16, 12, 8]
    for name in ("model.safetensors", "optimizer.safetensors"):
        ours, others = (load_file(path / "checkpoint-24" / name) for path in (branch, trunk))
        assert all((ours[key] == others[key]).all() for key in others)
    assert {file: file.read_bytes() for file in trunk.rglob("*") if file.is_file()} == before


def test_the_card_of_a_branch_shows_the_loss_of_its_own_model(tiny: dict[str, Any], tmp_path: Path) -> None:
    """Its trunk ended lower, and was evaluated where it stopped, which the branch does not repeat."""
    trunk = do_train(tiny | {"out_dir": str(tmp_path / "trunk"), "max_iters": 6, "eval_interval": 4})
    line = metrics.read(trunk / "metrics.jsonl")[-1]
    assert (line["step"], line["val_loss"] < 9) == (6, True)
    metrics.MetricsWriter(trunk / "metrics.jsonl").write(6, val_loss=0.5)
    longer = {"out_dir": str(tmp_path / "branch"), "max_iters": 10, "eval_interval": 4}
    branch = do_train(tiny | longer, branch_from=trunk / "checkpoint-6")
    progress = checkpoint.read(branch / "checkpoint-10").state["progress"]
    best = metrics.best(metrics.read(branch / "metrics.jsonl"))
    assert best is not None
    assert (best["step"], best["val_loss"]) == (progress["best_step"], progress["best_val_loss"])
    assert f"value: {best['val_loss']:.4f}".rstrip("0") in (branch / "README.md").read_text()


def test_a_branch_decays_from_its_checkpoint(tiny: dict[str, Any], tmp_path: Path) -> None:
    trunk = do_train(tiny | LONG | {"lr_schedule": "constant", "learning_rate": 1e-3})
    decay = {"lr_schedule": "hold_cosine", "lr_decay_iters": 12, "max_iters": 16, "learning_rate": 1e-3}
    branch = do_train(tiny | LONG | decay | {"out_dir": str(tmp_path / "b")}, branch_from=trunk / "checkpoint-12")
    rates = metrics.series(metrics.read(branch / "metrics.jsonl"), "learning_rate")[1]
    assert rates[11] == 1e-3
    assert rates[15] == pytest.approx(1e-4)
    assert [(part.step, part.recipe["lr_schedule"]) for part in segments.read(branch)] == [
        (0, "constant"),
        (12, "hold_cosine"),
    ]
    assert (branch / "model.safetensors").exists()
    progress = checkpoint.read(branch / "checkpoint-16").state["progress"]
    assert progress["best_step"] in (12, 16), "its own best, not the trunk's"


def test_a_branch_of_wsd_ends_with_the_bits_of_the_shorter_run(tiny: dict[str, Any], tmp_path: Path) -> None:
    """So one run with a stable rate gives models of several lengths for the cost of the decays."""
    wsd = tiny | LONG | {"lr_schedule": "wsd", "warmup_iters": 2, "learning_rate": 1e-2}
    trunk = do_train(wsd | {"lr_decay_iters": 20})
    shorter = wsd | {"max_iters": 16, "lr_decay_iters": 12}
    branch = do_train(shorter | {"out_dir": str(tmp_path / "branch")}, branch_from=trunk / "checkpoint-12")
    assert differences(branch, do_train(shorter | {"out_dir": str(tmp_path / "whole")})) == []


def test_a_branch_begins_with_the_recipe_that_made_its_checkpoint(
    tiny: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not with the trunk's last one. What followed from other values there follows from the branch's own."""
    wsd = tiny | LONG | {"lr_schedule": "wsd", "lr_decay_iters": None, "dropout": 0.0, "beta2": 0.99}
    trunk = do_train(wsd | {"max_iters": 8})
    do_train(wsd | {"dropout": 0.3, "beta2": 0.9, "max_iters": 16}, resume=True)

    def recipe_of(*words: str) -> dict[str, Any]:
        capsys.readouterr()
        train.main([*words, "--print_config"])
        loaded: dict[str, Any] = yaml.safe_load(capsys.readouterr().out)
        return loaded

    monkeypatch.chdir(tmp_path)
    for words in ([], ["run"], ["run/recipe.yaml"]):
        recipe = recipe_of(*words, "--branch_from=run/checkpoint-8", "--max_iters=12", "--dropout=0.1")
        assert (recipe["beta2"], recipe["dropout"], recipe["max_iters"]) == (0.99, 0.1, 12)
        assert recipe["out_dir"] == "run-from-8", "as typed"
        assert "lr_decay_iters" not in recipe, "it follows max_iters"
    later = recipe_of("--branch_from=run/checkpoint-12")
    assert (later["beta2"], later["dropout"], later["max_iters"]) == (0.9, 0.3, 16)
    monkeypatch.chdir(trunk)
    assert recipe_of("--branch_from=checkpoint-8")["out_dir"] == "../run-from-8"


def test_a_branch_on_another_text_compares_no_losses_of_the_trunk(
    tiny: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trunk = do_train(tiny | LONG | {"max_iters": 8})
    lines = Path(tiny["dataset"]).read_text().splitlines(keepends=True)
    (tmp_path / "other.txt").write_text("".join(lines[100:]))
    other = tiny | LONG | {"dataset": str(tmp_path / "other.txt"), "out_dir": str(tmp_path / "branch")}
    other |= {"max_iters": 16, "tokenizer": str(trunk)}
    capsys.readouterr()
    branch = do_train(other, branch_from=trunk / "checkpoint-8")
    said = capsys.readouterr().out
    first = hub.first_line(branch)
    records = metrics.read(branch / "metrics.jsonl")
    steps, losses = metrics.series(records, "val_loss")
    assert steps == [8, 12, 16], "not those of the trunk"
    assert f"validation loss {losses[0]:.4f} before" in said
    assert "'before' is step 8, the first evaluation on this text" in said
    bound = Facts(records, None).pairs
    assert bound is not None
    assert bound != Facts(metrics.read(trunk / "metrics.jsonl"), None).pairs, "of the branch's own text"
    do_train(other | {"max_iters": 20}, resume=True)
    assert hub.first_line(branch) == first, "it stays the same run"


def test_what_is_not_a_branch(tiny: dict[str, Any], tmp_path: Path) -> None:
    trunk = do_train(tiny | LONG)
    with pytest.raises(InputError, match="is of the run in out_dir"):
        do_train(tiny | LONG, branch_from=trunk / "checkpoint-8", overwrite=True)
    elsewhere = tiny | LONG | {"out_dir": str(tmp_path / "branch")}
    with pytest.raises(
        InputError, match=rf"of another run:(?s:.*)n_embd(?s:.*)a branch keeps these, from {trunk}/recipe"
    ):
        do_train(elsewhere | {"n_embd": 32}, branch_from=trunk / "checkpoint-8")
    (trunk / "checkpoint-8" / "COMPLETE").unlink()
    with pytest.raises(InputError, match=r"branch_from: .* is incomplete"):
        do_train(elsewhere, branch_from=trunk / "checkpoint-8")
    assert not (tmp_path / "branch").exists()
    for text in (str(trunk), str(trunk / "checkpoint-5")):
        with pytest.raises(
            ValueError, match=rf"must be a checkpoint of a run; {trunk} has checkpoint-\d+, checkpoint-\d+"
        ):
            origin.branch(text)
    with pytest.raises(ValueError, match="such as out/standard/checkpoint-600"):
        origin.branch("checkpoint-x")


def test_a_text_that_is_not_here_or_another_is_described(tiny: dict[str, Any], tmp_path: Path) -> None:
    """A resume elsewhere says which text it needs; another one is refused, except for a branch that names it."""
    trunk = do_train(tiny | LONG | {"max_iters": 8})
    size = r"'tiny.txt' \([\d,]+ \+ [\d,]+ tokens, fingerprint [0-9a-f]{12}\)"
    for gone in ("gone.txt", str(tmp_path / "gone.txt")):
        with pytest.raises(InputError, match=f"^dataset = '.*gone.txt': no such file or folder\n.*--dataset: {size}$"):
            do_train(tiny | LONG | {"dataset": gone}, resume=True)
    lines = Path(tiny["dataset"]).read_text().splitlines(keepends=True)
    (tmp_path / "sorted.txt").write_text("".join(sorted(lines)))
    other = tiny | LONG | {"dataset": str(tmp_path / "sorted.txt")}
    with pytest.raises(InputError, match=f"was trained on {size}; .* is 'sorted.txt' (?s:.*)--branch_from="):
        do_train(other, resume=True)
    branch = do_train(other | {"out_dir": str(tmp_path / "branch")}, branch_from=trunk / "checkpoint-8")
    assert checkpoint.steps(branch)[0] == 24
    assert "It is a branch: its first 8 steps are those of another run" in (branch / "README.md").read_text("utf-8")
    assert "It is a branch" not in (trunk / "README.md").read_text("utf-8")


def test_a_folder_that_is_not_here_is_not_sought_on_the_hub(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In another working folder, `data/plays` is the name of a dataset on the Hub, which may even exist."""
    (tmp_path / "data" / "plays").mkdir(parents=True)
    (tmp_path / "data" / "plays" / "tiny.txt").write_text(Path(tiny["dataset"]).read_text())
    monkeypatch.chdir(tmp_path)
    recipe = tiny | {"dataset": "data/plays", "out_dir": str(tmp_path / "run")}
    do_train(recipe | {"max_iters": 8})
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    missing = f"{tmp_path}/elsewhere/data/plays does not exist"
    with pytest.raises(InputError, match=rf"^dataset = 'data/plays': .* began; {missing}\n.*--dataset: 'data/plays' "):
        do_train(recipe | {"max_iters": 16}, resume=True)


@pytest.mark.parametrize(
    "text", ["", "hf://", "hf://user", "user/run", "hf://user/run@", "hf://a/b/c", "hf://../x", "https://x/y/z"]
)
def test_what_is_not_a_run_on_the_hub(text: str) -> None:
    with pytest.raises(ValueError, match="must be hf://user/run"):
        origin.hub_run(text)


def test_an_earlier_checkpoint_is_a_branch() -> None:
    with pytest.raises(ValueError, match=r"--branch_from=out/trunk/checkpoint-20$"):
        origin.hub_run("out/trunk/checkpoint-20")


def test_names_of_runs_on_the_hub() -> None:
    assert origin.hub_run("hf://ada/bard") == origin.HubRun("ada/bard")
    assert origin.hub_run("hf://ada/bard@refs/pr/1") == origin.HubRun("ada/bard", "refs/pr/1")


@pytest.fixture
def server() -> Iterator[hub_server.Hub]:
    with hub_server.running() as server:
        yield server


PUSHED = {"push_to_hub": "checkpoints", "hub_model_id": "ada/trunk"}


@pytest.mark.parametrize("name", ["ada/trunk", "trunk", "Ada/Trunk"])
def test_a_branch_has_a_repository_of_its_own(tiny: dict[str, Any], tmp_path: Path, name: str) -> None:
    """The trunk's recipe, with which a branch begins, names the trunk's repository."""
    trunk = do_train(tiny | LONG)
    recipe = (trunk / "recipe.yaml").read_text()
    (trunk / "recipe.yaml").write_text(recipe.replace("hub_model_id: null", "hub_model_id: ada/trunk"))
    branch = tmp_path / "branch"
    values = tiny | LONG | PUSHED | {"out_dir": str(branch), "hub_model_id": name}
    with pytest.raises(InputError, match=r"hub_model_id = '.*': is the repository .* --hub_model_id=run-from-8"):
        do_train(values, branch_from=trunk / "checkpoint-8")
    assert not branch.exists()


def test_a_branch_is_another_run_than_its_trunk(tiny: dict[str, Any], tmp_path: Path) -> None:
    """A record's first line tells runs apart: neither is pushed over the other, or downloaded into its folder."""
    trunk = do_train(tiny | LONG)
    values = tiny | LONG | {"out_dir": str(tmp_path / "branch")}
    branch = do_train(values | {"max_iters": 12}, branch_from=trunk / "checkpoint-8")
    first = hub.first_line(branch)
    assert first != hub.first_line(trunk)
    do_train(values, resume=True)
    assert hub.first_line(branch) == first


@pytest.fixture
def online(server: hub_server.Hub, run_script: Any) -> Iterator[Any]:
    """run_script with the Hub on the loopback, in a Python that has loaded the libraries with its address."""
    env = {"HF_ENDPOINT": server.url, "HF_TOKEN": hub_server.TOKEN, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
    env["NO_PROXY"] = "127.0.0.1"
    with warm_python(**env) as python:
        yield partial(run_script, env=env, python=python)


@pytest.mark.e2e
def test_a_run_moves_over_the_hub_and_back(
    tiny: dict[str, Any], write_recipe: Callable[..., Path], run_script: Any, online: Any, tmp_path: Path
) -> None:
    """Two machines take turns; the run ends with the bits of one that stayed on one machine."""
    recipe, whole = write_recipe(tiny | LONG), tmp_path / "whole"
    assert run_script("train.py", recipe, f"--out_dir={whole}").returncode == 0

    def command(script: str, *words: object) -> str:
        done = online(script, *words)
        assert done.returncode == 0, done.stderr
        return str(done.stdout)

    # A repository does not contain the corpus's path on the machine that pushed it.
    text = f"--dataset={tiny['dataset']}"
    first, second = tmp_path / "first" / "bard", tmp_path / "second" / "bard"
    command("train.py", recipe, f"--out_dir={first}", "--max_iters=8", "--lr_decay_iters=24")
    (first / "notes.txt").write_text("mine")
    command("push.py", first, "ada/bard", "--include_checkpoints")
    said = command(
        "train.py", "--resume=hf://ada/bard", f"--out_dir={second}", "--max_iters=16", "--lr_decay_iters=24", text
    )
    assert "going on after step 8" in said
    command("push.py", second, "ada/bard", "--include_checkpoints")
    said = command("train.py", "--resume=hf://ada/bard@main", f"--out_dir={first}", "--max_iters=24", text)
    assert "going on after step 16" in said
    assert figures(first) == figures(whole)
    assert differences(first, whole) == []
    assert (first / "notes.txt").read_text() == "mine"
    assert [path.name for path in first.parent.iterdir()] == ["bard"], "nothing is left beside it"

    # The local folder may be ahead of the Hub; if it is in use, or another run, it is left alone.
    assert "24 of 24 steps are done" in command("train.py", "--resume=hf://ada/bard", f"--out_dir={first}", text)
    shutil.rmtree(second)
    command("train.py", recipe, f"--out_dir={second}", "--seed=2", "--max_iters=4")
    done = online("train.py", "--resume=hf://ada/bard", f"--out_dir={second}")
    assert done.returncode == 2
    assert "holds another run than ada/bard" in done.stderr
    shutil.rmtree(first / "checkpoint-24")
    shutil.rmtree(first / "checkpoint-16")
    shutil.rmtree(first / "checkpoint-20")
    with FolderLock(first):
        done = online("train.py", "--resume=hf://ada/bard", f"--out_dir={first}", text)
    assert done.returncode == 2
    assert "is in use by process" in done.stderr
