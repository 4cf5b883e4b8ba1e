"""A model folder is checked before use: no missing weight is drawn at random, no size trusted, no weight ignored."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel

from hfgpt.base.errors import InputError
from hfgpt.data import tokenizer as tokenizers
from hfgpt.inference import exported
from hfgpt.model import folder as folders
from hfgpt.model.folder import INDEX, WEIGHTS
from hfgpt.share import export

SHAPE: dict[str, Any] = {"n_layer": 2, "n_head": 2, "n_embd": 8, "n_positions": 12}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an exported folder."""
    path = tmp_path_factory.mktemp("whole")
    tokenizer = tokenizers.train_char(["some text"])
    model = GPT2LMHeadModel(GPT2Config(**SHAPE, vocab_size=tokenizers.vocabulary_size(tokenizer)))
    export.write(path, model, tokenizer, export.weights(model.state_dict()))
    return path


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """Return a copy of it, to be corrupted."""
    return Path(shutil.copytree(whole, tmp_path / "model"))


def rewrite(path: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    path.write_text(json.dumps(change(json.loads(path.read_text()))), encoding="utf-8")


def rename(folder: Path, new_name: Callable[[str], str | None]) -> None:
    tensors = {new_name(name): tensor for name, tensor in load_file(folder / WEIGHTS).items()}
    save_file({name: tensor for name, tensor in tensors.items() if name}, folder / WEIGHTS, {"format": "pt"})


def test_a_whole_folder_is_loaded(folder: Path) -> None:
    model, _ = exported.load_folder(folder, "cpu")
    expected = GPT2LMHeadModel.from_pretrained(folder).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


def test_weights_by_the_names_of_the_body_alone_are_read(folder: Path) -> None:
    """The Hub's gpt2 has such names, without "transformer.", and the masks that older versions saved."""
    before = GPT2LMHeadModel.from_pretrained(folder).state_dict()
    rename(folder, lambda name: name.removeprefix("transformer."))
    tensors = load_file(folder / WEIGHTS) | {"h.0.attn.bias": torch.ones(1, 1, 12, 12, dtype=torch.uint8)}
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    after = folders.load_model(folder).state_dict()
    assert all(torch.equal(tensor, before[name]) for name, tensor in after.items())


def test_weights_in_several_files_are_read(folder: Path) -> None:
    model = GPT2LMHeadModel.from_pretrained(folder)
    (folder / WEIGHTS).unlink()
    model.save_pretrained(folder, max_shard_size="4KB")
    assert (folder / INDEX).is_file()
    assert torch.equal(folders.load_model(folder).lm_head.weight, model.lm_head.weight)


WEIGHT = "transformer.h.1.mlp.c_fc.weight"


def change_weight(folder: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    tensors = load_file(folder / WEIGHTS)
    save_file(tensors | {WEIGHT: change(tensors[WEIGHT])}, folder / WEIGHTS, {"format": "pt"})


def spoil(folder: Path, what: str) -> None:
    if what == "a weight is missing":
        rename(folder, lambda name: None if name == "transformer.h.1.mlp.c_fc.weight" else name)
    elif what == "other names":
        rename(folder, lambda name: f"model.{name}")
    elif what == "another shape":
        rewrite(folder / "config.json", lambda c: c | {"n_positions": 13})
    elif what == "an untied head is missing":
        rewrite(folder / "config.json", lambda c: c | {"tie_word_embeddings": False})
    elif what == "a pointer of Git LFS":
        (folder / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n")
    elif what == "integers":
        tensors = load_file(folder / WEIGHTS)
        save_file({name: t.to(torch.int32) for name, t in tensors.items()}, folder / WEIGHTS, {"format": "pt"})
    elif what in ("bytes", "truth values"):
        change_weight(folder, lambda t: t.to(torch.uint8 if what == "bytes" else torch.bool))
    elif what == "one weight twice":
        tensors = load_file(folder / WEIGHTS)
        tensors["h.1.mlp.c_fc.weight"] = torch.zeros_like(tensors[WEIGHT])
        save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    elif "=" in what:
        key, _equals, value = what.partition("=")
        rewrite(folder / "config.json", lambda c: c | {key: json.loads(value)})
    elif what == "ten million layers":
        rewrite(folder / "config.json", lambda c: c | {"n_layer": 10**7})
    elif what == "layers without weights":
        rewrite(folder / "config.json", lambda c: c | {"n_layer": 10**4})
    elif what == "a billion labels":
        rewrite(folder / "config.json", lambda c: c | {"num_labels": 10**9})
    elif what == "a size of text":
        rewrite(folder / "config.json", lambda c: c | {"n_embd": "8"})
    elif what == "heads":
        rewrite(folder / "config.json", lambda c: c | {"n_head": 3})
    elif what == "lists within lists":
        (folder / "config.json").write_text("[" * 100_000)
    elif what == "objects within objects":
        (folder / "config.json").write_text('{"a":' * 100_000 + "1" + "}" * 100_000)
    elif what == "a long config":
        (folder / "config.json").write_text(json.dumps({"model_type": "gpt2", "a": "a" * 2**21}))
    elif what == "a list":
        (folder / "config.json").write_text("[]")
    elif what == "nested generation":
        (folder / "generation_config.json").write_text('{"a":' * 100_000)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("a weight is missing", r"1 of the model's 28 weights are missing, the first is transformer\.h\.1\.mlp\.c_fc"),
        ("other names", "28 of the model's 28 weights are missing"),
        ("another shape", r"wpe\.weight has the shape \(12, 8\), and config.json asks for \(13, 8\)"),
        ("an untied head is missing", "lm_head"),
        ("a pointer of Git LFS", "is a Git LFS pointer, not the weights → fetch the file"),
        ("integers", "has the type I32"),
        ("bytes", r"c_fc\.weight has the type U8; floating-point numbers"),
        ("truth values", "has the type BOOL"),
        ("one weight twice", r"holds the weight h\.1\.mlp\.c_fc\.weight twice"),
        ('layer_norm_epsilon="x"', "layer_norm_epsilon = x: must be a number above 0"),
        ("layer_norm_epsilon=NaN", "layer_norm_epsilon = nan: must be a number above 0"),
        ("attn_pdrop=7", "attn_pdrop = 7: must be a number from 0 to below 1"),
        ('tie_word_embeddings="no"', "tie_word_embeddings = no: must be true or false"),
        ('eos_token_id="x"', "eos_token_id = x: must be a token's number"),
        ('activation_function=["relu"]', "activation_function = .*: must be a name"),
        ("ten million layers", "n_layer = 10000000: must be an integer from 1 to 10,000"),
        ("layers without weights", "weights are missing"),
        ("a billion labels", "num_labels = 1000000000"),
        ("a size of text", "n_embd = 8: must be an integer"),
        ("heads", "n_head = 3 does not divide n_embd = 8"),
        ("lists within lists", "is not the description of a model"),
        ("objects within objects", "is not the description of a model"),
        ("a long config", "such a file has 1,048,576 at most"),
        ("a list", "is not the description of a model"),
        ("nested generation", r"generation_config\.json: is not"),
    ],
)
def test_a_spoiled_folder_is_refused_before_it_is_loaded(
    folder: Path, what: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(folder, what)
    monkeypatch.setattr(GPT2LMHeadModel, "from_pretrained", lambda *_, **__: pytest.fail("it was loaded"))
    for load in (exported.check_folder, exported.load_folder):
        with pytest.raises(InputError, match=message):
            load(folder)


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_a_model_that_has_diverged_is_not_used(folder: Path, number: float) -> None:
    """Its loss would be NaN, which JSON does not allow, and every export would contain it."""
    change_weight(folder, lambda t: t.where(torch.rand_like(t) < 0.5, number))
    with pytest.raises(InputError, match=r"c_fc\.weight holds numbers that are not finite: its training has diverged"):
        exported.load_folder(folder, "cpu")


def test_a_head_of_its_own_is_not_passed_over(folder: Path) -> None:
    """Transformers would use it and warn; a model trained or exported from the folder would lack it."""
    tensors = load_file(folder / WEIGHTS)
    embedding = tensors["transformer.wte.weight"]
    save_file(tensors | {"lm_head.weight": embedding.clone()}, folder / WEIGHTS, {"format": "pt"})
    assert torch.equal(folders.load_model(folder).lm_head.weight, embedding)
    save_file(tensors | {"lm_head.weight": embedding + 1}, folder / WEIGHTS, {"format": "pt"})
    with pytest.raises(InputError, match=r"lm_head\.weight is not the embedding"):
        folders.load_model(folder)
    rewrite(folder / "config.json", lambda c: c | {"tie_word_embeddings": False})
    assert torch.equal(folders.load_model(folder).lm_head.weight, embedding + 1)


def test_an_unknown_activation_is_named(folder: Path) -> None:
    rewrite(folder / "config.json", lambda c: c | {"activation_function": "swash"})
    with pytest.raises(InputError, match="activation_function = swash: Transformers has no such function"):
        folders.load_model(folder)


@pytest.mark.parametrize("name", ["../secret.safetensors", "pytorch_model.bin", "/etc/passwd", "", "sub/x.safetensors"])
def test_an_index_names_weight_files_beside_it(folder: Path, name: str) -> None:
    (folder / WEIGHTS).rename(folder.parent / "secret.safetensors")
    torch.save({}, folder / "pytorch_model.bin")
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": {"transformer.wte.weight": name}}))
    with pytest.raises(InputError, match=r"which is not a \.safetensors file beside it"):
        exported.load_folder(folder, "cpu")


@pytest.mark.parametrize("weight_map", [None, [], {}, {"transformer.wte.weight": 3}, {"a": ["b"]}])
def test_an_index_of_another_form_is_refused(folder: Path, weight_map: Any) -> None:
    (folder / WEIGHTS).unlink()
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(InputError, match=INDEX):
        exported.load_folder(folder, "cpu")


def test_what_config_json_says_beside_the_shape_is_not_used(folder: Path) -> None:
    """Custom code, quantisation, another attention: a GPT-2 of this project does not need them."""
    strange = {"auto_map": {"AutoModel": "code.Model"}, "quantization_config": {"quant_method": "bitsandbytes"}}
    rewrite(folder / "config.json", lambda c: c | strange | {"architectures": ["Other"], "torch_dtype": "int8"})
    model, _ = exported.load_folder(folder, "cpu")
    assert model.lm_head.weight.dtype == torch.float32


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(folder: Path) -> None:
    rename(folder, lambda name: name)
    tensors = load_file(folder / WEIGHTS)
    tensors["transformer.wte.weight"] = tensors["transformer.wte.weight"][:100].clone()
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    rewrite(folder / "config.json", lambda c: c | {"vocab_size": 100})
    with pytest.raises(InputError, match="the tokenizer has 263 tokens, and the model knows 100"):
        exported.load_folder(folder, "cpu")
