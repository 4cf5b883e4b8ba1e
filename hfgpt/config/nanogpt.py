"""Configuration files of nanoGPT and the chapter, read as literals and never executed.

In:  the text of a ``config/*.py`` of nanoGPT (https://github.com/karpathy/nanoGPT).
Out: a recipe's keys and values.
"""

import ast
import math
import operator
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from hfgpt.base.errors import InputError
from hfgpt.config.fields import INSTEAD, RENAMED, Config

Number = int | float | str

# Defaults of nanoGPT's train.py that affect training.
DEFAULTS: dict[str, Any] = {"eval_interval": 2000, "log_interval": 1, "gradient_accumulation_steps": 40}

# Its defaults for a file without max_iters: GPT-2's own run. They make no sense for another length.
LONG_RUN: dict[str, Any] = {"max_iters": 600_000, "warmup_iters": 2000, "lr_decay_iters": 600_000, "min_lr": 6e-5}

# A file that sets one of these is nanoGPT's even if it names no dataset, as config/train_gpt2.py does.
ITS_OWN = {"wandb_log", "wandb_project", "wandb_run_name", "eval_only", "init_from"}
ITS_DATASET = "openwebtext"  # its default

# Ignored: names of runs, the communication backend; GPT-2 in Transformers always has biases.
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

LONGEST_TEXT, LARGEST = 10_000, 2**63  # limits of a value, so that a few lines of `x = x * x` cannot exhaust memory


def holds_bins(folder: str | Path) -> bool:
    """Whether the folder holds nanoGPT's train.bin and val.bin."""
    return all((Path(folder) / name).is_file() for name in ("train.bin", "val.bin"))


def read_config(path: Path, text: str) -> dict[str, Any]:
    """Return a configuration file's settings as a recipe's keys and values.

    The file is parsed, never executed: it may assign numbers, text, True and False, and arithmetic on numbers and
    earlier names. Imports are skipped. A file with a `dataset` is nanoGPT's and gets nanoGPT's defaults. Its dataset
    becomes the folder of token files that nanoGPT prepared, if one exists near the file or the working folder;
    otherwise both Shakespeare datasets become the embedded one. A file without a `dataset` is the chapter's, unless it
    sets what only nanoGPT knows.

    Args:
        path: the file's path, for messages and for finding its dataset.

    Raises:
        InputError: the file does more than assign values; the message names the line and the fix.
    """
    shown = repr(str(path))
    try:
        tree = ast.parse(text)
    except (RecursionError, MemoryError):  # thousands of nested signs or brackets
        raise InputError("recipe {path}: an expression in it is too long", path=shown) from None
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None) or "?"
        raise InputError(
            "recipe {path}, line {line}: is not Python: {problem}", path=shown, line=line, problem=error
        ) from None
    values = dict[str, Any]()
    helpers = set[str]()
    for statement in tree.body:
        _assign(statement, values, helpers, shown)
    known = {*Config.model_fields, *RENAMED, *INSTEAD}
    values = {key: value for key, value in values.items() if key not in helpers or key in known}
    if "dataset" not in values:
        assigned = {
            name.id for name in ast.walk(tree) if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)
        }
        if not assigned & ITS_OWN:
            return _schedule(values)
        values["dataset"] = ITS_DATASET
    recipe = _with_defaults(values)
    recipe["dataset"], tokenizer = _find_dataset(str(recipe["dataset"]), path)
    if not str(recipe.get("init_from", "scratch")).startswith("gpt2"):  # pretrained models bring their own tokenizer
        recipe.setdefault("tokenizer", tokenizer)
    return recipe


def read_printed(settings: Iterable[tuple[str, str]], tokens_per_iter: int | None) -> dict[str, Any]:
    """Return the recipe of a run whose log nanoGPT printed; empty if the log shows no setting.

    Args:
        settings: (name, value as printed) in the log's order; what is not a plain value is left out.
        tokens_per_iter: as printed; it decides gradient_accumulation_steps, whose default was not always 40.
    """
    values = dict[str, Any]()
    for key, printed in settings:
        with suppress(SyntaxError, ValueError, TypeError, ArithmeticError, RecursionError, MemoryError):
            values[key] = _evaluate(ast.parse(printed.strip(), mode="eval").body, values, set())
    values = {key: value for key, value in values.items() if key in Config.model_fields or key in RENAMED}
    if not values and tokens_per_iter is None:
        return {}
    recipe = _with_defaults(values)
    sizes = [recipe.get(key, Config.model_fields[key].default) for key in ("batch_size", "block_size")]
    if tokens_per_iter and all(isinstance(size, int) and size > 0 for size in sizes):
        steps, rest = divmod(tokens_per_iter, math.prod(sizes))
        if steps and not rest:
            recipe["gradient_accumulation_steps"] = steps
    return recipe


def _with_defaults(values: dict[str, Any]) -> dict[str, Any]:
    return _schedule({**DEFAULTS, **({} if "max_iters" in values else LONG_RUN), **values})


def _assign(statement: ast.stmt, values: dict[str, Any], helpers: set[str], shown: str) -> None:
    """Add one statement's assignment to `values`, and the names it reads to `helpers`."""
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
        return  # a docstring
    targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
    value, line = getattr(statement, "value", None), statement.lineno
    assigns = isinstance(statement, ast.Assign | ast.AnnAssign) and value is not None and len(targets) == 1
    target = targets[0]
    if not assigns or not isinstance(target, ast.Name) or value is None:
        raise InputError(
            "recipe {path}, line {line}: files of nanoGPT are read, not executed, and only 'name = value' is "
            "understood",
            path=shown,
            line=line,
        )
    if target.id in LEFT_OUT:
        return
    try:
        values[target.id] = _evaluate(value, values, helpers)
    except (ValueError, TypeError, ArithmeticError, RecursionError):
        raise InputError(
            "recipe {path}, line {line}: {name} is not a plain value; files of nanoGPT are read, not executed\n"
            "    → write the value itself there, or remove the line and give --{name}=VALUE",
            path=shown,
            line=line,
            name=target.id,
        ) from None


def _evaluate(node: ast.expr, values: dict[str, Any], helpers: set[str]) -> Number:
    """Evaluate a constant, an earlier name, or arithmetic on numbers. Raises ValueError for anything else."""
    if isinstance(node, ast.Constant) and isinstance(node.value, bool | int | float | str):
        return _bounded(node.value)
    if isinstance(node, ast.Name) and node.id in values:
        helpers.add(node.id)
        value: Number = values[node.id]
        return value
    if isinstance(node, ast.UnaryOp):
        operands = [_evaluate(node.operand, values, helpers)]
    elif isinstance(node, ast.BinOp):
        operands = [_evaluate(side, values, helpers) for side in (node.left, node.right)]
    else:
        raise ValueError("not a literal")
    apply = OPERATORS.get(type(node.op))
    texts = all(isinstance(operand, str) for operand in operands) and isinstance(node.op, ast.Add)
    if apply is None or not (texts or all(isinstance(operand, int | float) for operand in operands)):
        raise ValueError("not arithmetic")
    return _bounded(apply(*operands))


def _bounded(value: Number) -> Number:
    """Return the value; raises ValueError if it is larger than a parameter can be."""
    if not (len(value) <= LONGEST_TEXT if isinstance(value, str) else -LARGEST < value < LARGEST):
        raise ValueError("too large")
    return value


def _schedule(values: dict[str, Any]) -> dict[str, Any]:
    """Apply nanoGPT's `decay_lr`: if it is false, drop the schedule's other values."""
    if values.get("decay_lr", True):
        return values
    kept = {
        key: value
        for key, value in values.items()
        if key not in ("decay_lr", "warmup_iters", "lr_decay_iters", "min_lr")
    }
    return {**kept, "lr_schedule": "constant", "warmup_iters": 0}


def _find_dataset(name: str, path: Path) -> tuple[str, str]:
    """Find nanoGPT's dataset and its tokenizer: prepared token files, their text, or the embedded corpus."""
    tokenizer = "char" if name.endswith("_char") else "gpt2"
    folders = [base / "data" / name for base in (path.resolve().parent.parent, Path.cwd())]
    for folder in folders:
        if holds_bins(folder):
            return str(folder), "char" if (folder / "meta.pkl").is_file() else "gpt2"
    for folder in folders:
        if (folder / "input.txt").is_file():
            return str(folder / "input.txt"), tokenizer
    if name in ("shakespeare", "shakespeare_char"):
        return "shakespeare", tokenizer
    return str(folders[0]), tokenizer
