"""Conversions from nanoGPT and to other programs: import_nanogpt, export_nanogpt, export_gguf, export_onnx.

In:  the arguments of a command line.
Out: a run folder, or a file of another format, with notes for the user.
"""

from collections.abc import Iterable

from hfgpt.base import threads
from hfgpt.base.command import Reader, typed
from hfgpt.base.language import _
from hfgpt.base.shell import needing
from hfgpt.base.terminal import say
from hfgpt.inference.exported import check_folder


def import_nanogpt(words: list[str]) -> None:
    """Convert a nanoGPT checkpoint to a run folder with the same logits and its tokenizer."""
    reader = Reader(
        "import_nanogpt",
        _("Convert a nanoGPT checkpoint to a run folder with the same logits and its tokenizer."),
        [
            ("nanoGPT/out-shakespeare-char/ckpt.pt out/imported", _("meta.pkl is looked for around the checkpoint")),
            ("ckpt.pt out/imported --meta=nanoGPT/data/shakespeare_char/meta.pkl", _("... or named")),
        ],
    )
    reader.argument("checkpoint", "CKPT", _("ckpt.pt as nanoGPT's train.py saves it"))
    reader.argument("folder", _("DIR"), _("folder to make"))
    reader.option("meta", _("FILE"), _("meta.pkl of a character-level model (looked for around CKPT)"))
    reader.option("tokenizer", _("NAME"), _("Hub id or folder of the tokenizer of any other (gpt2)"))
    reader.exclusive("meta", "tokenizer")
    arguments = reader.read(words)
    from hfgpt.share.nanogpt import import_checkpoint

    folder = import_checkpoint(arguments.checkpoint, arguments.folder, arguments.meta, arguments.tokenizer)
    say(_("{folder} is ready. Next: {command}", folder=folder, command=typed("sample", folder)))


def export_nanogpt(words: list[str]) -> None:
    """Write a run's model as a checkpoint that nanoGPT's sample.py loads."""
    reader = Reader(
        "export_nanogpt",
        _("Write a run's model as a checkpoint that nanoGPT's sample.py loads."),
        [("out/standard nanoGPT/out-mine", _("then, in nanoGPT: python sample.py --out_dir=out-mine --device=cpu"))],
    )
    reader.argument("folder", _("OUT"), _("run folder"))
    reader.argument("target", _("DIR"), _("folder for ckpt.pt, and for meta.pkl of a character-level model"))
    arguments = reader.read(words)
    from hfgpt.share.nanogpt import export_checkpoint

    notes = export_checkpoint(arguments.folder, arguments.target)
    _written(_("{path} is written.", path=f"{arguments.target}/ckpt.pt"), notes)


def export_gguf(words: list[str]) -> None:
    """Write a run's model and tokenizer as one GGUF file, for llama.cpp and programs built on it."""
    folder, target = _folder_and_file(
        words,
        "export_gguf",
        _("Write a run's model and tokenizer as one GGUF file, for llama.cpp and programs built on it."),
        ("out/standard standard.gguf", _('then: llama-cli -m standard.gguf -no-cnv -p "ROMEO:"')),
        _(
            "The weights are float32; llama.cpp's llama-quantize makes them smaller. Needs "
            "pip install -e '.[elsewhere]'."
        ),
    )
    with needing("elsewhere"):
        from hfgpt.share.gguf import to_gguf

    notes = to_gguf(folder, target)
    _written(_("{path} is written; gguf's reader gives the same tensors and tokens back.", path=target), notes)


def export_onnx(words: list[str]) -> None:
    """Write a run's model as one ONNX file, and compare its logits under onnxruntime with Transformers'."""
    folder, target = _folder_and_file(
        words,
        "export_onnx",
        _("Write a run's model as one ONNX file, and compare its logits under onnxruntime with Transformers'."),
        ("out/standard standard.onnx", _("the file")),
        _(
            "Input: input_ids, int64 (batch, time). Output: logits, float32 (batch, time, vocabulary). Both axes are "
            "free, time up to block_size. Needs pip install -e '.[elsewhere]'."
        ),
    )
    threads.configure()  # before torch is loaded
    with needing("elsewhere"):
        from hfgpt.share.onnx import to_onnx

    difference = f"{to_onnx(folder, target):.2g}"
    message = _("{path} is written. Largest difference of its logits from Transformers': {difference}",
             path=target, difference=difference)  # fmt: skip
    _written(message)


def _folder_and_file(words: list[str], name: str, about: str, example: tuple[str, str], more: str) -> tuple[str, str]:
    """Read the words of a command that writes a model as one file; return the folder and the file."""
    reader = Reader(name, about, [example], more)
    reader.argument("folder", _("OUT"), _("run folder, or any folder with an exported GPT-2"))
    reader.argument("target", _("FILE"), _("file to make"))
    arguments = reader.read(words)
    check_folder(arguments.folder)  # before torch is loaded
    return arguments.folder, arguments.target


def _written(message: str, notes: Iterable[str] = ()) -> None:
    say(message)
    for note in notes:
        say(_("note: {note}", note=note))
