"""The two sides of a comparison: the same shape and the same tokens, given to hfgpt and to its peers.

In:  a :class:`Shape`, tokens, a working folder.
Out: commands for hfgpt's own scripts/train.py and for nanoGPT's train.py, both unmodified; the seconds of each step
     from their output; and :func:`clm_steps`, a loop in the style of Transformers' run_clm_no_trainer.

nanoGPT reads ``data/NAME`` under the folder it is started in. So its files are copied into a temporary folder, beside
data prepared here: the checkout is not modified.
"""

from __future__ import annotations

import gzip
import json
import pickle
import re
import shutil
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from watch import ROOT

from hfgpt import config as configs
from hfgpt.config import Config
from hfgpt.data import sources
from hfgpt.model import sizes


@dataclass(frozen=True)
class Shape:
    """What is trained, in the names that both sides know."""

    n_layer: int
    n_head: int
    n_embd: int
    block_size: int
    batch_size: int
    dropout: float = 0.0

    @property
    def flags(self) -> list[str]:
        """Return the arguments for both command lines."""
        return [f"--{key}={value}" for key, value in asdict(self).items()]

    @property
    def tokens(self) -> int:
        """Return the number of targets of one step."""
        return self.batch_size * self.block_size

    def config(self, **more: Any) -> Config:
        """Return the config for hfgpt's modules; on a CPU always float32, as in nanoGPT."""
        narrow = {} if more.get("device") == "cuda" else {"dtype": "float32"}
        return configs.build({**asdict(self), **narrow, **more}, "benchmark")

    def flops(self, vocabulary: int) -> float:
        """Return the arithmetic of a step: 6N + 12 · n_layer · n_embd · block_size per token, on both sides."""
        return self.tokens * sizes.flops_per_token(self.config(), vocabulary)


SMALL = Shape(n_layer=4, n_head=4, n_embd=128, block_size=64, batch_size=12)
STANDARD = Shape(n_layer=6, n_head=6, n_embd=384, block_size=256, batch_size=8, dropout=0.2)
GPT2 = Shape(n_layer=12, n_head=12, n_embd=768, block_size=1024, batch_size=4)
QUICK = Shape(n_layer=2, n_head=2, n_embd=128, block_size=64, batch_size=16)  # recipes/quick_experiment.yaml
GPT2_VOCABULARY = 50257


# ----------------------------------------------------------------------------------------------------- the same tokens


@dataclass(frozen=True)
class Tokens:
    """A corpus, in each side's format."""

    ours: Path  # has train.bin, val.bin and a tokenizer
    nanogpt: str  # its name under data/
    vocabulary: int

    @property
    def flags(self) -> list[str]:
        """Return the arguments for scripts/train.py."""
        return [f"--dataset={self.ours}", f"--tokenizer={self.ours / 'tokenizer'}", "--sample_prompt="]


def read_text(path: Path | None) -> str:
    """Return the text to train on: a file, or the corpus that comes with hfgpt."""
    if path is None:
        return gzip.decompress(sources.EMBEDDED.read_bytes()).decode()
    return path.read_text(encoding="utf-8")


def character_tokens(text: str, scratch: Path) -> Tokens:
    """Return the text as characters in sorted order, nine tenths for training, as nanoGPT's prepare.py does.

    hfgpt's own `char` has 256 byte tokens more; here both sides have the same vocabulary, and so the same arithmetic.
    """
    characters = sorted(set(text))
    number = {character: i for i, character in enumerate(characters)}
    ids = np.fromiter((number[character] for character in text), np.uint16, len(text))
    cut = len(ids) * 9 // 10
    return write_tokens(scratch, "characters", ids[:cut], ids[cut:], characters)


def gpt2_tokens(block_size: int, scratch: Path) -> Tokens:
    """Return one block of random tokens of GPT-2's vocabulary in each split: memory does not depend on the text."""
    train, val = np.random.default_rng(0).integers(GPT2_VOCABULARY, size=(2, block_size + 1)).astype(np.uint16)
    return write_tokens(scratch, "gpt2", train, val, [f"<{i}>" for i in range(GPT2_VOCABULARY)])


def write_tokens(
    scratch: Path, name: str, train: NDArray[np.uint16], val: NDArray[np.uint16], vocabulary: list[str]
) -> Tokens:
    """Write files for both sides. nanoGPT reads the vocabulary's size from meta.pkl, hfgpt from the tokenizer."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    ours, theirs = scratch / "ours" / name, scratch / "nanoGPT" / "data" / name
    for folder in (ours, theirs):
        folder.mkdir(parents=True, exist_ok=True)
        train.tofile(folder / "train.bin")
        val.tofile(folder / "val.bin")
    with open(theirs / "meta.pkl", "wb") as file:
        pickle.dump({"vocab_size": len(vocabulary)}, file)
    words = models.WordLevel({token: i for i, token in enumerate(vocabulary)}, vocabulary[0])
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words)).save_pretrained(ours / "tokenizer")
    return Tokens(ours, name, len(vocabulary))


# ------------------------------------------------------------------------------------------------------------ commands


def home(checkout: Path, scratch: Path) -> Path:
    """Return a folder in which nanoGPT is started: its own files, unmodified, beside the data that is prepared here."""
    folder = scratch / "nanoGPT"
    folder.mkdir(parents=True, exist_ok=True)
    if not (checkout / "train.py").is_file() or not (checkout / "model.py").is_file():
        raise FileNotFoundError(f"NANOGPT = {checkout}: holds no train.py and model.py; give a checkout of nanoGPT")
    for file in checkout.glob("*.py"):
        shutil.copy(file, folder)
    shutil.copytree(checkout / "config", folder / "config", dirs_exist_ok=True)
    return folder


def nanogpt_command(shape: Shape, tokens: Tokens, steps: int, device: str, compiled: bool, *more: str) -> list[str]:
    """Return nanoGPT's command: `steps` iterations, one evaluation of one batch before them, no checkpoint."""
    flags = [f"--dataset={tokens.nanogpt}", f"--max_iters={steps - 1}", f"--device={device}", f"--compile={compiled}"]
    flags += [f"--dtype={'bfloat16' if device == 'cuda' else 'float32'}", "--gradient_accumulation_steps=1"]
    flags += ["--eval_iters=1", "--eval_interval=1000000", "--log_interval=1", "--warmup_iters=0"]
    return [sys.executable, "train.py", *shape.flags, *flags, *more]


def our_command(shape: Shape, tokens: Tokens, steps: int, device: str, folder: Path, *more: str) -> list[str]:
    """Return hfgpt's command: `steps` steps, each one recorded, an evaluation of one batch before and after them."""
    flags = [*tokens.flags, f"--max_iters={steps}", f"--device={device}", f"--out_dir={folder}", "--warmup_iters=0"]
    flags += ["--eval_iters=1", "--eval_interval=1000000", "--log_interval=1"]
    flags += ["--compile"] if device == "cuda" else []
    return [sys.executable, str(ROOT / "scripts" / "train.py"), *shape.flags, *flags, *more]


# ------------------------------------------------------------------------------------------------------ what they leave

ITERATION = re.compile(r"^iter (\d+): loss \S+, time (\d+(?:\.\d+)?)ms")
EVALUATION = re.compile(r"^step \d+: train loss ")


def nanogpt_steps(lines: Iterable[str]) -> list[float]:
    """Return the seconds of each iteration that nanoGPT printed, without those that include an evaluation."""
    seconds, evaluated = list[float](), False
    for line in lines:
        if EVALUATION.match(line):
            evaluated = True
        elif found := ITERATION.match(line):
            if not evaluated:
                seconds.append(float(found[2]) / 1000)
            evaluated = False
    return seconds


def records(metrics: Path) -> list[dict[str, Any]]:
    """Return the complete lines of a metrics.jsonl; empty if the file does not exist yet."""
    if not metrics.exists():
        return []
    return [json.loads(line) for line in metrics.read_text().split("\n")[:-1]]


def our_steps(lines: Iterable[dict[str, Any]]) -> list[float]:
    """Return the seconds of each step, from one record to the next: recording a step counts as a part of it.

    Differences that include an evaluation are left out.
    """
    seconds, before = list[float](), None
    for line in lines:
        if "train_loss" not in line:
            before = None
            continue
        if before is not None:
            seconds.append((line["seconds"] - before["seconds"]) / (line["step"] - before["step"]))
        before = line
    return seconds


# --------------------------------------------------------------------------------------------------- run_clm_no_trainer


def clm_steps(shape: Shape, vocabulary: int, blocks: NDArray[np.int64], device: str) -> Callable[[], None]:
    """Return a function that makes one step as Transformers' run_clm_no_trainer.py does, with its defaults.

    It has GPT2LMHeadModel in its default configuration, torch's AdamW with two groups, a DataLoader with the default
    collator over a Dataset of lists, Accelerate's accumulation, and a linear schedule. It differs from the script in
    the learning rate, and in that data and model are made here instead of loaded.

    Args:
        blocks: (n, block_size) tokens to train on.
    """
    import torch
    from accelerate import Accelerator
    from datasets import Dataset
    from torch.utils.data import DataLoader
    from transformers import GPT2Config, GPT2LMHeadModel, default_data_collator, get_scheduler

    accelerator = Accelerator(cpu=device == "cpu", mixed_precision="bf16" if device == "cuda" else "no")
    rates = dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop"), shape.dropout)
    sizes = {"n_layer": shape.n_layer, "n_head": shape.n_head, "n_embd": shape.n_embd, "n_positions": shape.block_size}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=vocabulary, bos_token_id=None, eos_token_id=None, **sizes, **rates))
    rows = {"input_ids": blocks, "attention_mask": np.ones_like(blocks), "labels": blocks}
    dataset = Dataset.from_dict({name: array.tolist() for name, array in rows.items()})
    loader = DataLoader(dataset, shuffle=True, collate_fn=default_data_collator, batch_size=shape.batch_size)
    no_decay = ["bias", "layer_norm.weight"]  # as in the script
    groups = [
        {
            "params": [p for name, p in model.named_parameters() if any(part in name for part in no_decay) == bare],
            "weight_decay": 0.0 if bare else 0.1,
        }
        for bare in (False, True)
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    scheduler = get_scheduler("linear", optimizer, num_warmup_steps=0, num_training_steps=1_000_000)
    model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)
    model.train()

    def endless() -> Iterable[dict[str, torch.Tensor]]:
        while True:
            yield from loader

    batches = iter(endless())

    def step() -> None:
        with accelerator.accumulate(model):
            loss = model(**next(batches)).loss
            accelerator.backward(loss)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()

    return step
