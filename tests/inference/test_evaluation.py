"""Evaluation follows its definition, for any batches and processes."""

from __future__ import annotations

import json
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from hfgpt import config as configs
from hfgpt.base.errors import InputError
from hfgpt.data import tokenizer
from hfgpt.data.blocks import TokenStream
from hfgpt.inference import evaluation
from hfgpt.inference.evaluation import LanguageModelMetric
from hfgpt.inference.figures import evaluate_blocks
from hfgpt.inference.figures import figures as language_figures
from hfgpt.model.gpt2 import LanguageModel
from hfgpt.share import export

BLOCK = 16


def tiny_gpt2(made: Any, dropout: float = 0.0) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    drop = {"embd_pdrop": dropout, "attn_pdrop": dropout, "resid_pdrop": dropout}
    shape = {"n_positions": BLOCK, "n_embd": 16, "n_layer": 2, "n_head": 2, "initializer_range": 0.2}
    eos = made.eos_token_id
    size = tokenizer.vocabulary_size(made)
    return GPT2LMHeadModel(GPT2Config(vocab_size=size, bos_token_id=eos, eos_token_id=eos, **shape, **drop)).eval()


def write_folder(path: Path, made: Any, **recipe: Any) -> Path:
    """Write an exported, untrained model with its recipe."""
    path.mkdir()
    gpt2 = tiny_gpt2(made)
    export.write(path, gpt2, made, export.weights(gpt2.state_dict()))
    if recipe:
        values = {"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": BLOCK, "num_proc": 1, **recipe}
        (path / "recipe.yaml").write_text(configs.to_yaml(configs.build(values, "tiny")), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def text(tiny_text: Path) -> str:
    return tiny_text.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def folder(text: str, tiny_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("evaluation") / "run"
    return write_folder(path, tokenizer.train_char([text]), dataset=str(tiny_text), val_fraction=0.2)


# ---------------------------------------------------------------------------------------------- the metric


def test_the_figures_are_those_of_the_definition() -> None:
    figures = language_figures(nll_sum=60.0, tokens=30, characters=100)
    assert figures == {
        "loss": 2.0,
        "perplexity": pytest.approx(math.exp(2)),
        "bits_per_character": pytest.approx(60 / math.log(2) / 100),
    }


def test_the_metric_weights_by_tokens_not_by_batches(tmp_path: Path) -> None:
    metric = LanguageModelMetric(keep_in_memory=True, cache_dir=str(tmp_path))
    metric.add_batch(nll_sum=[10.0, 90.0], tokens=[10, 30], characters=[10, 50])
    metric.add_batch(nll_sum=[0.5], tokens=[60], characters=[140])
    assert metric.compute()["loss"] == pytest.approx(100.5 / 100)
    assert metric.compute(nll_sum=[3.0], tokens=[1], characters=[1])["loss"] == 3.0  # nothing left of the first


def test_the_metric_keeps_float64_and_big_counts() -> None:
    total, tokens = 12_345_678_901.123457, 2**33 + 1
    assert language_figures(total, tokens, tokens)["loss"] == total / tokens


def test_the_metric_says_nan_of_nan_and_survives_huge_losses() -> None:
    assert math.isnan(language_figures(math.nan, 10, 10)["loss"])
    assert math.isfinite(language_figures(1e6, 10, 10)["perplexity"])
    with pytest.raises(InputError, match="nothing to measure"):
        language_figures(0.0, 0, 0)


# ---------------------------------------------------------------------------------------------- the sums


@pytest.fixture(scope="module")
def stream() -> TokenStream:
    draw = np.random.RandomState(0)
    return TokenStream([draw.randint(0, 60, 1000).astype(np.uint16), draw.randint(0, 60, 333).astype(np.uint16)])


@pytest.fixture(scope="module")
def gpt2(text: str) -> GPT2LMHeadModel:
    return tiny_gpt2(tokenizer.train_char([text]), dropout=0.5)


def test_the_sum_is_that_of_gpt2s_logits(gpt2: GPT2LMHeadModel, stream: TokenStream) -> None:
    indices = np.arange(stream.n_blocks(BLOCK))
    nll, tokens = evaluate_blocks(LanguageModel(gpt2).eval(), stream, BLOCK, indices, 5, "cpu")
    blocks = torch.from_numpy(stream.blocks(indices, BLOCK))
    with torch.no_grad():
        likelihoods = gpt2(blocks[:, :-1]).logits.double().log_softmax(-1)
    expected = -float(likelihoods.gather(2, blocks[:, 1:, None]).sum())
    assert tokens == len(indices) * BLOCK
    assert nll == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("world", [2, 3, 7])
def test_the_shares_of_all_processes_are_the_whole(gpt2: GPT2LMHeadModel, stream: TokenStream, world: int) -> None:
    indices = np.arange(20)
    model = LanguageModel(gpt2)
    whole = evaluate_blocks(model, stream, BLOCK, indices, 4, "cpu")
    shares = [evaluate_blocks(model, stream, BLOCK, indices, 4, "cpu", rank, world) for rank in range(world)]
    assert sum(tokens for _, tokens in shares) == whole[1]
    assert sum(nll for nll, _ in shares) == pytest.approx(whole[0], rel=1e-6)


def test_dropout_is_off_meanwhile_and_the_mode_is_put_back(gpt2: GPT2LMHeadModel, stream: TokenStream) -> None:
    model = LanguageModel(gpt2)
    model.train()
    sums = {evaluate_blocks(model, stream, BLOCK, [0, 1, 2], 3, "cpu") for _ in range(3)}
    assert len(sums) == 1
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


# ---------------------------------------------------------------------------------------------- a folder


def test_a_folder_is_evaluated_on_the_split_that_its_recipe_cuts(folder: Path, text: str) -> None:
    result = evaluation.evaluate_folder(folder, device="cpu")
    val = text[int(len(text) * 0.8) :]
    assert result["blocks"] == (len(val) - 1) // BLOCK
    assert result["tokens"] == result["characters"] == result["blocks"] * BLOCK
    assert result["bits_per_character"] == pytest.approx(result["loss"] / math.log(2))
    train = evaluation.evaluate_folder(folder, split="train", device="cpu")
    assert train["blocks"] == (len(text) - len(val) - 1) // BLOCK


def test_the_batch_size_changes_no_figure(folder: Path) -> None:
    first, *others = [evaluation.evaluate_folder(folder, batch_size=size, device="cpu") for size in (1, 7, 64, 1000)]
    figures = ("loss", "perplexity", "bits_per_character")
    for other in others:
        assert other == {**first, **{key: pytest.approx(first[key], rel=1e-6) for key in figures}}


def test_other_data_is_read_with_the_models_own_tokenizer(folder: Path, tmp_path: Path) -> None:
    chinese = "黄河远上白云间，一片孤城万仞山。\n" * 40
    path = tmp_path / "poem.txt"
    path.write_text(chinese, encoding="utf-8")
    result = evaluation.evaluate_folder(folder, dataset=str(path), device="cpu")
    assert result["dataset"] == str(path)
    assert result["tokens"] == pytest.approx(3 * result["characters"], rel=0.1)  # three bytes, three tokens each
    assert result["bits_per_character"] > 2.5 * result["loss"] / math.log(2)


def test_a_bpe_model_counts_characters_not_tokens(text: str, tiny_text: Path, tmp_path: Path) -> None:
    made = tokenizer.train_bpe([text], 300)
    path = write_folder(tmp_path / "bpe", made, dataset=str(tiny_text), tokenizer="bpe", vocab_size=300)
    result = evaluation.evaluate_folder(path, device="cpu")
    assert result["characters"] > 1.1 * result["tokens"]
    assert result["bits_per_character"] == pytest.approx(
        result["loss"] * result["tokens"] / math.log(2) / result["characters"]
    )


def test_a_folder_without_a_recipe_needs_a_dataset_at_most(text: str, tiny_text: Path, tmp_path: Path) -> None:
    path = write_folder(tmp_path / "bare", tokenizer.train_char([text]))
    assert evaluation.evaluate_folder(path, dataset=str(tiny_text), device="cpu")["tokens"]


def test_token_files_of_another_tokenizer_are_refused(text: str, tiny_text: Path, tmp_path: Path) -> None:
    """Their ids lie within the vocabulary, so the loss would be a number without a meaning."""
    characters = sorted(set(text))
    ids = np.array([characters.index(letter) for letter in text[:5000]], dtype=np.uint16)
    (tmp_path / "tokens").mkdir()
    for split in ("train", "val"):
        ids.tofile(tmp_path / "tokens" / f"{split}.bin")
    (tmp_path / "tokens" / "meta.pkl").write_bytes(pickle.dumps({"itos": dict(enumerate(characters))}))
    bpe = write_folder(tmp_path / "bpe", tokenizer.train_bpe([text], 300), dataset=str(tiny_text))
    with pytest.raises(InputError, match=r"dataset = '.*tokens': holds tokens of another tokenizer"):
        evaluation.evaluate_folder(bpe, dataset=str(tmp_path / "tokens"), device="cpu")
    for name, made in (("char", tokenizer.train_char([text])), ("meta", tokenizer.char_tokenizer(characters))):
        same = write_folder(tmp_path / name, made, dataset=str(tmp_path / "tokens"))
        assert evaluation.evaluate_folder(same, device="cpu")["blocks"] == (len(ids) - 1) // BLOCK


def test_the_recipes_further_texts_are_not_read(text: str, tiny_text: Path, tmp_path: Path) -> None:
    """An evaluation does not use them, and on another machine they may not exist."""
    gone = str(tmp_path / "gone.txt")
    path = write_folder(tmp_path / "x", tokenizer.train_char([text]), dataset=str(tiny_text), val_datasets=gone)
    assert evaluation.evaluate_folder(path, device="cpu")["tokens"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"split": "test"}, "split = 'test'"),
        ({"batch_size": 0}, "batch_size = 0"),
        ({"dataset": " "}, "dataset"),
        ({"dataset": "nowhere/to/be/found.txt"}, "dataset = 'nowhere/to/be/found.txt'"),
        ({"device": "abacus"}, "device = 'abacus'"),
    ],
)
def test_bad_input_is_one_message(folder: Path, arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        evaluation.evaluate_folder(folder, **{"device": "cpu", **arguments})


@pytest.mark.e2e
def test_the_script_prints_a_table_or_json(folder: Path, run_script: Any) -> None:
    """A script's folder comes first on the import path, and contains an evaluate.py: the script itself."""
    done = run_script("evaluate.py", folder, "--json", "--device=cpu")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["loss"] == pytest.approx(evaluation.evaluate_folder(folder, device="cpu")["loss"])
    assert not done.stderr
    done = run_script("evaluate.py", folder, "--device=cpu")
    assert "bits per character" in done.stdout
    assert "evaluating every block" in done.stderr, "a large model takes minutes"
    assert run_script("evaluate.py", folder / "none").returncode == 2
