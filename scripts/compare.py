"""Compare finished runs: a table, plots, and how the values that differ affected the loss."""

from hfgpt.commands import run

if __name__ == "__main__":
    run("compare")
