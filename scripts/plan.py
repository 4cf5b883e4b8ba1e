"""Say what a recipe costs before it runs: parameters, tokens, memory, time, money; and what to change so that it fits.

    python scripts/plan.py recipes/standard.yaml
    python scripts/plan.py recipes/standard.yaml --vram 8GB            what fits a card of this memory
    python scripts/plan.py recipes/standard.yaml --gpu "RTX 3060"      ... or this card
    python scripts/plan.py recipes/standard.yaml --probe               time measured on this machine, a few steps
    python scripts/plan.py recipes/learning.yaml --time-budget 1h --data my_text.txt --write recipes/mine.yaml
    python scripts/plan.py recipes/standard.yaml --explain n_layer     what a parameter does, computed for this recipe

The recipe comes first (a YAML file or a run folder; none: the defaults); --key=value overrides it, as in train.py.

    --vram SIZE            memory of the device, such as 8GB
    --gpu NAME             a card by its name, such as "RTX 4090", T4, A100, H100, "M2 Pro"
    --processes N          how many devices share each step's batch; memory is one's
    --probe                measure the time of a step here, with the training loop's own step
    --simulate             check the memory formula by running a step on tensors without content
    --time-budget TIME     recommend model and length for 1h, 90m, 1h30m ...
    --data FILE            ... and for this text
    --write FILE           write the recommended recipe, commented
    --price-per-hour X     of one device, in any currency
    --explain PARAMETER    its meaning, what grows with it and by how much here; --lang zh for Chinese
    --json                 the same figures as data
"""

import sys

from hfgpt.base import shell
from hfgpt.plan.command import run


def main() -> None:
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(__doc__)
        return
    print(run(sys.argv[1:]))


if __name__ == "__main__":
    shell.run(main)
