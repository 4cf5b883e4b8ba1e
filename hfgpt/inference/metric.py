"""Loss, perplexity and bits per character as a metric of the `evaluate` library.

In:  batches of (nll_sum in nats, tokens, characters).
Out: the three figures of :func:`hfgpt.inference.figures.figures`, over all batches.

The class is here, so that no Hub is asked. Importing the library takes nearly a second, for which training does not
wait: it uses the formula, and :func:`hfgpt.inference.evaluation.evaluate_folder` imports this.
"""

from __future__ import annotations

import math

import datasets
import evaluate

from hfgpt.inference.figures import figures

COLUMNS = {"nll_sum": "float64", "tokens": "int64", "characters": "int64"}


class LanguageModelMetric(evaluate.Metric):  # type: ignore[misc, unused-ignore]  # the library has no types
    """Token-weighted figures of a language model; bits per character compare models with different tokenizers."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Token-weighted loss, perplexity and bits per character of a language model.",
            citation="",
            inputs_description="nll_sum: nats, summed over targets; tokens, characters: how many they are.",
            features=datasets.Features({name: datasets.Value(dtype) for name, dtype in COLUMNS.items()}),
        )

    def _compute(self, nll_sum: list[float], tokens: list[int], characters: list[int]) -> dict[str, float]:
        return figures(math.fsum(nll_sum), sum(tokens), sum(characters))
