"""nanoGPT's configuration files as recipes, read as literals and never executed.

In:  a ``config/*.py`` of nanoGPT (https://github.com/karpathy/nanoGPT).
Out: a recipe's keys and values.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfgpt.base.errors import InputError
from hfgpt.config.fields import INSTEAD, RENAMED, Config

if TYPE_CHECKING:
    pass


def holds_bins(folder: str | Path) -> bool:
    """Whether the folder holds nanoGPT's train.bin and val.bin."""
    return all((Path(folder) / name).is_file() for name in ("train.bin", "val.bin"))


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
    return {*Config.model_fields, *RENAMED, *INSTEAD}


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
