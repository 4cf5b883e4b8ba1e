"""Both languages are complete: every message of the code is translated, and the Chinese texts are Chinese."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
import yaml
from babel.messages.pofile import read_po
from conftest import ROOT

from hfgpt import config as configs
from hfgpt.base import language
from hfgpt.base.errors import InputError
from hfgpt.base.units import duration
from hfgpt.config import Config
from hfgpt.data.pieces import endings
from hfgpt.locale import compile as compiling
from hfgpt.plan import guide
from hfgpt.plan.command import recipe_text
from hfgpt.runs.findings import Remedy

ERRORS = ("InputError", "RunError", "Failure", "ConversionError")  # their first argument is a message, as that of _
SAY = {"_": 1, "N_": 1, "plural": 2} | dict.fromkeys(ERRORS, 1)  # how many of the first arguments are messages
CODE = sorted((ROOT / "hfgpt").rglob("*.py")) + sorted((ROOT / "scripts").glob("*.py"))
CATALOGUE = ROOT / "hfgpt" / "locale" / "zh"


def messages(path: Path) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Return a module's messages, also those inside f-strings: line, and the text or its two forms."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        name = getattr(node.func, "id", getattr(node.func, "attr", "")) if isinstance(node, ast.Call) else ""
        if isinstance(node, ast.Call) and name in SAY:
            forms = [each.value for each in node.args[: SAY[name]] if isinstance(each, ast.Constant)]
            if len(forms) == SAY[name] and all(isinstance(form, str) for form in forms):
                yield node.lineno, tuple(map(str, forms))


def fields(text: str) -> set[str]:
    return set(re.findall(r"{(\w+)", text))


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", CODE, ids=name_of)
def test_every_message_is_translated_with_the_same_fields(path: Path) -> None:
    chinese = language._translations("zh")
    missing = []
    for line, forms in messages(path):
        if not forms[0]:
            continue
        translated = chinese.gettext(forms[0]) if len(forms) == 1 else chinese.ngettext(*forms, 2)
        if translated == forms[-1] and words_of(forms[-1]):
            missing.append(f"line {line}: {forms[0]!r} is not translated")
        elif fields(translated) != fields(forms[-1]) | (fields(translated) & {"n"}):
            missing.append(f"line {line}: {forms[0]!r} and {translated!r} have different fields")
    assert missing == []


# ------------------------------------------------------------------------------------------ Chinese is Chinese

# Names, units and code: words that Chinese texts on the subject leave in Latin letters.
NAMES = set((ROOT / "tests" / "latin_names.txt").read_text("utf-8").split())
# Parameters and their values stay Latin too.
NAMES |= set(Config.model_fields) | {"true", "false", "char", "bpe", "scratch", "resume", "val", "train", "text"}
NAMES |= {
    str(choice)
    for field in Config.model_fields.values()
    for option in [field.annotation, *get_args(field.annotation)]
    for choice in get_args(option)
}


def words_of(text: str) -> list[str]:
    """Return Latin words of a Chinese text that are not a name, code, a field, or part of a command."""
    text = re.sub(r"{.*?}|`[^`]*`|https?:\S+|'[^']*'|\"[^\"]*\"", " ", text)
    text = re.sub(r"(?:hfgpt|python|accelerate|pip|make|git|export|set)(?: [-\w./=:<>\[\]\"'…]+)+", " ", text)
    text = re.sub(r"^\w+：|(?<![.\w])\w+（|\b\w+ = |\w+(?:·\w+)+|\*\w+|--\w+ [a-z]+\b", " ", text)
    text = re.sub(r"(?<!\w)--?[\w=./-]+|[\w./*~-]*[/_.][\w./*~-]+|<[^>]*>|%\S+|\$\w+|\bn\b|\b[A-Z_]{3,}\b", " ", text)
    return [
        word
        for word in re.findall(r"[A-Za-z][A-Za-z0-9'-]+", text)
        if not NAMES.issuperset(filter(None, word.split("-"))) and not re.search(r"\d", word)
    ]


def chinese_texts() -> Iterator[tuple[str, str]]:
    """Return every Chinese text of the product with its place."""
    for path in sorted(CATALOGUE.glob("*.po")):
        with path.open("rb") as file:
            for message in read_po(file, locale="zh"):
                for text in [message.string] if isinstance(message.string, str) else list(message.string):
                    if message.id and text:
                        yield f"{path.name}: {text!r}", text
    book = yaml.safe_load((ROOT / "hfgpt" / "plan" / "guide.yaml").read_text("utf-8"))
    for key, entry in book.items():
        for name, text in entry["zh"].items():
            yield f"guide.yaml: {key}.{name}: {text!r}", text


def test_chinese_texts_have_no_latin_words_but_names() -> None:
    assert {where: words for where, text in chinese_texts() if (words := words_of(text))} == {}


def test_chinese_texts_have_chinese_punctuation() -> None:
    """Between Chinese characters, punctuation is Chinese; a list of values in a sentence too."""
    wrong = re.compile(r"[一-鿿][,;:?!](?![\w/])|[一-鿿]\((?=[一-鿿])|[一-鿿]\.(?=\s|$)")
    assert [where for where, text in chinese_texts() if wrong.search(re.sub(r"{.*?}", "", text))] == []
    with language.using("zh"):
        assert endings() == ".txt、.jsonl、.parquet（.txt.gz、.txt.zst、.jsonl.gz、.jsonl.zst）"
        assert {mark for name in Config.model_fields for mark in ",;(" if mark in guide.entry(name).section} == set()
        assert Remedy("", "6.4, strategy 4; 3.1").section == "6.4 节，策略 4；3.1 节"


# One word for each thing: the chapter's own where it has one. Left: what else it was called, which a reader takes for
# another thing. Right: the word used everywhere.
ONE_WORD = {
    "教程": "教材",  # the chapter; 课程 is our course
    "多层感知机": "前馈网络",
    "激活重算": "激活值重算",
    "学习率衰减方式": "学习率调度",
    "参数搜索": "对比实验",
    "扫描": "对比实验",
    "继续训练": "续训",
    "这次运行": "这次训练",
    "运行记录": "训练记录",
    "两次运行": "两次训练",
}


def test_a_thing_has_one_name_in_chinese() -> None:
    pages = [*sorted((ROOT / "docs" / "zh").rglob("*.md")), ROOT / "README.zh-CN.md"]
    recipes = sorted((ROOT / "recipes").rglob("*.yaml"))
    texts = [*chinese_texts(), *((f"{page.name}:", page.read_text("utf-8")) for page in [*pages, *recipes])]
    found = [(where, word, right) for where, text in texts for word, right in ONE_WORD.items() if word in text]
    assert found == []


def test_a_chinese_message_claims_no_more_than_the_english_one() -> None:
    with language.using("zh"):
        went = "The loss went from {start:.2f} to {end:.2f} in {n:,} steps."
        one = went.replace("steps", "step")
        assert "从 1.20 变为 1.40" in language.plural(one, went, 40, start=1.2, end=1.4), "it did not fall"
        advice = language._("give more text, or change val_fraction")
        either = language._("set block_size to at most {most}, or {advice}", most=9, advice=advice)
        assert either == "把 block_size 设为不超过 9；或者提供更多文本，或调整 val_fraction", "not both"


# Fields that are numbers: those with a number's format, and those that the code names so.
NUMBER = r"\d|{n}|{\w+:[^}]*[dfgeE%,]}|{(?:time|budget|low|high|left)}"


def test_a_space_stands_between_a_number_and_a_chinese_character() -> None:
    """Also in the pages: `3 分 31 秒`, `第 275 步`."""
    joined = re.compile(rf"[一-鿿](?:{NUMBER})|(?:{NUMBER.replace('|{(?:time|budget|low|high|left)}', '')})[一-鿿]")
    assert [where for where, text in chinese_texts() if joined.search(text)] == []
    pages = [*sorted((ROOT / "docs" / "zh").rglob("*.md")), ROOT / "README.zh-CN.md"]
    beside = re.compile(r"[一-鿿]\d|\d[一-鿿]")
    lines = [(page.name, line) for page in pages for line in page.read_text("utf-8").splitlines()]
    assert [line for line in lines if beside.search(re.sub(r"https?:\S+", "", line[1]))] == []
    with language.using("zh"):
        times = [duration(seconds) for seconds in (0, 0.012, 3.4, 45, 200, 3900, 400_000)]
    assert times == ["0 秒", "12 毫秒", "3.4 秒", "45 秒", "3 分 20 秒", "1 小时 05 分", "4.6 天"]


def test_the_catalogue_holds_what_the_code_can_say_and_nothing_else() -> None:
    said = {forms[0] for path in CODE for _line, forms in messages(path)}
    held = set()
    for path in sorted(CATALOGUE.glob("*.po")):
        with path.open("rb") as file:
            held |= {message.id if isinstance(message.id, str) else message.id[0] for message in read_po(file)}
    assert held - said == {""}


def test_a_message_has_one_translation() -> None:
    """The files become one catalogue, in which a second translation of a message would silently win."""
    found: dict[object, set[object]] = {}
    for path in sorted(CATALOGUE.glob("*.po")):
        with path.open("rb") as file:
            for message in read_po(file, locale="zh"):
                found.setdefault(str(message.id), set()).add(str(message.string))
    assert {message: texts for message, texts in found.items() if message and len(texts) > 1} == {}


def test_a_space_stands_beside_latin_words_and_numbers_alone() -> None:
    with language.using("zh"):
        cpu = language.plural("CPU, {n} core", "CPU, {n} cores", 2)
        assert language._("Time on {device}", device=cpu) == "在 CPU（2 核）上的时间"
        assert language._("Time on {device}", device="T4") == "在 T4 上的时间"
        assert language._("{low} to {high}", low=duration(70), high=duration(0.5)) == "1 分 10 秒到 500 毫秒"
        assert language._("{path!r}, line {number:,}", path="诗 集.txt", number=2) == "'诗 集.txt' 第 2 行"
        told = "{folder} on the validation split of {dataset}, {blocks} blocks:"
        assert language._(told, folder="out/诗", dataset="诗", blocks=3) == "out/诗 在诗的验证集上，3 个块："


def test_durations_have_spaces_between_number_and_unit() -> None:
    with language.using("zh"):
        assert [duration(seconds) for seconds in (0, 0.231, 2.1, 38, 200, 3900, 300_000)] == [
            "0 秒", "231 毫秒", "2.1 秒", "38 秒", "3 分 20 秒", "1 小时 05 分", "3.5 天",
        ]  # fmt: skip


def test_a_catalogue_newer_than_what_was_compiled_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clone has nothing compiled, and what `git pull` brings is newer than what is."""
    monkeypatch.setattr(language, "CATALOGUE", tmp_path)
    folder, source = tmp_path / "zh", tmp_path / "zh" / "a.po"
    folder.mkdir()
    said = []
    for text in ("一", "二", "三"):
        source.write_text(
            f'msgid ""\nmsgstr "Content-Type: text/plain; charset=utf-8\\n"\n\nmsgid "x"\nmsgstr "{text}"\n'
        )
        if text == "三":  # older than what was compiled, as in an installed package
            os.utime(source, (0, 0))
        language._translations.cache_clear()
        with language.using("zh"):
            said.append(language._("x"))
        if text == "一":
            os.utime(compiling.target_of(folder), (1, 1))
    language._translations.cache_clear()
    assert said == ["一", "二", "二"]


def test_the_catalogues_are_read_as_by_babel() -> None:
    """So that no tool is needed where a clone is used without an installation."""
    for path in sorted(CATALOGUE.glob("*.po")):
        ours = dict(compiling.messages(path))
        with path.open("rb") as file:
            for message in read_po(file, locale="zh"):
                key = message.id if isinstance(message.id, str) else "\0".join(message.id)
                if key and message.string:
                    assert ours[key] == (message.string if isinstance(message.string, str) else message.string[0])


def test_what_the_system_says_of_a_file_is_translated(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such") as caught:
        (tmp_path / "missing").read_text()
    told = caught.value
    with language.using("zh"):
        assert language.strerror(told) == "没有这个文件或文件夹"
        said = language._("{path}: cannot be read: {reason}", path="a", reason=told)
        assert said.startswith("a：无法读取：[Errno 2] 没有这个文件或文件夹")
    with language.using("en"):
        assert language.strerror(told) == "No such file or directory"


@pytest.mark.parametrize(
    "text", ["n_layer: 1: 2", "n_layer: [1\nseed: 2", "\tn_layer: 1", 'dataset: "a', "- a", "a", "3"]
)
def test_what_is_wrong_with_a_yaml_file_is_said_in_chinese(text: str, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(text)
    with language.using("zh"), pytest.raises(InputError) as caught:
        configs.read_recipe(tmp_path / "r.yaml")
    assert words_of(str(caught.value)) == []


def test_the_memory_of_a_card_has_its_own_word() -> None:
    with language.using("zh"):
        assert language._("memory") == "内存"
        with language.about_card(True):
            assert language._("memory") == "显存"
            assert language.of_device("占用主机内存") == "占用主机内存"
    with language.using("en"), language.about_card(True):
        assert language._("memory") == "memory"


def test_the_comments_of_a_written_recipe_are_chinese() -> None:
    with language.using("zh"):
        recipe = configs.load(None, ["--n_layer=3", "--dropout=0.1", "--warmup_iters=7", "--lr_schedule=constant"])
        comments = [
            line for line in (recipe_text(recipe, {}, "") + configs.to_yaml(recipe)).splitlines() if line[:1] == "#"
        ]
    assert len(comments) > 15
    values = re.compile(r"^# \w+: .*?  ")  # a derived value
    assert [words for line in comments if (words := words_of(values.sub("", line)))] == []


# ------------------------------------------------------------------------------------------ nothing goes around

SPEAKERS = {*ERRORS, "CheckpointError", "Fault", "print", "say", "warn", "Remedy", "Finding"}


def in_language(path: Path) -> Iterator[tuple[int, str]]:
    """Return a module's output texts that bypass translation: line and text."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        name = getattr(node.func, "id", getattr(node.func, "attr", "")) if isinstance(node, ast.Call) else ""
        if not isinstance(node, ast.Call) or name not in SPEAKERS:
            continue
        said = [*node.args, *(keyword.value for keyword in node.keywords)]
        if name in ERRORS and isinstance(node.args[0], ast.Constant):  # a message and the values of its fields
            said = []
        for argument in said:
            parts = argument.values if isinstance(argument, ast.JoinedStr) else [argument]
            text = " {} ".join(
                part.value for part in parts if isinstance(part, ast.Constant) and isinstance(part.value, str)
            )
            if re.search(r"[A-Za-z]{2,} [A-Za-z]{2,}", text.replace(" {} ", " ")):
                yield node.lineno, text


@pytest.mark.parametrize("path", CODE, ids=name_of)
def test_what_is_said_goes_through_the_catalogue(path: Path) -> None:
    assert list(in_language(path)) == []
