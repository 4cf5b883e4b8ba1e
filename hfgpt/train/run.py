"""One run, as one process sees it.

In:  the parts that :mod:`hfgpt.train.start` makes from a recipe.
Out: :class:`Run`, which the loop trains, and :class:`Progress`, which a checkpoint keeps.
"""

from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, is_compiled_module
from torch import Tensor

from hfgpt.base.lock import FolderLock
from hfgpt.base.units import seconds_of
from hfgpt.config import Config
from hfgpt.data.prepare import Corpus
from hfgpt.model.gpt2 import LanguageModel
from hfgpt.runs.metrics import MetricsWriter
from hfgpt.share.background import BackgroundPusher
from hfgpt.train.collective import patiently
from hfgpt.train.display import Display
from hfgpt.train.writer import Writer


@dataclass
class Progress:
    """The state of a run that changes from step to step, beside weights, averages and generators."""

    step: int = 0
    evaluated_step: int | None = None
    best_val_loss: float | None = None
    best_step: int | None = None
    evaluations_without_improvement: int = 0
    seconds: float = 0.0  # since the run began, without the time between a stop and its resume
    overflows: int = 0  # float16 steps whose update loss scaling left out
    bad_steps: int = 0  # steps in a row whose loss or gradient was not finite
    spikes: int = 0  # steps whose update the spike guard left out
    average_norm: float | None = None  # running average of the gradient norm
    gpu_joules: float = 0.0  # used by the main process's card
    horizons: list[int] = field(default_factory=list)  # lengths decided for the time_budget


class Harness(NamedTuple):
    """Loaded tasks of lm-evaluation-harness; without names there is nothing to evaluate."""

    names: list[str]
    loaded: Any = None  # its TaskDict, with the documents


@dataclass
class Run:
    """One process's view of a run. Processes differ in their share of each batch and in their generators."""

    config: Config
    accelerator: Accelerator
    corpus: Corpus
    model: torch.nn.Module  # a LanguageModel in Accelerate's wrappers
    optimizer: Any  # in Accelerate's wrapper
    display: Display
    metrics: MetricsWriter
    micro_batch: int  # sequences on this device at a time
    val_characters: int  # characters in the targets of the evaluated validation blocks
    tasks: dict[str, list[Any]] = field(default_factory=dict)  # questions by task, see hfgpt.train.tasks
    harness: Harness = field(default_factory=lambda: Harness([]))
    progress: Progress = field(default_factory=Progress)
    begins_text: bool = False  # whether this start is the first on its text, though not the first of its steps
    average_norm: Tensor | None = None  # the progress's average, on the device if the spike guard decides there
    recorded_horizons: dict[int, int] = field(default_factory=dict)  # decided after the step that a resume starts from
    lock: FolderLock | None = None  # on the main process, unless it only evaluates
    writer: Writer = field(default_factory=lambda: Writer(background=False))
    pusher: BackgroundPusher | None = None  # on the main process, if the recipe says push_to_hub

    @property
    def folder(self) -> Path:
        return self.config.run_dir

    @property
    def device(self) -> torch.device:
        """Where this process trains."""
        device: torch.device = self.accelerator.device
        return device

    @property
    def patience(self) -> timedelta:
        """The timeout for another process that should be in the same step."""
        return timedelta(seconds=seconds_of(self.config.process_timeout))

    @property
    def main(self) -> bool:
        """Whether this is the process that writes and prints."""
        return bool(self.accelerator.is_main_process)

    @property
    def replicated(self) -> bool:
        """Whether each process holds all weights and averages, so that one can act on them without the others.

        Under FSDP and DeepSpeed, a forward pass and reading the averages are collectives.
        """
        kind = self.accelerator.distributed_type
        return bool(kind == DistributedType.NO or kind.name.startswith("MULTI_"))

    @property
    def sharded(self) -> bool:
        """Whether each process holds only a part of the weights (FSDP)."""
        return bool(self.accelerator.distributed_type == DistributedType.FSDP)

    @property
    def share(self) -> tuple[int, int, int]:
        """(process, processes, micro-batch): which part of each global batch this process trains."""
        return self.accelerator.process_index, self.accelerator.num_processes, self.micro_batch

    @property
    def least_sequences(self) -> int:
        """The sequences that a micro-batch has at least: a compiled model would be compiled anew for each other number.

        During a batch warm-up they differ from step to step, and after eight of them torch would stay eager.
        """
        return self.micro_batch if is_compiled_module(self.model) else 1

    @property
    def plain(self) -> LanguageModel:
        """The LanguageModel inside the wrappers of DDP and compile.

        Its forward keeps Accelerate's mixed precision: removing it here would remove it from the run as well.
        """
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        assert isinstance(model, LanguageModel)
        return model

    @property
    def dtype(self) -> str:
        """The precision of the arithmetic, by the recipe's name: 'float32', 'bfloat16' or 'float16'."""
        return {"no": "float32", "bf16": "bfloat16", "fp16": "float16"}[self.accelerator.mixed_precision]

    def meet(self) -> None:
        """Wait for every process, however long the main one has worked alone. Collective."""
        with patiently(self.patience):
            self.accelerator.wait_for_everyone()

    def record(self, at: int | None = None, /, **figures: float) -> None:
        """Write one line of metrics.jsonl for a step (default: the current one) and send it to the tracker."""
        if self.main:
            step = self.progress.step if at is None else at
            self.metrics.write(step, **figures)
            self.accelerator.log(figures, step=step)
