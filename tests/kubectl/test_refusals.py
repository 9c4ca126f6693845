"""Where there is no cluster, no right or no CRD: one sentence that says what to do."""

import subprocess
import sys

import pytest
import yaml

from kubectl.objects import pretrain, running

SENTENCES = {
    (401, "Unauthorized"): "does not accept your credentials (401); log in again, or choose another --context",
    (403, 'pretrainjobs is forbidden: User "me" cannot list'): 'User "me" cannot list; ask for a role',
    (500, "etcd is away"): "cannot answer now (500): etcd is away; try again",
    (404, "the server could not find the requested resource"): "CustomResourceDefinitions are not installed",
}


@pytest.mark.parametrize(("answer", "told"), SENTENCES.items(), ids=[str(status) for status, _ in SENTENCES])
def test_a_refusal_is_one_sentence_with_a_remedy(cluster, plugin, answer, told):
    cluster.refusals["GET", "/pretrainjobs"] = answer
    code, out, err = plugin("get", "pj")
    assert (code, out) == (1, "")
    assert told in err
    assert err.startswith("kubectl herdsman: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "command", [["get"], ["describe", "pj", "zh"], ["logs", "pj", "zh"], ["top"], ["suspend", "pj", "zh"]], ids=" ".join
)
def test_every_command_says_that_the_crds_are_missing(cluster, plugin, command):
    cluster.served = []
    code, _, err = plugin(*command)
    assert (code, "CustomResourceDefinitions are not installed" in err) == (1, True)


def test_no_answer_at_all_names_the_error(plugin, tmp_path, monkeypatch):
    path = tmp_path / "kubeconfig"
    config = yaml.safe_load(path.read_text())
    config["clusters"][0]["cluster"]["server"] = "http://127.0.0.1:1"
    path.write_text(yaml.safe_dump(config))
    code, _, err = plugin("get")
    assert code == 1
    assert "the API server does not answer: Cannot connect to host 127.0.0.1:1" in err
    assert err.count("\n") == 1


def test_a_wrong_context_gets_the_known_ones(plugin):
    code, _, err = plugin("get", "--context", "there")
    assert (code, "has no context there; there are here, plain" in err) == (2, True)


def test_no_kubeconfig_at_all_says_how_to_name_one(plugin, monkeypatch, tmp_path):
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    code, _, err = plugin("get")
    assert (code, "set KUBECONFIG or give --kubeconfig FILE" in err) == (2, True)
    code, _, err = plugin("get", "--kubeconfig", tmp_path / "nowhere")
    assert (code, "there is no kubeconfig at" in err) == (2, True)


BROKEN = {
    "not YAML": "{",
    "a list": "[]",
    "no current context": "contexts: []\nclusters: []\nusers: []\n",
    "a context without its cluster": (
        "current-context: a\ncontexts: [{name: a, context: {cluster: b, user: c}}]\nclusters: []\nusers: []\n"
    ),
    "certificates that are none": (
        "current-context: a\ncontexts: [{name: a, context: {cluster: b, user: c}}]\nusers: []\n"
        "clusters: [{name: b, cluster: {server: 'https://x', certificate-authority-data: bm9uZQ==}}]\n"
    ),
}


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN)
def test_a_kubeconfig_that_cannot_be_used_is_named(plugin, tmp_path, text):
    path = tmp_path / "broken"
    path.write_text(text)
    code, _, err = plugin("get", "--kubeconfig", path)
    assert (code, str(path) in err, err.count("\n")) == (2, True, 1)


def test_the_bearer_token_of_the_context_is_sent(cluster, plugin):
    cluster.add(pretrain(), **running())
    tokens = []
    cluster.on["/pretrainjobs/zh"].append(lambda: tokens.append(cluster.headers[-1]["Authorization"]))
    plugin("describe", "pj", "zh")
    assert tokens == ["Bearer secret"]


def test_a_python_without_a_client_says_what_to_install():
    code = "import sys; sys.modules['kubernetes'] = None; from herdsman.kubectl import main; main()"
    ran = subprocess.run([sys.executable, "-c", code, "get"], capture_output=True, text=True)
    told = "kubectl herdsman: this Python has no Kubernetes client: pip install 'herdsman[kubectl]'\n"
    assert (ran.returncode, ran.stderr) == (1, told)


def test_the_command_needs_nothing_of_the_operators_packages():
    """So that its users install a client and no operator."""
    code = (
        "import importlib, pkgutil, sys\n"
        "sys.modules.update(kopf=None, prometheus_client=None, torch=None)\n"
        "import herdsman.kubectl as room\n"
        "names = [found.name for found in pkgutil.walk_packages(room.__path__, 'herdsman.kubectl.')]\n"
        "print(len([importlib.import_module(name) for name in names]))\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert int(ran.stdout) > 20
