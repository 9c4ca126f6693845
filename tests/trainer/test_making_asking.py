"""An endpoint that misbehaves: what is waited for, what is refused, and what is said."""

import contextlib
import json
import threading
from email.utils import formatdate

import httpx
import pytest

import herdsman_trainer.downloads.http_streams as http_streams
from herdsman_trainer.errors import BadInput, Interrupted, Temporary
from herdsman_trainer.run_context import RunContext
from herdsman_trainer.steps import instruction_set
from instruction_api import FakeApi, answer, config_of, error, generation, lines, make, records_for, report

KEY = "sk-test-0123456789"


def asked(tmp_path, api, **fields):
    """Make a set of ten records from four a request."""
    config = config_of(tmp_path, generate=generation(**fields))
    return config, make(config, api, {"HERDSMAN_ENDPOINT_API_KEY": KEY} if fields.get("key") else {})


def test_records_come_in_the_order_of_their_requests(tmp_path):
    config, (_, artifact) = asked(tmp_path, api := FakeApi())
    prompts = [body["messages"][0]["content"] for body in api.bodies]
    expected = [record for prompt in prompts for record in records_for(prompt)][:10]
    assert lines(config) == [{name: each[name] for name in ("instruction", "input", "output")} for each in expected]
    assert artifact.kind == "dataset"
    assert len(api.bodies) == 3, "12 records are enough for ten"


def test_the_key_is_sent_and_nothing_is_sent_without_one(tmp_path):
    _, _ = asked(tmp_path / "a", with_key := FakeApi(), key=True)
    _, _ = asked(tmp_path / "b", without := FakeApi())
    assert set(with_key.keys) == {f"Bearer {KEY}"}
    assert set(without.keys) == {None}


PASSING = {
    "it is asked too often, and says for how long to wait": (error(429, **{"Retry-After": "7"}), 7),
    "it is asked too often, and says until when to wait": (
        lambda _: error(429, **{"Retry-After": formatdate(1_000_009, usegmt=True)}),
        9,
    ),
    "it is asked too often, and says nothing": (error(429), 0.75),
    "it has an error of its own": (error(500), 0.75),
    "it is down for maintenance": (error(503, **{"Retry-After": "20"}), 20),
    "it refuses connections": (httpx.ConnectError("Connection refused"), 0.75),
    "it breaks off in the middle of a reply": (
        httpx.RemoteProtocolError("peer closed connection without sending complete message body"),
        0.75,
    ),
    "it takes too long": (httpx.ReadTimeout("timed out"), 0.75),
}


@pytest.mark.parametrize("what", PASSING)
def test_asked_again_where(what, tmp_path, monkeypatch):
    monkeypatch.setattr(http_streams.time, "time", lambda: 1_000_000.0)
    fault, seconds = PASSING[what]
    config, _ = asked(tmp_path, api := FakeApi(fault))
    assert len(lines(config)) == 10
    again = api.bodies.index(api.bodies[0], 1)
    assert seconds <= api.times[again] <= seconds * 1.7 + 1


def test_failures_are_followed_by_longer_and_longer_waits_apart_by_the_seed(tmp_path):
    _, _ = asked(tmp_path / "a", one := FakeApi(*[error(500)] * 6))
    waits = [after - before for before, after in zip(one.times, one.times[1:], strict=False)][:6]
    assert waits[0] == 0, "one failure says nothing of another request"
    assert all(1.49 * 2**n <= wait <= 2.6 * 2**n for n, wait in enumerate(waits[1:]))
    assert waits[1:] != [2.0 ** (n + 1) for n in range(5)]
    _, _ = asked(tmp_path / "b", other := FakeApi(*[error(500)] * 6))
    assert other.times == pytest.approx(one.times), "jitter is drawn from the seed"


def test_an_endpoint_that_is_down_for_minutes_is_waited_for_and_said_so(tmp_path):
    config = config_of(tmp_path, generate=generation())
    api, said = FakeApi(*[error(503)] * 10), []
    context = RunContext(config, rank=0)
    report_to = context.report
    context.report = lambda **words: (said.append(words.get("activity")), report_to(**words))
    instruction_set.run(config, context, endpoint=api.endpoint(config), clock=api.clock)
    context.close()
    assert 120 < api.clock.time < 900
    assert any(words and words.startswith("waiting ") and "status 503" in words for words in said)
    assert len(lines(config)) == 10


def test_an_endpoint_that_stays_down_ends_the_attempt_and_the_next_one_goes_on(tmp_path):
    api = FakeApi(None, always=httpx.ConnectError("Connection refused"))
    config = config_of(tmp_path, generate=generation())
    with pytest.raises(Temporary) as ended:
        make(config, api)
    assert ended.value.reason == "EndpointUnavailable"
    assert "api.example.com does not answer (Connection refused)" in ended.value.message
    assert "patienceSeconds is 900" in ended.value.message
    assert 700 < api.clock.time <= 900
    first = api.bodies[0]
    back = FakeApi()
    later = config.model_copy(update={"attempt": 2})
    make(later, back)
    assert first not in back.bodies, "what was answered is not asked again"
    assert len(lines(later)) == 10


def test_a_wait_longer_than_patience_is_not_begun(tmp_path):
    api = FakeApi(error(429, **{"Retry-After": "3600"}))
    with pytest.raises(Temporary, match="asks to wait 3600 s more"):
        asked(tmp_path, api)
    assert api.clock.time == 0


REFUSED = {
    "no key": ({}, error(401, "You didn't provide an API key"), "wants a key", "spec.generate.endpoint.apiKey"),
    "a wrong key": (
        {"key": True},
        error(401, f"Incorrect API key provided: {KEY}", "invalid_api_key"),
        "does not accept the key",
        "the Secret teacher",
    ),
    "no rights": (
        {"key": True},
        error(403, "no access to this model"),
        "does not accept the key",
        "rights to this model",
    ),
    "an unknown model": ({}, error(404, "The model `teacher` does not exist"), "does not exist", "usually ends in /v1"),
    "a request that is too large": (
        {},
        error(400, "max_tokens is too large: 8192"),
        "max_tokens is too large",
        "Correct spec",
    ),
    "a URL that leads elsewhere": (
        {},
        httpx.Response(301, headers={"location": "https://b/v1"}),
        "status 301",
        "https://b/v1",
    ),
    "a page of the web": (
        {},
        httpx.Response(200, text="<html>Welcome</html>"),
        "not as OpenAI's API does",
        "usually ends in /v1",
    ),
    "JSON of another API": (
        {},
        httpx.Response(200, json={"result": "hi"}),
        "not as OpenAI's API does",
        "usually ends in /v1",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused_at_once_for(what, tmp_path):
    fields, fault, sentence, remedy = REFUSED[what]
    api = FakeApi(always=fault)
    with pytest.raises(BadInput) as refused:
        asked(tmp_path, api, **fields)
    assert sentence in refused.value.message
    assert remedy in refused.value.hint
    assert len(api.bodies) == 1
    assert KEY not in str(refused.value), "a key is never said"


KEYS = {
    "an empty key": ("\n  \n", "is empty"),
    "a key of two words": ("my key", "cannot be one"),
    "a key in Chinese": ("密钥", "cannot be one"),
}


@pytest.mark.parametrize("what", KEYS)
def test_refused_before_anything_is_asked(what, tmp_path):
    given, sentence = KEYS[what]
    config, api = config_of(tmp_path, generate=generation(key=True)), FakeApi()
    with pytest.raises(BadInput, match=sentence) as refused:
        make(config, api, {"HERDSMAN_ENDPOINT_API_KEY": given})
    assert "the Secret teacher" in refused.value.hint
    assert not api.bodies
    assert given.strip() == "" or given not in str(refused.value)


def test_of_several_keys_the_first_is_taken(tmp_path):
    config, api = config_of(tmp_path, generate=generation(key=True)), FakeApi()
    make(config, api, {"HERDSMAN_ENDPOINT_API_KEY": f"\n{KEY}\nsk-old\n"})
    assert set(api.keys) == {f"Bearer {KEY}"}


EXHAUSTED = {
    "402": error(402, "Insufficient Balance"),
    "429 with OpenAI's code": error(
        429, "You exceeded your current quota", "insufficient_quota", **{"Retry-After": "1"}
    ),
}


@pytest.mark.parametrize("how", EXHAUSTED)
def test_an_exhausted_quota_is_waited_for_and_then_ends_the_attempt(how, tmp_path):
    api = FakeApi(None, always=EXHAUSTED[how])
    with pytest.raises(Temporary, match="has no quota left") as ended:
        asked(tmp_path, api)
    assert ended.value.reason == "EndpointExhausted"
    assert 700 < api.clock.time <= 900


def test_an_exhausted_quota_ends_the_set_where_what_is_there_will_do(tmp_path):
    api = FakeApi(None, None, always=error(402, "Insufficient Balance"))
    config, (context, _) = asked(tmp_path, api, minRecords=8, records=100)
    assert len(lines(config)) == 8
    assert (
        "8 of the 100 generated records, because the account at api.example.com has no quota left"
        in context.closing_words
    )
    assert report(config)["generated"]["endedBy"].startswith("the account at api.example.com has no quota left")
    assert api.clock.time == 0, "nothing is waited for"


def test_a_quota_that_ends_before_enough_is_there_resumes_once_it_is_filled_up(tmp_path):
    config = config_of(tmp_path, generate=generation(minRecords=8))
    with pytest.raises(Temporary):
        make(config, FakeApi(None, always=error(402)))
    later, api = config.model_copy(update={"attempt": 2}), FakeApi()
    make(later, api)
    assert (len(api.bodies), len(lines(later))) == (2, 10)


def test_one_request_that_always_fails_is_given_up_while_others_are_answered(tmp_path):
    poisoned = []

    def fault(body):
        prompt = body["messages"][0]["content"]
        poisoned[:] = poisoned or [prompt]
        return error(500) if prompt == poisoned[0] else None

    config, _ = asked(tmp_path, api := FakeApi(always=fault), records=60, limits={"parallel": 2})
    assert report(config)["generated"]["replies"]["givenUp"] == 1
    assert sum(body["messages"][0]["content"] == poisoned[0] for body in api.bodies) < 20
    assert len(lines(config)) == 60


def test_a_request_that_the_api_filters_is_passed_over(tmp_path):
    config, _ = asked(tmp_path, FakeApi(error(400, "filtered", "content_filter"), answer("", finish="content_filter")))
    assert report(config)["generated"]["replies"]["filtered"] == 2


UNKNOWN_FIELDS = {
    "response_format": ("'response_format' of type 'json_object' is not supported", "response_format"),
    "seed": ("Unrecognized request argument supplied: seed", "seed"),
    "max_tokens": ("Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.", "max_tokens"),
}


@pytest.mark.parametrize("field", UNKNOWN_FIELDS)
def test_an_api_that_does_not_know_a_field_is_asked_without_it(field, tmp_path):
    message, name = UNKNOWN_FIELDS[field]
    config, _ = asked(tmp_path, api := FakeApi(always=lambda body: error(400, message) if name in body else None))
    assert name in api.bodies[0]
    assert all(name not in body for body in api.bodies[1:])
    assert field != "max_tokens" or api.bodies[1]["max_completion_tokens"] == 8192
    assert len(lines(config)) == 10


def test_our_own_servers_are_asked_by_schema(tmp_path):
    _, _ = asked(tmp_path / "a", ours := FakeApi(), ours=True)
    _, _ = asked(tmp_path / "b", other := FakeApi())
    _, _ = asked(tmp_path / "c", plain := FakeApi(), answerFormat="Text")
    assert ours.bodies[0]["response_format"]["type"] == "json_schema"
    assert other.bodies[0]["response_format"] == {"type": "json_object"}
    assert "response_format" not in plain.bodies[0]


def test_a_reply_without_an_end_is_cut_and_asked_again(tmp_path):
    endless = httpx.Response(200, content=(b"x" * 2**20 for _ in range(1000)))
    config, _ = asked(tmp_path, FakeApi(None, endless))
    assert len(lines(config)) == 10


def test_a_model_that_never_stops_gives_what_is_whole(tmp_path):
    def text(prompt):
        whole = json.dumps({"records": records_for(prompt)}, ensure_ascii=False)
        return whole[: whole.rfind('"output"') + 15]

    def cut(body):
        return answer(text(body["messages"][0]["content"]), finish="length")

    config, _ = asked(tmp_path, FakeApi(always=cut))
    assert report(config)["dropped"]["cut_off"] == report(config)["generated"]["requests"] - 1
    assert all(len(record["output"]) == 60 for record in lines(config))


USELESS = {
    "another language": lambda _: json.dumps(
        [{"instruction": f"Write a poem {n}", "output": "Spring is here"} for n in range(4)]
    ),
    "no JSON": lambda _: "对不起，我不能这样做。",
    "records without output": lambda _: json.dumps([{"instruction": "写诗", "output": ""}] * 4),
    "an empty list": lambda _: "[]",
}


@pytest.mark.parametrize("what", USELESS)
def test_a_model_that_gives_nothing_of_use_is_not_asked_for_ever(what, tmp_path):
    api = FakeApi(text=USELESS[what])
    with pytest.raises(BadInput, match="5 requests in a row gave nothing that stays") as refused:
        asked(tmp_path, api)
    assert len(api.bodies) == 5
    assert "The replies are kept" in refused.value.hint


def test_a_model_that_repeats_itself_is_not_asked_for_ever(tmp_path):
    same = json.dumps(records_for("always"), ensure_ascii=False)
    with pytest.raises(BadInput, match=r"4 of 10 records.*20 requests in a row gave nothing that stays .*duplicate"):
        asked(tmp_path / "a", FakeApi(text=lambda _: same))
    config, (context, _) = asked(tmp_path / "b", FakeApi(text=lambda _: same), minRecords=4)
    assert len(lines(config)) == 4
    assert "20 requests in a row" in context.closing_words


def test_the_limits_per_minute_are_kept(tmp_path):
    limits = {"parallel": 8, "requestsPerMinute": 30}
    _, _ = asked(tmp_path, api := FakeApi(), records=100, limits=limits)
    gaps = [after - before for before, after in zip(api.times, api.times[1:], strict=False)]
    assert min(gaps) >= 2 - 1e-6
    limits = {"parallel": 1, "tokensPerMinute": 300}
    _, _ = asked(tmp_path / "t", slow := FakeApi(), records=40, limits=limits)
    assert slow.clock.time > 60 * (150 * 9 - 50) / 300 * 0.8


def test_never_more_at_once_than_allowed(tmp_path):
    now, most, lock = [0], [0], threading.Lock()
    gate = threading.Barrier(3, timeout=5)

    def fault(_body):
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        with contextlib.suppress(threading.BrokenBarrierError):
            gate.wait(0.3)
        with lock:
            now[0] -= 1

    _, _ = asked(tmp_path, FakeApi(always=fault), records=24, limits={"parallel": 3})
    assert most[0] == 3


def test_a_stop_ends_the_waiting_and_loses_nothing_that_came(tmp_path):
    config = config_of(tmp_path, generate=generation(records=20))
    context = RunContext(config, rank=0)
    api = FakeApi(None, None, lambda _: context.request_stop())
    with pytest.raises(Interrupted):
        instruction_set.run(config, context, endpoint=api.endpoint(config), clock=api.clock)
    context.close()
    later = FakeApi()
    make(config.model_copy(update={"attempt": 2}), later)
    assert len(later.bodies) in (2, 3), "of five requests two were on the disk, the third was under way"


@pytest.mark.parametrize(("budget", "requests"), [({"requests": 2}, 2), ({"tokens": 450}, 3), ({"cost": 0.00015}, 2)])
@pytest.mark.parametrize("parallel", [1, 4])
def test_a_budget_ends_the_set_with_what_there_is(budget, requests, parallel, tmp_path):
    price = {"inputPerMillion": 0.5, "outputPerMillion": 1.0}  # 0.0001 a request
    config, (context, _) = asked(
        tmp_path, FakeApi(), records=100, budget=budget, price=price, limits={"parallel": parallel}
    )
    assert len(lines(config)) == 4 * requests
    assert f"{4 * requests} of the 100 generated records, because the budget of" in context.closing_words
    assert report(config)["generated"]["cost"] == pytest.approx(0.0001 * requests)


def test_a_budget_that_ends_before_enough_is_there_is_a_failure_that_says_what_to_do(tmp_path):
    with pytest.raises(BadInput, match="4 of 100 records, and no more will come: the budget of 1 requests") as refused:
        asked(tmp_path, FakeApi(), records=100, minRecords=50, budget={"requests": 1})
    assert "Raise spec.generate.budget" in refused.value.hint
