"""Rules between the fields of a config, and defaults that are derived from other fields.

In:  a Config of individually valid values.
Out: the rules that it breaks; the same Config with its derived defaults filled in.
"""

from collections.abc import Iterator
from typing import Any

from hfgpt.base import course
from hfgpt.base.errors import Fault
from hfgpt.base.language import _, either
from hfgpt.base.units import divisors, seconds_of
from hfgpt.config.fields import Config, with_role
from hfgpt.config.yaml_text import corpora, named

MOST_SEQUENCES = 10**9  # in a step, far above any real run; keeps the search for divisors short
# ------------------------------------------------------------------------------------------------ rules across fields


def faults(config: Config) -> Iterator[Fault]:
    """Yield a fault for every rule across fields that a resolved config breaks."""
    yield from _model(config)
    yield from _schedule(config)
    yield from _batch(config)
    yield from _text(config)
    yield from _run(config)


def _model(c: Config) -> Iterator[Fault]:
    if not c.pretrained and c.n_embd % c.n_head != 0:
        quotient, valid = f"{c.n_embd / c.n_head:.4g}", sorted(divisors(c.n_embd, c.n_embd))
        nearest = [n for n in valid if n < c.n_head][-1:] + [n for n in valid if n > c.n_head][:1]
        yield Fault(
            "n_head",
            c.n_head,
            _("must divide n_embd, and {n_embd} / {n_head} is {quotient} (chapter 2.2: {pages})",
              n_embd=c.n_embd, n_head=c.n_head, quotient=quotient, pages=course.pages("2.2")),
            _("set n_head to {options}", options=either(list(map(str, nearest)))),
            ("n_embd", "init_from"),
        )  # fmt: skip
    if c.mup_base_width is not None and c.pretrained:
        yield Fault(
            "mup_base_width",
            c.mup_base_width,
            _("scales initial weights, which a pretrained model does not have"),
            _("leave it out, or set init_from to 'scratch'"),
            ("init_from",),
        )
    if c.new_embeddings and not c.pretrained:
        yield Fault(
            "new_embeddings",
            True,
            _("needs a pretrained model to start from"),
            _("leave it out, or set init_from to a model"),
            ("init_from",),
        )
    if c.device == "cpu" and c.dtype == "float16":
        yield Fault(
            "dtype",
            c.dtype,
            _("needs an accelerator, and device is 'cpu'"),
            _("set dtype to 'float32' or 'auto'"),
            ("device",),
        )


def _schedule(c: Config) -> Iterator[Fault]:
    assert c.warmup_iters is not None, "resolve() fills it in"
    assert c.lr_decay_iters is not None, "resolve() fills it in"
    assert c.min_lr is not None, "resolve() fills it in"
    if c.warmup_iters >= c.max_iters:
        yield Fault(
            "warmup_iters",
            c.warmup_iters,
            _(
                "must be less than max_iters ({max_iters}), or the full learning rate is never reached",
                max_iters=c.max_iters,
            ),
            _("lower it, leave it out (then {default}), or raise max_iters", default=default_warmup(c.max_iters)),
            ("max_iters",),
        )
    elif c.lr_schedule != "constant" and c.lr_decay_iters <= c.warmup_iters:
        if c.lr_schedule == "cosine":
            fix = _("leave it out (then {default})", default=c.max_iters)
        else:
            fix = _(
                "lower warmup_iters, or set lr_decay_iters between it and max_iters ({max_iters})",
                max_iters=c.max_iters,
            )
        yield Fault(
            "lr_decay_iters",
            c.lr_decay_iters,
            _("must be more than warmup_iters ({warmup_iters})", warmup_iters=c.warmup_iters),
            fix,
            ("warmup_iters", "max_iters", "lr_schedule"),
        )
    if c.lr_schedule in ("hold_cosine", "wsd") and c.lr_decay_iters >= c.max_iters:
        rule = _(
            "with lr_schedule {schedule!r} the decay runs from here to max_iters ({max_iters}), so it must be less",
            schedule=c.lr_schedule,
            max_iters=c.max_iters,
        )
        fix = _("set lr_decay_iters to, say, {steps}, or lr_schedule to 'cosine'", steps=c.max_iters * 4 // 5)
        yield Fault("lr_decay_iters", c.lr_decay_iters, rule, fix, ("max_iters", "lr_schedule"))
    if c.min_lr > c.learning_rate:
        yield Fault(
            "min_lr",
            c.min_lr,
            _("must not be more than learning_rate ({rate})", rate=f"{c.learning_rate:g}"),
            _("leave it out (then {default})", default=f"{c.learning_rate / 10:g}"),
            ("learning_rate",),
        )


def _batch(c: Config) -> Iterator[Fault]:
    if c.global_batch > MOST_SEQUENCES:
        yield Fault(
            "gradient_accumulation_steps",
            c.gradient_accumulation_steps,
            _("makes steps of {n:,} sequences; the maximum is {most:,}", n=c.global_batch, most=MOST_SEQUENCES),
            "",
            ("batch_size",),
        )
    if not c.batch_warmup_iters:
        return
    steps = c.batch_warmup_iters
    if steps >= c.max_iters and not c.time_budget:
        yield Fault(
            "batch_warmup_iters",
            steps,
            _("must be less than max_iters ({max_iters}), or the whole batch is never reached", max_iters=c.max_iters),
            _("set it to {steps}, or raise max_iters", steps=c.max_iters // 10),
            ("max_iters",),
        )
    for key, given in (("streaming", c.streaming), ("time_budget", c.time_budget is not None)):
        if given:
            rule = (
                _("needs the whole corpus at hand, and streaming is on")
                if key == "streaming"
                else _("makes the first steps shorter than the later ones, so time_budget cannot plan")
            )
            yield Fault("batch_warmup_iters", steps, rule, _("leave one of the two out"), (key,))


def _text(c: Config) -> Iterator[Fault]:
    if c.vocab_size is not None and c.tokenizer != "bpe":
        yield Fault(
            "vocab_size",
            c.vocab_size,
            _("is decided by the tokenizer, here {tokenizer}", tokenizer=repr(c.tokenizer)),
            _("leave it out, or set tokenizer to 'bpe' to train one of this size"),
            ("tokenizer",),
        )
    if c.document_mask and c.tokenizer == "char":
        yield Fault(
            "document_mask",
            True,
            _("needs a tokenizer with an end-of-text token between documents, and 'char' does not have one"),
            _("set tokenizer to 'bpe' or to a Hub id such as 'gpt2', or document_mask to false"),
            ("tokenizer", "init_from"),
        )


def _run(c: Config) -> Iterator[Fault]:
    for key in ("max_time", "time_budget", "process_timeout"):
        time: str | None = getattr(c, key)
        if time is not None and not seconds_of(time):
            yield Fault(key, time, _("must be a time with its unit (h, m or s), such as 11h30m, 90m or 45s"))
    if c.eval_tasks_interval is not None and c.eval_tasks_interval % c.eval_interval:
        yield Fault(
            "eval_tasks_interval",
            c.eval_tasks_interval,
            _("must be a multiple of eval_interval ({interval})", interval=c.eval_interval),
            _(
                "set it to {steps}, or leave it out",
                steps=-(-c.eval_tasks_interval // c.eval_interval) * c.eval_interval,
            ),
        )
    texts = named(c.val_datasets)
    if len({name for name, _source in texts}) < len(texts) or not all(source for _name, source in texts):
        yield Fault(
            "val_datasets",
            c.val_datasets,
            _("each text needs its own name, by default the last part of its path"),
            _("write name=source, separated by commas"),
        )
    for key in ("cpu_threads", "num_proc"):
        count: int | str = getattr(c, key)
        if isinstance(count, int) and count < 1:
            yield Fault(key, count, _("must be 'auto' or at least 1"))
    lists = with_role("paths")
    for key in (*with_role("path"), *lists):
        place: str | None = getattr(c, key)
        places = [name for name, _weight in corpora(place)] if place and key == "dataset" else [place or ""]
        if key in lists:
            places = (place or "").split(",")
        if not all(map(_can_be_a_path, places)):
            yield Fault(key, place, _("is too long for a path or an id"))


def _can_be_a_path(text: str) -> bool:
    """Whether file systems accept the path: 255 bytes between slashes, 4096 in all including what is appended."""
    parts = text.encode(errors="surrogateescape").split(b"/")
    return sum(map(len, parts)) + len(parts) < 3800 and all(len(part) <= 255 for part in parts)


# -------------------------------------------------------------------------------------------------- derived defaults


def default_warmup(max_iters: int) -> int:
    """Return the default warm-up: 5% of the run, at most nanoGPT's 2000 steps."""
    return min(2000, max_iters // 20)


def choose_tokenizer(config: Config) -> str:
    """Resolve 'auto': a pretrained model brings its own tokenizer, a new model uses characters."""
    if config.tokenizer != "auto":
        return config.tokenizer
    return config.init_from if config.pretrained else "char"


def resolve(config: Config, name: str) -> Config:
    """Fill in every default that depends on another field; `name` is the recipe's name, for out_dir.

    Derived values do not count as given: they are not in the result's `model_fields_set`.
    """
    decay = config.max_iters * 4 // 5 if config.lr_schedule in ("hold_cosine", "wsd") else config.max_iters
    tokenizer = choose_tokenizer(config)
    derived: dict[str, Any] = {
        "warmup_iters": default_warmup(config.max_iters),
        "lr_decay_iters": decay,
        "min_lr": config.learning_rate / 10,
        "out_dir": f"out/{name}",
        "vocab_size": 8192 if tokenizer == "bpe" else None,
    }
    derived = {key: value for key, value in derived.items() if getattr(config, key) is None}
    if config.tokenizer == "auto":
        derived["tokenizer"] = tokenizer
    given = config.model_fields_set - derived.keys()
    return Config.model_construct(_fields_set=given, **{**config.model_dump(), **derived})
