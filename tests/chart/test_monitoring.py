"""Alerts and dashboards: they name metrics that exist, and each alert fires when it should and not otherwise."""

import json
import re
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry

import herdsman.kube.metrics
import herdsman_server.metrics
import herdsman_trainer.metrics
from admission import PROJECT
from helm import CHART, executable, text
from herdsman.activator.demand import Demand
from herdsman.api.v1alpha1.registry import KINDS
from herdsman.core.optional_children import TOKENS_METRIC, WAITING_METRIC

ALERTS = CHART / "alerts" / "herdsman.yaml"
UNIT_TESTS = PROJECT / "tests" / "chart" / "alerts_test.yaml"
DASHBOARDS = sorted((CHART / "dashboards").glob("*.json"))
NAME = re.compile(r"\bherdsman_[a-z_]+")
SERIES = ("_bucket", "_sum", "_count")


def names_of(registry: CollectorRegistry) -> set[str]:
    """The metrics of a registry as they are queried: counters with _total."""
    return {family.name + ("_total" if family.type == "counter" else "") for family in registry.collect()}


@pytest.fixture(scope="module")
def existing() -> set[str]:
    """Every metric that an operator, a trainer or a server can give."""
    kube = herdsman.kube.metrics
    operator = {*names_of(kube.Metrics().registry), *kube._GAUGES, *kube._FIGURE_HELP, *documented(kube)}
    trainer = {f"herdsman_train_{name}" for name in herdsman_trainer.metrics.GAUGES}
    activator = names_of(Demand().registry)
    return operator | trainer | activator | names_of(herdsman_server.metrics.ServerMetrics().registry)


def documented(module: Any) -> set[str]:
    return set(re.findall(r"^\| (herdsman_[a-z_]+)", module.__doc__, re.MULTILINE))


def expressions(document: Any) -> Iterator[str]:
    """Every query in a dashboard or in a file of rules."""
    if isinstance(document, dict):
        for key, value in document.items():
            if key in ("expr", "definition") and isinstance(value, str):
                yield value
            else:
                yield from expressions(value)
    elif isinstance(document, list):
        for item in document:
            yield from expressions(item)


def unknown(queries: Iterator[str], existing: set[str]) -> list[str]:
    used = {name for query in queries for name in NAME.findall(re.sub(r'"[^"]*"', "", query))}
    assert used, "no query names a metric"
    stems = {f"{name}{end}" for name in existing for end in SERIES}
    return sorted(used - existing - stems)


def test_what_the_operators_documentation_names_is_what_its_registry_and_collector_give():
    kube = herdsman.kube.metrics
    made = {*names_of(kube.Metrics().registry), *kube._GAUGES, *kube._FIGURE_HELP}
    made |= {"herdsman_queue_depth", "herdsman_queue_delayed", "herdsman_queue_oldest_seconds"}
    assert documented(kube) - made <= {"herdsman_events_dropped_total"}


def adapter_rules() -> list[dict[str, Any]]:
    """The rules for prometheus-adapter on the page about servers."""
    page = text(PROJECT / "docs" / "operations" / "servers.md")
    (block,) = (block for block in re.findall(r"```text\n(.*?)```", page, re.DOTALL) if block.startswith("rules:"))
    return yaml.safe_load(block)["rules"]


def test_every_metric_that_autoscaling_follows_is_offered_by_the_adapters_rules_from_one_that_a_server_gives():
    given = names_of(herdsman_server.metrics.ServerMetrics().registry)
    asked = {rule["seriesQuery"].partition("{")[0] for rule in adapter_rules()}
    assert asked <= given
    offered = {rule.get("name", {}).get("as") or rule["seriesQuery"].partition("{")[0] for rule in adapter_rules()}
    assert offered == {WAITING_METRIC, TOKENS_METRIC}
    for rule in adapter_rules():
        assert set(rule["resources"]["overrides"]) == {"namespace", "pod"}
        assert "<<.Series>>{<<.LabelMatchers>>}" in rule["metricsQuery"]


def test_every_metric_that_keda_would_follow_exists(existing):
    manifest = yaml.safe_load(text(PROJECT / "examples" / "cluster" / "keda.yaml"))
    queries = [re.sub(r"\{[^}]*\}", "", trigger["metadata"]["query"]) for trigger in manifest["spec"]["triggers"]]
    assert unknown(iter(queries), existing) == []
    assert manifest["spec"]["scaleTargetRef"]["kind"] in KINDS


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.name)
def test_every_metric_of_a_dashboard_exists(path, existing):
    assert unknown(expressions(json.loads(text(path))), existing) == []


def test_every_metric_of_an_alert_exists(existing):
    assert unknown(expressions(yaml.safe_load(text(ALERTS))), existing) == []


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.name)
def test_the_panels_of_a_dashboard_have_names_places_and_queries_of_their_own(path):
    panels = json.loads(text(path))["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(cells) == len(set(cells)), "two panels overlap"
    assert max(x for x, _ in cells) < 24
    shown = [panel for panel in panels if panel["type"] != "row"]
    assert all(panel["title"] and panel["description"] and panel["targets"] for panel in shown)
    uids = {target["datasource"]["uid"] for panel in shown for target in panel["targets"]}
    assert uids == {"${datasource}"}


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(text(ALERTS))["groups"] for rule in group["rules"]]


def test_every_alert_says_what_is_wrong_and_what_to_do():
    for rule in rules():
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"]["summary"].endswith(".")
        assert rule["annotations"]["description"]


def test_every_alert_is_tested():
    tested = {
        case["alertname"]
        for test in yaml.safe_load(text(UNIT_TESTS))["tests"]
        for case in test["alert_rule_test"]
        if case.get("exp_alerts")
    }
    assert tested == {rule["alert"] for rule in rules()}


@pytest.mark.parametrize(
    "arguments", [["check", "rules", ALERTS], ["test", "rules", UNIT_TESTS]], ids=["check", "test"]
)
def test_prometheus_reads_the_alerts_and_they_fire_as_described(arguments):
    ended = subprocess.run(
        [executable("promtool"), *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
