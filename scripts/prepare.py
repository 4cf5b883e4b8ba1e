"""Write a recipe's dataset as token shards, and push them to the Hub."""

from hfgpt.commands import run

if __name__ == "__main__":
    run("prepare")
