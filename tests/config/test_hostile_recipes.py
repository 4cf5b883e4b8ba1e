"""Small recipes that expand enormously, or that can be read in two ways."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from hfgpt import config
from hfgpt.base.errors import ConfigError, InputError
from hfgpt.base.terminal import visible

BOMBS = {
    "squares.py": "x = 3\n" + "x = x * x\n" * 34 + "n_layer = x\n",
    "powers.py": "x = 1e300\n" + "x = x * x\n" * 9,
    "doubled.py": "x = 'ab'\n" + "x = x + x\n" * 34,
    "minus.py": "n_layer = " + "-" * 100_000 + "1\n",
    "sum.py": "n_layer = " + "1+" * 50_000 + "1\n",
    "brackets.py": "n_layer = " + "(" * 50_000 + "1" + ")" * 50_000 + "\n",
    "long.py": "# " + "x" * 10**6,
    "merge.yaml": "a0: &a0 {x: 1}\n" + "".join(
        f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 13)
    ),
    "aliases.yaml": "a0: &a0 [1, 1]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40)),
    "sexagesimal.yaml": "seed: " + "1:" * 200_000 + "1\n",
    "short_sexagesimal.yaml": "seed: " + "1:" * 50_000 + "1\n",
    "tagged_sexagesimal.yaml": "seed: !!int " + "1:" * 50_000 + "1\n",
    "float_sexagesimal.yaml": "grad_clip: !!float " + "1:" * 50_000 + "1.5\n",
    "deep.yaml": "seed: " + "[" * 90_000,
    "deep_mapping.yaml": "seed: " + "{a: " * 40_000,
    "digits.yaml": "seed: " + "9" * 150_000,
    "hexadecimal.yaml": "seed: 0x" + "F" * 150_000,
    "exponent.yaml": "learning_rate: 1e" + "9" * 100_000,
    "long.yaml": "# " + "x" * 10**6,
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_at_once_with_a_short_message(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text(BOMBS[name])
    start = time.process_time()
    with pytest.raises(InputError) as caught:
        config.load(path)
    assert time.process_time() - start < 10
    assert len(str(caught.value)) < 1500


def test_an_endless_file_is_refused() -> None:
    if not Path("/dev/zero").exists():
        pytest.skip("this system does not have one")
    with pytest.raises(InputError, match="more than"):
        config.load("/dev/zero")


@pytest.mark.parametrize(
    ("text", "readings"),
    [("012", ("12", "10")), ("0123", ("123", "83")), ("-07", ("7", "7")), ("089", ("89",)), ("0_1_0", ("10", "8"))],
)
def test_an_integer_with_a_leading_zero_is_refused_with_its_readings(
    tmp_path: Path, text: str, readings: tuple[str, ...]
) -> None:
    path = tmp_path / "zero.yaml"
    path.write_text(f"n_layer: 2\nseed: {text}\n")
    with pytest.raises(InputError, match="line 2") as caught:
        config.load(path)
    with pytest.raises(ConfigError) as typed:
        config.load(None, [f"--seed={text}"])
    for error in (caught, typed):
        assert all(reading in str(error.value) for reading in readings)


@pytest.mark.parametrize(
    ("text", "value"),
    [("0", 0), ("10", 10), ("1_000", 1000), ("0x10", 16), ("+5", 5), ("1e3", 1000), ("1.0E+1", 10)],
)
def test_other_integers_are_read_as_before(tmp_path: Path, text: str, value: int) -> None:
    path = tmp_path / "number.yaml"
    path.write_text(f"seed: {text}\n")
    assert config.load(path).seed == value
    assert config.load(None, [f"--seed={text}"]).seed == value


def test_a_byte_order_mark_is_not_part_of_the_first_key(tmp_path: Path) -> None:
    path = tmp_path / "mark.yaml"
    path.write_text("n_layer: 3\n", encoding="utf-8-sig")
    assert config.load(path).n_layer == 3


def test_a_name_in_other_bytes_than_utf8_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "\udcc4\udce3.yaml"  # the name that a zip file from Windows can have
    try:
        path.write_text("n_layer: 3\n")
    except OSError:
        pytest.skip("this file system does not have such names")
    assert config.load(path).out_dir == "out/__"


# ------------------------------------------------------------------------------------------- paths and run folders


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the test its own home folder."""
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path))
    return tmp_path


def test_a_tilde_is_the_home_folder(home: Path) -> None:
    made = config.load(None, ["--out_dir=~/runs/a", "--init_from=~/m", "--dataset=~/t.txt", "--tokenizer=~"])
    assert made.out_dir == str(home / "runs" / "a")
    assert (made.init_from, made.dataset, made.tokenizer) == (str(home / "m"), str(home / "t.txt"), str(home))
    (home / "mine.yaml").write_text("n_layer: 3\nout_dir: ~/b\n")
    assert config.load("~/mine.yaml").out_dir == str(home / "b")


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """Return a run folder whose recipe names another folder, as earlier versions wrote it."""
    folder = tmp_path / "out" / "b"
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text("n_layer: 3\nout_dir: out/a\n")
    (folder / "metrics.jsonl").write_text("")
    return folder


def test_a_run_folders_own_place_is_its_out_dir(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert config.load(copied).out_dir == str(copied)
    assert config.load(copied / "recipe.yaml").out_dir == str(copied)
    assert config.load(copied, ["--out_dir=elsewhere"]).out_dir == "elsewhere"
    monkeypatch.chdir(copied.parent)
    assert config.load("b").out_dir == "b"
    monkeypatch.chdir(copied)
    assert config.load(".").out_dir == str(copied)
    assert config.load("recipe.yaml").out_dir == str(copied)
    assert config.load("../b/").out_dir == "../b"


def test_a_recipe_that_happens_to_be_called_so_is_an_ordinary_one(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("n_layer: 3\n")
    assert config.load(tmp_path / "recipe.yaml").out_dir == "out/recipe"


def test_a_run_folders_recipe_does_not_name_its_place() -> None:
    made = config.load("standard", ["--out_dir=somewhere"])
    assert "somewhere" in config.to_yaml(made)
    assert "somewhere" not in config.to_yaml(made, in_folder=True)


# -------------------------------------------------------------------------------------------------- derived defaults


@pytest.mark.parametrize("words", [[], ["--tokenizer=bpe"], ["--lr_schedule=hold_cosine"]])
def test_what_was_derived_stays_derived(tmp_path: Path, words: list[str]) -> None:
    """If a finished run is extended with a higher rate, its schedule follows the new values."""
    short = config.load(None, ["--max_iters=100", *words])
    path = tmp_path / "run.yaml"
    path.write_text(config.to_yaml(short))
    longer = ["--max_iters=800", "--learning_rate=0.003"]
    made, fresh = config.load(path, longer), config.load(None, [*longer, *words, "--out_dir=out/run"])
    assert made == fresh
    assert (made.warmup_iters, made.min_lr) == (40, pytest.approx(0.0003))


def test_what_was_given_stays_given(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(config.to_yaml(config.load(None, ["--warmup_iters=5", "--min_lr=1e-5"])))
    made = config.load(path, ["--max_iters=800", "--learning_rate=0.003"])
    assert (made.warmup_iters, made.min_lr) == (5, 1e-5)


def test_a_derived_value_that_was_changed_since_is_written(tmp_path: Path) -> None:
    """A value that code sets beside those from which it was derived must be kept."""
    made = config.load(None).model_copy(update={"max_iters": 400})
    path = tmp_path / "run.yaml"
    path.write_text(config.to_yaml(made))
    assert config.load(path).lr_decay_iters == made.lr_decay_iters == 5000


# ------------------------------------------------------------------------------------------- the chapter's own files

CHAPTER = {
    "5.1": "batch_size = 64 # 一次处理64个样本\nblock_size = 256\ngradient_accumulation_steps = 1\nn_layer = 6\n"
    "n_head = 6\nn_embd = 384\ndropout = 0.2\nlearning_rate = 1e-3\nmax_iters = 5000\nweight_decay = 1e-1\n"
    "grad_clip = 1.0\nwarmup_iters = 100\nlr_decay_iters = 5000\nmin_lr = 1e-4\n",
    "7.1": "batch_size = 16\nblock_size = 64\ngradient_accumulation_steps = 1\nn_layer = 2\nn_head = 2\nn_embd = 128\n"
    "dropout = 0.0\nlearning_rate = 1e-3\nmax_iters = 500\neval_interval = 100\neval_iters = 20\n",
    "7.2": "batch_size = 32\nblock_size = 128\ngradient_accumulation_steps = 2\nn_layer = 4\nn_head = 4\nn_embd = 256\n"
    "dropout = 0.1\nlearning_rate = 1e-3\nmax_iters = 3000\nwarmup_iters = 100\neval_interval = 250\n",
    "7.3": "batch_size = 64\nblock_size = 256\ngradient_accumulation_steps = 1\nn_layer = 6\nn_head = 6\nn_embd = 384\n"
    "dropout = 0.2\nlearning_rate = 1e-3\nmax_iters = 5000\nwarmup_iters = 100\nlr_decay_iters = 5000\nmin_lr = 1e-4\n",
    "7.4": "batch_size = 12\nblock_size = 1024\ngradient_accumulation_steps = 40\nn_layer = 12\nn_head = 12\n"
    "n_embd = 768\ndropout = 0.0\nlearning_rate = 6e-4\nmax_iters = 600000\nwarmup_iters = 2000\n"
    "lr_decay_iters = 600000\nmin_lr = 6e-5\n",
}


@pytest.mark.parametrize("section", CHAPTER)
def test_a_file_of_the_chapter_is_a_recipe_as_it_stands(tmp_path: Path, section: str) -> None:
    path = tmp_path / "chapter.py"
    path.write_text(f"# config/chapter.py\n{CHAPTER[section]}", encoding="utf-8")
    said, made = config.read_recipe(path), config.load(path)
    assert made.dataset == "shakespeare"
    assert made.tokenizer == "char"
    assert {key: getattr(made, key) for key in said} == said
    assert made.lr_decay_iters == made.max_iters
    if section == "7.1":
        assert (made.warmup_iters, made.min_lr) == (25, pytest.approx(1e-4)), "our defaults, not nanoGPT's 2,000 steps"


def test_a_file_of_nanogpts_of_a_length_of_its_own_has_a_schedule_of_that_length(tmp_path: Path) -> None:
    path = tmp_path / "nano.py"
    path.write_text("dataset = 'shakespeare'\nmax_iters = 500\n")
    made = config.load(path)
    assert (made.warmup_iters, made.lr_decay_iters, made.eval_interval) == (25, 500, 2000)


# ----------------------------------------------------------------------------------------------------------- remarks


def test_the_decay_follows_a_length_that_is_typed_where_it_ends_with_the_run() -> None:
    typed = ["--max_iters=1000"]
    made = config.load("standard", typed)
    assert made.lr_decay_iters == 1000
    assert config.remarks("standard", typed, made) == [
        "lr_decay_iters follows max_iters to 1000, as the two are equal in the recipe"
    ]
    kept = config.load("standard", [*typed, "--lr_decay_iters=5000"])
    assert kept.lr_decay_iters == 5000
    (remark,) = config.remarks("standard", [*typed, "--lr_decay_iters=5000"], kept)
    assert "does not reach its minimum" in remark
    assert "--lr_decay_iters=1000" in remark


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--min_lr=1e-5", "--lr_schedule=constant"], "min_lr has no effect with lr_schedule: constant"),
        (["--muon_momentum=0.9"], "muon_momentum has no effect with optimizer: adamw"),
        (["--n_layer=3", "--init_from=gpt2"], "n_layer has no effect with init_from: gpt2"),
        (["--n_inner=64", "--init_from=gpt2"], "n_inner has no effect with init_from: gpt2"),
        (["--activation_function=relu2", "--init_from=gpt2"], "activation_function has no effect with init_from"),
        (["--no_tie_word_embeddings", "--init_from=gpt2"], "tie_word_embeddings has no effect with init_from: gpt2"),
        (["--decay_shape=linear"], "decay_shape has no effect with lr_schedule: cosine"),
        (["--project=mine"], "project has no effect with report_to: none"),
        (["--max_iters=900", "--lr_decay_iters=300"], "stays at min_lr (6e-05) from step 300 to the end at 900"),
    ],
)
def test_a_typed_value_without_effect_is_said(words: list[str], said: str) -> None:
    assert any(said in remark for remark in config.remarks(None, words, config.load(None, words)))


def test_nothing_is_said_where_all_is_well(write_recipe: Callable[..., Path]) -> None:
    for words in ([], ["--batch_size=4"], ["--max_iters=100"]):
        assert config.remarks(None, words, config.load(None, words)) == []


def test_a_recipe_cannot_turn_a_terminals_text() -> None:
    """The output of --print_config, which a run folder also stores, is read back unchanged."""
    values = {"sample_prompt": "a\u202eb\u2066字", "dataset": "x\x9b31m\u200f.txt"}
    text = config.to_yaml(config.build(values, "test"))
    assert visible(text) == text
    assert yaml.safe_load(text)["sample_prompt"] == values["sample_prompt"]
    assert config.build(yaml.safe_load(text), "test").dataset == values["dataset"]


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("--no_compile=banana", "no_compile = 'banana': takes no value"),
        ("--bf16", "use dtype: bfloat16"),
        ("--gradient_checkpointing", "use activation_checkpointing"),
        ("--num_epochs=3", "use max_iters"),
    ],
)
def test_flags_are_answered_at_once(word: str, said: str) -> None:
    with pytest.raises(InputError, match=re.escape(said)):
        config.load(None, [word])
