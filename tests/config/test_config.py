"""The config: which values it accepts, which source takes precedence, and one clear message for each fault."""

from __future__ import annotations

import ast
import math
import re
import string
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import yaml
from conftest import ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from hfgpt import config
from hfgpt.base.errors import ConfigError, InputError
from hfgpt.base.units import seconds_of
from hfgpt.config import Config, reference

FIELDS = list(Config.model_fields)
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


def faults_of(values: dict[str, Any]) -> dict[str, str]:
    """Return the faults of these values by key."""
    with pytest.raises(ConfigError) as caught:
        config.build(values, "test")
    return {fault.key: str(fault) for fault in caught.value.faults}


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """recipe(text) → the path of a recipe with this text; the next call overwrites it."""
    path = tmp_path_factory.mktemp("recipes") / "test.yaml"

    def write(text: str | bytes) -> Path:
        path.write_bytes(text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text)
        return path

    return write


# ------------------------------------------------------------------------------------------- reading and precedence


def test_defaults_then_recipe_then_command_line(recipe: Any) -> None:
    path = recipe("n_layer: 4\nn_head: 4\nn_embd: 256\n")
    made = config.load(path, ["--n_layer=2"])
    assert (made.n_layer, made.n_embd, made.dropout) == (2, 256, 0.0)


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-3", 1e-3), ("1E-3", 1e-3), ("+1e-3", 1e-3), ("1.e-3", 1e-3), ("1", 1.0), (".001", 1e-3), ("6_0e-4", 6e-3)],
)
def test_numbers_as_people_write_them(recipe: Any, text: str, value: float) -> None:
    assert config.load(recipe(f"learning_rate: {text}")).learning_rate == value
    assert config.load(None, [f"--learning_rate={text}"]).learning_rate == value


def test_a_whole_float_is_an_integer_where_one_is_meant(recipe: Any) -> None:
    made = config.load(recipe("max_iters: 1e4\nbatch_size: 8.0\ncpu_threads: 2.0\n"))
    assert (made.max_iters, made.batch_size, made.cpu_threads) == (10_000, 8, 2)
    assert isinstance(made.max_iters, int)
    assert "batch_size" in faults_of({"batch_size": 8.5})


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--max_iters=7"], {"max_iters": 7}),
        (["--max_iters", "7"], {"max_iters": 7}),
        (["--max-iters=7"], {"max_iters": 7}),
        (["--compile"], {"compile": True}),
        (["--no_compile"], {"compile": False}),
        (["--no-compile"], {"compile": False}),
        (["--compile=false"], {"compile": False}),
        (["--compile", "false"], {"compile": False}),
        (["--compile", "--streaming"], {"compile": True, "streaming": True}),
        (["--out_dir=123"], {"out_dir": "123"}),
        (["--dataset", "null.txt"], {"dataset": "null.txt"}),
        (["--max_time=none"], {"max_time": None}),
        (["--sample_prompt="], {"sample_prompt": ""}),
        (["--sample_prompt=a=b"], {"sample_prompt": "a=b"}),
        (["--grad_clip=-1"], {"grad_clip": -1}),
        (["--grad_clip", "-1"], {"grad_clip": -1}),
        (["--cpu_threads=auto"], {"cpu_threads": "auto"}),
    ],
)
def test_every_way_to_write_an_override(words: list[str], expected: dict[str, Any]) -> None:
    assert config.parse_overrides(words) == expected


def test_a_count_or_auto_is_read_as_a_number(recipe: Any) -> None:
    assert config.load(None, ["--cpu_threads=2", "--num_proc=1"]).cpu_threads == 2
    assert config.load(recipe("cpu_threads: 2")).cpu_threads == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["out"], "'out': is not an override"),
        ([""], "'': is not an override"),
        (["--"], "'--': is not an override"),
        (["-n_layer=2"], "lacks its two hyphens"),
        (["--n_layer"], "n_layer: needs a value"),
        (["--n_layer", "--compile"], "n_layer: needs a value"),
        (["--n_layer=2", "--n_layer=3"], "given twice"),
        (["--n_layr=2"], "did you mean 'n_layer'?"),
        (["--n_layr"], "did you mean 'n_layer'?"),
        (["--qqqqqq=1"], "--help lists all parameters"),
        (["--no_n_layer"], "did you mean 'n_layer'?"),
        (["--compile=maybe"], "compile = 'maybe': must be one of true, false, 'auto'"),
        (["--learning_rate=fast"], "learning_rate = 'fast': must be a number"),
    ],
)
def test_faults_on_the_command_line(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        config.load(None, words)


def test_all_faults_come_at_once_each_with_key_value_rule_and_fix(recipe: Any) -> None:
    text = "n_layr: 2\nbatch_size: 0\nn_head: 5\ndropout: high\nwarmup_iters: 9000\nmax_steps: 3\n"
    with pytest.raises(ConfigError) as caught:
        config.load(recipe(text), ["--grad_clip=-1"])
    faults = {fault.key: str(fault) for fault in caught.value.faults}
    assert faults.keys() == {"n_layr", "batch_size", "n_head", "dropout", "warmup_iters", "max_steps", "grad_clip"}
    assert faults["batch_size"] == "batch_size = 0: must be an integer, at least 1 (sequences)"
    assert faults["dropout"] == "dropout = 'high': must be a number, at least 0 and less than 1 (probability)"
    assert faults["n_head"].splitlines() == [
        "n_head = 5: must divide n_embd, and 768 / 5 is 153.6 (chapter 2.2: docs/en/course/2-model.md)",
        "    → set n_head to 4 or 6",
    ]
    assert all(text in str(caught.value) for text in faults.values())


@pytest.mark.parametrize(
    "key", ["dataset", "dataset_split", "text_column", "tokenizer", "init_from", "out_dir", "project", "license"]
)
def test_what_may_not_be_empty(key: str) -> None:
    assert faults_of({key: " "}).keys() == {key}
    assert "must be text" in faults_of({key: ""})[key]
    assert "not empty" in faults_of({key: ""})[key]


def test_a_rule_is_not_applied_to_a_value_that_is_wrong_by_itself() -> None:
    assert faults_of({"n_embd": 10**30, "n_head": 7}).keys() == {"n_embd"}


# -------------------------------------------------------------------------------------------- nanoGPT's other names


@pytest.mark.parametrize(
    ("given_values", "key", "value"),
    [
        ({"decay_lr": True}, "lr_schedule", "cosine"),
        ({"decay_lr": False}, "lr_schedule", "constant"),
        ({"wandb_log": True}, "report_to", "wandb"),
        ({"wandb_log": False}, "report_to", "none"),
        ({"wandb_project": "owt"}, "project", "owt"),
    ],
)
def test_names_that_are_others_here(given_values: dict[str, Any], key: str, value: Any) -> None:
    assert getattr(config.build(given_values, "test"), key) == value


def test_an_override_by_one_name_replaces_the_recipes_line_by_the_other(recipe: Any) -> None:
    path = recipe("lr_schedule: hold_cosine\nlr_decay_iters: 100\n")
    assert config.load(path, ["--no_decay_lr"]).lr_schedule == "constant"
    path = recipe("decay_lr: false\n")
    assert config.load(path, ["--lr_schedule=hold_cosine"]).lr_schedule == "hold_cosine"


def test_an_old_name_is_checked_like_a_new_one() -> None:
    assert "true or false" in faults_of({"decay_lr": "no"})["decay_lr"]
    assert "must be text" in faults_of({"wandb_project": 3})["project"]


@pytest.mark.parametrize("key", config.INSTEAD)
def test_names_that_mean_nothing_here_say_what_to_use(key: str) -> None:
    assert faults_of({key: 1}) == {key: f"{key}: is not a parameter here\n    → {config.INSTEAD[key]}"}


@pytest.mark.parametrize("key", config.INSTEAD)
def test_what_to_use_instead_exists(key: str) -> None:
    named = re.findall(r"use (\w+)", config.INSTEAD[key])
    assert set(named) <= set(FIELDS)
    assert key not in FIELDS


# ----------------------------------------------------------------------------------------------------------- YAML


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("n_layer: 2\nn_layer: 3\n", "line 2: not valid YAML: key 'n_layer' is given twice"),
        ("n_layer: [2\n", "line 2"),
        ("n_layer: 2\n\tn_head: 2\n", "line 2"),
        ("a: b: c\n", "line 1"),
        (
            "n_layer: 2\nseed: !!python/object/apply:os.system [ls]\n",
            "line 2: not valid YAML: tags (!name) are not read",
        ),
        ("seed: !!python/name:os.system\n", "line 1"),
        ("n_layer: 2\nseed: 2024-13-45\n", "line 2: not valid YAML: month must be in 1..12"),
        ("n_layer: 2\nseed: " + "9" * 5000, "line 2"),
        ("n_layer: 2\nseed: \x07\n", "line 2: not valid YAML: it contains control characters"),
        ("seed: 1\n---\nseed: 2\n", "line 2"),
        ("seed: *nothing\n", "line 1"),
        ("- n_layer\n- 2\n", "must be lines of 'key: value', not a list"),
        ("just words\n", "must be lines of 'key: value', not a line of text"),
        ("[" * 3000, "not lists within lists"),
        (b"seed: \xff\xfe\xff\n", "cannot be read as text"),
    ],
)
def test_broken_yaml_is_named_with_its_line(recipe: Any, text: str | bytes, message: str) -> None:
    path = recipe(text)
    with pytest.raises(InputError) as caught:
        config.load(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_python_tag_is_never_executed(recipe: Any, tmp_path: Path) -> None:
    witness = tmp_path / "executed"
    with pytest.raises(InputError):
        config.load(recipe(f"seed: !!python/object/apply:pathlib.Path.touch [{witness}]\n"))
    assert not witness.exists()


def test_an_empty_recipe_is_all_defaults(recipe: Any) -> None:
    assert config.load(recipe("# nothing\n")) == config.build({}, "test")


def test_a_missing_recipe_names_those_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(
        InputError,
        match=r"'recipes/standrad.yaml': no such file; did you mean 'standard'.* hfgpt comes with .*standard",
    ):
        config.load("recipes/standrad.yaml")


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b"])
def test_a_recipe_with_a_name_that_no_file_can_have(name: str) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        config.load(name)


def test_a_run_folder_is_a_recipe(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("n_layer: 3\n")
    assert config.load(tmp_path).n_layer == 3


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [1]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a]\n" + "".join(f"c{i}: &c{i} [*b, *b]\n" for i in range(3)),
        "seed: &a [*a]\n",
        "seed: &a [1]\nn_layer: " + "".join(f"[&x{i} [*a,*a],*x{i},*x{i},*x{i}," for i in range(40)) + "]" * 40,
        "seed: 0x" + "F" * 9000,
        "seed: '" + "long " * 10_000 + "'",
        "x" * 50_000 + ": 1",
        "? " + "a b " * 50_000,
    ],
)
def test_a_message_stays_short_however_large_the_value(recipe: Any, text: str) -> None:
    with pytest.raises(InputError) as caught:
        config.load(recipe(text))
    assert len(str(caught.value)) < 2000


def test_thousands_of_faults_are_a_page(recipe: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        config.load(recipe("".join(f"nonsense{i}: 1\n" for i in range(3000))))
    assert len(caught.value.faults) == 3000
    assert len(str(caught.value)) < 10_000
    assert str(caught.value).endswith("... and 2,950 more")


# ------------------------------------------------------------------------------------------------ rules over fields

BROKEN_RULES: list[tuple[str, dict[str, Any]]] = [
    ("n_head", {"n_embd": 384, "n_head": 5}),
    ("warmup_iters", {"warmup_iters": 100, "max_iters": 100}),
    ("lr_decay_iters", {"warmup_iters": 100, "lr_decay_iters": 100}),
    ("lr_decay_iters", {"lr_schedule": "hold_cosine", "lr_decay_iters": 5000, "max_iters": 5000}),
    ("lr_decay_iters", {"lr_decay_iters": 10}),  # the default warm-up is 250
    ("lr_decay_iters", {"lr_schedule": "hold_cosine", "warmup_iters": 90, "max_iters": 100}),  # by default 80
    ("min_lr", {"min_lr": 1e-3, "learning_rate": 6e-4}),
    ("vocab_size", {"vocab_size": 500, "tokenizer": "char"}),
    ("vocab_size", {"vocab_size": 500}),
    ("document_mask", {"document_mask": True, "tokenizer": "char"}),
    ("document_mask", {"document_mask": True}),
    ("dtype", {"device": "cpu", "dtype": "float16"}),
    *(("max_time", {"max_time": time}) for time in ("", "0s", "soon", "1d", "30m1h", "-5m", "1.5h", "90")),
    ("process_timeout", {"process_timeout": "10"}),
    *((key, {"tokenizer": "char", key: "x" * 5000}) for key in ("dataset", "tokenizer", "init_from", "out_dir")),
    ("batch_warmup_iters", {"batch_warmup_iters": 5000}),
    ("batch_warmup_iters", {"batch_warmup_iters": 10, "streaming": True}),
    ("batch_warmup_iters", {"batch_warmup_iters": 10, "time_budget": "1h"}),
    ("cpu_threads", {"cpu_threads": 0}),
    ("num_proc", {"num_proc": -1}),
    *((key, {key: "x" * 256}) for key in ("dataset", "tokenizer", "out_dir")),
    ("init_from", {"init_from": "é" * 200, "tokenizer": "char"}),
    ("out_dir", {"out_dir": "x/" * 2000}),
]


@pytest.mark.parametrize(("key", "values"), BROKEN_RULES)
def test_a_broken_rule_is_one_fault(key: str, values: dict[str, Any]) -> None:
    assert faults_of(values).keys() == {key}


@pytest.mark.parametrize(
    "values",
    [
        {"n_embd": 384, "n_head": 5, "init_from": "gpt2"},  # a pretrained model brings its own shape
        {"lr_schedule": "constant", "warmup_iters": 10, "lr_decay_iters": 5},  # nothing decays
        {"document_mask": True, "init_from": "gpt2"},
        {"document_mask": True, "tokenizer": "bpe", "vocab_size": 500},
        {"min_lr": 6e-4, "learning_rate": 6e-4},
        {"min_lr": 0.0},
        {"max_time": "1h30m15s"},
        {"dtype": "float16"},
        {"out_dir": None},
    ],
)
def test_what_the_rules_allow(values: dict[str, Any]) -> None:
    config.build(values, "test")


def test_a_fix_that_is_named_works() -> None:
    for width, heads in ((384, 5), (768, 10), (7, 3), (100, 99)):
        fault = faults_of({"n_embd": width, "n_head": heads})["n_head"]
        named = re.findall(r"\d+", fault.split("set n_head to")[1])
        assert named
        for number in named:
            config.build({"n_embd": width, "n_head": int(number)}, "test")


def test_the_widest_width_is_answered_at_once() -> None:
    assert "must divide" in faults_of({"n_embd": 999_983, "n_head": 12})["n_head"]


# ------------------------------------------------------------------------------------------------- resolved defaults


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"max_iters": 500}, {"warmup_iters": 25, "lr_decay_iters": 500}),
        ({"max_iters": 600_000}, {"warmup_iters": 2000}),
        ({"max_iters": 10}, {"warmup_iters": 0}),
        ({"max_iters": 500, "lr_schedule": "hold_cosine"}, {"lr_decay_iters": 400}),
        ({"learning_rate": 1e-3}, {"min_lr": 1e-3 / 10}),
        ({"tokenizer": "bpe"}, {"vocab_size": 8192}),
        ({"tokenizer": "bpe", "vocab_size": 300}, {"vocab_size": 300}),
        ({"tokenizer": "gpt2"}, {"vocab_size": None}),
        ({}, {"tokenizer": "char", "out_dir": "out/test", "vocab_size": None, "early_stopping_patience": None}),
        ({"init_from": "gpt2"}, {"tokenizer": "gpt2"}),
        ({"init_from": "gpt2", "tokenizer": "bpe"}, {"tokenizer": "bpe"}),
        ({"init_from": "resume"}, {"tokenizer": "char"}),
        ({"out_dir": "elsewhere"}, {"out_dir": "elsewhere"}),
    ],
)
def test_defaults_that_depend_on_other_fields(values: dict[str, Any], expected: dict[str, Any]) -> None:
    made = config.build(values, "test")
    assert {key: getattr(made, key) for key in expected} == expected


def test_the_run_folder_is_named_after_the_recipe(recipe: Any) -> None:
    assert config.load(ROOT / "recipes" / "standard.yaml").run_dir == Path("out/standard")
    assert config.load(None).run_dir == Path("out/run")


def test_the_chapters_counts() -> None:
    shakespeare = config.load(ROOT / "recipes" / "standard.yaml")
    production = config.load(ROOT / "recipes" / "production.yaml")
    assert shakespeare.tokens_per_iter == 16_384  # chapter 5.2
    assert (production.global_batch, production.tokens_per_iter) == (480, 491_520)  # chapter 7.4


def test_a_batch_that_warms_up_is_counted_one_by_one() -> None:
    made = config.build(
        {"batch_size": 4, "gradient_accumulation_steps": 2, "block_size": 10, "batch_warmup_iters": 7}, "x"
    )
    assert [made.batch_sizes.at(step) for step in range(10)] == [1, 2, 3, 4, 5, 6, 7, 8, 8, 8]
    assert [made.tokens_by(step) for step in range(10)] == [0, 10, 30, 60, 100, 150, 210, 280, 360, 440]
    assert [made.batch_sizes.steps(made.batch_sizes.before(step)) for step in range(10)] == [*range(10)]
    few = made.model_copy(update={"batch_warmup_iters": 100, "batch_size": 1})
    assert {few.batch_sizes.at(step) for step in range(100)} == {1}, "at least one, whole ones only"
    plain = config.build({}, "x")
    assert plain.tokens_by(5000) == 5000 * plain.tokens_per_iter


def test_a_config_cannot_be_changed() -> None:
    made = config.build({}, "test")
    with pytest.raises(ValidationError, match="frozen"):
        made.n_layer = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("time", "seconds"),
    [
        ("11h30m", 41_400),
        ("90m", 5400),
        ("45s", 45),
        (" 1h ", 3600),
        ("5min", 300),
        ("5分钟", 300),
        ("1小时30分", 5400),
        ("90 秒", 90),
        ("h", 0),
        ("5", 0),
        ("", 0),
    ],
)
def test_times(time: str, seconds: int) -> None:
    assert seconds_of(time) == seconds


# ----------------------------------------------------------------------------------------------------- documentation


@pytest.mark.parametrize("key", FIELDS)
def test_every_field_says_what_it_means_and_takes(key: str) -> None:
    field = Config.model_fields[key]
    assert field.description
    assert not field.description.endswith(".")
    assert config.group_of(key) in config.GROUPS
    assert config.default_of(key)
    assert config.allowed(key)
    described = config.help_text().split(f"--{key} ")
    assert len(described) == 2, "once, on a line of its own"
    assert config.default_of(key) in described[1].splitlines()[0]
    assert str(field.description).split()[0] in described[1].splitlines()[1]


def test_a_default_that_is_filled_in_is_said_in_words() -> None:
    words = {key: config.default_of(key) for key in FIELDS if Config.model_fields[key].default is None}
    assert words == {
        "dataset_config": "none",
        "vocab_size": "8192 with tokenizer 'bpe'",
        "checkpoint_interval": "only at evaluations",
        "warmup_iters": "5% of max_iters, at most 2000",
        "lr_decay_iters": "max_iters; with hold_cosine and wsd 80% of it",
        "n_inner": "4 x n_embd",
        "mup_base_width": "no scaling",
        "min_lr": "learning_rate / 10",
        "early_stopping_patience": "never",
        "val_datasets": "none",
        "eval_tasks": "none",
        "eval_tasks_interval": "eval_interval",
        "time_budget": "max_iters steps, as long as they take",
        "out_dir": "out/<recipe name>",
        "max_time": "no limit",
        "spike_guard": "off",
        "hub_model_id": "the run folder's name",
    }


@pytest.mark.parametrize("key", [key for key in FIELDS if Config.model_fields[key].default is not None])
def test_a_default_as_help_shows_it_is_what_a_recipe_would_say(key: str, recipe: Any) -> None:
    default = Config.model_fields[key].default
    assert getattr(Config(**config.read_recipe(recipe(f"{key}: {config.default_of(key)}\n"))), key) == default


@pytest.mark.parametrize("flag", ["--help", "--print_config"])
def test_help_and_print_config_load_no_torch(flag: str) -> None:
    program = (
        "import runpy, sys; sys.argv = ['train.py', 'recipes/standard.yaml', sys.argv[1]]\n"
        "try: runpy.run_path('scripts/train.py', run_name='__main__')\n"
        "finally: assert not {'torch', 'transformers', 'datasets', 'accelerate'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program, flag], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(key in done.stdout for key in FIELDS)


def reads(tree: ast.AST) -> set[str]:
    """Return the attributes that a module reads from a variable called config."""
    holders = {"config", "run.config", "self.config", "self._config", "self._run.config"}
    return {
        node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and ast.unparse(node.value) in holders
    }


def test_no_option_is_silent() -> None:
    modules = [*(ROOT / "hfgpt").rglob("*.py"), *(ROOT / "scripts").glob("*.py")]
    read = {name for path in modules if path.parent.name != "config" for name in reads(ast.parse(path.read_text()))}
    tree = ast.parse((ROOT / "hfgpt" / "config" / "fields.py").read_text())
    body = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Config").body
    for function in reversed([node for node in body if isinstance(node, ast.FunctionDef)]):
        if function.name in read:  # a property counts only if something reads the property
            read |= {node.attr for node in ast.walk(function) if isinstance(node, ast.Attribute)}
    assert set(FIELDS) - read == set()


# -------------------------------------------------------------------------------------------------------- round trip


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_resolved_recipe_loads_back_to_the_same_config(path: Path, recipe: Any) -> None:
    made = config.load(path)
    assert config.load(recipe(config.to_yaml(made))) == made


def test_a_text_that_looks_like_a_number_stays_text(recipe: Any) -> None:
    made = config.build(
        {"sample_prompt": "a\x85b\u2028\u2029", "out_dir": "1e3", "project": "true", "license": "0", "dataset": "null"},
        "test",
    )
    assert config.load(recipe(config.to_yaml(made))) == made


def bounds(key: str) -> dict[str, Any]:
    """Return those of ge, gt, le and lt that a field has."""
    rules = Config.model_fields[key].metadata
    return {name: getattr(rule, name) for rule in rules for name in ("ge", "gt", "le", "lt") if hasattr(rule, name)}


def values_of(key: str) -> st.SearchStrategy[Any]:
    """Draw values that a field accepts on its own."""
    limits, kinds = bounds(key), list[st.SearchStrategy[Any]]()
    for option in reference.alternatives(Config.model_fields[key].annotation):
        if get_origin(option) is Literal:
            kinds.append(st.sampled_from(get_args(option)))
        elif option is bool:
            kinds.append(st.booleans())
        elif option is int:
            kinds.append(st.integers(limits.get("ge", 1), min(limits.get("le", 2**40), limits.get("lt", 2**41) - 1)))
        elif option is float:
            low, high = limits.get("ge", limits.get("gt", 0)), limits.get("le", limits.get("lt"))
            inside = {"exclude_min": "gt" in limits, "exclude_max": "lt" in limits}
            kinds.append(st.floats(low, high, allow_infinity=False, allow_nan=False, **inside))
        elif option is str:
            text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)
            kinds.append(text.filter(str.strip))
        else:
            kinds.append(st.none())
    return st.one_of(kinds)


@st.composite
def valid_configs(draw: st.DrawFn) -> Config:
    """Draw any valid config."""
    values = draw(st.fixed_dictionaries({}, optional={key: values_of(key) for key in FIELDS}))
    if draw(st.booleans()):
        values["n_head"] = draw(st.sampled_from([1, 2, 3, 12]))
        values["n_embd"] = values["n_head"] * draw(st.integers(1, 100))
    while True:
        try:
            return config.build(values, draw(st.text(string.ascii_letters, min_size=1)))
        except ConfigError as error:  # values that contradict each other
            if not {fault.key for fault in error.faults} & values.keys():  # a default contradicts a drawn value
                values.clear()
            for fault in error.faults:
                values.pop(fault.key, None)


@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(valid_configs())
def test_any_config_loads_back_from_its_yaml(recipe: Any, made: Config) -> None:
    assert config.load(recipe(config.to_yaml(made))) == made


@given(st.sampled_from(FIELDS).flatmap(lambda key: st.tuples(st.just(key), values_of(key))))
def test_any_value_can_be_typed_as_an_override(pair: tuple[str, Any]) -> None:
    key, value = pair
    text = value if isinstance(value, str) else config.yaml_scalar(value)
    if isinstance(value, str) and value.lower() in ("none", "null"):
        return
    read = config.parse_overrides([f"--{key}={text}"])[key]
    assert read == value or (isinstance(value, float) and math.isclose(read, value))


# ------------------------------------------------------------------------------------------------------ hostile input

FRAGMENTS = [
    *(f"{key}: " for key in FIELDS),
    *("{", "}", "[", "]", "&a ", "*a", "- ", ": ", "? ", "| ", "> ", "\t", "\n", "\n  ", "'", '"', "#", "%YAML 9\n"),
    *("---\n", "...\n", "<<: ", "!!python/object/apply:os.system ['true']", "!!binary x", "!!int x", "!!set ", "!x "),
    *("2024-13-99", ".nan", ".inf", "-.inf", "1e400", "-1", "0", "0x" + "F" * 5000, "9" * 5000, "1:99:99", "null"),
    *("true", "1e-3", "\x00", "\x07", "\x85", "\u2028", "\ufeff", "\udcff", "\U0001f600", "'\\ud800'", '"\\ud800"'),
]
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.dates() | st.binary(max_size=9)
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(LEAVES, inner, max_size=3))
KEYS = st.sampled_from([*FIELDS, *config.RENAMED, *config.INSTEAD]) | st.text() | LEAVES
DOCUMENTS = st.one_of(
    st.text(st.characters()),
    st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=3), max_size=20).map("".join),
    st.dictionaries(KEYS, VALUES, max_size=6).map(lambda values: yaml.safe_dump(values, allow_unicode=True)),
    st.tuples(st.sampled_from(RECIPES), st.data()).map(lambda pair: spoil(*pair)),
)
WORDS = st.one_of(
    st.text(),
    st.builds("--{}={}".format, KEYS, st.text() | st.sampled_from(FRAGMENTS)),
    st.builds("--{}".format, KEYS),
    st.sampled_from(["-", "--", "---", "=", "--=", "--no_", "--no_=", "true", "--no_compile", *FRAGMENTS]),
)


def spoil(path: Path, data: st.DataObject) -> str:
    """Draw a recipe in which a part is replaced by something else."""
    text = path.read_text()
    start = data.draw(st.integers(0, len(text)))
    stop = data.draw(st.integers(start, min(len(text), start + 20)))
    return text[:start] + data.draw(st.text(max_size=5) | st.sampled_from(FRAGMENTS)) + text[stop:]


def check_recipe(path: Path) -> None:
    """A recipe loads, and loads again from its own YAML; or its message names a file and line, or a key."""
    try:
        made = config.load(path)
    except ConfigError as error:
        message, faults = str(error), error.faults
    except InputError as error:
        message, faults = str(error), []
    else:
        path.write_text(config.to_yaml(made), encoding="utf-8")
        assert config.load(path) == made
        return
    assert all(fault.rule and fault.key in message for fault in faults)
    assert faults or re.search(r", line \d+: |cannot be read as text|must be lines of", message), message
    assert faults or str(path) in message


def check_overrides(words: list[str]) -> None:
    """Overrides load, or the message names a key or an argument."""
    try:
        config.load(None, words)
    except ConfigError as error:
        faults = error.faults
    else:
        return
    typed = "".join(words).replace("-", "_")
    for fault in faults:
        assert fault.key in map(repr, words) or fault.key in typed or fault.key in FIELDS, fault


@settings(max_examples=300, suppress_health_check=list(HealthCheck))
@given(DOCUMENTS)
def test_any_text_as_a_recipe(recipe: Any, text: str) -> None:
    check_recipe(recipe(text.encode("utf-8", "surrogatepass")))


@settings(max_examples=300, suppress_health_check=list(HealthCheck))
@given(st.lists(WORDS, max_size=5))
def test_any_words_as_overrides(words: list[str]) -> None:
    check_overrides(words)


@pytest.mark.long
@settings(max_examples=3000, suppress_health_check=list(HealthCheck))
@given(DOCUMENTS)
def test_thousands_of_texts_as_recipes(recipe: Any, text: str) -> None:
    check_recipe(recipe(text.encode("utf-8", "surrogatepass")))


@pytest.mark.long
@settings(max_examples=3000, suppress_health_check=list(HealthCheck))
@given(st.lists(WORDS, max_size=5))
def test_thousands_of_words_as_overrides(words: list[str]) -> None:
    check_overrides(words)


# ---------------------------------------------------------------------------------------------------- reference page


def test_the_reference_pages_are_current(tmp_path: Path) -> None:
    made = subprocess.run([sys.executable, ROOT / "scripts" / "parameter_reference.py", tmp_path], check=False)
    assert made.returncode == 0
    for language in ("en", "zh"):
        page = (ROOT / "docs" / language / "parameters.md").read_text("utf-8")
        assert (tmp_path / language / "parameters.md").read_text("utf-8") == page, "run scripts/parameter_reference.py"
        rows = re.findall(r"^\| `(\w+)` \|", page.rsplit("\n## ", 1)[0], re.MULTILINE)
        assert sorted(rows) == sorted(FIELDS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("n_layer: 2\nbatch_size：16\n", "line 2: its colon is the full-width ：\n    → write batch_size: 16"),
        ("batch_size： 16\n", "line 1: its colon is the full-width"),
        ("batch_size:16\n", "line 1: a space is missing after the colon\n    → write batch_size: 16"),
        ("sample_prompt: |\n  ROMEO:hello\nval_datasets: [a\n", "a bracket or brace is not closed"),
        ("a: b: c\n", "line 1: not valid YAML: the line has two values"),
        ("seed: 1\n\tn_layer: 2\n", "line 2: not valid YAML: a value cannot begin with this character"),
        ("dataset: 'x\n", "a quotation mark is not closed"),
        ("val_datasets: [a, b\n", "a bracket or brace is not closed"),
    ],
)
def test_a_mistyped_recipe_is_explained_in_its_own_words(recipe: Any, text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        config.load(recipe(text))
    assert message in str(caught.value)


@pytest.mark.parametrize("text", ["a1:" + "1a:" * 3000, "batch_size：" + "1" * 9000])
def test_a_long_line_is_not_repeated_whole(recipe: Any, text: str) -> None:
    with pytest.raises(InputError) as caught:
        config.load(recipe(text))
    assert len(str(caught.value)) < 1000


def test_a_value_may_hold_a_full_width_colon(recipe: Any) -> None:
    assert config.load(recipe("sample_prompt: '题：'\n")).sample_prompt == "题："


@pytest.mark.parametrize(
    ("word", "name"),
    [("lr", "learning_rate"), ("steps", "max_iters"), ("学习率", "learning_rate"), ("层数", "n_layer")],
)
def test_a_name_from_elsewhere_is_answered_with_ours(recipe: Any, word: str, name: str) -> None:
    for path, words in ((None, [f"--{word}=1"]), (recipe(f"{word}: 1\n"), [])):
        with pytest.raises(ConfigError, match=f"{word}: is not a parameter\n    → did you mean '{name}'"):
            config.load(path, words)


@pytest.mark.parametrize("word", ["epochs", "num_epochs", "轮数"])
def test_epochs_are_not_steps(word: str) -> None:
    with pytest.raises(ConfigError, match="use max_iters; the plan of a recipe shows how many epochs that is"):
        config.load(None, [f"--{word}=3"])


def test_every_name_that_a_page_gives_a_parameter_is_understood() -> None:
    book = yaml.safe_load((ROOT / "hfgpt" / "plan" / "guide.yaml").read_text("utf-8"))
    names = {entry["zh"]["name"]: key for key, entry in book.items() if "name" in entry["zh"]}
    assert {name: config.CALLED.get(name) for name in names} == names
    assert set(config.CALLED.values()) <= set(config.Config.model_fields)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["—" + "b" * 9000], "write --" + "b" * 119 + "…"),
        (["—batch_size=16"], "begins with the dash —, not with two hyphens\n    → write --batch_size=16"),
        (["――batch_size=16"], "write --batch_size=16"),
        (["－－batch_size＝16"], "write --batch_size=16"),
        (["--batch_size＝16"], "has the full-width sign ＝ in the place of =\n    → write --batch_size=16"),
        (["--batch_size＝１６"], "write --batch_size=16"),
        (["—batch_size＝１６"], "write --batch_size=16"),
        (["batch_size＝１６"], "write --batch_size=16"),
        (["--dataset＝诗＝１.txt"], "write --dataset=诗＝１.txt"),
    ],
)
def test_signs_of_a_chinese_keyboard_are_named(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.load(None, words)
    assert message in str(caught.value)


def test_the_shipped_recipes_are_those_of_the_repository() -> None:
    """A recipe that `plan --write recipes/mine.yaml` has made in a checkout is not among them."""
    told = subprocess.run(["git", "ls-files", "recipes"], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    if not told:
        pytest.skip("not a git checkout")
    names = {path.removeprefix("recipes/").removesuffix(".yaml") for path in told.split() if path.endswith(".yaml")}
    assert set(config.shipped_recipes()) == names


def test_the_beginning_of_a_recipes_name_is_answered_with_the_name() -> None:
    with pytest.raises(InputError, match="did you mean 'quick_experiment'"):
        config.load("quick")
