"""Evaluate a trained model on a whole split: loss, perplexity, bits per character."""

from __future__ import annotations

import json
import sys

from hfgpt.base import loading, threads
from hfgpt.base.command import Reader, one_of, whole
from hfgpt.base.language import _
from hfgpt.base.terminal import pad, say
from hfgpt.inference.exported import check_folder


def main(words: list[str]) -> None:
    """Evaluate and print."""
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
    with loading.uncollected():
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
