"""The operator asks for what it may, and may do no more than it asks for."""

import builders
from herdsman.api.v1alpha1.registry import KINDS
from herdsman.core.optional_children import OPTIONAL_KINDS
from herdsman.kube.api import PATHS
from herdsman.kube.rules import LEASE_RULES, RULES, allows
from kube.fake_platform import End
from kube.station import NAMESPACE, Station, run

VERBS = {"get": "get", "list": "list", "create": "create", "apply": "patch", "merge": "patch", "delete": "delete"}


BESIDE = {
    "ingress": {"host": "chat.example.com"},
    "autoscaling": {"maxReplicas": 2, "targetWaitingRequests": 4},
    "monitoring": {"serviceMonitor": True},
}


def used():
    """Every verb on every resource that whole runs needed."""

    def fall_once(job, _index):
        return End(1) if job["metadata"]["labels"]["herdsman.dev/attempt"] == "1" else End()

    async def story():
        station = Station(fall_once)
        station.put(
            builders.model_import("base"),
            builders.pretrain_job("zh", compute={"nodes": 2}),
            builders.model_server("chat", model={"modelImport": "base"}, **BESIDE),
        )
        station.claims("weights", "corpora")
        station.start()
        await station.operator.list_until_done()
        await station.settle()
        station.api.change("ModelServer", NAMESPACE, "chat", {"spec": {"replicas": 2}})
        await station.settle()
        nothing = {"autoscaling": None, "ingress": None, "monitoring": None, "replicas": 1, "modelName": "other"}
        station.api.change("ModelServer", NAMESPACE, "chat", {"spec": nothing})
        await station.settle()
        return station.api.calls

    found = set()
    for call in run(story):
        prefix, plural = PATHS[call.kind]
        group = prefix.split("/")[1] if prefix.startswith("apis/") else ""
        found.add((VERBS[call.verb], group, f"{plural}/{call.subresource}" if call.subresource else plural))
    return found


def test_whole_runs_need_nothing_that_is_not_allowed():
    assert [need for need in sorted(used()) if not allows(*need)] == []


def test_every_kind_beside_a_server_is_made_put_right_and_removed():
    needed = used()
    for kind in OPTIONAL_KINDS:
        prefix, plural = PATHS[kind]
        group = prefix.split("/")[1]
        assert {verb for verb, *where in needed if where == [group, plural]} == {"get", "list", "patch", "delete"}


def test_what_kopf_watches_is_allowed():
    watched = [("herdsman.dev", info.plural) for info in KINDS.values()]
    watched += [("batch", "jobs"), ("", "pods"), ("apps", "deployments")]
    assert all(allows(verb, *resource) for verb in ("list", "watch") for resource in watched)


def test_nothing_dangerous_is_allowed():
    for rule in (*RULES, *LEASE_RULES):
        assert "*" not in (*rule.verbs, *rule.resources, rule.group)
        assert not {"secrets", "pods/exec", "serviceaccounts", "roles"} & set(rule.resources)
        assert not {"escalate", "bind", "impersonate", "deletecollection"} & set(rule.verbs)
        assert rule.why.endswith(".")


def test_a_claim_is_never_changed_nor_deleted():
    assert not any(allows(verb, "", "persistentvolumeclaims") for verb in ("delete", "patch", "update"))


def test_a_rule_reads_as_a_role_does():
    assert RULES[0].to_json()["apiGroups"] == ["herdsman.dev"]
