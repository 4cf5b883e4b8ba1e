"""Brief trainings of recipes in memory: their real step times, and how this text's losses deviate from the laws.

In:  a Config, and the tokens of its text (:class:`Tokens`); or candidates in order of expected loss.
Out: :class:`Trial`: validation losses along the way, the final training loss, and the time taken; or the best of the
     candidates after trials of the first few.

The arithmetic is the training loop's, in one process, without folders, records or samples. Call
:func:`hfgpt.base.threads.configure` before this module is imported, as the training script does.
"""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from hfgpt.base.hardware import cpu_dtype, keep_freed_memory
from hfgpt.base.threads import BUSY
from hfgpt.config import Config
from hfgpt.config.fields import EVAL_BATCH
from hfgpt.data.blocks import Batches, TokenStream, evaluation_blocks
from hfgpt.data.prepare import prepare
from hfgpt.inference.figures import evaluate_blocks
from hfgpt.model import gpt2, optim
from hfgpt.model.laws import laws
from hfgpt.model.loss_law import Forecast
from hfgpt.model.schedule import learning_rate
from hfgpt.plan import batches, grid, loss, speed, step_time, timing
from hfgpt.plan.grid import Candidate
from hfgpt.plan.survey import Survey
from hfgpt.plan.target import Target
from hfgpt.plan.timing import Measured


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
    steps_made: int = 0  # fewer than requested if `keep_on` ended it
    # seconds of one validation loss
    evaluation_seconds: float = 0.0
    evaluated_tokens: int = 0
    # seconds of each step, without evaluations
    times: list[float] = field(default_factory=list)
    cpu_times: list[float] = field(default_factory=list)  # of all threads

    @property
    def busy(self) -> bool:
        """Whether other work used the cores meanwhile: the trial's threads got clearly less than they could use.

        The first step does not count: torch prepares much of it in one thread.
        """
        return sum(self.cpu_times[1:]) < BUSY * torch.get_num_threads() * sum(self.times[1:])

    @property
    def cpu_seconds(self) -> float:
        return sum(self.cpu_times)

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
        trial.cpu_times.append(time.process_time() - cpu)
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


# ------------------------------------------------------------------------------------------- the best of the candidates

CLOSE = 0.06  # largest gap in nats to the best candidate by the laws; a worse one is not tried
WARMING = 4  # steps needed to know how long one takes
EACH = 4.0  # shortest trial in seconds; if time is short, fewer trials are run
MOST = 4  # trials


@dataclass(frozen=True)
class Settled:
    """The outcome of the trials."""

    best: Candidate
    forecast: Forecast | None  # its expected loss
    seconds: float  # spent on them
    # as they were priced after a step of the first candidate was timed
    ranked: list[Candidate]
    target: Target


def settle(
    ranked: list[Candidate],
    rank: Callable[[Target], list[Candidate]],
    target: Target,
    budget: float,
    limit: float,
    began: float | None = None,
) -> Settled:
    """Time the best candidate's step, rank them again at the machine's true speed, and try the first few shapes.

    Args:
        ranked: the candidates for `target` by expected loss, best first; at least one.
        rank: returns them for another speed of the machine.
        budget: seconds of the run that is planned.
        limit: seconds for the trials, not counting the loading of the libraries and of the text.
        began: when the libraries began to load, by time.perf_counter; None: they were loaded before.
    """
    prepared = prepare(ranked[0].config)
    tokens = Tokens(prepared.train, prepared.val, ranked[0].survey.vocab_size)
    if began is not None and target.speed is not None and not target.speed.busy and not speed.loaded():
        speed.learn(start=time.perf_counter() - began + ACCELERATE)
    began = time.perf_counter()
    if not _warm(ranked[0], tokens, target, limit).busy:
        renewed = replace(target, speed=speed.this_machine(ranked[0].config.cpu_threads))
        ranked, target = (again, renewed) if (again := rank(renewed)) else (ranked, target)
    tried = list[Candidate]()
    contenders = _contenders(ranked, min(MOST, max(1, int(limit / EACH))))
    for number, candidate in enumerate(contenders, 1):
        spent = time.perf_counter() - began
        share = limit * number / len(contenders) - spent
        tried.append(_try(candidate, tokens, target, budget, share, limit - spent))
    best = min(tried, key=lambda candidate: candidate.loss)
    by_law = loss.forecast(best.survey)  # None if the user's own values are far from the runs behind the law
    if by_law is not None and best.measured is not None:  # a trial was finished
        by_law = loss.after_trial(by_law, best.loss - by_law.loss)
    return Settled(best, by_law, time.perf_counter() - began, ranked, target)


ACCELERATE = 1.5  # seconds of a run's start beyond a trial's: Accelerate, the launcher, the folder


def _contenders(ranked: list[Candidate], count: int) -> list[Candidate]:
    """Return the best candidate of each of the first few shapes."""
    chosen: list[Candidate] = []
    for candidate in ranked:
        if candidate.loss > ranked[0].loss + CLOSE or len(chosen) == count:
            break
        if all(grid.differs(candidate.config, other.config) for other in chosen):
            chosen.append(candidate)
    return chosen


SURE = 0.75  # share of its time that a trial's steps should take: a processor that others use slows down by the second


def _try(candidate: Candidate, tokens: Tokens, target: Target, budget: float, seconds: float, most: float) -> Candidate:
    """Update a candidate's length by its measured steps, and its loss by the trial's deviation from the law.

    Args:
        seconds: its share of the time for trials.
        most: what is left for all of them; a trial that is slower than foreseen may take it.
    """
    began = time.perf_counter()
    seen = _warm(candidate, tokens, target, most)
    if seen.busy:  # neither undisturbed times nor enough steps to judge its loss
        return replace(candidate, busy=True)
    left = seconds - (time.perf_counter() - began)
    config = candidate.config
    blocks = config.eval_iters * EVAL_BATCH * config.block_size
    evaluating = 2 * min(blocks, len(tokens.val)) * seen.evaluation_seconds / max(1, seen.evaluated_tokens)
    steps = int(SURE * (left - evaluating) / max(seen.seconds_per_step, 1e-6))
    if steps < grid.LEAST_STEPS:
        return _planned(candidate, target, budget, seen, 0.0)
    short = grid.with_length(candidate.survey, steps)
    seen = train(short.config, tokens, [], lambda _: time.perf_counter() - began < most)
    if seen.busy or seen.steps_made < steps:  # something slowed its steps, so its schedule is unfinished
        return replace(candidate, busy=True)
    offset = laws().loss["offset kept"] * (seen.val_losses[-1] - grid.expected(short))
    return _planned(candidate, target, budget, seen, offset)


def _warm(candidate: Candidate, tokens: Tokens, target: Target, most: float) -> Trial:
    """Run a candidate's first steps, at most `most` seconds; if undisturbed, they correct the machine's speed."""
    began = time.perf_counter()
    config = grid.with_length(candidate.survey, grid.LEAST_STEPS).config.model_copy(update={"eval_iters": 1})
    seen = train(config, tokens, [], lambda so_far: so_far.steps_made < WARMING and time.perf_counter() - began < most)
    if not seen.busy:
        dtype = grid.own_target(target, config).dtype
        step_time.learn(config, tokens.vocab_size, dtype, seen.seconds_per_step)
    return seen


def _planned(candidate: Candidate, target: Target, budget: float, seen: Trial, offset: float) -> Candidate:
    """Return the candidate at the length that its measured step time allows."""
    survey = candidate.survey
    suited = grid.own_target(target, survey.config)
    priced = timing.priced(survey, suited)
    evaluated = seen.evaluation_seconds / max(1, seen.evaluated_tokens)
    measured = Measured(seen.seconds_per_step, evaluated or priced.seconds_per_eval_token, priced.seconds_per_sample)
    most = grid.affordable(survey, suited, budget, measured)
    share = survey.config.max_iters / max(1, grid.affordable(survey, suited, budget))
    steps = max(grid.LEAST_STEPS, min(most, round(most * min(1.0, share))))
    planned: Survey = grid.with_length(batches.change(survey), steps)
    total = timing.time(planned, suited, measured).total_seconds
    return Candidate(planned, grid.expected(planned) + offset, total, measured)
