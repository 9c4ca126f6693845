"""Resources and stories that the tests of whole runs share."""

from collections import Counter

import builders
from kube.fake_platform import End, succeed
from kube.station import Station


def imported(name="base", **spec):
    spec.setdefault("workspace", {"claim": "weights", "path": name})
    return builders.model_import(name, **spec)


def trained(name="zh", **spec):
    spec.setdefault("workspace", {"claim": "weights", "path": name})
    return builders.pretrain_job(name, **spec)


def served(name="chat", **spec):
    return builders.model_server(name, **{"model": {"modelImport": "base"}, **spec})


def pipeline():
    """A model on a claim of its own, a training on two nodes that needs it, and a server."""
    return [imported(workspace={"accessMode": "ReadWriteMany"}), trained(compute={"nodes": 2}), served()]


def fall_once(job, index):
    """Every first attempt loses its rank 0 with a fault that may pass; all others succeed."""
    first = job["metadata"]["labels"]["herdsman.dev/attempt"] == "1"
    return (
        End(75, message='{"reason": "Temporary", "message": "the volume was slow"}') if first and not index else End()
    )


def started(*resources, script=succeed):
    """A station where these have just been applied, and an operator has started."""

    async def story():
        station = Station(script)
        station.claims("weights", "corpora")
        station.put(*resources)
        station.start()
        await station.operator.list_until_done()
        return station

    return story()


def job_makings(station):
    """How often each Job's name was created."""
    return Counter(call.name for call in station.api.calls if call.verb == "create" and call.kind == "Job")


def summary(station, *resources):
    """What must be the same however it came about."""
    found = {}
    for resource in resources:
        status = station.status(resource)
        attempts = [(item["number"], item.get("reason"), item["counted"]) for item in status.get("attempts", ())]
        found[resource.metadata.name] = (status["phase"], attempts, status.get("artifact"))
    return found
