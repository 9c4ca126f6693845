"""Downloads from an S3 store: one object or a directory, signed or not, and never two versions of an object mixed."""

import hashlib

import pytest

from downloading import download, leave_partial, partials
from herdsman.api.job_config import RemoteSource
from herdsman_trainer.content_cache import content_key
from herdsman_trainer.downloads.patience import TRIES
from herdsman_trainer.errors import BadInput, Temporary
from remote_server import Fault, Remote, serving, sha256

WEIGHTS = bytes(range(256)) * 8000
OBJECTS = {
    "llama/7b/config.json": b"{}",
    "llama/7b/model.safetensors": WEIGHTS,
    "llama/7b/optimizer.pt": b"state",
    "llama/7b-chat/config.json": b"[]",
    "quantised/model-Q8_0.gguf": b"GGUF",
}
KEYS = {"AWS_ACCESS_KEY_ID": "AKIATEST", "AWS_SECRET_ACCESS_KEY": "hunter2"}
PATH = "/models/llama/7b/model.safetensors"


@pytest.fixture
def remote():
    with serving() as found:
        found.buckets["models"] = dict(OBJECTS)
        yield found


def s3(remote: Remote, prefix="llama/7b", **source):
    given = {"bucket": "models", "prefix": prefix, "endpoint": remote.url, **source}
    return RemoteSource.model_validate({"s3": given})


def etag(content: bytes) -> str:
    return f'"{hashlib.md5(content).hexdigest()}"'


def key_of_partial(remote: Remote, path: str, content: bytes) -> str:
    return content_key(
        {
            "s3": remote.url,
            "bucket": "models",
            "key": path,
            "etag": etag(content),
            "size": str(len(content)),
        }
    )


def refusal(root, source, **options):
    with pytest.raises(BadInput) as caught:
        download(root, source, **options)
    return caught.value


@pytest.mark.parametrize("prefix", ["llama/7b", "llama/7b/"])
def test_a_directory_brings_its_model_and_no_neighbours(tmp_path, remote, prefix):
    found = download(tmp_path, s3(remote, prefix))
    assert {path.name: path.read_bytes() for path in found.directory.iterdir()} == {
        "config.json": b"{}",
        "model.safetensors": WEIGHTS,
    }
    assert found.inputs["spec.source.s3/model.safetensors"] == sha256(WEIGHTS)
    assert found.inputs["spec.source.s3/model.safetensors ETag"] == etag(WEIGHTS)


def test_one_object_is_a_prefix_too(tmp_path, remote):
    found = download(tmp_path, s3(remote, "quantised/model-Q8_0.gguf"))
    assert [path.name for path in found.directory.iterdir()] == ["model-Q8_0.gguf"]


def test_a_public_bucket_is_asked_without_a_signature_whatever_the_machine_has(tmp_path, remote, monkeypatch):
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    download(tmp_path, s3(remote), environment=KEYS)
    assert all("authorization" not in request.headers for request in remote.requests)


def test_keys_from_the_secret_sign_the_requests(tmp_path, remote):
    remote.keys["models"] = "AKIATEST"
    found = download(tmp_path, s3(remote, credentialsSecret="aws", region="eu-north-1"), environment=KEYS)
    assert (found.directory / "model.safetensors").read_bytes() == WEIGHTS
    assert all("/eu-north-1/s3/" in request.headers["authorization"] for request in remote.requests)
    assert "hunter2" not in "".join(path.read_text("latin-1") for path in tmp_path.rglob("*") if path.is_file())


def test_the_second_import_of_the_same_objects_lists_them_and_no_more(tmp_path, remote):
    first = download(tmp_path, s3(remote))
    remote.requests.clear()
    again = download(tmp_path, s3(remote), name="again")
    assert [request.path.partition("?")[0] for request in remote.requests] == ["/models"]
    assert again.figures == {"downloaded_bytes": 0, "reused_bytes": len(WEIGHTS) + 2}
    name = "model.safetensors"
    assert (first.directory / name).stat().st_ino == (again.directory / name).stat().st_ino


def test_an_object_that_was_replaced_is_downloaded(tmp_path, remote):
    download(tmp_path, s3(remote))
    remote.buckets["models"]["llama/7b/config.json"] = b"[]"
    found = download(tmp_path, s3(remote), name="again")
    assert (found.directory / "config.json").read_bytes() == b"[]"


def test_a_download_goes_on_where_it_was_cut(tmp_path, remote):
    remote.faults[PATH] = [Fault(cut=1_200_000)]
    leave_partial(tmp_path, WEIGHTS[:5000], key_of_partial(remote, "llama/7b/model.safetensors", WEIGHTS))
    found = download(tmp_path, s3(remote))
    assert (found.directory / "model.safetensors").read_bytes() == WEIGHTS
    first, second = remote.ranges("model.safetensors")
    assert first == "bytes=5000-"
    assert int(second.removeprefix("bytes=").rstrip("-")) > 5000


def test_an_object_that_is_replaced_meanwhile_is_not_mixed_with_what_came(tmp_path, remote):
    def replace():
        remote.buckets["models"]["llama/7b/model.safetensors"] = WEIGHTS[::-1]

    remote.faults[PATH] = [Fault(cut=1_000, hook=replace)]
    with pytest.raises(Temporary, match="changed while it was downloaded"):
        download(tmp_path, s3(remote))
    found = download(tmp_path, s3(remote), attempt=2)
    assert (found.directory / "model.safetensors").read_bytes() == WEIGHTS[::-1]


def test_expected_digests_are_held_against_what_came(tmp_path, remote):
    download(tmp_path, s3(remote), sha256={"model.safetensors": sha256(WEIGHTS)})
    error = refusal(tmp_path / "other", s3(remote), sha256={"model.safetensors": "0" * 64})
    assert error.reason == "ChecksumMismatch"
    assert f"has the SHA-256 {sha256(WEIGHTS)} and {'0' * 64} is expected" in error.message
    assert error.file == "s3://models/llama/7b/model.safetensors"
    assert partials(tmp_path / "other") == {}


def locked(remote):
    remote.keys["models"] = "AKIAOTHER"


REFUSED = {
    "nothing there": ({"prefix": "mistral"}, None, {}, "there is nothing at s3://models/mistral", "prefix"),
    "no such bucket": ({"bucket": "other"}, None, {}, "no such bucket or object", "bucket"),
    "no model there": ({"prefix": "llama/7b-chat"}, None, {}, "there are config.json", "Name a directory"),
    "no credentials": ({}, locked, {}, "refuses requests without credentials", "spec.source.s3.credentialsSecret"),
    "wrong credentials": ({"credentialsSecret": "aws"}, locked, KEYS, "refuses the credentials", "keys in the Secret"),
    "missing variables": (
        {"credentialsSecret": "aws"},
        None,
        {"AWS_ACCESS_KEY_ID": "x"},
        "the environment has no AWS_SECRET_ACCESS_KEY",
        "export AWS_SECRET_ACCESS_KEY",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_downloaded_is_refused_with_place_and_remedy(tmp_path, remote, what):
    source, change, environment, says, remedy = REFUSED[what]
    if change:
        change(remote)
    error = refusal(tmp_path, s3(remote, **{"prefix": "llama/7b", **source}), environment=environment)
    assert error.message.startswith("spec.source.s3")
    assert says in error.message
    assert remedy in error.hint


def test_another_region_is_told(tmp_path, remote):
    body = b"<Error><Code>PermanentRedirect</Code><Endpoint>models.s3.eu.amazonaws.com</Endpoint></Error>"
    remote.always["/models"] = Fault(status=400, body=body)
    error = refusal(tmp_path, s3(remote))
    assert "the bucket is not in the region us-east-1" in error.message


def test_keys_that_lead_out_are_refused(tmp_path, remote):
    remote.buckets["models"]["llama/7b/../../etc.json"] = b"{}"
    error = refusal(tmp_path, s3(remote))
    assert error.message.startswith("spec.source.s3: a key below the prefix is no name for a file")
    assert '"llama/7b/../../etc.json"' in error.message
    assert "Rename the object" in error.hint


def test_a_store_that_is_busy_or_away_is_waited_for(tmp_path, remote):
    remote.faults["/models"] = [Fault(status=503)]
    remote.faults[PATH] = [Fault(status=503)]
    assert download(tmp_path, s3(remote)).directory.is_dir()
    remote.buckets["models"]["llama/7b/model.safetensors"] = b"new"
    remote.faults[PATH] = [Fault(status=500)] * TRIES
    with pytest.raises(Temporary, match=f"does not answer .*Tried {TRIES} times"):
        download(tmp_path, s3(remote))
    with pytest.raises(Temporary, match="does not answer"):
        download(tmp_path, s3(remote, endpoint="http://127.0.0.1:9"))
