"""Sample text from a trained model, as it is written."""

from __future__ import annotations

import argparse
import sys

from hfgpt.base import loading, threads
from hfgpt.base.command import Reader, at_least, number, whole
from hfgpt.base.errors import InputError
from hfgpt.base.files import expanded, open_text
from hfgpt.base.language import _, strerror
from hfgpt.base.terminal import for_output, say
from hfgpt.inference.exported import check_folder, left_out, load_folder
from hfgpt.inference.sampling import Sampling, generate_many

MOST_SAMPLES = 10_000  # they are sampled as one batch

LONGEST_PROMPT = 1 << 24  # characters; the model only sees the last block


def reader() -> Reader:
    """Return the parser of the command's arguments."""
    parser = Reader(
        "sample",
        _("Sample text from a trained model, as it is written."),
        [
            ('out/quick_experiment --prompt "ROMEO:" --max_new_tokens 500 --seed 1', _("continue a text")),
            ("out/quick_experiment --prompt_file - < scene.txt", _("continue the text from standard input")),
        ],
    )
    parser.argument("folder", _("OUT"), _("run folder, or any folder with an exported GPT-2"))
    parser.option("prompt", _("TEXT"), _("text to continue (a line feed)"), default="\n")
    parser.option("prompt_file", _("FILE"), _("file with the text to continue; - reads standard input"))
    parser.exclusive("prompt", "prompt_file")
    parser.option("max_new_tokens", "N", _("tokens to write, past the block too (200)"), whole, 200)
    parser.option("num_samples", "N", _("texts to write; each has the next seed (1)"), at_least(1, MOST_SAMPLES), 1)
    parser.option("temperature", "X", _("0: most likely token; higher: freer (0.8)"), number, 0.8)
    parser.option("top_k", "K", _("choose among the k most likely tokens (200)"), whole, 200)
    parser.option("top_p", "P", _("choose among the most likely tokens of this probability (all)"), number)
    parser.option("seed", "N", _("the same seed writes the same text (1337)"), whole, 1337)
    parser.option("device", _("DEVICE"), _("auto, cpu, cuda, mps … (auto)"), default="auto")
    return parser


def main(words: list[str]) -> None:
    """Load the model and print its samples: they are sampled as one batch, and the first is streamed."""
    arguments = reader().read(words)
    drawing = (arguments.max_new_tokens, arguments.temperature, arguments.top_k, arguments.top_p, arguments.seed)
    sampling = Sampling(*drawing)
    prompt = read_prompt(arguments)
    check_folder(arguments.folder)
    threads.configure()  # before torch is loaded
    with loading.uncollected():
        model, tokenizer = load_folder(arguments.folder, arguments.device)
    if unknown := left_out(tokenizer, prompt):
        note = _("note: the model has no tokens for {characters}; they are left out", characters=repr(unknown))
        say(note, sys.stderr)
    texts = [""] * arguments.num_samples
    print(for_output(prompt), end="", flush=True)
    for pieces in generate_many(model, tokenizer, prompt, sampling, arguments.num_samples):
        print(for_output(pieces[0]), end="", flush=True)
        texts = [text + piece for text, piece in zip(texts, pieces, strict=True)]
    print()
    for text in texts[1:]:
        print("-" * 15, for_output(prompt + text), sep="\n")


def read_prompt(arguments: argparse.Namespace) -> str:
    """Return the text to continue: from the command line, a file, or standard input for '-'.

    Raises:
        InputError: it cannot be read as UTF-8 text.
    """
    name = arguments.prompt_file
    key, reason = "prompt" if name is None else "prompt_file", ""
    try:
        if name is None:
            text = str(arguments.prompt)
        elif name == "-":
            text = sys.stdin.read(LONGEST_PROMPT + 1)
        else:
            with open_text(expanded(name), "utf-8", newline="") as file:
                text = file.read(LONGEST_PROMPT + 1)
        text.encode()
        if len(text) > LONGEST_PROMPT:
            raise ValueError(_("it has more than {most:,} characters", most=LONGEST_PROMPT))
        return text.removeprefix("\ufeff") if name is not None else text  # the byte order mark that some editors write
    except UnicodeError:
        reason = _("it is not UTF-8")
    except (OSError, ValueError) as error:
        reason = strerror(error) if isinstance(error, OSError) else str(error)
    shown = repr(arguments.prompt if name is None else name)
    raise InputError("{key} = {value}: cannot be read as text: {reason}", key=key, value=shown, reason=reason)
