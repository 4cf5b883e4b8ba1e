"""The exported model as one file of another format: GGUF for llama.cpp, or ONNX.

In:  an exported run folder and the name of a file that does not exist yet.
Out: GGUF: float32, with the tensor and key names of llama.cpp's ``conversion/gpt2.py``, tokenizer included; llama.cpp's
     own ``llama-quantize`` can shrink it. ONNX: ``input_ids``, int64 (batch, time), to ``logits``, float32 (batch,
     time, vocabulary); both axes are dynamic, time up to the block size.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from hfgpt.base.errors import ConversionError, InputError
from hfgpt.base.files import new_file
from hfgpt.base.language import _, listed
from hfgpt.base.shell import needing
from hfgpt.data.tokenizer import BYTE_TOKENS, is_char
from hfgpt.inference import exported
from hfgpt.share.nanogpt import TRANSPOSED

if TYPE_CHECKING:
    import gguf

GELU = ("gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu")  # the last one is exact; the others are llama.cpp's
SPACE = "\u2581"  # how SentencePiece, and so llama.cpp's "llama" vocabulary, writes a space


def to_gguf(folder: str | Path, target: str | Path) -> list[str]:
    """Write the model and its tokenizer as one GGUF file in float32.

    Returns: what the user should know: how llama.cpp will differ.

    Raises:
        InputError: the folder holds no exported GPT-2, or one that llama.cpp's "gpt2" does not support; `target` exists
            or cannot be written; or a package is missing.
        ConversionError: gguf's reader does not return the same tensors and tokens.
    """
    exported.check_folder(folder)
    with new_file(target) as temporary:
        with needing("elsewhere"):
            import gguf
        model, tokenizer = exported.load_folder(folder, "cpu")
        _check_known(model.config, folder)
        vocabulary = _vocabulary(tokenizer, model.config.vocab_size)
        tensors = _gguf_tensors(model)
        writer = gguf.GGUFWriter(temporary, "gpt2")
        _add_parameters(writer, model.config, Path(folder).resolve().name)
        _add_tokenizer(writer, vocabulary)
        for name, tensor in tensors.items():
            writer.add_tensor(name, tensor)
        _write(writer, temporary)
        _check_gguf(temporary, tensors, vocabulary)
    if model.config.activation_function == "gelu":
        return [_("llama.cpp computes GPT-2's approximation of GELU, this model the exact one: its logits will differ")]
    return []


def _write(writer: gguf.GGUFWriter, path: Path) -> None:
    """Write everything that the writer holds. Raises: OSError: the disk is full."""
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        end = max(file.tell() for file in writer.fout or ())
        writer.close()
    except BaseException:
        for file in writer.fout or ():
            with contextlib.suppress(OSError):  # else Python prints a traceback when it lets the file go
                file.close()
        raise
    if path.stat().st_size < end:  # NumPy does not notice that its last bytes are not written
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


class _Vocabulary(NamedTuple):
    """A tokenizer as llama.cpp reads it; lists are indexed by token id."""

    model: str  # "gpt2": byte-level BPE; "llama": SentencePiece, which covers character-level tokenizers
    tokens: list[str]
    types: list[int]  # gguf.TokenType
    merges: list[str]
    bos: int
    eos: int


def _vocabulary(tokenizer: PreTrainedTokenizerFast, size: int) -> _Vocabulary:
    """Return the vocabulary of a model with `size` embedding rows, which may exceed the number of tokens.

    llama.cpp always has an end-of-text token: token 2 or 11 if the file does not name one. For a tokenizer without one,
    name the byte 0xFF, which never occurs in UTF-8, so that nothing is cut off.
    """
    from gguf import TokenType

    pipeline = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = tokenizer.get_vocab()
    tokens = [f"[PAD{row}]" for row in range(size)]  # llama.cpp's converter fills rows without a token like this
    types = [int(TokenType.UNUSED)] * size
    for token, row in vocabulary.items():
        tokens[row], types[row] = token, int(TokenType.NORMAL)
    for added in pipeline["added_tokens"]:
        types[added["id"]] = int(TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED)
    if is_char(pipeline):
        if SPACE in vocabulary:
            raise InputError(
                "the model has a token for {character!r}, which llama.cpp would take for a space", character=SPACE
            )
        for token in BYTE_TOKENS:
            types[vocabulary[token]] = int(TokenType.BYTE)
        model, never = "llama", vocabulary[BYTE_TOKENS[-1]]
        tokens = [SPACE if token == " " else token for token in tokens]
    elif _is_gpt2(pipeline):
        model, never = "gpt2", vocabulary.get(chr(0xFF), 0)  # byte 0xFF in GPT-2's spelling of bytes
    else:
        raise InputError(
            "the model's tokenizer is neither GPT-2's kind nor hfgpt's characters; try llama.cpp's own converter, "
            "convert_hf_to_gguf.py, which knows more of them"
        )
    merges = [" ".join(pair) for pair in pipeline["model"]["merges"]]
    eos = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else never
    bos = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else eos
    return _Vocabulary(model, tokens, types, merges, bos, eos)


def _is_gpt2(pipeline: dict[str, Any]) -> bool:
    """Whether llama.cpp's pre-tokenizer "gpt-2" splits text as this one does."""
    splitter, model = pipeline["pre_tokenizer"] or {}, pipeline["model"]
    split = tuple(splitter.get(key) for key in ("type", "use_regex", "add_prefix_space"))
    pairs = (model["type"], model.get("byte_fallback", False), pipeline["normalizer"])
    return split == ("ByteLevel", True, False) and pairs == ("BPE", False, None)


def _add_tokenizer(writer: gguf.GGUFWriter, vocabulary: _Vocabulary) -> None:
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    if vocabulary.model == "gpt2":
        writer.add_tokenizer_pre("gpt-2")
        writer.add_token_merges(vocabulary.merges)
    else:
        writer.add_tokenizer_pre("default")
        writer.add_token_scores([0.0] * len(vocabulary.tokens))  # no two characters ever merge
        writer.add_unk_token_id(vocabulary.eos)  # never used: bytes encode every other character
        writer.add_add_space_prefix(False)
    writer.add_bos_token_id(vocabulary.bos)
    writer.add_eos_token_id(vocabulary.eos)
    writer.add_add_bos_token(False)


def _add_parameters(writer: gguf.GGUFWriter, config: GPT2Config, name: str) -> None:
    from gguf import LlamaFileType

    writer.add_name(name)
    writer.add_block_count(config.n_layer)
    writer.add_context_length(config.n_positions)
    writer.add_embedding_length(config.n_embd)
    writer.add_feed_forward_length(config.n_inner or 4 * config.n_embd)
    writer.add_head_count(config.n_head)
    writer.add_layer_norm_eps(config.layer_norm_epsilon)
    writer.add_file_type(LlamaFileType.ALL_F32)


def _check_known(config: GPT2Config, folder: str | Path) -> None:
    """Check that the model is GPT-2 as published, as llama.cpp's "gpt2" is; Transformers has variants.

    Raises:
        InputError: the model is a variant.
    """
    if config.activation_function not in GELU:
        raise InputError(
            "{folder!r}: its activation is {activation}; llama.cpp's is GELU",
            folder=str(folder),
            activation=config.activation_function,
        )
    for key, published in (
        ("tie_word_embeddings", True), ("scale_attn_weights", True), ("scale_attn_by_inverse_layer_idx", False)
    ):  # fmt: skip
        if getattr(config, key) != published:
            raise InputError(
                "{folder!r}: its {key} is {value}, which llama.cpp's GPT-2 does not know",
                folder=str(folder),
                key=key,
                value=getattr(config, key),
            )


def _gguf_tensors(model: GPT2LMHeadModel) -> dict[str, NDArray[np.float32]]:
    """Return the tensors by llama.cpp's names, matrices as (out, in). Without the head, which is tied."""
    import gguf

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GPT2, model.config.n_layer)
    tensors = {}
    for name, tensor in model.transformer.state_dict(prefix="transformer.").items():
        if name.endswith(TRANSPOSED):
            tensor = tensor.T
        new = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert new is not None, name
        tensors[new] = tensor.contiguous().numpy()
    return tensors


def _check_gguf(path: Path, tensors: dict[str, NDArray[np.float32]], vocabulary: _Vocabulary) -> None:
    import gguf

    reader = gguf.GGUFReader(path)
    read = {tensor.name: tensor.data for tensor in reader.tensors}
    names = sorted(tensors.keys() | read.keys())
    differ = [name for name in names if not np.array_equal(read.get(name, []), tensors.get(name, []))]
    field = reader.get_field("tokenizer.ggml.tokens")
    if field is None or field.contents() != vocabulary.tokens:
        differ.append(_("the tokens"))
    if differ:
        raise ConversionError(
            "gguf's reader gives something else back: {names}; nothing is written", names=listed(differ)
        )


# ----------------------------------------------------------------------------------------------------------------- ONNX

TOLERANCE = 1e-4  # of the largest logit: float32 sums in another order differ far less, a wrong graph far more
ONNX_LIMIT = 2 * 1024**3  # bytes: protobuf's limit for one file


def to_onnx(folder: str | Path, target: str | Path) -> float:
    """Write the model as one ONNX file.

    The graph reads the whole text each time and has no cache. The head shares the token embedding's tensor.

    Returns: the largest difference between onnxruntime's logits and Transformers', over several batch sizes and lengths
        up to the block size.

    Raises:
        InputError: the folder holds no exported GPT-2, `target` exists or cannot be written, the model is too large
            for one file, or a package is missing.
        ConversionError: the logits differ.
    """
    exported.check_folder(folder)
    with new_file(target) as temporary:
        with needing("elsewhere"):
            import onnxruntime  # noqa: F401 - if it is missing, say so before the work
            import onnxscript  # noqa: F401
        model, _ = exported.load_folder(folder, "cpu")
        size = sum(tensor.numel() * tensor.element_size() for tensor in model.parameters())
        if size >= ONNX_LIMIT:
            raise InputError(
                "{folder!r}: {size:.1f} GB of weights; one ONNX file holds at most 2 GB",
                folder=str(folder),
                size=size / 1e9,
            )
        _write_onnx(model, temporary)
        return _largest_difference(model, temporary)


def _write_onnx(model: GPT2LMHeadModel, path: Path) -> None:
    class Logits(nn.Module):
        """Token ids in, logits out: no cache, no dictionary."""

        def __init__(self) -> None:
            super().__init__()
            self.gpt2 = model

        def forward(self, input_ids: Tensor) -> Tensor:
            logits: Tensor = self.gpt2(input_ids, use_cache=False).logits
            return logits

    # The exporter treats an axis of size 1 as static.
    example = torch.zeros(2, min(2, model.config.n_positions), dtype=torch.int64)
    registration = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = registration.level
    registration.setLevel(logging.ERROR)  # it warns that torchvision is not installed
    try:
        with warnings.catch_warnings():
            # torch.export uses a deprecated part of torch.
            warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)`", FutureWarning)
            program = torch.onnx.export(
                Logits().eval(), (example,), dynamo=True, verbose=False, input_names=["input_ids"],
                output_names=["logits"], dynamic_shapes={"input_ids": {0: "batch", 1: "time"}},
            )  # fmt: skip
    finally:
        registration.setLevel(level)
    assert program is not None, "the exporter returns a program unless it is given a file"
    program.save(path, external_data=False)


def _largest_difference(model: GPT2LMHeadModel, path: Path) -> float:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    draw = torch.Generator().manual_seed(0)
    block, largest, scale = model.config.n_positions, 0.0, 0.0
    for batch, time in ((1, 1), (3, max(1, block // 3)), (2, block)):
        ids = torch.randint(model.config.vocab_size, (batch, time), generator=draw)
        with torch.no_grad():
            expected = model(ids, use_cache=False).logits.numpy()
        (logits,) = session.run(["logits"], {"input_ids": ids.numpy()})
        largest = max(largest, float(np.abs(logits - expected).max()))
        scale = max(scale, float(np.abs(expected).max()))
    if not largest <= TOLERANCE * max(scale, 1.0):
        raise ConversionError(
            "the ONNX model's logits differ from Transformers' by {largest:.2g}; nothing is written", largest=largest
        )
    return largest
