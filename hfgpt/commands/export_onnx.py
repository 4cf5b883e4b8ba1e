"""Write a run's model as one ONNX file, and compare its logits under onnxruntime with Transformers'."""

from __future__ import annotations

from hfgpt.base import threads
from hfgpt.base.command import Reader
from hfgpt.base.language import _
from hfgpt.base.terminal import say
from hfgpt.share.onnx import to_onnx


def reader() -> Reader:
    """What the command takes."""
    made = Reader(
        "export_onnx",
        _("Write a run's model as one ONNX file, and compare its logits under onnxruntime with Transformers'."),
        [("out/standard standard.onnx", _("the file"))],
        _(
            "Input: input_ids, int64 (batch, time). Output: logits, float32 (batch, time, vocabulary). Both axes are "
            "free, time up to block_size. Needs pip install -e '.[elsewhere]'."
        ),
    )
    made.argument("folder", _("OUT"), _("run folder, or any folder with an exported GPT-2"))
    made.argument("target", _("FILE"), _("file to make"))
    return made


def main(words: list[str]) -> None:
    """Export, and print how far the logits are apart."""
    arguments = reader().read(words)
    threads.configure()  # before torch is loaded
    difference = f"{to_onnx(arguments.folder, arguments.target):.2g}"
    say(
        _(
            "{path} is written. Largest difference of its logits from Transformers': {difference}",
            path=arguments.target,
            difference=difference,
        )
    )
