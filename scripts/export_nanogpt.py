"""Write a run's model as a checkpoint that nanoGPT's sample.py loads."""

from hfgpt.commands import run

if __name__ == "__main__":
    run("export_nanogpt")
