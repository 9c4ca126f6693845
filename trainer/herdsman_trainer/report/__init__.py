"""The report of a finished training: what was trained on what, how it went, and what the model writes now."""

import logging
from collections.abc import Mapping

from herdsman.api.job_config import REPORT_PAGE
from herdsman.api.v1alpha1.status import Artifact
from herdsman_trainer.report.facts import RunFacts
from herdsman_trainer.report.markdown import markdown
from herdsman_trainer.report.page import page

_log = logging.getLogger(__name__)


def report_files(facts: RunFacts, artifact: Artifact) -> Mapping[str, bytes]:
    """Return the report as files by name; none, with a warning, where it cannot be made: a training is worth more."""
    try:
        return {REPORT_PAGE: page(facts, artifact).encode(), "report.md": markdown(facts, artifact).encode()}
    except Exception:  # noqa: BLE001 - the weights are there, and are published with or without it
        _log.warning("The report cannot be written; the artifact is published without it.", exc_info=True)
        return {}
