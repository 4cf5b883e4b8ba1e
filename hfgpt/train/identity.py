"""What a run and its resume must share.

In:  a Run, and a checkpoint that it is to continue from.
Out: the run's identity, for its checkpoints; or an InputError that names each difference.
"""

from typing import Any

from hfgpt.base.errors import InputError
from hfgpt.base.files import expanded
from hfgpt.base.language import _
from hfgpt.config import EMBEDDED_DATASET, Config, with_role
from hfgpt.config.yaml_text import corpora
from hfgpt.data import tokenizer as tokenizers
from hfgpt.runs import public
from hfgpt.train import checkpoint
from hfgpt.train.run import Run


def identity(run: Run) -> dict[str, Any]:
    """Return what a run and its resume must share: the model's shape and the sequence of batches."""
    shape = run.plain.gpt2.config  # not the config's, which a pretrained model overrides
    return {
        **{key: getattr(run.config, key) for key in with_role("identity")},
        **{key: getattr(shape, key) for key in ("n_layer", "n_head", "n_embd")},
        "global batch (batch_size x gradient_accumulation_steps)": run.config.global_batch,
        "tokenizer": tokenizers.fingerprint(run.corpus.tokenizer),
        "data": run.corpus.fingerprint,
    }


def corpus_facts(run: Run) -> dict[str, Any]:
    """Return what identifies the run's text on another machine: its name, without a path, and its size.

    `files` lists those of its corpora that are not on the Hub.
    """
    names = [name for name, _weight in corpora(run.config.dataset)]
    corpus = run.corpus
    files = [public.name(name) for name in names if name != EMBEDDED_DATASET and expanded(name).exists()]
    return {"name": " + ".join(map(public.name, names)), "files": files,
            "train_tokens": corpus.train_tokens, "val_tokens": len(corpus.val)}  # fmt: skip


def described(facts: dict[str, Any], fingerprint: str) -> str:
    """Describe a corpus; `facts` may come from another version's checkpoint."""
    size = _("streamed")
    if facts.get("train_tokens"):
        size = _("{train:,} + {val:,} tokens", train=facts["train_tokens"], val=facts.get("val_tokens", 0))
    return _("{name!r} ({size}, fingerprint {print})", name=facts.get("name", "?"), size=size, print=fingerprint[:12])


def check_files_are_here(config: Config, saved: checkpoint.Checkpoint) -> None:
    """Refuse to look on the Hub for what was a file or folder when the run began, such as `data/poems`.

    Raises:
        InputError: it is not in this working folder; its first line says so.
    """
    files = (saved.state.get("corpus") or {}).get("files") or []
    for name, _weight in corpora(config.dataset):
        if name in files and not expanded(name).exists():
            path = expanded(name).absolute()
            raise InputError("dataset = {name!r}: a file or folder when the run began; {path} does not exist",
                             name=name, path=path)  # fmt: skip


def say_which_text(error: InputError, saved: checkpoint.Checkpoint) -> InputError:
    """Extend the error of an unreadable corpus by the text that the run was trained on, if its checkpoint names it."""
    facts, reason = saved.state.get("corpus"), str(error).split("\n", 1)[0]
    if facts is None or not reason.startswith("dataset = "):
        return error
    return InputError(
        "{reason}\n    → give the location of this run's text with --dataset: {corpus}",
        reason=reason,
        corpus=described(facts, str(saved.state["identity"]["data"])),
    )


def check_identity(run: Run, saved: checkpoint.Checkpoint, may_change_text: bool = False) -> bool:
    """Check that a resume continues the same run; return whether it continues on another text, and then say so.

    Args:
        saved: the checkpoint that it continues from.
        may_change_text: whether it may be another text.

    Raises:
        InputError: names each difference.
    """
    # What an older checkpoint does not name was not a setting then, and had the present default.
    then = {key: Config.model_fields[key].default for key in with_role("identity")} | saved.state["identity"]
    now = identity(run)
    other_text = "corpus" in saved.state and then.get("data") != now["data"]
    if other_text:
        then["data"] = described(saved.state["corpus"], str(then.get("data")))
        now["data"] = described(corpus_facts(run), str(now["data"]))
    differing = [key for key in now if then.get(key) != now[key] and not (key == "data" and may_change_text)]
    if other_text and differing == ["data"]:
        raise InputError(
            "{checkpoint} was trained on {then}; dataset = {dataset!r} is {now}\n    → give the run's own text "
            "with --dataset, or continue with this one as a run of its own: --branch_from={checkpoint}",
            checkpoint=saved.path,
            then=then["data"],
            dataset=run.config.dataset,
            now=now["data"],
        )
    if differing:
        lines = [
            _("  {key}: {then!r} in the checkpoint, {now!r} now", key=key, then=then.get(key), now=now[key])
            for key in differing
        ]
        recipe = saved.path.parent / "recipe.yaml"
        remedy = _("resume with its own recipe, {recipe}, or set another out_dir", recipe=recipe)
        if may_change_text:
            remedy = _("a branch keeps these, from {recipe}; its tokenizer by --tokenizer={run}",
                       recipe=recipe, run=saved.path.parent)  # fmt: skip
        raise InputError("{checkpoint} is a checkpoint of another run:\n{differences}\n    → {remedy}",
                         checkpoint=saved.path, differences="\n".join(lines), remedy=remedy)  # fmt: skip
    if other_text:
        run.display.say(
            _(
                "the text changes from {then} to {now}\n  the record begins anew: losses on two texts do not compare",
                then=then["data"],
                now=now["data"],
            )
        )
    return other_text
