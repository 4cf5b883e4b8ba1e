"""The installed command `hfgpt`: its first argument names one of the commands.

In:  the arguments of a command line.
Out: the process's exit code.
"""

import difflib
from importlib import import_module

from hfgpt import __version__
from hfgpt.base import shell
from hfgpt.base.errors import CommandError, Fault
from hfgpt.base.language import N_, _

# The installed commands, in the order in which a user needs them.
COMMANDS = {
    "recipes": N_("list the recipes that come with hfgpt, or copy them"),
    "plan": N_("say what a recipe costs before it runs, and what fits"),
    "train": N_("train a model from a recipe"),
    "sample": N_("let a model write"),
    "diagnose": N_("say what happened in a run, and what to change"),
    "evaluate": N_("measure a model on a whole split"),
    "compare": N_("compare finished runs"),
    "sweep": N_("try many values: a grid, a random search, or an experiment of the chapter"),
    "prepare": N_("write a recipe's dataset as token shards"),
    "lr_finder": N_("suggest a learning rate for a recipe"),
    "playground": N_("open a page to plan, watch and sample in"),
    "push": N_("push a run to the Hugging Face Hub"),
    "pull": N_("download a model from the Hub as a run folder"),
    "import_nanogpt": N_("convert a nanoGPT checkpoint to a run folder"),
    "export_nanogpt": N_("write a model as a checkpoint of nanoGPT"),
    "export_gguf": N_("write a model as a GGUF file, for llama.cpp"),
    "export_onnx": N_("write a model as an ONNX file"),
}

# The commands that share a module with similar ones; any other is `main` of the module of its name.
SHARED = {
    "sample": "models", "evaluate": "models", "diagnose": "runs", "compare": "runs", "sweep": "sweeps",
    "lr_finder": "sweeps", "push": "hub", "pull": "hub", "import_nanogpt": "conversions",
    "export_nanogpt": "conversions", "export_gguf": "conversions", "export_onnx": "conversions",
}  # fmt: skip


def carry_out(name: str, words: list[str]) -> int | None:
    """Run a command; its module is imported only now, so that :func:`shell.run` handles its errors too."""
    with shell.uncollected():
        module = import_module(f"hfgpt.commands.{SHARED.get(name, name)}")
    status: int | None = getattr(module, name if name in SHARED else "main")(words)
    return status


def choose(words: list[str]) -> int | None:
    """Run the command that the first argument names, or list the commands."""
    name = words[0].replace("-", "_") if words else "__help"
    if name in COMMANDS:
        return carry_out(name, words[1:])
    if name == "__version":
        print(f"hfgpt {__version__}")
        return 0
    if name in ("__help", "_h", "help"):
        print(overview())
        return 0 if words else 2
    close = difflib.get_close_matches(name, COMMANDS, n=1)
    fix = _("did you mean {name}?", name=repr(close[0])) if close else ""
    raise CommandError([Fault(repr(words[0]), None, _("is not a command"), fix)], "hfgpt --help")


def overview() -> str:
    """Return the page of `hfgpt --help`."""
    lines = [f"  {name:16}{_(summary)}" for name, summary in COMMANDS.items()]
    return "\n".join(
        [
            _("usage: {command}", command=f"hfgpt {_('COMMAND')} …"),
            "",
            _("Train GPT-2-style language models with nanoGPT's parameter names."),
            "",
            *lines,
            "",
            _("hfgpt COMMAND --help explains a command; --lang zh or --lang en chooses the language."),
            _("On several devices: accelerate launch -m hfgpt train …"),
        ]
    )
