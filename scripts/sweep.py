"""Run a sweep: a grid, a random search, or one of the chapter's experiments."""

from hfgpt.commands import run

if __name__ == "__main__":
    run("sweep")
