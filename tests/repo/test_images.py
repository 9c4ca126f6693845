"""Conventions of the images, read from their Dockerfiles and locks; what the built images do is in tests/e2e."""

import ast
import importlib
import importlib.util
import json
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from herdsman.core.pods import USER

PROJECT = Path(__file__).parents[2]
IMAGES = PROJECT / "images"
ENTRY_POINTS = {"operator": "herdsman.kube", "trainer": "herdsman_trainer", "server": "herdsman_server"}
EXTRAS = {"operator": ("operator",), "trainer": ("trainer", "deepspeed", "trackers"), "server": ("server",)}
PYPROJECT = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LOCKED = re.compile(r"([a-z0-9-]+)==(\S+) \\((?:\n +--hash=sha256:[0-9a-f]{64}(?: \\)?)+)\n(?: +#.*\n)*")
every_image = pytest.mark.parametrize("name", ENTRY_POINTS)


@dataclass(frozen=True)
class Instruction:
    """One instruction of a Dockerfile, its continued lines joined."""

    word: str
    rest: str


def dockerfile(name: str) -> list[Instruction]:
    text = (IMAGES / name / "Dockerfile").read_text(encoding="utf-8")
    lines = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE)).splitlines()
    return [Instruction(*line.split(" ", 1)) for line in lines if line.strip()]


def stages(name: str) -> list[list[Instruction]]:
    found: list[list[Instruction]] = [[]]
    for instruction in dockerfile(name):
        if instruction.word == "FROM":
            found.append([])
        found[-1].append(instruction)
    return found[1:]


def last(name: str, word: str) -> str:
    """The last such instruction of the stage that becomes the image."""
    found = [instruction.rest for instruction in stages(name)[-1] if instruction.word == word]
    assert found, f"images/{name}/Dockerfile: no {word} in the last stage"
    return found[-1]


def pairs(name: str, word: str) -> dict[str, str]:
    """The variables or labels of the last stage."""
    return {key: value.strip('"') for key, value in re.findall(r'([\w.]+)=("[^"]*"|\S+)', last(name, word))}


def arguments(name: str) -> dict[str, str]:
    """The build arguments' defaults."""
    given = [instruction.rest.split("=", 1) for instruction in dockerfile(name) if instruction.word == "ARG"]
    return {argument[0]: argument[1] for argument in given}


def lock(name: str) -> dict[str, str]:
    """The versions of a lock by package; every line of it must be understood."""
    text = (IMAGES / "requirements" / f"{name}.txt").read_text(encoding="utf-8")
    body = re.sub(r"\A(#.*\n)+", "", text)
    assert LOCKED.sub("", body) == "", f"images/requirements/{name}.txt: these lines are not a version with hashes"
    found = LOCKED.findall(body)
    assert len({package for package, _, _ in found}) == len(found)
    return {package: version for package, version, _ in found}


def direct(extras: tuple[str, ...]) -> list[Requirement]:
    """What the project itself requires, with these extras."""
    found = [Requirement(line) for line in PYPROJECT["dependencies"]]
    for extra in extras:
        for requirement in map(Requirement, PYPROJECT["optional-dependencies"][extra]):
            own = requirement.name == PYPROJECT["name"]
            found += direct(tuple(requirement.extras)) if own else [requirement]
    return found


def script(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@every_image
def test_an_image_runs_as_the_numeric_user_of_the_pods(name):
    assert last(name, "USER") == f"{USER}:{USER}"


@every_image
def test_a_base_is_an_argument_with_a_version(name):
    bases = {stage[0].rest.split(" AS ")[0] for stage in stages(name)}
    own = {stage[0].rest.split(" AS ")[1] for stage in stages(name)[:-1]}
    assert bases - own == {"${BASE}"}
    assert re.fullmatch(r"[a-z]+:\d+\.\d+-\S+", arguments(name)["BASE"])


@every_image
def test_a_process_is_started_without_a_shell(name):
    started = [instruction for instruction in dockerfile(name) if instruction.word in ("CMD", "ENTRYPOINT")]
    assert [json.loads(instruction.rest) for instruction in started] == [["python", "-m", ENTRY_POINTS[name]]]
    assert importlib.util.find_spec(f"{ENTRY_POINTS[name]}.__main__") is not None


@every_image
def test_an_image_says_what_it_is(name):
    labels = pairs(name, "LABEL")
    prefix = "org.opencontainers.image."
    assert set(labels) == {f"{prefix}{key}" for key in ("title", "description", "licenses", "version", "revision")}
    assert labels[f"{prefix}title"] == f"Herdsman {name}"
    assert labels[f"{prefix}licenses"] == PYPROJECT["license"]
    assert labels[f"{prefix}version"] == "${VERSION}"
    assert arguments(name)["VERSION"] == PYPROJECT["version"]


@every_image
def test_what_is_written_goes_under_tmp(name):
    variables = pairs(name, "ENV")
    folders = {key: value for key, value in variables.items() if re.search(r"HOME|_DIR$", key)}
    assert {key: value for key, value in folders.items() if not re.match(r"/tmp(/|$)", value)} == {}
    assert "HOME" in folders
    assert variables["PYTHONDONTWRITEBYTECODE"] == "1"


@pytest.mark.parametrize("name", ["trainer", "server"])
def test_an_image_with_models_keeps_all_caches_under_tmp_and_never_asks_a_hub(name):
    variables = pairs(name, "ENV")
    assert {"HF_HOME", "TORCHINDUCTOR_CACHE_DIR", "TORCH_EXTENSIONS_DIR", "TRITON_CACHE_DIR"} <= set(variables)
    assert variables["HF_HUB_OFFLINE"] == "1"


@every_image
def test_the_last_stage_installs_nothing(name):
    runs = [instruction.rest for instruction in stages(name)[-1] if instruction.word == "RUN"]
    assert [run for run in runs if re.search(r"\bpip\b|\bapt|\bcurl\b|\bwget\b", run)] == []
    assert [instruction for instruction in dockerfile(name) if instruction.word == "ADD"] == []


@every_image
def test_everything_from_an_index_has_its_hash_checked_except_torch(name):
    commands = [
        command
        for instruction in dockerfile(name)
        if instruction.word == "RUN"
        for command in re.split(r"&&", instruction.rest)
        if re.search(r"\bpip .*\b(install|wheel)\b", command)
    ]
    offline = [command for command in commands if "--no-index" in command or command.rstrip().endswith("./project")]
    unchecked = [command for command in commands if command not in offline and "--require-hashes" not in command]
    assert all("${TORCH}" in command for command in unchecked)
    assert len(unchecked) == (name != "operator")


def test_trainer_and_server_share_the_layer_of_torch():
    (first, *_, trainer), (second, *_, server) = stages("trainer"), stages("server")
    assert first == second
    assert trainer[:3] == server[:3]
    assert "--from=torch" in trainer[2].rest


def test_torch_has_one_version_everywhere():
    makefile = (PROJECT / "Makefile").read_text(encoding="utf-8")
    pinned = re.search(r"^TORCH \?= (torch==\S+)", makefile, flags=re.MULTILINE)
    assert pinned is not None
    wanted = script(IMAGES / "lock.py").TORCH
    assert {pinned[1], arguments("trainer")["TORCH"], arguments("server")["TORCH"]} == {wanted}
    assert f"torch=={lock('torch-cuda')['torch']}" == wanted


@every_image
def test_what_a_dockerfile_copies_is_there_and_not_ignored(name):
    ignore = (PROJECT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    let_in = [line[1:] for line in ignore if line.startswith("!")]
    copies = [instruction.rest for instruction in dockerfile(name) if instruction.word == "COPY"]
    sources = [path for copy in copies if not copy.startswith("--from=") for path in copy.split()[:-1]]
    assert [path for path in sources if not (PROJECT / path).exists()] == []
    assert [path for path in sources if not any(path == one or path.startswith(f"{one}/") for one in let_in)] == []
    assert "*" in ignore
    assert sources != []


@every_image
def test_a_lock_holds_what_the_project_requires_within_its_ranges(name):
    locked = lock(name) | {"torch": lock("torch-cuda")["torch"]}
    required = direct(EXTRAS[name])
    missing = [str(one) for one in required if canonicalize_name(one.name) not in locked]
    outside = [str(one) for one in required if not one.specifier.contains(locked.get(canonicalize_name(one.name), "0"))]
    assert (missing, outside) == ([], []), "pyproject.toml has changed: run python images/lock.py"


def test_the_locks_are_those_that_the_script_writes():
    known = {one.name for one in script(IMAGES / "lock.py").locks()}
    assert {path.stem for path in (IMAGES / "requirements").iterdir()} == known


def test_only_the_cuda_lock_holds_torch_and_its_cuda_libraries():
    cuda = script(IMAGES / "lock.py").CUDA
    others = [path.stem for path in (IMAGES / "requirements").iterdir() if path.stem != "torch-cuda"]
    assert {name: [package for package in lock(name) if cuda.match(package)] for name in others} == {
        name: [] for name in others
    }
    assert [package for package in lock("torch-cuda") if not cuda.match(package)] == []


def test_a_model_is_served_by_the_versions_that_trained_it():
    trainer, server = lock("trainer"), lock("server")
    assert {package for package in trainer.keys() & server.keys() if trainer[package] != server[package]} == set()
    assert lock("torch").items() <= trainer.items() & server.items()
    assert {"transformers", "tokenizers", "sentencepiece", "safetensors"} <= server.keys()


def test_the_operator_uses_nothing_that_is_trimmed_from_its_image():
    trimmed = tuple(f"kubernetes.{package}." for package in script(IMAGES / "operator" / "trim.py").GENERATED)
    used: dict[str, str] = {}
    for path in (PROJECT / "operator").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for module, name in _names_from_kubernetes(tree):
            found = getattr(importlib.import_module(module), name)
            used[f"{path.name}: {name}"] = f"{found.__name__ if isinstance(found, ModuleType) else found.__module__}."
    assert {name: module for name, module in used.items() if module.startswith(trimmed)} == {}
    assert "api.py: ApiClient" in used


def _names_from_kubernetes(tree: ast.Module) -> list[tuple[str, str]]:
    """What a module takes from the Kubernetes client: (module, name), also by the name of an imported module."""
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module]
    taken = [(node.module, alias) for node in imports for alias in node.names if node.module.startswith("kubernetes")]
    modules = {alias.asname or alias.name: f"{module}.{alias.name}" for module, alias in taken}
    attributes = [
        (modules[node.value.id], node.attr)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules
    ]
    plain = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    assert [name for name in plain if name.startswith("kubernetes")] == [], "say `from kubernetes.aio import ...`"
    return [(str(module), alias.name) for module, alias in taken] + attributes
