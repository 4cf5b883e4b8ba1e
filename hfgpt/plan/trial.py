"""A brief training of a recipe in memory, to see how its loss develops before anything is decided.

In:  a Config, and the tokens of its text (:class:`Tokens`).
Out: :class:`Trial`: validation losses along the way, the final training loss, and the time taken.

The arithmetic is the training loop's, in one process, without folders, records or samples. Call
:func:`hfgpt.base.threads.configure` before this module is imported, as the training script does.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hfgpt.base.machine import cpu_dtype, keep_freed_memory
from hfgpt.config import Config
from hfgpt.data.blocks import Batches, TokenStream, evaluation_blocks
from hfgpt.inference.figures import evaluate_blocks
from hfgpt.model import gpt2, optim
from hfgpt.model.schedule import learning_rate
from hfgpt.plan.speed import BUSY


@dataclass(frozen=True)
class Tokens:
    """A tokenised text, split as a run splits it."""

    train: TokenStream
    val: TokenStream
    vocab_size: int


@dataclass
class Trial:
    """The results of a trial."""

    steps: list[int] = field(default_factory=list)  # the steps at which it was evaluated
    val_losses: list[float] = field(default_factory=list)  # nats per token at each of them
    train_loss: float = math.nan  # on blocks of the training text, at the end
    # of the steps only, without evaluations
    cpu_seconds: float = 0.0
    seconds: float = 0.0
    steps_made: int = 0  # fewer than requested if `keep_on` ended it
    # seconds of one validation loss
    evaluation_seconds: float = 0.0
    evaluated_tokens: int = 0
    times: list[float] = field(default_factory=list)  # of each step, in seconds

    @property
    def busy(self) -> bool:
        """Whether other work used the cores meanwhile: the trial's threads got clearly less than they could use."""
        return self.cpu_seconds < BUSY * torch.get_num_threads() * self.seconds

    @property
    def seconds_per_step(self) -> float:
        """The median of the steps, since the first one also warms up."""
        return statistics.median(self.times[1:] or self.times)


def train(
    config: Config, tokens: Tokens, evaluate_at: Sequence[int], keep_on: Callable[[Trial], bool] = lambda _: True
) -> Trial:
    """Train a model from scratch for `config.max_iters` steps on the CPU.

    Args:
        config: resolved; its shape, batch, optimizer, schedule, dropout, dtype, seed and eval_iters are used.
        tokens: the text.
        evaluate_at: steps after which the validation loss is measured; it always is after the last step.
        keep_on: called after each step; false ends the trial.
    """
    keep_freed_memory()
    torch.manual_seed(config.seed)
    model = gpt2.build(config, tokens.vocab_size, eos_token_id=0).train()
    optimizer = optim.build(model, config, torch.device("cpu"))
    batches = Batches(tokens.train, config.block_size, config.global_batch, config.seed)
    trial = Trial()
    while trial.steps_made < config.max_iters and keep_on(trial):
        step = trial.steps_made + 1
        began, cpu = time.perf_counter(), time.process_time()
        optim.set_learning_rate(optimizer, learning_rate(step, config))
        for block in batches.micro_batches(step - 1, 0, 1, config.batch_size):
            ids = torch.from_numpy(block)
            with autocast(config):
                loss: Tensor = model(ids[:, :-1], ids[:, 1:])
            torch.autograd.backward(loss / config.tokens_per_iter)
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip or math.inf)
        optimizer.step()
        optimizer.zero_grad()
        trial.times.append(time.perf_counter() - began)
        trial.seconds += trial.times[-1]
        trial.cpu_seconds += time.process_time() - cpu
        trial.steps_made = step
        if step in evaluate_at or step == config.max_iters:
            trial.steps.append(step)
            began = time.perf_counter()
            trial.val_losses.append(loss_over(model, config, tokens.val))
            trial.evaluation_seconds = time.perf_counter() - began
            blocks = evaluation_blocks(tokens.val, config.block_size, config.eval_iters)
            trial.evaluated_tokens = len(blocks) * config.block_size
    trial.train_loss = loss_over(model, config, tokens.train)
    return trial


def loss_over(model: gpt2.LanguageModel, config: Config, stream: TokenStream) -> float:
    """Return nats per token over the blocks on which a run evaluates a split."""
    blocks = evaluation_blocks(stream, config.block_size, config.eval_iters)
    with autocast(config):
        nll, count = evaluate_blocks(model, stream, config.block_size, blocks, config.batch_size, torch.device("cpu"))
    return nll / count


def autocast(config: Config) -> AbstractContextManager[object]:
    """Autocast to the precision that a run of this recipe has on a CPU."""
    dtype = cpu_dtype(config.n_embd) if config.dtype == "auto" else config.dtype
    return torch.autocast("cpu", torch.bfloat16) if dtype == "bfloat16" else nullcontext()
