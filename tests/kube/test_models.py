"""Resources as stored, read by the models."""

import builders
from herdsman.cluster import Invalid
from herdsman.kube.models import Models, stored_status
from kube.station import manifest_of


def stored(status=None, **changes):
    body = manifest_of(builders.model_import("base"))
    body["metadata"] |= {"uid": "u", "resourceVersion": "1", "generation": 3}
    body["spec"] |= changes
    return body | ({"status": status} if status is not None else {})


def test_a_wrong_spec_names_every_wrong_field():
    found = Models().read(stored(maxRestarts=-1, nonsense={"a": 1}, sha256={"x": "y"}))
    assert isinstance(found, Invalid)
    assert found.generation == 3
    assert [problem.partition(":")[0] for problem in found.problems] == [
        "spec.maxRestarts",
        "spec.sha256.x",
        "spec.nonsense",
    ]


def test_a_status_of_another_version_does_not_make_the_resource_invalid():
    status = {"phase": "Running", "mood": "good", "progress": {"percent": 40, "wind": 3}}
    found = Models().read(stored(status))
    assert not isinstance(found, Invalid)
    assert (found.status.phase, found.status.progress.percent) == ("Running", 40)


def test_a_status_that_makes_no_sense_is_left_out_member_by_member():
    assert stored_status(stored({"phase": "Sleeping", "restarts": 2})).restarts == 2
    assert stored_status(stored({"phase": []})).phase == "Pending"
    assert stored_status(stored()) is None


def test_an_invalid_resource_keeps_its_status():
    found = Models().read(stored({"phase": "Succeeded"}, nonsense=1))
    assert (type(found), found.status.phase) == (Invalid, "Succeeded")


def test_each_version_is_read_once_and_only_the_last_ones_are_kept():
    models = Models(size=2)
    bodies = [stored() | {"metadata": {**stored()["metadata"], "resourceVersion": str(n)}} for n in range(3)]
    first = models.read(bodies[0])
    assert models.read(bodies[0]) is first
    models.read(bodies[1]), models.read(bodies[2])
    assert models.read(bodies[0]) is not first
