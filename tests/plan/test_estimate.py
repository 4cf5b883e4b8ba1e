"""Parameters equal the model's; the chapter's figures are reproduced if they are right, and corrected if not."""

from __future__ import annotations

import random

import pytest

from hfgpt import config
from hfgpt.base import hardware
from hfgpt.base.errors import InputError
from hfgpt.config import Config
from hfgpt.model import sizes
from hfgpt.plan import chapter, corpus, survey, timing
from hfgpt.plan import memory as memories
from hfgpt.plan.survey import Survey
from hfgpt.plan.target import find_target
from hfgpt.plan.timing import Measured

GIB = 2**30


def recipe(**values: object) -> Config:
    return config.build(
        {"n_layer": 6, "n_head": 6, "n_embd": 384, "block_size": 256, "batch_size": 64, **values}, "run"
    )


def found(vocab_size: int = 330, train_tokens: int | None = 4_000_000, **values: object) -> Survey:
    return Survey(recipe(**values), vocab_size, "", 5_000_000, train_tokens, False)


def shapes(count: int) -> list[tuple[Config, int]]:
    draw = random.Random(1)
    out = []
    for _ in range(count):
        heads = draw.choice([1, 2, 3, 4, 6, 12])
        values = {
            "n_head": heads,
            "n_embd": heads * draw.choice([8, 16, 64]),
            "n_layer": draw.randint(1, 24),
            "block_size": draw.choice([1, 8, 128, 1024]),
        }
        out.append((recipe(**values), draw.choice([2, 65, 330, 8192, 50257])))
    return out


@pytest.mark.parametrize(("shape", "vocab_size"), shapes(30))
def test_parameters_are_the_model_s(shape: Config, vocab_size: int) -> None:
    import torch
    from transformers import GPT2LMHeadModel

    from hfgpt.model.gpt2 import gpt2_config

    with torch.device("meta"):
        model = GPT2LMHeadModel(gpt2_config(shape, vocab_size, None))
    parts = sizes.parameters(shape, vocab_size)
    assert parts.total == model.num_parameters()
    assert parts.token_embedding == model.transformer.wte.weight.numel()
    assert parts.position_embedding == model.transformer.wpe.weight.numel()
    blocks = model.transformer.h
    assert parts.attention == sum(p.numel() for block in blocks for p in block.attn.parameters())
    assert parts.mlp == sum(p.numel() for block in blocks for p in block.mlp.parameters())


def test_published_sizes() -> None:
    assert sizes.parameters(config.build({}, "run"), 50257).total == 124_439_808  # llm.c


def test_the_chapter_s_figures() -> None:
    """Section 5.2 by its own rules, and the true figures beside it."""
    standard = recipe(dropout=0.2, max_iters=5000)
    rules = chapter.rules_of_thumb(standard)
    assert rules.parameters == 10_616_832
    activations = rules.memory_bytes - 16 * rules.parameters
    assert activations == 150_994_944
    assert chapter.tokens(found(max_iters=5000)).per_iter == 16_384
    assert chapter.tokens(found(max_iters=5000)).total == 81_920_000
    exact = sizes.parameters(standard, 65)  # tiny Shakespeare has 65 characters
    assert exact.total - rules.parameters == 65 * 384 + 256 * 384 + exact.norms + 6 * (4 + 5) * 384
    true = memories.estimate(standard, 65, "accelerator", "float32")
    assert true.activations > 15 * activations, "144 MB in the chapter: several times that in truth"


@pytest.mark.parametrize(("layers", "claimed"), [(2, 10e6), (6, 40e6), (12, 124e6), (24, 350e6)])
def test_the_chapter_s_sizes_at_384_are_wrong(layers: int, claimed: float) -> None:
    """Section 2.1: true counts at n_embd 384 are far below its figures; with GPT-2's vocabulary all but the first."""
    blocks = chapter.rules_of_thumb(recipe(n_layer=layers)).parameters
    assert blocks == pytest.approx({2: 3.5e6, 6: 10.6e6, 12: 21.2e6, 24: 42.5e6}[layers], rel=0.02)
    assert blocks < claimed / 2


def test_memory_grows_with_what_it_is_made_of() -> None:
    plain = memories.estimate(recipe(), 330, "accelerator", "bfloat16")
    assert memories.estimate(recipe(batch_size=128), 330, "accelerator", "bfloat16").peak > 1.8 * plain.peak
    for change in ({"block_size": 512}, {"n_layer": 8}, {"gradient_accumulation_steps": 2}, {"dropout": 0.1}):
        assert memories.estimate(recipe(**change), 330, "accelerator", "bfloat16").peak > plain.peak, change
    assert memories.estimate(recipe(), 330, "accelerator", "float32").peak > plain.peak
    smaller = memories.estimate(recipe(activation_checkpointing=True), 330, "accelerator", "bfloat16")
    assert smaller.peak < plain.peak / 2


def test_half_the_block_saves_half_not_sixty_percent() -> None:
    """Section 6.1: attention is fused, so memory is linear in the block size."""
    whole = memories.estimate(recipe(), 330, "accelerator", "bfloat16").peak
    half = memories.estimate(recipe(block_size=128), 330, "accelerator", "bfloat16").peak
    assert 0.40 < 1 - half / whole < 0.50


def test_mixed_precision_saves_less_than_half() -> None:
    wide = memories.estimate(recipe(), 330, "accelerator", "float32").peak
    narrow = memories.estimate(recipe(), 330, "accelerator", "bfloat16").peak
    assert 0.2 < 1 - narrow / wide < 0.5


def test_what_binds() -> None:
    def binding(vocab_size: int, **values: object) -> str:
        return memories.estimate(recipe(**values), vocab_size, "accelerator", "float32").binding

    assert binding(50257) == "loss"
    assert binding(65) == "last block"
    assert binding(65, n_embd=768, n_head=12, batch_size=1, block_size=8) in ("first block", "embedding", "optimizer")
    assert set(memories.BINDS) >= {binding(50257), binding(65)}


def test_micro_batches() -> None:
    assert recipe(batch_size=12, gradient_accumulation_steps=40).micro_batch(8) == 12
    assert recipe(batch_size=12, gradient_accumulation_steps=1).micro_batch(2) == 6
    assert recipe(batch_size=8, gradient_accumulation_steps=3).micro_batch(2) == 6
    with pytest.raises(InputError, match="64 sequences"):
        recipe().micro_batch(7)


def test_flops_are_nanogpt_s() -> None:
    shape = recipe()
    weights = sizes.parameters(shape, 65).total - 256 * 384
    assert sizes.flops_per_token(shape, 65) == 6 * weights + 12 * 6 * 6 * 64 * 256


def test_targets() -> None:
    assert find_target(recipe(), "T4").dtype == "float16"
    assert find_target(recipe(), "RTX 3060").dtype == "bfloat16"
    assert find_target(recipe(), "M2 Pro").dtype == "float32"
    assert find_target(recipe(dtype="float32"), "A100").peak == 156e12  # TF32
    assert find_target(recipe(), vram=8 * GIB).memory_bytes == 8 * GIB
    assert find_target(recipe(), "A100", vram=8 * GIB).memory_bytes == 8 * GIB
    cpu = find_target(recipe(device="cpu"))
    assert (cpu.kind, cpu.dtype) == ("cpu", hardware.cpu_dtype(recipe().n_embd))
    assert find_target(recipe(device="cpu", n_embd=64, n_head=2)).dtype == "float32"
    with pytest.raises(InputError, match="trains on the CPU"):
        find_target(recipe(device="cpu"), "A100")


@pytest.mark.parametrize(("card", "old"), [("P100", True), ("V100 32GB", True), ("T4", False), ("A100 80GB", False)])
def test_cards_that_the_default_build_of_torch_does_not_run_on(card: str, old: bool) -> None:
    assert ("CUDA 12" in find_target(recipe(), card).note) is old


def test_time_from_the_table() -> None:
    """nanoGPT's published run: 5000 steps of the character model in about 3 minutes on an A100, with evaluations."""
    published = found(65, 1_003_854, max_iters=5000, eval_iters=200 * 64 // 12, eval_interval=250)
    seconds = timing.time(published, find_target(published.config, "A100")).total_seconds
    assert 60 < seconds < 300
    gpt2 = Survey(
        config.build({"gradient_accumulation_steps": 40, "max_iters": 600_000}, "run"), 50257, "", None, None, True
    )
    on = find_target(gpt2.config, "A100", processes=8)
    assert timing.time(gpt2, on).training_seconds == pytest.approx(4 * 86400, rel=0.4)  # nanoGPT: about 4 days


def test_time_from_a_probe() -> None:
    what = found(max_iters=100, eval_interval=50, eval_iters=1)
    on = find_target(what.config, "RTX 3060")
    time = timing.time(what, on, Measured(0.5, 1e-6, 2.0, peak=1e12))
    assert time.training_seconds == 50
    assert time.evaluation_seconds == pytest.approx(3 * 2 * 12 * 256 * 1e-6 + 2 * 2.0), "no sample at the first"
    assert time.mfu == pytest.approx(16_384 / 0.5 * sizes.flops_per_token(what.config, 330) / 1e12)
    assert time.measured


def test_processes_share_the_work() -> None:
    what = found(gradient_accumulation_steps=8, compile=True)
    one = timing.time(what, find_target(what.config, "A100"))
    eight = timing.time(what, find_target(what.config, "A100", processes=8))
    assert eight.seconds_per_step == pytest.approx(one.seconds_per_step / 8, rel=0.1)
    assert eight.mfu == pytest.approx(one.mfu, rel=0.1)


def test_checkpointing_takes_a_third_more_time() -> None:
    on = find_target(recipe(), "RTX 3060")
    plain, again = (timing.time(found(activation_checkpointing=flag), on) for flag in (False, True))
    assert again.seconds_per_step == pytest.approx(plain.seconds_per_step * 4 / 3, rel=0.1)


def test_evaluations() -> None:
    assert timing.evaluations(recipe(max_iters=5000, eval_interval=250)) == 21
    assert timing.evaluations(recipe(max_iters=10, eval_interval=250)) == 2
    small = found(train_tokens=9000)
    assert timing.evaluation_tokens(small) == 10_000, "no more than there is"


def test_cost() -> None:
    what = found(max_iters=7200, eval_iters=1)
    on = find_target(what.config, "RTX 3060", processes=2)
    time = timing.time(what, on, Measured(1.0, 0.0, 0.0))
    cost = timing.cost(time, on, 3.0)
    hours = time.total_seconds / 3600 * 2
    assert hours == pytest.approx(2 * 2, rel=0.02)
    assert cost.money == pytest.approx(hours * 3.0)
    assert cost.energy_kwh == pytest.approx(0.170 * hours)
    assert timing.cost(time, find_target(recipe(device="cpu")), None) == timing.Cost(None, None)


def test_epochs_need_a_corpus() -> None:
    assert chapter.tokens(found(max_iters=5000)).epochs == pytest.approx(81_920_000 / 4e6)
    assert chapter.tokens(found(train_tokens=None)).epochs is None
    assert survey.survey_of(recipe()).train_tokens == int(corpus.EMBEDDED.characters * 0.9)
