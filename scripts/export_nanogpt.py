"""Write a run's model as a checkpoint that nanoGPT's sample.py loads.

python scripts/export_nanogpt.py out/standard nanoGPT/out-mine
cd nanoGPT && python sample.py --out_dir=out-mine --device=cpu
"""

import argparse

from hfgpt.base import shell
from hfgpt.share.nanogpt import export_checkpoint


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", metavar="OUT", help="run folder")
    parser.add_argument("target", metavar="DIR", help="folder for ckpt.pt, and for meta.pkl of a character-level model")
    args = parser.parse_args()
    notes = export_checkpoint(args.folder, args.target)
    print(f"{args.target}/ckpt.pt is written.")
    for note in notes:
        print(f"note: {note}")


if __name__ == "__main__":
    shell.run(main)
