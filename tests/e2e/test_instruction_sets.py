"""An InstructionSet on a real cluster: its Secret, an endpoint that misbehaves, an eviction, and a training."""

import json
import time

import pytest

from e2e_cluster import kubectl
from e2e_operator import API, eventually
from e2e_runs import SMALL, base, evict, place, python_pod, reached

pytestmark = [pytest.mark.e2e, pytest.mark.images, pytest.mark.timeout(1800)]

TEACHER = """
import hashlib, http.server, json, random, sys
class Teacher(http.server.BaseHTTPRequestHandler):
    asked = 0
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.headers.get("Authorization") != "Bearer sk-right":
            return self.say(401, {"error": {"message": "Incorrect API key provided"}})
        Teacher.asked += 1
        if Teacher.asked == 2:
            return self.say(429, {"error": {"message": "slow down"}}, {"Retry-After": "1"})
        if Teacher.asked == 4:
            return self.say(500, {"error": {"message": "oops"}})
        prompt = body["messages"][0]["content"]
        print("asked", hashlib.sha256(prompt.encode()).hexdigest(), flush=True)
        chance = random.Random(prompt)
        text = lambda size: "".join(chr(0x4E00 + chance.randrange(5000)) for _ in range(size))
        records = [{"kind": "问答", "instruction": text(15), "input": "", "output": text(40)} for _ in range(4)]
        answer = {"message": {"content": json.dumps({"records": records})}, "finish_reason": "stop"}
        self.say(200, {"choices": [answer], "usage": {"prompt_tokens": 100, "completion_tokens": 50}})
    def say(self, status, body, headers={}):
        data = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {**headers, "Content-Length": len(data)}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(data)
    def log_message(self, *_):
        pass
http.server.ThreadingHTTPServer(("", 8080), Teacher).serve_forever()
"""
RECORDS = 100
REQUESTS = RECORDS // 4


def asking(name, **more):
    generate = {
        "endpoint": {"url": "http://teacher/v1", "model": "teacher", "apiKey": {"name": "teacher-key", "key": "key"}},
        "records": RECORDS,
        "recordsPerRequest": 4,
        "limits": {"parallel": 2, "requestsPerMinute": 60},
        "price": {"inputPerMillion": 1, "outputPerMillion": 2},
        **more,
    }
    spec = {"language": "zh", "generate": generate, "heldOutFraction": 0.1, "compute": SMALL, "workspace": place(name)}
    return {**API, "kind": "InstructionSet", "metadata": {"name": name}, "spec": spec}


@pytest.fixture(scope="module")
def teacher(namespace, operator):
    """A pod that answers like an API, with a key."""
    pod = python_pod("teacher", TEACHER, {})
    pod["metadata"]["labels"] = {"app": "teacher"}
    service = {"selector": {"app": "teacher"}, "ports": [{"port": 80, "targetPort": 8080}]}
    namespace.apply(pod, {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "teacher"}, "spec": service})
    kubectl("-n", namespace.name, "wait", "--for=condition=Ready", "pod/teacher", "--timeout=60s")


def secret(value):
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "teacher-key"}, "stringData": {"key": value}}


def test_from_a_missing_secret_over_an_eviction_to_a_tuned_adapter(namespace, operator, teacher):
    tuned = {
        "model": {"modelImport": "base"},
        "dataset": {"instructionSet": "made"},
        "recipe": {"maxSteps": 1, "batch": {"globalSequences": 2}, "precision": "float32", "lora": {"rank": 2}},
        "compute": SMALL,
        "workspace": place("tuned"),
    }
    begun = time.monotonic()
    namespace.apply({**API, "kind": "SFTJob", "metadata": {"name": "tuned"}, "spec": tuned}, asking("made"), base())
    failure = eventually(
        lambda: namespace.status("instructionset", "made").get("failure"), 60, "no cause", operator.log
    )
    assert (failure["reason"], "teacher-key" in failure["message"]) == ("SecretNotFound", True)
    assert time.monotonic() - begun < 30
    namespace.apply(secret("sk-right"))

    def records():
        progress = namespace.status("instructionset", "made").get("progress") or {}
        found = {item["name"]: float(item["value"]) for item in progress.get("metrics", ())}
        return found.get("records", 0) > 20 and found

    seen = eventually(records, 120, "no records are told", operator.log)
    assert seen["requests"] > 4
    assert seen["cost"] == pytest.approx(seen["requests"] * 0.0002, rel=0.01)
    shown = kubectl("-n", namespace.name, "get", "is", "made")
    assert "RECORDS" in shown
    pods = json.loads(kubectl("-n", namespace.name, "get", "pods", "-l", "herdsman.dev/name=made", "-o", "json"))
    (pod,) = (item["metadata"]["name"] for item in pods["items"])
    evict(namespace, pod)

    status = reached(namespace, operator, "instructionset", "made", "Succeeded", 240)
    assert [attempt["reason"] for attempt in status["attempts"]] == ["Interrupted", "Succeeded"]
    figures = {item["name"]: item["value"] for item in status["report"]}
    assert (figures["records"], figures["kind 问答"]) == (str(RECORDS), str(RECORDS))
    assert (status["artifact"]["kind"], status["restarts"]) == ("dataset", 0)
    log = kubectl("-n", namespace.name, "logs", "teacher").splitlines()
    assert len(set(log)) >= REQUESTS
    assert len(log) - len(set(log)) <= 2, "only what was under way was asked for twice"
    adapter = reached(namespace, operator, "sftjob", "tuned", "Succeeded", 240)
    assert adapter["artifact"]["kind"] == "adapter"


WRONG_KEY = {"url": "http://teacher/v1", "model": "teacher", "apiKey": {"name": "wrong-key", "key": "key"}}


def test_replies_that_were_paid_for_are_not_asked_for_again(namespace, operator, teacher):
    """Another set with the same requests on the same claim, with a key that would not even be let in."""
    before = kubectl("-n", namespace.name, "logs", "teacher")
    namespace.apply({**secret("sk-wrong"), "metadata": {"name": "wrong-key"}}, asking("again", endpoint=WRONG_KEY))
    again = reached(namespace, operator, "instructionset", "again", "Succeeded", 120)
    assert again["artifact"]["digest"] == namespace.status("instructionset", "made")["artifact"]["digest"]
    assert kubectl("-n", namespace.name, "logs", "teacher") == before


def test_a_wrong_key_fails_for_good_and_names_the_secret(namespace, operator, teacher):
    wrong = asking("wrong", endpoint=WRONG_KEY)
    wrong["spec"]["seed"] = 7
    namespace.apply({**secret("sk-wrong"), "metadata": {"name": "wrong-key"}}, wrong)
    failure = reached(namespace, operator, "instructionset", "wrong", "Failed", 120)["failure"]
    assert (failure["reason"], failure["exitCode"]) == ("BadInput", 42)
    assert "does not accept the key" in failure["message"]
    assert "the key key of the Secret wrong-key" in failure["hint"]
    assert "sk-wrong" not in json.dumps(namespace.status("instructionset", "wrong"))
