"""Write a run's model and tokenizer as one GGUF file, for llama.cpp and what is built on it.

python scripts/export_gguf.py out/standard standard.gguf
llama-cli -m standard.gguf -no-cnv -p "ROMEO:"

The weights are float32; llama.cpp's llama-quantize makes them smaller. Needs pip install -e '.[elsewhere]'.
"""

import argparse

from hfgpt.base import shell
from hfgpt.share.convert import to_gguf


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", metavar="OUT", help="run folder, or any folder with an exported GPT-2")
    parser.add_argument("target", metavar="FILE", help="file to make")
    args = parser.parse_args()
    notes = to_gguf(args.folder, args.target)
    print(f"{args.target} is written; gguf's reader gives the same tensors and tokens back.")
    for note in notes:
        print(f"note: {note}")


if __name__ == "__main__":
    shell.run(main)
