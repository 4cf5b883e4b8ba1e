"""Sample text from a trained model, as it is written.

python scripts/sample.py out/quick_experiment --prompt "ROMEO:" --max_new_tokens 500 --seed 1
cat scene.txt | python scripts/sample.py out/quick_experiment --prompt_file -
"""

import argparse
import sys

from hfgpt.base import loading, shell, threads
from hfgpt.base.errors import InputError
from hfgpt.base.terminal import for_output
from hfgpt.inference.exported import check_folder, left_out, load_folder
from hfgpt.inference.sampling import Sampling, generate_many


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", metavar="OUT", help="run folder, or any folder with an exported GPT-2")
    start = parser.add_mutually_exclusive_group()
    start.add_argument("--prompt", default="\n", help="text to continue (default: a line feed)")
    start.add_argument("--prompt_file", metavar="FILE", help="file with the text to continue; - reads standard input")
    parser.add_argument("--max_new_tokens", type=int, default=200, help="tokens to write, past the block too (200)")
    parser.add_argument("--num_samples", type=int, default=1, help="texts to write; each has the next seed (1)")
    parser.add_argument("--temperature", type=float, default=0.8, help="0: most likely token; higher: freer (0.8)")
    parser.add_argument("--top_k", type=int, default=200, help="choose among the k most likely tokens (200)")
    parser.add_argument("--top_p", type=float, help="choose among the most likely tokens of this probability (all)")
    parser.add_argument("--seed", type=int, default=1337, help="the same seed writes the same text (1337)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps … (auto)")
    args = parser.parse_args()
    try:
        run(args)
    except KeyboardInterrupt:
        sys.exit(130)


def run(args: argparse.Namespace) -> None:
    if args.num_samples < 1:
        raise InputError(f"num_samples = {args.num_samples}: must be at least 1")
    sampling = Sampling(args.max_new_tokens, args.temperature, args.top_k, args.top_p, args.seed)
    prompt = read_prompt(args.prompt_file) if args.prompt_file else args.prompt
    check_folder(args.folder)
    threads.configure()
    with loading.uncollected():
        model, tokenizer = load_folder(args.folder, args.device)
    if unknown := left_out(tokenizer, prompt):
        print(f"note: the model has no tokens for {unknown!r}; these characters are left out", file=sys.stderr)
    # All are written side by side; the first is shown as it comes, the others when it is their turn.
    texts = [""] * args.num_samples
    print(for_output(prompt), end="", flush=True)
    for pieces in generate_many(model, tokenizer, prompt, sampling, args.num_samples):
        print(for_output(pieces[0]), end="", flush=True)
        texts = [text + piece for text, piece in zip(texts, pieces, strict=True)]
    print()
    for text in texts[1:]:
        print("-" * 15, for_output(prompt + text), sep="\n")


def read_prompt(name: str) -> str:
    try:
        if name == "-":
            return sys.stdin.read()
        with open(name, encoding="utf-8", newline="") as file:
            return file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"prompt_file = {name!r}: cannot be read as text: {error}") from None


if __name__ == "__main__":
    shell.run(main)
