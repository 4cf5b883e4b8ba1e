"""Download a model from the Hugging Face Hub as a run folder."""

from hfgpt.commands import run

if __name__ == "__main__":
    run("pull")
