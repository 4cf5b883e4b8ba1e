"""The exported model in the formats of other runtimes: one ONNX file, or one GGUF file for llama.cpp.

In:  an exported run folder and the name of a file that does not exist yet.
Out: the file, which is there only once it has been read back and found to be the same model.

ONNX: ``input_ids``, int64 (batch, time), to ``logits``, float32 (batch, time, vocabulary); both axes are free, time up
to the block. GGUF: float32, with the tensor and key names of llama.cpp's ``conversion/gpt2.py``, tokenizer included;
llama.cpp's own tools make it smaller (``llama-quantize``).

Importing this module imports neither torch nor transformers.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hfgpt.base.errors import Failure, InputError
from hfgpt.data.tokenizer import BYTE_TOKENS, is_char
from hfgpt.inference import exported
from hfgpt.share.nanogpt import TRANSPOSED

if TYPE_CHECKING:
    import gguf
    import numpy as np
    from numpy.typing import NDArray
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast


TOLERANCE = 1e-4  # of the largest logit: float32 sums in another order differ by far less, a wrong graph by far more

ONNX_LIMIT = 2 * 1024**3  # bytes: protobuf's limit for one file

GELU = ("gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu")  # the last one exact, the others as llama.cpp's

SPACE = "\u2581"  # how SentencePiece, and so llama.cpp's "llama" vocabulary, spells a space


class ConversionError(Failure):
    """What was written is not the same model."""


@contextmanager
def _needing_elsewhere() -> Iterator[None]:
    """Say how to install a package that an import inside does not find."""
    try:
        yield
    except ImportError as error:
        raise InputError(f"this needs {error.name} → pip install -e '.[elsewhere]'") from None


@contextmanager
def _new_file(target: str | Path) -> Iterator[Path]:
    """A temporary name beside `target`, which becomes `target` if all goes well and is removed if not."""
    path = Path(target)
    if path.exists():
        raise InputError(f"{str(path)!r}: exists already; name another file")
    temporary = path.with_name(f".{path.name}.writing")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        from hfgpt.base.files import sync  # which imports torch

        sync(temporary)
        temporary.replace(path)
    except OSError as error:
        raise InputError(f"{str(path)!r}: cannot be written: {error.strerror or error}") from None
    finally:
        temporary.unlink(missing_ok=True)


# ------------------------------------------------------------------------------------------------------------- ONNX


def to_onnx(folder: str | Path, target: str | Path) -> float:
    """Write the model as one ONNX file.

    The graph reads a whole text each time and keeps no cache. The head shares the token embedding's tensor.

    Args:
        folder: see :func:`hfgpt.inference.sampling.check_folder`.
        target: the file to make.

    Returns: the largest difference between onnxruntime's logits and Transformers', over several batch sizes and
        lengths up to the whole block.

    Raises:
        InputError: the folder holds no exported GPT-2, `target` exists or cannot be written, the model is too large
            for one file, or a package is missing.
        ConversionError: the logits differ.
    """
    exported.check_folder(folder)
    with _new_file(target) as temporary:
        with _needing_elsewhere():
            import onnxruntime  # noqa: F401 - found missing before the work, not after it
            import onnxscript  # noqa: F401
        model, _ = exported.load_folder(folder, "cpu")
        size = sum(tensor.numel() * tensor.element_size() for tensor in model.parameters())
        if size >= ONNX_LIMIT:
            raise InputError(f"{str(folder)!r}: {size / 1e9:.1f} GB of weights; one ONNX file holds at most 2 GB")
        _write_onnx(model, temporary)
        return _largest_difference(model, temporary)


def _write_onnx(model: GPT2LMHeadModel, path: Path) -> None:
    import torch
    from torch import Tensor, nn

    class Logits(nn.Module):
        """Token ids in, logits out: no cache, no dictionary."""

        def __init__(self) -> None:
            super().__init__()
            self.gpt2 = model

        def forward(self, input_ids: Tensor) -> Tensor:
            return self.gpt2(input_ids, use_cache=False).logits

    # Its sizes are examples too; an axis of size 1 would be taken for one that always is.
    example = torch.zeros(2, min(2, model.config.n_positions), dtype=torch.int64)
    registration = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = registration.level
    registration.setLevel(logging.ERROR)  # it warns that torchvision is not installed
    try:
        with warnings.catch_warnings():
            # torch.export's own use of something it has deprecated.
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
    import numpy as np
    import onnxruntime
    import torch

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
        raise ConversionError(f"the ONNX model's logits differ from Transformers' by {largest:.2g}; nothing is written")
    return largest


# ------------------------------------------------------------------------------------------------------------- GGUF


def to_gguf(folder: str | Path, target: str | Path) -> list[str]:
    """Write the model and its tokenizer as one GGUF file in float32.

    Args:
        folder: see :func:`hfgpt.inference.sampling.check_folder`.
        target: the file to make.

    Returns: what the user should know: where llama.cpp will differ.

    Raises:
        InputError: the folder holds no exported GPT-2, or one that llama.cpp's "gpt2" does not know; `target` exists
            or cannot be written; or a package is missing.
        ConversionError: gguf's reader does not give the same tensors and tokens back.
    """
    exported.check_folder(folder)
    with _new_file(target) as temporary:
        with _needing_elsewhere():
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
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        _check_gguf(temporary, tensors, vocabulary)
    if model.config.activation_function == "gelu":
        return ["llama.cpp computes GPT-2's approximation of GELU, this model the exact one: its logits will differ"]
    return []


class _Vocabulary(NamedTuple):
    """A tokenizer as llama.cpp reads it; a list is by token id."""

    model: str  # "gpt2": byte-level pairs; "llama": SentencePiece, of which a character-level tokenizer is a case
    tokens: list[str]
    types: list[int]  # gguf.TokenType
    merges: list[str]
    bos: int
    eos: int


def _vocabulary(tokenizer: PreTrainedTokenizerFast, size: int) -> _Vocabulary:
    """Of a model with `size` rows in its embedding, which may be more than there are tokens.

    llama.cpp always has a token that ends the text: token 2 or 11 where the file names none. A tokenizer without one
    names the byte 0xFF, which no UTF-8 text holds, so that nothing is cut off.
    """
    from gguf import TokenType

    pipeline = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = tokenizer.get_vocab()
    tokens = [f"[PAD{row}]" for row in range(size)]  # as llama.cpp's converter fills the rows without a token
    types = [int(TokenType.UNUSED)] * size
    for token, row in vocabulary.items():
        tokens[row], types[row] = token, int(TokenType.NORMAL)
    for added in pipeline["added_tokens"]:
        types[added["id"]] = int(TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED)
    if is_char(pipeline):
        if SPACE in vocabulary:
            raise InputError(f"the model has a token for {SPACE!r}, which llama.cpp would take for a space")
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
    """Whether llama.cpp's pre-tokenizer "gpt-2" splits a text as this one does."""
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
        writer.add_unk_token_id(vocabulary.eos)  # never asked for: the bytes spell every other character
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
    """llama.cpp's "gpt2" is GPT-2 as published; Transformers' has variants.

    Raises:
        InputError: this is one of them.
    """
    if config.activation_function not in GELU:
        raise InputError(f"{str(folder)!r}: its activation is {config.activation_function}; llama.cpp's is GELU")
    for key, published in (
        ("tie_word_embeddings", True), ("scale_attn_weights", True), ("scale_attn_by_inverse_layer_idx", False)
    ):  # fmt: skip
        if getattr(config, key) != published:
            raise InputError(f"{str(folder)!r}: {key} is {getattr(config, key)} in it; llama.cpp's GPT-2 does without")


def _gguf_tensors(model: GPT2LMHeadModel) -> dict[str, NDArray[np.float32]]:
    """By llama.cpp's names; its matrices are (out, in). Without the head: it takes the token embedding for it."""
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
    import numpy as np

    reader = gguf.GGUFReader(path)
    read = {tensor.name: tensor.data for tensor in reader.tensors}
    names = sorted(tensors.keys() | read.keys())
    differ = [name for name in names if not np.array_equal(read.get(name, []), tensors.get(name, []))]
    field = reader.get_field("tokenizer.ggml.tokens")
    if field is None or field.contents() != vocabulary.tokens:
        differ.append("the tokens")
    if differ:
        raise ConversionError(f"gguf's reader gives something else back: {', '.join(differ)}; nothing is written")
