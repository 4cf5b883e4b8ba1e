"""Evaluate a trained model on a whole split: loss, perplexity, bits per character."""

from hfgpt.commands import run

if __name__ == "__main__":
    run("evaluate")
