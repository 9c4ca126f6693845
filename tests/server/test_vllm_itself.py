"""vLLM itself behind our API, started as its container is: what it computes is what we compute.

It lives in an environment of its own, which `make vllm` makes (a build for the CPU); HERDSMAN_VLLM says where.
"""

import dataclasses
import json
import math
import os
import signal
import subprocess
import time
from pathlib import Path

import httpx
import jsonschema
import openai
import pytest
import torch

import peft_models as build
from batches import Asked, together
from builders import model_server
from herdsman.api.job_config import AdapterList, ListedAdapter
from herdsman.core import vllm
from herdsman_server.engine import Sampling
from herdsman_server.loading import load_served_model
from herdsman_server.transformers_engine import load_engine
from herdsman_server.vllm_engine import VllmEngine
from herdsman_trainer.errors import BadInput
from herdsman_trainer.weights.chain import open_chain
from ranks import free_port
from run_configs import server_config, source
from tiny import tiny_llama
from waiting import wait_until

PROGRAM = os.environ.get("HERDSMAN_VLLM")
if PROGRAM is None:
    pytest.skip("needs vLLM: make vllm", allow_module_level=True)
pytestmark = pytest.mark.timeout(600)
GREEDY = Sampling(max_tokens=16, temperature=0, top_p=1, top_k=0, repetition_penalty=1.0)
PROMPT = [1, 40, 50, 60, 70]
NOBODY_STOPS = frozenset()
FORM = {
    "type": "object",
    "properties": {"city": {"enum": ["杭州", "北京"]}, "count": {"type": "integer", "minimum": 10, "maximum": 99}},
    "required": ["city", "count"],
    "additionalProperties": False,
}


class Vllm:
    """vLLM as the plan of a ModelServer has it started, in 32 bits and without compiling, which takes minutes."""

    def __init__(self, model: Path, log: Path):
        port = free_port()
        spec = model_server(
            engine="vllm",
            compute={"gpusPerNode": 1},
            vllm={
                "memoryPercent": 10,
                "maxLoraRank": 8,
                "maxModelLength": 200,
                "extraArgs": ["--dtype", "float32", "--enforce-eager"],
            },
            limits={"parallel": 16},
            hotAdapters=[{"name": "law", "adapter": {"sftJob": "law"}}],
        ).spec
        words = vllm.command(spec, server_config(model, engine="vllm"), port)
        assert words[0] == "vllm"
        (home := log.parent / "home").mkdir()
        path = f"{Path(PROGRAM).parent}:{os.environ['PATH']}"
        settings = {**vllm.ENVIRONMENT, "HOME": str(home), "PATH": path}
        self.url, self._log = f"http://127.0.0.1:{port}", log
        with log.open("wb") as stream:
            self._process = subprocess.Popen(
                [PROGRAM, *words[1:]], env=settings, stdout=stream, stderr=stream, start_new_session=True
            )

    def wait(self):
        def answers():
            assert self._process.poll() is None, self._log.read_text()[-3000:]
            try:
                return httpx.get(f"{self.url}/health", timeout=5).status_code == 200
            except httpx.HTTPError:
                return False

        end = time.monotonic() + 300
        while not answers():
            assert time.monotonic() < end, self._log.read_text()[-3000:]
            time.sleep(0.5)

    def running(self):
        """How many answers it computes."""
        lines = httpx.get(f"{self.url}/metrics").text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith("vllm:num_requests_running{"))

    def kill(self):
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Heads of 32 dimensions, which is what vLLM's attention begins at."""
    directory = tiny_llama(tmp_path_factory.mktemp("base"), hidden_size=128)
    build.make_talkative(directory)
    return directory


@pytest.fixture(scope="module")
def adapters(tmp_path_factory, base):
    return build.two_adapters(tmp_path_factory.mktemp("adapters"), base)


@pytest.fixture(scope="module")
def upstream(base, tmp_path_factory):
    started = Vllm(base, tmp_path_factory.mktemp("vllm") / "log")
    try:
        started.wait()
        yield started
    finally:
        started.kill()


@pytest.fixture(scope="module")
def engine(upstream, adapters):
    engine = VllmEngine(upstream.url, "demo")
    for name, directory in adapters.items():
        engine.load(name, directory)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def ours(base):
    engine = load_engine(open_chain(base, dtype=torch.float32), "cpu")
    yield engine
    engine.close()


def asked(prompt=PROMPT, stop_ids=NOBODY_STOPS, **changes):
    return Asked(list(prompt), dataclasses.replace(GREEDY, **changes), stop_ids)


def test_it_knows_how_much_fits(engine):
    assert engine.context_length == 200


def test_answers_with_and_without_adapters_in_one_batch_are_those_of_peft(engine, base, adapters):
    requests = [asked([*PROMPT, 9 + number], adapter=name) for number in range(2) for name in (None, "law", "med")]
    for request in together(engine, requests):
        assert request.error is None
        directory = adapters.get(request.sampling.adapter)
        assert request.tokens == build.most_probable(base, directory, request.prompt, 16), request.sampling.adapter


def test_penalties_log_probabilities_and_ends_are_those_of_our_own_engine(engine, ours):
    for changes in ({"repetition_penalty": 1.3}, {"presence_penalty": 1.5, "frequency_penalty": 0.5}, {"logprobs": 3}):
        theirs, own = asked(**changes).ask(engine), asked(**changes).ask(ours)
        assert theirs.error is None
        assert theirs.tokens == own.tokens, changes
    for one, other in zip(theirs.logprobs, own.logprobs, strict=True):
        assert math.isclose(one.chosen, other.chosen, abs_tol=1e-3)
        assert [token for token, _ in one.top] == [token for token, _ in other.top]
    end = own.tokens[3]
    first = own.tokens[: own.tokens.index(end) + 1]
    assert asked(stop_ids=frozenset({end})).ask(engine).tokens == first


def test_a_seed_makes_an_answer_the_same_again(engine):
    def say(seed):
        return asked(temperature=1.0, seed=seed).ask(engine).tokens

    assert say(3) == say(3)
    assert len({tuple(say(seed)) for seed in range(4)}) > 1


def test_hanging_up_ends_the_computation(engine, upstream):
    request = asked(max_tokens=190)
    request.enough = 2
    assert len(request.ask(engine).tokens) == 2
    wait_until(lambda: upstream.running() == 0, "vLLM computes no more", seconds=20)


def test_an_adapter_that_it_cannot_take_is_refused_with_its_words(engine, base, tmp_path):
    with pytest.raises(BadInput, match=r"(?i)rank") as caught:
        engine.load("wide", build.adapter(tmp_path / "wide", base, full=(), r=16))
    assert "vllm.maxLoraRank" in caught.value.hint
    with pytest.raises(BadInput, match=r"model\.embed_tokens\.weight"):
        engine.load("own", build.adapter(tmp_path / "own", base))


def test_our_api_and_hot_adapters_are_in_front_of_it(upstream, serve, base, adapters, tmp_path, monkeypatch):
    monkeypatch.setattr("herdsman_server.hot_adapters.LOOK_SECONDS", 0.05)
    listed = tmp_path / "adapters.json"
    one = ListedAdapter(name="contract", source=source(adapters["law"]))
    listed.write_text(json.dumps(AdapterList(adapters=[one]).to_json()))
    loaded = load_served_model(server_config(base, engine="vllm", upstream=upstream.url, adapters_file=str(listed)))
    engine = loaded.served.engine
    client = serve(engine=engine, used=loaded.served.tokenizer)
    client.state.serve(loaded.served, loaded.hot)
    assert [model.id for model in client.openai.models.list()] == ["demo", "contract"]
    whole = client.complete("The river", temperature=0, max_tokens=12)
    assert whole.usage.completion_tokens == 12
    chunks = client.complete("The river", temperature=0, max_tokens=12, stream=True)
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    assert len(client.complete("The river", n=3, max_tokens=5, temperature=1.0).choices) == 3
    form = {"type": "json_schema", "json_schema": {"name": "city", "schema": FORM, "strict": True}}
    choice = client.complete("x", extra_body={"response_format": form}, temperature=1.5, max_tokens=60).choices[0]
    jsonschema.validate(json.loads(choice.text), FORM)
    assert choice.finish_reason == "stop"
    with_adapter = client.openai.completions.create(model="contract", prompt="The river", temperature=0, max_tokens=12)
    assert with_adapter.choices[0].text != whole.choices[0].text
    listed.write_text(json.dumps(AdapterList().to_json()))
    wait_until(lambda: len(list(client.openai.models.list())) == 1, "the adapter is gone", seconds=20)
    with pytest.raises(openai.NotFoundError):
        client.openai.completions.create(model="contract", prompt="x")
    engine.close()


def test_one_that_dies_makes_the_server_unhealthy(base, tmp_path, serve, monkeypatch):
    monkeypatch.setattr("herdsman_server.vllm_engine.LOOK_SECONDS", 0.05)
    started = Vllm(base, tmp_path / "log")
    try:
        loaded = load_served_model(server_config(base, engine="vllm", upstream=started.url))
        client = serve(engine=loaded.served.engine, used=loaded.served.tokenizer)
        assert client.http.get("/readyz").status_code == 200
    finally:
        started.kill()
    wait_until(lambda: client.http.get("/healthz").status_code == 503, "it was noticed")
    loaded.served.engine.close()
