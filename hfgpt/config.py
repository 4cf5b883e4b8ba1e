"""One run, described by the names people know from nanoGPT and the textbook chapter.

In:  a recipe (YAML), and overrides from the command line: ``--key=value``, ``--key value``, ``--flag``, ``--no_flag``.
Out: one validated, immutable :class:`Config`, or a :class:`ConfigError` that lists every fault at once.

Precedence: defaults < recipe < command line. Nothing is ever executed. This module imports nothing else of hfgpt,
and neither torch nor transformers, so that ``--help`` and bad input are answered at once.
"""

from __future__ import annotations

import difflib
import json
import math
import re
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

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


_short = reprlib.Repr()
_short.maxstring = _short.maxother = 120


def _show(value: Any) -> str:
    """A value in a message: short, however large or nested it is."""
    try:
        return _short.repr(value)
    except ValueError:  # an integer of more digits than Python writes
        return "a number of thousands of digits"


class Fault(NamedTuple):
    """One thing that is wrong with the input."""

    key: str
    value: Any
    rule: str
    fix: str = ""

    def __str__(self) -> str:
        shown = "" if self.value is None else f" = {_show(self.value)}"
        return f"{self.key}{shown}: {self.rule}" + (f"\n    → {self.fix}" if self.fix else "")


class InputError(Exception):
    """The user's input cannot be used; the message says which part and what to do. Scripts exit with 2."""


class ConfigError(InputError):
    """One or more faults in a recipe or on the command line."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        self.faults = list(faults)
        super().__init__("\n".join(f"  {fault}" for fault in self.faults))


# ------------------------------------------------------------------------------------------------ rules across fields


@dataclass(frozen=True)
class Rule:
    """A condition over several fields of a resolved config, checked when each of them is valid by itself."""

    keys: tuple[str, ...]
    broken: Callable[[Any], bool]  # of a Config whose derived defaults are filled in
    fault: Callable[[Any], Fault]


def _divisors_near(width: int, heads: int) -> str:
    valid = [n for n in range(1, width + 1) if width % n == 0]
    below, above = [n for n in valid if n < heads][-1:], [n for n in valid if n > heads][:1]
    return " or ".join(str(n) for n in below + above)


def _can_be_a_path(text: str) -> bool:
    """Whether file systems take it: 255 bytes between slashes, and 4096 in all with what is put behind."""
    return len(text.encode()) < 3800 and all(len(part.encode()) <= 255 for part in text.split("/"))


RULES = (
    Rule(
        ("n_embd", "n_head", "init_from"),
        lambda c: not c.pretrained and c.n_embd % c.n_head != 0,
        lambda c: Fault(
            "n_head",
            c.n_head,
            f"must divide n_embd, and {c.n_embd} / {c.n_head} is {c.n_embd / c.n_head:.4g} (chapter 2.2)",
            f"set n_head to {_divisors_near(c.n_embd, c.n_head)}",
        ),
    ),
    Rule(
        ("warmup_iters", "max_iters"),
        lambda c: c.warmup_iters >= c.max_iters,
        lambda c: Fault(
            "warmup_iters",
            c.warmup_iters,
            f"must be less than max_iters ({c.max_iters}), or the full learning rate is never reached",
            f"leave it out (then {default_warmup(c.max_iters)}) or raise max_iters",
        ),
    ),
    Rule(
        ("warmup_iters", "lr_decay_iters", "max_iters", "lr_schedule"),
        lambda c: c.lr_schedule != "constant" and c.lr_decay_iters <= c.warmup_iters < c.max_iters,
        lambda c: Fault(
            "lr_decay_iters",
            c.lr_decay_iters,
            f"must be more than warmup_iters ({c.warmup_iters})",
            f"leave it out (then {c.max_iters})"
            if c.lr_schedule == "cosine"
            else f"lower warmup_iters, or set lr_decay_iters between it and max_iters ({c.max_iters})",
        ),
    ),
    Rule(
        ("lr_schedule", "lr_decay_iters", "max_iters"),
        lambda c: c.lr_schedule == "hold_cosine" and c.lr_decay_iters >= c.max_iters,
        lambda c: Fault(
            "lr_decay_iters",
            c.lr_decay_iters,
            f"with lr_schedule 'hold_cosine' the decay runs from here to max_iters ({c.max_iters}), so it must be less",
            f"set lr_decay_iters to, say, {c.max_iters * 4 // 5}, or lr_schedule to 'cosine'",
        ),
    ),
    Rule(
        ("min_lr", "learning_rate"),
        lambda c: c.min_lr > c.learning_rate,
        lambda c: Fault(
            "min_lr",
            c.min_lr,
            f"must not be more than learning_rate ({c.learning_rate:g})",
            f"leave it out (then {c.learning_rate / 10:g})",
        ),
    ),
    Rule(
        ("vocab_size", "tokenizer"),
        lambda c: c.vocab_size is not None and c.tokenizer != "bpe",
        lambda c: Fault(
            "vocab_size",
            c.vocab_size,
            f"is decided by the tokenizer, here {c.tokenizer!r}",
            "leave it out, or set tokenizer to 'bpe' to train one of this size",
        ),
    ),
    Rule(
        ("document_mask", "tokenizer", "init_from"),
        lambda c: c.document_mask and c.tokenizer == "char",
        lambda c: Fault(
            "document_mask",
            True,
            "needs a tokenizer with an end-of-text token between documents, and 'char' has none",
            "set tokenizer to 'bpe' or to a Hub id such as 'gpt2', or document_mask to false",
        ),
    ),
    Rule(
        ("dtype", "device"),
        lambda c: c.device == "cpu" and c.dtype == "float16",
        lambda c: Fault(
            "dtype",
            c.dtype,
            "needs an accelerator, and device is 'cpu'",
            "set dtype to 'float32' or 'auto'",
        ),
    ),
    *(
        Rule(
            (key,),
            lambda c, key=key: getattr(c, key) is not None and not seconds_of(getattr(c, key)),  # type: ignore[misc]
            lambda c, key=key: Fault(key, getattr(c, key), "must be a time such as 11h30m, 90m or 45s"),  # type: ignore[misc]
        )
        for key in ("max_time", "process_timeout")
    ),
    *(
        Rule(
            (key,),
            lambda c, key=key: isinstance(getattr(c, key), int) and getattr(c, key) < 1,  # type: ignore[misc]
            lambda c, key=key: Fault(key, getattr(c, key), "must be 'auto' or at least 1"),  # type: ignore[misc]
        )
        for key in ("cpu_threads", "num_proc")
    ),
    *(
        Rule(
            (key,),
            lambda c, key=key: not _can_be_a_path(getattr(c, key) or ""),  # type: ignore[misc]
            lambda c, key=key: Fault(key, getattr(c, key), "is too long for a path or an id"),  # type: ignore[misc]
        )
        for key in ("dataset", "tokenizer", "init_from", "out_dir")
    ),
)


def default_warmup(max_iters: int) -> int:
    """5% of the run, at most nanoGPT's 2000 steps."""
    return min(2000, max_iters // 20)


def seconds_of(time: str) -> int:
    """'11h30m' → 41400; 0 if it is no time of this form."""
    match = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", time.strip())
    hours, minutes, seconds = (int(part or 0) for part in match.groups()) if match else (0, 0, 0)
    return hours * 3600 + minutes * 60 + seconds


def choose_tokenizer(config: Config) -> str:
    """What 'auto' stands for: a pretrained model brings its own tokenizer, a new one learns characters."""
    if config.tokenizer != "auto":
        return config.tokenizer
    return config.init_from if config.pretrained else "char"


def resolve(config: Config, name: str) -> Config:
    """Fill in every default that depends on another field; `name` is the recipe's, for out_dir."""
    config = config.model_copy(update={"tokenizer": choose_tokenizer(config)})
    decay = config.max_iters * 4 // 5 if config.lr_schedule == "hold_cosine" else config.max_iters
    filled = {
        "warmup_iters": default_warmup(config.max_iters),
        "lr_decay_iters": decay,
        "min_lr": config.learning_rate / 10,
        "out_dir": f"out/{name}",
        "vocab_size": 8192 if config.tokenizer == "bpe" else None,
    }
    return config.model_copy(update={key: value for key, value in filled.items() if getattr(config, key) is None})


# ------------------------------------------------------------------------------------------------------ reading


class _RecipeLoader(yaml.SafeLoader):
    """YAML 1.1 without objects, that reads 1e-3 as a number and refuses a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        if not isinstance(node, yaml.MappingNode):  # '!!set 0'
            raise yaml.constructor.ConstructorError(None, None, "this is no mapping", node.start_mark)
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = str(getattr(key_node, "value", key_node))
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except ValueError as error:  # a date or number that is none
            raise yaml.constructor.ConstructorError(None, None, str(error), node.start_mark) from None


class _RecipeDumper(yaml.SafeDumper):
    """Writes what :class:`_RecipeLoader` reads back: a text such as '1e3' in quotes."""


def _write_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    # Unquoted, a line break that only Unicode knows (U+0085) would be read back as a space.
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if text.isprintable() else '"')


_RecipeDumper.add_representer(str, _write_text)

for _each in (_RecipeLoader, _RecipeDumper):
    _each.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d[\d_]*)(\.[\d_]*)?[eE][-+]?\d+$"), list("-+0123456789")
    )


def read_recipe(path: str | Path) -> dict[str, Any]:
    """The keys and values of a recipe file, not yet validated. A `.py` file is read as nanoGPT's, as literals.

    Raises:
        InputError: the file cannot be read, or is no YAML mapping; the message names file, line and fix.
    """
    path = Path(path)
    if path.suffix == ".py":
        from hfgpt import nanogpt  # the one that turns to the rest of the project, for who comes from there

        return nanogpt.read_config(path)
    try:
        if path.is_dir():
            path = path / "recipe.yaml"  # a run folder is a recipe: the one that it was made with
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        known = sorted(str(p) for p in Path("recipes").glob("*.yaml"))
        hint = f"; there are {', '.join(known)}" if known else ""
        raise InputError(f"recipe {str(path)!r}: no such file{hint}") from None
    except (OSError, ValueError) as error:  # ValueError: bytes that are no UTF-8, a name that no file can have
        raise InputError(f"recipe {str(path)!r} cannot be read as text: {error}") from None
    try:
        values = yaml.load(text, Loader=_RecipeLoader)
    except RecursionError:
        raise InputError(f"recipe {str(path)!r}: must be lines of 'key: value', not lists within lists") from None
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(f"recipe {str(path)!r}{_where(error, text)}: not valid YAML: {_problem(error)}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise InputError(f"recipe {str(path)!r}: must be lines of 'key: value', not a {type(values).__name__}")
    return {str(key): value for key, value in values.items()}


def _where(error: Exception, text: str) -> str:
    """The line that PyYAML's error is about."""
    if mark := getattr(error, "problem_mark", None) or getattr(error, "context_mark", None):
        return f", line {mark.line + 1}"
    position = getattr(error, "position", None)  # of a character that YAML does not allow
    return "" if position is None else f", line {text.count(chr(10), 0, position) + 1}"


def _problem(error: Exception) -> str:
    return getattr(error, "problem", None) or str(error).splitlines()[0]


def parse_overrides(arguments: Iterable[str]) -> dict[str, Any]:
    """``--key=value``, ``--key value``, ``--flag``, ``--no_flag`` → keys and values, read by each field's type.

    Raises:
        ConfigError: a word that is no override, an override without a value, or one given twice.
    """
    words, values, faults = list(arguments), dict[str, Any](), list[Fault]()
    while words:
        word = words.pop(0)
        if not word.startswith("--") or word == "--":
            faults.append(Fault(repr(word), None, "is not an override", "write --key=value; the recipe comes first"))
            continue
        key, equals, text = word[2:].partition("=")
        key = key.replace("-", "_")
        field = Config.model_fields.get(key)
        value: Any
        if equals:
            value = _read_text(field, text)
        elif key.startswith("no_") and _is_flag(key[3:]):
            key, value = key[3:], False
        elif _is_flag(key) and not (words and words[0].lower() in ("true", "false")):
            value = True
        elif words and not words[0].startswith("--"):
            value = _read_text(field, words.pop(0))
        elif field is None and key not in RENAMED:
            value = None  # an unknown key is reported as such, whatever it was given
        else:
            faults.append(Fault(key, None, "needs a value", f"write --{key}=VALUE"))
            continue
        if key in values:
            faults.append(Fault(key, value, "is given twice on the command line"))
        values[key] = value
    if faults:
        raise ConfigError(faults)
    return values


def _is_flag(key: str) -> bool:
    field = Config.model_fields.get(key)
    return (field is not None and field.annotation is bool) or key in ("decay_lr", "wandb_log", "bias")


def _read_text(field: FieldInfo | None, text: str) -> Any:
    """A value typed on the command line: as text for a field that holds text, else as YAML would read it."""
    options = _alternatives(field.annotation) if field else []
    if type(None) in options and text.lower() in ("none", "null", ""):
        return None
    if str in options:
        return text
    try:
        value = yaml.load(text, Loader=_RecipeLoader)
    except (yaml.YAMLError, ValueError, RecursionError):
        return text
    return text if value is None else value


def _alternatives(annotation: Any) -> list[Any]:
    if get_origin(annotation) in (Union, UnionType):
        return [leaf for option in get_args(annotation) for leaf in _alternatives(option)]
    return [annotation]


def _translate(values: Mapping[str, Any]) -> tuple[dict[str, Any], list[Fault]]:
    """Apply nanoGPT's other names; whole floats become integers where an integer is meant (max_iters: 1e4)."""
    out, faults = dict[str, Any](), list[Fault]()
    for key, value in values.items():
        if key in RENAMED:
            if key in ("decay_lr", "wandb_log") and not isinstance(value, bool):
                faults.append(Fault(key, value, "must be true or false"))
                continue
            key, value = RENAMED[key](value)
            if key in values:
                continue  # our own name, given beside the old one, says it better
        if key in INSTEAD:
            faults.append(Fault(key, None, "is not a parameter here", INSTEAD[key]))
        elif key not in Config.model_fields:
            faults.append(Fault(key, None, "is not a parameter", _closest(key)))
        else:
            options = _alternatives(Config.model_fields[key].annotation)
            if isinstance(value, float) and int in options and float not in options and value.is_integer():
                value = int(value)
            if reason := _unusable(value):
                faults.append(Fault(key, None, reason))
            else:
                out[key] = value
    return out, faults


def _unusable(value: Any) -> str:
    """Why no parameter can have this value, whatever its type and range; "" if one may."""
    if isinstance(value, int) and value.bit_length() > 63:
        return "must be a number of less than 2^63"
    if isinstance(value, str) and re.search("[\0\ud800-\udfff]", value):
        return "must be text without NUL characters and lone surrogates"
    return ""


def _closest(key: str) -> str:
    names = difflib.get_close_matches(key, [*Config.model_fields, *RENAMED], n=1, cutoff=0.6)
    return f"did you mean {names[0]!r}?" if names else "--help lists all parameters"


def _fault_of(error: Any) -> Fault:
    """One of pydantic's errors in our words: what is allowed, in the field's own unit."""
    key = str(error["loc"][0])
    return Fault(key, error["input"], f"must be {allowed(key)}")


def allowed(key: str) -> str:
    """What a field takes, in words: 'an integer of at least 1 (sequences)'."""
    field = Config.model_fields[key]
    names = {int: "an integer", float: "a number", bool: "true or false", str: "text", type(None): "nothing (null)"}
    parts = []
    for option in _alternatives(field.annotation):
        if get_origin(option) is Literal:
            parts += [repr(choice) for choice in get_args(option)]
        else:
            parts.append(names[option])
    words = " or ".join(parts) if len(parts) < 3 else "one of " + ", ".join(parts)
    bounds = []
    for rule in field.metadata:
        for attribute, text in (("ge", "at least"), ("gt", "more than"), ("le", "at most"), ("lt", "less than")):
            if (limit := getattr(rule, attribute, None)) is not None:
                bounds.append(f"{text} {limit:,}")
        if getattr(rule, "pattern", None) == WORDS:
            bounds.append("not empty")
    words += (", " if bounds else "") + " and ".join(bounds)
    return words + (f" ({unit_of(key)})" if unit_of(key) else "")


def unit_of(key: str) -> str:
    """The unit a field is counted in, "" if it has none."""
    return str(_extra(key)["unit"])


def group_of(key: str) -> str:
    """The field's group, a key of GROUPS."""
    return str(_extra(key)["group"])


def _extra(key: str) -> dict[str, Any]:
    extra = Config.model_fields[key].json_schema_extra
    assert isinstance(extra, dict), "every field is declared with setting()"
    return extra


def build(values: Mapping[str, Any], name: str) -> Config:
    """Validate keys and values against defaults, types, ranges and the rules across fields.

    Args:
        values: what the recipe and the command line say, later ones winning.
        name: the recipe's name, for the default out_dir.

    Raises:
        ConfigError: with every fault there is, each with key, value, rule and fix.
    """
    known, faults = _translate(values)
    try:
        config = Config(**known)
    except ValidationError as error:
        bad: dict[str, Fault] = {}
        for item in error.errors():
            bad.setdefault(str(item["loc"][0]), _fault_of(item))
        faults += bad.values()
        config = Config(**{key: value for key, value in known.items() if key not in bad})
    config = resolve(config, name)
    wrong = {fault.key for fault in faults}
    faults += [rule.fault(config) for rule in RULES if not wrong & set(rule.keys) and rule.broken(config)]
    if faults:
        raise ConfigError(faults)
    return config


def load(recipe: str | Path | None, overrides: Iterable[str] = ()) -> Config:
    """Defaults < recipe < overrides, validated and resolved. See :func:`build` for errors."""
    values = read_recipe(recipe) if recipe is not None else {}
    typed = parse_overrides(overrides)
    # An override by one name replaces the recipe's line by the other (decay_lr and lr_schedule).
    for old, to_new in RENAMED.items():
        new = to_new(None)[0]
        if new in typed or old in typed:
            values = {key: value for key, value in values.items() if key not in (old, new)}
    return build({**values, **typed}, Path(recipe).stem if recipe is not None else "run")


# ------------------------------------------------------------------------------------------------------ writing


def to_yaml(config: Config) -> str:
    """The resolved recipe as YAML, grouped, that loads back to the same config."""
    lines = []
    for group, title in GROUPS.items():
        lines.append(f"# {title}")
        for key in Config.model_fields:
            if group_of(key) == group:
                lines.append(_dump({key: getattr(config, key)}))
        lines.append("")
    return "\n".join(lines)


def default_of(key: str) -> str:
    """A field's default as it would be typed, or in words where it depends on other fields; "none" if it has none."""
    default = Config.model_fields[key].default
    if isinstance(default, str) and not default.isprintable():
        return json.dumps(default)  # "\n", as YAML reads it too
    return str(_extra(key)["derived"]) or ("none" if default is None else yaml_scalar(default))


def help_text() -> str:
    """Every field in the chapter's groups: name, default and unit on one line, the meaning below."""
    import textwrap

    lines = ["Parameters, each with its default. --flag and --no_flag stand for true and false."]
    for group, title in GROUPS.items():
        lines.append(f"\n{title}")
        for key, field in Config.model_fields.items():
            if group_of(key) != group:
                continue
            choices = [repr(choice) for choice in _choices(key) if choice != field.default]
            or_else = f"  (or {', '.join(choices)})" if choices else ""
            unit = f"  ({unit_of(key)})" if unit_of(key) else ""
            lines.append(f"  --{key:<30}{default_of(key)}{or_else}{unit}")
            lines += textwrap.wrap(str(field.description), 92, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines)


def _choices(key: str) -> list[str]:
    """The words that a field may be, where it may be nothing else."""
    return [
        str(choice)
        for option in _alternatives(Config.model_fields[key].annotation)
        if get_origin(option) is Literal
        for choice in get_args(option)
    ]


def yaml_scalar(value: Any) -> str:
    """A value as it would be typed in a recipe."""
    return _dump(value, default_flow_style=True).removesuffix("\n...")


def _dump(value: Any, **options: Any) -> str:
    return str(yaml.dump(value, Dumper=_RecipeDumper, allow_unicode=True, width=10_000, **options)).strip()


def split_command(arguments: Sequence[str], flags: Iterable[str]) -> tuple[str | None, set[str], list[str]]:
    """A script's arguments → (recipe or None, those of `flags` that are there, the overrides).

    The recipe, if any, comes first; `flags` are the script's own, such as "--resume".
    """
    recipe = arguments[0] if arguments and not arguments[0].startswith("-") else None
    rest = list(arguments if recipe is None else arguments[1:])
    given = {word for word in rest if word in flags}
    return recipe, given, [word for word in rest if word not in given]
