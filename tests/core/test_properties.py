"""Properties of planning and reporting, over arbitrary worlds."""

import json
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from builders import (
    CLUSTER,
    LAPTOP,
    ended,
    failed,
    finished,
    job,
    later,
    one_of_each,
    pod,
    said,
    suspended,
    volume,
    with_status,
    world,
)
from herdsman.api.v1alpha1.status import CheckpointStatus, Progress
from herdsman.core.endings import ending
from herdsman.core.plan import plan
from herdsman.core.preflight import is_due
from herdsman.core.status import status
from herdsman.core.world import Key, ServerFacts, World, WritePath

CHAIN = one_of_each()
sites = st.sampled_from([CLUSTER, LAPTOP])
few = settings(max_examples=60)


@st.composite
def resources(draw):
    """A resource of the chain, with some of its policy changed."""
    chosen = draw(st.sampled_from(CHAIN))
    if chosen.kind == "ModelServer":
        return with_spec(chosen, replicas=draw(st.integers(0, 3)))
    compute = chosen.spec.compute.model_copy(
        update={
            "nodes": draw(st.integers(1, 2)),
            "gpus_per_node": draw(st.sampled_from([0, 2])),
            "queue_name": draw(st.sampled_from([None, "queue"])),
        }
    )
    changed = with_spec(
        chosen,
        compute=compute,
        max_restarts=draw(st.integers(0, 3)),
        active_deadline_seconds=draw(st.sampled_from([None, 700])),
        ttl_seconds_after_finished=draw(st.sampled_from([None, 60])),
    )
    return suspended(changed) if draw(st.booleans()) else changed


def with_spec(resource, **fields):
    return resource.model_copy(update={"spec": resource.spec.model_copy(update=fields)})


ENDS = [1, 75, 137, 143]
WORDS = [None, said("Interrupted", "stopped"), said("BadInput", "x.txt is empty")]
SAYS = [None, "OOMKilled", "Lost", "Unschedulable", "ImagePullBackOff", "Queued"]


@st.composite
def jobs_of(draw, resource):
    """Up to three attempts, the first perhaps preflights: all but the last have ended, the last is in any state."""
    found = [ended(resource, draw(st.sampled_from(ENDS)), attempt) for attempt in range(1, draw(st.integers(0, 3)))]
    checks = draw(st.integers(0, 3)) if is_due(resource, (), CLUSTER) else 0
    if checks and draw(st.booleans()):
        checks = len(found) + 1
        found.append(job(resource, checks, "Complete"))
    if draw(st.booleans()):
        last = pod(
            "p",
            exit_code=draw(st.sampled_from([None, 42, 43, -15, *ENDS])),
            termination=draw(st.sampled_from(WORDS)),
            reason=draw(st.sampled_from(SAYS)),
            disrupted=draw(st.booleans()),
        )
        facts = {"progress": Progress(percent=5, step=10), "checkpoint": CheckpointStatus(step=10)}
        state = draw(st.sampled_from(["Pending", "Running", "Suspended", "Failed"]))
        found.append(job(resource, len(found) + 1, state, pods=(last,), **draw(st.sampled_from([{}, facts]))))
    return [replace(entry, preflight=entry.attempt <= checks) for entry in found]


CLAIMS = [
    "weights",
    "tokenizers",
    "corpora",
    "instructions",
    "mi-base",
    "tm-zh-tokenizer",
    "pj-zh",
    "sj-tuned",
    "lm-merged",
]
SERVERS = [None, ServerFacts(2, 1, "http://x", 1), ServerFacts(1, 1, "http://x", 9)]
NEIGHBOURS = [
    {"writers": {WritePath("pj-zh", "pretrainjobs"): Key("SFTJob", "x")}},
    {"foreign": [Key("Job", "pj-zh-1")]},
]


@st.composite
def situations(draw):
    """A resource in a world, mostly with all it needs, sometimes with an input, a volume or a name amiss."""
    resource = draw(resources())
    inputs = {other.metadata.name: finished(other) for other in CHAIN[:-1] if other.kind != resource.kind}
    volumes = {claim: volume(claim) for claim in CLAIMS}
    neighbours = {}
    match draw(st.sampled_from(["", "", "", "input", "volume", "neighbour"])):
        case "input":
            name = draw(st.sampled_from(sorted(inputs)))
            other = next(entry for entry in CHAIN if entry.metadata.name == name)
            inputs[name] = draw(st.sampled_from([None, other, failed(other), finished(other, digest="0" * 64)]))
        case "volume":
            claim = draw(st.sampled_from(CLAIMS))
            volumes[claim] = draw(st.sampled_from([None, volume(claim, "ReadWriteOnce")]))
        case "neighbour":
            neighbours = draw(st.sampled_from(NEIGHBOURS))
    seen = world(
        *(other for other in inputs.values() if other is not None),
        jobs=() if resource.kind == "ModelServer" else draw(jobs_of(resource)),
        now=later(draw(st.integers(0, 5000))),
        volumes=[entry for entry in volumes.values() if entry is not None],
        server=draw(st.sampled_from(SERVERS)) if resource.kind == "ModelServer" else None,
        **neighbours,
    )
    return resource, seen


def report(resource, seen, site):
    planned = plan(resource, seen, site)
    return planned, status(resource, planned, seen)


def reordered(seen):
    """The same world with every mapping in reverse order."""

    def turned(mapping):
        return dict(reversed(list(mapping.items())))

    return World(
        now=seen.now,
        jobs=turned(seen.jobs),
        server=seen.server,
        resources=turned(seen.resources),
        volumes=turned(seen.volumes),
        writers=turned(seen.writers),
        foreign=seen.foreign,
    )


@few
@given(situations(), sites)
def test_planning_is_deterministic_and_independent_of_the_order_of_observation(situation, site):
    resource, seen = situation
    planned, told = report(resource, seen, site)
    again, told_again = report(resource, reordered(seen), site)
    assert planned == again
    assert json.dumps(planned.children) == json.dumps(again.children)
    assert told == told_again


@few
@given(situations(), sites)
def test_a_status_fed_back_changes_nothing(situation, site):
    resource, seen = situation
    _, first = report(resource, seen, site)
    _, second = report(with_status(resource, first), seen, site)
    assert second == first


@few
@given(situations(), sites)
def test_a_status_survives_its_json(situation, site):
    resource, seen = situation
    _, told = report(resource, seen, site)
    assert type(told).model_validate_json(told.model_dump_json(by_alias=True, exclude_none=True)) == told


@few
@given(situations(), sites)
def test_a_plan_made_again_with_the_status_has_the_same_children(situation, site):
    resource, seen = situation
    planned, told = report(resource, seen, site)
    again = plan(with_status(resource, told), seen, site)
    if told.phase not in ("Succeeded", "Failed"):
        assert json.dumps(again.children) == json.dumps(planned.children)
    else:
        assert again.children == ()


@few
@given(situations(), sites, st.integers(1, 100_000))
def test_time_alone_changes_no_condition_but_by_a_deadline_or_the_end_of_a_pause(situation, site, seconds):
    resource, seen = situation
    _, first = report(resource, seen, site)
    moved = World(**{**vars(seen), "now": seen.now.replace(year=2027)})
    planned, second = report(with_status(resource, first), moved, site)
    before = {entry.type: entry for entry in first.conditions}
    for entry in second.conditions:
        old = before[entry.type]
        assert (entry.last_transition_time == old.last_transition_time) == (entry.status == old.status)
    if resource.kind != "ModelServer" and resource.spec.active_deadline_seconds is None and planned.attempt is None:
        assert second.phase == first.phase


@few
@given(situations(), sites)
def test_every_condition_is_there_with_a_message_and_a_generation(situation, site):
    resource, seen = situation
    _, told = report(resource, seen, site)
    assert len({entry.type for entry in told.conditions}) == (4 if resource.kind == "ModelServer" else 6)
    for entry in told.conditions:
        assert entry.message
        assert entry.observed_generation == resource.metadata.generation
    if told.failure is not None:
        assert told.failure.message


@few
@given(situations(), sites)
def test_children_have_distinct_names_labels_and_an_owner(situation, site):
    resource, seen = situation
    planned, _ = report(resource, seen, site)
    keys = [(child["kind"], child["metadata"]["name"]) for child in planned.children]
    assert len(set(keys)) == len(keys)
    for child in planned.children:
        assert child["metadata"]["labels"]["herdsman.dev/name"] == resource.metadata.name
        assert child["metadata"]["namespace"] == resource.metadata.namespace
        if child["kind"] != "PersistentVolumeClaim":
            assert child["metadata"]["ownerReferences"][0]["uid"] == resource.metadata.uid


@few
@given(situations(), sites)
def test_nothing_is_made_while_something_is_refused_or_awaited(situation, site):
    resource, seen = situation
    planned, told = report(resource, seen, site)
    if planned.refused is not None or planned.waiting_for:
        assert planned.children == ()
        assert planned.requeue_after is not None
    if planned.refused is not None:
        assert planned.refused.hint
        assert told.failure is not None


@few
@given(situations(), sites)
def test_the_planned_attempt_follows_the_last_one_that_ended(situation, site):
    resource, seen = situation
    planned, told = report(resource, seen, site)
    made = [child for child in planned.children if child["kind"] == "Job"]
    assert len(made) <= 1
    if made:
        numbers = [entry.attempt for entry in seen.jobs.values() if ending(entry) is None]
        over = [entry.attempt for entry in seen.jobs.values() if ending(entry) is not None]
        assert planned.attempt == (numbers[0] if numbers else max(over, default=0) + 1)
        assert made[0]["metadata"]["labels"]["herdsman.dev/attempt"] == str(planned.attempt)
    assert [entry.number for entry in told.attempts] == sorted({entry.number for entry in told.attempts})
    assert sum(entry.ended is None for entry in told.attempts) <= 1
