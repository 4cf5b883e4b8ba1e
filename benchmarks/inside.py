"""Measurements within one process, both sides alternating: steps, generation, the arithmetic of an evaluation.

In:  the name of a measurement and its arguments as JSON.
Out: JSON on the last line: samples of each side.

    OMP_PROC_BIND=true OMP_NUM_THREADS=2 python benchmarks/inside.py arithmetic '{"vocabulary": 65}'

bench.py starts this in a separate process: torch's threads, once bound, would bind anything started later.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from peers import GPT2, SMALL, STANDARD, Shape, clm_steps

from hfgpt.plan.survey import Survey
from hfgpt.train.run import Run

Samples = dict[str, list[float]]


def in_turn(sides: dict[str, Callable[[], object]], rounds: int, iterations: int = 1, warm: int = 1) -> Samples:
    """Return each call's seconds, A B A B …: `rounds` x `iterations` of a side, after `warm` warm-up calls."""
    import torch

    def timed(action: Callable[[], object]) -> float:
        began = time.perf_counter()
        action()
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()
        return time.perf_counter() - began

    seconds: Samples = {name: [] for name in sides}
    for name in sides:
        for _ in range(warm):
            sides[name]()
    for _ in range(rounds):
        for name, action in sides.items():
            seconds[name] += [timed(action) for _ in range(iterations)]
    return seconds


def prepared(shape: Shape, vocabulary: int, device: str, **more: Any) -> Run:
    """Return a run built from the training loop's own parts, on random tokens."""
    from hfgpt.plan import probe

    return probe.prepare(Survey(shape.config(device=device, **more), vocabulary, "", None, None, False))


def batch_of(run: Run, number: int) -> list[dict[str, Any]]:
    """Return a step's batch, as the training loop gets it."""
    from hfgpt.train.step import to_device

    return to_device(run.corpus.batches.micro_batches(number, 0, 1, run.micro_batch), run.device)


def run_clm(side: str, iterations: int, dtype: str, vocabulary: int = 65, device: str = "cpu") -> list[float]:
    """Return each step's seconds, small shape: hfgpt's loop ("ours"), or one in run_clm_no_trainer's style ("peer").

    `dtype` is hfgpt's; the script has float32 on a CPU by default, and bfloat16 on a card.
    """
    from hfgpt.train.step import train_step

    if side == "ours":
        run, count = prepared(SMALL, vocabulary, device, dtype=dtype), iter(range(1_000_000))

        def step() -> None:
            train_step(run, batch_of(run, next(count)), SMALL.tokens, 1e-3)
    else:
        blocks = np.random.default_rng(0).integers(vocabulary, size=(600, SMALL.block_size))
        step = clm_steps(SMALL, vocabulary, blocks, device)
    return in_turn({side: step}, 1, iterations, warm=10)[side]


def generation(
    shape: dict[str, Any], vocabulary: int, new: int, batch: int, rounds: int, nanogpt: str | None, device: str = "cpu"
) -> Samples:
    """Return the seconds for `batch` texts of `new` tokens, sampled with the defaults of both sides' sample scripts.

    As in the scripts, hfgpt samples the texts as a batch, nanoGPT one after another. Both sides' weights are random.
    """
    import torch
    from transformers import GPT2LMHeadModel

    from hfgpt.inference import sampling as sample
    from hfgpt.model.gpt2 import gpt2_config

    made = Shape(**shape)
    torch.manual_seed(0)
    gpt2 = GPT2LMHeadModel._from_config(gpt2_config(made.config(), vocabulary, None), attn_implementation="sdpa")
    gpt2 = gpt2.to(device).eval()

    def ours() -> None:
        for _ in sample.draw_many(gpt2, [0], vocabulary, None, sample.Sampling(max_new_tokens=new), batch):
            pass

    sides: dict[str, Callable[[], object]] = {"ours": ours}
    if nanogpt is not None:
        sys.path.insert(0, nanogpt)
        from model import GPT, GPTConfig

        sizes = {key: shape[key] for key in ("n_layer", "n_head", "n_embd", "block_size")}
        theirs = GPT(GPTConfig(vocab_size=vocabulary, bias=False, dropout=0.0, **sizes)).to(device).eval()
        start = torch.zeros(1, 1, dtype=torch.long, device=device)
        sides["peer"] = lambda: [theirs.generate(start, new, temperature=0.8, top_k=200) for _ in range(batch)]
    with torch.no_grad():
        for warm in (theirs,) if nanogpt is not None else ():
            warm(torch.zeros(1, 8, dtype=torch.long, device=device))
        next(sample.draw_tokens(gpt2, [0], vocabulary, None, sample.Sampling(max_new_tokens=2)))
    return in_turn(sides, rounds, warm=0)


def arithmetic(vocabulary: int, device: str = "cpu") -> dict[str, float]:
    """Return the seconds of a step of the standard shape, and per token of an evaluation's pure arithmetic."""
    from hfgpt.plan import probe

    measured = probe.probe(Survey(STANDARD.config(device=device), vocabulary, "", None, None, False))
    return {"step": measured.seconds_per_step, "evaluated_token": measured.seconds_per_eval_token}


def held_out(folder: str, nanogpt: str | None, tokens: str, block_size: int, eval_iters: int) -> dict[str, float]:
    """Return the validation loss on the fixed blocks that hfgpt evaluates, in nats per token.

    Args:
        folder: hfgpt's run folder; with `nanogpt`, a checkout, its checkpoint.
    """
    import torch
    import torch.nn.functional as F

    from hfgpt.data.blocks import TokenStream, evaluation_blocks
    from hfgpt.inference import exported

    if nanogpt is None:
        gpt2, _ = exported.load_folder(folder, "cpu")

        def logits_of(ids: torch.Tensor, _targets: torch.Tensor) -> torch.Tensor:
            return gpt2(ids, use_cache=False).logits
    else:
        sys.path.insert(0, nanogpt)
        from model import GPT, GPTConfig

        loaded = torch.load(folder, map_location="cpu", weights_only=True)
        theirs = GPT(GPTConfig(**loaded["model_args"])).eval()
        theirs.load_state_dict({key.removeprefix("_orig_mod."): value for key, value in loaded["model"].items()})

        def logits_of(ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            return theirs(ids, targets)[0]  # without targets it returns only the last position's

    stream = TokenStream([np.fromfile(Path(tokens) / "val.bin", dtype=np.uint16)])
    indices, nll = evaluation_blocks(stream, block_size, eval_iters), 0.0
    with torch.no_grad():
        for rows in np.array_split(indices, max(1, len(indices) // 12)):
            block = torch.from_numpy(stream.blocks(rows, block_size))
            targets = block[:, 1:].contiguous()
            logits = logits_of(block[:, :-1], targets)
            nll += float(F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum"))
    return {"loss": nll / (len(indices) * block_size)}


def checkpoints(folder: str, rounds: int, device: str = "cpu") -> list[float]:
    """Return the seconds by which a GPT-2-sized checkpoint, written in the background, delays the steps.

    The optimizer has taken a step, after which the memory was reserved, as in a run.
    """
    import torch

    from hfgpt.data import tokenizer as tokenizers
    from hfgpt.train import resume
    from hfgpt.train.writer import Writer

    run = prepared(GPT2, 50257, device, out_dir=folder, save_total_limit=1)
    for parameter in run.model.parameters():
        parameter.grad = torch.full_like(parameter, 1e-3)
    run.optimizer.step()
    run.writer = Writer(background=True)
    run.corpus = replace(run.corpus, tokenizer=tokenizers.char_of("a"))  # by which a checkpoint knows its run
    resume.reserve(run)
    seconds = list[float]()
    for run.progress.step in range(1, rounds + 1):
        run.writer.wait()
        began = time.perf_counter()
        resume.save(run)
        seconds.append(time.perf_counter() - began)
    run.writer.wait()
    return seconds


MEASUREMENTS = {each.__name__: each for each in (run_clm, generation, arithmetic, held_out, checkpoints)}

if __name__ == "__main__":
    print(json.dumps(MEASUREMENTS[sys.argv[1]](**json.loads(sys.argv[2]))))
