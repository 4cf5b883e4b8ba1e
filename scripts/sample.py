"""Stream sampled text from a trained model."""

from hfgpt.commands import run

if __name__ == "__main__":
    run("sample")
