"""Suggest a learning rate for a recipe: a range test over about a hundred steps."""

from hfgpt.commands import run

if __name__ == "__main__":
    run("lr_finder")
