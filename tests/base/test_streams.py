"""Scripts in terminals of other encodings, with closed streams, on full disks, and under Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from hfgpt.base import shell
from hfgpt.commands.choice import carry_out

Script = Callable[..., subprocess.CompletedProcess[str]]

pytestmark = pytest.mark.e2e


def in_process(main: Callable[[list[str]], int | None], *words: str) -> int:
    """Return the exit code of a command run by :func:`shell.run`."""
    with pytest.raises(SystemExit) as left:
        shell.run(main, words)
    assert isinstance(left.value.code, int)
    return left.value.code


PRINTS = "from hfgpt.base import shell, language\nshell.run(lambda words: print({text}))\n"


def printed(text: str, encoding: str, language: str = "en", terminal: bool = False) -> tuple[int, bytes]:
    """Return exit code and output of a command that prints the value of this expression; its errors to a terminal."""
    import pty  # missing on Windows

    program = PRINTS.format(text=text)
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "HFGPT_LANG": language}
    for variable in shell.PROGRESS_BARS:  # as an earlier command in this process may have left them
        environment.pop(variable, None)
    ours, theirs = pty.openpty()
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=theirs if terminal else subprocess.PIPE,
        check=False,
    )
    os.close(theirs)
    os.close(ours)
    assert not done.stderr
    return done.returncode, done.stdout.replace(b"\r\n", b"\n")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_characters_that_an_encoding_lacks_become_plain_ones(encoding: str) -> None:
    assert printed("'a → b — c… n² ─ 中'", encoding) == (0, b"a -> b - c... n^2 - \\u4e2d\n".replace(
        b"n^2", "n²".encode(encoding) if encoding == "latin-1" else b"n^2"
    ))  # fmt: skip


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "gbk", "utf-8"])
def test_json_is_json_in_every_encoding(encoding: str) -> None:
    """And holds the same data: a plan or a diagnosis is read by programs."""
    value = {"dataset": "\xe9t\xe9 \u2192 \u4e2d \u2026 \U0001f600"}
    code, output = printed(f"__import__('hfgpt.base.terminal', fromlist=['']).json_text({value})", encoding)
    assert code == 0
    assert json.loads(output.decode(encoding)) == value
    assert ("\u4e2d".encode() in output) == (encoding == "utf-8")


def test_chinese_reads_right_in_a_gbk_terminal() -> None:
    assert printed("'验证损失 → 4.2'", "gbk") == (0, "验证损失 → 4.2\n".encode("gbk"))
    assert printed("language.current()", "gbk", "zh") == (0, b"zh\n")


@pytest.mark.parametrize(
    ("language", "terminal", "hidden"),
    [("zh", True, True), ("zh", False, True), ("en", True, False), ("en", False, True)],
)
def test_the_libraries_progress_bars_are_for_an_english_terminal(language: str, terminal: bool, hidden: bool) -> None:
    """They are English, and would fill a log."""
    hub = "__import__('huggingface_hub.utils', fromlist=['']).are_progress_bars_disabled()"
    rows = "__import__('datasets').are_progress_bars_disabled()"
    assert printed(f"({hub}, {rows})", "utf-8", language, terminal) == (0, f"({hidden}, {hidden})\n".encode())


def test_a_terminal_without_chinese_characters_gets_english() -> None:
    assert printed("language.current()", "latin-1", "zh") == (0, b"en\n")
    assert printed("language.current()", "utf-8", "zh") == (0, b"zh\n")


@pytest.mark.parametrize("words", [["--lang", "zh", "a"], ["a", "--lang=zh"]])
def test_the_language_is_heeded_and_taken_away(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HFGPT_LANG", "en")
    monkeypatch.setattr(shell, "_can_show", lambda text: True)
    seen: list[list[str]] = []
    assert in_process(seen.append, *words) == 0
    assert seen == [["a"]]
    assert os.environ["HFGPT_LANG"] == "zh", "for the processes that it starts"


@pytest.mark.parametrize("words", [["--lang", "fr"], ["--lang"], ["--lang="]])
def test_another_language_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert in_process(lambda words: None, *words) == 2
    assert "must be en | zh" in capsys.readouterr().err


def test_a_run_is_printed_in_ascii(tiny: dict[str, Any], write_recipe: Callable[..., Path], run_script: Script) -> None:
    recipe = write_recipe({**tiny, "sample_prompt": "\n"})
    done = run_script("train.py", recipe, env={"PYTHONIOENCODING": "ascii", "HFGPT_LANG": "zh"})
    assert done.returncode == 0, done.stderr
    assert "\\xb1" not in done.stdout, "the loss that is expected is shown with +/-"


@pytest.mark.skipif(sys.platform == "win32", reason="descriptors are closed otherwise there")
def test_closed_streams(tiny: dict[str, Any], write_recipe: Callable[..., Path], tmp_path: Path) -> None:
    train = f"{sys.executable} {ROOT / 'scripts' / 'train.py'} {write_recipe(tiny)}"
    for streams in (">&-", ">&- 2>&-", "<&- >&- 2>&-"):
        done = subprocess.run(["sh", "-c", f"{train} --overwrite {streams}"], cwd=tmp_path, check=False)
        assert done.returncode == 0
    assert (tmp_path / "run" / "metrics.jsonl").read_text().startswith("{"), "nothing was printed into it"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system does not have it")
def test_a_full_disk_is_one_message() -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, ROOT / "scripts" / "plan.py", "standard"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.strip() == "The output cannot be written: No space left on device"


@pytest.mark.skipif(sys.platform == "win32", reason="its limit is on the whole path")
@pytest.mark.parametrize("command", ["evaluate", "diagnose", "recipes", "push"])
def test_a_name_that_no_file_can_have(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["x" * 300, "user/name"] if command == "push" else ["x" * 300]
    assert in_process(lambda words: carry_out(command, words), *words) == 2
    assert capsys.readouterr().err == f"'{'x' * 40}…': the name is too long for a file or a folder\n"


@pytest.mark.skipif(sys.platform == "win32", reason="signals are other there")
@pytest.mark.parametrize("seconds", [0.4, 0.8, 1.5, 2.5])
def test_ctrl_c_ends_a_start_quietly(
    tiny: dict[str, Any], write_recipe: Callable[..., Path], tmp_path: Path, seconds: float
) -> None:
    recipe = write_recipe({**tiny, "max_iters": 100_000})
    command = [sys.executable, ROOT / "scripts" / "train.py", recipe]
    heeds = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731 - where these tests run behind an `&`
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=-1, stderr=subprocess.STDOUT, text=True, preexec_fn=heeds
    ) as process:
        time.sleep(seconds)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=120)[0]
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert "Error" not in said


def test_whatever_ctrl_c_breaks_off_ends_with_130(capsys: pytest.CaptureFixture[str]) -> None:
    def main(words: list[str]) -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise ImportError("numpy was interrupted") from None

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert in_process(main) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err == ""


def test_an_error_message_cannot_steer_the_terminal(run_script: Script) -> None:
    scripts = ("diagnose.py", "sample.py", "evaluate.py", "train.py", "plan.py", "export_gguf.py x", "push.py a/b")
    for script in scripts:
        name, *more = script.split()
        done = run_script(name, "no\x1b[31m\udcff", *more)
        assert done.returncode == 2, done.stderr
        assert "\x1b" not in done.stderr
        assert "no\\x1b[31m\\udcff" in done.stderr
