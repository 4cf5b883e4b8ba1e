"""The exported model as one ONNX file.

In:  an exported run folder and the name of a file that does not exist yet.
Out: the file: ``input_ids``, int64 (batch, time), to ``logits``, float32 (batch, time, vocabulary); both axes are
     dynamic, time up to the block size.
"""

import logging
import warnings
from pathlib import Path

import numpy as np
import onnxruntime
import onnxscript  # noqa: F401 - torch's exporter needs it; if it is missing, say so before the work
import torch
from torch import Tensor, nn
from transformers import GPT2LMHeadModel

from hfgpt.base.errors import ConversionError, InputError, first_line
from hfgpt.base.files import new_file
from hfgpt.inference import exported

TOLERANCE = 1e-4  # of the largest logit: float32 sums in another order differ far less, a wrong graph far more
ONNX_LIMIT = 2 * 1024**3  # bytes: protobuf's limit for one file


def to_onnx(folder: str | Path, target: str | Path) -> float:
    """Write the model as one ONNX file.

    The graph reads the whole text each time and has no cache. The head shares the token embedding's tensor.

    Returns: the largest difference between onnxruntime's logits and Transformers', over several batch sizes and lengths
        up to the block size.

    Raises:
        InputError: the folder holds no exported GPT-2, `target` exists or cannot be written, or the model is too
            large for one file.
        ConversionError: the exporter failed, or the logits differ.
    """
    exported.check_folder(folder)
    with new_file(target) as temporary:
        model, _ = exported.load_folder(folder, "cpu")
        size = sum(tensor.numel() * tensor.element_size() for tensor in model.parameters())
        if size >= ONNX_LIMIT:
            raise InputError(
                "{folder!r}: {size:.1f} GB of weights; one ONNX file holds at most 2 GB",
                folder=str(folder),
                size=size / 1e9,
            )
        _write_onnx(model, temporary)
        return _largest_difference(model, temporary)


def _write_onnx(model: GPT2LMHeadModel, path: Path) -> None:
    class Logits(nn.Module):
        """Token ids in, logits out: no cache, no dictionary."""

        def __init__(self) -> None:
            super().__init__()
            self.gpt2 = model

        def forward(self, input_ids: Tensor) -> Tensor:
            logits: Tensor = self.gpt2(input_ids, use_cache=False).logits
            return logits

    # The exporter treats an axis of size 1 as static, as the time of a model of one position is.
    example = torch.zeros(2, min(2, model.config.n_positions), dtype=torch.int64)
    axes = {0: "batch", 1: "time"} if model.config.n_positions > 1 else {0: "batch"}
    registration = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = registration.level
    registration.setLevel(logging.ERROR)  # it warns that torchvision is not installed
    try:
        with warnings.catch_warnings():
            # torch.export uses a deprecated part of torch.
            warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)`", FutureWarning)
            program = torch.onnx.export(
                Logits().eval(), (example,), dynamo=True, verbose=False, input_names=["input_ids"],
                output_names=["logits"], dynamic_shapes={"input_ids": axes},
            )  # fmt: skip
    except torch.onnx.OnnxExporterError as error:  # its own text is a page of advice to PyTorch's developers
        raise ConversionError(
            "torch cannot export the model as ONNX: {reason}; nothing is written",
            reason=first_line(error.__cause__ or error),
        ) from error
    finally:
        registration.setLevel(level)
    assert program is not None, "the exporter returns a program unless it is given a file"
    program.save(path, external_data=False)


def _largest_difference(model: GPT2LMHeadModel, path: Path) -> float:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    draw = torch.Generator().manual_seed(0)
    block, largest, scale = model.config.n_positions, 0.0, 0.0
    for batch, time in ((1, 1), (3, max(1, block // 3)), (2, block)):
        ids = torch.randint(model.config.vocab_size, (batch, time), generator=draw)
        with torch.no_grad():
            expected = model(ids, use_cache=False).logits.numpy()
        (logits,) = session.run(["logits"], {"input_ids": ids.numpy()})
        largest = max(largest, float(np.abs(logits - expected).max()))
        scale = max(scale, float(np.abs(expected).max()))
    if not largest <= TOLERANCE * max(scale, 1.0):
        raise ConversionError(
            "the ONNX model's logits differ from Transformers' by {largest:.2g}; nothing is written", largest=largest
        )
    return largest
