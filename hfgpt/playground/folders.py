"""The runs in the page's folder, by name: their records, their comparison, a prompt from their text.

In:  a folder of runs.
Out: paths by name, a comparison, a prompt.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from hfgpt import config as configs
from hfgpt.base.errors import InputError
from hfgpt.base.files import check_regular
from hfgpt.config import EMBEDDED_DATASET
from hfgpt.runs import compare, metrics

WEIGHTS = "model.safetensors"

OPENING = 24  # characters of a prompt


def find(folder: Path, file: str) -> dict[str, Path]:
    """Return the folders up to three levels deep that hold a file, by relative name, newest first."""
    paths = [path for depth in ("", "*/", "*/*/", "*/*/*/") for path in folder.glob(f"{depth}{file}")]
    dated = sorted(((path.stat().st_mtime, path.parent) for path in paths if path.is_file()), reverse=True)
    inside = [path for _time, path in dated if not any(part.startswith("checkpoint-") for part in path.parts)]
    return {str(path.relative_to(folder)) if path != folder else path.resolve().name: path for path in inside}


def compared(chosen: Mapping[str, Path]) -> compare.Comparison:
    """Compare runs under their names in the folder; also a single one.

    Raises:
        InputError: a run cannot be read, for example because it has not recorded anything yet.
    """
    folders = list(chosen.values())
    if len(folders) > 1:
        comparison = compare.of_folders(folders)
    else:  # a single run has no comparison, but it has an outcome
        comparison = compare.of_folders(folders * 2)
        comparison = compare.Comparison(comparison.title, comparison.entries[:1])
    for entry, name in zip(comparison.entries, chosen, strict=True):
        entry.setting = name if entry.setting == entry.label else entry.setting
        entry.label = name
    return comparison


def opening(folder: Path) -> str:
    """Return a prompt that suits a run's model: the beginning of its text, otherwise its last sample; "" if neither.

    A text's relative path is resolved from here, then from the run's parent folders, where it was probably trained.
    """
    try:
        dataset = configs.load(str(folder / "recipe.yaml")).dataset
    except InputError:
        return ""
    if dataset == EMBEDDED_DATASET:
        return "ROMEO:"
    for place in (Path(), *folder.resolve().parents):
        with suppress(OSError, ValueError):
            check_regular(place / dataset)
            with (place / dataset).open(encoding="utf-8") as file:
                return _first_line(file.read(1000))
    with suppress(InputError):
        written = metrics.read_samples(folder / metrics.SAMPLES)
        return _first_line(list(written.values())[-1]) if written else ""
    return ""


def _first_line(text: str) -> str:
    line = text.strip().partition("\n")[0]
    return line if len(line) <= OPENING else line[:OPENING].rpartition(" ")[0] or line[:OPENING]
