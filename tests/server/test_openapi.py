"""The published OpenAPI description against the running server: whatever is sent, the answer is one described.

`make fuzz-server` tries 10,000 requests in all (HERDSMAN_OPENAPI_CASES); the usual run is short. Both try the same each
time.
"""

import os
import sys
from collections import Counter

import hypothesis
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS

CASES = int(os.environ.get("HERDSMAN_OPENAPI_CASES", "250"))
LONG = "HERDSMAN_OPENAPI_CASES" in os.environ
CONFORMANCE = [
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
]
"""What is checked of every answer. That all wrong data is refused is not: null, for example, changes nothing."""
PROBES = [
    (label, mode)
    for label in ("POST /v1/chat/completions", "POST /v1/completions", "POST /v1/embeddings")
    for mode in GenerationMode
]
PROBES += [("GET /v1/models/{name}", GenerationMode.POSITIVE)]
"""Every path is a name, so none is wrong data."""


@pytest.fixture
def server(serve):
    client = serve("a b", body_bytes=4096, max_tokens=64, request_seconds=20)
    client.engine.embed = lambda texts: [[1.0, 0.0] for _ in texts]
    return client


PLAIN = {"prompt": "a b", "messages": [{"role": "user", "content": "a b"}], "input": "a b"}
"""What a request can always be answered with; a third of them is reduced to it and to how it is to be answered."""


def loaded(client):
    schema = schemathesis.openapi.from_url(f"{client.url}/openapi.json")
    return {operation.ok().label: operation.ok() for operation in schema.get_all_operations()}


@pytest.mark.parametrize(("label", "mode"), PROBES, ids=[f"{label} {mode.value}" for label, mode in PROBES])
def test_any_request_gets_an_answer_that_is_described(server, label, mode):
    """Requests that fit the description, and such as do not, whose model is often the right one."""
    operation = loaded(server)[label]
    seen: Counter[int] = Counter()
    wanted = -(-CASES // len(PROBES))

    @hypothesis.seed(7)
    @hypothesis.settings(
        max_examples=wanted,
        derandomize=not LONG,
        deadline=None,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @hypothesis.given(case=operation.as_strategy(generation_mode=mode), ours=hypothesis.strategies.integers(0, 2))
    def probe(case, ours):
        if ours and isinstance(case.body, dict):
            case.body = {**case.body, "model": "demo"}
        if ours == 1 and isinstance(case.body, dict):
            asked = {name: case.body[name] for name in PLAIN if name in case.body}
            case.body = {"model": "demo", "stream": case.body.get("stream"), **{name: PLAIN[name] for name in asked}}
        reply = case.call(timeout=20)
        assert reply.status_code < 500, reply.text
        case.validate_response(reply, checks=CHECKS.get_by_names(CONFORMANCE))
        seen[reply.status_code] += 1

    probe()
    sys.stdout.write(f"{label} {mode.value}: {dict(sorted(seen.items()))}\n")
    assert seen.total() >= wanted
    if label.startswith("POST"):
        assert (200 if mode is GenerationMode.POSITIVE else 400) in seen
