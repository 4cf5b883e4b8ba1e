"""Sample text from a trained model, as it is written."""

from hfgpt.commands import run

if __name__ == "__main__":
    run("sample")
