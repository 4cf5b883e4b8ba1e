"""Push a run to the Hugging Face Hub.

python scripts/push.py out/standard user/name
python scripts/push.py out/standard user/name --include_checkpoints     # another machine can resume it
"""

import argparse

from hfgpt.base import shell
from hfgpt.share.hub import push


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", metavar="OUT", help="run folder")
    parser.add_argument("repo_id", metavar="NAME", help="user/name; made if it does not exist")
    parser.add_argument("--private", action="store_true", help="make the repository private")
    parser.add_argument("--revision", help="branch to push to (the main one)")
    parser.add_argument("--include_checkpoints", action="store_true", help="push the checkpoints too")
    parser.add_argument("--overwrite", action="store_true", help="replace another model that has this name")
    parser.add_argument("--license", default="mit", help="licence in the model card, where there is no card yet (mit)")
    options = vars(parser.parse_args())
    options["private"] = options["private"] or None  # not asked for: as the account is set, not 'public'
    print(push(options.pop("folder"), options.pop("repo_id"), **options))


if __name__ == "__main__":
    shell.run(main)
