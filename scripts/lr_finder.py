"""Suggest a learning rate for a recipe: a range test over about a hundred steps.

    python scripts/lr_finder.py recipes/quick_experiment.yaml
    python scripts/lr_finder.py recipes/quick_experiment.yaml --steps=200 --picture=lr.png --batch_size=32

The rate rises from 1e-6 to 1, and the loss falls, then turns up. Suggested is where it falls most steeply, or a tenth
of where it turns up, whichever is lower; the answer says which. All other --key=value change the recipe.
"""

import sys
from pathlib import Path

from hfgpt import config as configs
from hfgpt.base import shell, threads
from hfgpt.base.errors import InputError


def main() -> None:
    words = sys.argv[1:]
    if not words or {"-h", "--help"} & set(words):
        print(__doc__)
        return
    own = {"steps": "100", "picture": "lr_finder.png"}
    own |= {name: word.split("=", 1)[1] for word in words for name in own if word.startswith(f"--{name}=")}
    recipe, _, overrides = configs.split_command([w for w in words if not w.startswith(("--steps=", "--picture="))], ())
    config = configs.load(recipe, overrides)
    if not own["steps"].isdigit():
        raise InputError(f"steps = {own['steps']!r}: must be a whole number")
    threads.configure(config.cpu_threads)
    from hfgpt.sweep import lr_finder

    found = lr_finder.find(config, Path(own["picture"]), int(own["steps"]))
    print(f"suggested learning rate: {found.suggestion:g}  ({found.why})")
    print(f"curve: {own['picture']}    to use it: --learning_rate={found.suggestion:g}")


if __name__ == "__main__":
    shell.run(main)
