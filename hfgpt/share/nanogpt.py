"""Checkpoints from nanoGPT and back (https://github.com/karpathy/nanoGPT).

In:  its ``ckpt.pt`` and ``meta.pkl``; or an exported run folder.
Out: a run folder with equal logits; or a ``ckpt.pt`` that its sample.py loads.

No file's code is ever executed: checkpoints are loaded as weights only, and ``meta.pkl`` by a reader that accepts
nothing but text, numbers and containers. Shapes are checked against the tensors before a model is built.

nanoGPT's GPT and GPT2LMHeadModel use the same tensor names, with these differences: a block's four matrices are stored
as (in, out) here and as (out, in) there; GELU is exact there; biases are optional there; and its vocabulary is often
padded to a multiple of 64, which is kept.
"""

import contextlib
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from hfgpt.base.errors import UNREADABLE, InputError
from hfgpt.base.files import expanded, filled_at_once, filling
from hfgpt.base.language import _, listed, strerror
from hfgpt.data import tokenizer as tokenizers
from hfgpt.data.tokenizer import BYTE_IDS, BYTE_TOKENS, char_tokenizer, read_meta
from hfgpt.inference import exported
from hfgpt.model.folder import MASKS, check_finite, quiet_loading
from hfgpt.runs import card
from hfgpt.runs.metrics import whole_step
from hfgpt.share import export

TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
COMPILED = "_orig_mod."  # torch.compile's prefix of each name
ACTIVATION = "hfgpt_activation"
ACTIVATIONS = ("gelu", "gelu_new", "gelu_pytorch_tanh")
GPT2_SIZES = range(50257, 50304 + 1)  # rows of a model with GPT-2's vocabulary, which nanoGPT pads to 50304
MOST_PADDING = 127  # rows without a token, in a vocabulary that is padded to a multiple of 64 or 128

FIXED = {
    "tie_word_embeddings": True,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "layer_norm_epsilon": 1e-5,
}  # fmt: skip - what nanoGPT's model cannot say of itself


# ------------------------------------------------------------------------------------------------- importing


def import_checkpoint(
    checkpoint: str | Path, folder: str | Path, meta: str | Path | None = None, tokenizer: str | None = None
) -> Path:
    """Convert nanoGPT's ``ckpt.pt`` to a run folder with the same logits.

    Args:
        checkpoint: the file that nanoGPT's train.py saved.
        folder: a new or empty folder.
        meta: the meta.pkl of a character-level model; None looks beside the checkpoint, then in the nanoGPT checkout
            around it.
        tokenizer: Hub id or folder of the tokenizer if there is no meta.pkl; None: GPT-2's, if the model has its size.

    Raises:
        InputError: the checkpoint, the vocabulary or the folder cannot be used; nothing was written.
    """
    target = expanded(folder)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError("{folder!r}: is in use already; name a new folder", folder=str(folder))
    loaded = _load(expanded(checkpoint))
    if meta is None and tokenizer is None:
        meta = _meta_around(expanded(checkpoint), loaded.get("config"))
    own = _tokenizer(loaded, tokenizer) if meta is None else char_tokenizer(read_meta(meta))
    gpt2 = _to_gpt2(loaded, own.eos_token_id)
    check_finite(gpt2, checkpoint)
    rows, tokens = gpt2.config.vocab_size, len(own)
    # nanoGPT's train.py gives a model as many rows as the meta.pkl has characters.
    if tokens > rows or (meta is not None and tokens < rows and (rows % 64 or rows - tokens > MOST_PADDING)):
        raise InputError(
            "{source}: has {tokens:,} tokens, the model {rows:,}: they do not belong together\n    → give the model's "
            "own with --meta or --tokenizer",
            source=meta or tokenizer or "gpt2",
            tokens=tokens,
            rows=rows,
        )

    try:
        with filling(target):
            export.write(target, gpt2, own, export.weights(gpt2.state_dict()))
            card.write(target)
    except OSError as error:
        raise InputError("{file!r}: cannot be written: {reason}", file=str(target), reason=strerror(error)) from None
    return target


def _load(path: Path) -> dict[str, Any]:
    """Load the checkpoint's dictionary; tensors stay on disk until they are used."""
    if path.is_dir():
        inside = path / "ckpt.pt"
        known = _("its checkpoint is {file}", file=inside) if inside.is_file() else _("nanoGPT writes out/ckpt.pt")
        raise InputError("{path!r}: is a folder, not a file → {known}", path=str(path), known=known)
    if not path.is_file():
        raise InputError("{path!r}: no such file; nanoGPT writes out/ckpt.pt", path=str(path))
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # a damaged file can raise nearly anything
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        if "weights_only" in str(error):  # torch then advises to execute the file
            reason = _("it holds more than tensors and plain values, or is damaged")
        raise InputError(
            "{path!r}: cannot be loaded as weights alone: {reason}", path=str(path), reason=reason
        ) from None
    held: list[Any] = [loaded.get(key) for key in ("model", "model_args")] if isinstance(loaded, dict) else []
    if not held or not all(isinstance(part, dict) and all(isinstance(key, str) for key in part) for part in held):
        raise InputError(
            "{path!r}: not a checkpoint of nanoGPT; it has no 'model' and 'model_args' by names", path=str(path)
        )
    if not held[0] or not all(map(_is_dense, held[0].values())):
        raise InputError("{path!r}: not a checkpoint of nanoGPT; its 'model' does not hold tensors", path=str(path))
    return dict(loaded)


def _is_dense(value: Any) -> bool:
    """Whether a value is a tensor that stores all its elements; with a stride of 0 it can claim any number."""
    if not isinstance(value, torch.Tensor) or value.layout != torch.strided or value.is_meta:
        return False
    if value.is_complex() or value.is_quantized:
        return False
    return value.numel() * value.element_size() <= value.untyped_storage().nbytes()


def _to_gpt2(loaded: dict[str, Any], eos: int | None) -> GPT2LMHeadModel:
    state: dict[str, Tensor] = {
        name.removeprefix(COMPILED): tensor for name, tensor in loaded["model"].items() if not name.endswith(MASKS)
    }
    try:
        config = _gpt2_config(loaded["model_args"], state, eos)
        settings = loaded.get("config")
        if isinstance(settings, dict) and settings.get(ACTIVATION) in ACTIVATIONS:
            config.activation_function = settings[ACTIVATION]
        with torch.device("meta"):
            expected = GPT2LMHeadModel(config).state_dict()
    except UNREADABLE as error:
        raise InputError(
            "the checkpoint's model_args or tensors are not those of a GPT: {reason}", reason=repr(error)
        ) from None
    for name, like in expected.items():
        if name.endswith(TRANSPOSED) and name in state and state[name].dim() == 2:
            state[name] = state[name].T
        elif name.endswith(".bias") and name not in state:
            state[name] = torch.zeros(like.shape)
    wrong = sorted(state.keys() ^ expected.keys())
    wrong += [name for name, like in expected.items() if name in state and state[name].shape != like.shape]
    if wrong:
        raise InputError("the checkpoint's tensors are not those of nanoGPT's GPT: {names} …", names=listed(wrong[:3]))
    if odd := [name for name, tensor in state.items() if not tensor.is_floating_point()]:
        raise InputError("the checkpoint's tensors are not those of nanoGPT's GPT: {names} …", names=listed(odd[:3]))
    state = {name: tensor.float().contiguous() for name, tensor in state.items()}
    if not torch.equal(state["lm_head.weight"], state["transformer.wte.weight"]):
        raise InputError("the checkpoint's lm_head.weight is not its embedding, and nanoGPT has one matrix for both")
    with quiet_loading():
        return GPT2LMHeadModel.from_pretrained(None, config=config, state_dict=state, dtype=torch.float32).eval()


def _gpt2_config(args: dict[str, Any], state: dict[str, Tensor], eos: int | None) -> GPT2Config:
    vocab_size, width = state["transformer.wte.weight"].shape
    dropout = float(args.get("dropout", 0.0))
    layers, heads = whole_step(args["n_layer"]), whole_step(args["n_head"])
    if not 1 <= layers <= len(state) or not 1 <= heads <= width or width % heads or not 0 <= dropout < 1:
        raise ValueError(f"n_layer {layers}, n_head {heads}, dropout {dropout}, {len(state)} tensors of width {width}")
    return GPT2Config(
        vocab_size=vocab_size,
        n_positions=state["transformer.wpe.weight"].shape[0],
        n_embd=width,
        n_layer=layers,
        n_head=heads,
        activation_function="gelu",
        embd_pdrop=dropout,
        attn_pdrop=dropout,
        resid_pdrop=dropout,
        bos_token_id=eos,
        eos_token_id=eos,
    )


def _meta_around(checkpoint: Path, settings: Any) -> Path | None:
    """Return the meta.pkl beside the checkpoint, where an export writes it, or else that of its dataset."""
    places = [checkpoint.with_name("meta.pkl")]
    dataset = settings.get("dataset") if isinstance(settings, dict) else None
    if isinstance(dataset, str) and dataset:
        places.append(checkpoint.resolve().parent.parent / "data" / Path(dataset).name / "meta.pkl")  # nanoGPT/out-x/
    for place in places:
        with contextlib.suppress(OSError, ValueError):  # a name that a file cannot have
            if place.is_file():
                return place
    return None


def _tokenizer(loaded: dict[str, Any], name: str | None) -> PreTrainedTokenizerFast:
    """Load the tokenizer of this name; None: GPT-2's, if the vocabulary has its size."""
    size = loaded["model_args"].get("vocab_size")
    if name is None and not (isinstance(size, int) and size in GPT2_SIZES):
        raise InputError(
            "the checkpoint's vocabulary is not GPT-2's, and there is no meta.pkl around it\n    → give the meta.pkl "
            "of its dataset with --meta, or its tokenizer with --tokenizer"
        )
    try:
        return tokenizers.load(name or "gpt2")
    except InputError:
        if name is not None:
            raise
        raise InputError(
            "GPT-2's tokenizer is not on this machine, and the Hub does not give it\n    → give a folder with its "
            "vocab.json and merges.txt with --tokenizer"
        ) from None


# ------------------------------------------------------------------------------------------------- exporting


def export_checkpoint(folder: str | Path, target: str | Path) -> list[str]:
    """Write an exported run folder as ``ckpt.pt`` (and ``meta.pkl`` for a character-level one) into `target`.

    nanoGPT's sample.py loads it with ``--out_dir=<target>``, and finds the characters if meta.pkl is in its
    ``data/<dataset>/``; the dataset is named after the target folder.

    Returns: what the user should know: where meta.pkl belongs, and how nanoGPT will differ.

    Raises:
        InputError: the folder holds no exported GPT-2, or `target` holds a ckpt.pt.
    """
    out = expanded(target)
    for name in ("ckpt.pt", "meta.pkl"):
        if (out / name).exists():
            raise InputError("{file!r}: exists already; name another folder", file=str(out / name))
    exported.check_folder(folder)

    gpt2, tokenizer = exported.load_folder(folder, "cpu")
    own = gpt2.config
    inner = own.n_inner or 4 * own.n_embd
    for key, value, known in (
        ("activation_function", own.activation_function, ACTIVATIONS), ("n_inner", inner, [4 * own.n_embd]),
        *((key, getattr(own, key), [value]) for key, value in FIXED.items()),
    ):  # fmt: skip
        if value not in known:
            raise InputError(
                "{folder!r}: its {key} is {value}, which nanoGPT does not know",
                folder=str(folder),
                key=key,
                value=value,
            )
    name, meta = out.resolve().name, _meta(tokenizer)
    notes = []
    if meta is not None:
        notes.append(
            _("copy {file} to nanoGPT's data/{name}/meta.pkl, so that it finds the characters",
              file=out / "meta.pkl", name=name)
        )  # fmt: skip
    elif len(tokenizer) != 50257:
        notes.append(_("nanoGPT knows GPT-2's tokens and characters alone; it cannot decode this tokenizer's tokens"))
    if gpt2.config.activation_function != "gelu":
        notes.append(
            _("GELU is exact in nanoGPT and GPT-2's approximation here: its logits differ in the third decimal")
        )
    settings = {"dataset": name, ACTIVATION: gpt2.config.activation_function}
    shape = {
        "n_layer": own.n_layer, "n_head": own.n_head, "n_embd": own.n_embd, "block_size": own.n_positions,
        "bias": True, "vocab_size": own.vocab_size, "dropout": float(own.resid_pdrop),
    }  # fmt: skip
    weights = {
        name: tensor.T.contiguous() if name.endswith(TRANSPOSED) else tensor.clone()
        for name, tensor in gpt2.state_dict().items()
        if not name.endswith(MASKS)
    }
    checkpoint = {"model": weights, "model_args": shape, "config": settings}
    try:
        with filled_at_once(out) as temporary:
            if meta is not None:
                (temporary / "meta.pkl").write_bytes(pickle.dumps(meta))
            with open(temporary / "ckpt.pt", "wb") as file:  # from a file that torch opens, no disk error comes through
                torch.save(checkpoint, file)
    except OSError as error:
        raise InputError("{file!r}: cannot be written: {reason}", file=str(out), reason=strerror(error)) from None
    return notes


def _meta(tokenizer: Any) -> dict[str, Any] | None:
    """Return the content of nanoGPT's meta.pkl for a character-level tokenizer; None for any other.

    For nanoGPT a byte token is its ASCII character, or U+FFFD if it is part of a longer character. An extra entry lists
    those ids, so that :func:`read_meta` can restore the tokenizer.
    """
    itos, stoi = dict[int, str](), dict[str, int]()
    vocabulary = tokenizer.get_vocab()
    for token, i in vocabulary.items():
        if len(token) != 1 and token not in BYTE_TOKENS:
            return None
        itos[i] = token
        stoi[token] = i
    for byte, token in enumerate(BYTE_TOKENS):
        if token in stoi:
            i = stoi.pop(token)
            itos[i] = chr(byte) if byte < 128 else "\ufffd"
            stoi.setdefault(itos[i], i)
    meta = {"vocab_size": len(itos), "itos": itos, "stoi": stoi}
    if set(BYTE_TOKENS) <= vocabulary.keys():
        meta[BYTE_IDS] = [vocabulary[token] for token in BYTE_TOKENS]
    return meta
