"""A real API server judges the same manifests as the models do, with the generated CRDs."""

import json
import re
from typing import Any

import httpx
import pytest

from admission import Case, cases, crd_schema, judged_by_models
from e2e_cluster import kubectl
from herdsman.api.v1alpha1.registry import KINDS
from herdsman.generate.examples import EXAMPLES
from odd_manifests import odd_manifests

pytestmark = pytest.mark.e2e

CREATE, UPDATE = cases("create"), cases("update")


def wrong_fields(answer: httpx.Response) -> list[str]:
    """The paths of the fields that the API server refuses."""
    if answer.is_success:
        return []
    status = answer.json()
    causes = [cause["field"] for cause in status.get("details", {}).get("causes", ()) if cause.get("field") != "<nil>"]
    unknown = re.findall(r'unknown field "(.*?)"', status["message"])
    assert causes or unknown, status["message"]
    return sorted({path.removeprefix(".") for path in causes + unknown})


@pytest.mark.parametrize("case", CREATE, ids=str)
def test_a_manifest_is_accepted_or_refused_at_the_same_fields(api, case: Case):
    assert wrong_fields(api.create(KINDS[case.kind].plural, case.new)) == case.refused


@pytest.mark.parametrize(("number", "case"), list(enumerate(UPDATE)), ids=[str(case) for case in UPDATE])
def test_a_change_is_accepted_or_refused_at_the_same_fields(api, number, case: Case):
    plural, name = KINDS[case.kind].plural, f"update-{number}"
    created = api.create(plural, _named(case.old, name), dry_run=False)
    assert created.is_success, created.text
    new = _named(case.new, name)
    new["metadata"]["resourceVersion"] = created.json()["metadata"]["resourceVersion"]
    assert wrong_fields(api.update(plural, new)) == case.refused


def _named(manifest: dict[str, Any] | None, name: str) -> dict[str, Any]:
    assert manifest is not None
    return manifest | {"metadata": manifest["metadata"] | {"name": name}}


@pytest.mark.parametrize("kind", KINDS)
def test_every_odd_value_in_every_field_is_accepted_or_refused_alike(api, kind):
    different = [
        str(case)
        for case in odd_manifests(kind)
        if api.create(KINDS[kind].plural, case.new).is_success is bool(judged_by_models(case))
    ]
    # The schema takes 1.0 for the number 1; the scale subresource and a rule over the object do not.
    strict = {
        "Evaluation": ["compute.gpusPerNode", "compute.nodes", "compute.processesPerNode"],
        "InstructionSet": [
            "clean.longestInstruction",
            "clean.longestOutput",
            "clean.shortestInstruction",
            "clean.shortestOutput",
            "compute.nodes",
            "compute.processesPerNode",
            "generate.minRecords",
        ],
        "LoRAMerge": ["outputs.pth.shards"],
        "ModelServer": [
            "disruptionBudget.maxUnavailable",
            "disruptionBudget.maxUnavailablePercent",
            "disruptionBudget.minAvailable",
            "disruptionBudget.minAvailablePercent",
            "replicas",
        ],
        "PretrainJob": ["recipe.maxSteps"],
        "SFTJob": ["recipe.epochs"],
    }
    assert sorted(different) == [f"{kind} spec.{name} = 1.0" for name in strict.get(kind, ())]


@pytest.mark.parametrize("kind", KINDS)
def test_the_api_server_fills_in_the_defaults_of_the_models(api, kind):
    manifest = EXAMPLES[kind]
    stored = api.create(KINDS[kind].plural, manifest).json()
    model = KINDS[kind].model
    ours = model.parse(json.dumps(manifest)).spec.to_json()
    assert model.parse(json.dumps(stored)).spec.to_json() == ours
    assert stored["spec"] == ours


@pytest.mark.parametrize("kind", KINDS)
def test_kubectl_explains_every_field_of_the_spec(crds, kind):
    explained = kubectl("explain", f"{KINDS[kind].plural}.spec")
    assert [
        name for name in crd_schema(kind)["properties"]["spec"]["properties"] if f"  {name}\t" not in explained
    ] == []


def test_a_full_status_is_kept_and_shown_in_the_columns(api):
    api.create("pretrainjobs", EXAMPLES["PretrainJob"], dry_run=False)
    condition = {
        "type": "Complete",
        "status": "False",
        "reason": "Running",
        "message": "",
        "observedGeneration": 1,
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }
    status = {
        "phase": "Running",
        "observedGeneration": 1,
        "conditions": [condition],
        "progress": {
            "percent": 40,
            "step": 2400,
            "estimatedRemainingSeconds": 5400,
            "remaining": "1h30m",
            "metrics": [{"name": "learning_rate", "value": "0.0001"}, {"name": "loss", "value": "2.125"}],
        },
    }
    patched = api.patch("pretrainjobs", "zh-pretrain", {"status": status}, "status")
    assert patched.is_success, patched.text
    assert patched.json()["status"] == status
    head, row = kubectl("-n", api.namespace, "get", "pj", "zh-pretrain").splitlines()
    assert head.split() == ["NAME", "PHASE", "PROGRESS%", "STEP", "LOSS", "ETA", "AGE"]
    assert row.split()[:6] == ["zh-pretrain", "Running", "40", "2400", "2.125", "1h30m"]


def test_two_conditions_of_one_type_are_refused(api):
    api.create("sftjobs", EXAMPLES["SFTJob"], dry_run=False)
    condition = {"type": "Complete", "status": "True", "reason": "Succeeded", "observedGeneration": 1}
    twice = [condition | {"lastTransitionTime": "2026-01-01T00:00:00Z"}] * 2
    refused = api.patch("sftjobs", "zh-instructions", {"status": {"conditions": twice}}, "status")
    assert wrong_fields(refused) == ["status.conditions[1]"]


def test_a_server_is_scaled_by_kubectl(api):
    api.create("modelservers", EXAMPLES["ModelServer"], dry_run=False)
    kubectl("-n", api.namespace, "scale", "ms", "zh-llama", "--replicas=5")
    assert kubectl("-n", api.namespace, "get", "ms", "zh-llama", "-o", "jsonpath={.spec.replicas}") == "5"


def test_the_category_lists_every_kind(crds):
    listed = kubectl("api-resources", "--categories=herdsman", "-o", "name").split()
    assert sorted(listed) == sorted(f"{info.plural}.herdsman.dev" for info in KINDS.values())
