"""get, describe and top, and what is said where there is nothing to look at."""

import contextlib
import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios

import pytest
import yaml

from kubectl.objects import claim, event, failed, job, model_import, pod, pretrain, running, server, succeeded


@pytest.fixture
def busy(cluster):
    """A finished import, a training of two nodes at work, a server, and a failed one elsewhere."""
    cluster.add(model_import(), **succeeded("model", "mi-base"))
    cluster.add(pretrain(compute={"nodes": 2, "gpusPerNode": 8}), **running())
    cluster.add(server(replicas=2), phase="Progressing", replicas=2, readyReplicas=1, observedGeneration=1)
    cluster.add(pretrain("other"), "elsewhere", **failed())
    return cluster


def rows(out):
    return {line.split()[0]: line.split() for line in out.splitlines()[1:]}


def test_get_lists_the_namespace_of_the_context_in_the_order_of_the_pipeline(busy, plugin):
    code, out, _ = plugin("get")
    assert code == 0
    assert [line.split()[:2] for line in out.splitlines()[1:]] == [
        ["ModelImport/base", "Succeeded"],
        ["PretrainJob/zh", "Running"],
        ["ModelServer/chat", "Progressing"],
    ]
    assert rows(out)["PretrainJob/zh"][2:6] == ["50%", "100/200", "5.312", "1m20s"]
    assert rows(out)["ModelServer/chat"][2] == "1/2"


def test_get_of_all_namespaces_tells_which(busy, plugin):
    out = plugin("get", "pj", "-A")[1]
    assert [line.split()[:2] for line in out.splitlines()] == [
        ["NAMESPACE", "RESOURCE"],
        ["elsewhere", "PretrainJob/other"],
        ["team", "PretrainJob/zh"],
    ]


@pytest.mark.parametrize(
    "options", [["-n", "elsewhere"], ["--context", "plain", "--namespace", "elsewhere"]], ids=" ".join
)
def test_a_namespace_is_chosen_as_with_kubectl(busy, plugin, options):
    assert list(rows(plugin("get", *options)[1])) == ["PretrainJob/other"]


def test_more_objects_than_a_page_are_all_listed(cluster, plugin):
    for number in range(7):
        cluster.add(model_import(f"base-{number}"))
    assert len(plugin("get", "mi")[1].splitlines()) == 8


def test_get_as_yaml_is_what_the_api_server_stores_without_its_notes(busy, plugin):
    metadata = busy.get("PretrainJob", "zh")["metadata"]
    metadata["managedFields"] = [{"manager": "kubectl"}]
    metadata["annotations"] = {"kubectl.kubernetes.io/last-applied-configuration": "{}"}
    found = yaml.safe_load(plugin("get", "pj/zh", "-o", "yaml")[1])
    assert list(found) == ["apiVersion", "kind", "metadata", "spec", "status"]
    assert {"managedFields", "annotations"} & set(found["metadata"]) == set()
    listed = json.loads(plugin("get", "-o", "json")[1])
    assert [item["kind"] for item in listed["items"]] == ["ModelImport", "PretrainJob", "ModelServer"]


def test_get_wide_tells_why(cluster, plugin):
    cluster.add(pretrain(compute={"queueName": "gold"}), **failed())
    out = plugin("get", "-o", "wide")[1]
    assert rows(out)["PretrainJob/zh"][3:6] == ["gold", "0", "zh.jsonl,"]


def test_get_watch_goes_on_with_what_changes(busy, plugin):
    zh = busy.get("PretrainJob", "zh")
    changes = [
        lambda: None,
        lambda: zh.update(status=succeeded()),
        lambda: busy.objects.pop(("PretrainJob", "team", "zh")),
    ]
    busy.on["/pretrainjobs/zh"] += changes
    code, out, err = plugin("get", "pj", "zh", "--watch")
    assert [line.split()[1] for line in out.splitlines() if line.startswith("Pretrain")] == ["Running", "Succeeded"]
    assert (code, "does not exist" in err) == (1, True)


WRONG_GETS = {
    "a name in all namespaces": (["pj", "zh", "-A"], "one namespace"),
    "a watch as JSON": (["--watch", "-o", "json"], "--watch prints tables"),
    "an unknown kind": (["pretrainjib"], "did you mean PretrainJob?"),
}


@pytest.mark.parametrize(("arguments", "told"), WRONG_GETS.values(), ids=WRONG_GETS)
def test_get_refuses_what_has_no_meaning(busy, plugin, arguments, told):
    code, _, err = plugin("get", *arguments)
    assert (code, told in err) == (2, True)


def test_an_unknown_name_gets_the_known_ones(busy, plugin):
    code, _, err = plugin("describe", "pj", "zhh")
    assert code == 1
    assert err == "kubectl herdsman: PretrainJob/zhh does not exist in the namespace team; there are zh\n"


def test_an_empty_namespace_is_said_to_be(cluster, plugin):
    code, out, err = plugin("get", "pj")
    assert (code, out, err) == (0, "", "no PretrainJob in the namespace team\n")


def test_describe_tells_the_run_its_pods_its_volumes_and_what_happened(busy, plugin):
    zh = busy.get("PretrainJob", "zh")
    busy.add(job(active=2, ready=1))
    first = busy.add(pod(0))
    busy.add(pod(1, state="waiting"))
    busy.add({**claim("pj-zh"), "status": {"phase": "Bound", "accessModes": ["ReadWriteMany"]}})
    busy.add(event(zh, "Restarting", "Attempt 2 starts."))
    busy.add(event(first, "Pulled", "The image is\nthere.", at="2026-01-02T03:00:05Z", count=3))
    busy.add(event({"kind": "Pod", "metadata": {"name": "x", "uid": "else"}}, "Other", "Not ours."))
    code, out, _ = plugin("describe", "PretrainJob", "zh")
    assert code == 0
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert "Namespace team" in lines
    assert "compute.gpusPerNode 8" in lines
    assert "Done 50%, step 100 of 200" in lines
    assert "step 90" in lines
    assert next(line for line in lines if line.startswith("pj-zh-1-0")).startswith("pj-zh-1-0-abcde 1 0 Running node-0")
    assert "1 1 Pending ErrImagePull: no such image node-1" in next(ln for ln in lines if ln.startswith("pj-zh-1-1"))
    assert any(line.startswith("Job pj-zh-1 2 of 2 pods active, 1 ready") for line in lines)
    assert any(line.startswith("PersistentVolumeClaim pj-zh Bound 5Gi ReadWriteMany") for line in lines)
    assert any(line.startswith("PersistentVolumeClaim corpora does not exist") for line in lines)
    told = [line.partition(" ago ")[2] for line in lines if " ago " in line]
    assert told == [
        "Warning Restarting PretrainJob zh Attempt 2 starts.",
        "Warning Pulled Pod pj-zh-1-0-abcde The image is there. (3 times)",
    ]


def test_describe_tells_times_as_times(cluster, plugin):
    status = running()
    status["progress"]["metrics"].append({"name": "checkpoint_timestamp_seconds", "value": "1767322800"})
    cluster.add(pretrain(), **status)
    lines = [" ".join(line.split()) for line in plugin("describe", "pj", "zh")[1].splitlines()]
    assert any(re.fullmatch(r"checkpoint 2026-01-0\d \d\d:\d\d:00", line) for line in lines)
    assert "suspend false" in lines


def test_describe_of_a_failure_tells_its_hint_and_the_command_for_its_log(busy, plugin):
    out = plugin("describe", "pj", "other", "-n", "elsewhere")[1]
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert "Hint Mend that line." in lines
    assert "Pod pj-zh-1-0-abcde" in lines
    assert "Log kubectl herdsman logs pretrainjob other -n elsewhere" in lines


def test_describe_says_what_one_may_not_look_at(busy, plugin):
    busy.refusals["GET", "/pods"] = 403, "pods is forbidden"
    busy.refusals["GET", "/events"] = 403, "events is forbidden"
    code, out, _ = plugin("describe", "ms/chat")
    assert code == 0
    assert "Pods of ModelServer/chat are not shown: pods is forbidden" in out
    assert "Events are not shown: events is forbidden" in out


def test_a_status_of_another_version_is_told_as_far_as_it_is_understood(cluster, plugin):
    cluster.add(pretrain(), **running(weather="fine"))
    assert rows(plugin("get")[1])["PretrainJob/zh"][1] == "Running"


def test_top_tells_what_works_first_and_sums_it_up(busy, plugin):
    code, out, _ = plugin("top", "-A")
    assert code == 0
    head, _, _, *found = out.splitlines()
    assert head.startswith("1 Running, 1 Progressing, 1 Failed, 1 Succeeded, 16 GPUs at work")
    assert [line.split()[1] for line in found] == [
        "PretrainJob/zh",
        "ModelServer/chat",
        "PretrainJob/other",
        "ModelImport/base",
    ]
    figures = ["50%", "100/200", "5.312", "12.3k", "1m20s", "16", "90", "(~8s)"]
    assert found[0].split()[5:] == [*figures, "Attempt", "1", "works."]
    assert "1 of 2 ready" in found[1]
    assert "zh.jsonl, line 7" in found[2]


def test_top_tells_the_true_age_of_a_checkpoint_and_a_trainer_that_fell_silent(cluster, plugin):
    status = running()
    status["progress"]["metrics"].append({"name": "checkpoint_timestamp_seconds", "value": "1767322800"})
    status["progress"]["lastUpdatedTime"] = "2026-01-02T03:00:00Z"
    cluster.add(pretrain(), **status)
    out = plugin("top", "--once")[1]
    assert "90 (" in out
    assert "90 (~" not in out
    assert "silent for " in out


def test_top_on_a_terminal_is_drawn_again_until_ctrl_c(busy, plugin):
    code = "from herdsman.kubectl import main; main()"
    near, far = pty.openpty()
    fcntl.ioctl(far, termios.TIOCSWINSZ, struct.pack("HHHH", 5, 120, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    process = subprocess.Popen(
        [sys.executable, "-c", code, "top", "-A"],
        stdin=far,
        stdout=far,
        stderr=far,
        env={**environment, "TERM": "xterm"},
    )
    os.close(far)
    drawn = ""
    while drawn.count("PretrainJob/zh") < 2:
        drawn += os.read(near, 4096).decode(errors="replace")
    process.send_signal(signal.SIGINT)
    with contextlib.suppress(OSError):  # how Linux tells that the other end is closed
        while more := os.read(near, 4096):
            drawn += more.decode(errors="replace")
    os.close(near)
    assert process.wait(timeout=10) == 130
    assert "Traceback" not in drawn
    assert "and 3 more" in drawn


def test_help_answers_at_once_and_knows_its_name():
    command = [sys.executable, "-X", "importtime", "-c", "from herdsman.kubectl import main; main()", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "Usage: kubectl herdsman" in done.stdout
    for heavy in ("pydantic", "herdsman.api", "asyncio", "kubernetes", "aiohttp"):
        assert f"| {heavy}\n" not in done.stderr.replace("|   ", "| ").replace("  ", "")
