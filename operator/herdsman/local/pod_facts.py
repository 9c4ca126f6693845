"""What is observed of one started pod."""

from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from herdsman.api.exit_codes import ExitCode, TerminationMessage
from herdsman.core.world import PodFacts
from herdsman.local.processes import PodPlace, ProcessState


def pod_facts(name: str, place: PodPlace, state: ProcessState, container: str) -> PodFacts:
    """Return what is observed of a started pod; a lost one that left its artifact's contract has succeeded."""
    termination = _termination(place.termination)
    code = state.exit_code
    if state.lost and termination is not None and termination.artifact is not None:
        code = ExitCode.DONE
    lost = state.lost and code is None
    return PodFacts(
        name,
        place.index,
        phase="Running" if state.running else "Succeeded" if code == ExitCode.DONE else "Failed",
        container=container,
        exit_code=code,
        reason="Lost" if lost else None,
        termination=None if state.running else termination,
        disrupted=state.stopped and code != ExitCode.DONE,
        started=_moment(state.started),
        ended=_moment(state.ended),
    )


def _termination(path: Path) -> TerminationMessage | None:
    try:
        return TerminationMessage.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None


def _moment(seconds: float | None) -> datetime | None:
    return datetime.fromtimestamp(seconds, UTC) if seconds is not None else None
