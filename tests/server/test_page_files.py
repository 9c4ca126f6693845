"""What the chat page is made of: its headers, and that nothing else is served beside it."""

import re

import pytest

from herdsman_server.page import policy


@pytest.mark.parametrize(
    ("told", "allowed"),
    [
        (None, "'self'"),
        ("https://base.example.com", "'self' https://base.example.com"),
        ("http://127.0.0.1:8000", "'self' http://127.0.0.1:8000"),
        ("http://[::1]:8000", "'self' http://[::1]:8000"),
        ("*", "'self'"),
        ("https://a.example; script-src *", "'self'"),
        ("https://a.example/path", "'self'"),
        ("https://*.example", "'self'"),
        ("https://a.example\n", "'self'"),
    ],
)
def test_the_policy_lets_in_one_origin_and_nothing_that_is_none(told, allowed):
    assert re.search(r"connect-src ([^;]*);", policy(told))[1] == allowed
    assert policy(told).startswith("default-src 'none'; script-src 'self'; style-src 'self'; ")


def test_the_page_needs_no_key_and_has_its_headers(serve):
    client = serve("a b", keys=["sesame"])
    for path in ["/", "/page/main.js", "/page/style.css", "/page/icon.svg"]:
        answer = client.http.get(path)
        assert answer.status_code == 200
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        again = client.http.get(path, headers={"if-none-match": answer.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
    assert client.http.get("/v1/models").status_code == 401


@pytest.mark.parametrize("name", ["nothing.js", "..%2F__init__.py", "__init__.py", "%2Fetc%2Fpasswd"])
def test_only_parts_of_the_page_are_served(serve, name):
    assert serve().http.get(f"/page/{name}").status_code == 404


def test_no_part_of_the_page_names_another_host(serve):
    client = serve()
    known = {"http://www.w3.org/2000/svg", "https://base.example.com"}  # a namespace and a placeholder
    for name in [*re.findall(r'"page/([a-z_.]+)"', client.http.get("/").text), "texts.js", "api.js", "turn_view.js"]:
        assert set(re.findall(r"https?://[\w./-]+", client.http.get(f"/page/{name}").text)) <= known
