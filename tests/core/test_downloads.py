"""What is downloaded from a hub, a bucket or the web asks of its pod: configuration, environment, names of files."""

from dataclasses import replace

import pytest

from builders import CLUSTER, checked, digest, finished, model_import, pretrain_job, sft_job, volume, world
from herdsman.api.job_config import RUN_CONFIG
from herdsman.core.plan import plan

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = {"name": "keys", "key": "token"}
HUB = {"repository": "meta-llama/Llama-2-7b-hf", "revision": COMMIT}
S3 = {"bucket": "models", "prefix": "llama/7b"}
OFFLINE = {"name": "HF_HUB_OFFLINE", "value": "1"}
MIRROR = replace(CLUSTER, hub_endpoint="https://hub.example.com")


def web(*urls, **source):
    files = [{"url": url, "sha256": digest(url)} if isinstance(url, str) else url for url in urls]
    return {"http": {"files": files, **source}}


def planned(source, site=CLUSTER, **spec):
    return plan(model_import(source=source, **spec), world(volumes=[volume("weights")]), site)


def config(source, **spec):
    children = planned(source, **spec).children
    (text,) = (child["data"]["job.json"] for child in children if child["kind"] == "ConfigMap")
    return RUN_CONFIG.validate_json(text)


def secret(variable, name, key):
    return {"name": variable, "valueFrom": {"secretKeyRef": {"name": name, "key": key}}}


AWS = [secret(name, "aws", name) for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")]
WEB = "https://example.com/model.gguf"
ENVIRONMENTS = {
    "a public repository of the public hub": ({"hub": HUB}, CLUSTER, []),
    "a gated repository": ({"hub": {**HUB, "token": TOKEN}}, CLUSTER, [secret("HF_TOKEN", "keys", "token")]),
    "the site's mirror": ({"hub": HUB}, MIRROR, [{"name": "HF_ENDPOINT", "value": "https://hub.example.com"}]),
    "a mirror of its own": (
        {"hub": {**HUB, "endpoint": "http://other:8080"}},
        MIRROR,
        [{"name": "HF_ENDPOINT", "value": "http://other:8080"}],
    ),
    "a public bucket": ({"s3": S3}, CLUSTER, [OFFLINE]),
    "a private bucket": ({"s3": {**S3, "credentialsSecret": "aws"}}, CLUSTER, [OFFLINE, *AWS]),
    "public files": (web(WEB), CLUSTER, [OFFLINE]),
    "private files": (web(WEB, token=TOKEN), CLUSTER, [OFFLINE, secret("HERDSMAN_HTTP_TOKEN", "keys", "token")]),
    "a volume": ({"volume": {"claim": "weights", "path": "llama"}}, CLUSTER, [OFFLINE]),
}


@pytest.mark.parametrize("what", ENVIRONMENTS)
def test_only_a_download_from_a_hub_asks_one_and_secrets_are_named_and_never_copied(what):
    source, site, expected = ENVIRONMENTS[what]
    (job,) = (child for child in planned(source, site).children if child["kind"] == "Job")
    assert job["spec"]["template"]["spec"]["containers"][0]["env"] == expected


def test_a_download_needs_no_volume_but_its_own():
    (job,) = (child for child in planned({"hub": HUB}).children if child["kind"] == "Job")
    claims = [volume.get("persistentVolumeClaim") for volume in job["spec"]["template"]["spec"]["volumes"]]
    assert [claim["claimName"] for claim in claims if claim] == ["mi-base"]


def test_only_pods_that_download_are_let_out():
    def labels(source):
        (job,) = (child for child in planned(source).children if child["kind"] == "Job")
        return job["spec"]["template"]["metadata"]["labels"]

    assert labels({"hub": HUB})["herdsman.dev/downloads"] == "true"
    assert labels({"volume": {"claim": "weights"}}) == {
        name: value for name, value in labels({"s3": S3}).items() if name != "herdsman.dev/downloads"
    }


def test_the_configuration_says_what_to_download():
    read = config({"hub": {**HUB, "files": ["*.gguf"], "token": TOKEN}}, keepDownloads=False)
    assert (read.source, read.initialise, read.keep_downloads) == (None, None, False)
    assert (read.remote.hub.repository, read.remote.hub.revision, read.remote.hub.files) == (
        "meta-llama/Llama-2-7b-hf",
        COMMIT,
        ["*.gguf"],
    )
    assert read.remote.field == "spec.source.hub"
    assert config({"s3": S3}).remote.s3.prefix == "llama/7b"
    assert config(web("https://example.com/a%20b/model.gguf?x=1")).remote.http.files[0].name == "model.gguf"
    assert config({"volume": {"claim": "weights"}}).remote is None


BAD_NAMES = {
    "no name": (web("https://example.com/"), "files[0]", "has no path that ends in a name", "`path`"),
    "no path": (web("https://example.com"), "files[0]", "has no path that ends in a name", "`path`"),
    "a hidden one": (web("https://example.com/.netrc"), "files[0]", "'.netrc', which is no name", "`path`"),
    "the parent": (web("https://example.com/a/%2e%2e"), "files[0]", "'..', which is no name", "`path`"),
    "twice the same": (
        web("https://a.example/model.gguf", "https://b.example/model.gguf"),
        "files[1]",
        "files[0] is called model.gguf too",
        "another `path`",
    ),
    "given twice": (
        web("https://a.example/x.gguf", {"url": "https://b.example/y", "sha256": digest("y"), "path": "x.gguf"}),
        "files[1]",
        "files[0] is called x.gguf too",
        "another `path`",
    ),
    "one URL twice": (
        web("https://a.example/x.gguf", {"url": "https://a.example/x.gguf", "sha256": digest("x"), "path": "y.gguf"}),
        "files[1]",
        "files[0] has the same URL",
        "Leave one of them out",
    ),
}


@pytest.mark.parametrize("what", BAD_NAMES)
def test_files_that_cannot_have_their_names_are_refused(what):
    source, place, words, remedy = BAD_NAMES[what]
    problem = planned(source).refused
    assert (problem.reason, problem.field) == ("InvalidSpec", f"spec.source.http.{place}")
    assert words in problem.message
    assert remedy in problem.hint


def test_a_name_never_keeps_the_way_that_leads_to_it():
    assert config(web("https://example.com/..%2F..%2Fx")).remote.http.files[0].name == "x"


BASE = finished(model_import())
JOBS = {"PretrainJob": pretrain_job, "SFTJob": sft_job}


def training(kind, *datasets, site=CLUSTER, **spec):
    sources = {"dataset": datasets[0]} if len(datasets) == 1 else {"dataset": None, "datasets": list(datasets)}
    return plan(JOBS[kind](**sources, **spec), world(BASE), site)


def job_of(planned):
    (job,) = (child for child in planned.children if child["kind"] == "Job")
    return job["spec"]["template"]


@pytest.mark.parametrize("kind", JOBS)
class TestDatasets:
    def test_a_dataset_that_is_downloaded_is_no_input_that_is_waited_for(self, kind):
        planned = training(kind, {"hub": HUB})
        assert planned.waiting_for == ()
        claims = [volume.get("persistentVolumeClaim") for volume in job_of(planned)["spec"]["volumes"]]
        assert {claim["claimName"] for claim in claims if claim} == {
            f"{'pj-zh' if 'P' in kind else 'sj-tuned'}",
            "mi-base",
        }

    def test_its_pod_is_let_out_and_finds_hub_and_secrets(self, kind):
        private = {"hub": {**HUB, "token": TOKEN}}
        template = job_of(training(kind, private, {"s3": {**S3, "credentialsSecret": "aws"}}, site=MIRROR))
        assert template["metadata"]["labels"]["herdsman.dev/downloads"] == "true"
        mirror = {"name": "HF_ENDPOINT", "value": "https://hub.example.com"}
        assert template["spec"]["containers"][0]["env"] == [mirror, secret("HF_TOKEN", "keys", "token"), *AWS]

    def test_a_dataset_on_a_volume_asks_nobody(self, kind):
        template = job_of(training(kind, {"volume": {"claim": "corpora"}}))
        assert "herdsman.dev/downloads" not in template["metadata"]["labels"]
        assert template["spec"]["containers"][0]["env"] == [OFFLINE]

    def test_the_preflight_and_the_training_may_both_download(self, kind):
        job = JOBS[kind](dataset={"s3": S3}, compute={"gpusPerNode": 1})
        for each in (job, checked(job)):
            assert job_of(plan(each, world(BASE), CLUSTER))["metadata"]["labels"]["herdsman.dev/downloads"] == "true"

    def test_two_datasets_with_different_secrets_are_refused(self, kind):
        other = {"s3": {**S3, "prefix": "other", "credentialsSecret": "other"}}
        problem = training(kind, {"s3": {**S3, "credentialsSecret": "aws"}}, other).refused
        assert (problem.reason, problem.field) == ("InvalidSpec", "spec.datasets[1]")
        assert "another Secret" in problem.message
        assert "one Secret" in problem.hint
        same = training(kind, {"s3": {**S3, "credentialsSecret": "aws"}}, {"s3": {**S3, "credentialsSecret": "aws"}})
        assert same.refused is None

    def test_files_that_cannot_have_their_names_are_refused(self, kind):
        problem = training(kind, {"volume": {"claim": "corpora"}}, web("https://example.com/")).refused
        assert problem.field == "spec.datasets[1].http.files[0]"
