"""The start of a run: check everything before the first step, and write the folder last.

In:  a resolved Config, and whether to resume or to overwrite.
Out: a :class:`~hfgpt.train.run.Run` that is ready to train; or an InputError, and nothing was written.
"""

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, broadcast_object_list

from hfgpt.base.errors import InputError
from hfgpt.base.language import strerror
from hfgpt.base.lock import FolderLock
from hfgpt.config import Config
from hfgpt.data import prepare as preparing
from hfgpt.data import tokenizer as tokenizers
from hfgpt.model import gpt2, optim
from hfgpt.runs import metrics
from hfgpt.runs.horizon import decisions
from hfgpt.runs.metrics import FILE_NAME, MetricsWriter
from hfgpt.share.background import BackgroundPusher
from hfgpt.train import folder, launch, memory, origin, states, tasks
from hfgpt.train.checkpoint import Checkpoint
from hfgpt.train.collective import on_main, set_patience
from hfgpt.train.display import Display
from hfgpt.train.evaluate import count_characters
from hfgpt.train.identity import check_files_are_here, check_identity, say_which_text
from hfgpt.train.resume import (
    announce_changes,
    check_length,
    find_checkpoint,
    forget_best,
    read_branch,
    restore,
)
from hfgpt.train.run import Harness, Run
from hfgpt.train.writer import Writer


def start(config: Config, *, resume: bool = False, overwrite: bool = False, branch_from: Path | None = None) -> Run:
    """Prepare and check everything that a run needs before its first step. Collective.

    Args:
        config: resolved.
        resume: continue from the newest valid checkpoint, or begin if there is not one yet.
        overwrite: replace the run in out_dir.
        branch_from: begin from this checkpoint of another run, unless out_dir has one to resume from.

    Raises:
        InputError: config, data, model, launch or folder do not fit together; nothing was written.
    """
    if launch.restarts() and not overwrite:  # torchrun restarts all processes when one has died; the run resumes
        resume = True
    resume = resume or config.init_from == "resume"
    with ExitStack() as undo:
        run = prepare(config, resume, overwrite, branch_from, undo)
        undo.pop_all()
    return run


def prepare(config: Config, resume: bool, overwrite: bool, branch_from: Path | None, undo: ExitStack) -> Run:
    """The body of :func:`start`; clean-up for a failure is pushed onto `undo`."""
    writes, replaces_pushed = not config.eval_only, overwrite
    if writes:
        folder.check_folder(config, resume, overwrite)
        if branch_from is not None:
            origin.check_repository(config, branch_from)
    accelerator = launch.make_accelerator(config)
    launch.check_engine(config, accelerator.distributed_type)
    display = Display(config.max_iters, accelerator.is_main_process)
    micro_batch = config.micro_batch(accelerator.num_processes)
    memory.check_size(config, accelerator)
    lock = lock_folder(config, lambda: folder.hold(config, resume, overwrite)) if writes else None
    if lock is not None:
        undo.callback(lock.release)
    if overwrite and writes:  # after a restart, the folder may hold this launch's own run
        begun = on_main(lambda: launch.restarts() > 0 and folder.was_begun_by(config.run_dir, launch.launch_id()))
        if broadcast_object_list([begun])[0]:
            resume, overwrite = True, False
    saved = find_checkpoint(config, display) if resume else None
    branches = saved is None and branch_from is not None
    if saved is None and branch_from is not None:
        saved = read_branch(branch_from, config)
    try:
        if saved is not None:
            check_files_are_here(config, saved)
        corpus = prepare_corpus(config, accelerator)
    except InputError as error:
        raise error if saved is None else say_which_text(error, saved) from None
    run = assemble(config, accelerator, corpus, display, micro_batch)
    if saved is not None:
        run.begins_text = check_identity(run, saved, may_change_text=branches and not config.streaming)
        check_length(config, saved)
    if writes:
        if saved is not None and branch_from is None:
            recorded = on_main(partial(horizons_after, run.metrics.path, saved.state["step"]))
            run.recorded_horizons = broadcast_object_list([recorded])[0]
        launch.start_tracker(accelerator, config)
        begins_anew = overwrite or not resume
        step = saved.state["step"] if saved else None if begins_anew else -1
        use = folder.Use(begins_anew, overwrite, step, branch_from, run.begins_text, launch.launch_id())
        run.lock = lock_folder(config, lambda: folder.claim(config, lock, use, run.dtype))
        if run.lock is not None:
            undo.callback(run.lock.release)
    bring_to_devices(run, saved)
    if run.main and config.push_to_hub and writes:
        run.pusher = pusher(run, replaces_pushed)
        if saved is not None and branch_from is None:  # what an earlier start did not finish pushing
            run.pusher.submit()
    if accelerator.num_processes > 1:  # from here on no process has a reason to be late
        set_patience(run.patience)
    return run


def assemble(
    config: Config, accelerator: Accelerator, corpus: preparing.Corpus, display: Display, micro_batch: int
) -> Run:
    """Build the run's parts, each on its initial device. Collective.

    Raises:
        InputError: model, tasks or launch do not fit together.
    """
    torch.manual_seed(config.seed)
    words = corpus.tokenizer
    model = gpt2.build(config, tokenizers.vocabulary_size(words), words.eos_token_id, words)
    run = Run(
        config=config,
        accelerator=accelerator,
        corpus=corpus,
        model=model,
        optimizer=optim.build(model, config, accelerator.device),
        display=display,
        metrics=MetricsWriter(config.run_dir / FILE_NAME),
        micro_batch=micro_batch,
        val_characters=count_characters(config, corpus),
        tasks=tasks.load(config.eval_tasks, words, model.gpt2.config.n_positions),
        writer=Writer(config.saves_behind(accelerator.device.type)),
    )
    if names := tasks.names_of(config.eval_tasks)[1]:
        if run.sharded:
            raise InputError(
                "eval_tasks = {task!r}: lm-evaluation-harness needs the whole weights on one device, and FSDP "
                "shards them → give .jsonl files of questions, or launch with DDP",
                task=names[0],
            )
        run.harness = on_main(lambda: tasks.load_harness(names)) or Harness(names)
    return run


def bring_to_devices(run: Run, saved: Checkpoint | None) -> None:
    """Wrap model and optimizer for the engine, and load their state from a checkpoint. Collective.

    Raises:
        InputError: the checkpoint belongs to another model.
    """
    accelerator = run.accelerator
    if saved is not None:
        announce_changes(run, saved)
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        launch.configure_deepspeed(accelerator, run.config, run.micro_batch)
    run.model, run.optimizer = accelerator.prepare(run.model, run.optimizer)
    if saved is None:
        states.seed(accelerator, run.config.seed, 0)
        return
    restore(run, saved)
    if saved.path.parent.resolve() != run.folder.resolve():
        forget_best(run)


def pusher(run: Run, overwrite: bool) -> BackgroundPusher:
    """Return the pusher of the run while it trains."""
    return BackgroundPusher(
        run.folder,
        run.config.repository,
        private=run.config.hub_private or None,
        overwrite=overwrite,
        checkpoints=run.config.push_to_hub == "checkpoints",
        warn=run.display.warn,
    )


def horizons_after(record: Path, step: int) -> dict[int, int]:
    """Return the lengths that a run had decided after the step that it resumes from: {step: max_iters}.

    They include the last step of the record, with 0 if nothing was decided there.
    """
    records = metrics.read(record) if record.is_file() else []
    last = {int(line["step"]): 0 for line in records[-1:]} | decisions(records)
    return {at: length for at, length in last.items() if at > step}


def lock_folder(config: Config, action: Callable[[], FolderLock | None]) -> FolderLock | None:
    """Let the main process lock or claim the run folder. Collective.

    Raises:
        InputError: the folder is taken or cannot be written; raised on every process.
    """

    def locked() -> FolderLock | None:
        try:
            return action()
        except OSError as error:
            raise InputError(
                "out_dir = {folder!r}: cannot be written: {reason}", folder=str(config.run_dir), reason=strerror(error)
            ) from None

    return on_main(locked)


def prepare_corpus(config: Config, accelerator: Accelerator) -> preparing.Corpus:
    """Return the corpus, prepared by one process per machine and read from the cache by the others. Collective.

    Raises:
        InputError: raised on every process, so that no process waits for another.
    """
    problem: InputError | None = None
    with accelerator.local_main_process_first():
        try:
            return preparing.prepare(config)
        except InputError as error:
            problem = error
    raise problem
