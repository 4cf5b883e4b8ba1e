"""The exported model as one GGUF file, for llama.cpp.

In:  an exported run folder and the name of a file that does not exist yet.
Out: the file in float32, with the tensor and key names of llama.cpp's ``conversion/gpt2.py``, tokenizer included;
     llama.cpp's own ``llama-quantize`` can shrink it.
"""

import contextlib
import errno
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np
from gguf import LlamaFileType, TokenType
from numpy.typing import NDArray
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from hfgpt.base.errors import ConversionError, InputError
from hfgpt.base.files import new_file
from hfgpt.base.language import _, listed
from hfgpt.data.tokenizer import BYTE_TOKENS, is_char
from hfgpt.inference import exported
from hfgpt.share.nanogpt import TRANSPOSED

GELU = ("gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu")  # the last one is exact; the others are llama.cpp's
SPACE = "\u2581"  # how SentencePiece, and so llama.cpp's "llama" vocabulary, writes a space


def to_gguf(folder: str | Path, target: str | Path) -> list[str]:
    """Write the model and its tokenizer as one GGUF file in float32.

    Returns: what the user should know: how llama.cpp will differ.

    Raises:
        InputError: the folder holds no exported GPT-2, or one that llama.cpp's "gpt2" does not support; or `target`
            exists or cannot be written.
        ConversionError: gguf's reader does not return the same tensors and tokens.
    """
    exported.check_folder(folder)
    with new_file(target) as temporary:
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
    for key, published in (("scale_attn_weights", True), ("scale_attn_by_inverse_layer_idx", False)):
        if getattr(config, key) != published:
            raise InputError(
                "{folder!r}: its {key} is {value}, which llama.cpp's GPT-2 does not know",
                folder=str(folder),
                key=key,
                value=getattr(config, key),
            )


def _gguf_tensors(model: GPT2LMHeadModel) -> dict[str, NDArray[np.float32]]:
    """Return the tensors by llama.cpp's names, matrices as (out, in); the head only if it is not the embedding."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GPT2, model.config.n_layer)
    tensors = {}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        if name.endswith(TRANSPOSED):
            tensor = tensor.T
        new = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert new is not None, name
        tensors[new] = tensor.contiguous().numpy()
    return tensors


def _check_gguf(path: Path, tensors: dict[str, NDArray[np.float32]], vocabulary: _Vocabulary) -> None:
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
