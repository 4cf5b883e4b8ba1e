"""A trace of a few steps: where the time of a step goes.

In:  ``--profile``, and the steps of the loop.
Out: ``profile/steps-….pt.trace.json`` in the run folder, for Perfetto (ui.perfetto.dev) and TensorBoard, and the ten
     largest operations on the screen.
"""

from __future__ import annotations

import os

import torch
from torch.profiler import ProfilerActivity, profile

from hfgpt.base.files import sync
from hfgpt.base.language import _, plural
from hfgpt.train.run import Run

BEFORE, RECORDED = 3, 3  # steps that warm up, and steps in the trace

LARGEST = 10


class Trace:
    """Records a few steps of a run, on the main process.

    Args:
        run: that trains. wanted: whether to record at all.
    """

    def __init__(self, run: Run, wanted: bool) -> None:
        self._run, self._first = run, run.progress.step + BEFORE
        self._profiler: profile | None = None
        self._wanted = wanted and run.main and not run.config.eval_only

    def look(self) -> None:
        """Call before each step: the recording begins and ends here."""
        if not self._wanted:
            return
        step = self._run.progress.step
        if self._profiler is None and step >= self._first:
            activities = [ProfilerActivity.CPU]
            if self._run.device.type == "cuda":
                activities.append(ProfilerActivity.CUDA)
            os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # quiet
            self._profiler = profile(activities=activities, profile_memory=True)
            self._profiler.start()
        elif step >= self._first + RECORDED:
            self.close()

    def close(self) -> None:
        """End the recording, if there is one, and show it; say so if the run ended before it began."""
        if not self._wanted:
            return
        self._wanted, profiler, self._profiler = False, self._profiler, None
        if profiler is not None:
            if self._run.device.type == "cuda":
                torch.cuda.synchronize(self._run.device)
            profiler.stop()
        last = self._run.progress.step
        if profiler is None or last == self._first:
            text = _(
                "--profile has recorded nothing: it records from step {first} on, and the run ends after step {last}",
                first=self._first + 1,
                last=last,
            )
            self._run.display.say(text)
            return
        folder = self._run.folder / "profile"
        folder.mkdir(exist_ok=True)
        path = folder / f"steps-{self._first + 1}-{last}.pt.trace.json"
        profiler.export_chrome_trace(str(path))
        sync(path)
        self._run.display.say(largest(profiler, last - self._first, on_card=self._run.device.type == "cuda"))
        self._run.display.say(
            _("the trace is in {file}: open it in ui.perfetto.dev, or the folder in TensorBoard", file=path)
        )


def largest(profiler: profile, steps: int, on_card: bool) -> str:
    """Return the operations of some steps with the most self time: share, milliseconds, calls."""
    key = "self_device_time_total" if on_card else "self_cpu_time_total"
    rows = sorted(profiler.key_averages(), key=lambda row: float(getattr(row, key)), reverse=True)
    total = sum(float(getattr(row, key)) for row in rows) or 1.0
    lines = [
        plural(
            "the {largest} largest operations of {n} step:",
            "the {largest} largest operations of {n} steps:",
            steps,
            largest=LARGEST,
        )
    ]
    for row in rows[:LARGEST]:
        spent = float(getattr(row, key))
        lines.append(
            _(
                "  {share:6.1%}  {milliseconds:9.2f} ms  {calls:6} calls  {name}",
                share=spent / total,
                milliseconds=spent / 1000,
                calls=row.count,
                name=row.key,
            )
        )
    return "\n".join(lines)
