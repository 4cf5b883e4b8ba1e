"""What a recipe names is found and counted, and never downloaded; unknown values are reported as assumptions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import ROOT

from hfgpt import config
from hfgpt.base.errors import InputError
from hfgpt.data import reading, sources
from hfgpt.data.prepare import prepare
from hfgpt.plan import survey
from hfgpt.plan.survey import Survey


def of(**values: object) -> Survey:
    return survey.survey_of(config.build(values, "run"))


def test_the_embedded_corpus_is_as_it_is_said_to_be() -> None:
    cache = Path()
    pieces = sources.find(config.build({}, "run"), cache).train
    text = "".join(text for piece in pieces for part in reading.read(piece) for text in part.texts)
    assert (len(text), len(text.encode()), len(set(text))) == (
        survey.EMBEDDED.characters,
        survey.EMBEDDED.bytes,
        survey.EMBEDDED.distinct,
    )


def test_characters_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("abc déjà vu\n" * 100, encoding="utf-8")
    found = of(dataset=str(tmp_path / "text.txt"), val_fraction=0.25)
    assert found.vocab_size == len(set("abc déjà vu\n")) + 256
    assert found.train_tokens == 900
    assert found.corpus_bytes == 1400
    assert not found.approximate


def test_the_vocabulary_is_the_trained_tokenizer_s(tiny_text: Path, tmp_path: Path) -> None:
    from hfgpt.data import tokenizer

    text = tiny_text.read_text()
    made = tokenizer.train_char([text])
    assert of(dataset=str(tiny_text)).vocab_size == tokenizer.vocabulary_size(made)
    bpe = tokenizer.train_bpe([text], 300)
    bpe.save_pretrained(tmp_path / "bpe")
    found = of(dataset=str(tiny_text), tokenizer=str(tmp_path / "bpe"))
    assert found.vocab_size == tokenizer.vocabulary_size(bpe)
    assert found.approximate
    assert of(dataset=str(tiny_text), tokenizer="bpe", vocab_size=300).vocab_size == 300


def test_a_folder_with_splits(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("ab" * 50)
    (tmp_path / "val.txt").write_text("cd" * 50)
    found = of(dataset=str(tmp_path))
    assert found.train_tokens == 100, "nothing is held out where there is a validation split"
    assert found.vocab_size == 2 + 256


def test_what_is_not_here_is_assumed() -> None:
    found = of(dataset="user/name")
    assert found.train_tokens is None
    assert found.corpus_bytes is None
    assert "assumed" in found.vocabulary
    assert of(tokenizer="gpt2").vocab_size == 50257
    assert "assumed" in of(tokenizer="somebody/else").vocabulary


def test_new_embeddings_have_the_tokenizers_vocabulary() -> None:
    kept = of(init_from="gpt2", tokenizer="gpt2")
    renewed = of(init_from="gpt2", tokenizer="char", new_embeddings=True)
    assert (kept.vocab_size, renewed.vocab_size) == (50257, of(tokenizer="char").vocab_size)
    assert (renewed.config.n_layer, renewed.config.n_embd) == (12, 768)


def test_pretrained_shapes(tmp_path: Path) -> None:
    found = of(init_from="gpt2-medium")
    assert (found.config.n_layer, found.config.n_head, found.config.n_embd, found.vocab_size) == (24, 16, 1024, 50257)
    shape = {"model_type": "gpt2", "n_layer": 3, "n_head": 2, "n_embd": 8, "vocab_size": 77}
    (tmp_path / "config.json").write_text(json.dumps(shape))
    found = of(init_from=str(tmp_path))
    assert (found.config.n_layer, found.config.n_embd, found.vocab_size) == (3, 8, 77)
    shape |= {"n_inner": 20, "tie_word_embeddings": False, "activation_function": "gelu_new", "n_positions": 64}
    (tmp_path / "config.json").write_text(json.dumps(shape))
    found = of(init_from=str(tmp_path), block_size=64, n_inner=48, activation_function="relu2")
    own = (found.config.n_inner, found.config.tie_word_embeddings, found.config.activation_function)
    assert own == (20, False, "gelu_new"), "the pretrained model's own, whatever is typed"
    for name, positions in ((str(tmp_path), 64), ("gpt2", 1024)):
        with pytest.raises(InputError, match=f"has positions for {positions} tokens"):
            of(init_from=name, block_size=positions + 1)
    with pytest.raises(InputError, match="hf download somebody/model"):
        of(init_from="somebody/model")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(InputError, match="is a llama model"):
        of(init_from=str(tmp_path))


@pytest.mark.parametrize("name", ["missing.txt", "/no/such/folder", "none-*.txt"])
def test_a_missing_file_is_an_error(name: str) -> None:
    with pytest.raises(InputError, match=r"no such file|no file matches"):
        of(dataset=name)


def test_of_a_large_text_the_beginning_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "large.txt"
    path.write_text("天地玄黄，宇宙洪荒。\n" * (survey.MOST_SAMPLED // 10), encoding="utf-8")
    with path.open("r+b") as file:
        file.truncate(survey.READ_UP_TO + 1)  # sparse from there: a zero is not text
    monkeypatch.chdir(tmp_path)
    found = of(dataset=str(path), tokenizer="char")
    assert [file.name for file in tmp_path.iterdir()] == ["large.txt"], "nothing is written"
    assert found.corpus_bytes == survey.READ_UP_TO + 1
    assert found.approximate
    assert found.train_tokens == pytest.approx(0.9 * survey.READ_UP_TO * 11 / 31, rel=0.01), "characters, not bytes"
    assert found.vocab_size == 11 + survey.BYTE_ENTRIES
    assert "assumed" in found.vocabulary


@pytest.mark.parametrize(("text", "entries", "least", "most"), [
    ("tang300", 1024, 0.7, 0.95), ("shakespeare", 1024, 2.2, 2.8), ("shakespeare", 8192, 3.2, 4.0),
])  # fmt: skip
def test_the_tokens_of_a_vocabulary_that_is_trained_here(text: str, entries: int, least: float, most: float) -> None:
    """A Chinese character is about a token, where an English token holds several."""
    dataset = str(ROOT / "docs" / "course" / "tang300.txt") if text == "tang300" else text
    values = {"dataset": dataset, "tokenizer": "bpe", "vocab_size": entries}
    found, characters = of(**values), of(dataset=dataset, tokenizer="char").train_tokens
    assert found.train_tokens is not None
    assert characters is not None
    assert least < characters / found.train_tokens < most
    made = prepare(config.build(values, "test")) if text == "tang300" else None
    assert made is None or found.train_tokens == pytest.approx(len(made.train), rel=0.2)


def test_a_mix_and_token_files_are_counted_as_far_as_they_are_here(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("abcd " * 2000)
    mix = [{"name": str(tmp_path / "*.txt"), "weight": 2}, {"name": "shakespeare", "weight": 1}]
    found = survey.survey_of(config.build({"dataset": mix}, "run"))
    assert found.corpus_bytes == 10_000 + survey.EMBEDDED.bytes
    absent = [*mix, {"name": "nobody/nothing", "weight": 1}]
    assert survey.survey_of(config.build({"dataset": absent}, "run")).corpus_bytes is None
    (tmp_path / "bins").mkdir()
    for name, n in (("train", 9000), ("val", 1000)):
        (tmp_path / "bins" / f"{name}.bin").write_bytes(b"\x05\x07" * n)
    values = {"dataset": str(tmp_path / "bins"), "tokenizer": "gpt2"}
    assert survey.survey_of(config.build(values, "run")).train_tokens == pytest.approx(9000, rel=0.01)
