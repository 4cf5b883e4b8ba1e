"""Text from outside is shown but cannot control the terminal; lines break only where they may."""

from __future__ import annotations

import pytest

from hfgpt.base import terminal


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain → 中文 é\n\tend", "plain → 中文 é\n\tend"),
        ("\x1b[31mred\x1b[0m", "\\x1b[31mred\\x1b[0m"),
        ("a\rb\x08c\x07", "a\\rb\\x08c\\x07"),
        ("\x9b2J\x85", "\\x9b2J\\x85"),
        ("txt\u202egpj.exe", "txt\\u202egpj.exe"),
        ("\udcff.yaml", "\\udcff.yaml"),
        ("👩\u200d💻", "👩\u200d💻"),
    ],
)
def test_visible(text: str, shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert terminal.visible(text) == shown
    terminal.say(text)
    assert capsys.readouterr().out == shown + "\n"


@pytest.mark.parametrize("columns", [10, 20, 80])
@pytest.mark.parametrize(
    "text",
    [
        "each line is cut at spaces, and no word is lost on the way",
        "每一行都可以在两个汉字之间断开，但标点符号（例如逗号）不出现在行首。",
        "参数 n_layer（层数）越大，模型越深。",
    ],
)
def test_wrapped_lines_fit_and_lose_nothing(text: str, columns: int) -> None:
    lines = terminal.wrap(text, columns)
    assert "".join("".join(lines).split()) == "".join(text.split())
    assert all(terminal.width(line) <= columns + 2 for line in lines)
    assert not any(line[0] in "，。）" for line in lines)


def test_a_word_longer_than_a_line_is_kept_whole() -> None:
    assert terminal.wrap("a gradient_accumulation_steps b", 10) == ["a", "gradient_accumulation_steps", "b"]


def test_columns_of_chinese_characters_count_twice() -> None:
    assert terminal.pad("损失", 6) + "|" == "损失  |"
    assert terminal.pad("loss", 6) + "|" == "loss  |"


@pytest.mark.parametrize("columns", range(4, 60))
def test_lines_break_where_chinese_may(columns: int) -> None:
    """Closing punctuation begins no line, and a number stays with its unit."""
    text = "显存峰值约 994 MiB，比预算少；用 16 位混合精度（几乎没有代价）训练，每步 231 毫秒、共 3 分 20 秒。"
    lines = terminal.wrap(text, columns)
    assert "".join("".join(lines).split()) == "".join(text.split())
    assert not [line for line in lines if line[0] in "，。；、）" or line[-1] == "（"]
    for whole in ("994 MiB", "16 位", "231 毫秒", "3 分", "20 秒"):
        assert any(whole in line for line in lines)


def test_a_command_is_not_broken() -> None:
    command = "pip install -e '.[elsewhere]'"
    for columns in range(20, 80):
        assert any(command in line for line in terminal.wrap(f"不在安装之内；需要时运行 {command} 安装它", columns))
    assert terminal.wrap("It needs pip install -e '.[x]' first", 16) == ["It needs", "pip install -e '.[x]'", "first"]
