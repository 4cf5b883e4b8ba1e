"""A run's record: no measurement is lost or doubled by an interruption, and other tools' records can be read."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hfgpt.base.errors import InputError
from hfgpt.runs import metrics
from hfgpt.runs.history import read_run
from hfgpt.runs.metrics import MetricsWriter


def test_floats_come_back_bit_for_bit_and_none_is_left_out(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path / "metrics.jsonl")
    writer.write(10, train_loss=0.1 + 0.2, learning_rate=1e-300, mfu=None)
    assert metrics.read(writer.path) == [{"step": 10, "train_loss": 0.1 + 0.2, "learning_rate": 1e-300}]


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_finite_float_survives(value: float) -> None:
    assert metrics._from_line(metrics._to_line({"step": 1, "train_loss": value})) == {"step": 1, "train_loss": value}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_diverged_loss_is_valid_json_and_reads_as_nan(tmp_path: Path, value: float) -> None:
    writer = MetricsWriter(tmp_path / "metrics.jsonl")
    writer.write(1, train_loss=value)
    assert json.loads(writer.path.read_text(), parse_constant=pytest.fail) == {"step": 1, "train_loss": None}
    assert math.isnan(metrics.read(writer.path)[0]["train_loss"])


def test_lines_of_one_step_are_merged_and_the_later_wins(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path / "metrics.jsonl")
    writer.write(5, train_loss=2.0, learning_rate=1e-3)
    writer.write(5, val_loss=2.5, train_loss=2.1)
    writer.write(0, val_loss=4.0)
    assert metrics.read(writer.path) == [
        {"step": 0, "val_loss": 4.0},
        {"step": 5, "train_loss": 2.1, "learning_rate": 1e-3, "val_loss": 2.5},
    ]


def test_a_crash_at_any_byte_loses_at_most_the_line_being_written(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    writer = MetricsWriter(path)
    writer.write(1, train_loss=3.0)
    first = path.read_bytes()
    writer.write(2, train_loss=2.0)
    whole = path.read_bytes()
    for cut in range(len(first), len(whole)):
        path.write_bytes(whole[:cut])
        assert [record["step"] for record in metrics.read(path)] in ([1], [1, 2])
        MetricsWriter(path).write(3, train_loss=1.0)
        assert [record["step"] for record in metrics.read(path)] == [1, 3]


def test_a_resume_has_each_step_once(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path / "metrics.jsonl")
    for step in range(1, 8):
        writer.write(step, train_loss=float(step))
    resumed = MetricsWriter(tmp_path / "metrics.jsonl")
    resumed.truncate_after(4)
    resumed.write(5, train_loss=50.0)
    assert metrics.series(metrics.read(writer.path), "train_loss") == ([1, 2, 3, 4, 5], [1, 2, 3, 4, 50])
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_truncating_a_run_that_has_not_begun_does_nothing(tmp_path: Path) -> None:
    MetricsWriter(tmp_path / "metrics.jsonl").truncate_after(4)
    assert not list(tmp_path.iterdir())


def test_smoothing_drops_a_single_bad_batch_and_keeps_what_is_no_number() -> None:
    falling = [5.0 - 0.1 * i for i in range(40)]
    assert metrics.smooth([*falling[:20], 99.0, *falling[20:]], 2)[20] < 5
    assert metrics.smooth(falling, 2)[0] == 5.0
    assert metrics.smooth(falling, 2)[10] == falling[10]
    assert metrics.smooth([1.0, math.nan, 3.0], 1) == pytest.approx([1.0, math.nan, 3.0], nan_ok=True)


HOSTILE = [
    '{"step": Infinity}', '{"step": NaN}', '{"step": -1}', '{"step": 1.5}', '{"step": true}', '{"step": 1e300}',
    '{"step": ' + "9" * 5000 + "}", "[" * 100_000, '{"step": 1, "train_loss": ' + "9" * 400 + "}",
    '{"step": 1, "train_loss": ' + "[" * 100_000 + "}", '{"step": 1, "train_loss": true}', '{"step": null}', "1",
    "null",
]  # fmt: skip


@pytest.mark.parametrize("line", HOSTILE, ids=lambda line: line[:30])
def test_a_hostile_line_is_one_message(tmp_path: Path, line: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1, "train_loss": 2}}\n{line}\n{{"step": 3, "train_loss": 1}}\n')
    with pytest.raises(InputError, match="line 2"):
        metrics.read(path)
    (tmp_path / "samples.jsonl").write_text(f'{line}\n{{"step": 3, "text": "whole"}}\n')
    assert metrics.read_samples(tmp_path / "samples.jsonl") == {3: "whole"}


@pytest.mark.parametrize("text", ["[" * 100_000, '{"log_history": ' + "[" * 100_000, '{"log_history": [[]]}',
                                  '{"log_history": [{"step": 1e999, "loss": 1}]}', "[]", "7",
                                  '{"log_history": [{"step": 1, "loss": ' + "9" * 400 + "}]}"])  # fmt: skip
def test_a_hostile_trainer_state_is_one_message(tmp_path: Path, text: str) -> None:
    (tmp_path / "trainer_state.json").write_text(text)
    with pytest.raises(InputError, match=r"trainer_state\.json"):
        read_run(tmp_path)


def test_a_hostile_log_is_read_as_far_as_it_is_a_log(tmp_path: Path) -> None:
    lines = [f"iter {'9' * 5000}: loss 1.0, time 1.0ms", f"max_iters = {'[' * 5000}", "batch_size = 5 * 8",
             f"learning_rate = {'9' * 5000}", "iter 3: loss 2.0, time 5.0ms",
             f"iter 4: loss {'9' * 400}, time 5.0ms"]  # fmt: skip
    (tmp_path / "train.log").write_text("\n".join(lines))
    steps, losses = read_run(tmp_path / "train.log").series("train_loss")
    assert steps == [3, 4]
    assert losses == [2.0, math.inf]


@pytest.mark.parametrize("line", ["{not json", '{"train_loss": 1}', '{"step": 1, "train_loss": "low"}', "[1]"])
def test_a_bad_line_in_the_middle_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "metrics.jsonl").write_text(f'{{"step": 1, "train_loss": 2}}\n{line}\n{{"step": 3, "train_loss": 1}}\n')
    with pytest.raises(InputError, match="line 2"):
        metrics.read(tmp_path / "metrics.jsonl")


def test_a_run_folder_brings_its_recipe(tmp_path: Path) -> None:
    folder = tmp_path / "quick"
    folder.mkdir()
    MetricsWriter(folder / "metrics.jsonl").write(1, train_loss=3.0)
    (folder / "recipe.yaml").write_text("batch_size: 16\nblock_size: 64\nout_dir: out/quick\n")
    for source in (folder, folder / "metrics.jsonl"):
        run = read_run(source)
        assert (run.name, run.config and run.config.tokens_per_iter) == ("quick", 1024)
        assert run.series("train_loss") == ([1], [3.0])


def test_a_trainer_state_reads(tmp_path: Path) -> None:
    history = [
        {"epoch": 0.1, "grad_norm": 1.5, "learning_rate": 5e-5, "loss": 3.25, "step": 10},
        {"epoch": 0.1, "eval_loss": 3.5, "eval_runtime": 1.0, "step": 10},
        {"epoch": 0.1, "total_flos": 1e12, "train_loss": 9.9, "train_runtime": 2.0, "step": 10},
    ]
    for folder, step in (("checkpoint-90", 10), ("checkpoint-100", 20)):
        (tmp_path / folder).mkdir()
        state = [{**line, "step": step} for line in history]
        (tmp_path / folder / "trainer_state.json").write_text(json.dumps({"log_history": state}))
    expected = {"train_loss": 3.25, "val_loss": 3.5, "learning_rate": 5e-5, "grad_norm": 1.5}
    assert read_run(tmp_path / "checkpoint-90").records == [{"step": 10, **expected}]
    assert read_run(tmp_path).records == [{"step": 20, **expected}], "the latest checkpoint's"


NANOGPT_LOG = """Overriding config with config/train_shakespeare_char.py:
# train a miniature character-level shakespeare model
out_dir = 'out-shakespeare-char'
batch_size = 64
block_size = 256 # context of up to 256 previous characters
max_iters = 5000
gradient_accumulation_steps = 1

Overriding: compile = False
tokens per iteration will be: 16,384
step 0: train loss 4.2874, val loss 4.2823
iter 0: loss 4.2650, time 30000.00ms, mfu -100.00%
iter 10: loss 3.1462, time 20.00ms, mfu 18.50%
step 20: train loss 2.1000, val loss 2.2000
iter 20: loss nan, time 520.00ms, mfu 17.20%
"""


def test_nanogpts_printed_log_reads(tmp_path: Path) -> None:
    (tmp_path / "shakespeare.log").write_text(NANOGPT_LOG)
    run = read_run(tmp_path / "shakespeare.log")
    assert run.name == "shakespeare"
    assert run.series("val_loss") == ([0, 20], [4.2823, 2.2])
    assert run.series("train_eval_loss") == ([0, 20], [4.2874, 2.1])
    assert run.series("train_loss")[1] == pytest.approx([4.265, 3.1462, math.nan], nan_ok=True)
    assert run.series("mfu") == ([10, 20], [0.185, 0.172])
    assert run.series("seconds")[1] == pytest.approx([30.0, 30.2, 30.9]), "nine quick steps, then 0.5 s of evaluation"
    assert run.config is not None
    assert (run.config.tokens_per_iter, run.config.max_iters, run.config.compile) == (16_384, 5000, False)


GPT2_LOG = """Overriding config with config/train_gpt2.py:
# config for training GPT-2 (124M) down to very nice loss of ~2.85 on 1 node of 8X A100 40GB
wandb_log = True
wandb_project = 'owt'
wandb_run_name='gpt2-124M'

# these make the total batch size be ~0.5M
# 12 batch size * 1024 block size * 5 gradaccum * 8 GPUs = 491,520
batch_size = 12
block_size = 1024
gradient_accumulation_steps = 5 * 8

# this makes total number of tokens be 300B
max_iters = 600000
lr_decay_iters = 600000

# eval stuff
eval_interval = 1000
eval_iters = 200
log_interval = 10

# weight decay
weight_decay = 1e-1

tokens per iteration will be: 491,520
step 0: train loss 10.9898, val loss 10.9879
iter 0: loss 10.9886, time 30000.00ms, mfu -100.00%
"""


@pytest.mark.parametrize(
    ("lines", "tokens"),
    [
        ({}, 491_520),
        ({"tokens per iteration will be: 491,520\n": ""}, 491_520),
        ({"gradient_accumulation_steps = 5 * 8\n": ""}, 491_520),
        ({"gradient_accumulation_steps = 5 * 8\n": "", "491,520\nstep": "61,440\nstep"}, 61_440),
        ({"gradient_accumulation_steps = 5 * 8\n": "", "tokens per iteration will be: 491,520\n": ""}, 491_520),
        ({"5 * 8\n": "n\n", "batch_size": "n = 2 * 2\nbatch_size", "491,520\nstep": "49,152\nstep"}, 49_152),
        ({"491,520\nstep": "491,521\nstep"}, 491_520),
    ],
)
def test_a_printed_log_says_how_many_tokens_a_step_has(tmp_path: Path, lines: dict[str, str], tokens: int) -> None:
    text = GPT2_LOG
    for old, new in lines.items():
        assert old in text
        text = text.replace(old, new, 1)
    (tmp_path / "gpt2.log").write_text(text)
    recipe = read_run(tmp_path / "gpt2.log").config
    assert recipe is not None
    assert (recipe.tokens_by(1), recipe.max_iters) == (tokens, 600_000)


def test_a_log_without_settings_has_nanogpts_own(tmp_path: Path) -> None:
    steps = GPT2_LOG[GPT2_LOG.index("step 0") :]
    (tmp_path / "tail.log").write_text(steps)
    assert read_run(tmp_path / "tail.log").config is None, "the beginning is missing"
    (tmp_path / "whole.log").write_text("tokens per iteration will be: 491,520\n" + steps)
    recipe = read_run(tmp_path / "whole.log").config
    assert recipe is not None
    assert (recipe.tokens_by(1), recipe.max_iters, recipe.warmup_iters) == (491_520, 600_000, 2000)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda folder: None, "no such run folder"),
        (lambda folder: folder.mkdir(), "neither metrics.jsonl nor trainer_state.json"),
        (lambda folder: folder.write_text("hello"), "holds no step yet"),
        (lambda folder: (folder.mkdir(), (folder / "trainer_state.json").write_text("[]")), "log_history"),
        (lambda folder: (folder.mkdir(), (folder / "metrics.jsonl").write_text("")), "holds no step yet"),
    ],
)
def test_what_is_no_run_is_said_in_one_message(tmp_path: Path, make, said: str) -> None:  # type: ignore[no-untyped-def]
    make(tmp_path / "run")
    with pytest.raises(InputError, match=said):
        read_run(tmp_path / "run")


def test_reading_a_run_needs_no_torch() -> None:
    import subprocess
    import sys

    code = "import sys, hfgpt.runs.metrics; assert not {'torch', 'transformers', 'pandas'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
