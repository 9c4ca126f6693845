"""The generators: what cannot be said is refused, and --check finds every difference."""

from typing import Literal

import pytest
from pydantic import Field

from herdsman.api.meta import ApiModel
from herdsman.api.v1alpha1.registry import KINDS
from herdsman.api.v1alpha1.status import Reason
from herdsman.generate.__main__ import main
from herdsman.generate.examples import EXAMPLES
from herdsman.generate.reference import reference_files
from herdsman.generate.schema import structural_schema


class Inner(ApiModel):
    """Has a default."""

    size: int = Field(default=4, ge=1, le=9)


def schema_of(annotation, **field):
    model = type("Sample", (ApiModel,), {"__annotations__": {"member": annotation}, "member": Field(**field)})
    return structural_schema(model)["properties"]["member"]


SAID = {
    "an optional member": (
        (int | None, {"default": None, "ge": 0, "le": 9}),
        {"type": "integer", "format": "int32", "minimum": 0, "maximum": 9},
    ),
    "a large whole number": (
        (int, {"ge": 0, "le": 2**40}),
        {"type": "integer", "format": "int64", "minimum": 0, "maximum": 2**40},
    ),
    "an open bound": (
        (float, {"gt": 0, "le": 1}),
        {"type": "number", "format": "double", "minimum": 0, "exclusiveMinimum": True, "maximum": 1},
    ),
    "a constant": ((Literal["only"], {}), {"type": "string", "enum": ["only"]}),
    "a map": (
        (dict[str, str], {"max_length": 3}),
        {"type": "object", "maxProperties": 3, "additionalProperties": {"type": "string"}},
    ),
}


@pytest.mark.parametrize("what", SAID)
def test_what_pydantic_says_is_said_in_the_words_of_kubernetes(what):
    (annotation, field), schema = SAID[what]
    assert schema_of(annotation, **field) == schema


def test_a_model_made_by_a_factory_defaults_to_what_was_set_in_it():
    assert schema_of(Inner, default_factory=Inner)["default"] == {}
    assert schema_of(Inner, default_factory=lambda: Inner(size=7))["default"] == {"size": 7}


def test_a_union_is_refused():
    with pytest.raises(ValueError, match="a union cannot be said"):
        schema_of(int | str, default=1)


@pytest.mark.parametrize("kind", KINDS)
def test_the_example_of_every_reference_page_is_valid(kind):
    assert KINDS[kind].model.model_validate(EXAMPLES[kind]).metadata.name


def test_every_reason_is_explained():
    page = reference_files()["status.md"]
    assert [reason.value for reason in Reason if f"| `{reason.value}` | " not in page] == []


@pytest.fixture
def project(tmp_path):
    """A project whose generated files are as they should be."""
    (tmp_path / "pyproject.toml").touch()
    assert main(["--root", str(tmp_path)]) == 0
    return tmp_path


def test_generating_twice_writes_nothing_the_second_time(project, capsys):
    capsys.readouterr()
    assert main(["--root", str(project)]) == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda crds: (crds / "herdsman.dev_sftjobs.yaml").unlink(), "crds/herdsman.dev_sftjobs.yaml is missing"),
        (lambda crds: (crds / "herdsman.dev_sftjobs.yaml").write_text("x"), "crds/herdsman.dev_sftjobs.yaml differs"),
        (lambda crds: (crds / "old.yaml").touch(), "crds/old.yaml is not generated"),
    ],
    ids=["missing", "changed", "stray"],
)
def test_a_difference_is_named_with_its_remedy_and_then_repaired(project, capsys, damage, told):
    assert main(["--root", str(project), "--check"]) == 0
    damage(project / "crds")
    assert main(["--root", str(project), "--check"]) == 1
    errors = capsys.readouterr().err
    assert told in errors
    assert "make generate" in errors
    assert main(["--root", str(project)]) == 0
    assert main(["--root", str(project), "--check"]) == 0


def test_a_directory_that_is_no_project_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["--root", str(tmp_path)])
    assert "no pyproject.toml" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
