"""Train a GPT-2-style model from a recipe."""

from hfgpt.commands import run

if __name__ == "__main__":
    run("train")
