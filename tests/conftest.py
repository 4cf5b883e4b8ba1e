"""Shared by all tests: no network, caches of their own, a small text, a small recipe, and the scripts to run.

The environment is set before any test module is imported, since the Hugging Face libraries read it only once.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import workshop
import yaml
from hypothesis import settings
from warm_python import warm_python

from hfgpt.locale.compile import compile_all

ROOT = Path(__file__).parent.parent
TWO = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")  # launches a script in two processes
CACHE = Path(tempfile.mkdtemp(prefix="hfgpt-tests-"))

# hfgpt measures this machine once a session: the workers of pytest-xdist use the first worker's results. Matplotlib's
# list of fonts, which takes seconds to build, stays in the user's cache.
if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ["MPLCONFIGDIR"] = os.environ.get("MPLCONFIGDIR") or str(
        Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "matplotlib"
    )
    os.environ["XDG_CACHE_HOME"] = str(CACHE / "cache")

os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "HFGPT_LANG": "en",
    "HF_HOME": str(CACHE / "home"),
    "HF_DATASETS_CACHE": str(CACHE / "datasets"),
    "HF_MODULES_CACHE": str(CACHE / "modules"),
    "MPLBACKEND": "agg",
    "TOKENIZERS_PARALLELISM": "false",
}
# Variables of the shell or of a launcher, which a run would obey.
for name in [name for name in os.environ if name.startswith(("ACCELERATE_", "OMP_", "TORCHELASTIC_"))]:
    del os.environ[name]
os.environ["OMP_NUM_THREADS"] = "1"  # a second thread only slows down models this small

ENVIRONMENT = dict(os.environ)

compile_all()  # compiles the translations, as an installation does

sys.argv[0] = "pytest"  # otherwise `python -m pytest` looks like the installed command, and messages name its commands

# Other work on the machine can make an example slow, so examples have no deadline.
settings.register_profile("hfgpt", deadline=None, derandomize=True)
settings.load_profile("hfgpt")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip the fuzz lane unless it is selected, since it takes as long as it is given."""
    if "fuzz" not in config.option.markexpr:
        fuzz = [item for item in items if item.get_closest_marker("fuzz")]
        config.hook.pytest_deselected(items=fuzz)
        items[:] = [item for item in items if item not in fuzz]


def pytest_sessionfinish() -> None:
    """Delete the session's caches."""
    shutil.rmtree(CACHE, ignore_errors=True)


@contextlib.contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """No file grows beyond so many bytes inside: the calls fail that fail on a full disk, at any byte one chooses."""
    import resource  # missing on Windows

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    """Restore the environment of the session and Accelerate's process-wide state after each test.

    A module's fixtures change the environment too, if they run a command in this process.
    """
    yield
    for name in os.environ.keys() - ENVIRONMENT.keys():
        if not name.startswith("PYTEST_"):
            del os.environ[name]
    os.environ.update(ENVIRONMENT)
    if "accelerate" in sys.modules:
        from accelerate.state import AcceleratorState, GradientState

        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()


@pytest.fixture(autouse=True, scope="session")
def _checkout_as_it_was() -> Iterator[None]:
    """Fail if the tests left files at the top of the checkout, as a run with a relative `out_dir` does."""
    before = set(os.listdir(ROOT))
    yield
    left = set(os.listdir(ROOT)) - before - {"build", "out", "site"}
    assert not [name for name in left if not name.startswith(".") and not name.endswith(".egg-info")]


@pytest.fixture(scope="session")
def tiny_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file of about 12,000 characters, always the same lines of invented words: enough to learn from."""
    draw = random.Random(0)
    words = ["".join(draw.choices("aeioumnprst", k=draw.randint(2, 6))) for _ in range(60)]
    lines = [" ".join(draw.choices(words, k=8)).capitalize() + "." for _ in range(300)]
    path = tmp_path_factory.mktemp("text") / "tiny.txt"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def corpus_file(tmp_path: Path) -> Path:
    """Return a file of 600 numbered lines for the data tests: data_texts.LINES."""
    lines = [f"Line {i}: the quick brown fox, number {i * i}.\n" for i in range(600)]
    (tmp_path / "corpus.txt").write_text("".join(lines))
    return tmp_path / "corpus.txt"


@pytest.fixture
def tiny(tiny_text: Path, tmp_path: Path) -> dict[str, Any]:
    """Return a recipe's values, for `config.build`, that trains in about a second; its run folder is `tmp_path`/run."""
    return {
        "dataset": str(tiny_text),
        "out_dir": str(tmp_path / "run"),
        "device": "cpu",
        "n_layer": 2,
        "n_head": 2,
        "n_embd": 16,
        "block_size": 16,
        "batch_size": 4,
        "max_iters": 8,
        "warmup_iters": 1,
        "eval_interval": 4,
        "eval_iters": 2,
        "log_interval": 1,
        "sample_prompt": "",
        "num_proc": 1,
    }


@pytest.fixture
def write_recipe(tmp_path: Path) -> Callable[..., Path]:
    """write_recipe(values, name="tiny") → the path of a recipe with these values."""

    def write(values: dict[str, Any], name: str = "tiny") -> Path:
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(values, allow_unicode=True), encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def python() -> Iterator[str]:
    """Return the path of a Python that starts at once, with the libraries loaded; see warm_python.py."""
    with warm_python() as path:
        yield path


@pytest.fixture
def run_script(tmp_path: Path, python: str) -> Callable[..., subprocess.CompletedProcess[str]]:
    """run_script("train.py", *arguments) → the finished process of `python scripts/train.py …`, or of another file.

    It runs in `tmp_path`, so that nothing is written into the checkout. `launch` puts words before the script, as in
    ``launch=["-m", "accelerate.commands.launch"]``; `env` adds variables; `python` is another interpreter than the
    fixture's.
    """

    def run(
        script: str | Path,
        *arguments: Any,
        launch: tuple[str, ...] = (),
        env: dict[str, str] | None = None,
        timeout: int = 240,
        python: str = python,
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [python, *launch, str(ROOT / "scripts" / script), *map(str, arguments)],
            cwd=tmp_path,
            env={**os.environ, **(env or {})},
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    return run


@pytest.fixture
def place(python: str, tmp_path: Path) -> workshop.Workshop:
    """Return a copy of the checkout in which to run commands."""
    return workshop.Workshop(tmp_path, python)


@pytest.fixture
def in_temporary_folder(tmp_path: Path) -> Iterator[Path]:
    """Run the test in `tmp_path`."""
    with contextlib.chdir(tmp_path):
        yield tmp_path
