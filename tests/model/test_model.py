"""The model is GPT-2: its loss is Transformers' loss, documents can be kept apart, and pretrained weights load."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import TWO
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.attention import flex_attention
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from hfgpt import config
from hfgpt.base.errors import InputError
from hfgpt.config import Config
from hfgpt.data import tokenizer as tokenizers
from hfgpt.model import folder as folders
from hfgpt.model import gpt2 as model
from hfgpt.model import kernels, sizes
from hfgpt.share import export

END = 0  # the end-of-text token of these tests
VOCABULARY = 13


def recipe(**values: Any) -> Config:
    small = {"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 12, "tokenizer": "bpe"}
    return config.build({**small, **values}, "test")


def build(**values: Any) -> model.LanguageModel:
    torch.manual_seed(0)
    network = model.build(recipe(**values), VOCABULARY, END)
    for name, parameter in network.named_parameters():  # as after training: fresh biases are 0 and hide mistakes
        if parameter.dim() == 1:
            torch.manual_seed(len(name))
            torch.nn.init.normal_(parameter, std=0.5)
    return network.eval()


def tokens(*shape: int, seed: int = 1) -> Tensor:
    return torch.randint(1, VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))


# -------------------------------------------------------------------------------------------------------------- shape


def test_the_chapters_names_become_gpt2s() -> None:
    made = model.gpt2_config(recipe(n_layer=3, n_head=4, n_embd=20, block_size=7, dropout=0.25), 11, None)
    expected = {
        "n_layer": 3,
        "n_head": 4,
        "n_embd": 20,
        "n_positions": 7,
        "vocab_size": 11,
        "embd_pdrop": 0.25,
        "attn_pdrop": 0.25,
        "resid_pdrop": 0.25,
        "bos_token_id": None,
        "eos_token_id": None,
        "tie_word_embeddings": True,
    }
    assert {key: getattr(made, key) for key in expected} == expected


def test_gpt2_has_its_published_number_of_parameters() -> None:
    with torch.device("meta"):
        gpt2 = GPT2LMHeadModel(model.gpt2_config(config.build({"tokenizer": "gpt2"}, "test"), 50257, None))
    assert model.parameter_count(model.LanguageModel(gpt2)) == 124_439_808  # llm.c, nanoGPT


def test_the_parameter_count_is_transformers_and_the_chapters_exact_one() -> None:
    network = build()
    layers, width, block = 2, 16, 12
    matrices = 12 * layers * width**2
    vectors = layers * (4 + 3 + 1 + 4 + 1) * width + 2 * width  # two norms and four biases per block; the last norm
    assert model.parameter_count(network) == network.gpt2.num_parameters()
    assert model.parameter_count(network) == matrices + vectors + (VOCABULARY + block) * width


VARIANTS: list[dict[str, Any]] = [
    {"n_inner": 24},
    {"activation_function": "gelu_new"},
    {"activation_function": "relu2", "n_inner": 40},
    {"tie_word_embeddings": False},
]


@pytest.mark.parametrize("values", VARIANTS)
def test_other_shapes_are_gpt2s_too(values: dict[str, Any], tmp_path: Path) -> None:
    """Transformers alone loads them with the same logits, and counts as many parameters as the formulas."""
    network, block = build(**values), tokens(2, 13)
    inputs, targets = block[:, :-1], block[:, 1:]
    export.write(tmp_path, network.gpt2, tokenizers.train_char(["text"]), export.weights(network.state_dict()))
    loaded = GPT2LMHeadModel.from_pretrained(tmp_path).eval()
    logits = loaded(inputs).logits
    torch.testing.assert_close(network(inputs, targets), -logits.log_softmax(-1).gather(2, targets[..., None]).sum())
    count = sizes.parameters(recipe(**values), VOCABULARY).total
    assert count == loaded.num_parameters() == model.parameter_count(network)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert sizes.exported_parameters(saved).total == count
    assert folders.load_model(tmp_path).num_parameters() == count


def test_a_pretrained_head_of_its_own_stays(tmp_path: Path) -> None:
    """An earlier version left it out of checkpoints and exports, and Transformers then drew a random one."""
    shape = GPT2Config(n_layer=1, n_head=2, n_embd=8, n_positions=12, vocab_size=VOCABULARY, tie_word_embeddings=False)
    GPT2LMHeadModel(shape).save_pretrained(tmp_path / "old")
    network = model.build(recipe(init_from=str(tmp_path / "old")), VOCABULARY, None)
    kept = export.with_tied_head(export.weights(network.state_dict()))
    assert torch.equal(kept["lm_head.weight"], network.gpt2.lm_head.weight)
    assert not torch.equal(kept["lm_head.weight"], network.gpt2.transformer.wte.weight)


def test_the_initial_weights_come_from_the_seed() -> None:
    torch.manual_seed(7)
    first = model.build(recipe(), VOCABULARY, END).state_dict()
    torch.manual_seed(7)
    second = model.build(recipe(), VOCABULARY, END).state_dict()
    third = model.build(recipe(), VOCABULARY, END).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["gpt2.transformer.wte.weight"], third["gpt2.transformer.wte.weight"])


def test_the_initial_weights_are_gpt2s() -> None:
    """N(0, 0.02), with residual projections divided by the root of their number (GPT-2 paper, 2.3)."""
    torch.manual_seed(0)
    network = model.build(recipe(n_layer=8, n_embd=128), VOCABULARY, END)
    block = network.gpt2.transformer.h[3]
    assert block.mlp.c_fc.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert block.mlp.c_proj.weight.std().item() == pytest.approx(0.02 / (2 * 8) ** 0.5, rel=0.05)
    assert block.attn.c_proj.weight.std().item() == pytest.approx(0.02 / (2 * 8) ** 0.5, rel=0.05)


# --------------------------------------------------------------------------------------------------------------- loss


@pytest.mark.parametrize("rows", [1, 3])
def test_the_loss_is_the_cross_entropy_of_transformers_own_logits(rows: int) -> None:
    network, block = build(), tokens(rows, 13)
    inputs, targets = block[:, :-1], block[:, 1:]
    logits = network.gpt2(inputs, use_cache=False).logits
    expected = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
    torch.testing.assert_close(network(inputs, targets), expected)
    mean = network.gpt2(inputs, labels=targets, shift_labels=targets.contiguous()).loss
    torch.testing.assert_close(network(inputs, targets) / targets.numel(), mean)


def test_its_gradients_are_transformers_own() -> None:
    block = tokens(2, 13)
    ours, theirs = build(), build()
    ours(block[:, :-1], block[:, 1:]).backward()
    targets = block[:, 1:].contiguous()
    mean = theirs.gpt2(block[:, :-1], labels=targets, shift_labels=targets).loss
    (mean * targets.numel()).backward()
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=name)


def test_losses_add_up_however_ragged_the_targets() -> None:
    network, block = build(), tokens(3, 13)
    inputs, targets = block[:, :-1], block[:, 1:].clone()
    targets[0, 5:] = targets[2, :] = targets[1, 3] = model.IGNORED
    rows = sum(network(inputs[i : i + 1], targets[i : i + 1]) for i in range(3))
    torch.testing.assert_close(network(inputs, targets), rows)
    assert network(inputs[2:], targets[2:]) == 0
    picked = F.log_softmax(network.gpt2(inputs, use_cache=False).logits, -1).gather(-1, targets.clamp(0)[..., None])
    torch.testing.assert_close(network(inputs, targets), -picked[targets != model.IGNORED].sum())


def test_a_token_sees_no_later_one() -> None:
    network, block = build(), tokens(1, 12)
    changed = block.clone()
    changed[0, 8:] = tokens(1, 4, seed=5)
    before, after = network.hidden(block), network.hidden(changed)
    assert torch.equal(before[:, :8], after[:, :8])
    assert not torch.allclose(before[:, 8:], after[:, 8:])


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_dropout_is_the_recipes_and_only_in_training(dropout: float) -> None:
    network, block = build(dropout=dropout), tokens(2, 13)
    inputs = block[:, :-1]
    assert torch.equal(network.hidden(inputs), network.hidden(inputs))
    network.train()
    assert torch.equal(network.hidden(inputs), network.hidden(inputs)) == (dropout == 0.0)
    drops = {module.p for module in network.modules() if isinstance(module, torch.nn.Dropout)}
    assert drops == {dropout}
    assert network.gpt2.config.attn_pdrop == dropout


def test_recomputed_activations_give_the_same_gradients() -> None:
    block = tokens(2, 13)
    gradients = []
    for checkpointing in (False, True):
        network = build(activation_checkpointing=checkpointing).train()
        network(block[:, :-1], block[:, 1:]).backward()
        gradients.append([parameter.grad for parameter in network.parameters()])
        assert network.gpt2.is_activation_checkpointing == checkpointing
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated")  # torch warns while it traces its own functions
@pytest.mark.parametrize(
    "values",
    [{}, {"dropout": 0.1}, {"activation_checkpointing": True}, {"document_mask": True}, {"z_loss": 1e-3},
     {"activation_function": "relu2", "tie_word_embeddings": False}],
)  # fmt: skip
def test_the_compiled_step_is_one_graph(values: dict[str, Any]) -> None:
    """Compiled in bfloat16, as on a card; a graph break would leave the rest of the step in Python."""
    torch._dynamo.reset()
    network, block = build(**values).train(), tokens(2, 13)
    compiled = torch.compile(network, fullgraph=True, dynamic=False, backend="aot_eager")
    losses = []
    for run in (network, compiled):
        network.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = run(block[:, :-1], block[:, 1:])
        loss.backward()
        losses.append(float(loss.detach()))
    assert all(parameter.grad is not None for parameter in network.parameters())
    if not values.get("dropout"):
        assert losses[0] == pytest.approx(losses[1], rel=1e-2)


# ---------------------------------------------------------------------------------------------------------- documents


def test_positions_start_again_with_the_end_of_text_that_opens_a_document() -> None:
    ids = torch.tensor([[5, 5, END, 5, 5, END, END, 5]])
    assert model.document_positions(ids, END).tolist() == [[0, 1, 0, 1, 2, 0, 0, 1]]
    assert model.document_positions(torch.tensor([[END, 5, 5]]), END).tolist() == [[0, 1, 2]]


def test_the_mask_is_causal_and_stays_inside_a_document() -> None:
    allowed = model.document_mask(torch.tensor([[0, 1, 0, 1, 2]]))[0, 0].int()
    assert allowed.tolist() == [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 1, 1, 1]]


@pytest.fixture
def as_on_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use a block mask on a CPU too: torch has FlexAttention's gradients there, but its entry point refuses them."""
    monkeypatch.setattr(kernels, "takes_block_masks", lambda device, width, dropout: not dropout)
    monkeypatch.setattr(flex_attention, "_validate_device", lambda query, key, value: None)


@pytest.mark.parametrize(("width", "takes"), [(8, False), (16, True), (128, True), (192, False)])
def test_a_head_that_is_too_wide_for_some_cards_keeps_the_boolean_mask(
    width: int, takes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert kernels.takes_block_masks(torch.device("cuda"), width, dropout=0.0) == takes
    assert not kernels.takes_block_masks(torch.device("cuda"), width, dropout=0.1)


def step_of(network: model.LanguageModel, run: Callable[..., Tensor], block: Tensor) -> tuple[Tensor, ...]:
    """Return the loss, and the gradients by parameter."""
    loss = run(block[:, :-1], block[:, 1:])
    return loss.detach(), *torch.autograd.grad(loss, list(network.parameters()))


@pytest.mark.filterwarnings("ignore")  # torch warns while it compiles
@pytest.mark.parametrize("backend", [None, "aot_eager"])
def test_a_cards_block_mask_gives_the_steps_of_the_boolean_mask(
    backend: str | None, as_on_a_card: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three blocks of the mask, the last one not full; eagerly, and as one graph."""
    network = build(document_mask=True, block_size=300, n_layer=1, n_embd=32)
    block = tokens(2, 301)
    block[0, [20, 140, 141, 290]] = block[1, 0] = END
    compiled = torch.compile(network, backend=backend, fullgraph=True, dynamic=False) if backend else network
    seen = step_of(network, compiled, block)
    assert isinstance(model.document_blocks(model.document_positions(block, END)), flex_attention.BlockMask)
    monkeypatch.undo()
    torch.testing.assert_close(seen, step_of(network, network, block), rtol=1e-4, atol=1e-5)


def test_another_document_changes_nothing() -> None:
    network = build(document_mask=True)
    block = tokens(1, 12)
    block[0, 6] = END
    changed = block.clone()
    changed[0, :6] = tokens(1, 6, seed=9)
    assert torch.equal(network.hidden(block)[:, 6:], network.hidden(changed)[:, 6:])
    unmasked = build(document_mask=False)
    assert not torch.allclose(unmasked.hidden(block)[:, 6:], unmasked.hidden(changed)[:, 6:])


def test_a_document_in_a_block_is_as_if_it_stood_alone() -> None:
    network = build(document_mask=True)
    block = tokens(1, 12)
    block[0, 5] = END
    alone = network.hidden(block[:, 5:])
    torch.testing.assert_close(network.hidden(block)[:, 5:], alone)


@settings(max_examples=30)
@given(st.lists(st.lists(st.sampled_from([END, 1, 2, 3]), min_size=12, max_size=12), min_size=1, max_size=3))
def test_documents_are_kept_apart_as_transformers_does(rows: list[list[int]]) -> None:
    """Transformers detects packed documents by positions that restart, without a cache and a mask.

    It also takes two consecutive ends of text (positions 0, 0) for two documents.
    """
    network, ids = build(document_mask=True), torch.tensor(rows)
    positions = model.document_positions(ids, END)
    theirs = network.gpt2.transformer(ids, position_ids=positions, use_cache=False).last_hidden_state
    torch.testing.assert_close(network.hidden(ids), theirs, rtol=1e-4, atol=1e-5)


def test_document_mask_needs_an_end_of_text() -> None:
    with pytest.raises(InputError, match="document_mask = True: the tokenizer 'bpe' has no end-of-text token"):
        model.build(recipe(document_mask=True), VOCABULARY, None)


# --------------------------------------------------------------------------------------------------------- pretrained


@pytest.fixture
def pretrained(tmp_path: Path) -> Path:
    """Return a folder with a GPT-2 of another shape than the recipe's, as `save_pretrained` writes it."""
    torch.manual_seed(3)
    folder = tmp_path / "pretrained"
    GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=8, n_positions=20, vocab_size=VOCABULARY)).save_pretrained(
        folder
    )
    return folder


def test_a_pretrained_model_brings_its_shape_and_takes_the_recipes_dropout(pretrained: Path) -> None:
    network = build(init_from=str(pretrained), n_embd=999, n_head=5, block_size=20, dropout=0.5)
    shape = network.gpt2.config
    assert (shape.n_layer, shape.n_head, shape.n_embd, shape.n_positions) == (1, 2, 8, 20)
    assert shape.embd_pdrop == shape.attn_pdrop == shape.resid_pdrop == 0.5
    assert all(parameter.dtype == torch.float32 and parameter.requires_grad for parameter in network.parameters())


def test_a_smaller_block_crops_the_positions_and_changes_no_logit(pretrained: Path) -> None:
    whole = GPT2LMHeadModel.from_pretrained(pretrained).eval()
    network = model.build(recipe(init_from=str(pretrained), block_size=6), VOCABULARY, None).eval()
    assert network.gpt2.config.n_positions == 6
    assert network.gpt2.transformer.wpe.weight.shape == (6, 8)
    assert network.gpt2.transformer.wpe.weight.requires_grad
    ids = tokens(2, 6)
    torch.testing.assert_close(network.gpt2(ids).logits, whole(ids).logits)


def test_a_larger_block_than_its_positions_is_refused(pretrained: Path) -> None:
    with pytest.raises(
        InputError, match=r"block_size = 21: .* has positions for 20 tokens → set block_size to at most 20"
    ):
        model.build(recipe(init_from=str(pretrained), block_size=21), VOCABULARY, None)


def test_a_larger_vocabulary_than_its_own_is_refused(pretrained: Path) -> None:
    with pytest.raises(InputError, match=r"tokenizer = 'bpe': has 14 tokens, and .* knows 13"):
        model.build(recipe(init_from=str(pretrained)), VOCABULARY + 1, None)
    model.build(recipe(init_from=str(pretrained)), VOCABULARY - 1, None)  # unused ids do no harm


def with_tokenizer(folder: Path, letters: str) -> PreTrainedTokenizerFast:
    """Save a character-level tokenizer of 256 bytes and these letters into the folder."""
    made = tokenizers.train_char([letters])
    made.save_pretrained(folder)
    return made


def test_another_vocabulary_of_the_same_size_is_refused(tmp_path: Path) -> None:
    """Its ids would silently mean other characters."""
    shape = GPT2Config(n_layer=1, n_head=2, n_embd=8, n_positions=20, vocab_size=260)
    GPT2LMHeadModel(shape).save_pretrained(tmp_path)
    own, other = with_tokenizer(tmp_path, "abcd"), tokenizers.train_char(["abce"])
    values = recipe(init_from=str(tmp_path), tokenizer="char")
    with pytest.raises(InputError, match=r"tokenizer = 'char': is not the one that .* was trained with"):
        model.build(values, 260, None, other)
    with pytest.raises(InputError, match="new_embeddings"):
        model.build(values, 259, None, tokenizers.train_char(["abc"]))
    model.build(values, 260, None, own)
    model.build(recipe(init_from=str(tmp_path)), 260, None, own)


@pytest.mark.parametrize("tied", [True, False])
def test_new_embeddings_are_asked_for_by_name(tmp_path: Path, tied: bool) -> None:
    shape = GPT2Config(n_layer=1, n_head=2, n_embd=8, n_positions=12, vocab_size=260, tie_word_embeddings=tied)
    old = GPT2LMHeadModel(shape)
    old.save_pretrained(tmp_path)
    with_tokenizer(tmp_path, "abcd")
    values = recipe(init_from=str(tmp_path), tokenizer="char", new_embeddings=True)
    network = model.build(values, 300, 7, tokenizers.train_char(["other letters"])).gpt2
    assert network.transformer.wte.weight.shape == network.lm_head.weight.shape == (300, 8)
    assert (network.transformer.wte.weight is network.lm_head.weight) == tied
    assert network.transformer.wte.weight.std().item() == pytest.approx(0.02, rel=0.2)
    assert (network.config.vocab_size, network.config.eos_token_id) == (300, 7)
    assert torch.equal(network.transformer.h[0].mlp.c_fc.weight, old.transformer.h[0].mlp.c_fc.weight)
    logits = network(tokens(1, 12)).logits
    network.save_pretrained(tmp_path / "new")
    torch.testing.assert_close(GPT2LMHeadModel.from_pretrained(tmp_path / "new")(tokens(1, 12)).logits, logits)


def spoiled(folder: Path, what: str) -> Path:
    """Return the folder with one fault."""
    weights = folder / "model.safetensors"
    if what == "no weights":
        weights.unlink()
    elif what == "truncated":
        weights.write_bytes(weights.read_bytes()[:500])
    elif what == "pickle":
        weights.unlink()
        torch.save({"transformer.wte.weight": torch.zeros(1)}, folder / "pytorch_model.bin")
    elif what == "config":
        (folder / "config.json").write_text("{")
    elif what == "other model":
        shape = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=9)
        BertModel(shape).save_pretrained(folder)
    elif what == "a weight is missing":
        kept = {key: value for key, value in load_file(weights).items() if "c_fc" not in key}
        save_file(kept, weights, {"format": "pt"})
    elif what == "shapes":
        save_file({"transformer.wte.weight": torch.zeros(3, 3)}, weights, {"format": "pt"})
    return folder


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    "what", ["no weights", "truncated", "pickle", "config", "other model", "a weight is missing", "shapes"]
)
def test_a_folder_that_is_no_gpt2_is_named(pretrained: Path, what: str) -> None:
    folder = spoiled(pretrained, what)
    with pytest.raises(InputError) as caught:
        model.build(recipe(init_from=str(folder)), VOCABULARY, None)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("name", ["nowhere/at-all", "./nowhere", "not a name", "../up"])
def test_a_model_that_is_not_there(name: str) -> None:
    with pytest.raises(InputError, match="init_from = "):
        model.build(recipe(init_from=name), VOCABULARY, None)


@pytest.mark.e2e
def test_the_gradients_in_fsdps_shards_are_those_of_the_whole_model(run_script: Any) -> None:
    done = run_script(Path(__file__).parent / "sharded.py", launch=TWO)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[-1]) < 1e-4
