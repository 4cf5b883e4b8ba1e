"""GPT-2 model folders: checked before anything in them is used, then loaded.

In:  an untrusted folder: a run of this project, a download, a stranger's archive.
Out: its GPT2LMHeadModel in float32, or an InputError that says what is wrong with it.

The check reads only config.json and the headers of the weight files. Transformers fills missing weights with random
numbers, and builds a model of any size that config.json asks for, so the two are compared first.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from hfgpt.base.errors import InputError, first_line
from hfgpt.base.files import check_regular
from hfgpt.base.language import N_, _, strerror

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
JSON_BYTES = 2**20  # bytes; above any GPT-2's config.json or index of weight files

LARGEST = {
    "n_layer": 10_000,
    "n_head": 10**6,
    "n_embd": 10**6,
    "n_inner": 10**7,
    "n_positions": 10**8,
    "vocab_size": 10**8,
    "num_labels": 10**5,
}  # fmt: skip - as hfgpt/config/fields.py allows, and more than any model has

DEFAULTS = {"n_layer": 12, "n_head": 12, "n_embd": 768, "n_inner": None, "n_positions": 1024, "vocab_size": 50257}

ALIASES = {
    "num_hidden_layers": "n_layer", "num_attention_heads": "n_head", "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
}  # fmt: skip

# The other keys of config.json that affect a GPT-2's computation. All remaining keys are ignored.
READ = (
    "activation_function", "resid_pdrop", "embd_pdrop", "attn_pdrop", "layer_norm_epsilon", "initializer_range",
    "scale_attn_weights", "scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn", "bos_token_id", "eos_token_id",
    "pad_token_id", "tie_word_embeddings",
)  # fmt: skip

SWITCHES = ("scale_attn_weights", "scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn", "tie_word_embeddings")
SHARES = ("resid_pdrop", "embd_pdrop", "attn_pdrop")
NUMBERS = {"F64", "F32", "F16", "BF16"}  # data types of weights, by their safetensors names

MASKS = (
    ".attn.bias",
    ".attn.masked_bias",
)  # buffers, not weights: older versions of Transformers saved them, in any data type

LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_OTHER_THINGS = N_("{path}: is not the description of a model")


def check_model(folder: str | Path) -> dict[str, Any]:
    """Return config.json's settings, after checking that all weights exist with the shapes that it implies.

    Imports neither torch nor transformers.

    Raises:
        InputError: a file is missing or invalid; the message says which and why.
    """
    path = Path(folder)
    config = read_config(path / "config.json")
    actual = dict[str, tuple[int, ...]]()
    for file in weight_files(path):
        for name, shape in _header(file).items():
            short = name.removeprefix("transformer.")
            if short in actual and not name.endswith(MASKS):
                raise InputError("{path}: holds the weight {name} twice", path=path, name=short)
            actual[short] = shape
    expected = dict(_expected_shapes(config))
    missing = [name for name in expected if name not in actual]
    if missing:
        raise InputError(
            "{path}: {count} of the model's {all} weights are missing, the first is {name}",
            path=path,
            count=len(missing),
            all=len(expected),
            name="transformer." + missing[0],
        )
    for name, shape in expected.items():
        if actual[name] != shape:
            raise InputError(
                "{path}: the weight {name} has the shape {found}, and config.json asks for {shape}",
                path=path,
                name=name,
                found=actual[name],
                shape=shape,
            )
    return config


def load_model(folder: str | Path, **options: Any) -> GPT2LMHeadModel:
    """Load the model of a folder, in float32 on the CPU. `options` change its config, such as ``attn_pdrop=0.1``.

    Raises:
        InputError: as for :func:`check_model`, or the libraries cannot read the folder.
    """
    config = check_model(folder)
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel
    from transformers.activations import ACT2FN

    attention = options.pop("attn_implementation", "sdpa")
    if (name := config.get("activation_function", "gelu_new")) not in ACT2FN:
        raise InputError(
            "{path}: activation_function = {name}: Transformers has no such function",
            path=Path(folder) / "config.json",
            name=name[:40],
        )
    try:
        with quiet_loading():
            model = GPT2LMHeadModel.from_pretrained(
                folder, config=GPT2Config(**config | options), dtype=torch.float32, use_safetensors=True,
                local_files_only=True, attn_implementation=attention,
            )  # fmt: skip
    except Exception as error:  # any library error that the check did not foresee
        raise InputError("{path}: cannot be loaded: {reason}", path=folder, reason=first_line(error)) from None
    if config.get("tie_word_embeddings", True) and not torch.equal(model.lm_head.weight, model.transformer.wte.weight):
        raise InputError(
            "{path}: lm_head.weight is not the embedding, and config.json says that the two are one → set its "
            "tie_word_embeddings to false",
            path=folder,
        )
    check_finite(model, folder)
    return model


def check_finite(model: GPT2LMHeadModel, path: str | Path) -> None:
    """Check that all weights are finite; `path` names their source.

    Raises:
        InputError: names the first weight that is not finite.
    """
    for name, weight in model.named_parameters():
        if not weight.sum().isfinite() and not weight.isfinite().all():
            raise InputError(
                "{path}: the weight {name} holds numbers that are not finite: its training has diverged → take the "
                "model of an earlier evaluation",
                path=path,
                name=name,
            )


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Turn off Transformers' progress bar for loading weights, which ends before anyone can read it."""
    from transformers.utils import logging

    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if bars:
            logging.enable_progress_bar()


def read_json(path: Path, most: int = JSON_BYTES) -> dict[str, Any]:
    """Return the object in a small JSON file.

    Raises:
        InputError: the file cannot be read, is too large or is not a JSON object.
    """
    try:
        check_regular(path)
        if path.stat().st_size > most:
            raise InputError(
                "{path}: has {size:,} bytes; such a file has {most:,} at most",
                path=path,
                size=path.stat().st_size,
                most=most,
            )
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError("{path}: cannot be read: {reason}", path=path, reason=strerror(error)) from None
    except (ValueError, RecursionError):
        raise InputError(_OTHER_THINGS, path=path) from None
    if not isinstance(value, dict):
        raise InputError(_OTHER_THINGS, path=path)
    return value


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a folder: one, or those that its index names.

    Raises:
        InputError: the file does not exist, or the index names a file outside the folder or of another type.
    """
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / INDEX).is_file():
        raise InputError("{path}: holds no {name}", path=folder, name=WEIGHTS)
    names = read_json(folder / INDEX, 64 * JSON_BYTES).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise InputError("{path}: names no weight files", path=folder / INDEX)
    files = dict.fromkeys(names.values()) if all(isinstance(name, str) for name in names.values()) else {"": None}
    for name in files:
        if not re.fullmatch(r"[\w.-]+\.safetensors", name) or not (folder / name).is_file():
            raise InputError(
                "{path}: names {name!r}, which is not a .safetensors file beside it", path=folder / INDEX, name=name
            )
    return [folder / name for name in files]


def read_config(path: Path) -> dict[str, Any]:
    """Return config.json's settings under GPT2Config's names, with every size within LARGEST.

    Raises:
        InputError: the file cannot be read, describes another architecture, or has an impossible size.
    """
    raw = read_json(path)
    kind = raw.get("model_type")
    if kind is None:
        raise InputError(_OTHER_THINGS, path=path)
    if kind != "gpt2":
        raise InputError("{path}: is a {kind} model; hfgpt reads GPT-2 models", path=path.parent, kind=str(kind)[:40])
    named = {ALIASES.get(key, key): value for key, value in raw.items()}
    config = {key: named[key] for key in (*LARGEST, *READ) if key in named}
    config = DEFAULTS | config
    for key, most in LARGEST.items():
        value = config.get(key)
        if value is None and key in ("n_inner", "num_labels"):
            continue
        if type(value) is not int or not 1 <= value <= most:
            raise InputError(
                "{path}: {key} = {value}: must be an integer from 1 to {most:,}",
                path=path,
                key=key,
                value=str(value)[:40],
                most=most,
            )
    for key in READ:
        if key in config and (rule := _rule_broken(key, config[key])):
            raise InputError(
                "{path}: {key} = {value}: {rule}", path=path, key=key, value=str(config[key])[:40], rule=rule
            )
    if config["n_embd"] % config["n_head"]:
        raise InputError(
            "{path}: n_head = {heads} does not divide n_embd = {width}",
            path=path,
            heads=config["n_head"],
            width=config["n_embd"],
        )
    return config


def _rule_broken(key: str, value: Any) -> str:
    """Return what a value of READ must be, or "" if it is valid."""
    number = math.inf if isinstance(value, bool) or not isinstance(value, int | float) else value
    if key in SWITCHES:
        return "" if isinstance(value, bool) else _("must be true or false")
    if key in SHARES:
        return "" if 0 <= number < 1 else _("must be a number from 0 to below 1")
    if key in ("layer_norm_epsilon", "initializer_range"):
        return "" if 0 < number < math.inf else _("must be a number above 0")
    if key == "activation_function":
        return "" if isinstance(value, str) else _("must be a name")
    ids = value if isinstance(value, list) else [value]  # of special tokens
    return "" if all(each is None or type(each) is int for each in ids) else _("must be a token's number")


def _expected_shapes(config: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the names and shapes of a GPT-2's weights, without the prefix "transformer."."""
    width, inner = config["n_embd"], config["n_inner"] or 4 * config["n_embd"]
    yield "wte.weight", (config["vocab_size"], width)
    yield "wpe.weight", (config["n_positions"], width)
    for layer in range(config["n_layer"]):
        for norm in ("ln_1", "ln_2"):
            yield f"h.{layer}.{norm}.weight", (width,)
            yield f"h.{layer}.{norm}.bias", (width,)
        for name, inputs, outputs in (
            ("attn.c_attn", width, 3 * width),
            ("attn.c_proj", width, width),
            ("mlp.c_fc", width, inner),
            ("mlp.c_proj", inner, width),
        ):
            yield f"h.{layer}.{name}.weight", (inputs, outputs)
            yield f"h.{layer}.{name}.bias", (outputs,)
    yield "ln_f.weight", (width,)
    yield "ln_f.bias", (width,)
    if not config.get("tie_word_embeddings", True):
        yield "lm_head.weight", (config["vocab_size"], width)


def _header(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of the weights in a safetensors file; its header must match the file's length."""
    try:
        with open(path, "rb") as file:
            if file.read(len(LFS_POINTER)) == LFS_POINTER:
                raise InputError(
                    "{path}: is a Git LFS pointer, not the weights → fetch the file itself: git lfs pull, or "
                    "download it from the Hub",
                    path=path,
                )
        with safe_open(os.fspath(path), framework="np") as tensors:
            parts = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118 - not a dictionary
            weights = {name for name in parts if not name.endswith(MASKS)}
            odd = [name for name in sorted(weights) if parts[name].get_dtype() not in NUMBERS]
            if odd:
                raise InputError(
                    "{path}: the weight {name} has the type {dtype}; floating-point numbers are read here",
                    path=path,
                    name=odd[0],
                    dtype=parts[odd[0]].get_dtype(),
                )
            return {name: tuple(part.get_shape()) for name, part in parts.items()}
    except (OSError, SafetensorError) as error:
        raise InputError(
            "{path}: cannot be loaded: it is cut short or damaged ({reason})", path=path, reason=first_line(error)
        ) from None
