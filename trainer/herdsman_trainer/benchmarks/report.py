"""The report of an evaluation as one document, from which the Markdown and the page are written.

It holds nothing that differs between two runs of the same work: no times, no attempt, no machine.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from herdsman_trainer.benchmarks.bootstrap import LEVEL
from herdsman_trainer.benchmarks.candidate import Candidate
from herdsman_trainer.benchmarks.figures import AllDraws, metric_document, telling
from herdsman_trainer.benchmarks.work import Outcome, TaskWork

Document = Mapping[str, Any]


def report_document(
    name: str,
    candidates: Sequence[Candidate],
    works: Sequence[TaskWork],
    outcomes: Mapping[str, Outcome],
    draws: AllDraws,
    thresholds: Sequence[Mapping[str, Any]],
    settings: Mapping[str, int],
) -> Document:
    """Return the document; `settings` are the number of resamples and the seed."""
    models = [candidate.name for candidate in candidates]
    return {
        "evaluation": name,
        "level": LEVEL,
        **settings,
        "models": [
            {
                "name": candidate.name,
                "digests": candidate.digests,
                "template": candidate.template.name,
                "vocabulary": candidate.tokenizer.vocab_size,
                "contextLength": candidate.context_length,
            }
            for candidate in candidates
        ],
        "thresholds": list(thresholds),
        "tasks": [
            {
                "name": work.task.name,
                "kind": _camel(work.task.kind),
                "telling": telling(outcomes[work.task.name]),
                "metrics": [
                    metric_document(draws[work.task.name, measured.metric], models)
                    for measured in outcomes[work.task.name].measured
                ],
                "details": dict(outcomes[work.task.name].details),
                "notes": list(outcomes[work.task.name].notes),
            }
            for work in works
        ],
    }


def _camel(name: str) -> str:
    first, *others = name.split("_")
    return first + "".join(other.capitalize() for other in others)
