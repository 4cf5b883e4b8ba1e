"""The loop's promises: what a step is, that a resume is exact bit for bit, what stops a run."""

from __future__ import annotations

import itertools
import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.utils import DistributedType
from safetensors.torch import load_file
from survival import do_train, figures, multiply_losses

from hfgpt import config
from hfgpt.base import language
from hfgpt.base.errors import InputError, RunError
from hfgpt.model import gpt2 as model
from hfgpt.model import optim, schedule
from hfgpt.runs import metrics
from hfgpt.train import checkpoint, states
from hfgpt.train import loop as train
from hfgpt.train.failures import diverged
from hfgpt.train.identity import check_identity, identity
from hfgpt.train.launch import check_engine
from hfgpt.train.resume import restore
from hfgpt.train.run import Run
from hfgpt.train.start import start
from hfgpt.train.step import StepResult, to_device, train_step

Records = list[dict[str, float]]


class Killed(Exception):
    """Simulates the end of the process in the middle of a step."""


def series(folder: Path, key: str) -> list[float]:
    return metrics.series(metrics.read(folder / "metrics.jsonl"), key)[1]


def kill_after(monkeypatch: pytest.MonkeyPatch, steps: int, in_accumulation: bool = False) -> None:
    """Allow `steps` optimizer steps, then end the process before the next, or after its first micro-batch."""
    real_step, count = train.train_step, 0

    def dying(run: Run, batches: list[Any], *rest: Any) -> StepResult:
        nonlocal count
        count += 1
        if count > steps:
            if in_accumulation:
                run.accelerator.backward(run.model(**batches[0]))
            raise Killed
        return real_step(run, batches, *rest)

    monkeypatch.setattr(train, "train_step", dying)


# ------------------------------------------------------------------------------------------------ what a step is


@pytest.mark.parametrize(("batch_size", "accumulation"), [(16, 4), (8, 8)])
def test_accumulation_is_the_same_run(tiny: dict[str, Any], tmp_path: Path, batch_size: int, accumulation: int) -> None:
    """64 x 1 = 16 x 4 = 8 x 8: loss and gradient norm of each step agree up to rounding (chapter 1.3)."""
    whole = do_train(tiny | {"batch_size": 64, "out_dir": str(tmp_path / "whole")})
    parts = do_train(tiny | {"batch_size": batch_size, "gradient_accumulation_steps": accumulation})
    for key in ("train_loss", "grad_norm", "val_loss", "train_eval_loss"):
        assert series(parts, key) == pytest.approx(series(whole, key), rel=1e-5)
    assert series(parts, "learning_rate") == series(whole, "learning_rate")


def ragged_batches(run: Run, splits: list[int]) -> list[dict[str, torch.Tensor]]:
    """Return eight sequences with very different numbers of targets, in micro-batches of these sizes."""
    tokens = torch.from_numpy(run.corpus.train.blocks(range(8), run.config.block_size))
    targets = tokens[:, 1:].clone()
    for row, kept in enumerate((1, 16, 3, 16, 2, 9, 16, 5)):
        targets[row, kept:] = model.IGNORED
    bounds = [sum(splits[:i]) for i in range(len(splits) + 1)]
    return [{"input_ids": tokens[a:b, :-1], "targets": targets[a:b]} for a, b in itertools.pairwise(bounds)]


@pytest.mark.parametrize("splits", [[1] * 8, [4, 4]])
def test_ragged_targets_weigh_by_their_number(tiny: dict[str, Any], splits: list[int]) -> None:
    """Micro-batches with different numbers of targets: the gradient is that of the mean over all targets."""
    run = start(config.build(tiny | {"batch_size": 8 // len(splits), "gradient_accumulation_steps": len(splits)}, "x"))
    [whole] = ragged_batches(run, [8])
    count = int((whole["targets"] != model.IGNORED).sum())
    (run.plain(**whole) / count).backward()
    expected = torch.cat([p.grad.flatten() for p in run.plain.parameters() if p.grad is not None])
    run.plain.zero_grad()
    seen: list[torch.Tensor] = []
    run.optimizer.optimizer.register_step_pre_hook(
        lambda *_: seen.append(torch.cat([p.grad.flatten() for p in run.plain.parameters() if p.grad is not None]))
    )
    run.accelerator.clip_grad_norm_ = lambda parameters, limit: torch.nn.utils.get_total_norm(  # type: ignore[method-assign]
        [p.grad for p in parameters]
    )
    train_step(run, ragged_batches(run, splits), count, 1e-3)
    torch.testing.assert_close(seen[0], expected, rtol=1e-4, atol=1e-7)


def test_gradients_are_clipped_to_the_norm(tiny: dict[str, Any]) -> None:
    run = start(config.build(tiny | {"grad_clip": 0.01}, "x"))
    norms: list[float] = []
    run.optimizer.optimizer.register_step_pre_hook(
        lambda *_: norms.append(float(torch.nn.utils.get_total_norm([p.grad for p in run.plain.parameters()])))
    )
    batches = to_device(run.corpus.batches.micro_batches(0, 0, 1, 4), run.device)
    result = train_step(run, batches, run.config.tokens_per_iter, 1e-3)
    assert result.grad_norm > 0.1
    assert norms == [pytest.approx(0.01, rel=1e-3)]


def test_learning_rates_of_the_record_are_the_schedule(tiny: dict[str, Any]) -> None:
    values = tiny | {"warmup_iters": 3, "min_lr": 1e-5, "learning_rate": 1e-3}
    folder = do_train(values)
    resolved = config.build(values, "x")
    assert series(folder, "learning_rate") == [schedule.learning_rate(step, resolved) for step in range(1, 9)]


def test_train_loss_is_the_global_batch_unrounded(tiny: dict[str, Any]) -> None:
    folder = do_train(tiny)
    losses = series(folder, "train_loss")
    assert len(losses) == 8
    assert any(round(loss, 6) != loss for loss in losses)


@pytest.mark.parametrize("batch_size", [2, 32])
def test_evaluation_does_not_depend_on_the_batch(tiny: dict[str, Any], tmp_path: Path, batch_size: int) -> None:
    """The same model on the same blocks, for any batch_size: here, the model before training."""
    reference = do_train(tiny | {"max_iters": 1, "warmup_iters": 0, "out_dir": str(tmp_path / "reference")})
    other = do_train(tiny | {"max_iters": 1, "warmup_iters": 0, "batch_size": batch_size})
    for key in ("val_loss", "train_eval_loss", "val_bits_per_character"):
        assert series(other, key)[0] == pytest.approx(series(reference, key)[0], rel=1e-6)


def test_evaluating_exporting_and_saving_leave_the_run_alone(tiny: dict[str, Any], tmp_path: Path) -> None:
    """The losses are the same, bit by bit, with an evaluation after every step or only at the end."""
    often = do_train(
        tiny | {"dropout": 0.1, "eval_interval": 1, "sample_prompt": "A", "out_dir": str(tmp_path / "often")}
    )
    assert series(do_train(tiny | {"dropout": 0.1, "eval_interval": 100}), "train_loss") == series(often, "train_loss")


def test_the_first_steps_are_those_of_a_plain_loop(tiny: dict[str, Any]) -> None:
    """The losses equal torch's alone: model, AdamW, clipping and schedule, without Accelerate or checkpoints."""
    folder = do_train(tiny)
    run = start(config.build(tiny | {"out_dir": str(folder.parent / "other")}, "x"))
    plain = model.build(run.config, run.plain.gpt2.config.vocab_size, None)
    plain.load_state_dict(run.plain.state_dict())
    optimizer = torch.optim.AdamW(
        optim.parameter_groups(plain.parameters(), run.config.weight_decay), betas=(0.9, 0.95), foreach=False
    )
    losses = []
    for step in range(8):
        [block] = run.corpus.batches.micro_batches(step, 0, 1, 4)
        tokens = torch.from_numpy(block)
        loss = plain(tokens[:, :-1], tokens[:, 1:]) / (4 * 16)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = schedule.learning_rate(step + 1, run.config)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert series(folder, "train_loss") == pytest.approx(losses, rel=1e-6)


def test_mixed_precision_is_on_for_every_step(tiny: dict[str, Any]) -> None:
    """Evaluation, export and checkpoints unwrap the model; the precision must survive that."""
    run = start(config.build(tiny | {"dtype": "bfloat16"}, "x"))
    seen: list[torch.dtype] = []
    run.plain.gpt2.transformer.h[0].mlp.c_fc.register_forward_hook(
        lambda _module, _inputs, output: seen.append(output.dtype)
    )
    meter = train.Meter(run)
    horizon, trace = train.Horizon(run, meter, 0.0), train.Trace(run, False)
    train.loop(run, meter, horizon, trace, train.Stop(None, run.device))
    assert set(seen) == {torch.bfloat16}
    assert {p.dtype for p in run.plain.parameters()} == {torch.float32}


def test_activation_checkpointing_changes_nothing_but_memory(tiny: dict[str, Any], tmp_path: Path) -> None:
    plain = do_train(tiny | {"dropout": 0.1, "out_dir": str(tmp_path / "plain")})
    assert figures(do_train(tiny | {"dropout": 0.1, "activation_checkpointing": True})) == figures(plain)


# ----------------------------------------------------------------------------------------------------- exact resume

# The tiny text's training split has 670 blocks of 16; with 64 sequences a step, an epoch is about 10 steps.
LONG = {"max_iters": 24, "eval_interval": 4, "batch_size": 32, "gradient_accumulation_steps": 2, "dropout": 0.2}


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, tiny_text: Path) -> Callable[[dict[str, Any]], Path]:
    """Return the uninterrupted run, trained once with each optimizer."""
    made: dict[str, Path] = {}

    def run(values: dict[str, Any]) -> Path:
        optimizer = values.get("optimizer", "adamw")
        if optimizer not in made:
            made[optimizer] = do_train(values | {"out_dir": str(tmp_path_factory.mktemp("undisturbed") / "run")})
        return made[optimizer]

    return run


@pytest.mark.parametrize(
    ("optimizer", "killed_after", "in_accumulation"),
    [
        ("adamw", 2, False),
        ("adamw", 6, True),
        ("adamw", 10, False),
        ("adamw", 11, False),
        ("adamw", 13, True),
        ("adamw", 22, False),
        ("muon", 13, True),
    ],
    ids=[
        "before the first checkpoint",
        "mid-accumulation",
        "an epoch's end",
        "mid-epoch",
        "epoch 2",
        "epoch 3",
        "muon",
    ],
)
def test_resume_is_exact(
    tiny: dict[str, Any],
    undisturbed: Callable[[dict[str, Any]], Path],
    monkeypatch: pytest.MonkeyPatch,
    optimizer: str,
    killed_after: int,
    in_accumulation: bool,
) -> None:
    """Killed at any step, resumed, with dropout: weights and record equal the uninterrupted run's, bit by bit."""
    values = tiny | LONG | {"optimizer": optimizer}
    whole = undisturbed(values)
    with monkeypatch.context() as patch:
        kill_after(patch, killed_after, in_accumulation)
        with pytest.raises(Killed):
            do_train(values)
    resumed = do_train(values, resume=True)
    assert figures(resumed) == figures(whole)
    for name in ("model.safetensors", "checkpoint-24/model.safetensors", "checkpoint-24/optimizer.safetensors"):
        theirs = load_file(whole / name)
        assert all(torch.equal(tensor, theirs[key]) for key, tensor in load_file(resumed / name).items()), name


def test_resume_without_the_generators_is_noticed(
    tiny: dict[str, Any], undisturbed: Callable[[dict[str, Any]], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control: without the saved generators, the test above would fail."""
    whole = undisturbed(tiny | LONG)
    with monkeypatch.context() as patch:
        kill_after(patch, 10)
        with pytest.raises(Killed):
            do_train(tiny | LONG)

    def restore_without(run: Run, saved: checkpoint.Checkpoint) -> None:
        restore(run, saved)
        states.seed(run.accelerator, run.config.seed, run.progress.step)

    monkeypatch.setattr("hfgpt.train.start.restore", restore_without)
    assert figures(do_train(tiny | LONG, resume=True)) != figures(whole)


def test_a_resume_keeps_the_optimizer(tiny: dict[str, Any]) -> None:
    """An optimizer cannot use another one's averages."""
    do_train(tiny)
    with pytest.raises(InputError, match="optimizer: 'adamw' in the checkpoint, 'muon' now"):
        do_train(tiny | {"optimizer": "muon", "max_iters": 12}, resume=True)


def test_a_checkpoint_from_before_there_was_a_choice_is_adamws(tiny: dict[str, Any]) -> None:
    do_train(tiny)
    run = start(config.build(tiny, "x"), resume=True)
    state = {"identity": {key: value for key, value in identity(run).items() if key != "optimizer"}}
    check_identity(run, checkpoint.Checkpoint(Path("old"), {}, {}, {}, state))


def test_muon_needs_matrices_which_deepspeed_flattens(tiny: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="DeepSpeed flattens them → launch with FSDP2"):
        check_engine(config.build(tiny | {"optimizer": "muon"}, "x"), DistributedType.DEEPSPEED)
    check_engine(config.build(tiny, "x"), DistributedType.DEEPSPEED)
    for engine in (DistributedType.MULTI_GPU, DistributedType.FSDP):
        check_engine(config.build(tiny | {"optimizer": "muon"}, "x"), engine)


def test_resume_may_train_longer(tiny: dict[str, Any]) -> None:
    do_train(tiny | {"lr_schedule": "constant"})
    folder = do_train(tiny | {"lr_schedule": "constant", "max_iters": 12}, resume=True)
    assert [step for step, *_ in figures(folder)] == list(range(13))


def test_resume_with_another_micro_batch_goes_on_with_the_same_batches(tiny: dict[str, Any], tmp_path: Path) -> None:
    whole = do_train(tiny | {"batch_size": 8, "out_dir": str(tmp_path / "whole")})
    do_train(tiny | {"batch_size": 8, "max_iters": 4, "lr_decay_iters": 8})
    parts = tiny | {"batch_size": 2, "gradient_accumulation_steps": 4}
    assert series(do_train(parts, resume=True), "train_loss") == pytest.approx(series(whole, "train_loss"), rel=1e-5)


def test_a_finished_run_resumes_to_its_end(tiny: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    before = figures(do_train(tiny))
    capsys.readouterr()
    assert figures(do_train(tiny, resume=True)) == before
    assert "training is complete: 8 of 8 steps are done → to continue, add --max_iters=16\n" in capsys.readouterr().out


def test_a_time_budget_is_announced_in_the_readers_language(
    tiny: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    with language.using("zh"):
        do_train(tiny | {"time_budget": "8s"})
    assert "训练 8 秒" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------- how a run ends


def test_a_resume_forgets_the_samples_of_steps_that_it_makes_again(tiny: dict[str, Any]) -> None:
    values = tiny | {"max_iters": 12, "sample_prompt": "A", "save_total_limit": 9, "always_save_checkpoint": True}
    folder = do_train(values)
    whole = (folder / "samples.jsonl").read_text(encoding="utf-8")
    for later in (8, 12):  # as if the process had been killed between sample and checkpoint
        shutil.rmtree(folder / f"checkpoint-{later}")
    with (folder / "samples.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 16, "te')
    do_train(values, resume=True)
    assert [json.loads(line)["step"] for line in whole.splitlines()] == [4, 8, 12]
    assert (folder / "samples.jsonl").read_text(encoding="utf-8") == whole


def test_the_last_step_is_evaluated_and_saved(tiny: dict[str, Any]) -> None:
    """It holds even if eval_interval is longer than the run."""
    folder = do_train(tiny | {"eval_interval": 1000})
    assert [step for step, *rest in figures(folder) if rest[4] != math.inf] == [0, 8]
    assert checkpoint.steps(folder) == [8]
    assert (folder / "loss.png").stat().st_size > 10_000


def test_early_stopping(tiny: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    values = tiny | {"learning_rate": 3.0, "grad_clip": 0.0, "max_iters": 40, "early_stopping_patience": 2}
    folder = do_train(values)
    evaluations = series(folder, "val_loss")
    best = evaluations.index(min(evaluations))
    assert len(evaluations) == best + 1 + 2
    assert series(folder, "val_loss")[-1] > min(evaluations)
    assert "no better validation loss in 2 evaluations" in capsys.readouterr().out


def test_nan_stops_the_run_and_spares_the_weights(tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The step is named, the update is skipped, and the previous checkpoint is good."""
    multiply_losses(monkeypatch, 6, by=math.nan)
    with pytest.raises(RunError, match=r"step 6: .*not finite(?s:.*)--resume"):
        do_train(tiny)
    folder = Path(tiny["out_dir"])
    assert [math.isnan(loss) for loss in series(folder, "train_loss")] == [False] * 5 + [True]
    assert checkpoint.steps(folder) == [4]
    saved = checkpoint.read(folder / "checkpoint-4")
    assert all(torch.isfinite(tensor).all() for tensor in saved.model.values())
    assert len(figures(do_train(tiny, resume=True))) == 9


def test_a_diverged_run_is_told_to_lower_both_rates_of_muon(tiny: dict[str, Any]) -> None:
    for optimizer, rates in (("adamw", r"\(--learning_rate=0.001;"), ("muon", "=0.001 --muon_learning_rate=0.02;")):
        given = {"optimizer": optimizer, "learning_rate": 2e-3, "muon_learning_rate": 0.04}
        given["out_dir"] = f"{tiny['out_dir']}-{optimizer}"
        assert re.search(rates, str(diverged(start(config.build(tiny | given, "x")), "loss nan", 1)))


def test_bad_steps_are_left_out_up_to_the_limit(tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    multiply_losses(monkeypatch, 2, 3, 5, by=math.inf)
    folder = do_train(tiny | {"max_bad_steps": 3})
    assert [math.isfinite(norm) for norm in series(folder, "grad_norm")] == [
        step not in (2, 3, 5) for step in range(1, 9)
    ]
    assert all(torch.isfinite(tensor).all() for tensor in load_file(folder / "model.safetensors").values())


def test_eval_only_writes_nothing(tiny: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    folder = do_train(tiny | {"eval_only": True})
    assert "val 5." in capsys.readouterr().out
    assert not folder.exists()


def test_overwrite_leaves_nothing_of_the_older_run(tiny: dict[str, Any]) -> None:
    do_train(tiny | {"max_iters": 12})
    folder = do_train(tiny, overwrite=True)
    assert checkpoint.steps(folder)[0] == 8
    assert len(figures(folder)) == 9


def test_checkpoints_only_of_the_best(tiny: dict[str, Any]) -> None:
    """always_save_checkpoint: false keeps the checkpoint with the best loss, and the last one."""
    values = tiny | {"learning_rate": 3.0, "grad_clip": 0.0, "max_iters": 16, "always_save_checkpoint": False}
    folder = do_train(values)
    evaluations = series(folder, "val_loss")
    best = 4 * evaluations.index(min(evaluations))
    assert checkpoint.steps(folder) == sorted({16, best} - {0}, reverse=True)


def test_checkpoints_between_evaluations_are_resumed_from_to_the_same_bits(
    tiny: dict[str, Any], tmp_path: Path
) -> None:
    values = tiny | {"dropout": 0.1, "eval_interval": 6, "save_total_limit": 9}
    whole = do_train(values | {"out_dir": str(tmp_path / "whole")})
    assert checkpoint.steps(whole) == [8, 6]
    more = values | {"out_dir": str(tmp_path / "more"), "checkpoint_interval": 2}
    folder = do_train(more)
    assert checkpoint.steps(folder) == [8, 6, 4, 2]
    for later in (8, 6):
        shutil.rmtree(folder / f"checkpoint-{later}")
    do_train(more, resume=True)
    assert (folder / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert series(folder, "val_loss") == series(whole, "val_loss")


def test_max_time_stops_politely(tiny: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    folder = do_train(tiny | {"max_time": "1s", "max_iters": 100_000, "eval_interval": 100_000, "warmup_iters": 1})
    [step] = checkpoint.steps(folder)
    assert 0 < step < 100_000
    assert f"max_time is reached: stopping after step {step}" in capsys.readouterr().out


def test_tensorboard_mirrors_the_record(tiny: dict[str, Any]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = do_train(tiny | {"report_to": "tensorboard"})
    events = EventAccumulator(str(folder / "logs" / "hfgpt"))
    events.Reload()
    told = {event.step: event.value for event in events.Scalars("train_loss")}
    assert told == pytest.approx(dict(zip(range(1, 9), series(folder, "train_loss"), strict=True)), rel=1e-6)


def test_the_record_has_every_figure(tiny: dict[str, Any]) -> None:
    lines = [json.loads(line) for line in (do_train(tiny) / "metrics.jsonl").read_text().splitlines()]
    steps = {"step", "train_loss", "learning_rate", "grad_norm", "tokens_per_second", "mfu", "memory_bytes"}
    steps |= {"seconds", "data_seconds", "epoch"}
    evaluated = {"step", "seconds", "train_eval_loss", "val_loss", "val_perplexity", "val_bits_per_character"}
    steps_lines = [line.keys() for line in lines if "train_loss" in line]
    assert steps_lines[0] == steps - {"mfu"}  # a CPU's peak is not measured before the first step
    assert {frozenset(keys) for keys in steps_lines[1:]} == {frozenset(steps)}
    first, *later = [line.keys() for line in lines if "val_loss" in line]
    of_the_text = {f"ngram_loss_{order}" for order in range(1, 9)} | {"train_tokens", "vocab_size"}
    assert first == evaluated | of_the_text
    assert {frozenset(keys) for keys in later} == {frozenset(evaluated)}
    for line in lines:
        if "val_loss" in line:
            assert line["val_perplexity"] == pytest.approx(math.exp(line["val_loss"]))
