"""Bring a model from the Hugging Face Hub here, as a run folder.

python scripts/pull.py user/name out/name
accelerate launch scripts/train.py out/name --resume --out_dir=out/name     # if its checkpoints were pushed
"""

import argparse

from hfgpt.base import shell
from hfgpt.share.hub import pull


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("repo_id", metavar="NAME", help="user/name of the repository")
    parser.add_argument("folder", metavar="DIR", help="folder to make")
    parser.add_argument("--revision", help="branch, tag or commit (the main branch)")
    args = parser.parse_args()
    folder = pull(args.repo_id, args.folder, revision=args.revision)
    print(f"{folder} is here. Next: python scripts/sample.py {folder}")
    if any(folder.glob("checkpoint-*")):
        print(f"To go on training: accelerate launch scripts/train.py {folder} --resume --out_dir={folder}")


if __name__ == "__main__":
    shell.run(main)
