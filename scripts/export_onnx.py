"""Write a run's model as one ONNX file, and compare its logits under onnxruntime with Transformers'.

python scripts/export_onnx.py out/standard standard.onnx

Input: input_ids, int64 (batch, time). Output: logits, float32 (batch, time, vocabulary). Both axes are free, time up
to block_size. Needs pip install -e '.[elsewhere]'.
"""

import argparse

from hfgpt.base import shell, threads
from hfgpt.share.convert import to_onnx


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", metavar="OUT", help="run folder, or any folder with an exported GPT-2")
    parser.add_argument("target", metavar="FILE", help="file to make")
    args = parser.parse_args()
    threads.configure()
    difference = to_onnx(args.folder, args.target)
    print(f"{args.target} is written. Largest difference of its logits from Transformers': {difference:.2g}")


if __name__ == "__main__":
    shell.run(main)
