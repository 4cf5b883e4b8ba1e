"""Turn a checkpoint of nanoGPT into a run folder: same logits, with its tokenizer.

python scripts/import_nanogpt.py nanoGPT/out-shakespeare-char/ckpt.pt out/imported
python scripts/import_nanogpt.py ckpt.pt out/imported --meta=nanoGPT/data/shakespeare_char/meta.pkl
"""

import argparse

from hfgpt.base import shell
from hfgpt.share.nanogpt import import_checkpoint


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", metavar="CKPT", help="ckpt.pt as nanoGPT's train.py saves it")
    parser.add_argument("folder", metavar="DIR", help="folder to make")
    vocabulary = parser.add_mutually_exclusive_group()
    vocabulary.add_argument("--meta", help="meta.pkl of a character-level model (looked for around CKPT)")
    vocabulary.add_argument("--tokenizer", help="Hub id or folder of the tokenizer of any other (gpt2)")
    args = parser.parse_args()
    folder = import_checkpoint(args.checkpoint, args.folder, args.meta, args.tokenizer)
    print(f"{folder} is ready. Next: python scripts/sample.py {folder}")


if __name__ == "__main__":
    shell.run(main)
