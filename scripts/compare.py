"""Compare finished runs: a table, pictures, and what the values in which they differ did to the loss.

    python scripts/compare.py out/batch16 out/batch32 out/batch64
    python scripts/compare.py out/a out/b --out_dir=out/a_or_b

Writes report.md, report.json and PNG files. Run folders, a Trainer's trainer_state.json and nanoGPT's printed logs
can be mixed.
"""

import argparse

from hfgpt.base import shell
from hfgpt.base.terminal import for_output
from hfgpt.runs import compare


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", metavar="OUT", nargs="+", help="run folders (or trainer_state.json, nanoGPT logs)")
    parser.add_argument("--out_dir", default="out/compare", help="where the report goes (out/compare)")
    parser.add_argument("--no_samples", action="store_true", help="leave out what each model writes")
    args = parser.parse_args()
    comparison = compare.of_folders(args.runs)
    report = compare.write(comparison, args.out_dir, samples=not args.no_samples)
    print(for_output(report.read_text(encoding="utf-8")))
    print(f"pictures and data are in {args.out_dir}/")


if __name__ == "__main__":
    shell.run(main)
