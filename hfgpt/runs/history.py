"""The history of a run: its records and its recipe, wherever they come from.

In:  a run folder, a Trainer's ``trainer_state.json``, or the log that nanoGPT printed.
Out: one :class:`History`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hfgpt import config as configs
from hfgpt.base.errors import InputError
from hfgpt.base.language import _
from hfgpt.config import Config
from hfgpt.runs import foreign, metrics
from hfgpt.runs.metrics import Record


@dataclass(frozen=True)
class History:
    """What is known about a run: its name, its records in the order of their steps, its recipe if there is one."""

    name: str
    path: Path
    records: list[Record]
    config: Config | None = None

    def series(self, key: str) -> tuple[list[float], list[float]]:
        """See :func:`hfgpt.runs.metrics.series`."""
        return metrics.series(self.records, key)


def read_run(source: str | Path) -> History:
    """Read the history of a run, finished or in progress.

    Args:
        source: a run folder or its ``metrics.jsonl``; a Trainer's output or checkpoint folder or its
            ``trainer_state.json``; or a text file with what nanoGPT printed.

    Raises:
        InputError: there is no record of a run; says what was looked for.
    """
    path = _record_file(Path(source))
    config: Config | None = None
    if path.suffix == ".jsonl":
        records, config = metrics.read(path), _recipe_beside(path)
    elif path.suffix == ".json":
        records = foreign.read_trainer_state(path)
    else:
        records, config = foreign.read_nanogpt(path)
    if not records:
        raise InputError(
            _(
                "{source}: holds no step yet: there is neither a loss nor an evaluation in {path}",
                source=source,
                path=path,
            )
        )  # fmt: skip
    name = path.parent.resolve().name if path.suffix in (".jsonl", ".json") else path.stem
    return History(name, path, records, config)


def _record_file(source: Path) -> Path:
    if source.is_file():
        return source
    if not source.exists():
        raise InputError(_("{source}: there is no such run folder or file", source=source))
    by_step = sorted(source.glob("checkpoint-*/trainer_state.json"), key=lambda path: (len(path.parent.name), path))
    for candidate in (source / metrics.FILE_NAME, source / "trainer_state.json", *reversed(by_step)):
        if candidate.is_file():
            return candidate
    raise InputError(
        _("{source}: no run here; it has neither {name} nor trainer_state.json", source=source, name=metrics.FILE_NAME)
    )


def _recipe_beside(path: Path) -> Config | None:
    recipe = path.parent / "recipe.yaml"
    return configs.load(recipe) if recipe.is_file() else None
