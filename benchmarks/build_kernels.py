"""Build the kernels of a compiled training step for cards that this machine does not have.

    python benchmarks/build_kernels.py            for compute capabilities 8.0 and 9.0
    python benchmarks/build_kernels.py 100        for another one

In:  compute capabilities; a CUDA build of torch, a C compiler; no card, no driver.
Out: a line for each: how many kernels torch.compile generated and Triton built, down to the card's machine code
     (cubin). Exit code 1 if a kernel could not be built.

The step is that of two of GPT-2 124M's blocks and its head, in bfloat16: forward and backward, plain, with documents
kept apart, and with activation checkpointing. Its tensors are fake, and torch is told a card's public properties, in
Python and by a few functions in place of the driver's. All consequences are as on the card: what Inductor fuses, which
tiles it uses, whether ptxas accepts their shared memory and registers. Nothing runs. So this finds kernels that cannot
be built, but not those that are wrong or slow.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

# From the vendor's data sheets and the CUDA programming guide.
CARDS = {
    80: ("NVIDIA A100-SXM4-80GB", 108, 163840, 166912, 40),
    86: ("NVIDIA GeForce RTX 3090", 82, 99 * 1024, 100 * 1024, 6),
    89: ("NVIDIA GeForce RTX 4090", 128, 99 * 1024, 100 * 1024, 72),
    90: ("NVIDIA H100 80GB HBM3", 132, 232448, 233472, 50),
    100: ("NVIDIA B200", 148, 232448, 233472, 126),
}
ROOT = Path(__file__).parents[1]
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "documents apart": {"document_mask": True},
    "recomputed": {"activation_checkpointing": True},
}


# The queries of torch's C++ to the CUDA runtime and the driver before it traces an operation.
ANSWERS = """
#include <string.h>
#include <driver_types.h>
int cudaGetDevice(int *d) { *d = 0; return 0; }
int cudaSetDevice(int d) { (void)d; return 0; }
int cudaGetDeviceCount(int *n) { *n = 1; return 0; }
int cudaDeviceGetStreamPriorityRange(int *least, int *greatest) { *least = *greatest = 0; return 0; }
int cuDevicePrimaryCtxGetState(int d, unsigned *flags, int *on) { (void)d; *flags = 0; *on = 0; return 0; }
int cudaGetDeviceProperties(struct cudaDeviceProp *p, int d) {
  (void)d;
  memset(p, 0, sizeof *p);
  p->major = CAPABILITY / 10;
  p->minor = CAPABILITY % 10;
  p->warpSize = 32;
  p->multiProcessorCount = PROCESSORS;
  p->maxThreadsPerBlock = 1024;
  p->sharedMemPerBlock = 49152;
  p->sharedMemPerBlockOptin = BLOCK_MEMORY;
  p->totalGlobalMem = 80ul << 30;
  return 0;
}
"""


class Built(Exception):
    """Raised once everything is compiled, since nothing is to run."""


def pretend(capability: int) -> None:
    """Make torch and Triton see a card of this compute capability."""
    import torch
    import torch._dynamo.device_interface as interfaces
    import triton
    from triton.backends.compiler import GPUTarget

    name, processors, block_memory, memory, cache = CARDS[capability]
    properties = SimpleNamespace(
        name=name, major=capability // 10, minor=capability % 10, multi_processor_count=processors,
        regs_per_multiprocessor=65536, max_threads_per_multi_processor=2048 if capability in (80, 90, 100) else 1536,
        max_threads_per_block=1024, warp_size=32, total_memory=80 * 2**30, L2_cache_size=cache * 2**20,
        shared_memory_per_block=48 * 1024, shared_memory_per_block_optin=block_memory,
        shared_memory_per_multiprocessor=memory, gcnArchName="", is_integrated=0, is_multi_gpu_board=0,
    )  # fmt: skip
    answers: dict[str, Any] = {
        "is_available": True, "device_count": 1, "current_device": 0, "get_device_properties": properties,
        "get_device_capability": (properties.major, properties.minor), "get_device_name": name, "_lazy_init": None,
        "is_initialized": True, "synchronize": None, "set_device": None, "_exchange_device": 0,
        "_maybe_exchange_device": 0, "get_rng_state": torch.zeros(16, dtype=torch.uint8), "set_rng_state": None,
        "memory_allocated": 0, "max_memory_allocated": 0, "reset_peak_memory_stats": None, "is_bf16_supported": True,
        "get_compute_capability": capability, "is_triton_capable": True, "raise_if_triton_unavailable": None,
        "exchange_device": 0, "maybe_exchange_device": 0, "get_raw_stream": 0, "is_current_stream_capturing": False,
    }  # fmt: skip
    for place in (torch.cuda, interfaces.CudaInterface, interfaces.CudaInterface.Worker):
        for key, answer in answers.items():
            if hasattr(place, key):
                said = (lambda value: lambda *_, **__: value)(answer)
                setattr(place, key, said if place is torch.cuda else staticmethod(said))

    torch.accelerator.is_available = lambda: False  # otherwise Dynamo asks the driver for its stream

    class Driver:
        """The answers to Triton's queries of its driver."""

        def get_current_target(self) -> GPUTarget:
            return GPUTarget("cuda", capability, 32)

        def get_current_device(self) -> int:
            return 0

        def get_current_stream(self, _device: int = 0) -> int:
            return 0

        def get_active_torch_device(self) -> torch.device:
            return torch.device("cuda", 0)

        def get_device_interface(self) -> Any:
            return torch.cuda

    triton.runtime.driver.set_active(Driver())


def build(capability: int) -> int:
    """Build all cases for one kind of card, printing a line for each; return how many failed."""
    os.environ |= {"TORCHINDUCTOR_COMPILE_THREADS": "1", "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}
    warnings.filterwarnings("ignore")
    pretend(capability)
    import torch
    import torch._functorch.config as functorch
    import torch._inductor.config as inductor
    from torch._inductor.fx_passes import fuse_attention
    from torch._inductor.runtime import triton_helpers, triton_heuristics

    triton_helpers.set_driver_to_gpu = lambda: None
    # It would create tensors on the card, to look for written-out attention, which ours is not.
    fuse_attention._get_sfdp_patterns = lambda _device=None: []
    inductor.joint_graph_constant_folding = inductor.shape_padding = False  # they compute on the card
    functorch.graphsafe_rng_functionalization = False  # it clones the card's generator
    inductor.max_autotune = inductor.triton.cudagraphs = inductor.use_static_triton_launcher = False
    kernels = list[str]()

    def keep(self: Any) -> None:
        for result in self.compile_results:
            assert result.kernel.asm["cubin"]
            kernels.append(result.kernel.metadata.name)
        self.launchers = [lambda *_, **__: None]

    triton_heuristics.CachingAutotuner._make_launchers = keep
    failed = 0
    for name, values in CASES.items():
        kernels.clear()
        began, problem = time.monotonic(), ""
        try:
            compile_step(values)
        except Exception as error:  # a compiler may raise anything
            problem = f"{type(error).__name__}: {str(error).strip()[:2000]}"
        failed += bool(problem) or not kernels
        attention = sum("flex" in kernel or "tem_fused" in kernel for kernel in kernels)
        print(
            f"sm_{capability} {name}: {len(kernels)} kernels ({attention} of FlexAttention), "
            f"{time.monotonic() - began:.0f} s {problem}",
            flush=True,
        )
        torch._dynamo.reset()
    return failed


def compile_step(values: dict[str, Any]) -> None:
    """Compile forward and backward of a step of GPT-2 124M."""
    import torch
    import torch._functorch.config as functorch
    from torch._inductor.compile_fx import compile_fx
    from torch._subclasses.fake_tensor import FakeTensorMode

    from hfgpt import config
    from hfgpt.model import gpt2

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        with functorch.patch(force_non_lazy_backward_lowering=True):
            compile_fx(graph, inputs)
        raise Built

    shape = {"n_layer": 2, "n_head": 12, "n_embd": 768, "block_size": 1024, "dropout": 0.0, "tokenizer": "bpe"}
    recipe = config.build(shape | values, "build_kernels")  # all layers are alike
    with FakeTensorMode():
        network = gpt2.build(recipe, 50257, 50256).train()
        moved: dict[torch.nn.Parameter, torch.nn.Parameter] = {}  # one for a tied weight, too
        for module in network.modules():
            for key, weight in list(module.named_parameters(recurse=False)):
                if weight not in moved:
                    moved[weight] = torch.nn.Parameter(torch.empty_like(weight, device="cuda"))
                setattr(module, key, moved[weight])
        tokens = torch.empty((12, 1025), dtype=torch.long, device="cuda")
        step = torch.compile(network, backend=backend, fullgraph=True, dynamic=False)
        try:
            with torch.autocast("cuda", torch.bfloat16):
                step(tokens[:, :-1], tokens[:, 1:])
        except Exception as error:
            if not isinstance(error.__cause__ or getattr(error, "inner_exception", None), Built):
                raise


def answers(capability: int, folder: str) -> str:
    """Build a library of :data:`ANSWERS` for this card, to be loaded before CUDA's own; return its path."""
    import triton

    _name, processors, block_memory, _memory, _cache = CARDS[capability]
    headers = Path(triton.__file__).parent / "backends" / "nvidia" / "include"
    source, library = Path(folder) / "answers.c", Path(folder) / "answers.so"
    source.write_text(ANSWERS)
    values = {"CAPABILITY": capability, "PROCESSORS": processors, "BLOCK_MEMORY": block_memory}
    flags = [f"-I{headers}", *(f"-D{name}={value}" for name, value in values.items()), "-Wl,-soname,libcuda.so.1"]
    subprocess.run(["cc", "-shared", "-fPIC", *flags, "-o", str(library), str(source)], check=True)
    return str(library)


def main() -> int:
    """Build for each card in its own process, in which our answers replace CUDA's."""
    if sys.argv[1:2] == ["--here"]:
        return int(build(int(sys.argv[2])) > 0)
    import torch

    if torch.version.cuda is None:
        print("this torch is not built for CUDA: pip install torch, without an index for CPUs", file=sys.stderr)
        return 2
    worst = 0
    for capability in [int(word) for word in sys.argv[1:]] or [80, 90]:
        with tempfile.TemporaryDirectory() as folder:
            env = os.environ | {"LD_PRELOAD": answers(capability, folder), "PYTHONPATH": str(ROOT)}
            command = [sys.executable, __file__, "--here", str(capability)]
            worst = max(worst, abs(subprocess.run(command, env=env, check=False).returncode))
    return worst


if __name__ == "__main__":
    sys.exit(main())
