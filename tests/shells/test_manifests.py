"""Reading manifests: whatever is wrong is named with file, line and remedy."""

import json

import pytest

from herdsman.core.world import Key
from herdsman.local.manifests import load_manifests
from herdsman.local.yaml_documents import YamlRefused, read_yaml

HEAD = "apiVersion: herdsman.dev/v1alpha1\nkind: PretrainJob\nmetadata: {name: zh}\n"
MODEL = "  model: {modelImport: base}\n"
DATASET = "  dataset: {volume: {claim: corpora}}\n"
GOOD = f"{HEAD}spec:\n{MODEL}{DATASET}"


def spec(*lines):
    return GOOD + "".join(f"  {line}\n" for line in lines)


WRONG = {
    "a misspelt field": (
        spec("recipe: {learnigRate: 1e-4}"),
        7,
        ["recipe.learnigRate: no such field", "did you mean learningRate?"],
    ),
    "an unknown field far from any": (spec("zzz: 1"), 7, ["spec.zzz: no such field", "known are"]),
    "a missing field": (f"{HEAD}spec:\n{DATASET}", 4, ["spec.model: is missing", "set it: the base model"]),
    "no dataset": (f"{HEAD}spec:\n{MODEL}", 4, ["spec: set either dataset or datasets"]),
    "a number in quotes": (spec('recipe: {learningRate: "1e-4"}'), 7, ["must be a number", "without quotes: 1e-4"]),
    "text for a number": (spec("recipe: {blockSize: big}"), 7, ["spec.recipe.blockSize", "whole number", '"big"']),
    "a fraction for a whole number": (spec("recipe: {maxSteps: 2.5}"), 7, ["whole number", "got 2.5"]),
    "a number for text": (spec("compute: {resources: {cpu: 4}}"), 7, ["must be text", 'in quotes: "4"']),
    "quoted true": (spec('suspend: "true"'), 7, ["must be true or false", "without quotes"]),
    "an item for a list": (spec("recipe: {lora: {targets: q_proj}}"), 7, ["must be a list", '"- "']),
    "a value out of range": (
        spec("recipe: {lora: {rank: 0}}"),
        7,
        ["spec.recipe.lora.rank", "greater than or equal to 1", "got 0"],
    ),
    "infinity": (spec("recipe: {learningRate: .inf}"), 7, ["spec.recipe.learningRate", "finite"]),
    "a misspelt choice": (spec("stage: lora"), 7, ["spec.stage", "'EmbeddingsOnly'", "did you mean LoRA?"]),
    "two of a one-of": (
        spec().replace("modelImport: base", "modelImport: base, loraMerge: x"),
        5,
        ["spec.model", "exactly one of"],
    ),
    "two rules at once": (
        spec("recipe: {epochs: 1, maxSteps: 2}"),
        4,
        ["at most one of recipe.epochs, recipe.maxSteps and recipe.maxTokens"],
    ),
    "a path out of the volume": (
        GOOD.replace("claim: corpora", "claim: corpora, path: ../x"),
        6,
        ["dataset.volume.path", "relative to the volume"],
    ),
    "a name with capitals": (GOOD.replace("name: zh", "name: Zh_1"), 3, ["metadata.name", "lower-case letters"]),
    "a name too long": (GOOD.replace("name: zh", f"name: {'z' * 41}"), 3, ["metadata.name", "at most 40"]),
    "no name": (GOOD.replace("{name: zh}", "{labels: {a: b}}"), 3, ["metadata.name: is missing"]),
    "an unknown kind": (
        GOOD.replace("PretrainJob", "PretrainJobs"),
        2,
        ["kind PretrainJobs is not known", "did you mean PretrainJob?"],
    ),
    "an unknown version": (
        GOOD.replace("v1alpha1", "v1"),
        1,
        ["herdsman.dev/v1 is not known", "write herdsman.dev/v1alpha1"],
    ),
    "a misspelt group": (GOOD.replace("herdsman.dev/", "herdsmen.dev/"), 1, ["herdsmen.dev/v1alpha1 is not known"]),
    "no kind": (GOOD.replace("kind: PretrainJob\n", ""), 1, ["kind is missing"]),
    "no apiVersion": (GOOD.replace("apiVersion: herdsman.dev/v1alpha1\n", ""), 1, ["apiVersion is missing"]),
    "no manifest at all": ("just: words\n", 1, ["not a manifest", "apiVersion"]),
    "a duplicate key": (spec("stage: Full", "stage: LoRA"), 8, ['"stage" is given twice', "line 7"]),
    "a bare yes": (spec("suspend: yes"), 7, ["yes means different things", "true"]),
    "a leading zero": (spec("maxRestarts: 010"), 7, ["010 means different things"]),
    "a tab": (spec("\tsuspend: true"), 7, ["not valid YAML"]),
    "an unknown tag": (spec("suspend: !maybe true"), 7, ["tag !maybe"]),
    "the same resource twice": (f"{GOOD}---\n{GOOD}", 8, ["given twice", "all.yaml:1", "rename"]),
    "spec is no object": (f"{HEAD}spec: 3\n", 4, ["spec: must be an object, got 3"]),
}


@pytest.mark.parametrize(("text", "line", "told"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_told_with_file_line_and_remedy(tmp_path, text, line, told):
    path = tmp_path / "all.yaml"
    path.write_text(text)
    (problem,) = load_manifests([path]).problems
    assert str(problem).startswith(f"{path}:{line}: ")
    assert [part for part in told if part not in str(problem)] == []


def test_all_problems_are_told_at_once_in_the_order_of_the_lines(tmp_path):
    path = tmp_path / "all.yaml"
    path.write_text(spec("zzz: 1", "stage: lora") + "---\n" + GOOD.replace("PretrainJob", "SFTjob"))
    assert [problem.line for problem in load_manifests([path]).problems] == [7, 8, 11]


def test_a_file_that_is_not_utf8_is_named_with_its_line(tmp_path):
    path = tmp_path / "all.yaml"
    path.write_bytes(b"apiVersion: x\nname: \xff\n")
    (problem,) = load_manifests([path]).problems
    assert str(problem) == f"{path}:2: not UTF-8 text; save it as UTF-8"


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [("broken.json", '{"a": 1,\n "b" 2}', ":2: not valid JSON"), ("twice.json", '{"a": 1,\n "a": 2}', ":2: the key")],
)
def test_wrong_json_is_named_with_its_line(tmp_path, name, text, told):
    path = tmp_path / name
    path.write_text(text)
    (problem,) = load_manifests([path]).problems
    assert told in str(problem)


def test_a_path_that_does_not_exist_and_an_empty_directory_are_told(tmp_path):
    problems = load_manifests([tmp_path / "nowhere.yaml", tmp_path]).problems
    assert {problem.message for problem in problems} == {
        "no such file or directory",
        "no manifests here (*.yaml, *.yml, *.json)",
    }


def test_numbers_mean_what_yaml_1_2_says(tmp_path):
    path = tmp_path / "all.yaml"
    path.write_text(spec("recipe: {learningRate: 1e-4, weightDecay: .5, seed: 0x10, maxSteps: 100}"))
    recipe = load_manifests([path]).resources[Key("PretrainJob", "zh")].spec.recipe
    assert (recipe.learning_rate, recipe.weight_decay, recipe.seed, recipe.max_steps) == (1e-4, 0.5, 16, 100)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("~", None),
        ("'yes'", "yes"),
        ("1_000", "1_000"),
        ("12:30", "12:30"),
        ("2026-01-01", "2026-01-01"),
        ("0", 0),
        ("-3", -3),
        ("1.", 1.0),
        ("0o17", 15),
    ],
)
def test_plain_words(text, value):
    (document,) = read_yaml(f"a: {text}")
    assert document.data == {"a": value}
    assert type(document.data["a"]) is type(value)


def test_anchors_and_merges_are_read_and_loops_refused():
    (document,) = read_yaml("base: &b {x: 1, y: 2}\nmine:\n  <<: *b\n  y: 3\n")
    assert document.data["mine"] == {"x": 1, "y": 3}
    with pytest.raises(YamlRefused, match="alias"):
        read_yaml("a: &a [*a]")


def test_a_bomb_of_aliases_is_refused():
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    with pytest.raises(YamlRefused, match="more than"):
        read_yaml("\n".join(lines))


def test_a_directory_is_read_with_everything_below_it_and_foreign_documents_are_noted(tmp_path):
    (tmp_path / "more" / "deep").mkdir(parents=True)
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "a.yaml").write_text(GOOD)
    (tmp_path / "more" / "b.yml").write_text(GOOD.replace("name: zh", "name: b"))
    (tmp_path / "more" / "deep" / "c.json").write_text(
        json.dumps(read_yaml(GOOD.replace("name: zh", "name: c"))[0].data)
    )
    (tmp_path / ".hidden" / "d.yaml").write_text("broken: [")
    (tmp_path / "README.md").write_text("words")
    (tmp_path / "records.json").write_text('[{"instruction": "x"}]')
    (tmp_path / "others.yaml").write_text(
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: n}\n---\n"
        "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {name: corpora}\n---\n"
    )
    found = load_manifests([tmp_path])
    assert not found.problems
    assert [key.name for key in found.resources] == ["zh", "b", "c"]
    assert list(found.claims) == ["corpora"]
    assert [note.split(": ", 1)[1] for note in found.notes] == [
        "skipped, Namespace (v1) is not a kind of Herdsman",
        "skipped, not a manifest",
    ]


def test_large_files_of_a_directory_are_data(tmp_path):
    (tmp_path / "a.yaml").write_text(GOOD)
    (tmp_path / "data.json").write_text("[" + "1," * 600_000 + "1]")
    found = load_manifests([tmp_path])
    assert (len(found.resources), len(found.notes), found.problems) == (1, 1, [])


def test_a_list_as_kubectl_prints_it_is_read_and_what_the_server_added_is_left_out(tmp_path):
    item = read_yaml(GOOD)[0].data
    item["metadata"] |= {"uid": "u", "generation": 7, "creationTimestamp": "2026-01-01T00:00:00Z"}
    item["status"] = {"phase": "Succeeded"}
    path = tmp_path / "list.json"
    path.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": [item]}))
    resource = load_manifests([path]).resources[Key("PretrainJob", "zh")]
    assert (resource.metadata.uid, resource.metadata.generation, resource.status) == ("", 1, None)
