"""Turn a checkpoint of nanoGPT into a run folder: same logits, with its tokenizer."""

from hfgpt.commands import run

if __name__ == "__main__":
    run("import_nanogpt")
