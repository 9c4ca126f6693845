"""Requests have names that clients and logs share."""

import re

import pytest

BODY = {"model": "demo", "messages": [{"role": "user", "content": "x"}]}


def test_every_answer_has_a_name_of_its_own(serve):
    client = serve("a")
    names = {client.chat()._request_id for _ in range(3)}
    assert len(names) == 3
    assert all(re.fullmatch(r"req-[0-9a-f]{32}", name) for name in names)


@pytest.mark.parametrize("stream", [False, True])
def test_a_sane_name_of_the_clients_is_kept(serve, stream):
    client = serve("a")
    headers = {"X-Request-Id": "run-7:page.2_b"}
    response = client.http.post("/v1/chat/completions", json={**BODY, "stream": stream}, headers=headers)
    assert response.headers.get_list("x-request-id") == ["run-7:page.2_b"]


@pytest.mark.parametrize("name", ["", "a b", "x" * 129, "<script>", "a\tb"])
def test_any_other_name_is_replaced(serve, name):
    response = serve("a").http.post("/v1/chat/completions", json=BODY, headers={"X-Request-Id": name})
    assert response.headers["x-request-id"].startswith("req-")


def test_refusals_have_names_too(serve):
    client = serve("a", keys=["secret"])
    for response in (client.http.post("/v1/chat/completions", json=BODY), client.http.get("/nowhere")):
        assert response.status_code in (401, 404)
        assert response.headers["x-request-id"].startswith("req-")
