"""ONNX and GGUF: the same logits and tokens, and one message for a model that cannot be converted."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from hfgpt.base.errors import ConversionError, InputError
from hfgpt.commands.choice import carry_out
from hfgpt.data import tokenizer
from hfgpt.inference import exported
from hfgpt.model.folder import quiet_loading
from hfgpt.share import export
from hfgpt.share.gguf import to_gguf
from hfgpt.share.onnx import to_onnx

BLOCK = 48
PROMPTS = ["now is the winter", " of our\n\n  discontent!", "glorious é 你好 summer", "by this sun"]

# llama.cpp prints its own log, from its own threads, so it runs in its own process.
LLAMA_CPP = """
import json, sys
import xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.verbosity, params.n_ctx, params.cpuparams.n_threads = sys.argv[1], 0, 0, 1
server = xllamacpp.Server(params)
asked = {"max_tokens": 1, "temperature": 0, "logprobs": 5}
answers = [server.handle_completions({"prompt": prompt, **asked}) for prompt in json.loads(sys.argv[2])]
print("answers:", json.dumps(answers))
"""


@pytest.fixture(scope="module", params=["char", "bpe", "untied"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_text: Path) -> Path:
    """Return an exported model with weights large enough for its logits to differ, and more rows than tokens."""
    config = {"tie_word_embeddings": False} if request.param == "untied" else {}
    return write_model(tmp_path_factory.mktemp(request.param), request.param, tiny_text.read_text("utf-8"), **config)


def write_model(folder: Path, kind: str, text: str, **config: Any) -> Path:
    text += "".join(PROMPTS[:2])
    made = tokenizer.train_char([text]) if kind == "char" else tokenizer.train_bpe([text], 300)
    torch.manual_seed(0)
    shape = {"n_layer": 2, "n_head": 2, "n_embd": 48, "n_positions": BLOCK, "initializer_range": 0.15}
    shape |= {"activation_function": "gelu_pytorch_tanh", "eos_token_id": None, "bos_token_id": None}
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=len(made) + 7, **(shape | config)))
    for parameter in gpt2.parameters():  # biases and norms start as zeros and ones, which hide a transposition
        parameter.data += 0.1 * torch.randn_like(parameter)
    export.write(folder, gpt2, made, export.weights(gpt2.state_dict()))
    return folder


def logits(folder: Path, ids: torch.Tensor, **how: Any) -> torch.Tensor:
    with quiet_loading(), torch.no_grad():
        return GPT2LMHeadModel.from_pretrained(folder, **how).eval()(ids).logits


@pytest.fixture
def ids(folder: Path) -> torch.Tensor:
    rows = json.loads((folder / "config.json").read_text())["vocab_size"]
    return torch.randint(rows, (3, 29), generator=torch.Generator().manual_seed(1))


# -------------------------------------------------------------------------------------------------------------- ONNX


def test_onnx_has_the_same_logits_in_one_file(folder: Path, ids: torch.Tensor, tmp_path: Path) -> None:
    import onnx
    import onnxruntime

    target = tmp_path / "new" / "model.onnx"
    assert 0 < to_onnx(folder, target) < 1e-4
    assert [path.name for path in target.parent.iterdir()] == ["model.onnx"]

    session = onnxruntime.InferenceSession(target)
    assert [axis.shape for axis in session.get_inputs()] == [["batch", "time"]]
    (ours,) = session.run(["logits"], {"input_ids": ids.numpy()})
    expected = logits(folder, ids).numpy()
    assert np.ptp(expected) > 5
    np.testing.assert_allclose(ours, expected, atol=1e-4)

    held = sum(int(np.prod(tensor.dims)) for tensor in onnx.load(target).graph.initializer)
    parameters = sum(parameter.numel() for parameter in GPT2LMHeadModel.from_pretrained(folder).parameters())
    assert held < parameters + 100, "the token embedding is in it twice"


def test_onnx_of_a_model_that_sees_one_token(tmp_path: Path) -> None:
    """Its time is always 1, which the exporter takes for a fixed size."""
    import onnxruntime

    model = write_model(tmp_path / "model", "char", "abc", n_positions=1, n_layer=1)
    assert to_onnx(model, tmp_path / "model.onnx") < 1e-4
    assert [axis.shape for axis in onnxruntime.InferenceSession(tmp_path / "model.onnx").get_inputs()] == [["batch", 1]]


def test_what_the_exporter_cannot_do_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = GPT2LMHeadModel.forward

    def of_the_data(self: GPT2LMHeadModel, ids: torch.Tensor, **how: Any) -> Any:
        return forward(self, ids if ids.sum() > 3 else ids + 1, **how)

    model = write_model(tmp_path / "model", "char", "abc", n_layer=1)
    monkeypatch.setattr(GPT2LMHeadModel, "forward", of_the_data)
    with pytest.raises(ConversionError, match=r"^torch cannot export the model as ONNX: .*; nothing is written$"):
        to_onnx(model, tmp_path / "model.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("folder", ["char"], indirect=True)
def test_a_wrong_graph_is_not_kept(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hfgpt.share.onnx.TOLERANCE", 0.0)
    with pytest.raises(ConversionError, match=r"logits differ from Transformers' by \d"):
        to_onnx(folder, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


# -------------------------------------------------------------------------------------------------------------- GGUF


def test_gguf_gives_the_tensors_back(folder: Path, ids: torch.Tensor, tmp_path: Path) -> None:
    """gguf's reader finds them under llama.cpp's names, and Transformers reads them by itself."""
    import gguf

    assert to_gguf(folder, tmp_path / "model.gguf") == []
    reader = gguf.GGUFReader(tmp_path / "model.gguf")
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    model = GPT2LMHeadModel.from_pretrained(folder)
    state = model.transformer.state_dict()
    if model.config.tie_word_embeddings:
        assert len(tensors) == len(state)
    else:
        assert len(tensors) == len(state) + 1
        np.testing.assert_array_equal(tensors["output.weight"], model.lm_head.weight.detach())
    np.testing.assert_array_equal(tensors["blk.1.attn_qkv.weight"], state["h.1.attn.c_attn.weight"].T)
    np.testing.assert_array_equal(tensors["blk.0.ffn_down.weight"], state["h.0.mlp.c_proj.weight"].T)
    np.testing.assert_array_equal(tensors["position_embd.weight"], state["wpe.weight"])
    values = {name: field.contents() for name, field in reader.fields.items()}
    assert values["general.architecture"] == "gpt2"
    assert values["gpt2.context_length"] == BLOCK
    assert values["gpt2.feed_forward_length"] == 4 * 48

    read = logits(tmp_path, ids, gguf_file="model.gguf", config=GPT2Config.from_pretrained(folder))
    torch.testing.assert_close(read, logits(folder, ids), rtol=0, atol=1e-6)


def test_llama_cpp_reads_the_same_model(folder: Path, tmp_path: Path) -> None:
    """Its tokens and log-probabilities agree, for words, spaces, line feeds and unknown characters."""
    to_gguf(folder, tmp_path / "model.gguf")
    done = subprocess.run(
        [sys.executable, "-c", LLAMA_CPP, str(tmp_path / "model.gguf"), json.dumps(PROMPTS)],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout.split("answers:")[1].splitlines()[0])
    model, words = exported.load_folder(folder, "cpu")
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        ids = words(prompt, return_tensors="pt").input_ids
        assert answer["usage"]["prompt_tokens"] == ids.shape[1], prompt
        first = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        with torch.no_grad():
            expected = model(ids).logits[0, -1].log_softmax(-1).topk(5)
        assert [token["id"] for token in first] == expected.indices.tolist(), prompt
        assert [token["logprob"] for token in first] == pytest.approx(expected.values.tolist(), abs=5e-3), prompt


def test_a_file_that_reads_differently_is_not_kept(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gguf

    add = gguf.GGUFWriter.add_tensor
    monkeypatch.setattr(
        gguf.GGUFWriter, "add_tensor", lambda self, name, data: add(self, name, data + (name[0] == "o"))
    )
    with pytest.raises(ConversionError, match=r"output_norm\.bias, output_norm\.weight"):
        to_gguf(folder, tmp_path / "model.gguf")
    assert list(tmp_path.iterdir()) == []


def test_exact_gelu_is_noted(tmp_path: Path) -> None:
    model = write_model(tmp_path, "char", "abc", activation_function="gelu")
    assert "its logits will differ" in to_gguf(model, tmp_path / "model.gguf")[0]


# ------------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("text", "config", "message"),
    [
        ("a \u2581 b", {}, "has a token for '▁'"),
        ("abc", {"activation_function": "relu"}, "its activation is relu"),
        ("abc", {"scale_attn_weights": False}, "its scale_attn_weights is False"),
    ],
)
def test_what_llama_cpp_cannot_hold_is_refused(tmp_path: Path, text: str, config: dict[str, Any], message: str) -> None:
    model = write_model(tmp_path / "model", "char", text, **config)
    with pytest.raises(InputError, match=message):
        to_gguf(model, tmp_path / "model.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_another_kind_of_tokenizer_is_refused(folder: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(folder, tmp_path / "model")
    path = tmp_path / "model" / "tokenizer.json"
    pipeline = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps(pipeline | {"normalizer": {"type": "Lowercase"}}), encoding="utf-8")
    with pytest.raises(InputError, match=r"neither GPT-2's kind nor hfgpt's characters; .*convert_hf_to_gguf"):
        to_gguf(tmp_path / "model", tmp_path / "model.gguf")


@pytest.mark.parametrize("write", [to_onnx, to_gguf])
def test_a_file_that_exists_is_left_alone(folder: Path, tmp_path: Path, write: Callable[[Path, Path], object]) -> None:
    (tmp_path / "model").write_text("mine")
    with pytest.raises(InputError, match="exists already"):
        write(folder, tmp_path / "model")
    assert (tmp_path / "model").read_text() == "mine"


@pytest.mark.parametrize(("command", "package"), [("export_onnx", "onnxruntime"), ("export_gguf", "gguf")])
def test_a_missing_package_is_one_message(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, package: str
) -> None:
    monkeypatch.delitem(sys.modules, f"hfgpt.share.{command.removeprefix('export_')}")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=rf"this needs {package} → pip install -e '\.\[elsewhere\]'"):
        carry_out(command, [str(folder), str(tmp_path / "model")])


@pytest.mark.e2e
@pytest.mark.parametrize("script", ["export_onnx.py", "export_gguf.py"])
def test_the_scripts_say_it_in_one_line(run_script: Callable[..., Any], script: str) -> None:
    done = run_script(script, "nowhere", "file")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "'nowhere': no such folder\n"
