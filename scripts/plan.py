"""Estimate a recipe's cost before it runs: parameters, tokens, memory, time, money."""

from hfgpt.commands import run

if __name__ == "__main__":
    run("plan")
