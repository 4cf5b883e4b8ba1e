"""Evaluate a trained model on a whole split: loss, perplexity, bits per character.

python scripts/evaluate.py out/standard                      # the validation split of its own recipe
python scripts/evaluate.py out/standard --dataset=notes.txt --json
"""

import argparse
import json

from hfgpt.base import shell, threads
from hfgpt.inference.evaluation import SPLITS, evaluate_folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", metavar="OUT", help="run folder, or any folder with an exported GPT-2")
    parser.add_argument("--dataset", help="other data than the recipe's: a file, folder, glob or Hub id")
    parser.add_argument("--split", choices=SPLITS, default="val", help="the split to evaluate on (val)")
    parser.add_argument("--batch_size", type=int, default=32, help="sequences at a time; changes no figure (32)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps … (auto)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    threads.configure()
    result = evaluate_folder(args.folder, args.dataset, args.split, args.batch_size, args.device)
    if args.json:
        print(json.dumps(result))
        return
    print(f"{args.folder} on the {result['split']} split of {result['dataset']}, {result['blocks']:,} blocks:\n")
    print(f"  loss                {result['loss']:10.4f}  nats per token, over {result['tokens']:,} tokens")
    print(f"  perplexity          {result['perplexity']:10.3f}")
    print(f"  bits per character  {result['bits_per_character']:10.4f}  over {result['characters']:,} characters")


if __name__ == "__main__":
    shell.run(main)
