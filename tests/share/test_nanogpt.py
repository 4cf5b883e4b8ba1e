"""nanoGPT: equal logits both ways; vocabularies and configuration files are read without executing anything."""

from __future__ import annotations

import math
import pickle
import re
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from hfgpt import config as configs
from hfgpt.base.errors import InputError
from hfgpt.data import tokenizer
from hfgpt.data.prepare import prepare
from hfgpt.inference import exported
from hfgpt.share import export, nanogpt

CHARACTERS = list("\n !',abcdefghijklmnop")
LAYERS, HEADS, WIDTH, BLOCK = 2, 2, 16, 12


def nanogpt_logits(state: dict[str, Tensor], ids: Tensor) -> Tensor:
    """Compute what nanoGPT's GPT computes from its own tensors: (batch, time) → (batch, time, vocabulary)."""

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state.get(f"{name}.bias"), 1e-5)

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))

    batch, time = ids.shape
    x = state["transformer.wte.weight"][ids] + state["transformer.wpe.weight"][:time]
    for layer in range(LAYERS):
        at = f"transformer.h.{layer}"
        parts = linear(norm(x, f"{at}.ln_1"), f"{at}.attn.c_attn").chunk(3, dim=-1)
        query, key, value = (part.view(batch, time, HEADS, -1).transpose(1, 2) for part in parts)
        scores = query @ key.transpose(-1, -2) / key.shape[-1] ** 0.5
        scores = scores.masked_fill(torch.ones(time, time).triu(1).bool(), float("-inf"))
        mixed = (scores.softmax(-1) @ value).transpose(1, 2).reshape(batch, time, -1)
        x = x + linear(mixed, f"{at}.attn.c_proj")
        x = x + linear(F.gelu(linear(norm(x, f"{at}.ln_2"), f"{at}.mlp.c_fc")), f"{at}.mlp.c_proj")
    return norm(x, "transformer.ln_f") @ state["lm_head.weight"].T


def nanogpt_state(vocab_size: int, bias: bool) -> dict[str, Tensor]:
    """Return random tensors with nanoGPT's names and shapes."""
    draw = torch.Generator().manual_seed(0)

    def tensor(*shape: int) -> Tensor:
        return 0.3 * torch.randn(*shape, generator=draw)

    state = {"transformer.wte.weight": tensor(vocab_size, WIDTH), "transformer.wpe.weight": tensor(BLOCK, WIDTH)}
    sizes = {"attn.c_attn": (3, 1), "attn.c_proj": (1, 1), "mlp.c_fc": (4, 1), "mlp.c_proj": (1, 4)}
    for layer in range(LAYERS):
        at = f"transformer.h.{layer}"
        for name, (out, into) in sizes.items():
            state[f"{at}.{name}.weight"] = tensor(out * WIDTH, into * WIDTH)
            if bias:
                state[f"{at}.{name}.bias"] = tensor(out * WIDTH)
    for name in (
        *(f"transformer.h.{i}.{norm}" for i in range(LAYERS) for norm in ("ln_1", "ln_2")),
        "transformer.ln_f",
    ):
        state[f"{name}.weight"] = 1 + tensor(WIDTH)
        if bias:
            state[f"{name}.bias"] = tensor(WIDTH)
    return {**state, "lm_head.weight": state["transformer.wte.weight"]}


def checkpoint(vocab_size: int = len(CHARACTERS), bias: bool = True, prefix: str = "", **extra: Any) -> dict[str, Any]:
    state = {f"{prefix}{name}": tensor for name, tensor in nanogpt_state(vocab_size, bias).items()}
    args = {"n_layer": LAYERS, "n_head": HEADS, "n_embd": WIDTH, "block_size": BLOCK, "bias": bias}
    return {
        "model": {**state, **extra},
        "optimizer": {"state": {}, "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.95)}]},
        "model_args": {**args, "vocab_size": vocab_size, "dropout": 0.1},
        "iter_num": 2000,
        "best_val_loss": torch.tensor(1.5),
        "config": {"dataset": "letters", "compile": True},
    }


def write_meta(path: Path, characters: list[str] = CHARACTERS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    itos = dict(enumerate(characters))
    meta = {"vocab_size": len(itos), "itos": itos, "stoi": {c: i for i, c in itos.items()}}
    path.write_bytes(pickle.dumps(meta))
    return path


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Return a folder with nanoGPT's layout: a checkpoint in out-letters/, the vocabulary in data/letters/."""
    write_meta(tmp_path / "data" / "letters" / "meta.pkl")
    (tmp_path / "out-letters").mkdir()
    torch.save(checkpoint(), tmp_path / "out-letters" / "ckpt.pt")
    return tmp_path


# ---------------------------------------------------------------------------------------------- importing


@pytest.mark.parametrize(
    ("bias", "prefix", "vocab_size"),
    [(True, "", len(CHARACTERS)), (False, "_orig_mod.", len(CHARACTERS)), (True, "_orig_mod.", 64)],
)
def test_the_logits_are_nanogpts(checkout: Path, tmp_path: Path, bias: bool, prefix: str, vocab_size: int) -> None:
    mask = {f"{prefix}transformer.h.0.attn.bias": torch.ones(1, 1, BLOCK, BLOCK)}  # older versions saved it
    saved = checkpoint(vocab_size, bias, prefix, **mask)
    torch.save(saved, checkout / "out-letters" / "ckpt.pt")
    folder = nanogpt.import_checkpoint(checkout / "out-letters" / "ckpt.pt", tmp_path / "imported")
    gpt2, _ = exported.load_folder(folder, "cpu")
    ids = torch.randint(len(CHARACTERS), (3, BLOCK), generator=torch.Generator().manual_seed(1))
    expected = nanogpt_logits(nanogpt_state(vocab_size, bias), ids)
    with torch.no_grad():
        difference = (gpt2(ids).logits - expected).abs().max()
    assert expected.abs().max() > 1
    assert difference < 1e-5
    assert gpt2.config.resid_pdrop == 0.1


def test_the_characters_keep_their_ids(checkout: Path, tmp_path: Path) -> None:
    folder = nanogpt.import_checkpoint(checkout / "out-letters" / "ckpt.pt", tmp_path / "imported")
    _, made = exported.load_folder(folder, "cpu")
    text = "bad cab,\n  'nomad'!"
    assert made.encode(text) == [CHARACTERS.index(c) for c in text]
    assert made.decode(made.encode(text)) == text
    assert "license:" not in (folder / "README.md").read_text(encoding="utf-8"), "its author has not stated one here"


def test_an_imported_folder_samples_in_the_pipeline(checkout: Path, tmp_path: Path) -> None:
    from transformers import pipeline

    folder = nanogpt.import_checkpoint(checkout / "out-letters" / "ckpt.pt", tmp_path / "imported")
    assert pipeline("text-generation", model=str(folder), device="cpu")("bad")[0]["generated_text"].startswith("bad")


def test_another_tokenizer_can_be_named(tmp_path: Path) -> None:
    made = tokenizer.train_bpe(["a bad cab, a nomad's cab"], 270)
    made.save_pretrained(tmp_path / "bpe")
    torch.save(checkpoint(vocab_size=320), tmp_path / "ckpt.pt")
    folder = nanogpt.import_checkpoint(tmp_path / "ckpt.pt", tmp_path / "imported", tokenizer=str(tmp_path / "bpe"))
    gpt2, read = exported.load_folder(folder, "cpu")
    assert gpt2.config.vocab_size == 320
    assert gpt2.config.eos_token_id == read.eos_token_id == made.eos_token_id


def damaged(tmp_path: Path, case: str) -> Path:
    path = tmp_path / "ckpt.pt"
    good = checkpoint()
    if case == "text":
        path.write_text("no checkpoint", encoding="utf-8")
    elif case == "code":
        torch.save({**good, "hook": Evil()}, path)
    elif case == "weights alone":
        torch.save(good["model"], path)
    elif case == "another model":
        torch.save({**good, "model": {"conv.weight": torch.zeros(3)}}, path)
    elif case == "wrong shape":
        torch.save({**good, "model": {**good["model"], "transformer.h.0.mlp.c_fc.weight": torch.zeros(3, 3)}}, path)
    elif case == "too few heads":
        torch.save({**good, "model_args": {**good["model_args"], "n_head": 3}}, path)
    return path


BOMB = torch.zeros(1).expand(10**6, 10**6)


@pytest.mark.parametrize(
    "change",
    [
        {"model": [torch.zeros(3)]},
        {"model": {0: torch.zeros(3)}},
        {"model": {}},
        {"model": {"transformer.wte.weight": "text"}},
        {"model": {"transformer.wte.weight": BOMB, "transformer.wpe.weight": torch.zeros(8, 4)}},
        {"model_args": ["n_layer", 2]},
        {"model_args": {1: 2}},
        *({"model_args": {"n_layer": 2, "n_head": 2, "vocab_size": 65, **change}} for change in (
            {"vocab_size": "x"}, {"n_head": 0}, {"n_head": -2}, {"n_layer": 10**9}, {"n_layer": 0}, {"n_layer": 1.5},
            {"n_layer": "two"}, {"n_head": float("inf")}, {"n_layer": True}, {"dropout": float("nan")},
            {"dropout": "x"}, {"n_layer": 10**400}, {"n_layer": [[2]]},
        )),
    ],
    ids=str,
)  # fmt: skip
def test_a_hostile_checkpoint_is_one_message(tmp_path: Path, change: dict[str, Any]) -> None:
    torch.save({**checkpoint(), **change}, tmp_path / "ckpt.pt")
    vocabulary = {} if change.get("model_args", {}) and "x" in str(change) else {"meta": write_meta(tmp_path / "m.pkl")}
    with pytest.raises(InputError):
        nanogpt.import_checkpoint(tmp_path / "ckpt.pt", tmp_path / "imported", **vocabulary)
    assert not (tmp_path / "imported").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8), "does not hold tensors"),
        (lambda t: t.to(torch.int8), "are not those of nanoGPT's GPT: transformer.wpe.weight"),
        (lambda t: t * math.nan, "transformer.wpe.weight holds numbers that are not finite"),
    ],
    ids=["quantized", "integers", "diverged"],
)
@pytest.mark.filterwarnings("ignore::UserWarning")  # torch warns about its own quantized tensors
def test_weights_that_are_none_are_not_imported(tmp_path: Path, change: Any, message: str) -> None:
    good = checkpoint()
    model = good["model"] | {"transformer.wpe.weight": change(good["model"]["transformer.wpe.weight"])}
    torch.save(good | {"model": model}, tmp_path / "ckpt.pt")
    with pytest.raises(InputError, match=message):
        nanogpt.import_checkpoint(tmp_path / "ckpt.pt", tmp_path / "imported", write_meta(tmp_path / "meta.pkl"))
    assert not (tmp_path / "imported").exists()


@pytest.mark.parametrize("dataset", ["x" * 5000, "a\0b", {"": []}, 5, "..", "\ud800"])
def test_a_dataset_that_is_no_name_is_passed_over(tmp_path: Path, dataset: Any) -> None:
    torch.save(checkpoint() | {"config": {"dataset": dataset}}, tmp_path / "ckpt.pt")
    with pytest.raises(InputError, match=r"there is no meta\.pkl around it"):
        nanogpt.import_checkpoint(tmp_path / "ckpt.pt", tmp_path / "imported")


def test_a_head_that_nanogpt_cannot_have_is_refused(tmp_path: Path) -> None:
    """It is unclear which of the two it means."""
    good = checkpoint()
    model = good["model"] | {"lm_head.weight": good["model"]["lm_head.weight"] + 1}
    torch.save(good | {"model": model}, tmp_path / "ckpt.pt")
    with pytest.raises(InputError, match=r"lm_head\.weight is not its embedding"):
        nanogpt.import_checkpoint(tmp_path / "ckpt.pt", tmp_path / "imported", write_meta(tmp_path / "meta.pkl"))


class Evil:
    """Writes a file when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("touched"),))


@pytest.mark.parametrize("content", [Evil(), 10**5000], ids=["code", "a number of 5,000 digits"])
def test_nobody_is_told_to_run_what_is_in_a_checkpoint(tmp_path: Path, content: Any) -> None:
    """torch's own message continues: set weights_only to False."""
    torch.save({**checkpoint(), "more": content}, tmp_path / "ckpt.pt")
    with pytest.raises(InputError, match="holds more than tensors and plain values") as caught:
        nanogpt.import_checkpoint(tmp_path / "ckpt.pt", tmp_path / "imported")
    assert "weights_only" not in str(caught.value)


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("missing", "no such file"),
        ("text", "cannot be loaded as weights"),
        ("code", "cannot be loaded as weights"),
        ("weights alone", "not a checkpoint of nanoGPT"),
        ("another model", "not those of"),
        ("wrong shape", "not those of"),
        ("too few heads", "not those of a GPT.*n_head 3"),
    ],
)
@pytest.mark.usefixtures("in_temporary_folder")
def test_what_is_no_checkpoint_is_one_message_and_runs_nothing(tmp_path: Path, case: str, message: str) -> None:
    meta = write_meta(tmp_path / "meta.pkl")
    with pytest.raises(InputError, match=message):
        nanogpt.import_checkpoint(damaged(tmp_path, case), tmp_path / "imported", meta=meta)
    assert not Path("touched").exists()
    assert not (tmp_path / "imported").exists()


@pytest.mark.parametrize("held", [True, False])
def test_a_folder_in_place_of_the_checkpoint_is_told_apart(tmp_path: Path, held: bool) -> None:
    if held:
        torch.save(checkpoint(), tmp_path / "ckpt.pt")
    with pytest.raises(InputError, match="is a folder, not a file → ") as caught:
        nanogpt.import_checkpoint(tmp_path, tmp_path / "imported")
    assert str(tmp_path / "ckpt.pt" if held else "out/ckpt.pt") in str(caught.value)


def test_a_vocabulary_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    torch.save(checkpoint(), tmp_path / "ckpt.pt")
    with pytest.raises(InputError, match=r"no meta\.pkl"):
        nanogpt.import_checkpoint(tmp_path / "ckpt.pt", tmp_path / "imported")
    torch.save(checkpoint(vocab_size=100_000), tmp_path / "large.pt")
    with pytest.raises(InputError, match=r"vocabulary is not GPT-2's, and there is no meta\.pkl"):
        nanogpt.import_checkpoint(tmp_path / "large.pt", tmp_path / "imported")
    torch.save(checkpoint(vocab_size=50304), tmp_path / "gpt2.pt")
    with pytest.raises(InputError, match="GPT-2's tokenizer is not on this machine"):
        nanogpt.import_checkpoint(tmp_path / "gpt2.pt", tmp_path / "imported")
    (tmp_path / "imported").mkdir()
    (tmp_path / "imported" / "notes.txt").touch()
    with pytest.raises(InputError, match="in use"):
        nanogpt.import_checkpoint(tmp_path / "ckpt.pt", tmp_path / "imported")


@pytest.mark.parametrize(("rows", "characters"), [(21, 100), (21, 20), (30, 21), (192, 21)])
@pytest.mark.parametrize("named", [True, False])
def test_another_datasets_characters_are_refused(tmp_path: Path, rows: int, characters: int, named: bool) -> None:
    """Otherwise the model would write gibberish."""
    torch.save(checkpoint(vocab_size=rows), tmp_path / "ckpt.pt")
    other = write_meta(tmp_path / ("other.pkl" if named else "meta.pkl"), [chr(0x4E00 + i) for i in range(characters)])
    message = f"{re.escape(str(other))}: has {characters} tokens, the model {rows}: they do not belong together"
    with pytest.raises(InputError, match=message):
        nanogpt.import_checkpoint(tmp_path / "ckpt.pt", tmp_path / "imported", meta=other if named else None)


# ---------------------------------------------------------------------------------------------- exporting


def test_there_and_back_again(checkout: Path, tmp_path: Path) -> None:
    folder = nanogpt.import_checkpoint(checkout / "out-letters" / "ckpt.pt", tmp_path / "imported")
    notes = nanogpt.export_checkpoint(folder, tmp_path / "letters")
    assert len(notes) == 1
    assert "data/letters/meta.pkl" in notes[0]
    back = torch.load(tmp_path / "letters" / "ckpt.pt", weights_only=True)
    first = checkpoint()
    assert back["model"].keys() == first["model"].keys()
    assert all(torch.equal(back["model"][name], first["model"][name]) for name in first["model"])
    assert back["model_args"] == first["model_args"]
    assert tokenizer.read_meta(tmp_path / "letters" / "meta.pkl") == CHARACTERS


def test_a_model_of_ours_keeps_its_logits_but_for_gelu(tmp_path: Path) -> None:
    made = tokenizer.train_char(["bad cab é"])
    shape = {"n_positions": BLOCK, "n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "initializer_range": 0.2}
    gpt2 = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(made), activation_function="gelu_pytorch_tanh", **shape, bos_token_id=0, eos_token_id=0
        )
    ).eval()
    (tmp_path / "run").mkdir()
    export.write(tmp_path / "run", gpt2, made, export.weights(gpt2.state_dict()))
    notes = nanogpt.export_checkpoint(tmp_path / "run", tmp_path / "out")
    assert any("GELU" in note for note in notes)
    ids = torch.arange(BLOCK)[None]
    state = torch.load(tmp_path / "out" / "ckpt.pt", weights_only=True)["model"]
    with torch.no_grad():
        assert (nanogpt_logits(state, ids) - gpt2(ids).logits).abs().max() < 1e-2
    meta = pickle.loads((tmp_path / "out" / "meta.pkl").read_bytes())
    text = "bad cab é, ~Z~"  # includes ASCII characters that the corpus lacks
    assert "".join(meta["itos"][meta["stoi"][c]] for c in text) == text
    assert [meta["stoi"][c] for c in text] == made.encode(text)
    assert sorted(meta["itos"]) == list(range(len(made)))
    with pytest.raises(InputError, match="exists already"):
        nanogpt.export_checkpoint(tmp_path / "run", tmp_path / "out")

    # And back: the same logits and tokens, of text with characters that the corpus lacks too.
    back = nanogpt.import_checkpoint(tmp_path / "out" / "ckpt.pt", tmp_path / "back")  # with the meta.pkl beside it
    again, read = exported.load_folder(back, "cpu")
    with torch.no_grad():
        assert torch.equal(again(ids).logits, gpt2(ids).logits)
    assert tokenizer.fingerprint(read) == tokenizer.fingerprint(made)
    text += "\u4e2d\U0001f600\r\n"
    assert read.encode(text) == made.encode(text)
    assert read.decode(read.encode(text)) == text


@pytest.mark.parametrize(
    "change",
    [{"tie_word_embeddings": False}, {"scale_attn_by_inverse_layer_idx": True}, {"n_inner": 7},
     {"activation_function": "relu"}, {"layer_norm_epsilon": 1e-3}],
    ids=str,
)  # fmt: skip
def test_what_nanogpt_does_not_know_is_not_exported(tmp_path: Path, change: dict[str, Any]) -> None:
    """nanoGPT would load the file, and compute something else."""
    made = tokenizer.train_char(["bad cab"])
    shape = {"n_positions": BLOCK, "n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS}
    gpt2 = GPT2LMHeadModel(GPT2Config(**{"vocab_size": len(made), "activation_function": "gelu", **shape, **change}))
    (tmp_path / "run").mkdir()
    export.write(tmp_path / "run", gpt2, made, export.weights(gpt2.state_dict()))
    [key] = change
    with pytest.raises(InputError, match=f"its {key} is {change[key]}, which nanoGPT does not know"):
        nanogpt.export_checkpoint(tmp_path / "run", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_exported_vocabulary_beside_token_files_is_a_dataset(tmp_path: Path) -> None:
    made = tokenizer.train_char(["bad cab"])
    text = "bad cab, a b\u00e9d\n" * 40
    np.array(made.encode(text), dtype="<u2").tofile(tmp_path / "train.bin")
    np.array(made.encode(text), dtype="<u2").tofile(tmp_path / "val.bin")
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps(nanogpt._meta(made)))
    corpus = prepare(configs.build({"dataset": str(tmp_path), "block_size": 16, "batch_size": 2}, "test"))
    assert corpus.tokenizer.decode(corpus.train.blocks([0], 16)[0]) == text[:16]
    assert tokenizer.fingerprint(corpus.tokenizer) == tokenizer.fingerprint(made)


@pytest.mark.e2e
def test_the_scripts(checkout: Path, tmp_path: Path, run_script: Any) -> None:
    ckpt = checkout / "out-letters" / "ckpt.pt"
    done = run_script("import_nanogpt.py", ckpt, tmp_path / "imported")
    assert (done.returncode, done.stderr) == (0, "")
    assert "scripts" not in (tmp_path / "imported" / "README.md").read_text(), "the card names no path of this machine"
    done = run_script("export_nanogpt.py", tmp_path / "imported", tmp_path / "back")
    assert (done.returncode, done.stderr) == (0, "")
    assert "note: copy" in done.stdout
    done = run_script("import_nanogpt.py", ckpt, tmp_path / "imported")
    assert done.returncode == 2
    assert "in use" in done.stderr


# ---------------------------------------------------------------------------------------------- prepared data


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a pickle",
        pickle.dumps({"itos": {0: "a", 1: "a"}}),
        pickle.dumps({"itos": {0: "ab"}}),
        pickle.dumps({"itos": {0: "a", 2: "b"}}),
        pickle.dumps({"stoi": {}}),
        pickle.dumps({"itos": {}}),
        pickle.dumps({"itos": {0: "a"}, tokenizer.BYTE_IDS: [0]}),
        pickle.dumps({"itos": {0: "a"}, tokenizer.BYTE_IDS: [1]}),
        pickle.dumps({"itos": {0: "a"}, tokenizer.BYTE_IDS: 7}),
        pickle.dumps({"itos": dict(enumerate("a" * 300)), tokenizer.BYTE_IDS: list(range(256))}),
        pickle.dumps({"itos": dict(enumerate("a" * 256)), tokenizer.BYTE_IDS: list(range(-256, 0))}),
        pickle.dumps(["a"]),
        pickle.dumps({"itos": {0: "a"}, "hook": Evil()}),
        b'cbuiltins\neval\n(S\'open("touched", "w")\'\ntR.',
    ],
)
@pytest.mark.usefixtures("in_temporary_folder")
def test_a_vocabulary_is_read_without_executing_anything(content: bytes) -> None:
    Path("meta.pkl").write_bytes(content)
    with pytest.raises(InputError, match=r"meta\.pkl"):
        tokenizer.read_meta("meta.pkl")
    assert not Path("touched").exists()


# ---------------------------------------------------------------------------------------------- configuration files


@pytest.fixture
def write_config(tmp_path: Path) -> Any:
    """write_config(lines) → the path of a configuration file in a folder with nanoGPT's layout."""

    def write(text: str) -> Path:
        path = tmp_path / "config" / "mine.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(textwrap.dedent(text), encoding="utf-8")
        return path

    return write


def test_a_character_level_configuration_is_a_recipe(write_config: Any) -> None:
    path = write_config(
        """
        # a small model
        out_dir = 'out-mine'
        eval_interval = 250 # often
        always_save_checkpoint = False
        wandb_log = False
        wandb_project = 'mine'
        wandb_run_name = 'mini'
        dataset = 'shakespeare_char'
        gradient_accumulation_steps = 1
        batch_size = 64
        block_size = 256
        n_layer = 6
        n_head = 6
        n_embd = 384
        dropout = 0.2
        learning_rate = 1e-3
        max_iters = 5000
        lr_decay_iters = 5000
        min_lr = 1e-4
        beta2 = 0.99
        warmup_iters = 100
        """
    )
    config = configs.load(path, {})
    assert (config.dataset, config.tokenizer, config.out_dir) == ("shakespeare", "char", "out-mine")
    assert (config.batch_size, config.n_embd, config.dropout, config.beta2) == (64, 384, 0.2, 0.99)
    assert (config.lr_schedule, config.warmup_iters, config.min_lr) == ("cosine", 100, 1e-4)
    assert (config.project, config.report_to) == ("mine", "none")


def test_what_is_left_out_has_nanogpts_defaults(write_config: Any) -> None:
    config = configs.build(
        configs.read_recipe(write_config("dataset = 'openwebtext'\ngradient_accumulation_steps = 5 * 8")), "mine"
    )
    assert (config.max_iters, config.warmup_iters, config.lr_decay_iters, config.min_lr) == (
        600_000,
        2000,
        600_000,
        6e-5,
    )
    assert (config.eval_interval, config.global_batch, config.tokenizer) == (2000, 480, "gpt2")


def test_a_constant_rate_and_a_pretrained_model(write_config: Any) -> None:
    path = write_config(
        """
        import time
        wandb_run_name = 'ft-' + str(time.time())
        dataset = 'shakespeare'
        init_from = 'gpt2-xl'
        batch_size = 1
        gradient_accumulation_steps = 32
        max_iters = 20
        learning_rate = 3e-5
        decay_lr = False
        """
    )
    config = configs.build(configs.read_recipe(path), "mine")
    assert (config.lr_schedule, config.warmup_iters, config.init_from) == ("constant", 0, "gpt2-xl")
    assert config.tokenizer == "gpt2-xl"


def test_arithmetic_and_names_assigned_before(write_config: Any) -> None:
    values = configs.read_recipe(
        write_config("base = 2 * (3 + 1)\nn_embd = base * 16\nmin_lr = -(-6e-4) / 10\nn_layer: int = 7 // 2")
    )
    assert (values["n_embd"], values["min_lr"], values["n_layer"]) == (128, pytest.approx(6e-5), 3)
    assert "base" not in values


def test_a_typo_is_found(write_config: Any) -> None:
    with pytest.raises(InputError, match="did you mean 'learning_rate'"):
        configs.build(configs.read_recipe(write_config("learning_rat = 1e-3")), "mine")


def test_a_prepared_dataset_around_the_file_is_used(write_config: Any, tmp_path: Path) -> None:
    path = write_config("dataset = 'mine'")
    folder = tmp_path / "data" / "mine"
    write_meta(folder / "meta.pkl")
    for name in ("train.bin", "val.bin"):
        np.zeros(100, dtype=np.uint16).tofile(folder / name)
    values = configs.read_recipe(path)
    assert (values["dataset"], values["tokenizer"]) == (str(folder), "char")
    (folder / "meta.pkl").unlink()
    assert configs.read_recipe(path)["tokenizer"] == "gpt2"


@pytest.mark.parametrize(
    "line",
    [
        "batch_size = open('touched', 'w')",
        "open('touched', 'w')",
        "exec(\"open('touched', 'w')\")",
        "for i in range(3): batch_size = i",
        "if True: batch_size = 3",
        "def batch_size(): pass",
        "batch_size = [1, 2]",
        "batch_size = 9 ** 9 ** 9",
        "out_dir = 'x' * 10 ** 12",
        "batch_size = unknown",
        "batch_size = 1 / 0",
        "batch_size, n_layer = 1, 2",
        "batch_size = ",
        "batch_size += 1",
    ],
)
@pytest.mark.usefixtures("in_temporary_folder")
def test_anything_else_is_one_message_with_its_line(write_config: Any, line: str) -> None:
    with pytest.raises(InputError, match="line 2"):
        configs.read_recipe(write_config(f"n_layer = 2\n{line}\n"))
    assert not Path("touched").exists()


def test_a_missing_configuration_is_one_message() -> None:
    with pytest.raises(InputError, match="no such file"):
        configs.read_recipe("nowhere.py")
