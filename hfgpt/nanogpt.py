"""From nanoGPT and back (https://github.com/karpathy/nanoGPT): checkpoints, prepared data, configuration files.

In:  its ``ckpt.pt``, ``meta.pkl``, ``train.bin``/``val.bin`` or ``config/*.py``; or an exported run folder.
Out: a run folder with equal logits, token arrays, a recipe's values; or a ``ckpt.pt`` that its sample.py loads.

Nothing of a file is ever executed: checkpoints are loaded as weights only, ``meta.pkl`` by a reader that refuses
every object beyond text, numbers and containers, and configuration files as literals.

nanoGPT's GPT and GPT2LMHeadModel name their tensors alike. They differ in this: GPT-2's four matrices a block are
stored (in, out) here and (out, in) there; GELU is exact there; biases may be left out there; and its vocabulary is
often padded to a multiple of 64, which is kept.
"""

from __future__ import annotations

import ast
import operator
import os
import pickle
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hfgpt.config import InputError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
COMPILED = "_orig_mod."  # what torch.compile puts before each name
MASKS = (".attn.bias", ".attn.masked_bias")  # the causal mask, which older versions saved
META_LIMIT = 64 << 20  # bytes; a vocabulary is a few kilobytes
# What an export writes beside nanoGPT's own keys, which nanoGPT does not look at: in meta.pkl the ids of the 256 bytes,
# in the checkpoint's config which GELU the model has.
BYTE_IDS, ACTIVATION = "hfgpt_byte_ids", "hfgpt_activation"
ACTIVATIONS = ("gelu", "gelu_new", "gelu_pytorch_tanh")

# ------------------------------------------------------------------------------------------------- prepared data


class Bins(NamedTuple):
    """A folder that one of nanoGPT's prepare.py scripts wrote."""

    train: NDArray[np.uint16]  # memory-mapped, one-dimensional
    val: NDArray[np.uint16]
    characters: list[str] | None  # see read_meta, where the folder has a meta.pkl; None: GPT-2's tokens


def holds_bins(folder: str | Path) -> bool:
    """Whether the folder holds nanoGPT's train.bin and val.bin."""
    return all((Path(folder) / name).is_file() for name in ("train.bin", "val.bin"))


def read_bins(folder: str | Path) -> Bins:
    """Map the token files of a folder into memory; nothing is read yet.

    Raises:
        InputError: a file is empty, no sequence of uint16, or meta.pkl is no vocabulary.
    """
    path = Path(folder)
    train, val = (_map(path / name) for name in ("train.bin", "val.bin"))
    meta = path / "meta.pkl"
    return Bins(train, val, read_meta(meta) if meta.is_file() else None)


def _map(path: Path) -> NDArray[np.uint16]:
    size = path.stat().st_size
    if size == 0 or size % 2:
        raise InputError(f"{path}: is no sequence of 16-bit tokens ({size:,} bytes); prepare it again")
    return np.memmap(path, dtype="<u2", mode="r")


class _PlainUnpickler(pickle.Unpickler):
    """Reads text, numbers and containers, for which a pickle needs no names of classes or functions."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def read_meta(path: str | Path) -> list[str]:
    """The characters of a character-level ``meta.pkl``, in the order of their ids.

    Where a model of ours was exported, the ids of bytes have the names of :data:`hfgpt.tokenizer.BYTE_TOKENS`.

    Raises:
        InputError: the file cannot be read, holds more than plain data, or is no vocabulary of single characters.
    """
    try:
        if os.path.getsize(path) > META_LIMIT:
            raise InputError(f"{path}: is too large for a vocabulary")
        with open(path, "rb") as file:
            meta = _PlainUnpickler(file).load()
        itos = meta["itos"]
        tokens = [itos[i] for i in range(len(itos))]
        byte_ids = meta.get(BYTE_IDS) or []
        spelled = {i: tokens[i] for i in byte_ids}
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    except InputError:
        raise
    except Exception as error:  # a damaged pickle raises nearly anything
        raise InputError(f"{path}: is no vocabulary that can be read safely: {error!r}") from None
    if byte_ids and (
        len(byte_ids) != 256 or len(spelled) != 256 or not all(type(i) is int and i >= 0 for i in spelled)
    ):
        raise InputError(f"{path}: does not give each byte one id")
    characters = [token for i, token in enumerate(tokens) if i not in spelled]
    if not tokens or not all(isinstance(c, str) and len(c) == 1 for c in characters):
        raise InputError(f"{path}: is no vocabulary of single characters; give the model's own tokenizer instead")
    if len(set(characters)) < len(characters):
        raise InputError(f"{path}: gives a character two ids")
    from hfgpt.tokenizer import BYTE_TOKENS

    for i, token in zip(byte_ids, BYTE_TOKENS, strict=False):
        tokens[i] = token
    return tokens


def char_tokenizer(characters: Sequence[str]) -> PreTrainedTokenizerFast:
    """A tokenizer with exactly these characters, id 0 first. As in nanoGPT there is no token for any other; such
    characters are left out of a text, unless the 256 bytes are among the tokens, which spell them."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    from hfgpt.tokenizer import BYTE_TOKENS, char_of

    if set(BYTE_TOKENS) <= set(characters):
        return char_of(characters)
    backend = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(characters)}, merges=[]))
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )


# ------------------------------------------------------------------------------------------------- importing


def import_checkpoint(
    checkpoint: str | Path, folder: str | Path, meta: str | Path | None = None, tokenizer: str | None = None
) -> Path:
    """Write nanoGPT's ``ckpt.pt`` as a run folder whose logits are nanoGPT's.

    Args:
        checkpoint: what nanoGPT's train.py saved.
        folder: a new or empty folder.
        meta: the meta.pkl of a character-level model; None looks in the nanoGPT checkout around the checkpoint.
        tokenizer: Hub id or folder of the tokenizer where there is no meta.pkl; None: GPT-2's.

    Raises:
        InputError: the checkpoint, the vocabulary or the folder cannot be used; nothing was written.
    """
    target = Path(folder)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"{str(folder)!r}: is in use already; name a new folder")
    loaded = _load(Path(checkpoint))
    made = _tokenizer_for(Path(checkpoint), loaded, meta, tokenizer)
    gpt2 = _to_gpt2(loaded, made.eos_token_id)
    if len(made) > gpt2.config.vocab_size:
        raise InputError(
            f"the tokenizer has {len(made):,} tokens, the model {gpt2.config.vocab_size:,}: they do not belong together"
            "\n    → give the model's own with --meta or --tokenizer"
        )
    from hfgpt import card, export

    target.mkdir(parents=True, exist_ok=True)
    export.write(target, gpt2, made, export.weights(gpt2.state_dict()))
    card.write(target)
    return target


def _load(path: Path) -> dict[str, Any]:
    """The checkpoint's dictionary; tensors stay on the disk until they are used."""
    import torch

    if not path.is_file():
        raise InputError(f"{str(path)!r}: no such file; nanoGPT writes out/ckpt.pt")
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # a file that is none raises nearly anything
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"{str(path)!r}: cannot be loaded as weights alone: {reason}") from None
    if not isinstance(loaded, dict) or not {"model", "model_args"} <= loaded.keys():
        raise InputError(f"{str(path)!r}: is no checkpoint of nanoGPT: it has no 'model' and 'model_args'")
    return loaded


def _to_gpt2(loaded: dict[str, Any], eos: int | None) -> GPT2LMHeadModel:
    import torch
    from transformers import GPT2LMHeadModel

    from hfgpt.sample import quiet_loading

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
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"the checkpoint's model_args or tensors are not those of a GPT: {error!r}") from None
    for name, like in expected.items():
        if name.endswith(TRANSPOSED) and name in state:
            state[name] = state[name].T
        elif name.endswith(".bias") and name not in state:
            state[name] = torch.zeros(like.shape)
    wrong = sorted(state.keys() ^ expected.keys())
    wrong += [name for name, like in expected.items() if name in state and state[name].shape != like.shape]
    if wrong:
        raise InputError(f"the checkpoint's tensors are not those of nanoGPT's GPT: {', '.join(wrong[:3])} …")
    state = {name: tensor.float().contiguous() for name, tensor in state.items()}
    with quiet_loading():
        return GPT2LMHeadModel.from_pretrained(None, config=config, state_dict=state, dtype=torch.float32).eval()


def _gpt2_config(args: dict[str, Any], state: dict[str, Tensor], eos: int | None) -> GPT2Config:
    from transformers import GPT2Config

    vocab_size, width = state["transformer.wte.weight"].shape
    dropout = float(args.get("dropout", 0.0))
    return GPT2Config(
        vocab_size=vocab_size,
        n_positions=state["transformer.wpe.weight"].shape[0],
        n_embd=width,
        n_layer=int(args["n_layer"]),
        n_head=int(args["n_head"]),
        activation_function="gelu",
        embd_pdrop=dropout,
        attn_pdrop=dropout,
        resid_pdrop=dropout,
        bos_token_id=eos,
        eos_token_id=eos,
    )


def _tokenizer_for(
    checkpoint: Path, loaded: dict[str, Any], meta: str | Path | None, name: str | None
) -> PreTrainedTokenizerFast:
    from hfgpt import tokenizer

    if meta is None and name is None:
        settings = loaded.get("config")
        dataset = str(settings.get("dataset", "")) if isinstance(settings, dict) else ""
        found = checkpoint.resolve().parent.parent / "data" / dataset / "meta.pkl"  # nanoGPT/out-x/ckpt.pt
        meta = found if dataset and found.is_file() else None
    if meta is not None:
        return char_tokenizer(read_meta(meta))
    if name is None and loaded["model_args"].get("vocab_size", 0) < 50257:
        raise InputError(
            "the checkpoint's vocabulary is not GPT-2's, and there is no meta.pkl around it\n"
            "    → give the meta.pkl of its dataset with --meta, or its tokenizer with --tokenizer"
        )
    try:
        return tokenizer.load(name or "gpt2")
    except InputError:
        if name is not None:
            raise
        raise InputError(
            "GPT-2's tokenizer is neither here nor to be had from the Hub\n"
            "    → give a folder with its vocab.json and merges.txt with --tokenizer"
        ) from None


# ------------------------------------------------------------------------------------------------- exporting


def export_checkpoint(folder: str | Path, target: str | Path) -> list[str]:
    """Write an exported run folder as ``ckpt.pt`` (and ``meta.pkl`` for a character-level one) into `target`.

    nanoGPT's sample.py loads it with ``--out_dir=<target>``, and finds the characters where meta.pkl lies in its
    ``data/<dataset>/``; the dataset's name is the target folder's.

    Returns: what the user should know: where meta.pkl belongs, and where nanoGPT will differ.

    Raises:
        InputError: the folder holds no exported GPT-2, or `target` holds a ckpt.pt.
    """
    from hfgpt import sample

    out = Path(target)
    if (out / "ckpt.pt").exists():
        raise InputError(f"{str(out / 'ckpt.pt')!r}: exists already; name another folder")
    sample.check_folder(folder)
    import torch

    gpt2, tokenizer = sample.load_folder(folder, "cpu")
    name = out.resolve().name
    out.mkdir(parents=True, exist_ok=True)
    notes = []
    if (meta := _meta(tokenizer)) is not None:
        _replace(out / "meta.pkl", lambda path: path.write_bytes(pickle.dumps(meta)))
        notes.append(f"copy {out / 'meta.pkl'} to nanoGPT's data/{name}/meta.pkl, so that it finds the characters")
    elif len(tokenizer) != 50257:
        notes.append("nanoGPT knows GPT-2's tokens and characters alone; it cannot decode this tokenizer's tokens")
    if gpt2.config.activation_function != "gelu":
        notes.append("GELU is exact in nanoGPT and GPT-2's approximation here: its logits differ in the third decimal")
    settings = {"dataset": name, ACTIVATION: gpt2.config.activation_function}
    checkpoint = {"model": _to_nanogpt(gpt2), "model_args": _model_args(gpt2.config), "config": settings}
    _replace(out / "ckpt.pt", lambda path: torch.save(checkpoint, path))
    return notes


def _model_args(config: GPT2Config) -> dict[str, Any]:
    return {
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "n_embd": config.n_embd,
        "block_size": config.n_positions,
        "bias": True,
        "vocab_size": config.vocab_size,
        "dropout": float(config.resid_pdrop),
    }


def _to_nanogpt(gpt2: GPT2LMHeadModel) -> dict[str, Tensor]:
    return {
        name: (tensor.T.contiguous() if name.endswith(TRANSPOSED) else tensor.clone())
        for name, tensor in gpt2.state_dict().items()
        if not name.endswith(MASKS)
    }


def _meta(tokenizer: Any) -> dict[str, Any] | None:
    """What nanoGPT's meta.pkl holds, for a character-level tokenizer; None for any other.

    For nanoGPT a byte token stands for its ASCII character; one that is a part of a longer character decodes to U+FFFD.
    Beside it is said which ids those are, so that :func:`read_meta` reads the tokenizer back.
    """
    from hfgpt.tokenizer import BYTE_TOKENS

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


def _replace(path: Path, write: Callable[[Path], Any]) -> None:
    temporary = path.with_name(f".{path.name}.writing")
    write(temporary)
    os.replace(temporary, path)


# ------------------------------------------------------------------------------------------------- configuration files

# What nanoGPT's train.py has where a configuration file says nothing, as far as it decides the training.
DEFAULTS: dict[str, Any] = {
    "dataset": "openwebtext",
    "eval_interval": 2000,
    "log_interval": 1,
    "gradient_accumulation_steps": 40,
    "max_iters": 600_000,
    "warmup_iters": 2000,
    "lr_decay_iters": 600_000,
    "min_lr": 6e-5,
    "decay_lr": True,
}
# What means nothing here: names of runs, the communication backend; GPT-2 in Transformers always has biases.
LEFT_OUT = ("wandb_run_name", "backend", "bias")

OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}


def read_config(path: str | Path) -> dict[str, Any]:
    """A nanoGPT configuration file as a recipe's keys and values, nanoGPT's own defaults filled in.

    The file is parsed, never executed: assignments of numbers, texts, True and False count, and arithmetic with
    numbers and names assigned before. Imports are skipped. `dataset` becomes the folder of token files that nanoGPT
    prepared, where there is one around the file or the working folder; both Shakespeares else become the embedded one.

    Raises:
        InputError: the file cannot be read, or does more than assign values; names the line and the fix.
    """
    file = Path(path)
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"recipe {str(path)!r}: cannot be read: {error}") from None
    except (SyntaxError, ValueError) as error:
        raise InputError(f"recipe {str(path)!r}, line {getattr(error, 'lineno', '?')}: is no Python: {error}") from None
    values = dict[str, Any]()
    helpers = set[str]()
    for statement in tree.body:
        _assign(statement, values, helpers, file)
    values = {key: value for key, value in values.items() if key not in helpers or key in _known()}
    return _as_recipe({**DEFAULTS, **values}, file)


def _assign(statement: ast.stmt, values: dict[str, Any], helpers: set[str], file: Path) -> None:
    """Add what one statement assigns to `values`, and the names that it reads to `helpers`."""
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
        return  # a text that is a comment
    targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
    value = getattr(statement, "value", None)
    where = f"recipe {str(file)!r}, line {statement.lineno}"
    if not (isinstance(statement, ast.Assign | ast.AnnAssign) and value is not None and len(targets) == 1):
        raise InputError(f"{where}: files of nanoGPT are read, not executed, and only 'name = value' is understood")
    target = targets[0]
    if not isinstance(target, ast.Name):
        raise InputError(f"{where}: only 'name = value' is understood")
    if target.id in LEFT_OUT:
        return
    try:
        values[target.id] = _evaluate(value, values, helpers)
    except (ValueError, TypeError, ArithmeticError, RecursionError):
        raise InputError(
            f"{where}: {target.id} = {ast.unparse(value)} is no plain value; files of nanoGPT are read, not executed"
            f"\n    → write the value itself there, or remove the line and give --{target.id}=VALUE"
        ) from None


def _evaluate(node: ast.expr, values: dict[str, Any], helpers: set[str]) -> Any:
    """A constant, a name assigned before, or arithmetic with numbers. Raises ValueError for anything else."""
    if isinstance(node, ast.Constant) and isinstance(node.value, bool | int | float | str):
        return node.value
    if isinstance(node, ast.Name) and node.id in values:
        helpers.add(node.id)
        return values[node.id]
    if isinstance(node, ast.UnaryOp):
        operands = [_evaluate(node.operand, values, helpers)]
    elif isinstance(node, ast.BinOp):
        operands = [_evaluate(side, values, helpers) for side in (node.left, node.right)]
    else:
        raise ValueError(ast.dump(node))
    apply = OPERATORS.get(type(node.op))
    texts = all(isinstance(operand, str) for operand in operands) and isinstance(node.op, ast.Add)
    if apply is None or not (texts or all(isinstance(operand, int | float) for operand in operands)):
        raise ValueError(ast.dump(node))
    return apply(*operands)


def _known() -> set[str]:
    from hfgpt import config

    return {*config.Config.model_fields, *config.RENAMED, *config.INSTEAD}


def _as_recipe(values: dict[str, Any], file: Path) -> dict[str, Any]:
    """nanoGPT's names and habits → ours."""
    recipe = dict(values)
    if not recipe.pop("decay_lr"):
        for key in ("warmup_iters", "lr_decay_iters", "min_lr"):  # they are not read then
            recipe.pop(key)
        recipe |= {"lr_schedule": "constant", "warmup_iters": 0}
    dataset, made = _find_dataset(str(recipe["dataset"]), file)
    recipe["dataset"] = dataset
    if not str(recipe.get("init_from", "scratch")).startswith("gpt2"):  # those bring their own tokenizer
        recipe.setdefault("tokenizer", made)
    return recipe


def _find_dataset(name: str, file: Path) -> tuple[str, str]:
    """Where a dataset of nanoGPT is here, and its tokenizer: prepared token files, the text they come from, or ours."""
    character_level = name.endswith("_char")
    tokenizer = "char" if character_level else "gpt2"
    folders = [base / "data" / name for base in (file.resolve().parent.parent, Path.cwd())]
    for folder in folders:
        if holds_bins(folder):
            return str(folder), "char" if (folder / "meta.pkl").is_file() else "gpt2"
    for folder in folders:
        if (folder / "input.txt").is_file():
            return str(folder / "input.txt"), tokenizer
    if name in ("shakespeare", "shakespeare_char"):
        return "shakespeare", tokenizer
    return str(folders[0]), tokenizer
