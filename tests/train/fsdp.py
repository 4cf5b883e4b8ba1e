"""scripts/train.py through Accelerate's own FSDP2 path, on two CPU processes; test_engines.py starts it with
accelerate_configs/fsdp2.yaml.

Accelerate makes DDP of FSDP on a CPU without a word. Told that its processes are on cards, while its device stays the
CPU, it goes the way that it goes on cards: its plugin, its wrapping, its precision. The words behind the recipe are
those of scripts/train.py.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import torch.distributed as dist


def pretend_cards() -> None:
    """Accelerate's processes are "on cards" from here on; a barrier names none."""
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

    if engine == "fsdp2, a step late":  # as on cards, where a flag on the device leaves out what is not finite
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
