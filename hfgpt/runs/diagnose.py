"""What happened in a run, said from its record: what is wrong, since when, how it shows, and what to change.

In:  the records of a run (:mod:`hfgpt.runs.metrics`), finished or in progress, and its recipe if there is one.
Out: findings, the gravest first, or the one finding `healthy`; notes; and both as text or as data.

Facts are in facts.py, the rules in rules.py, what to do in remedies.py. Imports neither torch nor transformers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from hfgpt.base.language import _, using
from hfgpt.base.terminal import visible
from hfgpt.config import Config
from hfgpt.runs import notes as noted
from hfgpt.runs import rules
from hfgpt.runs.facts import Facts
from hfgpt.runs.findings import Finding, Remedy
from hfgpt.runs.history import History
from hfgpt.runs.metrics import Record


def diagnose(records: Sequence[Record], config: Config | None = None) -> list[Finding]:
    """Say what happened in a run.

    Args:
        records: as :func:`hfgpt.runs.history.read_run` gives them.
        config: the run's recipe; without one, remedies have no values, and what only it can tell is not judged.

    Returns:
        The findings, the gravest first; `healthy` alone if there is nothing to say against the run.
    """
    return _diagnose(Facts(records, config))


def _diagnose(facts: Facts) -> list[Finding]:
    findings = [finding for rule in rules.RULES if (finding := rule(facts)) is not None]
    kinds = {finding.kind for finding in findings}
    if "diverged" in kinds:  # explains everything else
        findings = [finding for finding in findings if finding.kind == "diverged"]
    elif "learning_rate_too_high" in kinds and facts.high:  # so does a rate at which nothing is learnt
        findings = [finding for finding in findings if finding.kind in ("learning_rate_too_high", "input_bound")]
    return _without_contradictions(findings) or [rules.healthy(facts)]


def _without_contradictions(findings: Sequence[Finding]) -> list[Finding]:
    """Leave out the advice that moves a parameter against the advice of a graver finding."""
    out: list[Finding] = []
    given: list[Remedy] = []
    for finding in findings:
        kept = [remedy for remedy in finding.remedies if not any(remedy.contradicts(other) for other in given)]
        out.append(replace(finding, remedies=kept))
        given += kept
    return out


def notes(records: Sequence[Record], config: Config | None = None) -> list[str]:
    """What is worth knowing about a run and no alarm; see :mod:`hfgpt.runs.notes`."""
    facts = Facts(records, config)
    return noted.notes(facts, _diagnose(facts))


def report(findings: Sequence[Finding]) -> str:
    """The findings as text: what, since when, the evidence, and the remedies in order with what to type."""
    lines = []
    for finding in findings:
        if finding.kind != "healthy" and finding.since_step:
            lines.append(_("{finding}, since step {step:,}", finding=finding.title, step=finding.since_step))
        else:
            lines.append(finding.title)
        lines.append(f"  {finding.evidence}")
        for number, remedy in enumerate(finding.remedies, 1):
            lines.append("  " + _("{number}. {what}  (chapter {section})",
                                  number=number, what=remedy.what, section=_section(remedy)))  # fmt: skip
            if remedy.override:
                lines.append(f"       {remedy.override}")
    return "\n".join(lines)


def _section(remedy: Remedy) -> str:
    return re.sub(r", strategy (\d)", lambda found: _(", strategy {number}", number=found[1]), remedy.chapter)


def summary(records: Sequence[Record], config: Config | None = None) -> str:
    """The findings, then the notes, as text that cannot steer a terminal."""
    facts = Facts(records, config)
    findings = _diagnose(facts)
    lines = [report(findings), *(_("note: {note}", note=note) for note in noted.notes(facts, findings))]
    return visible("\n".join(lines))


def as_json(run: History) -> dict[str, Any]:
    """A run's diagnosis as plain data, in English: `run`, `last_step`, `findings` and `notes`."""
    with using("en"):
        findings = diagnose(run.records, run.config)
        return {
            "run": run.name,
            "last_step": int(run.records[-1]["step"]),
            "findings": [_as_data(finding) for finding in findings],
            "notes": notes(run.records, run.config),
        }


def _as_data(finding: Finding) -> dict[str, Any]:
    advice = [{"what": r.what, "chapter": r.chapter, "override": r.override} for r in finding.remedies]
    return {"kind": finding.kind, "since_step": finding.since_step, "evidence": finding.evidence, "remedies": advice}
