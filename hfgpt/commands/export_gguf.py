"""Write a run's model and tokenizer as one GGUF file, for llama.cpp and what is built on it."""

from __future__ import annotations

from hfgpt.base.command import Reader
from hfgpt.base.language import _
from hfgpt.base.terminal import say
from hfgpt.share.gguf import to_gguf


def reader() -> Reader:
    """What the command takes."""
    made = Reader(
        "export_gguf",
        _("Write a run's model and tokenizer as one GGUF file, for llama.cpp and what is built on it."),
        [("out/standard standard.gguf", _('then: llama-cli -m standard.gguf -no-cnv -p "ROMEO:"'))],
        _(
            "The weights are float32; llama.cpp's llama-quantize makes them smaller. Needs "
            "pip install -e '.[elsewhere]'."
        ),
    )
    made.argument("folder", _("OUT"), _("run folder, or any folder with an exported GPT-2"))
    made.argument("target", _("FILE"), _("file to make"))
    return made


def main(words: list[str]) -> None:
    """Export, and print what is to be known of the result."""
    arguments = reader().read(words)
    notes = to_gguf(arguments.folder, arguments.target)
    say(_("{path} is written; gguf's reader gives the same tensors and tokens back.", path=arguments.target))
    for note in notes:
        say(_("note: {note}", note=note))
