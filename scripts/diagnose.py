"""Diagnose a run: what is wrong, since when, the evidence, and what to change, with the values to type."""

from hfgpt.commands import run

if __name__ == "__main__":
    run("diagnose")
