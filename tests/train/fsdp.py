"""scripts/train.py through Accelerate's own FSDP2 code, on two CPU processes.

test_engines.py starts it with accelerate_configs/fsdp2.yaml. On a CPU, Accelerate silently replaces FSDP by DDP. If it
takes its processes for processes on cards, while its device is the CPU, it uses the same plugin, wrapping and precision
as on cards. The arguments after the recipe are those of scripts/train.py.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import torch.distributed as dist


def pretend_cards() -> None:
    """Make Accelerate take its processes for processes on cards; barriers get no device."""
    import accelerate.state
    from accelerate.utils import DistributedType

    init, barrier = accelerate.state.PartialState.__init__, dist.barrier

    def on_cards(self: Any, *arguments: Any, **options: Any) -> None:
        first = not accelerate.state.PartialState._shared_state
        init(self, *arguments, **options)
        if first:
            accelerate.state.PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU

    accelerate.state.PartialState.__init__ = on_cards
    dist.barrier = lambda *_arguments, **_options: barrier()


def main() -> int:
    engine = os.environ.pop("TEST_ENGINE")
    if engine != "ddp":
        pretend_cards()
    from torch.distributed.tensor import DTensor

    from hfgpt import config
    from hfgpt.train import loop, step

    if engine == "fsdp2, a step late":  # as on cards, where a flag on the device skips non-finite steps
        step.must_look = loop.must_look = lambda run: False
    steps = loop.loop

    def counted(run: Any, *rest: Any) -> int:
        shards = sum(isinstance(parameter, DTensor) for parameter in run.model.parameters())
        if run.main:
            print(f"engine {run.accelerator.distributed_type.value}, sharded parameters: {shards}", flush=True)
        return steps(run, *rest)

    loop.loop = counted
    resume = "--resume" in sys.argv
    words = [word for word in sys.argv[1:] if word != "--resume"]
    return loop.train(config.load(words[0], words[1:]), resume=resume)


if __name__ == "__main__":
    sys.exit(main())
