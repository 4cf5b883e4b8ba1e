"""Bad input: one message that names the key or the file and the remedy, exit code 2, nothing written.

Each row of the tables below goes through ``scripts/train.py`` in this process, and a few in their own processes.
"""

from __future__ import annotations

import gzip
import json
import os
import random
import re
import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_origin

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from config.test_config import bounds
from conftest import ROOT
from transformers import GPT2Config, GPT2LMHeadModel

from hfgpt import config
from hfgpt.base import threads
from hfgpt.base.errors import InputError
from hfgpt.config import Config, reference
from hfgpt.data import tokenizer

Values = dict[str, Any]
SCRIPT = ROOT / "scripts" / "train.py"


def tree(folder: Path) -> dict[str, bytes | None]:
    """Return every file under a folder, with its content."""
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


@pytest.fixture
def refused(
    in_temporary_folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """refused(*words) → the one message with which train.py refuses these arguments; anything else fails the test."""

    def run(*words: str) -> str:
        before = tree(in_temporary_folder)
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *words])
        monkeypatch.setattr(threads, "configure", lambda asked: 1)  # it would bind this process to a core
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        message = capfd.readouterr().err
        assert ended.value.code == 2, message
        assert "Traceback" not in message
        assert 0 < len(message.strip().splitlines()) <= 10
        assert tree(in_temporary_folder) == before, "nothing was written"
        return message

    return run


# ----------------------------------------------------------------------------------------- every field by itself


def wrong_values(key: str) -> dict[str, Any]:
    """Return a value of a wrong type, and values beyond each end of the range, by the kind of fault."""
    options = [get_origin(option) or option for option in reference.alternatives(Config.model_fields[key].annotation)]
    numeric, limits = int in options or float in options, bounds(key)
    wrong: dict[str, Any] = {"type": [1]}
    if str in options:
        wrong["number"] = 12
    elif Literal in options or bool in options or numeric:
        wrong["text"] = "neither fish nor flesh"
    if numeric and bool not in options:
        wrong["boolean"] = True
    if int in options and float not in options:
        wrong["fraction"] = 1.5
    if float in options:
        wrong["infinite"], wrong["not a number"] = float("inf"), float("nan")
    for name, value in limits.items():
        step = 1 if int in options else 0.001
        wrong[name] = {"ge": value - step, "gt": value, "le": value + step, "lt": value}[name]
    if numeric and Literal in options:  # a number or 'auto'
        wrong["zero"] = 0
    if int in options:
        wrong["enormous"] = 10**30
    if type(None) not in options:
        wrong["nothing"] = None
    return wrong


FIELDS = [(key, kind) for key in Config.model_fields for kind in wrong_values(key)]


@pytest.mark.parametrize(("key", "kind"), FIELDS, ids=[f"{key}-{kind}" for key, kind in FIELDS])
def test_every_fields_wrong_types_and_ranges(
    refused: Callable[..., str], tiny: Values, write_recipe: Callable[..., Path], key: str, kind: str
) -> None:
    message = refused(str(write_recipe({**tiny, key: wrong_values(key)[kind]})))
    lines = message.splitlines()
    assert lines[0] == "The recipe cannot be used:"
    assert any(line.startswith((f"  {key} = ", f"  {key}: ")) and "must be " in line for line in lines), message


# ------------------------------------------------------------------------------------- recipes and command lines


class Case(NamedTuple):
    """What is wrong, how to arrange it, and what the message says."""

    name: str
    arrange: Callable[[Values, Path], None]  # changes the recipe's values, and the folder in which it runs
    says: tuple[str, ...]
    words: tuple[str, ...] = ()


def value(**changes: Any) -> Callable[[Values, Path], None]:
    return lambda values, folder: values.update(changes)


def nothing(values: Values, folder: Path) -> None:
    """Leave the recipe valid: the fault is on the command line."""


LINE = [
    Case("an unknown key", value(n_layers=2), ("n_layers: is not a parameter", "did you mean 'n_layer'?")),
    Case("a key of the Trainer's", value(num_train_epochs=3), ("num_train_epochs", "use max_iters")),
    Case("a word", nothing, ("'4': is not an override", "--key=value"), ("4",)),
    Case("an override without a value", nothing, ("n_layer: needs a value",), ("--n_layer",)),
    Case("an unknown override", nothing, ("did you mean 'n_head'?",), ("--n_heads=2",)),
    Case("an override twice", nothing, ("seed = '2': is given twice",), ("--seed=1", "--seed=2")),
    Case("heads that do not divide", value(n_embd=16, n_head=3), ("n_head = 3", "set n_head to 2 or 4")),
    Case("a warm-up as long as the run", value(warmup_iters=8), ("warmup_iters = 8", "less than max_iters (8)")),
    Case(
        "no room to decay",
        value(lr_schedule="hold_cosine", lr_decay_iters=8),
        ("lr_decay_iters = 8", "lr_schedule 'hold_cosine'", "set lr_decay_iters to, say, 6"),
    ),
    Case("a minimum above the maximum", value(min_lr=1.0), ("min_lr = 1.0", "not be more than learning_rate")),
    Case("documents without ends", value(document_mask=True), ("document_mask = True", "end-of-text token")),
    Case("a vocabulary that is not chosen", value(vocab_size=999), ("vocab_size = 999", "'char'")),
    Case("no time", value(max_time="soon"), ("max_time = 'soon'", "11h30m")),
    Case("half precision on a CPU", value(dtype="float16"), ("dtype = 'float16'", "set dtype to 'float32'")),
    Case("half precision on what is there", value(dtype="float16", device="auto"), ("dtype = 'float16'", "on a CPU")),
    Case("a device that is not here", value(device="cuda"), ("device = 'cuda': is not available here",)),
    Case("both flags", nothing, ("--resume and --overwrite",), ("--resume", "--overwrite")),
    Case(
        "a model that no machine holds",
        nothing,
        ("n_layer = 1000, n_embd = 100000: 120,001,", "1,788,158.7 GiB, and this machine has", "at most", "plan.py"),
        ("--n_layer=1000", "--n_embd=100000"),
    ),
]


@pytest.fixture
def check(
    refused: Callable[..., str], tiny: Values, write_recipe: Callable[..., Path], in_temporary_folder: Path
) -> Callable[[Case], None]:
    """Arrange a case, and check that it is refused with its message."""

    def run(case: Case) -> None:
        case.arrange(tiny, in_temporary_folder)
        message = refused(str(write_recipe(tiny)), *case.words)
        assert all(part in message for part in case.says), message

    return run


@pytest.mark.parametrize("case", LINE, ids=lambda case: case.name)
def test_recipes_and_command_lines(check: Callable[[Case], None], case: Case) -> None:
    if torch.accelerator.is_available() and case.name in (
        "half precision on what is there",
        "a device that is not here",
    ):
        pytest.skip("this machine has an accelerator")
    check(case)


BROKEN_YAML = {
    "a bracket left open": ("n_layer: [1", "line"),
    "a tab": ("n_layer: 1\n\tn_head: 1", "line 2"),
    "a key twice": ("n_layer: 1\nn_layer: 2", "line 2: not valid YAML: key 'n_layer' is given twice"),
    "a list": ("- n_layer: 1", "must be lines of 'key: value', not a list"),
    "a Python object": ("seed: !!python/object/apply:os.getpid []", "line 1: not valid YAML: tags"),
    "a control character": ("seed: 1\nlicense: '\x08'", "line 2"),
    "two documents": ("seed: 1\n---\nseed: 2", "line 2"),
    "no date": ("seed: 2024-02-31", "line 1"),
    "an unknown anchor": ("seed: *one", "line 1"),
}


@pytest.mark.parametrize("name", BROKEN_YAML)
def test_broken_yaml(refused: Callable[..., str], in_temporary_folder: Path, name: str) -> None:
    text, says = BROKEN_YAML[name]
    path = in_temporary_folder / "broken.yaml"
    path.write_text(text)
    message = refused(str(path))
    assert str(path) in message
    assert says in message


def test_recipes_that_are_not_there(refused: Callable[..., str], in_temporary_folder: Path) -> None:
    assert "'nowhere.yaml': no such file" in refused("nowhere.yaml")
    assert "recipe.yaml': no such file" in refused(str(in_temporary_folder))
    assert "cannot be read" in refused("x" * 5000)
    (in_temporary_folder / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    assert "cannot be read as text" in refused(str(in_temporary_folder / "bytes.yaml"))
    assert "no such file" in refused("")


def test_a_tracker_that_is_not_installed(
    check: Callable[[Case], None], monkeypatch: pytest.MonkeyPatch, tiny: Values
) -> None:
    monkeypatch.setitem(sys.modules, "trackio", None)  # makes `import trackio` fail
    check(Case("", value(report_to="trackio"), ("report_to = 'trackio': is not installed", "pip install trackio")))


def test_a_tracker_that_nobody_is_logged_in_to(
    check: Callable[[Case], None], monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    pytest.importorskip("wandb")
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    home = tmp_path_factory.mktemp("home")
    for name in ("HOME", "NETRC", "WANDB_CONFIG_DIR", "WANDB_DIR", "WANDB_CACHE_DIR"):
        monkeypatch.setenv(name, str(home / "netrc" if name == "NETRC" else home))
    check(Case("", value(report_to="wandb"), ("report_to = 'wandb': cannot be started", "wandb login")))


# ----------------------------------------------------------------------------------------------------------- data


def file(name: str, content: str | bytes) -> Callable[[Values, Path], None]:
    """Make `dataset` a file with this content."""

    def arrange(values: Values, folder: Path) -> None:
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        values["dataset"] = str(path)

    return arrange


def parquet(**columns: list[Any]) -> Callable[[Values, Path], None]:
    def arrange(values: Values, folder: Path) -> None:
        pq.write_table(pa.table(columns), folder / "data.parquet")
        values["dataset"] = str(folder / "data.parquet")

    return arrange


def folder_with(**files: str) -> Callable[[Values, Path], None]:
    """Make `dataset` a folder with these files, with _ for the dot in their names."""

    def arrange(values: Values, folder: Path) -> None:
        (folder / "texts").mkdir()
        for name, content in files.items():
            (folder / "texts" / name.replace("_", ".")).write_text(content)
        values["dataset"] = str(folder / "texts")

    return arrange


def then(*steps: Callable[[Values, Path], None]) -> Callable[[Values, Path], None]:
    return lambda values, folder: [step(values, folder) for step in steps] and None


BYTES = random.Random(0).randbytes(5000)
TEXT = "To be, or not to be: that is the question.\n" * 200
LINES = "".join(json.dumps({"content": line}) + "\n" for line in TEXT.splitlines())

DATA = [
    Case("a missing file", value(dataset="nowhere.txt"), ("dataset = 'nowhere.txt': no such file or folder",)),
    Case("a missing folder", value(dataset="no/such/folder"), ("dataset = 'no/such/folder': no such file or folder",)),
    Case("a pattern of nothing", value(dataset="*.txt.gz"), ("dataset = '*.txt.gz': no file matches",)),
    Case("a Hub id, offline", value(dataset="nobody/nothing"), ("dataset = 'nobody/nothing'",)),
    Case("a name that no file can have", value(dataset="x" * 300), ("dataset = 'xxx",)),
    Case("an empty file", file("a.txt", ""), ("a.txt", "is empty")),
    Case("an empty compressed file", file("a.txt.gz", gzip.compress(b"")), ("a.txt.gz' has 0", "give more text")),
    Case("bytes in .txt", file("a.txt", BYTES), ("a.txt", "UTF-8")),
    Case("bytes in .gz", file("a.txt.gz", BYTES), ("a.txt.gz",)),
    Case("half a .gz", file("a.txt.gz", gzip.compress(TEXT.encode())[:-20]), ("a.txt.gz",)),
    Case("bytes in .zst", file("a.txt.zst", BYTES), ("a.txt.zst",)),
    Case("bytes in .parquet", file("a.parquet", BYTES), ("a.parquet", "cannot be read as a Parquet file")),
    Case("bytes in .jsonl", file("a.jsonl", BYTES), ("a.jsonl",)),
    Case("a kind that is not read", file("a.pdf", BYTES), ("a.pdf", "'.pdf'", ".txt, .jsonl, .parquet")),
    Case(
        "a broken line in .jsonl",
        then(file("a.jsonl", LINES + "{\n"), value(text_column="content")),
        ("a.jsonl", "line 201"),
    ),
    Case("a wrong column in .jsonl", file("a.jsonl", LINES), ("text_column = 'text'", "'content'")),
    Case("no object in .jsonl", file("a.jsonl", "[1]\n" * 500), ("a.jsonl",)),
    Case("a wrong column in .parquet", parquet(content=["a"] * 9), ("text_column = 'text'", "'content'")),
    Case("a column of numbers", parquet(text=[1, 2, 3]), ("text_column = 'text'", "int64")),
    Case("an empty folder", folder_with(), ("texts", "holds no text")),
    Case("files of two kinds", folder_with(a_txt=TEXT, b_jsonl=LINES), ("texts", "different kinds")),
    Case("a corpus shorter than a block", then(file("a.txt", TEXT[:40]), value(block_size=64)), ("block_size = 64",)),
    Case(
        "a corpus shorter than the default block", then(file("a.txt", TEXT), value(block_size=10**5)), ("block_size",)
    ),
    Case(
        "a validation split shorter than a block",
        then(file("a.txt", TEXT[:600]), value(block_size=64, val_fraction=0.01)),
        ("block_size = 64", "val_fraction"),
    ),
    Case("a streamed folder without text", then(folder_with(), value(streaming=True)), ("texts", "holds no text")),
    Case(
        "a stream that the evaluation uses up",
        then(file("a.txt", TEXT[:400]), value(streaming=True, eval_iters=100)),
        ("eval_iters",),
    ),
]


@pytest.mark.parametrize("case", DATA, ids=lambda case: case.name)
def test_data_that_cannot_be_trained_on(check: Callable[[Case], None], case: Case) -> None:
    check(case)


# ---------------------------------------------------------------------------------------------- tokenizers, models


def pretrained(what: str = "", **shape: int) -> Callable[[Values, Path], None]:
    """Make `init_from` a folder with a small GPT-2 and its tokenizer, with one fault."""

    def arrange(values: Values, folder: Path) -> None:
        target = folder / "pretrained"
        made = tokenizer.train_bpe([TEXT], 300)
        sizes = {
            "n_layer": 1,
            "n_head": 1,
            "n_embd": 8,
            "n_positions": 32,
            "vocab_size": tokenizer.vocabulary_size(made),
        }
        GPT2LMHeadModel(GPT2Config(**{**sizes, **shape}, bos_token_id=None, eos_token_id=None)).save_pretrained(target)
        made.save_pretrained(target)
        if what == "weights":
            (target / "model.safetensors").unlink()
        elif what == "tokenizer":
            (target / "tokenizer.json").unlink()
            (target / "tokenizer_config.json").unlink()
        elif what == "half":
            weights = target / "model.safetensors"
            weights.write_bytes(weights.read_bytes()[:-100])
        elif what == "config":
            (target / "config.json").unlink()
        values["init_from"] = str(target)

    return arrange


def tokenizer_without_end(values: Values, folder: Path) -> None:
    tokenizer.train_char([TEXT]).save_pretrained(folder / "letters")
    values["tokenizer"] = str(folder / "letters")


MODELS = [
    Case("a tokenizer that is not there", value(tokenizer="./no-tokenizer"), ("tokenizer = './no-tokenizer'",)),
    Case("a tokenizer on the Hub, offline", value(tokenizer="nobody/nothing"), ("tokenizer = 'nobody/nothing'",)),
    Case("a tokenizer's long name", value(tokenizer="x" * 300), ("tokenizer = 'xxx",)),
    Case("a folder without a tokenizer", value(tokenizer=str(ROOT / "docs")), ("tokenizer = ", "holds no tokenizer")),
    Case(
        "a document mask without ends of documents",
        then(tokenizer_without_end, value(document_mask=True)),
        ("document_mask = True", "no end-of-text token"),
    ),
    Case("a model that is not there", value(init_from="./no-model", tokenizer="char"), ("init_from = './no-model'",)),
    Case("a model on the Hub, offline", value(init_from="gpt2", tokenizer="char"), ("init_from = 'gpt2'",)),
    Case("a model's long name", value(init_from="x" * 300, tokenizer="char"), ("init_from = 'xxx",)),
    Case("a model without weights", pretrained("weights"), ("init_from = ", "holds no model.safetensors")),
    Case("half of a model's weights", pretrained("half"), ("init_from = ", "cannot be loaded")),
    Case("a model without its config", pretrained("config"), ("init_from = ",)),
    Case("a model without its tokenizer", pretrained("tokenizer"), ("tokenizer = ", "an empty vocabulary")),
    Case("more positions than it has", pretrained(n_positions=8), ("block_size = 16", "at most 8")),
    Case("more tokens than it knows", pretrained(vocab_size=200), ("knows 200", "leave tokenizer out")),
]


@pytest.mark.parametrize("case", MODELS, ids=lambda case: case.name)
def test_tokenizers_and_models_that_do_not_fit(check: Callable[[Case], None], case: Case) -> None:
    check(case)


# ----------------------------------------------------------------------------------------------------- run folders


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_text: Path) -> Path:
    """Return the folder of a finished run of the `tiny` recipe."""
    from accelerate.state import AcceleratorState, GradientState

    from hfgpt.train import loop as train

    folder = tmp_path_factory.mktemp("finished") / "run"
    values = {
        "dataset": str(tiny_text), "out_dir": str(folder), "device": "cpu", "n_layer": 2, "n_head": 2, "n_embd": 16,
        "block_size": 16, "batch_size": 4, "max_iters": 8, "warmup_iters": 1, "eval_interval": 4, "eval_iters": 2,
        "log_interval": 1, "sample_prompt": "", "num_proc": 1,
    }  # fmt: skip
    assert train.train(config.build(values, "tiny")) == 0
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    return folder


def damage_all(values: Values, folder: Path) -> None:
    for weights in (folder / "run").glob("checkpoint-*/model.safetensors"):
        weights.write_bytes(weights.read_bytes()[:-1] + b"\0\0")


def shuffled(values: Values, folder: Path) -> None:
    """Return another text of the same characters."""
    lines = Path(values["dataset"]).read_text().splitlines(keepends=True)
    (folder / "other.txt").write_text("".join(sorted(lines)))
    values["dataset"] = str(folder / "other.txt")


RESUME = ("--resume",)
FOLDERS = [
    Case("a run that is there", nothing, ("out_dir = ", "holds a run", "--resume", "--overwrite")),
    Case("another seed", value(seed=1), ("seed: 1337 in the checkpoint, 1 now",), RESUME),
    Case("another depth", value(n_layer=3), ("n_layer: 2 in the checkpoint, 3 now",), RESUME),
    Case("another width", value(n_embd=32), ("n_embd: 16 in the checkpoint, 32 now",), RESUME),
    Case("other heads", value(n_head=1), ("n_head: 2 in the checkpoint, 1 now",), RESUME),
    Case("another block", value(block_size=8), ("block_size: 16 in the checkpoint, 8 now",), RESUME),
    Case("another batch", value(batch_size=8), ("global batch", "4 in the checkpoint, 8 now"), RESUME),
    Case("another accumulation", value(gradient_accumulation_steps=3), ("global batch", "12 now"), RESUME),
    Case("another share for validation", value(val_fraction=0.2), ("val_fraction: 0.1",), RESUME),
    Case("streaming", value(streaming=True, eval_iters=1), ("streaming: False in the checkpoint, True now",), RESUME),
    Case("another text", shuffled, ("was trained on 'tiny.txt' (", "'other.txt' (", "--dataset"), RESUME),
    Case("another tokenizer", value(tokenizer="bpe", vocab_size=300), ("tokenizer: ", "another run"), RESUME),
    Case("another model", value(n_layer=1), ("n_layer: 2 in the checkpoint, 1 now",), RESUME),
    Case("a resume by name", value(init_from="resume", seed=1), ("seed: 1337",)),
    Case("no checkpoint that is whole", damage_all, ("cannot resume, every checkpoint is damaged",), RESUME),
    Case("two wishes", nothing, ("--resume and --overwrite",), ("--resume", "--overwrite")),
]


@pytest.mark.parametrize("case", FOLDERS, ids=lambda case: case.name)
def test_a_folder_that_holds_a_run(check: Callable[[Case], None], tmp_path: Path, finished: Path, case: Case) -> None:
    shutil.copytree(finished, tmp_path / "run")
    check(case)


def plain_file(values: Values, folder: Path) -> None:
    (folder / "file").write_text("mine")
    values["out_dir"] = str(folder / "file")


def below_a_file(values: Values, folder: Path) -> None:
    (folder / "file").write_text("mine")
    values["out_dir"] = str(folder / "file" / "run")


WRITABLE = [
    Case("a file", plain_file, ("out_dir = ", "is a file")),
    Case("below a file", below_a_file, ("out_dir = ", "cannot be written")),
    Case("where nobody may write", value(out_dir="/proc/hfgpt"), ("out_dir = '/proc/hfgpt': cannot be written",)),
    Case("a name that no folder can have", value(out_dir="x" * 300), ("out_dir = 'xxx",)),
    Case("an empty name", value(out_dir=""), ("out_dir = ''",)),
]


@pytest.mark.parametrize("case", WRITABLE, ids=lambda case: case.name)
def test_folders_that_cannot_be_written(check: Callable[[Case], None], case: Case) -> None:
    check(case)


# ------------------------------------------------------------------------------------------------- several processes


@pytest.mark.parametrize(
    ("batch_size", "steps", "processes", "says"),
    [
        (12, 5, 8, ("60 sequences", "4 (48 sequences) or 6 (72 sequences)")),
        (1, 1, 2, ("1 sequences", "to 2 (2 sequences)")),
        (3, 7, 4, ("21 sequences", "4 (12 sequences) or 8 (24 sequences)")),
    ],
)
def test_a_batch_that_cannot_be_shared_names_the_nearest_that_can(
    batch_size: int, steps: int, processes: int, says: tuple[str, ...]
) -> None:
    made = config.build({"batch_size": batch_size, "gradient_accumulation_steps": steps}, "test")
    with pytest.raises(InputError) as caught:
        made.micro_batch(processes)
    message = str(caught.value)
    assert all(part in message for part in says), message
    for steps_named in re.findall(r"(\d+) \(\d+ sequences\)", message):
        values = {"batch_size": batch_size, "gradient_accumulation_steps": int(steps_named)}
        config.build(values, "test").micro_batch(processes)


def test_a_batch_that_can_be_shared_takes_the_largest_micro_batch_that_fits() -> None:
    def micro(batch_size: int, steps: int, processes: int) -> int:
        made = config.build({"batch_size": batch_size, "gradient_accumulation_steps": steps}, "test")
        return made.micro_batch(processes)

    assert micro(12, 40, 1) == 12
    assert micro(12, 40, 8) == 12
    assert micro(12, 40, 32) == 5  # 15 is divided by three
    assert micro(12, 1, 4) == 3
    assert micro(7, 3, 3) == 7


# ------------------------------------------------------------------------------------------ processes of their own


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--n_layers=2",), "did you mean 'n_layer'?"),
        (("--out_dir=/proc/hfgpt",), "cannot be written"),
    ],
)
def test_the_script_exits_with_2_and_one_message(
    run_script: Callable[..., Any],
    tiny: Values,
    write_recipe: Callable[..., Path],
    tmp_path: Path,
    words: Any,
    says: str,
) -> None:
    done = run_script("train.py", write_recipe(tiny), *words)
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"tiny.yaml"}


def test_a_model_is_refused_where_its_state_alone_is_more_than_the_memory(
    tiny: Values, monkeypatch: pytest.MonkeyPatch
) -> None:
    from accelerate import Accelerator

    from hfgpt.base import hardware
    from hfgpt.train import memory

    accelerator, wide = Accelerator(cpu=True), config.build(tiny | {"n_embd": 64}, "wide")
    blocks = 2 * (12 * 64 * 64 + 13 * 64) + 2 * 64
    for values, each in ((wide, 16), (wide.model_copy(update={"eval_only": True}), 4)):
        monkeypatch.setattr(hardware, "cpu_memory_bytes", lambda each=each: each * blocks)
        memory.check_size(values, accelerator)
        monkeypatch.setattr(hardware, "cpu_memory_bytes", lambda each=each: each * blocks - 1)
        with pytest.raises(InputError, match=r"n_layer = 2, n_embd = 64: .*\n.*n_embd = 62 at most"):
            memory.check_size(values, accelerator)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")  # two replicas share the machine's memory
    monkeypatch.setattr(hardware, "cpu_memory_bytes", lambda: 32 * blocks - 1)
    with pytest.raises(InputError, match="each of 2 processes here has"):
        memory.check_size(wide, accelerator)
    memory.check_size(wide.model_copy(update={"init_from": "gpt2"}), accelerator)  # has its own shape
    monkeypatch.setattr(hardware, "cpu_memory_bytes", lambda: 0)
    with pytest.raises(InputError, match="a smaller n_layer and n_embd"):
        memory.check_size(wide, accelerator)


def test_the_tables_are_long_enough() -> None:
    """There must be at least 40 cases beside those of the fields."""
    assert len([*LINE, *BROKEN_YAML, *DATA, *MODELS, *FOLDERS, *WRITABLE]) >= 40
    assert len(FIELDS) >= 2 * len(Config.model_fields)
