"""Convert a nanoGPT checkpoint to a run folder with the same logits and its tokenizer."""

from hfgpt.commands import run

if __name__ == "__main__":
    run("import_nanogpt")
