"""vLLM behind our API: what it is asked, and what becomes of what it says. It is a stand-in here, not vLLM itself."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import openai
import pytest

import peft_models as build
from herdsman_server.engine import Sampling, UnsupportedError
from herdsman_server.loading import load_served_model
from herdsman_server.vllm_engine import VllmEngine
from herdsman_trainer.errors import BadInput, Temporary
from run_configs import server_config
from tiny import tiny_llama
from waiting import wait_until


class StandIn:
    """Speaks as vLLM's server does, as far as it is asked; says the ids `says` and then ends by `ends`."""

    def __init__(self):
        self.asked, self.says, self.ends = [], [5, 6, 7], "stop"
        self.refuses, self.healthy, self.hold = None, True, None
        self.left = threading.Event()
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                body = {"data": [{"id": "demo", "max_model_len": 200}]} if self.path == "/v1/models" else {}
                self.answer(200 if stand_in.healthy else 503, body)

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                stand_in.asked.append((self.path, body))
                if stand_in.refuses and self.path.startswith(stand_in.refuses[0]):
                    self.answer(400, stand_in.refuses[1])
                elif self.path == "/v1/completions":
                    self.stream(body)
                else:
                    self.answer(200, {})

            def answer(self, status, body):
                data = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def stream(self, body):
                self.send_response(200)
                self.end_headers()
                try:
                    ids = stand_in.says[: body["max_tokens"]]
                    for place, token in enumerate(ids):
                        if stand_in.hold and place == 1:
                            stand_in.hold.wait(20)
                        last = place == len(ids) - 1
                        reason = (stand_in.ends if len(ids) < body["max_tokens"] else "length") if last else None
                        choice = {"text": "", "token_ids": [token], "finish_reason": reason, "logprobs": None}
                        if "logprobs" in body:
                            top = {f"token_id:{token}": -0.5, "token_id:9": -1.5, "token_id:3": -0.25}
                            choice["logprobs"] = {"token_logprobs": [-0.5], "top_logprobs": [top]}
                        self.wfile.write(f"data: {json.dumps({'choices': [choice]})}\n\n".encode())
                        self.wfile.flush()
                    self.wfile.write(b"data: [DONE]\n\n")
                except OSError:
                    stand_in.left.set()

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self):
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def vllm():
    stand_in = StandIn()
    yield stand_in
    stand_in.close()


@pytest.fixture
def engine(vllm):
    engine = VllmEngine(vllm.url, "demo", parallel=2)
    yield engine
    engine.close()


def say(engine, sampling, stop_ids=frozenset({2}), enough=100):
    said = []

    def on_token(token, logprobs=None, /):
        said.append((token, logprobs))
        return len(said) < enough

    engine.generate([1, 8, 9], sampling, stop_ids, on_token)
    return said


def test_ids_go_in_and_come_out_with_everything_that_was_asked(engine, vllm):
    vllm.says = [5, 6, 2]
    sampling = Sampling(
        max_tokens=9, temperature=0.7, top_p=0.8, top_k=5, repetition_penalty=1.2, seed=3, adapter="law"
    )
    assert say(engine, sampling) == [(5, None), (6, None), (2, None)]
    ((path, body),) = vllm.asked
    assert path == "/v1/completions"
    assert (body["prompt"], body["model"], body["seed"]) == ([1, 8, 9], "law", 3)
    assert (body["temperature"], body["top_p"], body["top_k"], body["repetition_penalty"]) == (0.7, 0.8, 5, 1.2)
    assert (body["stop_token_ids"], body["ignore_eos"], body["return_token_ids"]) == ([2], True, True)
    assert engine.context_length == 200


def test_an_end_whose_id_is_not_told_is_heard_as_a_stop(engine, vllm):
    assert [token for token, _ in say(engine, Sampling(max_tokens=9))] == [5, 6, 7, 2]
    assert [token for token, _ in say(engine, Sampling(max_tokens=3))] == [5, 6, 7], "an end by length is none"


def test_log_probabilities_are_by_ids_the_most_probable_first(engine, vllm):
    said = say(engine, Sampling(max_tokens=3, logprobs=2))
    assert said[0][1].chosen == -0.5
    assert said[0][1].top == ((3, -0.25), (5, -0.5))
    assert vllm.asked[0][1]["return_tokens_as_token_ids"] is True


def test_hanging_up_is_how_it_learns_that_nobody_wants_more(engine, vllm):
    vllm.says, vllm.hold = list(range(3, 20000)), threading.Event()
    assert len(say(engine, Sampling(max_tokens=20000), enough=1)) == 1
    vllm.hold.set()
    assert vllm.left.wait(20)


def test_a_schema_is_handed_on(engine, vllm):
    class Grammar:
        def __init__(self):
            self.schema = {"type": "object"}

    say(engine, Sampling(max_tokens=3, grammar=Grammar()))
    assert vllm.asked[0][1]["response_format"]["json_schema"]["schema"] == {"type": "object"}


def test_what_it_refuses_is_a_failure_of_the_engine_with_its_words(engine, vllm):
    vllm.refuses = ("/v1/completions", {"error": {"message": "top_k must be -1 or at least 1"}})
    with pytest.raises(RuntimeError, match="vLLM answered 400: top_k must be"):
        say(engine, Sampling())
    with pytest.raises(UnsupportedError, match="engine transformers"):
        engine.embed([[1]])


def test_adapters_are_loaded_and_unloaded_by_its_own_routes(engine, vllm, tmp_path):
    base = tiny_llama(tmp_path / "base")
    law = build.adapter(tmp_path / "law", base, full=())
    engine.load("law", law)
    engine.unload("law")
    assert vllm.asked == [
        ("/v1/load_lora_adapter", {"lora_name": "law", "lora_path": str(law)}),
        ("/v1/unload_lora_adapter", {"lora_name": "law"}),
    ]
    with pytest.raises(BadInput, match=r"model\.embed_tokens\.weight") as caught:
        engine.load("own", build.adapter(tmp_path / "own", base))
    assert "Merge it with a LoRAMerge" in caught.value.hint
    vllm.refuses = ("/v1/load", {"message": "LoRA rank 128 is greater than max_lora_rank 64."})
    with pytest.raises(BadInput, match="rank 128") as caught:
        engine.load("law", law)
    assert "vllm.maxLoraRank" in caught.value.hint


def test_it_is_waited_for_and_not_for_ever(vllm):
    vllm.healthy = False
    pauses = []

    def pause(seconds):
        pauses.append(seconds)
        vllm.healthy = len(pauses) == 3

    VllmEngine(vllm.url, "demo", pause=pause).close()
    assert len(pauses) == 3
    vllm.healthy = False
    with pytest.raises(Temporary, match="has not loaded the model within 0 s"):
        VllmEngine(vllm.url, "demo", loading_seconds=0, pause=lambda _: None)


def test_one_that_is_gone_makes_the_server_unhealthy_so_that_it_starts_anew(vllm, serve, tmp_path, monkeypatch):
    monkeypatch.setattr("herdsman_server.vllm_engine.LOOK_SECONDS", 0.01)
    model = tiny_llama(tmp_path / "model", hidden_size=16)
    loaded = load_served_model(server_config(model, engine="vllm", upstream=vllm.url))
    assert [path for path, _ in vllm.asked] == ["/v1/completions"], "it has answered once before it counts as loaded"
    assert vllm.asked[0][1]["max_tokens"] == 1
    client = serve(engine=loaded.served.engine, used=loaded.served.tokenizer)
    vllm.says = [*loaded.served.tokenizer.encode("The river"), loaded.served.tokenizer.eos_id]
    assert client.chat().choices[0].message.content == "The river"
    chunks = [each.choices[0].delta.content for each in client.chat(stream=True)]
    assert "".join(filter(None, chunks)) == "The river"
    with pytest.raises(openai.APIStatusError, match="computes no embeddings"):
        client.openai.embeddings.create(model="demo", input="x")
    assert client.http.get("/healthz").status_code == 200
    vllm.close()
    wait_until(lambda: client.http.get("/healthz").status_code == 503, "it was noticed")
    assert "does not answer any more" in client.http.get("/readyz").text
    loaded.served.engine.close()
