"""Use a trained model: let it write, or evaluate it on a whole split.

In:  the arguments of a command line.
Out: text, as it is written; loss, perplexity, bits per character.
"""

import argparse
import json
import sys

from hfgpt.base import shell, threads
from hfgpt.base.command import Reader, at_least, number, one_of, whole
from hfgpt.base.errors import InputError
from hfgpt.base.files import expanded, open_text
from hfgpt.base.language import _, strerror
from hfgpt.base.terminal import for_output, pad, say
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


def sample(words: list[str]) -> None:
    """Load the model and print its samples: they are sampled as one batch, and the first is streamed."""
    arguments = reader().read(words)
    drawing = (arguments.max_new_tokens, arguments.temperature, arguments.top_k, arguments.top_p, arguments.seed)
    sampling = Sampling(*drawing)
    prompt = read_prompt(arguments)
    check_folder(arguments.folder)
    threads.configure()  # before torch is loaded
    with shell.uncollected():
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


def evaluate(words: list[str]) -> None:
    parser = Reader(
        "evaluate",
        _("Evaluate a trained model on a whole split: loss, perplexity, bits per character."),
        [
            ("out/standard", _("the validation split of its own recipe")),
            ("out/standard --dataset=notes.txt --json", _("another text, as data")),
        ],
    )
    parser.argument("folder", _("OUT"), _("run folder, or any folder with an exported GPT-2"))
    parser.option("dataset", _("DATA"), _("other data than the recipe's: a file, folder, glob or Hub id"))
    parser.option("split", "val|train", _("the split to evaluate on (val)"), one_of("val", "train"), "val")
    parser.option("batch_size", "N", _("sequences at a time; changes no figure (32)"), whole, 32)
    parser.option("device", _("DEVICE"), _("auto, cpu, cuda, mps … (auto)"), default="auto")
    parser.flag("json", _("print one JSON object"))
    arguments = parser.read(words)
    check_folder(arguments.folder)
    threads.configure()  # before torch is loaded
    with shell.uncollected():
        from hfgpt.inference.evaluation import evaluate_folder
    if not arguments.json:
        say(_("reading {folder}, and evaluating every block of the split", folder=arguments.folder), sys.stderr)
    result = evaluate_folder(
        arguments.folder, arguments.dataset, arguments.split, arguments.batch_size, arguments.device
    )
    if arguments.json:
        print(json.dumps(result))
        return
    subject = {"folder": arguments.folder, "dataset": result["dataset"], "blocks": f"{result['blocks']:,}"}
    if result["split"] == "val":
        say(_("{folder} on the validation split of {dataset}, {blocks} blocks:", **subject) + "\n")
    else:
        say(_("{folder} on the training split of {dataset}, {blocks} blocks:", **subject) + "\n")
    tokens, characters = f"{result['tokens']:,}", f"{result['characters']:,}"
    rows = [
        (_("loss"), f"{result['loss']:10.4f}", _("nats per token, over {tokens} tokens", tokens=tokens)),
        (_("perplexity"), f"{result['perplexity']:10.3f}", ""),
        (
            _("bits per character"),
            f"{result['bits_per_character']:10.4f}",
            _("over {characters} characters", characters=characters),
        ),
    ]
    for name, figure, meaning in rows:
        say(f"  {pad(name, 20)}{figure}  {meaning}".rstrip())
    if result["split"] == "val" and result["sampled"] < result["blocks"]:
        note = _(
            "While training, {sampled:,} of these blocks are evaluated (eval_iters): the loss there may differ "
            "a little.", sampled=result["sampled"],
        )  # fmt: skip
        say(f"\n{note}")
