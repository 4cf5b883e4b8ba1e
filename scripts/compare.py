"""Compare finished runs: a table, pictures, and what the values in which they differ did to the loss."""

from hfgpt.commands import run

if __name__ == "__main__":
    run("compare")
