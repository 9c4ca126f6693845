"""An artifact is complete or absent, belongs to one resource, and is checked by whoever takes it."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from herdsman.api.job_config import MANIFEST_NAME, FileDigest
from herdsman.api.v1alpha1.status import Metric
from herdsman_trainer.artifacts import (
    artifact_digest,
    draft_artifact,
    open_input,
    publish_artifact,
    published_artifact,
    read_manifest,
    verify_artifact,
)
from herdsman_trainer.errors import BadInput, Interrupted
from herdsman_trainer.ownership import begin_attempt, claim_workspace
from run_configs import run_config, source

FILES = {"config.json": b"{}", "model.safetensors": b"weights", "sub/notes.txt": b"x"}


def publish(config, files=FILES, **options):
    draft = draft_artifact(config)
    for name, content in files.items():
        (draft / name).parent.mkdir(exist_ok=True)
        (draft / name).write_bytes(content)
    return publish_artifact(config, draft, kind="model", **options)


def test_the_digest_is_that_of_the_sorted_lines():
    files = {"b": FileDigest(bytes=2, sha256="b" * 64), "a": FileDigest(bytes=1, sha256="a" * 64)}
    text = f"a 1 {'a' * 64}\nb 2 {'b' * 64}\n"
    assert artifact_digest(files) == hashlib.sha256(text.encode()).hexdigest()


def test_a_published_artifact_carries_its_contract_and_verifies(tmp_path):
    metric = Metric(name="tensors", value="3")
    inputs = {"spec.model": "c" * 64}
    artifact = publish(run_config(tmp_path), inputs=inputs, report=[metric], vocab_size=7, dtype="float32")
    manifest = verify_artifact(tmp_path / "work" / "artifact", "Digests")
    assert manifest.artifact == artifact
    assert (artifact.claim, artifact.path, artifact.vocab_size) == ("claim", "work/artifact", 7)
    assert artifact.bytes == sum(map(len, FILES.values()))
    assert manifest.files.keys() == FILES.keys()
    assert (manifest.inputs, manifest.report) == (inputs, [metric])
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["artifact"]


def test_the_same_files_make_the_same_digest_whoever_publishes_them(tmp_path):
    assert (
        publish(run_config(tmp_path, relative="a")).digest
        == publish(run_config(tmp_path, relative="b", uid="2")).digest
    )


def test_digests_taken_while_writing_are_not_taken_again(tmp_path):
    known = {"config.json": FileDigest(bytes=2, sha256="d" * 64)}
    publish(run_config(tmp_path), known=known)
    assert read_manifest(tmp_path / "work" / "artifact").files["config.json"].sha256 == "d" * 64


def test_a_finished_artifact_is_found_by_the_next_attempt_of_the_same_resource_only(tmp_path):
    assert published_artifact(run_config(tmp_path)) is None
    artifact = publish(run_config(tmp_path))
    assert published_artifact(run_config(tmp_path, attempt=2)) == artifact
    assert published_artifact(run_config(tmp_path, uid="other")) is None


def test_a_damaged_artifact_is_made_again(tmp_path):
    first = publish(run_config(tmp_path))
    (tmp_path / "work/artifact/model.safetensors").unlink()
    assert published_artifact(run_config(tmp_path, attempt=2)) is None
    assert publish(run_config(tmp_path, attempt=2)) == first
    verify_artifact(tmp_path / "work/artifact", "Digests")


def test_a_draft_starts_empty_and_removes_those_of_earlier_attempts(tmp_path):
    (draft_artifact(run_config(tmp_path, attempt=1)) / "half").write_bytes(b"x")
    draft = draft_artifact(run_config(tmp_path, attempt=2))
    assert [path.name for path in (tmp_path / "work").iterdir()] == [draft.name]
    assert list(draft.iterdir()) == []


def shorten(directory):
    (directory / "model.safetensors").write_bytes(b"weight")


def flip(directory):
    (directory / "model.safetensors").write_bytes(b"weighty"[::-1])


def remove(directory):
    (directory / "sub/notes.txt").unlink()


def add(directory):
    (directory / "tokenizer.model").write_bytes(b"x")


def edit_digest(directory):
    path = directory / MANIFEST_NAME
    manifest = json.loads(path.read_text())
    manifest["files"]["config.json"]["bytes"] = 3
    path.write_text(json.dumps(manifest))


def link_outside(directory):
    (directory / "model.safetensors").unlink()
    outside = directory.parent / "outside"
    outside.write_bytes(b"weights")
    (directory / "model.safetensors").symlink_to(outside)


def drop_manifest(directory):
    (directory / MANIFEST_NAME).unlink()


@pytest.mark.parametrize(
    ("damage", "depth", "names", "says"),
    [
        (shorten, "Sizes", "model.safetensors", "6 bytes and the manifest says 7"),
        (flip, "Digests", "model.safetensors", f"manifest says {hashlib.sha256(b'weights').hexdigest()}"),
        (remove, "Sizes", "sub/notes.txt", "missing"),
        (add, "Sizes", "tokenizer.model", "not part of the artifact"),
        (edit_digest, "Sizes", MANIFEST_NAME, "do not make the digest"),
        (link_outside, "Sizes", "model.safetensors", "missing"),
        (drop_manifest, "Sizes", "", "has no herdsman-artifact.json"),
    ],
    ids=["cut", "changed", "removed", "added", "manifest edited", "linked from outside", "no manifest"],
)
def test_a_changed_artifact_is_refused_with_the_file(tmp_path, damage, depth, names, says):
    publish(run_config(tmp_path))
    directory = tmp_path / "work/artifact"
    damage(directory)
    with pytest.raises(BadInput, match=says) as caught:
        verify_artifact(directory, depth)
    assert caught.value.file == str(directory / names)
    assert caught.value.hint


def test_a_changed_byte_passes_the_cheap_check_only(tmp_path):
    publish(run_config(tmp_path))
    flip(tmp_path / "work/artifact")
    verify_artifact(tmp_path / "work/artifact", "Sizes")


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "sub/../../x", "a\\b", ""])
def test_a_manifest_that_names_files_outside_is_refused(tmp_path, name):
    publish(run_config(tmp_path))
    path = tmp_path / "work/artifact" / MANIFEST_NAME
    manifest = json.loads(path.read_text())
    manifest["files"][name] = manifest["files"]["config.json"]
    path.write_text(json.dumps(manifest))
    with pytest.raises(BadInput, match="outside"):
        read_manifest(path.parent)


def test_a_damaged_manifest_names_the_field(tmp_path):
    publish(run_config(tmp_path))
    path = tmp_path / "work/artifact" / MANIFEST_NAME
    manifest = json.loads(path.read_text())
    manifest["artifact"]["digest"] = "short"
    path.write_text(json.dumps(manifest))
    with pytest.raises(BadInput, match=r"artifact\.digest") as caught:
        read_manifest(path.parent)
    assert caught.value.file == str(path)


def test_an_input_is_taken_when_it_is_what_was_planned(tmp_path):
    artifact = publish(run_config(tmp_path))
    directory = tmp_path / "work/artifact"
    assert open_input(source(directory, root=tmp_path, artifact=artifact), "Digests") == directory


def test_plain_files_are_taken_without_a_manifest(tmp_path):
    (tmp_path / "corpus").mkdir()
    assert open_input(source(tmp_path / "corpus", root=tmp_path)) == tmp_path / "corpus"


@pytest.mark.parametrize("case", ["absent", "outside", "another artifact", "damaged"])
def test_an_input_that_is_not_what_was_planned_is_refused_with_its_field(tmp_path, case):
    root = tmp_path / "root"
    artifact = publish(run_config(root))
    path = root / "work/artifact"
    if case == "absent":
        path = root / "nothing"
    elif case == "outside":
        (tmp_path / "elsewhere").mkdir()
        path = root / "link"
        path.symlink_to(tmp_path / "elsewhere")
    elif case == "another artifact":
        artifact = artifact.model_copy(update={"digest": "0" * 64})
    else:
        shorten(path)
    with pytest.raises(BadInput) as caught:
        open_input(source(path, root=root, field="spec.adapters[0]", artifact=artifact))
    assert case == "damaged" or "spec.adapters[0]" in str(caught.value)
    assert caught.value.file.startswith(str(path))


def test_the_first_resource_owns_the_workspace_and_its_later_attempts_too(tmp_path):
    workspace = claim_workspace(run_config(tmp_path))
    assert json.loads((workspace / ".owner.json").read_text())["uid"] == "uid-1"
    assert claim_workspace(run_config(tmp_path, attempt=2)) == workspace
    assert [path.name for path in workspace.iterdir()] == [".owner.json"]


def test_a_second_resource_is_refused_and_both_are_named(tmp_path):
    claim_workspace(run_config(tmp_path, name="first"))
    with pytest.raises(BadInput, match=r"belongs to LoRAMerge default/first .* and LoRAMerge default/second") as caught:
        claim_workspace(run_config(tmp_path, name="second", uid="uid-2"))
    assert caught.value.reason == "PathConflict"


def test_of_many_that_claim_at_once_exactly_one_succeeds(tmp_path):
    def claim(number):
        try:
            claim_workspace(run_config(tmp_path, uid=f"uid-{number}"))
        except BadInput as error:
            return error.reason
        return "claimed"

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(claim, range(24)))
    assert sorted(results) == ["PathConflict"] * 23 + ["claimed"]


def test_an_older_attempt_that_lives_on_publishes_nothing(tmp_path):
    config = run_config(tmp_path)
    workspace = claim_workspace(config)
    begin_attempt(workspace, 1)
    draft = draft_artifact(config)
    (draft / "file").write_text("from a node that was cut off")
    begin_attempt(workspace, 2)
    with pytest.raises(Interrupted, match="Attempt 2 of this run has begun") as caught:
        publish_artifact(config, draft, kind="report")
    assert caught.value.exit_code == 75
    assert not (workspace / "artifact").exists()


def test_an_attempt_does_not_begin_after_a_newer_one_and_begins_again_under_its_own_number(tmp_path):
    workspace = claim_workspace(run_config(tmp_path))
    for attempt in (1, 3, 3):
        begin_attempt(workspace, attempt)
    with pytest.raises(Interrupted):
        begin_attempt(workspace, 2)
    assert sorted(path.name for path in workspace.iterdir()) == [".attempt-3", ".owner.json"]


def test_an_unreadable_claim_says_what_to_do(tmp_path):
    claim_workspace(run_config(tmp_path))
    (tmp_path / "work/.owner.json").write_text("")
    with pytest.raises(BadInput, match="cannot be read") as caught:
        claim_workspace(run_config(tmp_path))
    assert "delete .owner.json" in caught.value.hint


def test_a_workspace_behind_a_link_out_of_the_volume_is_refused(tmp_path):
    (tmp_path / "root").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "root/link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BadInput, match="outside its volume"):
        claim_workspace(run_config(tmp_path / "root", relative="link/work"))
    assert list((tmp_path / "elsewhere").iterdir()) == []
