"""Say what happened in a run: what is wrong, since when, how it shows, and what to change, with the values to type.

python scripts/diagnose.py out/standard                     a run folder, also of a run in progress
python scripts/diagnose.py results/checkpoint-500           a Trainer's folder, or its trainer_state.json
python scripts/diagnose.py train.log                        what nanoGPT printed
python scripts/diagnose.py out/standard --json              the same as data: findings, notes
"""

import argparse
import json

from hfgpt.base import shell
from hfgpt.runs import diagnose
from hfgpt.runs.metrics import read_run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="OUT", help="run folder, metrics.jsonl, trainer_state.json or nanoGPT log")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args()
    run = read_run(args.run)
    if args.json:
        print(json.dumps(diagnose.as_json(run), indent=2, ensure_ascii=False))
        return
    of = f" of {run.config.max_iters:,}" if run.config else ""
    print(f"{run.name}: {run.records[-1]['step']:,}{of} steps\n")
    print(diagnose.summary(run.records, run.config))
    if run.config and run.path.name == "metrics.jsonl":
        print(f"\nto try a change: accelerate launch scripts/train.py {run.path.parent} CHANGE --out_dir=NEW_FOLDER")


if __name__ == "__main__":
    shell.run(main)
