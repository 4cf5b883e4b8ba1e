"""Evaluate a trained model on a whole split: loss, perplexity, bits per character."""

import os
import sys

from hfgpt.commands import run

if __name__ == "__main__":
    # Python puts a script's folder first on sys.path, where this file would shadow the library `evaluate`.
    sys.path[:] = [entry for entry in sys.path if entry != os.path.dirname(os.path.realpath(__file__))]
    run("evaluate")
