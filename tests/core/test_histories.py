"""A run through arbitrary histories of crashes, evictions, stale views and lost Jobs, checked after every step."""

from datetime import timedelta

from hypothesis import given, settings
from hypothesis import strategies as st

from builders import CLUSTER, NOW, artifact, finished, model_import, pod, pretrain_job, said, with_status, world
from herdsman.api.v1alpha1.status import Phase
from herdsman.core.plan import plan
from herdsman.core.status import is_final, status
from herdsman.core.world import JobFacts

BASE = finished(model_import())
ENDS = {
    "crash": {"exit_code": 1},
    "oom": {"exit_code": 137, "reason": "OOMKilled"},
    "evict": {"exit_code": 143, "disrupted": True},
    "interrupt": {"exit_code": 75, "termination": said("Interrupted", "stopped")},
    "temporary": {"exit_code": 75, "termination": said("Temporary", "the network is away")},
    "bad input": {"exit_code": 42, "termination": said("BadInput", "x.txt is empty")},
    "lose": {"reason": "Lost"},
}
EVENTS = [*ENDS, "finish", "start", "start", "delete the job", "suspend", "resume", "wait", "wait", "look late", "edit"]


class Cluster:
    """A Job controller in ten lines: it makes what is planned, and what happens to it is told by events."""

    def __init__(self, resource):
        self.resource = resource
        self.now = NOW
        self.jobs = {}
        self.stale = {}
        self.made = []
        """Names of Jobs in the order in which they were made."""
        self.checked = False
        """Whether a preflight has succeeded."""

    def reconcile(self, *, stale=False):
        seen = world(BASE, jobs=(self.stale if stale else self.jobs).values(), now=self.now)
        planned = plan(self.resource, seen, CLUSTER)
        for child in planned.children:
            if child["kind"] == "Job":
                self._apply(child, planned.attempt)
        self.resource = with_status(self.resource, status(self.resource, planned, seen))
        self.stale = dict(self.jobs)

    def _apply(self, child, attempt):
        name, suspend = child["metadata"]["name"], child["spec"].get("suspend", False)
        preflight = "herdsman.dev/preflight" in child["metadata"]["labels"]
        old = self.jobs.get(name)
        if old is None:
            self.made.append(name)
        if old is None or old.state in ("Pending", "Running", "Suspended"):
            state = "Suspended" if suspend else "Pending" if old is None or old.state == "Suspended" else old.state
            started = old.started if old else None
            self.jobs[name] = JobFacts(name, attempt, state, started=started, preflight=preflight)

    def living(self):
        return [job for job in self.jobs.values() if job.state not in ("Complete", "Failed")]

    def happen(self, event):
        self.now += timedelta(seconds=7)
        for job in self.living():
            if event in ENDS:
                pods = (pod(job.name, phase="Failed", ended=self.now, **ENDS[event]),)
                self._put(job, "Failed", pods, ended=self.now)
            elif event == "finish":
                self.checked = self.checked or job.preflight
                words = said("Succeeded", artifact=None if job.preflight else artifact(self.resource))
                self._put(job, "Complete", (pod(job.name, exit_code=0, termination=words),), ended=self.now)
            elif event == "start" and job.state == "Pending":
                self._put(job, "Running", (), started=self.now)
            elif event == "delete the job":
                del self.jobs[job.name]
        if event == "wait":
            self.now += timedelta(seconds=400)
        if event in ("suspend", "resume", "edit"):
            fields = {"max_restarts": 5} if event == "edit" else {"suspend": event == "suspend"}
            spec = self.resource.spec.model_copy(update=fields)
            meta = self.resource.metadata.model_copy(update={"generation": self.resource.metadata.generation + 1})
            self.resource = self.resource.model_copy(update={"spec": spec, "metadata": meta})

    def _put(self, job, state, pods, **times):
        known = {"started": job.started, "ended": job.ended, **times}
        self.jobs[job.name] = JobFacts(job.name, job.attempt, state, pods=pods, preflight=job.preflight, **known)


@settings(max_examples=150)
@given(st.lists(st.sampled_from(EVENTS), max_size=25), st.sampled_from([None, 900]), st.sampled_from([0, 4]))
def test_after_every_step_of_any_history(events, deadline, gpus):
    spec = {"compute": {"gpusPerNode": gpus}} | ({} if deadline is None else {"activeDeadlineSeconds": deadline})
    cluster = Cluster(pretrain_job("zh", maxRestarts=2, **spec))
    cluster.reconcile()
    highest, end = 0, None
    for event in events:
        deleted = event == "delete the job"
        cluster.happen(event)
        cluster.reconcile(stale=event == "look late")
        told = cluster.resource.status

        assert len(cluster.living()) <= 1, "at most one attempt lives"
        if not deleted and event != "look late":
            assert len(cluster.made) - len(set(cluster.made)) <= events.count("delete the job"), "no Job is made twice"
        numbers = [entry.number for entry in told.attempts]
        assert numbers == sorted(set(numbers)), "attempts are numbered upwards"
        assert max(numbers, default=0) >= highest, "the number of the last attempt never goes down"
        highest = max(numbers, default=0)
        assert cluster.checked or not gpus or all(job.preflight for job in cluster.jobs.values()), "GPUs come second"
        assert told.restarts <= cluster.resource.spec.max_restarts, "restarts stay within maxRestarts"
        if end is not None:
            assert (told.phase, told.artifact, told.attempts, told.failure) == end, "an end is an end"
        elif is_final(told):
            end = (told.phase, told.artifact, told.attempts, told.failure)
        if told.phase == Phase.SUSPENDED:
            assert all(job.state == "Suspended" for job in cluster.living()), "nothing runs while it is suspended"
        assert (told.phase == Phase.SUCCEEDED) == (told.artifact is not None), "an artifact is there at the end only"
        assert all(entry.message for entry in told.conditions)
