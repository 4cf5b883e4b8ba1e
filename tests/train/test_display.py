"""One bar on a terminal, plain lines elsewhere, no output of all processes but one."""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import Any

import pytest

from hfgpt.base.units import duration, size
from hfgpt.train import display
from hfgpt.train.display import Display

FIGURES = {
    "train_loss": 1.23456,
    "learning_rate": 6e-4,
    "tokens_per_second": 12345.6,
    "mfu": 0.4321,
    "memory_bytes": 3 * 2**30,
}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(display, "time", made)
    return made


def test_figures_in_one_line() -> None:
    assert display.describe(FIGURES) == "loss 1.2346  lr 6.00e-04  12,346 tokens/s  MFU 43.2%  3.00 GiB"
    without = {key: value for key, value in FIGURES.items() if key != "mfu"}
    assert "MFU" not in display.describe(without)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (44.6, "45s"), (59.6, "1m00s"), (200, "3m20s"), (3599.7, "1h00m"), (3900, "1h05m"), (90_000, "25h00m")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(("amount", "text"), [(5 * 2**20, "5 MiB"), (2**30, "1.00 GiB"), (1.5 * 2**30, "1.50 GiB")])
def test_sizes(amount: float, text: str) -> None:
    assert size(amount) == text


def test_off_a_terminal_a_line_every_five_seconds_and_at_the_end(
    capsys: pytest.CaptureFixture[str], clock: Clock
) -> None:
    shown = Display(total=100)
    shown.begin(0)
    for step in range(1, 101):
        clock.now += 0.5
        shown.advance(step, FIGURES)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == [f"{step}/100" for step in range(10, 101, 10)]
    assert lines[0] == f"step 10/100  {display.describe(FIGURES)}  45s left"
    assert "left" not in lines[-1]


def test_the_time_left_counts_from_a_resumes_own_steps(capsys: pytest.CaptureFixture[str], clock: Clock) -> None:
    shown = Display(total=100)
    shown.begin(80)
    shown.advance(81, FIGURES)
    clock.now += 10
    shown.advance(91, FIGURES)
    assert capsys.readouterr().out.endswith("9s left\n")


def test_steps_without_figures_say_nothing(capsys: pytest.CaptureFixture[str], clock: Clock) -> None:
    shown = Display(total=10)
    shown.begin(0)
    clock.now += 60
    shown.advance(1)
    assert capsys.readouterr() == ("", "")


def test_on_a_terminal_there_is_one_bar_and_lines_go_above_it(monkeypatch: pytest.MonkeyPatch) -> None:
    out, err = io.StringIO(), Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    shown = Display(total=4)
    shown.begin(1)
    shown.advance(2, FIGURES)
    shown.say("evaluated")
    shown.advance(4, FIGURES)
    shown.close()
    assert out.getvalue() == "evaluated\n"
    assert "4/4" in err.getvalue()
    assert "loss 1.2346" in err.getvalue()
    shown.say("after")  # the bar has ended
    assert out.getvalue() == "evaluated\nafter\n"
    shown.close()


def test_a_finished_run_shows_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    err = Terminal()
    monkeypatch.setattr(sys, "stderr", err)
    Display(total=4).begin(4)
    assert err.getvalue() == ""


def test_other_processes_are_silent(capsys: pytest.CaptureFixture[str]) -> None:
    shown = Display(total=1, speaks=False)
    shown.begin(0)
    shown.say("hello")
    shown.warn("careful")
    shown.sample("text")
    shown.advance(1, FIGURES)
    shown.close()
    assert capsys.readouterr() == ("", "")


def test_warnings_go_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    Display(total=1).warn("careful")
    assert capsys.readouterr() == ("", "warning: careful\n")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\nTo be,\nor not\n", "    │ To be,\n    │ or not\n"),
        ("a\n\nb", "    │ a\n    │ \n    │ b\n"),
        ("tab\tand 中文 é 👩‍👧\xa0!", "    │ tab\tand 中文 é 👩‍👧\xa0!\n"),
        ("red \x1b[31m, bell \x07, back \x08, null \x00", "    │ red \\x1b[31m, bell \\x07, back \\x08, null \\x00\n"),
        ("one\x0cline\x1cof\x85text\u2028here\r", "    │ one\\x0cline\\x1cof\\x85text\\u2028here\\r\n"),
    ],
)
def test_a_sample_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str], text: str, shown: Any) -> None:
    """An untrained model draws any character; those that move the cursor or set colours are shown as escapes."""
    Display(total=1).sample(text)
    assert capsys.readouterr().out == shown


def test_a_terminal_of_no_columns_gets_plain_lines(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], clock: Clock
) -> None:
    """In Colab's terminal, a bar showed nothing in 9,000 steps."""
    terminal = Terminal()
    monkeypatch.setattr(terminal, "fileno", lambda: 2)
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(os, "get_terminal_size", lambda *_: os.terminal_size((0, 0)))
    shown = Display(total=20)
    shown.begin(0)
    for step in range(1, 21):
        clock.now += 1
        shown.advance(step, FIGURES)
    shown.close()
    assert terminal.getvalue() == ""
    assert [line.split()[1] for line in capfd.readouterr().out.splitlines()] == ["5/20", "10/20", "15/20", "20/20"]


class Closed(io.StringIO):
    """A terminal that was closed."""

    def write(self, _text: str) -> int:
        raise OSError(errno.EIO, "Input/output error")


def test_a_closed_terminal_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", Closed())
    shown = Display(total=2)
    shown.begin(0)
    shown.say("stopping")
    shown.advance(2, FIGURES)
    shown.close()
