"""Malicious or broken input is refused with one message, and nothing in it is ever run.

config/test_config.py has thousands of recipes and overrides; here some go through the script. Round trips of any
Unicode text are in data/test_tokenizer.py, nanoGPT's pickles in share/test_nanogpt.py.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import pickle
import runpy
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hub_server
import huggingface_hub
import numpy as np
import pytest
import torch
from config.test_config import DOCUMENTS, WORDS
from huggingface_hub import HfApi
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from hfgpt import config
from hfgpt.base import lock, shell
from hfgpt.base.errors import InputError
from hfgpt.base.files import sha256
from hfgpt.commands import plan as commands
from hfgpt.data import tokenizer
from hfgpt.data.prepare import prepare
from hfgpt.inference import exported as folders
from hfgpt.inference import sampling
from hfgpt.model import gpt2 as model
from hfgpt.playground import trainer as playground
from hfgpt.runs import card, compare, metrics, plots
from hfgpt.share import hub, hub_errors
from hfgpt.sweep import storage
from hfgpt.train import checkpoint
from hfgpt.train import loop as train

ROOT = Path(__file__).parent.parent
ANY_FIXTURE = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self.mark), "w"))


@pytest.fixture
def mark(tmp_path: Path) -> Iterator[Path]:
    """Return the file that the input's code would write; it must not exist."""
    path = tmp_path / "code-was-run"
    yield path
    assert not path.exists()


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory, tiny_text: Path) -> Path:
    """Return a run folder with two checkpoints."""
    folder = tmp_path_factory.mktemp("exported") / "run"
    values = {"dataset": str(tiny_text), "device": "cpu", "n_layer": 1, "n_head": 1, "n_embd": 8, "block_size": 8}
    values |= {"batch_size": 2, "max_iters": 2, "warmup_iters": 1, "eval_interval": 1, "eval_iters": 1, "num_proc": 1}
    assert train.train(config.build(values | {"out_dir": str(folder), "sample_prompt": ""}, "test")) == 0
    return folder


@pytest.fixture
def folder(exported: Path, tmp_path: Path) -> Path:
    """Return a copy of it to corrupt."""
    return Path(shutil.copytree(exported, tmp_path / "run"))


# ------------------------------------------------------------------------------------------------- code in the input


def test_the_payload_would_work(tmp_path: Path) -> None:
    """The control of the tests below."""
    pickle.loads(pickle.dumps(Payload(tmp_path / "mark"))).close()
    assert (tmp_path / "mark").exists()


def pretrained(folder: Path) -> Any:
    """The recipe's way to a pretrained model."""
    return model.build(config.build({"init_from": str(folder), "block_size": 8, "device": "cpu"}, "test"), 1, None)


def test_a_model_folder_with_a_pickle_for_weights(folder: Path, mark: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"transformer.wte.weight": Payload(mark)}, folder / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"holds no model\.safetensors"):
        pretrained(folder)
    with pytest.raises(InputError, match=r"model\.safetensors"):
        folders.load_folder(folder, "cpu")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "training_args.bin", "optimizer.pt", "rng_state.pth"])
def test_a_pickle_beside_the_weights_is_not_opened(folder: Path, mark: Path, name: str) -> None:
    torch.save(Payload(mark), folder / name)
    torch.save(Payload(mark), folder / "checkpoint-2" / name)
    pretrained(folder)
    folders.load_folder(folder, "cpu")
    checkpoint.read(folder / "checkpoint-2")


@pytest.mark.parametrize("name", checkpoint.TENSOR_FILES)
def test_a_checkpoint_of_pickles(folder: Path, mark: Path, name: str) -> None:
    """A safetensors file that is a pickle is refused even if its checksums are right."""
    at = folder / "checkpoint-2"
    torch.save(Payload(mark), at / name)
    state = json.loads((at / "state.json").read_text())
    state["files"][name] = {"bytes": (at / name).stat().st_size, "sha256": sha256(at / name)}
    (at / "state.json").write_text(json.dumps(state))
    (at / "COMPLETE").write_text(sha256(at / "state.json"))
    with pytest.raises(checkpoint.CheckpointError, match="cannot be read"):
        checkpoint.read(at)


def add_code(folder: Path, mark: Path) -> None:
    """Add Python code beside the model, which its configuration asks to run."""
    (folder / "evil.py").write_text(f"open({str(mark)!r}, 'w')\nclass Evil: pass\n")
    for name, entries in (
        ("config.json", {"auto_map": {"AutoModelForCausalLM": "evil.Evil", "AutoConfig": "evil.Evil"}}),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}, "tokenizer_class": "E"}),
    ):
        values = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(values | entries))


def test_a_model_folder_with_code(folder: Path, mark: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not run, and the user is not asked."""
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question was asked"))
    add_code(folder, mark)
    for load in (
        lambda: tokenizer.load(str(folder)),
        lambda: folders.load_folder(folder, "cpu"),
        lambda: pretrained(folder),
    ):
        with contextlib.suppress(InputError):
            load()
    assert "evil" not in sys.modules


def test_a_recipe_with_a_python_tag(tmp_path: Path, mark: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"max_iters: 5\nseed: !!python/object/apply:builtins.open ['{mark}', 'w']\n")
    code, _, told = script(str(recipe))
    assert code == 2
    assert "line 2" in told
    assert "tags (!name) are not read in a recipe" in told


def test_a_recipe_in_a_run_folder_is_no_exception(folder: Path, mark: Path) -> None:
    """A downloaded run folder contains its own recipe, which is read in the same way."""
    (folder / "recipe.yaml").write_text(f"seed: !!python/object/apply:builtins.open ['{mark}', 'w']\n")
    code, _, told = script(str(folder))
    assert code == 2
    assert "line 1" in told


# ------------------------------------------------------------------------------------------ paths that leave a folder


def test_a_repository_whose_paths_leave_the_folder(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(hub_errors, "WAITS", ())
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    huggingface_hub.close_session()  # another test's client remembers that it is offline
    with hub_server.running() as server:
        api = HfApi(endpoint=server.url, token=hub_server.TOKEN)
        files = {path.name: hub_server.Blob(path.read_bytes(), False) for path in exported.iterdir() if path.is_file()}
        repo = server.repos["ada/evil"] = hub_server.Repo(False)
        outside = {"checkpoint-1/../../../outside.json": hub_server.Blob(b"{}", False)}
        repo.commit("main", "files", files | outside, [])
        below = tmp_path / "deep" / "below"
        below.mkdir(parents=True)
        with contextlib.suppress(InputError, hub_errors.HubError):
            hub.pull("ada/evil", below / "pulled", api=api)
    huggingface_hub.close_session()
    assert server.asked("GET", "/models/ada/evil")
    assert not list(tmp_path.rglob("outside.json"))


def test_a_compressed_text_whose_name_leaves_the_folder(tiny: dict[str, Any], tmp_path: Path) -> None:
    """gzip files contain the name of the packed file: nothing is written under that or any other name."""
    inner = tmp_path / "inner"
    inner.mkdir()
    text = Path(tiny["dataset"]).read_bytes()
    with open(inner / "text.txt.gz", "wb") as raw, gzip.GzipFile("../../outside.txt", "wb", fileobj=raw) as packed:
        packed.write(text)
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    made = prepare(config.build(tiny | {"dataset": str(inner / "text.txt.gz")}, "test"), tmp_path / "cache")
    assert len(made.train) + len(made.val) == len(text)
    after = {path for path in tmp_path.rglob("*") if path.is_file() and tmp_path / "cache" not in path.parents}
    assert after == before


# ------------------------------------------------------------------------------------------------------ broken files


@settings(max_examples=150, suppress_health_check=ANY_FIXTURE)
@given(st.data())
def test_any_change_of_a_checkpoint_is_noticed(exported: Path, draw: st.DataObject) -> None:
    """One changed byte, a cut or an addition, in any of its files."""
    at = exported.parent / "spoilt"
    shutil.rmtree(at, ignore_errors=True)
    shutil.copytree(exported / "checkpoint-2", at)
    path = at / draw.draw(st.sampled_from(sorted(file.name for file in at.iterdir())))
    content = bytearray(path.read_bytes())
    place = draw.draw(st.integers(0, len(content) - 1))
    kind = draw.draw(st.sampled_from(["change", "cut", "add"]))
    if kind == "change":
        content[place] ^= draw.draw(st.integers(1, 255))
    elif kind == "cut":
        del content[place:]
    else:
        content[place:place] = draw.draw(st.binary(min_size=1).filter(bytes.strip))
    path.write_bytes(content)
    with pytest.raises(checkpoint.CheckpointError, match=r"checkpoint-|spoilt"):
        checkpoint.read(at)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 99) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)


PROGRESS = {"step": 2, "best_val_loss": 5.0}


@pytest.mark.parametrize("change", [
    {"progress": PROGRESS | {"more": 1}}, {"progress": PROGRESS | {"best_val_loss": "x"}}, {"progress": []},
    {"progress": PROGRESS | {"step": 3}}, {"progress": PROGRESS | {"horizons": ["x"]}}, {"progress": {}},
    {"step": -1, "progress": {"step": -1}}, {"step": "2"}, {"step": 1e300}, {"identity": []}, {"processes": "1"},
    {"data": None}, {"recipe": 5}, {"corpus": []}, {"corpus": {"files": 5}}, {"scaler": "x"},
], ids=str)  # fmt: skip
def test_a_state_that_no_run_writes_is_one_message(folder: Path, change: dict[str, Any]) -> None:
    """Its checksums are right, but no run writes such a state; nothing is written."""
    at = folder / "checkpoint-2"
    state = json.loads((at / "state.json").read_text())
    (at / "state.json").write_text(json.dumps(state | change))
    (at / "COMPLETE").write_text(sha256(at / "state.json"))
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    again = config.load(str(folder), ["--max_iters=4"])
    with pytest.raises(InputError, match=r"state\.json: not the state of a run"):
        train.train(again, resume=True)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@settings(max_examples=200, suppress_health_check=ANY_FIXTURE)
@given(st.dictionaries(st.sampled_from(["identity", "progress", "files", "step", "format", "data"]), JSON))
def test_any_state_of_a_checkpoint(exported: Path, changed: dict[str, Any]) -> None:
    """Its checksums are right, and its state is arbitrary: it is read, or its path is named in the refusal."""
    at = exported.parent / "stated"
    if not at.exists():
        shutil.copytree(exported / "checkpoint-2", at)
    state = json.loads((exported / "checkpoint-2" / "state.json").read_text())
    (at / "state.json").write_text(json.dumps(state | changed))
    (at / "COMPLETE").write_text(sha256(at / "state.json"))
    refused = ""
    try:
        checkpoint.read(at)
    except checkpoint.CheckpointError as error:
        refused = str(error)
    assert not refused or str(at) in refused


@settings(max_examples=200, suppress_health_check=ANY_FIXTURE)
@given(st.binary() | st.lists(JSON.map(json.dumps), max_size=4).map("\n".join).map(str.encode))
def test_any_bytes_as_a_record(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(content)
    refused = ""
    try:
        metrics.read(path)
    except InputError as error:
        refused = str(error)
    assert not refused or f"{path}, line " in refused


GPT2_KEYS = st.sampled_from(["model_type", "n_layer", "n_head", "n_embd", "n_positions", "vocab_size", "n_inner"])
GPT2_KEYS |= st.sampled_from(["activation_function", "layer_norm_epsilon", "architectures", "dtype", "eos_token_id"])


@settings(max_examples=60, phases=[Phase.generate], suppress_health_check=ANY_FIXTURE)
@given(st.dictionaries(GPT2_KEYS, JSON, min_size=1, max_size=3))
def test_any_configuration_of_a_pretrained_model(exported: Path, changed: dict[str, Any]) -> None:
    """It is loaded, or its name is in the refusal."""
    at = exported.parent / "configured"
    if not at.exists():
        shutil.copytree(exported, at)
    values = json.loads((exported / "config.json").read_text())
    (at / "config.json").write_text(json.dumps(values | changed))
    for load in (lambda: pretrained(at), lambda: folders.load_folder(at, "cpu")):
        refused = ""
        try:
            load()
        except InputError as error:
            refused = str(error)
        assert not refused or str(at) in refused or "block_size" in refused


# ------------------------------------------------------------------------------------------- what the fuzz lane found

DEEP = "[" * 100_000


def test_a_file_of_brackets_is_no_record_of_anything(folder: Path, tmp_path: Path) -> None:
    """This holds for every JSON file that is read: Python raises a RecursionError, which is not a ValueError."""
    at = folder / "checkpoint-2"
    (at / "state.json").write_text(DEEP)
    (at / "COMPLETE").write_text(sha256(at / "state.json"))
    with pytest.raises(checkpoint.CheckpointError, match="cannot be read"):
        checkpoint.read(at)
    (folder / ".lock").write_text(DEEP)
    assert lock.holder_of(folder) is None
    (tmp_path / "process.json").write_text(DEEP)
    assert storage.training(tmp_path / "process.json") is None
    for file in ("config.json", "tokenizer.json"):
        whole = (folder / file).read_text()
        (folder / file).write_text(DEEP)
        code, told = plan("--init_from", str(folder), "--tokenizer", str(folder), "--block_size=8")
        assert (code, file in told) == (2, True), told
        (folder / file).write_text(whole)


@pytest.mark.parametrize(
    "content",
    [
        {"machine": "here", "process": "x", "began": 0.0, "since": 0.0, "token": "", "inode": 0},
        {"machine": "here", "process": 1, "began": None, "since": 1e300, "token": "", "inode": 0},
        {"machine": ["here"], "process": 1, "began": 0.0, "since": 0.0, "token": "", "inode": 0},
    ],
)
def test_a_lock_that_no_process_wrote_holds_nothing(tmp_path: Path, content: dict[str, Any]) -> None:
    path = tmp_path / ".lock"
    path.touch()
    path.write_text(json.dumps(content | {"inode": path.stat().st_ino}))
    assert lock.holder_of(tmp_path) is None


@pytest.mark.parametrize("change", [
    {"model": None}, {"model": {"vocab": {}}}, {"model": {"vocab": {"a": "x"}}}, {"model": {"vocab": {"a": 10**30}}},
    {"model": {"vocab": 5}}, {"added_tokens": [{"id": None}]}, {"added_tokens": 3}, {"model": {"vocab": {"a": -9}}},
])  # fmt: skip
def test_a_plan_with_a_tokenizer_of_other_things(folder: Path, change: dict[str, Any]) -> None:
    values = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(values | change))
    code, told = plan("--tokenizer", str(folder))
    assert (code, "is not the description of a tokenizer" in told) == (2, True), told


@pytest.mark.parametrize("length", ["x", None, 8])
def test_a_prompt_longer_than_the_tokenizer_says(folder: Path, length: Any, caplog: Any) -> None:
    """A tokenizer's own maximum length is ignored: there is neither a warning nor an error."""
    values = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(values | {"model_max_length": length}))
    gpt2, own = folders.load_folder(folder, "cpu")
    prompt = "a long prompt " * 10
    assert folders.left_out(own, prompt) == ""
    assert tokenizer.token_ids(own, prompt) == own.backend_tokenizer.encode(prompt, add_special_tokens=False).ids
    assert list(sampling.generate_many(gpt2, own, prompt, sampling.Sampling(max_new_tokens=1)))
    assert not caplog.records


def test_tokens_that_stand_for_no_text_are_refused_before_training(tmp_path: Path, tiny: dict[str, Any]) -> None:
    """Validation tokens that only separate documents: bits per character would divide by 0."""
    own = tokenizer.train_bpe(["some text of words"], 260)
    own.save_pretrained(tmp_path / "data")
    np.array(own.encode("some text of words " * 40), dtype="<u2").tofile(tmp_path / "data" / "train.bin")
    np.full(200, own.eos_token_id, dtype="<u2").tofile(tmp_path / "data" / "val.bin")
    values = tiny | {"dataset": str(tmp_path / "data"), "tokenizer": str(tmp_path / "data"), "bin_dtype": "uint16"}
    with pytest.raises(InputError, match="hold no text"):
        train.train(config.build(values, "test"))


@pytest.mark.timeout(60)
def test_a_folder_with_a_pipe_is_not_waited_for(exported: Path, tmp_path: Path) -> None:
    """A foreign archive may contain a pipe without a writer: each file in turn, with every reader of it."""
    names = [path.relative_to(exported).as_posix() for path in exported.rglob("*") if path.is_file()]
    assert {"recipe.yaml", "metrics.jsonl", "config.json", "checkpoint-2/COMPLETE"} <= {*names}
    for number, name in enumerate([*names, "samples.jsonl"]):
        spoilt = Path(shutil.copytree(exported, tmp_path / str(number)))
        (spoilt / name).unlink(missing_ok=True)
        os.mkfifo(spoilt / name)
        for read in (
            lambda run=spoilt: compare.of_folders([run, run]),
            lambda run=spoilt: folders.load_folder(run, "cpu"),
            lambda run=spoilt: card.model_card(run),
            lambda run=spoilt: checkpoint.newest_valid(run, lambda _warning: None),
            lambda run=spoilt: playground.opening(run),
            lambda run=spoilt: [plots.parameters(e.run) for e in compare.of_folders([run, run]).entries if e.run],
        ):
            with contextlib.suppress(InputError):
                read()


def plan(*words: str) -> tuple[Any, str]:
    """Run scripts/plan.py with these arguments, in this process; return exit code and output."""
    told = io.StringIO()
    with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told), pytest.raises(SystemExit) as ended:
        shell.run(commands.main, words)
    return ended.value.code, told.getvalue()


# --------------------------------------------------------------------------------------------- through the script


def script(*arguments: str) -> tuple[Any, str, str]:
    """Run scripts/train.py --print_config with these arguments, in this process; return exit code, output, errors."""
    output, errors, before = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["train.py", *arguments, "--print_config"]
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
            runpy.run_path(str(ROOT / "scripts" / "train.py"), run_name="__main__")
    except SystemExit as ended:
        return ended.code, output.getvalue(), errors.getvalue()
    finally:
        sys.argv = before
    raise AssertionError("the script did not exit")


def check_script(recipe: Path, text: str, words: list[str]) -> None:
    """It prints the resolved recipe and exits with 0, or prints one message and exits with 2."""
    recipe.write_bytes(text.encode("utf-8", "surrogatepass"))
    code, output, told = script(str(recipe), *words)
    if code == 0:
        assert told == ""
        assert output
    else:
        assert code == 2
        assert output == ""
        assert told.strip()
        assert "Traceback" not in told


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return tmp_path / "any.yaml"


@settings(max_examples=100, suppress_health_check=ANY_FIXTURE)
@given(DOCUMENTS, st.lists(WORDS, max_size=3))
def test_any_recipe_and_words_through_the_script(recipe: Path, text: str, words: list[str]) -> None:
    check_script(recipe, text, words)


@pytest.mark.long
@settings(max_examples=2000, suppress_health_check=ANY_FIXTURE)
@given(DOCUMENTS, st.lists(WORDS, max_size=3))
def test_thousands_of_recipes_and_words_through_the_script(recipe: Path, text: str, words: list[str]) -> None:
    check_script(recipe, text, words)
