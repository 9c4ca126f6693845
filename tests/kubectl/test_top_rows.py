"""The sums above `kubectl herdsman top`."""

import pytest

from builders import NOW, checked, manifest, pretrain_job
from herdsman.api.v1alpha1.status import Attempt, Phase, Status
from herdsman.cli.observed import Observed
from herdsman.core.world import Key
from herdsman.kubectl.top_rows import headline

WORKING = Attempt(number=1, started=NOW, counted=False)
PASSED = checked(pretrain_job()).status.attempts


@pytest.mark.parametrize(
    ("attempts", "told"),
    [
        ([WORKING], "16 GPUs at work"),
        ([WORKING.model_copy(update={"preflight": True})], "1 Running  "),
        ([*PASSED, WORKING.model_copy(update={"number": 2})], "16 GPUs at work"),
    ],
    ids=["a training", "a preflight", "a training after its preflight"],
)
def test_gpus_are_at_work_when_a_training_has_them(attempts, told):
    spec = {"compute": {"nodes": 2, "gpusPerNode": 8}}
    status = Status(phase=Phase.RUNNING, attempts=attempts)
    line = str(headline([Observed(Key("PretrainJob", "zh"), manifest("PretrainJob", "zh", spec), status)], NOW))
    assert told in line
    assert ("GPUs" in line) is ("GPUs" in told)
