"""The cache: what was said last, whoever says it and in whatever order."""

from herdsman.core.world import Key
from herdsman.kube.cache import Cache, ObjectKey, ResourceKey, parent_of
from herdsman.kube.trimming import trimmed
from kube.objects import END, job, meta, pod, running, terminated

ZH = ResourceKey("team", Key("PretrainJob", "zh"))


def at(body, version, **metadata):
    return {**body, "metadata": {**body["metadata"], "resourceVersion": str(version), **metadata}}


def test_an_object_is_news_once():
    cache = Cache()
    assert [cache.put(at(job(), 5)), cache.put(at(job(), 5)), cache.put(at(job(), 4)), cache.put(at(job(), 6))] == [
        True,
        False,
        False,
        True,
    ]


def test_an_older_version_changes_nothing():
    cache = Cache()
    cache.put(at(job(suspend=True), 6))
    cache.put(at(job(suspend=False), 5))
    assert cache.get("Job", "team", "pj-zh-1")["spec"]["suspend"] is True


def test_a_new_object_of_the_same_name_replaces_the_old_one_whatever_its_version():
    cache = Cache()
    cache.put(at(job(), 9))
    assert cache.put(at(job(), 3, uid="uid-new"))
    assert cache.get("Job", "team", "pj-zh-1")["metadata"]["uid"] == "uid-new"


def test_the_deletion_of_the_old_one_does_not_touch_the_new_one():
    cache = Cache()
    cache.put(at(job(), 9, uid="uid-new"))
    assert not cache.drop(at(job(), 10))
    assert cache.children(ZH, "Job")


def test_children_are_found_by_their_parent_and_kind_in_order():
    cache = Cache()
    for body in (pod(name="b"), pod(name="a"), job()):
        cache.put(body)
    assert [body["metadata"]["name"] for body in cache.children(ZH, "Pod")] == ["a", "b"]
    assert cache.children(ResourceKey("other", ZH.key), "Pod") == []


def test_a_pod_that_is_gone_is_remembered_as_long_as_its_job():
    cache = Cache()
    cache.put(job())
    cache.put(running())
    cache.drop(at(terminated(42), 8))
    (gone,) = cache.departed("uid-pj-zh-1")
    assert gone["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"] == 42
    cache.drop(job())
    assert cache.departed("uid-pj-zh-1") == []


def test_a_pod_that_is_gone_without_an_end_counts_as_failed():
    cache = Cache()
    cache.put(job())
    cache.put(running())
    cache.drop(running(metadata={"deletionTimestamp": END}))
    (gone,) = cache.departed("uid-pj-zh-1")
    assert (gone["status"]["phase"], gone["status"]["reason"]) == ("Failed", "Deleted")


def test_pods_that_go_after_their_job_leave_nothing_behind():
    cache = Cache()
    cache.put(job())
    cache.put(running())
    cache.drop(job())
    cache.drop(running())
    assert (len(cache), cache.departed("uid-pj-zh-1")) == (0, [])


def test_a_full_listing_tells_what_has_vanished_but_not_of_what_came_since():
    cache = Cache()
    for name, version in (("stays", 3), ("vanished", 4), ("younger", 20)):
        cache.put(at(pod(name=name), version))
    listed = {ObjectKey("Pod", "team", "stays")}
    assert [body["metadata"]["name"] for body in cache.vanished("Pod", None, listed, 10)] == ["vanished"]
    assert cache.vanished("Pod", "elsewhere", listed, 10) == []


def test_objects_of_others_have_no_parent():
    assert parent_of({"kind": "Pod", "metadata": meta("x", labels={"herdsman.dev/kind": "Poem"})}) is None
    assert parent_of({"kind": "Pod", "metadata": meta("x")}) is None


def test_what_is_kept_of_a_config_map_is_a_digest():
    body = {"kind": "ConfigMap", "metadata": meta("c", managedFields=[{}]), "data": {"job.json": "{}" * 9000}}
    kept = trimmed(body)
    assert len(str(kept)) < 400
    assert trimmed(kept) == kept
    assert "managedFields" not in kept["metadata"]


def test_what_is_kept_of_an_object_still_tells_the_same_facts():
    from herdsman.kube.facts import job_facts
    from kube.objects import condition

    body, its_pod = job(condition("Failed", "PodFailurePolicy", "x")), terminated(42, message='{"reason": "BadInput"}')
    assert job_facts(trimmed(body), [trimmed(its_pod)]) == job_facts(body, [its_pod])
