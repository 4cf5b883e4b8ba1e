"""Sampling draws the tokens of Transformers, also past the block, yields whole characters, and has no side effects."""

from __future__ import annotations

import contextlib
import json
import math
import os
import subprocess
import sys
import unicodedata
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel, pipeline

from hfgpt.base.errors import InputError
from hfgpt.base.terminal import visible
from hfgpt.data import tokenizer
from hfgpt.inference import exported
from hfgpt.inference import sampling as sample
from hfgpt.inference.sampling import Sampling
from hfgpt.share import export

TEXT = "To be, or not to be,\nthat is the question:\tWhether 'tis nobler -- 你好, naïve 🙂!\n"
BLOCK = 32


def tiny_model(made: Any, block: int = BLOCK, vocab_size: int | None = None) -> GPT2LMHeadModel:
    """Return an untrained model whose probabilities differ enough for the comparisons."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=vocab_size or tokenizer.vocabulary_size(made),
        n_positions=block,
        n_embd=32,
        n_layer=2,
        n_head=2,
        bos_token_id=made.eos_token_id,
        eos_token_id=made.eos_token_id,
        initializer_range=0.3,
    )
    return GPT2LMHeadModel(config).eval()


@pytest.fixture(scope="module")
def chars() -> Any:
    return tokenizer.train_char([TEXT])


@pytest.fixture(scope="module")
def bpe() -> Any:
    return tokenizer.train_bpe([TEXT], 300)


@pytest.fixture(scope="module")
def model(chars: Any) -> GPT2LMHeadModel:
    return tiny_model(chars)


@pytest.fixture(scope="module")
def folder(chars: Any, model: GPT2LMHeadModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported")
    export.write(path, model, chars, export.weights(model.state_dict()))
    return path


def tokens(model: GPT2LMHeadModel, ids: list[int], sampling: Sampling, end: int | None = None) -> list[int]:
    return list(sample.draw_tokens(model, ids, model.config.vocab_size, end, sampling))


def decode(made: Any, ids: list[int]) -> list[str]:
    text = sample.PieceDecoder(made)
    return [piece for piece in [*map(text.add, ids), text.end()] if piece]


# ---------------------------------------------------------------------------------------------- which tokens


@pytest.mark.parametrize(
    ("sampling", "theirs"),
    [
        (Sampling(temperature=0), {"do_sample": False}),
        (Sampling(temperature=0.8, top_k=20, seed=3), {"do_sample": True, "temperature": 0.8, "top_k": 20}),
        (
            Sampling(temperature=1.3, top_k=50, top_p=0.7, seed=4),
            {"do_sample": True, "temperature": 1.3, "top_k": 50, "top_p": 0.7},
        ),
        (Sampling(temperature=1, top_k=None, seed=5), {"do_sample": True, "top_k": 0}),
    ],
)
def test_within_the_block_the_tokens_are_those_of_transformers_generate(
    model: GPT2LMHeadModel, sampling: Sampling, theirs: dict[str, Any]
) -> None:
    prompt = [5, 9, 2]
    ours = tokens(model, prompt, Sampling(**{**vars(sampling), "max_new_tokens": BLOCK - 3}))
    torch.manual_seed(sampling.seed)
    generated = model.generate(torch.tensor([prompt]), max_new_tokens=BLOCK - 3, pad_token_id=0, **theirs)
    assert ours == generated[0, 3:].tolist()
    assert len(set(ours)) > 1  # otherwise the comparison shows little


@pytest.mark.parametrize("temperature", [1e-320, 1e-45, 1e-30])
def test_the_coldest_temperatures_take_the_most_likely_token(model: GPT2LMHeadModel, temperature: float) -> None:
    """Scores divided by them would overflow float32, although the model is fine."""
    greedy = tokens(model, [1, 2], Sampling(max_new_tokens=9, temperature=0))
    assert tokens(model, [1, 2], Sampling(max_new_tokens=9, temperature=temperature)) == greedy


@pytest.mark.parametrize("temperature", [0, 0.8])
def test_a_model_that_has_diverged_says_so(chars: Any, temperature: float) -> None:
    model = tiny_model(chars, block=8)
    with torch.no_grad():
        model.transformer.h[0].mlp.c_fc.weight[0, 0] = math.nan
    with pytest.raises(InputError, match="has diverged"):
        tokens(model, [1], Sampling(temperature=temperature))


def test_past_the_block_the_last_half_of_it_is_read_anew(model: GPT2LMHeadModel) -> None:
    ours = tokens(model, [1, 2, 3], Sampling(max_new_tokens=3 * BLOCK, temperature=0))
    context, expected = [1, 2, 3], []
    with torch.no_grad():
        for _ in range(3 * BLOCK):
            if len(context) > BLOCK:
                context = context[-BLOCK // 2 :]
            expected.append(int(model(torch.tensor([context])).logits[0, -1].argmax()))  # without a cache
            context.append(expected[-1])
    assert ours == expected


def test_500_tokens_from_a_block_of_64_cost_no_more_each(chars: Any) -> None:
    model = tiny_model(chars, block=64)
    read = []
    first = model.transformer.h[0].mlp.act
    hook = first.register_forward_hook(lambda _m, inputs, _o: read.append(len(inputs[0])))
    assert len(tokens(model, [1], Sampling(max_new_tokens=500))) == 500
    hook.remove()
    assert len(read) == 500
    assert sum(read) < 2.2 * 500  # each token once, and once more when half the block is read again


@pytest.mark.parametrize("length", [BLOCK - 1, BLOCK, 3 * BLOCK])
def test_a_prompt_of_the_block_or_longer_keeps_its_end(model: GPT2LMHeadModel, length: int) -> None:
    prompt = [(7 * i) % 40 for i in range(length)]
    kept = tokens(model, prompt[-BLOCK:], Sampling(max_new_tokens=5, temperature=0))
    assert tokens(model, prompt, Sampling(max_new_tokens=5, temperature=0)) == kept


def test_a_block_of_one_token_works(chars: Any) -> None:
    assert len(tokens(tiny_model(chars, block=1), [1, 2], Sampling(max_new_tokens=5))) == 5


def test_the_end_of_text_ends_it(model: GPT2LMHeadModel) -> None:
    drawn = tokens(model, [5], Sampling(max_new_tokens=20, seed=8))
    end = drawn[7]
    assert tokens(model, [5], Sampling(max_new_tokens=20, seed=8), end=end) == drawn[: drawn.index(end)]


def test_an_id_without_a_token_is_never_drawn(chars: Any) -> None:
    known = len(chars)
    padded = tiny_model(chars, vocab_size=known + 500)
    drawing = Sampling(max_new_tokens=100, temperature=5.0, top_k=None)
    assert max(sample.draw_tokens(padded, [1], known, None, drawing)) < known
    assert max(sample.draw_tokens(padded, [1], known + 500, None, drawing)) >= known  # or this test shows nothing
    assert exported.generation_config(padded.config, chars).suppress_tokens == list(range(known, known + 500))


def test_a_vocabulary_with_holes_is_drawn_to_its_highest_id(chars: Any, tmp_path: Path) -> None:
    chars.save_pretrained(tmp_path)
    description = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = description["model"]["vocab"]
    last, highest = max(vocabulary, key=vocabulary.get), len(vocabulary) + 40
    hole = vocabulary[last]
    vocabulary[last] = highest
    (tmp_path / "tokenizer.json").write_text(json.dumps(description), encoding="utf-8")
    made = tokenizer.load(str(tmp_path))
    model = tiny_model(made)
    with torch.no_grad():
        model.transformer.ln_f.weight.zero_()
        model.transformer.ln_f.bias.copy_(100 * model.lm_head.weight[highest])  # every next token is the last one
    drawn = "".join(sample.generate(model, made, "T", Sampling(max_new_tokens=3, temperature=0)))
    assert drawn == made.decode([highest] * 3)
    suppressed = exported.generation_config(model.config, made).suppress_tokens
    assert suppressed == list(range(hole, highest))


# ---------------------------------------------------------------------------------------------- the text


def test_the_same_seed_writes_the_same_text(model: GPT2LMHeadModel, chars: Any) -> None:
    texts = ["".join(sample.generate(model, chars, "To be", Sampling(seed=seed))) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize("name", ["chars", "bpe"])
@given(text=st.text(max_size=40))
def test_pieces_are_whole_characters_and_join_to_the_text(name: str, text: str, chars: Any, bpe: Any) -> None:
    made = {"chars": chars, "bpe": bpe}[name]
    pieces = decode(made, made.encode(text, add_special_tokens=False))
    assert "".join(pieces) == text
    assert "\ufffd" in text or not any("\ufffd" in piece for piece in pieces)


def test_a_piece_comes_as_soon_as_its_token(bpe: Any) -> None:
    text = sample.PieceDecoder(bpe)
    assert text.add(bpe.encode("be, 🙂!")[0])


def test_bytes_that_are_no_text_do_not_hold_the_stream_up(chars: Any) -> None:
    broken = chars.convert_tokens_to_ids("<0xFF>")
    pieces = decode(chars, [broken] * 50 + chars.encode("be"))
    assert len(pieces) > 3
    assert "".join(pieces).endswith("be")


@pytest.mark.parametrize("name", ["chars", "bpe"])
def test_an_empty_prompt_begins_a_text(name: str, chars: Any, bpe: Any) -> None:
    made = {"chars": chars, "bpe": bpe}[name]
    assert exported.start_id(made) == (made.eos_token_id if name == "bpe" else made.encode("\n")[0])
    assert "".join(sample.generate(tiny_model(made), made, "", Sampling(max_new_tokens=10)))


def test_characters_without_a_token_are_named() -> None:
    letters = tokenizer.char_tokenizer(list("abc"))
    assert exported.left_out(letters, "a你b你d") == "d你"
    assert exported.left_out(tokenizer.train_char(["abc"]), "a你b你d") == ""


# ---------------------------------------------------------------------------------------------- nothing else


def test_sampling_changes_neither_the_random_state_nor_the_mode(model: GPT2LMHeadModel, chars: Any) -> None:
    expected = "".join(sample.generate(model.eval(), chars, "To be"))
    before = torch.get_rng_state()
    assert "".join(sample.generate(model.train(), chars, "To be")) == expected  # no dropout while sampling
    assert model.training
    assert torch.equal(torch.get_rng_state(), before)
    model.eval()


def test_texts_side_by_side_are_the_texts_one_by_one(model: GPT2LMHeadModel, chars: Any) -> None:
    drawing = Sampling(max_new_tokens=100, seed=5)
    pieces = list(sample.generate_many(model, chars, "To be", drawing, 3))
    alone = ["".join(sample.generate(model, chars, "To be", replace(drawing, seed=seed))) for seed in (5, 6, 7)]
    assert ["".join(text) for text in zip(*pieces, strict=True)] == alone
    assert len(set(alone)) == 3


def test_a_text_that_has_ended_is_silent_while_the_others_go_on(model: GPT2LMHeadModel) -> None:
    drawing = Sampling(max_new_tokens=60, seed=5, temperature=2.0)
    one = [list(sample.draw_tokens(model, [1], 20, 3, replace(drawing, seed=5 + index))) for index in range(4)]
    assert len({len(tokens) for tokens in one}) > 1
    many = list(sample.draw_many(model, [1], 20, 3, drawing, 4))
    assert [[token for token in column if token is not None] for column in zip(*many, strict=True)] == one


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens = 0"),
        ({"temperature": -0.1}, "temperature = -0.1"),
        ({"temperature": float("nan")}, "temperature = nan"),
        ({"temperature": float("inf")}, "temperature = inf"),
        ({"top_k": 0}, "top_k = 0"),
        ({"top_p": 0.0}, "top_p = 0.0"),
        ({"top_p": 1.5}, "top_p = 1.5"),
        ({"seed": -1}, "seed = -1"),
    ],
)
def test_values_out_of_range_are_named(values: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        Sampling(**values)


# ---------------------------------------------------------------------------------------------- folders


def test_a_folder_gives_the_model_that_was_written(folder: Path, model: GPT2LMHeadModel) -> None:
    loaded, made = exported.load_folder(folder, "cpu")
    ids = torch.tensor([made.encode("To be")])
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, model(ids).logits)
    assert not loaded.training


def make(path: Path, *names: str) -> Path:
    path.mkdir()
    for name in names:
        target = path / name
        target.parent.mkdir(exist_ok=True)
        target.write_text('{"model_type": "llama"}', encoding="utf-8")
    return path


def test_folders_that_hold_no_model_are_told_apart(tmp_path: Path) -> None:
    files = ("config.json", "tokenizer_config.json", "model.safetensors")
    cases = {
        str(tmp_path / "none"): "no such folder",
        "user/name": "pull.py user/name",
        str(make(tmp_path / "empty")): "holds no config.json, tokenizer_config.json, model.safetensors",
        str(make(tmp_path / "early", "recipe.yaml")): "exported no model yet",
        str(make(tmp_path / "early2", "checkpoint-5/state.json")): "exported no model yet",
        str(make(tmp_path / "bare", *files[:1], *files[2:])): "holds no tokenizer_config.json",
        str(make(tmp_path / "other", *files)): "is a llama model",
        str(make(tmp_path / "file") / "x"): "no such folder",
    }
    for folder, message in cases.items():
        with pytest.raises(InputError, match=message):
            exported.check_folder(folder)


def test_damaged_weights_are_one_message(folder: Path, tmp_path: Path) -> None:
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"\x10" * 100)
    with pytest.raises(InputError, match="cannot be loaded"):
        exported.load_folder(tmp_path, "cpu")


def test_an_unknown_device_is_named(folder: Path) -> None:
    with pytest.raises(InputError, match="device = 'abacus'"):
        exported.load_folder(folder, "abacus")


def test_the_pipeline_works_with_its_own_defaults(folder: Path) -> None:
    """By default it adds 256 tokens, although there are only 32 positions."""
    write = pipeline("text-generation", model=str(folder), device="cpu")
    for prompt in ("To be", "", "x" * (BLOCK - 1)):
        text = write(prompt)[0]["generated_text"]
        assert text.startswith(prompt)
        assert len(text) > len(prompt)
    assert len(write(["a", "bcd"])) == 2


@pytest.mark.parametrize("made", ["chars", "bpe"])
def test_a_pipeline_takes_several_prompts_at_a_time(made: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """It pads shorter prompts; each continuation equals that of the prompt alone."""
    tokenizer = request.getfixturevalue(made)
    network = tiny_model(tokenizer)
    export.write(tmp_path, network, tokenizer, export.weights(network.state_dict()))
    write = pipeline("text-generation", model=str(tmp_path), device="cpu")
    prompts = ["To be", "or", "that is"]
    alone = [write(prompt, do_sample=False)[0]["generated_text"] for prompt in prompts]
    together = write(prompts, batch_size=3, do_sample=False)
    assert [texts[0]["generated_text"][:20] for texts in together] == [text[:20] for text in alone]


@pytest.mark.e2e
def test_the_folder_needs_nothing_of_this_project(folder: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from transformers import pipeline; "
        f"print(repr(pipeline('text-generation', model={str(folder)!r})('To be')[0]['generated_text'])); "
        "assert not any(name.startswith('hfgpt') for name in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "To be" in done.stdout


# ---------------------------------------------------------------------------------------------- the script


@pytest.mark.e2e
def test_the_script_samples(folder: Path, tmp_path: Path, run_script: Any) -> None:
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("To be,\n\tor", encoding="utf-8")
    arguments = ("--max_new_tokens=50", "--num_samples=2", "--seed=4", "--device=cpu")
    done = run_script("sample.py", folder, "--prompt_file", prompt, *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    first, second = done.stdout.split("-" * 15 + "\n")
    loaded, made = exported.load_folder(folder, "cpu")
    for text, seed in ((first, 4), (second, 5)):
        expected = sample.generate(loaded, made, "To be,\n\tor", Sampling(max_new_tokens=50, seed=seed))
        assert text == "To be,\n\tor" + "".join(expected) + "\n"


@pytest.mark.e2e
def test_on_a_terminal_control_characters_are_shown_and_in_a_pipe_they_are_written(
    folder: Path, tmp_path: Path, run_script: Any
) -> None:
    """An untrained model draws any byte, as does one that was trained on a file with terminal colours."""
    (tmp_path / "prompt.txt").write_bytes(b"red \x1b[31m\n\tend\x9b\x07".decode("latin-1").encode())
    arguments = ("--prompt_file=prompt.txt", "--max_new_tokens=150", "--temperature=2", "--device=cpu")
    piped = run_script("sample.py", folder, *arguments)
    assert (piped.returncode, piped.stderr) == (0, "")
    assert piped.stdout.startswith("red \x1b[31m\n\tend\x9b\x07")
    drawn = piped.stdout.removeprefix("red \x1b[31m\n\tend\x9b\x07")
    steering = [c for c in drawn if unicodedata.category(c) == "Cc" and c not in "\n\t"]
    assert steering, "the model must draw some for this test to mean anything"

    import pty  # both are missing on Windows
    import termios

    ours, theirs = pty.openpty()
    attributes = termios.tcgetattr(theirs)
    attributes[1] &= ~termios.OPOST  # line feeds unchanged
    termios.tcsetattr(theirs, termios.TCSANOW, attributes)
    command = [sys.executable, str(ROOT / "scripts" / "sample.py"), str(folder), *arguments]
    with subprocess.Popen(command, cwd=tmp_path, stdout=theirs) as process:
        os.close(theirs)
        written = b""
        with contextlib.suppress(OSError):  # a terminal reports a closed other end in this way
            while some := os.read(ours, 1 << 16):
                written += some
    os.close(ours)
    assert process.returncode == 0
    shown = written.decode("utf-8")
    assert shown == visible(piped.stdout)
    assert shown.startswith("red \\x1b[31m\n\tend\\x9b\\x07")
    assert not [c for c in shown if unicodedata.category(c) == "Cc" and c not in "\n\t"]


@pytest.mark.e2e
def test_the_script_answers_bad_input_before_it_loads_anything(folder: Path, tmp_path: Path, run_script: Any) -> None:
    for arguments, length in (
        ((folder, "--temperature=-1"), 1),
        ((folder, "--num_samples=0"), 3),
        ((folder, "--num_samples=1000000000"), 3),
        ((folder, "--prompt_file=/dev/zero"), 1),
        ((folder, "--prompt_file", tmp_path / "none.txt"), 1),
        ((tmp_path / "none",), 1),
    ):
        done = run_script("sample.py", *arguments, launch=("-X", "importtime"))
        lines = done.stderr.splitlines()
        messages = [line for line in lines if not line.startswith("import time:")]
        assert done.returncode == 2, arguments
        assert len(messages) == length, messages
        assert not any(line.split("|")[-1].strip() in ("torch", "transformers") for line in lines)
