"""What is refused before anything is opened, and what is recognised by its digest."""

import logging

import pytest

from herdsman_trainer.artifacts import read_manifest, verify_artifact
from herdsman_trainer.errors import BadInput
from herdsman_trainer.weights import published
from herdsman_trainer.weights.published import Published, recognise, resembles
from imports import copied, import_model, sha256
from tiny import tiny_llama, tiny_sentencepiece
from tiny_meta import random_llama, write_meta

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_llama(tmp_path_factory.mktemp("model"), hidden_size=16)


@pytest.fixture
def meta(tmp_path):
    directory = write_meta(tmp_path / "meta", random_llama(400), shards=2)
    return tiny_sentencepiece(directory)


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "ab" * 32 + "\nsize 13476939516\n"


def pointer(directory):
    (directory / "model.safetensors").write_text(POINTER)


def pointer_for_tokenizer(directory):
    (directory / "tokenizer.model").write_text(POINTER)


def half_downloaded(directory):
    path = directory / "model.safetensors"
    path.rename(directory / "model.safetensors.part")


def preallocated(directory):
    """As aria2 leaves it: the file has its full size, and the file beside it says that it is not whole."""
    (directory / "model.safetensors.aria2").write_bytes(b"x" * 10)


def leads_outside(directory):
    path = directory / "tokenizer.model"
    path.rename(directory.parent / "secret.model")
    path.symlink_to(directory.parent / "secret.model")


@pytest.mark.parametrize(
    ("damage", "file", "says", "remedy"),
    [
        (
            pointer,
            "model.safetensors",
            "a Git LFS pointer of .* has 13476939516 bytes and the SHA-256 abab",
            "lfs pull",
        ),
        (pointer_for_tokenizer, "tokenizer.model", "a Git LFS pointer", "git lfs pull"),
        (half_downloaded, "model.safetensors.part", "download of model.safetensors is not finished", "Let it finish"),
        (
            preallocated,
            "model.safetensors.aria2",
            "not finished: model.safetensors.aria2 has 10 bytes",
            "Let it finish",
        ),
        (leads_outside, "tokenizer.model", "a link that leads outside its volume", "Copy the file itself"),
    ],
)
def test_a_file_that_is_not_what_its_name_says_is_refused(tmp_path, model, damage, file, says, remedy):
    directory = copied(model, tmp_path / "volume")
    damage(directory)
    with pytest.raises(BadInput, match=says) as caught:
        import_model(tmp_path, directory)
    assert caught.value.file == str(directory / file)
    assert remedy in caught.value.hint


def test_a_tokenizer_above_metas_files_is_looked_at_too(tmp_path, meta):
    volume = tmp_path / "volume"
    volume.mkdir()
    meta.rename(volume / "7B")
    (volume / "7B/tokenizer.model").unlink()
    (volume / "tokenizer.model").write_text(POINTER)
    with pytest.raises(BadInput, match="a Git LFS pointer") as caught:
        import_model(tmp_path, volume / "7B", root=volume)
    assert caught.value.file == str(volume / "tokenizer.model")


def test_links_inside_of_the_volume_are_followed(tmp_path, model):
    blobs = copied(model, tmp_path / "volume/blobs")
    snapshot = tmp_path / "volume/snapshot"
    snapshot.mkdir()
    for path in blobs.iterdir():
        (snapshot / path.name).symlink_to(f"../blobs/{path.name}")
    _, directory = import_model(tmp_path, snapshot, root=tmp_path / "volume")
    assert not (directory / "model.safetensors").is_symlink()
    assert (directory / "model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()


def test_what_lies_beside_a_model_does_not_hinder_it(tmp_path, model):
    directory = copied(model, tmp_path / "volume")
    (directory / "notes.txt.part").write_text("x")
    (directory / "README.md").write_text(POINTER)
    import_model(tmp_path, directory)


def test_a_single_file_that_is_no_gguf_is_refused(tmp_path, model):
    with pytest.raises(BadInput, match="Of single files only GGUF") as caught:
        import_model(tmp_path, model / "model.safetensors", root=model)
    assert "Name the directory" in caught.value.hint


def test_safetensors_come_before_the_other_forms_of_the_same_model(tmp_path, model, meta):
    directory = copied(model, tmp_path / "volume")
    for path in meta.glob("*.pth"):
        (directory / path.name).write_bytes(path.read_bytes())
    (directory / "pytorch_model.bin").write_bytes(b"x")
    _, imported = import_model(tmp_path, directory)
    assert (imported / "model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()


def test_a_file_beside_the_model_may_have_an_expected_digest_whatever_it_is(tmp_path, model):
    directory = copied(model, tmp_path / "volume")
    (directory / "pytorch_model.bin").write_bytes(b"of an old torch")
    expected = {"pytorch_model.bin": sha256(directory / "pytorch_model.bin")}
    _, imported = import_model(tmp_path, directory, sha256=expected)
    assert (
        verify_artifact(imported).inputs.items()
        >= {f"spec.source.volume/{name}": digest for name, digest in expected.items()}.items()
    )


def test_every_file_of_the_source_is_on_record_with_its_digest(tmp_path, meta):
    _, directory = import_model(tmp_path, meta)
    names = ("consolidated.00.pth", "consolidated.01.pth", "params.json", "tokenizer.model")
    assert verify_artifact(directory).inputs == {f"spec.source.volume/{name}": sha256(meta / name) for name in names}


def test_a_digest_of_a_checkpoint_that_is_expected_is_checked(tmp_path, meta):
    found = sha256(meta / "consolidated.01.pth")
    import_model(tmp_path, meta, sha256={"consolidated.01.pth": found})
    with pytest.raises(BadInput, match=f"SHA-256 is {found} and spec.sha256 expects 0000") as caught:
        import_model(tmp_path, meta, sha256={"consolidated.01.pth": "0" * 64}, name="other")
    assert (caught.value.reason, caught.value.file) == ("ChecksumMismatch", str(meta / "consolidated.01.pth"))


def test_the_table_has_the_published_files():
    table = published._table()
    forms = [entry.form for entry in table.values()]
    assert {form: forms.count(form) for form in sorted(set(forms))} == {
        "adapter": 15,
        "huggingface": 14,
        "merged": 24,
        "meta": 7,
        "tokenizer": 5,
    }
    assert all(len(digest) == 64 and int(digest, 16) for digest in table)
    seven = recognise("700df0d3013b703a806d2ae7f1bfb8e59814e3d06ae78be0c66368a50059f33d")
    assert str(seven) == "LLaMA-7B (Meta's consolidated.00.pth)"
    adapter = recognise("0d9b6ed8e4a7d1ae590a16c89a452a488d66ff07e45487972f61c2b6e46e36de")
    assert str(adapter) == "Chinese-Alpaca-7B (the LoRA in adapter_model.bin)"
    assert recognise("0" * 64) is None


@pytest.mark.parametrize(
    ("file", "form", "size", "model"),
    [
        ("consolidated.00.pth", "meta", (4096, 32), "LLaMA-7B"),
        ("consolidated.01.pth", "meta", (5120, 40), "LLaMA-13B"),
        ("consolidated.01.pth", "meta", (4096, 32), None),
        ("consolidated.00.pth", "meta", (64, 2), None),
    ],
)
def test_a_name_and_a_size_may_be_those_of_a_published_file(file, form, size, model):
    like = resembles(file, form, *size)
    assert (like and like.model) == model


def known_as(monkeypatch, **digests):
    """Let the table hold these digests: the published files are not here."""
    table = {digest: Published(digest, *what) for digest, what in digests.items()}
    monkeypatch.setattr(published, "_table", lambda: table)


def test_a_published_model_is_recognised_by_itself(tmp_path, meta, monkeypatch, caplog):
    files = {sha256(meta / f"consolidated.0{n}.pth"): ("LLaMA-13B", "meta", f"consolidated.0{n}.pth") for n in (0, 1)}
    known_as(monkeypatch, **files, **{sha256(meta / "tokenizer.model"): ("LLaMA", "tokenizer", "tokenizer.model")})
    with caplog.at_level(logging.INFO):
        _, directory = import_model(tmp_path, meta)
    report = {metric.name: metric.value for metric in read_manifest(directory).report}
    assert (report["recognised_model"], report["recognised_tokenizer"]) == ("LLaMA-13B", "LLaMA")
    assert "this is LLaMA-13B (Meta's consolidated.01.pth)" in caplog.text


def test_files_of_two_published_models_make_no_model_of_that_name(tmp_path, meta, monkeypatch):
    known_as(monkeypatch, **{sha256(meta / "consolidated.00.pth"): ("LLaMA-13B", "meta", "consolidated.00.pth")})
    _, directory = import_model(tmp_path, meta)
    assert "recognised_model" not in {metric.name for metric in read_manifest(directory).report}


def test_a_file_that_only_has_a_published_name_and_size_gets_a_note(tmp_path, meta, monkeypatch, caplog):
    known_as(monkeypatch, **{"00" * 32: ("LLaMA-7B", "meta", "consolidated.00.pth")})
    monkeypatch.setattr(published, "SHAPES", {(32, 2): "7B"})
    with caplog.at_level(logging.INFO):
        import_model(tmp_path, meta)
    assert "has the name and the size of LLaMA-7B (Meta's consolidated.00.pth), but another SHA-256" in caplog.text
