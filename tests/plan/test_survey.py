"""What a recipe names is found and counted, and never downloaded; unknown values are reported as assumptions."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from hfgpt import config
from hfgpt.base.errors import InputError
from hfgpt.data import reading, sources
from hfgpt.plan import corpus, survey
from hfgpt.plan.survey import Survey


def of(**values: object) -> Survey:
    return survey.survey_of(config.build(values, "run"))


def test_the_embedded_corpus_is_as_it_is_said_to_be() -> None:
    cache = Path()
    pieces = sources.find(config.build({}, "run"), cache).train
    text = "".join(text for piece in pieces for part in reading.read(piece) for text in part.texts)
    assert (len(text), len(text.encode()), len(set(text))) == (
        corpus.EMBEDDED.characters,
        corpus.EMBEDDED.bytes,
        corpus.EMBEDDED.distinct,
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


def test_of_a_large_text_only_the_start_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its bytes are not taken for characters: a Chinese one has three in each."""
    path = tmp_path / "large.txt"
    with path.open("wb") as file:
        file.write("话说天下大势，分久必合，合久必分。\n".encode() * 200_000)
        file.truncate(corpus.READ_UP_TO + 1)  # sparse: reading it would return zeros, and the test would notice
    monkeypatch.chdir(tmp_path)
    found = of(dataset=str(path))
    assert [file.name for file in tmp_path.iterdir()] == ["large.txt"], "nothing is written"
    assert found.corpus_bytes == corpus.READ_UP_TO + 1
    assert found.train_tokens == pytest.approx((corpus.READ_UP_TO + 1) * 18 / 52 * 0.9, rel=0.01)
    assert found.approximate
    assert found.vocabulary.startswith("at least 13 characters")
    assert found.vocab_size == 13 + 256


NOVEL = Path(__file__).parents[2] / "docs/course/tang300.txt"


@pytest.mark.parametrize("vocab_size", [512, 1024, 2048])
@pytest.mark.parametrize("script", ["Chinese", "English", "both"])
def test_the_tokens_of_a_bpe_vocabulary_are_estimated_by_script_and_size(
    vocab_size: int, script: str, tmp_path: Path
) -> None:
    """Within a fifth; four characters a token, as in large English vocabularies, would be off by up to seven times."""
    from hfgpt.data import tokenizer

    with gzip.open(sources.EMBEDDED, "rt", encoding="utf-8") as file:
        english = file.read(150_000)
    chinese = NOVEL.read_text(encoding="utf-8")
    text = {"Chinese": chinese, "English": english, "both": english + chinese}[script]
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    found = of(dataset=str(tmp_path / "text.txt"), tokenizer="bpe", vocab_size=vocab_size)
    made = len(tokenizer.token_ids(tokenizer.train_bpe([text], vocab_size), text))
    assert found.train_tokens == pytest.approx(0.9 * made, rel=0.2)
    assert found.approximate


def test_gpt2_s_own_tokenizer_takes_two_tokens_for_a_chinese_character() -> None:
    found = of(dataset=str(NOVEL), tokenizer="gpt2")
    assert found.train_tokens == pytest.approx(0.9 * 62_410, rel=0.1), "its tokens, counted once with its merges"


def test_a_mix_of_chinese_texts_has_at_least_the_characters_of_each(tmp_path: Path) -> None:
    mix = [{"name": str(NOVEL), "weight": 2}, {"name": "shakespeare", "weight": 1}]
    found = survey.survey_of(config.build({"dataset": mix}, "run"))
    assert found.vocab_size == of(dataset=str(NOVEL)).vocab_size
    assert found.vocabulary.startswith("at least")
    assert len(found.further) == 2, "the loss of each is measured besides that of the mix"


def test_a_mix_and_token_files_are_counted_as_far_as_they_are_here(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("abcd " * 2000)
    mix = [{"name": str(tmp_path / "*.txt"), "weight": 2}, {"name": "shakespeare", "weight": 1}]
    found = survey.survey_of(config.build({"dataset": mix}, "run"))
    assert found.corpus_bytes == 10_000 + corpus.EMBEDDED.bytes
    absent = [*mix, {"name": "nobody/nothing", "weight": 1}]
    assert survey.survey_of(config.build({"dataset": absent}, "run")).corpus_bytes is None
    (tmp_path / "bins").mkdir()
    for name, n in (("train", 9000), ("val", 1000)):
        (tmp_path / "bins" / f"{name}.bin").write_bytes(b"\x05\x07" * n)
    values = {"dataset": str(tmp_path / "bins"), "tokenizer": "gpt2"}
    assert survey.survey_of(config.build(values, "run")).train_tokens == pytest.approx(9000, rel=0.01)
