"""One run, described by the names people know from nanoGPT and the textbook chapter.

In:  a recipe (YAML), and overrides from the command line: ``--key=value``, ``--key value``, ``--flag``, ``--no_flag``.
Out: one validated, immutable :class:`Config`, or a :class:`ConfigError` that lists every fault at once.

Precedence: defaults < recipe < command line. Nothing is ever executed. This module imports nothing else of hfgpt,
and neither torch nor transformers, so that ``--help`` and bad input are answered at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from hfgpt.base.errors import InputError

GROUPS = {
    "data": "Data (chapter 1)",
    "model": "Model (chapter 2)",
    "optimizer": "Optimizer (chapter 3)",
    "schedule": "Learning-rate schedule (chapter 4)",
    "evaluation": "Evaluation and logging (chapter 5.3, 6.2)",
    "system": "Speed and memory (chapter 6.1, 6.2)",
    "run": "Run folder, safety and sharing",
}

EMBEDDED_DATASET = "shakespeare"

EVAL_BATCH = 12  # sequences in a batch of eval_iters, whatever batch_size is: runs are compared on the same blocks

WORDS = r"\S"  # of a text that may not be empty


def setting(group: str, unit: str, default: Any, text: str, derived: str = "", **rules: Any) -> Any:
    """Declare one field: its group, the unit it is counted in ("" if none), default, meaning, and range rules.

    `derived` says in words what a default of None stands for, where :func:`resolve` or the run fills it in.
    """
    extra: dict[str, Any] = {"group": group, "unit": unit, "derived": derived}
    return Field(default, description=text, json_schema_extra=extra, **rules)


class Config(BaseModel):
    """Everything that decides a run. The comment of a field is its ``--help`` line and its reference entry.

    Fields that default to None are filled in by :func:`resolve`, which never changes a value that was given.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)

    # fmt: off
    # -- data
    dataset: str = setting("data", "", EMBEDDED_DATASET, "What to train on: 'shakespeare' (embedded), a text file, a folder or glob of .txt/.jsonl/.parquet (also .gz, .zst), or a Hub id", pattern=WORDS)
    dataset_config: str | None = setting("data", "", None, "Configuration name of a Hub dataset")
    dataset_split: str = setting("data", "", "train", "Split of a Hub dataset to train on", pattern=WORDS)
    text_column: str = setting("data", "", "text", "Column (of .jsonl, .parquet or Hub data) that holds the text", pattern=WORDS)
    val_fraction: float = setting("data", "share of the corpus", 0.1, "Tail of the corpus kept for validation where it has no validation split", gt=0, lt=1)
    streaming: bool = setting("data", "", False, "Read the corpus as it trains instead of preparing it first; for corpora larger than the disk")
    tokenizer: str = setting("data", "", "auto", "'char', 'bpe' (byte-level, trained on the dataset), or a Hub id or folder of a tokenizer; auto: init_from's own, else 'char'", pattern=WORDS)
    vocab_size: int | None = setting("data", "tokens", None, "Vocabulary to train with tokenizer 'bpe'; otherwise the tokenizer decides", "8192 with tokenizer 'bpe'", ge=257, le=1_000_000)
    batch_size: int = setting("data", "sequences", 12, "Sequences in one micro-batch: what is on a device at a time, at most", ge=1)
    block_size: int = setting("data", "tokens", 1024, "Context length: what the model sees at once; every block has this many targets", ge=1)
    gradient_accumulation_steps: int = setting("data", "micro-batches", 1, "Micro-batches in an optimizer step, in total over all processes: a step trains on batch_size x gradient_accumulation_steps sequences", ge=1)
    document_mask: bool = setting("data", "", False, "Keep attention inside a document where several are packed into one block (needs a tokenizer with an end-of-text token)")
    # -- model
    init_from: str = setting("model", "", "scratch", "'scratch', 'resume', or a Hub id or folder of a pretrained GPT-2, whose shape then replaces n_layer, n_head and n_embd", pattern=WORDS)
    new_embeddings: bool = setting("model", "", False, "Start the token embeddings of a pretrained model anew, for a tokenizer that is not its own")
    n_layer: int = setting("model", "blocks", 12, "Transformer blocks: the depth", ge=1, le=10_000)
    n_head: int = setting("model", "heads", 12, "Attention heads a block; must divide n_embd", ge=1, le=1_000_000)
    n_embd: int = setting("model", "channels", 768, "Width: numbers that stand for one token", ge=1, le=1_000_000)
    dropout: float = setting("model", "probability", 0.0, "Share of activations dropped while training (embeddings, attention, residuals)", ge=0, lt=1)
    # -- optimizer
    optimizer: Literal["adamw", "muon"] = setting("optimizer", "", "adamw", "'adamw' for all weights, or 'muon' for the matrices inside the blocks and AdamW for the rest")
    learning_rate: float = setting("optimizer", "", 6e-4, "Peak learning rate of AdamW", gt=0)
    muon_learning_rate: float = setting("optimizer", "", 0.02, "Peak learning rate of Muon, the spectral norm of a step; follows the same schedule", gt=0)
    muon_momentum: float = setting("optimizer", "", 0.95, "Muon's decay of the gradient average (Nesterov's)", ge=0, lt=1)
    weight_decay: float = setting("optimizer", "", 0.1, "Decoupled decay, on weights of two or more dimensions", ge=0)
    grad_clip: float = setting("optimizer", "gradient norm", 1.0, "Gradients are scaled down to this norm; 0 turns clipping off", ge=0)
    beta1: float = setting("optimizer", "", 0.9, "AdamW's decay of the gradient average", ge=0, lt=1)
    beta2: float = setting("optimizer", "", 0.95, "AdamW's decay of the squared-gradient average", ge=0, lt=1)
    # -- schedule
    max_iters: int = setting("schedule", "optimizer steps", 5000, "Length of the run", ge=1)
    lr_schedule: Literal["cosine", "hold_cosine", "constant"] = setting("schedule", "", "cosine", "After the warm-up: 'cosine' falls to min_lr at lr_decay_iters (nanoGPT), 'hold_cosine' holds until lr_decay_iters and falls to min_lr at max_iters (the chapter), 'constant' holds")
    warmup_iters: int | None = setting("schedule", "optimizer steps", None, "Linear rise from 0 to learning_rate", "5% of max_iters, at most 2000", ge=0)
    lr_decay_iters: int | None = setting("schedule", "optimizer steps", None, "Where the decay ends (cosine) or begins (hold_cosine)", "max_iters; with hold_cosine 80% of it", ge=1)
    min_lr: float | None = setting("schedule", "", None, "Learning rate at the end of the decay", "learning_rate / 10", ge=0)
    # -- evaluation
    eval_interval: int = setting("evaluation", "optimizer steps", 250, "Evaluate, sample and save this often, and always at the last step", ge=1)
    eval_iters: int = setting("evaluation", "batches of 12 sequences", 200, "Fixed blocks a split is evaluated on, or all of it where it is smaller", ge=1)
    eval_only: bool = setting("evaluation", "", False, "Evaluate once and stop")
    log_interval: int = setting("evaluation", "optimizer steps", 10, "Record loss, learning rate, gradient norm and speed this often", ge=1)
    sample_prompt: str = setting("evaluation", "", "\n", "Prompt of the short text sampled at each evaluation; '' samples none")
    early_stopping_patience: int | None = setting("evaluation", "evaluations", None, "Stop after this many evaluations without a better validation loss", "never", ge=1)
    report_to: Literal["none", "tensorboard", "wandb", "trackio"] = setting("evaluation", "", "none", "Tracker that mirrors metrics.jsonl")
    project: str = setting("evaluation", "", "hfgpt", "Project name in the tracker", pattern=WORDS)
    # -- system
    device: Literal["auto", "cpu", "cuda", "mps", "xpu"] = setting("system", "", "auto", "Where to train; auto takes the accelerator if there is one")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = setting("system", "", "auto", "Precision of the arithmetic, over float32 weights; auto: bfloat16 where accelerator or CPU are fast in it, float16 on older accelerators, else float32")
    compile: bool = setting("system", "", False, "Compile the model with torch.compile: slower start, faster steps on accelerators")
    activation_checkpointing: bool = setting("system", "", False, "Recompute activations in the backward pass: less memory, about a third more time")
    fit: Literal["auto", "always", "never"] = setting("system", "", "auto", "Try a micro-batch before the first step and take a smaller one where memory does not suffice, with more accumulation: the same steps; auto: on accelerators")
    process_timeout: str = setting("system", "such as 10m, 45s", "10m", "A process that waits this long for another gives up: the other has died, or the network is down")
    cpu_threads: int | Literal["auto"] = setting("system", "threads a process", "auto", "Threads of a CPU run; auto: all cores, shared between the processes of this machine")
    num_proc: int | Literal["auto"] = setting("system", "processes", "auto", "Processes that prepare the data; auto: one a core")
    # -- run
    max_bad_steps: int = setting("run", "optimizer steps", 1, "Stop at this many steps in a row with a NaN or infinite loss or gradient; their updates are left out. float16 overflows, which loss scaling expects, do not count", ge=1)
    spike_guard: float | None = setting("run", "times the average gradient norm", None, "Leave out an update whose gradient norm is more than this many times its running average", "off", gt=1)
    out_dir: str | None = setting("run", "", None, "Run folder: the exported model and its checkpoints", "out/<recipe name>", pattern=WORDS)
    max_time: str | None = setting("run", "such as 11h30m, 90m, 45s", None, "Stop politely after this long, checkpoint written, before a job's limit does it", "no limit")
    seed: int = setting("run", "", 1337, "Decides initial weights, data order and dropout", ge=0, lt=2**31)
    save_total_limit: int = setting("run", "checkpoints", 2, "Checkpoints to keep: the best and the latest are always among them", ge=1)
    license: str = setting("run", "the Hub's name of it", "mit", "Licence of the trained model, for its card", pattern=WORDS)
    always_save_checkpoint: bool = setting("run", "", True, "Save a checkpoint at every evaluation; false: only where the validation loss is the best so far, and at the end")
    push_to_hub: bool = setting("run", "", False, "Push the model to the Hub whenever it is the best so far, in the background")
    hub_model_id: str | None = setting("run", "name or user/name", None, "Repository to push to", "the run folder's name")
    hub_private: bool = setting("run", "", False, "Make the repository private if it is made here")
    # fmt: on

    @property
    def global_batch(self) -> int:
        """Sequences in one optimizer step, over all processes."""
        return self.batch_size * self.gradient_accumulation_steps

    def micro_batch(self, processes: int) -> int:
        """The sequences that a process has on its device at a time: the largest part of its share within batch_size.

        Raises:
            InputError: the global batch cannot be shared equally; names the nearest that can.
        """
        share, rest = divmod(self.global_batch, processes)
        if rest:
            unit = processes // math.gcd(processes, self.batch_size)
            below = self.gradient_accumulation_steps // unit * unit
            options = " or ".join(
                f"{steps} ({steps * self.batch_size} sequences)" for steps in (below, below + unit) if steps
            )
            raise InputError(
                f"gradient_accumulation_steps = {self.gradient_accumulation_steps}: a step's {self.global_batch} "
                f"sequences (batch_size {self.batch_size} x {self.gradient_accumulation_steps}) cannot be shared "
                f"equally by {processes} processes → set gradient_accumulation_steps to {options}"
            )
        return next(size for size in range(min(self.batch_size, share), 0, -1) if share % size == 0)

    @property
    def tokens_per_iter(self) -> int:
        """Targets trained in one optimizer step (chapter 5.2)."""
        return self.global_batch * self.block_size

    @property
    def pretrained(self) -> bool:
        """Whether the run starts from somebody's weights; they bring their own shape."""
        return self.init_from not in ("scratch", "resume")

    @property
    def run_dir(self) -> Path:
        """The run folder of a resolved config."""
        assert self.out_dir is not None, "resolve() fills in out_dir"
        return Path(self.out_dir)


# What nanoGPT calls by a name that has another one here, and a function from its value to our key and value.
RENAMED: dict[str, Callable[[Any], tuple[str, Any]]] = {
    "decay_lr": lambda value: ("lr_schedule", "cosine" if value else "constant"),
    "wandb_log": lambda value: ("report_to", "wandb" if value else "none"),
    "wandb_project": lambda value: ("project", value),
}

# Names of nanoGPT's and of the Trainer's that mean nothing here, each with what to use instead.
INSTEAD = {
    "bias": "GPT-2 in Transformers always has biases; remove the key (a nanoGPT checkpoint without them imports with zeros)",
    "backend": "Accelerate chooses the communication backend; see accelerate_configs/",
    "wandb_run_name": "a run is named after its folder; set out_dir",
    "per_device_train_batch_size": "use batch_size (micro-batch) and gradient_accumulation_steps (a total over all processes)",
    "num_train_epochs": "use max_iters; plan.py shows how many epochs that is",
    "max_steps": "use max_iters",
    "warmup_steps": "use warmup_iters",
    "lr_scheduler_type": "use lr_schedule",
    "max_grad_norm": "use grad_clip",
    "output_dir": "use out_dir",
    "bf16": "use dtype: bfloat16",
    "fp16": "use dtype: float16",
    "gradient_checkpointing": "use activation_checkpointing",
    "hidden_size": "use n_embd",
    "num_hidden_layers": "use n_layer",
    "num_attention_heads": "use n_head",
    "max_position_embeddings": "use block_size",
}
