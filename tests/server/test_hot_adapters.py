"""Adapters that requests choose: side by side in one batch, loaded and unloaded while others are answered."""

import dataclasses
import json
import threading

import openai
import pytest
import torch

import peft_models as build
from batches import Asked, together
from herdsman.api.job_config import AdapterList, ListedAdapter
from herdsman_server.adapter_loading import ResidentLoader
from herdsman_server.engine import Sampling, ServedModel
from herdsman_server.hot_adapters import TRY_AGAIN, HotAdapters
from herdsman_server.loading import Loaded, load_served_model
from herdsman_server.transformers_engine import load_engine
from herdsman_trainer.errors import BadInput
from herdsman_trainer.prompts import TEMPLATES
from herdsman_trainer.weights.chain import open_chain
from run_configs import server_config, source
from tiny import tiny_llama, tiny_sentencepiece
from waiting import wait_until

GREEDY = Sampling(max_tokens=16, temperature=0, repetition_penalty=1.0)
PROMPT = [1, 40, 50, 60, 70]
NAMES = (None, "law", "med", "own")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    directory = tiny_llama(tmp_path_factory.mktemp("base"))
    build.make_talkative(directory)
    return directory


@pytest.fixture(scope="module")
def adapters(tmp_path_factory, base):
    """Adapters of different ranks on different layers, and one with an embedding and a head of its own."""
    root = tmp_path_factory.mktemp("adapters")
    return {
        **build.two_adapters(root, base),
        "own": build.adapter(root / "own", base, targets=["o_proj", "v_proj", "gate_proj"], seed=3),
    }


@pytest.fixture(scope="module")
def engine(base, adapters):
    chain = open_chain(base, dtype=torch.float32)
    engine = load_engine(chain, "cpu", parallel=6)
    loader = ResidentLoader(engine, chain)
    for name, directory in adapters.items():
        loader.load(name, directory)
    engine.loader = loader
    yield engine
    engine.close()


def by_peft(base, adapter, prompt=PROMPT, steps=16):
    return build.most_probable(base, adapter, prompt, steps)


def asked(name, prompt=PROMPT, **changes):
    return Asked(list(prompt), dataclasses.replace(GREEDY, adapter=name, **changes))


def test_answers_with_different_adapters_in_one_batch_are_those_of_peft(engine, base, adapters):
    requests = [asked(name, [*PROMPT, 9 + number]) for number in range(2) for name in NAMES]
    together(engine, requests)
    expected = [by_peft(base, adapters.get(each.sampling.adapter), each.prompt) for each in requests]
    assert [each.tokens for each in requests] == expected
    assert len({tuple(answer) for answer in expected}) == 8


def test_an_adapter_goes_when_its_answers_are_complete_and_others_stay_what_they_were(engine, base, adapters):
    begun, go_on = threading.Event(), threading.Event()
    slow = asked("law", max_tokens=40)
    hear = slow.on_token

    def held(token, logprobs=None, /):
        begun.set()
        go_on.wait(20)
        return hear(token)

    slow.on_token = held
    answering = threading.Thread(target=slow.ask, args=(engine,))
    answering.start()
    assert begun.wait(20)
    going = threading.Thread(target=engine.loader.unload, args=("law",))
    going.start()
    wait_until(lambda: engine.adapters.names == ["med", "own"], "nobody new gets it")
    late = asked("law")
    assert type(late.ask(engine).error).__name__ == "AdapterGoneError"
    assert going.is_alive()
    go_on.set()
    answering.join(20)
    going.join(20)
    assert slow.tokens == by_peft(base, adapters["law"], steps=40)
    requests = together(engine, [asked("med"), asked("own"), asked(None)])
    assert [each.tokens for each in requests] == [by_peft(base, adapters.get(name)) for name in ("med", "own", None)]
    engine.loader.load("law", adapters["law"])
    assert asked("law").ask(engine).tokens == by_peft(base, adapters["law"])


def test_an_adapter_lies_on_what_was_merged_beneath_it(tmp_path, base):
    first = build.adapter(tmp_path / "first", base, full=(), seed=8)
    second = build.adapter(tmp_path / "second", base, full=(), seed=9)
    chain = open_chain(base, [first], dtype=torch.float32)
    engine = load_engine(chain, "cpu", parallel=2)
    ResidentLoader(engine, chain).load("second", second)
    found = asked("second").ask(engine).tokens
    engine.close()
    merged = build.load(base)
    merged.load_state_dict(build.merged_by_peft(base, [first]))
    merged.save_pretrained(tmp_path / "merged")
    assert found == by_peft(tmp_path / "merged", second)


def grown(tmp_path, base):
    directory = build.adapter(tmp_path / "grown", base, rows=410)
    tiny_sentencepiece(directory, 410)
    return directory


def of_another_size(tmp_path, base):
    return build.adapter(tmp_path / "other", tiny_llama(tmp_path / "wide", hidden_size=64), full=())


def with_another_tokenizer(tmp_path, base):
    directory = build.adapter(tmp_path / "other", base, full=())
    tiny_sentencepiece(directory, 399)
    return directory


UNFIT = [
    (grown, r"has 410 embedding rows and the model that is served has 400", "Merge it with a LoRAMerge"),
    (of_another_size, r"the base's matrix is", "another size"),
    (with_another_tokenizer, r"another tokenizer", "Merge it with a LoRAMerge"),
]


@pytest.mark.parametrize(("make", "says", "hint"), UNFIT, ids=[row[0].__name__ for row in UNFIT])
def test_an_adapter_that_does_not_fit_is_refused_with_the_remedy(tmp_path, base, engine, make, says, hint):
    with pytest.raises(BadInput, match=says) as caught:
        engine.loader.load("wrong", make(tmp_path, base))
    assert hint in caught.value.hint
    assert "wrong" not in engine.adapters.names


class Loader:
    """Notes what it is told, and cannot load what is called `broken`."""

    def __init__(self):
        self.told = []

    def load(self, name, directory):
        self.told.append(f"+{name}")
        if name == "broken":
            raise BadInput("It has no r.", file=str(directory), hint="Save it again.")

    def unload(self, name):
        self.told.append(f"-{name}")


@pytest.fixture
def listed(tmp_path):
    """A list of adapters in a file, those who follow it, and a function that writes another one."""

    class Listed:
        file = tmp_path / "list.json"
        loader = Loader()
        hot = HotAdapters(file, loader, lambda name: TEMPLATES[name or "alpaca"], tmp_path / "report.json")

        def write(self, *names, directory=tmp_path):
            entries = [ListedAdapter(name=name, source=source(directory, field="x")) for name in names]
            self.file.write_text(AdapterList(adapters=entries).model_dump_json(by_alias=True))

        def follow(self):
            self.loader.told.clear()
            self.hot.follow()
            return list(self.loader.told)

    return Listed()


def test_what_the_list_says_is_made_true(listed, tmp_path):
    listed.write("a", "b")
    assert listed.follow() == ["+a", "+b"]
    assert listed.follow() == []
    listed.write("b", "c")
    assert listed.follow() == ["-a", "+c"]
    assert set(listed.hot.loaded) == {"b", "c"}
    other = tmp_path / "elsewhere"
    other.mkdir()
    listed.write("b", directory=other)
    assert listed.follow() == ["-b", "-c", "+b"], "the same name for something else is something else"


def test_one_adapter_that_cannot_be_loaded_stops_nobody_and_is_tried_again(listed):
    listed.write("broken", "a")
    assert listed.follow() == ["+broken", "+a"]
    broken, a = listed.hot.report().adapters
    assert (a.name, a.loaded, a.message) == ("a", True, None)
    assert (broken.name, broken.loaded) == ("broken", False)
    assert "It has no r." in broken.message
    assert "Save it again." in broken.message
    assert json.loads((listed.file.parent / "report.json").read_text())["adapters"][1]["loaded"] is True
    tries = [listed.follow() for _ in range(TRY_AGAIN)]
    assert tries.count(["+broken"]) == 1
    listed.write("a")
    assert listed.follow() == []
    assert [each.name for each in listed.hot.report().adapters] == ["a"]


@pytest.mark.parametrize("content", [None, "{", '{"adapters": [{"name": 5}]}'])
def test_a_list_that_cannot_be_read_leaves_things_as_they_are(listed, content):
    listed.write("a")
    listed.follow()
    if content is None:
        listed.file.unlink()
    else:
        listed.file.write_text(content)
    assert listed.follow() == []
    assert set(listed.hot.loaded) == {"a"}


def test_clients_choose_an_adapter_by_the_name_of_a_model(serve, base, adapters, tmp_path, monkeypatch):
    monkeypatch.setattr("herdsman_server.hot_adapters.LOOK_SECONDS", 0.02)
    file = tmp_path / "adapters.json"

    def write(*names):
        entries = [ListedAdapter(name=name, source=source(adapters[name], field="x")) for name in names]
        file.write_text(AdapterList(adapters=entries).model_dump_json(by_alias=True))

    write("law")
    loaded = load_served_model(server_config(base, adapters_file=str(file), limits={"parallel": 3}))
    assert isinstance(loaded, Loaded)
    assert isinstance(loaded.served, ServedModel)
    client = serve(engine=loaded.served.engine, used=loaded.served.tokenizer, ready=False)
    client.state.serve(*loaded)
    ask = {"prompt": "The river", "temperature": 0, "max_tokens": 12}
    assert [each.id for each in client.openai.models.list().data] == ["demo", "law"]
    answers = {name: client.openai.completions.create(model=name, **ask).choices[0].text for name in ("demo", "law")}
    assert answers["demo"] != answers["law"]
    with pytest.raises(openai.NotFoundError, match="this server has 'demo', 'law'"):
        client.openai.completions.create(model="med", **ask)
    write("med")
    wait_until(lambda: client.state.model_names == ["demo", "med"], "the change was noticed")
    assert client.openai.completions.create(model="med", **ask).choices[0].text not in answers.values()
    with pytest.raises(openai.NotFoundError):
        client.openai.completions.create(model="law", **ask)
    with pytest.raises(openai.BadRequestError, match="ask for 'demo'"):
        client.openai.embeddings.create(model="med", input="x")
    told = json.loads(client.state.adapter_report())
    assert told == {"adapters": [{"name": "med", "loaded": True, "message": None}]}


def test_an_adapter_is_asked_in_the_template_it_was_tuned_with(listed):
    listed.hot._template_of = lambda name: TEMPLATES[name or "chatml"]
    listed.write("a")
    listed.follow()
    assert listed.hot.loaded["a"].name == "chatml"
