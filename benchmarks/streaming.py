"""The reading speed of a stream in one process and in two, and the reading of long lines.

In:  the size of a generated Parquet file, and a tokenizer; the sizes of .jsonl files of one line.
Out: JSON: tokens per second of one process, of two together, and their ratio, alternating in one run, also in
     core-seconds, which other work on the machine does not change; for each line the seconds to cut and read it, and
     the growth of the process.

    python benchmarks/streaming.py --megabytes 100 --tokenizer gpt2
    python benchmarks/streaming.py --lines 200,1000
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BLOCK, BATCH = 256, 48


def write_parquet(path: Path, megabytes: int) -> None:
    """Write documents of about 3 kB in row groups of a megabyte."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from data_preparation import write_text

    write_text(path.with_suffix(".txt"), megabytes)
    text = path.with_suffix(".txt").read_text(encoding="utf-8")
    documents = [text[at : at + 3000] for at in range(0, len(text), 3000)]
    pq.write_table(pa.table({"text": documents}), path, row_group_size=340)


def feed(path: Path, tokenizer: str, cache: Path, rank: int, world: int, steps: int) -> None:
    """Read this process's share of a number of steps, with one thread; print seconds and tokens."""
    from hfgpt import config
    from hfgpt.data.prepare import prepare

    values = {"dataset": str(path), "tokenizer": tokenizer, "streaming": True, "num_proc": 1, "eval_iters": 1}
    corpus = prepare(config.build(values | {"block_size": BLOCK, "batch_size": BATCH}, "x"), cache)
    (_,) = corpus.batches.micro_batches(0, rank, world, BATCH // world)
    print("ready", flush=True)
    sys.stdin.readline()  # all begin together
    began, core = time.perf_counter(), time.process_time()
    for step in range(1, steps + 1):
        (_,) = corpus.batches.micro_batches(step, rank, world, BATCH // world)
    seconds, core = time.perf_counter() - began, time.process_time() - core
    print(json.dumps({"seconds": seconds, "core": core, "tokens": steps * BATCH // world * BLOCK}), flush=True)
    os._exit(0)  # without waiting for the reading ahead


def rate(path: Path, tokenizer: str, cache: Path, world: int, steps: int) -> tuple[float, float]:
    """Return the tokens a second of several processes together, and the tokens a core-second."""
    command = [sys.executable, __file__, "feed", str(path), tokenizer, str(cache)]
    processes = [
        subprocess.Popen([*command, str(rank), str(world), str(steps)], stdin=-1, stdout=-1, text=True)
        for rank in range(world)
    ]
    for process in processes:
        assert process.stdout
        process.stdout.readline()
    for process in processes:
        assert process.stdin
        process.stdin.write("go\n")
        process.stdin.flush()
    figures = [json.loads(process.communicate()[0]) for process in processes]
    tokens = sum(figure["tokens"] for figure in figures)
    return tokens / max(figure["seconds"] for figure in figures), tokens / sum(figure["core"] for figure in figures)


def read_line(path: Path) -> None:
    """Cut and read a file; print seconds and the peak memory of this process in MB."""
    import resource

    from hfgpt.data import pieces, reading

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    parts = (part for piece in pieces.cut_file(path, "text") for part in reading.read(piece))
    size = sum(len(text) for part in parts for text in part.texts)
    seconds, peak = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"characters": size, "seconds": round(seconds, 2), "more_memory_mb": (peak - before) // 1024}))


def one_line(path: Path, megabytes: int) -> dict[str, float]:
    """Return the figures of a .jsonl of one line."""
    with open(path, "w", encoding="ascii") as file:
        file.write('{"text": "')
        for _ in range(megabytes):
            file.write("some words " * 90_909)
        file.write('"}\n')
    done = subprocess.run([sys.executable, __file__, "line", str(path)], capture_output=True, text=True, check=True)
    path.unlink()
    figures: dict[str, float] = json.loads(done.stdout)
    return {"megabytes": megabytes, **figures}


def main() -> None:
    """Measure, and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=0)
    parser.add_argument("--tokenizer", default="bpe")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--lines", default="")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        for size in filter(None, options.lines.split(",")):
            print(json.dumps(one_line(base / "d.jsonl", int(size))), flush=True)
        if options.megabytes:
            write_parquet(base / "d.parquet", options.megabytes)
            rates = [
                [rate(base / "d.parquet", options.tokenizer, base, world, options.steps) for world in (1, 2)]
                for _ in range(options.rounds)
            ]
            ratios = [statistics.median(two[i] / one[i] for one, two in rates) for i in (0, 1)]
            shown = {"ratio": round(ratios[0], 2), "ratio_per_core_second": round(ratios[1], 2)}
            print(json.dumps({"tokens_per_second": [[round(r[0]) for r in pair] for pair in rates], **shown}))


if __name__ == "__main__":
    if sys.argv[1:2] == ["feed"]:
        _, _, path, tokenizer, cache, rank, world, steps = sys.argv
        feed(Path(path), tokenizer, Path(cache), int(rank), int(world), int(steps))
    elif sys.argv[1:2] == ["line"]:
        read_line(Path(sys.argv[2]))
    else:
        main()
