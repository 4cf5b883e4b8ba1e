"""What must hold between the fields of a config, and the defaults that one field derives from another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hfgpt.base.errors import Fault
from hfgpt.base.units import seconds_of
from hfgpt.config.fields import Config

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
