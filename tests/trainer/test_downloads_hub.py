"""Downloads from a model hub: which files, which digests, which token, and what a hub may answer instead."""

import pytest

from downloading import download, leave_partial
from herdsman.api.job_config import RemoteSource
from herdsman_trainer.downloads.blob_store import BlobStore
from herdsman_trainer.downloads.patience import TRIES
from herdsman_trainer.errors import BadInput, Temporary
from remote_server import COMMIT, PAGE, Fault, Remote, Repository, git_oid, serving, sha256

WEIGHTS = bytes(range(256)) * 2000
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "model.safetensors": WEIGHTS,
    "pytorch_model.bin": b"pickle",
    "tokenizer.model": b"pieces",
    "README.md": b"hello",
    "original/consolidated.00.pth": b"checkpoint",
    "original/params.json": b"{}",
}
MODEL = {"config.json", "model.safetensors", "tokenizer.model"}
LISTING = f"/api/models/owner/model/revision/{COMMIT}"
WEIGHTS_PATH = f"/cdn/{sha256(WEIGHTS)}"


@pytest.fixture
def remote():
    with serving() as found:
        found.repositories["owner/model"] = Repository(dict(FILES), {"model.safetensors", "tokenizer.model"})
        yield found


def hub(remote: Remote, **source):
    given = {"repository": "owner/model", "revision": COMMIT, "endpoint": remote.url, **source}
    return RemoteSource.model_validate({"hub": given})


TOKEN = {"token": {"name": "keys", "key": "hub"}}


def refusal(root, source, **options):
    with pytest.raises(BadInput) as caught:
        download(root, source, **options)
    return caught.value


def test_a_model_comes_with_configuration_and_tokenizer_and_without_the_rest(tmp_path, remote):
    found = download(tmp_path, hub(remote))
    assert {path.name: path.read_bytes() for path in found.directory.iterdir()} == {name: FILES[name] for name in MODEL}
    assert found.inputs == {
        "spec.source.hub.revision": COMMIT,
        **{f"spec.source.hub/{name}": sha256(FILES[name]) for name in MODEL},
    }


FORMS = {
    "shards before one file": (
        ["model.safetensors", "model-00001-of-00002.safetensors", "model.safetensors.index.json", "config.json"],
        ["model-00001-of-00002.safetensors", "model.safetensors.index.json", "config.json"],
    ),
    "bin where there is no safetensors": (
        ["pytorch_model.bin", "consolidated.00.pth", "a.gguf", "merges.txt"],
        ["pytorch_model.bin", "merges.txt"],
    ),
    "Meta's files with their sizes": (
        ["consolidated.00.pth", "consolidated.01.pth", "params.json", "tokenizer.model", "x.gguf"],
        ["consolidated.00.pth", "consolidated.01.pth", "params.json", "tokenizer.model"],
    ),
    "one GGUF file": (["x-Q8_0.gguf", "README.md", "config.json"], ["x-Q8_0.gguf", "config.json"]),
}


@pytest.mark.parametrize("what", FORMS)
def test_weights_come_in_the_best_form_there_is(tmp_path, remote, what):
    there, expected = FORMS[what]
    remote.repositories["owner/model"] = Repository({name: name.encode() for name in there}, set())
    found = download(tmp_path, hub(remote))
    assert sorted(path.name for path in found.directory.iterdir()) == sorted(expected)


def test_patterns_choose_files_and_a_directory_of_them_is_the_source(tmp_path, remote):
    files = {"files": ["original/*"]}
    digests = {"original/params.json": sha256(b"{}")}
    found = download(tmp_path, hub(remote, **files), sha256=digests)
    assert {path.name for path in found.directory.iterdir()} == {"consolidated.00.pth", "params.json"}
    assert set(found.digests) == {"consolidated.00.pth", "params.json"}
    assert found.expected == {"params.json": sha256(b"{}")}
    both = download(tmp_path, hub(remote, files=["original/*", "config.json"]), name="both")
    assert (both.directory / "original" / "params.json").is_file()


def test_the_second_import_of_a_commit_asks_nobody_and_copies_nothing(tmp_path, remote):
    first = download(tmp_path, hub(remote))
    remote.requests.clear()
    again = download(tmp_path, hub(remote), name="again", environment={"HF_HUB_OFFLINE": "1"})
    assert remote.requests == []
    for name in MODEL:
        assert (first.directory / name).stat().st_ino == (again.directory / name).stat().st_ino
    assert again.figures["downloaded_bytes"] == 0


def test_another_commit_brings_only_what_is_new_in_it(tmp_path, remote):
    download(tmp_path, hub(remote))
    other = "f" * 40
    remote.repositories["owner/model"] = Repository({**FILES, "config.json": b"{}"}, {"model.safetensors"}, other)
    remote.requests.clear()
    found = download(tmp_path, hub(remote, revision=other), name="again")
    assert found.figures["downloaded_bytes"] == len(b"{}") + len(FILES["tokenizer.model"])
    assert not remote.gets("/cdn/")


def test_a_large_file_goes_on_where_it_was_cut(tmp_path, remote):
    remote.faults[WEIGHTS_PATH] = [Fault(cut=100_000)]
    leave_partial(tmp_path, WEIGHTS[:5000], sha256(WEIGHTS))
    found = download(tmp_path, hub(remote))
    assert (found.directory / "model.safetensors").read_bytes() == WEIGHTS
    assert remote.ranges(WEIGHTS_PATH) == ["bytes=5000-", "bytes=105000-"]


def test_a_small_file_is_held_against_the_digest_that_git_has(tmp_path, remote):
    wrong = b'{"model_type": "LLAMA"}'
    remote.always[f"/owner/model/resolve/{COMMIT}/config.json"] = Fault(body=wrong)
    error = refusal(tmp_path, hub(remote))
    assert error.reason == "ChecksumMismatch"
    assert git_oid(wrong) in error.message
    assert git_oid(FILES["config.json"]) in error.message
    assert not BlobStore(tmp_path).holds(sha256(wrong))


def test_a_page_instead_of_weights_is_told_from_its_size(tmp_path, remote):
    remote.always[WEIGHTS_PATH] = Fault(body=PAGE)
    error = refusal(tmp_path, hub(remote))
    assert error.message == f"model.safetensors has {len(PAGE)} bytes there and {len(WEIGHTS)} are expected."
    assert "a web page instead of the file" in error.hint


def test_an_expected_digest_is_held_against_the_listing_and_against_small_files(tmp_path, remote):
    error = refusal(tmp_path, hub(remote), sha256={"model.safetensors": "0" * 64})
    assert "spec.sha256 expects 0000" in error.message
    assert not remote.gets("/resolve/")
    error = refusal(tmp_path, hub(remote), sha256={"config.json": "0" * 64})
    assert f"has the SHA-256 {sha256(FILES['config.json'])} and {'0' * 64} is expected" in error.message
    download(tmp_path, hub(remote), sha256={name: sha256(FILES[name]) for name in MODEL})


def test_a_token_opens_a_private_repository_and_stays_with_its_hub(tmp_path, remote):
    remote.repositories["owner/model"].token = "hunter2"
    found = download(tmp_path, hub(remote, **TOKEN), environment={"HF_TOKEN": "hunter2"})
    assert (found.directory / "model.safetensors").read_bytes() == WEIGHTS
    (weights,) = remote.gets("/cdn/" + sha256(WEIGHTS))
    assert "authorization" not in weights.headers
    assert "hunter2" not in "".join(path.read_text("latin-1") for path in tmp_path.rglob("*") if path.is_file())


def test_without_a_token_in_the_spec_none_is_sent_even_if_the_machine_has_one(tmp_path, remote, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "mine")
    download(tmp_path, hub(remote), environment={"HF_TOKEN": "mine"})
    assert all("authorization" not in request.headers for request in remote.requests)


def test_the_endpoint_is_taken_from_the_environment_unless_the_spec_names_one(tmp_path, remote):
    download(tmp_path, hub(remote, endpoint=None), environment={"HF_ENDPOINT": f"{remote.url}/"})
    assert remote.gets(LISTING)


def gated(remote):
    remote.repositories["owner/model"].token = "right"
    remote.repositories["owner/model"].gated = True
    return hub(remote)


def private(remote):
    remote.repositories["owner/model"].token = "right"
    return hub(remote)


def with_names(*names):
    def change(remote):
        remote.repositories["owner/model"].files |= dict.fromkeys(names, b"x")
        return hub(remote, files=["*"])

    return change


def without_weights(remote):
    remote.repositories["owner/model"].files = {"README.md": b"hello", "onnx/model.onnx": b"x"}
    return hub(remote)


def two_gguf(remote):
    remote.repositories["owner/model"].files = {"a-Q4_0.gguf": b"a", "a-Q8_0.gguf": b"b"}
    return hub(remote)


def another_site(remote):
    remote.always[LISTING] = Fault(status=200, body=PAGE)
    return hub(remote)


def another_commit(remote):
    remote.repositories["owner/model"].commit = "f" * 40
    remote.always[LISTING] = Fault(
        status=200,
        headers={"Content-Type": "application/json"},
        body=b'{"id": "owner/model", "sha": "main", "siblings": []}',
    )
    return hub(remote)


REFUSED = {
    "a gated repository": (gated, "the repository is gated", "Accept the licence on"),
    "a private repository": (private, "no such repository, or it is private", "export HF_TOKEN"),
    "an unknown repository": (
        lambda remote: hub(remote, repository="owner/other"),
        "no such repository",
        "spec.source.hub.repository",
    ),
    "an unknown commit": (lambda remote: hub(remote, revision="f" * 40), f"has no commit {'f' * 40}", "git ls-remote"),
    "a pattern without a match": (
        lambda remote: hub(remote, files=["*.json", "*.gguf"]),
        "spec.source.hub.files[1]: nothing there matches '*.gguf'; there are config.json, ",
        "Correct the pattern",
    ),
    "no weights": (without_weights, "no weights of a model at the top; there are README.md", "say in `files` which"),
    "several GGUF files": (two_gguf, "2 GGUF files, and one is imported: a-Q4_0.gguf, a-Q8_0.gguf", "`files`"),
    "a name that leads out": (with_names("../../evil"), "'../../evil' leads out of the directory", "other files"),
    "an absolute name": (with_names("/etc/passwd"), "'/etc/passwd' leads out of the directory", "other files"),
    "a hidden name": (with_names(".netrc"), "'.netrc' is no name for a file of a model", "other files"),
    "a file that is a directory too": (with_names("a/b", "a"), "two files would be a", "only one"),
    "no hub": (another_site, "is not that of a model hub", "spec.source.hub.endpoint"),
    "another commit than asked for": (another_commit, "the hub answered with main", "full digits of a commit"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_downloaded_is_refused_with_place_and_remedy(tmp_path, remote, what):
    make, says, remedy = REFUSED[what]
    error = refusal(tmp_path, make(remote))
    assert error.message.startswith("spec.source.hub")
    assert says in error.message
    assert remedy in error.hint
    assert error.file.startswith(remote.url)


def test_a_gated_repository_and_a_token_without_access_is_told(tmp_path, remote):
    gated(remote)
    error = refusal(tmp_path, hub(remote, **TOKEN), environment={"HF_TOKEN": "wrong"})
    assert "the repository is gated" in error.message
    assert f"Accept the licence on {remote.url}/owner/model with the account that the token belongs to" in error.hint
    assert refusal(tmp_path, hub(remote, **TOKEN)).message.startswith("spec.source.hub.token is set")


def test_offline_nothing_is_asked_and_what_is_missing_is_told(tmp_path, remote):
    offline = {"HF_HUB_OFFLINE": "1"}
    error = refusal(tmp_path, hub(remote), environment=offline)
    assert "HF_HUB_OFFLINE forbids asking the hub" in error.message
    assert "workspace.claim" in error.hint
    download(tmp_path, hub(remote))
    BlobStore(tmp_path).blob(sha256(WEIGHTS)).unlink()
    remote.requests.clear()
    assert "not all files are on the workspace's volume" in refusal(tmp_path, hub(remote), environment=offline).message
    assert remote.requests == []


def test_a_hub_that_is_busy_or_away_is_waited_for(tmp_path, remote):
    remote.faults[LISTING] = [Fault(status=503), Fault(status=429, headers={"Retry-After": "7"})]
    assert download(tmp_path, hub(remote)).directory.is_dir()
    remote.faults[LISTING] = [Fault(status=500)] * TRIES
    with pytest.raises(Temporary, match=rf"The hub {remote.url} answers with status 500. Tried {TRIES} times"):
        download(tmp_path / "other", hub(remote))
    with pytest.raises(Temporary, match=r"The hub http://127.0.0.1:9 does not answer"):
        download(tmp_path, hub(remote, endpoint="http://127.0.0.1:9"))
