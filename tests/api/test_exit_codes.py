"""The last words of a trainer fit into what Kubernetes keeps of them, and the most needed part is never cut."""

from herdsman.api.exit_codes import MAX_TERMINATION_BYTES, TerminationMessage
from herdsman.api.v1alpha1.status import Artifact, Metric

ARTIFACT = Artifact(kind="adapter", claim="c" * 63, path="p" * 200, digest="0" * 64, bytes=1)
FIGURES = [Metric(name=f"figure_{number}_{'x' * 40}", value="1.23456") for number in range(100)]


def read(message):
    data = message.to_bytes()
    assert len(data) <= MAX_TERMINATION_BYTES
    return TerminationMessage.model_validate_json(data)


def test_what_fits_is_kept_whole():
    said = TerminationMessage(reason="Succeeded", message="done", artifact=ARTIFACT, report=FIGURES[:10])
    assert read(said) == said


def test_of_too_many_figures_the_first_ones_stay_and_the_artifact_too():
    kept = read(TerminationMessage(reason="Succeeded", artifact=ARTIFACT, report=FIGURES))
    assert kept.artifact == ARTIFACT
    assert 0 < len(kept.report) < len(FIGURES)
    assert kept.report == FIGURES[: len(kept.report)]


def test_a_long_message_is_cut_and_says_so():
    kept = read(TerminationMessage(reason="BadInput", message="很" * 5000, hint="Shorten it.", line=7))
    assert kept.message.endswith("…")
    assert (kept.reason, kept.hint, kept.line) == ("BadInput", "Shorten it.", 7)
