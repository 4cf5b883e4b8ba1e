"""The model: the only place that turns the chapter's names into a GPT2LMHeadModel.

In:  a Config and the vocabulary size.
Out: :class:`LanguageModel`, which the loop trains: token ids and targets in, the summed loss out. Its `.gpt2` is the
     plain Transformers model that is saved and exported.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import snapshot_download
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.activations import GELUTanh, NewGELUActivation

from hfgpt.base.errors import InputError, first_line
from hfgpt.base.files import expanded
from hfgpt.base.language import _
from hfgpt.base.terminal import say_reading
from hfgpt.config import Config
from hfgpt.data import tokenizer as tokenizers
from hfgpt.model import head, kernels, optim
from hfgpt.model.folder import load_model

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

IGNORED = -100  # target without a loss, as everywhere in Transformers


class LanguageModel(nn.Module):
    """GPT-2 with its loss inside, so that DDP, FSDP and torch.compile wrap one module.

    The forward pass runs GPT-2's own blocks. It omits what training does not need: the KV cache, and the detection of
    packed sequences, which under torch.compile would always build a mask and so disable the fast attention.

    Args:
        document_end: the end-of-text token, to restrict attention to a document; None: a block is one context.
        z_loss: see :func:`hfgpt.model.head.linear_cross_entropy`.
    """

    def __init__(self, gpt2: GPT2LMHeadModel, document_end: int | None = None, z_loss: float = 0.0) -> None:
        super().__init__()
        self.gpt2 = gpt2
        self.document_end, self.z_loss = document_end, z_loss
        for module in list(gpt2.modules()):
            for name, child in module.named_children():
                if type(child) is nn.Dropout:
                    setattr(module, name, kernels.Dropout(child.p))
                elif type(child) is NewGELUActivation:  # GPT-2's default: eight Python operations
                    setattr(module, name, GELUTanh())  # the same function, one kernel

    def forward(self, input_ids: Tensor, targets: Tensor) -> Tensor:
        """Return the summed negative log-likelihood of the targets, in nats, float32.

        Args:
            input_ids: (batch, time) token ids.
            targets: (batch, time) the token after each input, or IGNORED.
        """
        hidden = self.hidden(input_ids).flatten(0, 1)
        return head.linear_cross_entropy(hidden, self.gpt2.lm_head.weight, targets.flatten(), IGNORED, self.z_loss)

    def hidden(self, input_ids: Tensor) -> Tensor:
        """(batch, time) ids → (batch, time, n_embd) states after the last layer norm."""
        body = self.gpt2.transformer
        positions: Tensor = torch.arange(input_ids.shape[1], device=input_ids.device)
        mask: Tensor | BlockMask | None = None
        if self.document_end is not None:
            positions = document_positions(input_ids, self.document_end)
            shape = self.gpt2.config
            dropout = shape.attn_pdrop if self.training else 0.0
            blocks = kernels.takes_block_masks(input_ids.device, shape.n_embd // shape.n_head, dropout)
            mask = document_blocks(positions) if blocks else document_mask(positions)
        hidden = body.drop(body.wte(input_ids) + body.wpe(positions))
        for block in body.h:
            hidden = block(hidden, None, mask)
        normed: Tensor = body.ln_f(hidden)
        return normed


def document_positions(input_ids: Tensor, end: int) -> Tensor:
    """(batch, time) ids → (batch, time) positions that restart at each end-of-text token.

    The end-of-text token counts as the first token of the document after it. That document's first token is then
    predicted from [end] alone. So every target in a block is trained, and depends only on its own document.
    """
    places = torch.arange(input_ids.shape[1], device=input_ids.device)
    return places - torch.where(input_ids == end, places, 0).cummax(dim=1).values


def document_mask(positions: Tensor) -> Tensor:
    """(batch, time) positions that restart with each document → (batch, 1, time, time), True where attention is
    allowed.

    The mask is causal, and a token attends only to its own document.
    """
    document = (positions == 0).cumsum(-1)
    same = document[:, :, None] == document[:, None, :]
    return same.tril()[:, None]


def document_blocks(positions: Tensor) -> BlockMask:
    """Return the same mask as a BlockMask, which marks each tile of 128 queries and keys as full, partial or empty.

    The kernel skips empty tiles. So a block of many documents takes less time than one of a single document, and no
    matrix of size time² is read.
    """
    document = (positions == 0).cumsum(-1)
    batch, time = positions.shape

    def may_look(of: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query >= key) & (document[of, query] == document[of, key])

    return create_block_mask(may_look, batch, None, time, time, device=positions.device)


def gpt2_config(config: Config, vocab_size: int, eos_token_id: int | None) -> GPT2Config:
    """Translate the chapter's names into a GPT2Config (chapter 2; GPT-2 paper).

    The default activation is the exact GELU, as in nanoGPT: on a CPU it takes a third of the time of GPT-2's tanh form.
    """
    return GPT2Config(
        vocab_size=vocab_size,
        n_positions=config.block_size,
        n_embd=config.n_embd,
        n_layer=config.n_layer,
        n_head=config.n_head,
        embd_pdrop=config.dropout,
        attn_pdrop=config.dropout,
        resid_pdrop=config.dropout,
        n_inner=config.n_inner,
        activation_function=config.activation_function,
        tie_word_embeddings=config.tie_word_embeddings,
        # GPT-2's default 50256 lies outside a small vocabulary.
        bos_token_id=eos_token_id,
        eos_token_id=eos_token_id,
    )


def build(
    config: Config, vocab_size: int, eos_token_id: int | None, tokenizer: PreTrainedTokenizerFast | None = None
) -> LanguageModel:
    """Build a model from scratch, or from pretrained weights fitted to the recipe; float32, on the CPU.

    The caller seeds torch first: the initial weights come from the global generator.

    Args:
        vocab_size: rows of the token embedding.
        eos_token_id: the end-of-text token, if the tokenizer has one.
        tokenizer: the corpus's tokenizer; pretrained weights must match it.

    Raises:
        InputError: the pretrained model cannot be loaded, or does not match block_size or the tokenizer; or
            document_mask is set and the tokenizer does not have an end-of-text token.
    """
    if config.document_mask and eos_token_id is None:
        raise InputError(
            "document_mask = True: the tokenizer {tokenizer!r} has no end-of-text token to separate documents",
            tokenizer=config.tokenizer,
        )
    if config.pretrained:
        gpt2 = _pretrained(config, vocab_size, eos_token_id, tokenizer)
    else:
        gpt2 = GPT2LMHeadModel._from_config(
            gpt2_config(config, vocab_size, eos_token_id), attn_implementation=kernels.ATTENTION
        )
        optim.scale_initial_weights(gpt2, config)
    if config.activation_checkpointing:
        gpt2.activation_checkpointing_enable()
    return LanguageModel(gpt2, eos_token_id if config.document_mask else None, config.z_loss)


def parameter_count(model: LanguageModel) -> int:
    """Return the number of trained parameters; a head tied to the token embedding is not counted again."""
    return sum(parameter.numel() for parameter in model.parameters())


# --------------------------------------------------------------------------------------------------- pretrained weights

FILES = [
    "config.json", "generation_config.json", "model.safetensors", "model-*.safetensors", "*.safetensors.index.json",
]  # fmt: skip


def _pretrained(config: Config, vocab_size: int, eos_token_id: int | None, tokenizer: Any) -> GPT2LMHeadModel:
    """Load pretrained weights that match block_size and the tokenizer."""
    source, gpt2 = config.init_from, load_pretrained(config)
    positions = gpt2.config.n_positions
    if config.block_size > positions:
        raise InputError(
            "block_size = {block}: {source} has positions for {positions} tokens → set block_size to at most "
            "{positions}",
            block=config.block_size,
            source=source,
            positions=positions,
        )
    if config.new_embeddings:
        renew_embeddings(gpt2, vocab_size, eos_token_id)
    else:
        check_vocabulary(config, gpt2, vocab_size, tokenizer)
    crop_positions(gpt2, config.block_size)
    return gpt2


def crop_positions(gpt2: GPT2LMHeadModel, block_size: int) -> None:
    """Keep the first `block_size` position embeddings, in place."""
    kept = gpt2.transformer.wpe.weight.detach()[:block_size].clone()
    gpt2.transformer.wpe = nn.Embedding(block_size, kept.shape[1], _weight=kept)
    gpt2.config.n_positions = block_size


def load_pretrained(config: Config) -> GPT2LMHeadModel:
    """Load the model of `init_from`, in float32 and with the recipe's dropout.

    Raises:
        InputError: it cannot be reached, is not a GPT-2, or is incomplete.
    """
    drop = {key: config.dropout for key in ("embd_pdrop", "attn_pdrop", "resid_pdrop")}
    try:
        return load_model(_folder(config.init_from), attn_implementation=kernels.ATTENTION, **drop)
    except InputError as error:
        raise InputError("init_from = {source!r}: {reason}", source=config.init_from, reason=error) from None


def _folder(source: str) -> Path:
    """Return a local folder, or the folder of the files downloaded from the Hub."""
    folder = expanded(source)
    if folder.is_dir():
        return folder
    say_reading(source)
    try:
        return Path(snapshot_download(source, allow_patterns=FILES))
    except Exception as error:  # any library error: wrong or unreachable id
        raise InputError(
            "cannot be loaded as a GPT-2 model: {reason}\n"
            "    → give a folder with config.json and model.safetensors, or a Hub id (with network access)",
            reason=first_line(error),
        ) from None


def check_vocabulary(
    config: Config, gpt2: GPT2LMHeadModel, vocab_size: int, tokenizer: PreTrainedTokenizerFast | None
) -> None:
    """Refuse a tokenizer that the weights were not trained with, since its ids mean other tokens.

    Raises:
        InputError: the tokenizer has more tokens than the model, or is not the one that the model was trained with.
    """
    known = gpt2.config.vocab_size
    fix = _(
        "use the model's own tokenizer (leave tokenizer out), or set new_embeddings to true: the token embeddings are "
        "then reinitialized"
    )
    if vocab_size > known:
        raise InputError(
            "tokenizer = {tokenizer!r}: has {tokens} tokens, and {source} knows {known} → {fix}",
            tokenizer=config.tokenizer,
            tokens=vocab_size,
            source=config.init_from,
            known=known,
            fix=fix,
        )
    if tokenizer is None or config.tokenizer == config.init_from:
        return
    try:
        model_tokenizer = tokenizers.load(config.init_from)
    except InputError:  # without the model's tokenizer, the meaning of its ids is unknown
        return
    if tokenizers.fingerprint(model_tokenizer) != tokenizers.fingerprint(tokenizer):
        raise InputError(
            "tokenizer = {tokenizer!r}: is not the one that {source} was trained with, so its token ids mean other "
            "characters → {fix}",
            tokenizer=config.tokenizer,
            source=config.init_from,
            fix=fix,
        )


def renew_embeddings(gpt2: GPT2LMHeadModel, vocab_size: int, eos_token_id: int | None) -> None:
    """Replace the token embeddings for another vocabulary, in place; a tied head stays tied."""
    deviation, width = gpt2.config.initializer_range, gpt2.config.n_embd
    tied = gpt2.lm_head.weight is gpt2.transformer.wte.weight
    gpt2.transformer.wte = nn.Embedding(vocab_size, width)
    gpt2.lm_head = nn.Linear(width, vocab_size, bias=False)
    nn.init.normal_(gpt2.transformer.wte.weight, std=deviation)
    if tied:
        gpt2.lm_head.weight = gpt2.transformer.wte.weight
    else:
        nn.init.normal_(gpt2.lm_head.weight, std=deviation)
    gpt2.config.vocab_size = vocab_size
    gpt2.config.bos_token_id = gpt2.config.eos_token_id = eos_token_id
