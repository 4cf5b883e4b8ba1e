"""Write a recipe's dataset as token shards, and push them to the Hub."""

from hfgpt import config as configs
from hfgpt.base import shell
from hfgpt.base.command import Reader, whole
from hfgpt.base.files import expanded
from hfgpt.base.language import _
from hfgpt.base.terminal import say


def main(words: list[str]) -> None:
    """Write, push, and say how to train on it."""
    parser = Reader(
        "prepare",
        _("Write a recipe's dataset as token shards, for this kit, llm.c and modded-nanogpt; push them to the Hub."),
        [
            ("tokens --dataset=notes.txt --tokenizer=gpt2", _("shards and the tokenizer, in tokens/")),
            ("tokens recipes/learning.yaml --push=user/name", _("... and on the Hub, as a dataset to train on")),
        ],
        parameters=configs.PARAMETERS,
        called=configs.CALLED,
    )
    parser.argument("folder", _("FOLDER"), _("folder for the shards; must be new or empty"))
    parser.argument(
        "recipe",
        _("RECIPE"),
        _("the corpus, the tokenizer and val_fraction count; the defaults without"),
        required=False,
    )
    parser.option("shard_tokens", "N", _("tokens in a shard, at most (100,000,000)"), whole, 100_000_000)
    parser.option("push", _("NAME"), _("user/name of a Hub dataset to push them to"))
    parser.flag("private", _("make the Hub dataset private"))
    arguments = parser.read(words)
    config = configs.load(arguments.recipe, arguments.overrides, arguments.faults)
    folder = expanded(arguments.folder)
    with shell.uncollected():
        from hfgpt.data.publish import push_dataset, write_dataset
    corpus = write_dataset(config, folder, arguments.shard_tokens)
    say(
        _(
            "{train:,} training and {val:,} validation tokens in {folder}",
            train=len(corpus.train),
            val=len(corpus.val),
            folder=folder,
        )
    )
    dataset = str(folder)
    if arguments.push:
        say(push_dataset(folder, arguments.push, arguments.private))
        dataset = arguments.push
    say(_("train on them with {option}", option=f"--dataset={dataset}"))
