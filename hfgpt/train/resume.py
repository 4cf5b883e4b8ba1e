"""Resuming a run: save, find, check and restore its state.

In:  a Run at a step; later the same recipe, and the run folder.
Out: a checkpoint; later a Run that continues bit for bit.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list, gather_object
from pydantic import TypeAdapter
from torch import Tensor

from hfgpt.base.errors import UNREADABLE, InputError, first_line
from hfgpt.base.language import _
from hfgpt.base.units import shown
from hfgpt.config import Config
from hfgpt.data.streaming import merged
from hfgpt.model.schedule import learning_rate
from hfgpt.runs import segments
from hfgpt.runs.metrics import whole_step
from hfgpt.share import export
from hfgpt.train import checkpoint, states
from hfgpt.train.collective import in_time, on_main
from hfgpt.train.display import Display
from hfgpt.train.folder import discard_previous
from hfgpt.train.identity import corpus_facts, identity
from hfgpt.train.run import Progress, Run


def save(run: Run) -> None:
    """Write a checkpoint of the finished step, at once or in the background. Collective.

    Raises:
        OSError: the disk is full or not writable; earlier files are untouched.
    """
    accelerator, writer = run.accelerator, run.writer
    wait_for_writes(run)
    with in_time():
        weights, averages = model_tensors(run), optimizer_tensors(run)
        parts = gather_object([states.generators(accelerator)])
        # each process knows only the positions of its own lanes
        data = merged(gather_object([run.corpus.batches.state_dict()]))
    generators = {name: state for part in parts for name, state in part.items()}
    if run.main:
        step, best, lock, pusher = run.progress.step, run.progress.best_step, run.lock, run.pusher
        state = {
            "progress": asdict(run.progress),
            "identity": identity(run),
            "corpus": corpus_facts(run),
            "recipe": segments.deciding(run.config, run.dtype),
            "processes": accelerator.num_processes,
            "data": data,
            "scaler": accelerator.scaler.state_dict() if accelerator.scaler else None,
        }
        weights, averages = writer.copy("weights", weights), writer.copy("averages", averages)

        def write() -> None:
            if lock is not None:
                lock.check()
            checkpoint.write(run.folder, step, weights, averages, generators, state)
            checkpoint.rotate(run.folder, step, run.config.save_total_limit, best)
            discard_previous(run.folder)
            if pusher is not None and (pusher.checkpoints or pusher.held_back):
                pusher.submit()

        writer.do(write)
    wait_for_main(run)


def export_model(run: Run, then: Callable[[], None]) -> None:
    """Write the current model for Transformers into the run folder, then run the action that needs it. Collective."""
    writer, lock = run.writer, run.lock
    wait_for_writes(run)
    with in_time():
        weights = model_tensors(run)
    if run.main:
        weights, gpt2 = writer.copy("weights", weights), run.plain.gpt2

        def write() -> None:
            if lock is not None:
                lock.check()
            export.write(run.folder, gpt2, run.corpus.tokenizer, weights)
            then()

        writer.do(write)
    wait_for_main(run)


def reserve(run: Run) -> None:
    """Reserve memory for background writes, so that the first checkpoint does not delay the steps.

    Call it once the optimizer has its averages. Averages that are spread over the processes need no reserve: gathering
    them takes longer.
    """
    if run.main and run.writer.background and run.replicated:
        run.writer.reserve("weights", model_tensors(run))
        run.writer.reserve("averages", optimizer_tensors(run))


def model_tensors(run: Run) -> dict[str, Tensor]:
    """Return the weights by GPT2LMHeadModel's names; on the device if they will be copied from there. Collective."""
    return export.weights(states.weights(run.accelerator, run.plain, on_device=run.writer.background))


def optimizer_tensors(run: Run) -> dict[str, Tensor]:
    """Return the optimizer's averages by "<weight>/<average>", like :func:`model_tensors`. Collective."""
    averages = states.averages(run.accelerator, run.plain, run.optimizer, on_device=run.writer.background)
    return checkpoint.flatten({name.removeprefix("gpt2."): means for name, means in averages.items()})


def wait_for_writes(run: Run) -> None:
    """Wait, without a timeout, until the main process has written what is pending. Collective.

    It could not copy before. Without this, the other processes would wait for it in the next step, and give up after
    `process_timeout` on a slow disk.
    """
    if run.writer.background and run.accelerator.num_processes > 1:
        run.writer.wait()
        run.meet()


def wait_for_main(run: Run) -> None:
    """Wait, without a timeout, until the main process has written, unless it writes in the background. Collective."""
    if not run.writer.background:
        run.meet()


def find_checkpoint(config: Config, display: Display) -> checkpoint.Checkpoint | None:
    """Return the newest valid checkpoint; None if there is not one yet and the run begins. Collective.

    Raises:
        InputError: there are checkpoints, but all of them are damaged; or a process cannot read the main process's.
    """

    def newest() -> checkpoint.Checkpoint | None:
        if not checkpoint.steps(config.run_dir):
            display.say(_("{folder} holds no checkpoint yet: beginning at step 0", folder=config.run_dir))
            return None
        return check_state(checkpoint.newest_valid(config.run_dir, display.warn))

    return the_same(newest)


def read_branch(path: Path, config: Config) -> checkpoint.Checkpoint | None:
    """Return the checkpoint from which a branch continues. Collective.

    Raises:
        InputError: it is damaged, or belongs to the run in out_dir.
    """

    def read() -> checkpoint.Checkpoint:
        if path.resolve().parent == config.run_dir.resolve():
            raise InputError(
                "branch_from = {checkpoint!r}: is of the run in out_dir → set out_dir to a new folder, or continue "
                "with --resume",
                checkpoint=str(path),
            )
        try:
            return check_state(checkpoint.read(path))
        except checkpoint.CheckpointError as error:
            raise InputError(f"branch_from: {error}") from None

    return the_same(read)


def the_same(find: Callable[[], checkpoint.Checkpoint | None]) -> checkpoint.Checkpoint | None:
    """Let the main process find a checkpoint, and the others read exactly that. Collective.

    Each would find the newest that it sees: where a disk shows one of them less, they would go on from different steps.

    Raises:
        InputError: the main process raised it, or another one cannot read the same; every process raises it.
    """
    saved, problem = on_main(find), ""
    chosen: tuple[Path, Any] | None = (saved.path, saved.state["files"]) if saved else None
    chosen = broadcast_object_list([chosen])[0]
    if chosen is not None and saved is None:
        path, files = chosen
        try:
            saved = checkpoint.read(path)
            if saved.state["files"] != files:
                problem = _("{checkpoint} has other content", checkpoint=path)
        except checkpoint.CheckpointError as error:
            problem = str(error)
    problems = gather_object([problem])
    for process, reason in enumerate(problems):
        if reason:
            raise InputError(
                "process {process} does not see the checkpoint from which the main process goes on: {reason}\n"
                "    → give every process the same out_dir, and start again",
                process=process,
                reason=reason,
            )
    return saved


def check_state(saved: checkpoint.Checkpoint) -> checkpoint.Checkpoint:
    """Check the form of a checkpoint's state, whose checksum says nothing about its origin; return the checkpoint.

    Raises:
        InputError: no run writes such a state.
    """
    state, forms = saved.state, {"step": int, "identity": dict, "data": dict, "processes": int}
    try:
        TypeAdapter(Progress).validate_json(json.dumps(state["progress"]), strict=True)
        unknown = state["progress"].keys() - {field.name for field in fields(Progress)}
        valid = all(type(state[key]) is kind for key, kind in forms.items())
        valid &= all(isinstance(state.get(key), dict | None) for key in ("scaler", "recipe", "corpus"))
        valid &= isinstance((state.get("corpus") or {}).get("files", []), list)
        if unknown or not valid or state["progress"]["step"] != whole_step(state["step"]):
            raise ValueError
    except UNREADABLE:
        raise InputError("{path}: not the state of a run", path=saved.path / "state.json") from None
    return saved


def forget_best(run: Run) -> None:
    """Give a branch a best model of its own: at first the one that it begins with."""
    progress = run.progress
    progress.best_val_loss = progress.best_step = progress.evaluated_step = None
    progress.evaluations_without_improvement, progress.horizons = 0, []


def check_length(config: Config, saved: checkpoint.Checkpoint) -> None:
    """Refuse a length that the run has already passed.

    Raises:
        InputError: names the step.
    """
    if saved.state["step"] > config.max_iters and not config.time_budget:
        raise InputError(
            "max_iters = {steps}: the run has already reached step {step} ({checkpoint}) → set max_iters to at "
            "least {step}, or begin a run of its own from an earlier checkpoint, with --branch_from",
            steps=config.max_iters,
            step=saved.state["step"],
            checkpoint=saved.path,
        )


def announce_changes(run: Run, saved: checkpoint.Checkpoint) -> None:
    """Print what the recipe changes in the resumed run, and how the learning rate jumps."""
    before, step, config = saved.state.get("recipe"), saved.state["step"], run.config
    if before is None:  # the checkpoint is from an earlier version
        return
    changed = segments.differences(before, segments.deciding(config, run.dtype))
    if not changed:
        return
    lines = [f"  {key}: {shown(then)} → {shown(now)}" for key, then, now in changed]
    for place, (key, then, _now) in enumerate(changed):
        if not segments.matters(key, then, config, step):
            lines[place] += "  " + _("(without effect after step {step})", step=step)
    run.display.say(_("the recipe changes after step {step}:", step=step) + "\n" + "\n".join(lines))
    if step >= config.max_iters:
        return
    old_config = config.model_copy(update={key: value for key, value, _now in changed})
    last, then, now = (
        learning_rate(step, old_config),
        learning_rate(step + 1, old_config),
        learning_rate(step + 1, config),
    )
    if abs(now - then) > 0.01 * then:
        run.display.say(
            _(
                "  the learning rate of step {next} is {now:.3g}; that of step {step} was {last:.3g}",
                next=step + 1,
                now=now,
                step=step,
                last=last,
            )
        )


def restore(run: Run, saved: checkpoint.Checkpoint) -> None:
    """Load a checkpoint into a prepared run. Collective.

    Raises:
        InputError: it is another model's.
    """
    same_processes = saved.state["processes"] == run.accelerator.num_processes
    try:
        weights = {f"gpt2.{name}": tensor for name, tensor in export.with_tied_head(saved.model).items()}
        averages = {f"gpt2.{name}": state for name, state in checkpoint.unflatten(saved.optimizer).items()}
        states.load(run.accelerator, run.plain, run.optimizer, weights, averages)
        run.progress = Progress(**saved.state["progress"])
        run.corpus.batches.load_state_dict(saved.state["data"])
        if run.accelerator.scaler is not None and saved.state["scaler"]:
            run.accelerator.scaler.load_state_dict(saved.state["scaler"])
        states.seed(
            run.accelerator, run.config.seed, run.progress.step
        )  # also a card's generator, after a run on a CPU
        if same_processes:
            states.load_generators(run.accelerator, saved.rng)
    except (RuntimeError, *UNREADABLE) as error:
        reason = first_line(error)
        raise InputError(
            "{checkpoint} does not fit this model: {reason}", checkpoint=saved.path, reason=reason
        ) from None
    if not same_processes and run.config.dropout:
        run.display.say(_("the number of processes has changed: same batches, other dropout masks from here on"))
