"""What must hold for the files of the project."""

import json
import re
import subprocess
from pathlib import Path

import pytest
import typer
import yaml

from herdsman.api.v1alpha1.registry import KINDS
from herdsman.cli.app import app
from herdsman.generate.__main__ import differences
from herdsman.kubectl.app import app as plugin

PROJECT = Path(__file__).parents[2]
WORKPLACE = ("/wo" + "rk/", "../sha" + "red")
"""Paths of one machine; the second is the optional folder beside the project that only these files look for."""
LOOKS_BESIDE = (".ci/run", "Makefile", "conftest.py")
VAGUE_NAMES = {"utils", "util", "helpers", "helper", "common", "manager", "base", "misc"}
MOST_LINES = 400


def tracked() -> list[Path]:
    """Every file of the project that git knows or would know."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
    )
    if listed.returncode != 0:
        pytest.skip("needs a git checkout, to tell the project's files from others", allow_module_level=True)
    return sorted(PROJECT / name for name in listed.stdout.split("\0") if name and (PROJECT / name).is_file())


FILES = tracked()
PYTHON = [path for path in FILES if path.suffix == ".py"]
PAGES = [path for path in FILES if path.suffix == ".md"]
EXAMPLES = [path for path in FILES if path.match("examples/**/*.yaml") or path.match("examples/*/*.yaml")]


def name(path: Path) -> str:
    return str(path.relative_to(PROJECT))


def text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return None


def test_the_generated_files_are_what_the_models_say():
    assert differences(PROJECT) == []


def test_no_module_is_longer_than_can_be_read():
    lengths = {name(path): len(path.read_text(encoding="utf-8").splitlines()) for path in PYTHON}
    assert {path: lines for path, lines in lengths.items() if lines > MOST_LINES} == {}


def test_no_module_is_named_for_nothing_in_particular():
    assert [name(path) for path in PYTHON if path.stem.strip("_") in VAGUE_NAMES] == []


def test_the_folder_operator_is_no_package_for_that_is_a_module_of_python():
    assert [name(path) for path in PYTHON if path.parent == PROJECT / "operator"] == []


def test_no_file_names_a_path_of_one_machine():
    found = {
        name(path): [word for word in WORKPLACE if word in (text(path) or "")]
        for path in FILES
        if not name(path).endswith(LOOKS_BESIDE)
    }
    assert {path: words for path, words in found.items() if words} == {}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_relative_link_of_a_page_leads_somewhere(page):
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    targets = re.findall(r"\]\(([^)#\s]+)", prose)
    local = [target for target in targets if not re.match(r"[a-z]+:", target)]
    assert [target for target in local if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", [PROJECT / "README.md", PROJECT / "CONTRIBUTING.md"], ids=name)
def test_every_make_command_of_a_page_exists(page):
    targets = set(
        re.findall(r"^([a-z0-9-]+):.*## ", (PROJECT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    )
    written = page.read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"```.*?```|`[^`\n]+`", written, flags=re.DOTALL))
    asked = set(re.findall(r"\bmake ([a-z0-9-]+)", code))
    assert asked - targets == set()
    assert asked != set()


def code_of(page: Path) -> str:
    """What stands between backticks."""
    return "\n".join(re.findall(r"```.*?```|`[^`\n]+`", page.read_text(encoding="utf-8"), flags=re.DOTALL))


def test_every_herdsman_command_of_the_readme_exists():
    commands = set(typer.main.get_group(app).commands)
    asked = set(re.findall(r"(?<!kubectl )(?<!install )\bherdsman +([a-z]+)\b", code_of(PROJECT / "README.md")))
    assert asked - commands == set()
    assert "run" in asked


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_command_of_the_plugin_on_a_page_exists(page):
    commands = set(typer.main.get_group(plugin).commands)
    assert set(re.findall(r"\bkubectl herdsman +([a-z]+)\b", code_of(page))) - commands == set()


def test_every_command_of_the_plugin_has_a_page():
    commands = set(typer.main.get_group(plugin).commands)
    written = (PROJECT / "docs" / "operations" / "kubectl.md").read_text(encoding="utf-8")
    assert {command for command in commands if f"`{command}" not in written} == {"version"}


def test_every_decision_is_listed_and_has_its_own_number():
    folder = PROJECT / "docs" / "decisions"
    listed = set(re.findall(r"\]\((\d{4}-[a-z0-9-]+\.md)\)", (folder / "README.md").read_text(encoding="utf-8")))
    present = {path.name for path in folder.glob("*.md")} - {"README.md"}
    assert present == listed
    assert len({page[:4] for page in present}) == len(present)


@pytest.mark.parametrize("path", EXAMPLES, ids=name)
def test_every_example_is_a_valid_manifest(path):
    documents = [document for document in yaml.safe_load_all(path.read_text(encoding="utf-8")) if document]
    ours = [document for document in documents if str(document.get("apiVersion", "")).startswith("herdsman.dev/")]
    for document in ours:
        KINDS[document["kind"]].model.parse(json.dumps(document))
    others = {document["kind"] for document in documents} - KINDS.keys()
    needed = {"Application", "PersistentVolumeClaim", "Pod", "ScaledObject"}
    assert others <= needed, "what a pipeline needs on a cluster, and nothing else"
    assert documents != []
