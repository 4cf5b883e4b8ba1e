"""Turn a checkpoint of nanoGPT into a run folder: same logits, with its tokenizer."""

from __future__ import annotations

from hfgpt.base.command import Reader, typed
from hfgpt.base.language import _
from hfgpt.base.terminal import say
from hfgpt.share.nanogpt import import_checkpoint


def reader() -> Reader:
    """What the command takes."""
    made = Reader(
        "import_nanogpt",
        _("Turn a checkpoint of nanoGPT into a run folder: same logits, with its tokenizer."),
        [
            ("nanoGPT/out-shakespeare-char/ckpt.pt out/imported", _("meta.pkl is looked for around the checkpoint")),
            ("ckpt.pt out/imported --meta=nanoGPT/data/shakespeare_char/meta.pkl", _("... or named")),
        ],
    )
    made.argument("checkpoint", "CKPT", _("ckpt.pt as nanoGPT's train.py saves it"))
    made.argument("folder", _("DIR"), _("folder to make"))
    made.option("meta", _("FILE"), _("meta.pkl of a character-level model (looked for around CKPT)"))
    made.option("tokenizer", _("NAME"), _("Hub id or folder of the tokenizer of any other (gpt2)"))
    made.exclusive("meta", "tokenizer")
    return made


def main(words: list[str]) -> None:
    """Import, and say how to go on."""
    arguments = reader().read(words)
    folder = import_checkpoint(arguments.checkpoint, arguments.folder, arguments.meta, arguments.tokenizer)
    say(_("{folder} is ready. Next: {command}", folder=folder, command=typed("sample", folder)))
