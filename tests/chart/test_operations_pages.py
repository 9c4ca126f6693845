"""The pages on operating name values, alerts and files that exist."""

import json
import re

import pytest
import yaml

from admission import PROJECT
from helm import CHART, text
from herdsman.api.v1alpha1.registry import KINDS

PAGES = sorted((PROJECT / "docs" / "operations").glob("*.md"))
SCHEMA = json.loads(text(CHART / "values.schema.json"))


PARTS = ("spec", "recipe")
"""Members of a manifest of which a page shows nothing else."""


def is_value(path: str) -> bool:
    """Whether the chart has this value, or one that takes any name there."""
    node = SCHEMA
    for part in path.split("."):
        if part in node.get("properties", ()):
            node = node["properties"][part]
        elif isinstance(node.get("additionalProperties"), dict):
            node = node["additionalProperties"]
        else:
            return False
    return True


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_value_that_is_set_on_a_page_exists(page):
    asked = re.findall(r"--set(?:-json)? '?([A-Za-z.]+)=", text(page))
    asked += re.findall(r"`([a-z]+[A-Za-z]*\.[A-Za-z.]+)(?::[^`]*)?`", text(page).replace("spec.", "`"))
    files = (".json", ".jsonl")
    ours = [path for path in asked if path.partition(".")[0] in SCHEMA["properties"] and not path.endswith(files)]
    assert [path for path in ours if not is_value(path)] == []


BLOCKS = [yaml.safe_load(block) for page in PAGES for block in re.findall(r"```yaml\n(.*?)```", text(page), re.DOTALL)]


def test_every_value_of_the_pages_yaml_exists():
    values = [block for block in BLOCKS if not block.keys() & {"kind", *PARTS}]
    assert values
    assert {key for block in values for key in block} <= set(SCHEMA["properties"])


def test_every_manifest_of_the_pages_is_valid():
    manifests = [block for block in BLOCKS if "kind" in block]
    assert manifests
    for manifest in manifests:
        KINDS[manifest["kind"]].model.parse(json.dumps(manifest))


def test_every_part_of_a_training_is_valid():
    parts = [block for block in BLOCKS if block.keys() & set(PARTS) and "kind" not in block]
    assert parts
    for part in parts:
        spec = part.get("spec", part)
        whole = {
            "apiVersion": "herdsman.dev/v1alpha1",
            "kind": "PretrainJob",
            "metadata": {"name": "zh"},
            "spec": {"model": {"modelImport": "base"}, "dataset": {"volume": {"claim": "corpora"}}, **spec},
        }
        KINDS["PretrainJob"].model.parse(json.dumps(whole))


def test_every_alert_has_a_line_and_every_line_an_alert():
    listed = re.findall(r"^\| (Herdsman\w+) \|", text(PROJECT / "docs/operations/monitoring.md"), re.MULTILINE)
    groups = yaml.safe_load(text(CHART / "alerts/herdsman.yaml"))["groups"]
    assert listed == [rule["alert"] for group in groups for rule in group["rules"]]


def test_every_page_is_listed():
    listed = re.findall(r"\]\(([a-z-]+\.md)\)", text(PROJECT / "docs/operations/README.md"))
    assert sorted(listed) == [page.name for page in PAGES if page.name != "README.md"]
