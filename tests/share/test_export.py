"""The exported folder follows Transformers' format: it loads, samples and trains on without hfgpt."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import GPT2LMHeadModel

from hfgpt import config
from hfgpt.data import tokenizer
from hfgpt.model import gpt2 as model
from hfgpt.share import export

TEXT = "To be, or not to be:\n\n  that is\tthe question. 中文 é 👩‍👧\n"
FILES = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}


def build(kind: str) -> tuple[model.LanguageModel, Any]:
    made = tokenizer.train_char([TEXT]) if kind == "char" else tokenizer.train_bpe([TEXT * 50], 300)
    recipe = config.build({"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 32, "tokenizer": kind}, "test")
    torch.manual_seed(0)
    return model.build(recipe, tokenizer.vocabulary_size(made), made.eos_token_id).eval(), made


@pytest.fixture(scope="module", params=["char", "bpe"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Any]:
    """Return an exported folder, and the model and the tokenizer in it."""
    network, made = build(request.param)
    folder = tmp_path_factory.mktemp(request.param)
    export.write(folder, network.gpt2, made, export.weights(network.state_dict()))
    return folder, network, made


def test_it_is_the_folder_that_transformers_writes(exported: tuple[Path, Any, Any]) -> None:
    folder, network, _ = exported
    assert {path.name for path in folder.iterdir()} == FILES
    shape = json.loads((folder / "config.json").read_text())
    assert shape["architectures"] == ["GPT2LMHeadModel"]
    assert shape["model_type"] == "gpt2"
    assert shape["vocab_size"] == network.gpt2.config.vocab_size
    assert json.loads((folder / "tokenizer_config.json").read_text())["model_max_length"] == 32
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert file.metadata()["format"] == "pt"


def test_its_keys_are_gpt2s_without_the_tied_head(exported: tuple[Path, Any, Any], tmp_path: Path) -> None:
    folder, network, _ = exported
    GPT2LMHeadModel(network.gpt2.config).save_pretrained(tmp_path)
    ours, theirs = load_file(folder / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in theirs.items()}
    assert not any("lm_head" in key or "_orig_mod" in key or key.startswith("gpt2.") for key in ours)


def test_the_tied_head_comes_back_and_with_it_the_logits(exported: tuple[Path, Any, Any]) -> None:
    folder, network, made = exported
    loaded, report = GPT2LMHeadModel.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    assert loaded.lm_head.weight is loaded.transformer.wte.weight
    ids = torch.tensor([made.encode(TEXT)[:32]])
    assert torch.equal(loaded.eval()(ids).logits, network.gpt2(ids).logits)
    assert loaded.dtype == torch.float32


FOREIGN = """
import json, sys
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

folder, text = sys.argv[1], sys.argv[2]
model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
assert tokenizer.decode(tokenizer.encode(text)) == text
batch = tokenizer(text[:20], return_tensors="pt")
assert "token_type_ids" not in batch
loss = model(**batch, labels=batch["input_ids"]).loss
loss.backward()
generate = pipeline("text-generation", model=folder)
samples = generate("To be", max_new_tokens=8, do_sample=True, num_return_sequences=2)
assert len(samples) == 2 and all(s["generated_text"].startswith("To be") for s in samples), samples
assert generate("To be")[0]["generated_text"].startswith("To be"), "with its own defaults"
assert "hfgpt" not in sys.modules
print(json.dumps({"loss": loss.item(), "type": type(model).__name__}))
"""


@pytest.mark.e2e
def test_transformers_alone_loads_trains_and_samples_it(exported: tuple[Path, Any, Any]) -> None:
    folder, network, made = exported
    done = subprocess.run(
        [sys.executable, "-W", "error::FutureWarning", "-c", FOREIGN, str(folder), TEXT],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    ids = torch.tensor([made.encode(TEXT[:20])])
    expected = network(ids[:, :-1], ids[:, 1:]).item() / (ids.shape[1] - 1)
    assert found == {"loss": pytest.approx(expected, rel=1e-5), "type": "GPT2LMHeadModel"}


def test_weights_from_elsewhere_are_exported_not_the_models_own(tmp_path: Path) -> None:
    """FSDP needs this, since its model holds only a part of the weights; so do the best weights of an earlier step."""
    network, made = build("char")
    gathered = {key: value + 1 for key, value in export.weights(network.state_dict()).items()}
    export.write(tmp_path, network.gpt2, made, gathered)
    loaded = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(loaded[key], gathered[key]) for key in gathered)


def test_names_go_there_and_back() -> None:
    network, _ = build("char")
    state = network.state_dict()
    named = export.weights(state)
    assert {f"gpt2.{key}" for key in export.with_tied_head(named)} == set(state)
    GPT2LMHeadModel(network.gpt2.config).load_state_dict(export.with_tied_head(named))


def test_a_later_export_replaces_the_earlier_one_and_leaves_other_files(tmp_path: Path) -> None:
    network, made = build("char")
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    (tmp_path / ".exporting").mkdir()  # left by an export that was killed
    (tmp_path / ".exporting" / "half").write_text("")
    export.write(tmp_path, network.gpt2, made, export.weights(network.state_dict()))
    first = (tmp_path / "model.safetensors").read_bytes()
    with torch.no_grad():
        network.gpt2.transformer.wte.weight += 1
    export.write(tmp_path, network.gpt2, made, export.weights(network.state_dict()))
    assert (tmp_path / "model.safetensors").read_bytes() != first
    assert {path.name for path in tmp_path.iterdir()} == FILES | {"metrics.jsonl"}


def test_exporting_changes_nothing_in_the_model(tmp_path: Path) -> None:
    network, made = build("char")
    before = {key: value.clone() for key, value in network.state_dict().items()}
    random = torch.get_rng_state()
    export.write(tmp_path, network.gpt2, made, export.weights(network.state_dict()))
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)


def test_a_failed_export_leaves_the_earlier_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network, made = build("char")
    export.write(tmp_path, network.gpt2, made, export.weights(network.state_dict()))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(network.gpt2, "save_pretrained", full)
    with pytest.raises(OSError, match="No space left"):
        export.write(tmp_path, network.gpt2, made, {})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
