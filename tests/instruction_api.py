"""An API that answers requests for records, misbehaves on demand, and a clock that does not wait."""

import hashlib
import json
import random
import threading
from pathlib import Path

import httpx
import yaml

from herdsman.api.job_config import (
    AskedEndpoint,
    GenerationConfig,
    InstructionSetConfig,
    Launch,
    RecordSource,
)
from herdsman.api.v1alpha1.generation import Generation
from herdsman.api.v1alpha1.instruction_set import Cleaning
from herdsman_trainer.instruction_making.asking import Clock
from herdsman_trainer.instruction_making.endpoint import Endpoint
from herdsman_trainer.run_context import RunContext
from herdsman_trainer.steps import instruction_set
from run_configs import owner, source, workspace

URL = "https://api.example.com/v1"


def chinese(chance, length):
    """Chinese characters at random: two of these texts are never alike."""
    return "".join(chr(0x4E00 + chance.randrange(5000)) for _ in range(length))


def records_for(prompt, count=4):
    """The records that the API answers a prompt with, always the same."""
    chance = random.Random(hashlib.sha256(prompt.encode()).digest())
    kinds = ("问答", "写作", "翻译")
    return [
        {
            "kind": chance.choice(kinds),
            "instruction": chinese(chance, 20),
            "input": chinese(chance, 10) if chance.random() < 0.3 else "",
            "output": chinese(chance, 60),
        }
        for _ in range(count)
    ]


def answer(text, *, finish="stop", usage=(100, 50), status=200):
    """A reply in OpenAI's form."""
    body = {"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": finish}]}
    if usage is not None:
        body["usage"] = {"prompt_tokens": usage[0], "completion_tokens": usage[1]}
    return httpx.Response(status, json=body)


def error(status, message="no", code=None, **headers):
    """A refusal in OpenAI's form."""
    return httpx.Response(status, json={"error": {"message": message, "code": code, "type": code}}, headers=headers)


class FakeApi:
    """Answers each request with the records of its prompt; `faults` come first, one a request.

    A fault is a response, an exception, or a function of the request's body that returns one of these or None.
    """

    def __init__(self, *faults, count=4, always=None, text=None):
        self.faults = list(faults)
        self.always = always
        self.count = count
        self.text = text or (lambda prompt: json.dumps({"records": records_for(prompt, count)}, ensure_ascii=False))
        self.bodies = []
        self.keys = []
        self.times = []
        self.clock = FakeClock()
        self._lock = threading.Lock()

    def __call__(self, request):
        with self._lock:
            assert request.url == f"{URL}/chat/completions"
            body = json.loads(request.content)
            self.bodies.append(body)
            self.keys.append(request.headers.get("authorization"))
            self.times.append(self.clock.now())
            fault = self.faults.pop(0) if self.faults else self.always
        if callable(fault):
            fault = fault(body)
        if isinstance(fault, Exception):
            raise fault
        return fault if fault is not None else answer(self.text(body["messages"][-1]["content"]))

    def endpoint(self, config, environment=None):
        transport = httpx.MockTransport(self)
        asked, seconds = config.generate.endpoint, config.generate.spec.limits.request_seconds
        return lambda: Endpoint(asked, seconds, transport=transport, environment=environment or {})


class FakeClock(Clock):
    """Time that passes when somebody sleeps."""

    def __init__(self):
        self.time = 0.0
        super().__init__(now=lambda: self.time, sleep=self._pass)

    def _pass(self, seconds):
        self.time += seconds


def generation(*, url=URL, key=False, ours=False, seed_tasks=None, **fields):
    """What is asked for; 4 records a request from one request at a time, unless something else is said."""
    fields = {"endpoint": {"url": url, "model": "teacher"}, "records": 10, "recordsPerRequest": 4, **fields}
    fields.setdefault("limits", {"parallel": 1})
    asked = AskedEndpoint(
        url=url,
        model="teacher",
        field="spec.generate.endpoint.url",
        identity=f"{url} teacher",
        key_variable="HERDSMAN_ENDPOINT_API_KEY" if key else None,
        key_place="the key key of the Secret teacher" if key else "",
        ours=ours,
    )
    spec = Generation.model_validate(fields)
    return GenerationConfig(
        endpoint=asked,
        spec=spec,
        seed_tasks=source(seed_tasks, field="spec.generate.seedTasks.dataset") if seed_tasks else None,
    )


def given(path, *, place=0, **fields):
    """A source of records."""
    field = f"spec.sources[{place}].dataset"
    here = source(path, field=f"{field}.volume").model_dump()
    return RecordSource.model_validate({"dataset": {"field": field, "label": field, "source": here}, **fields})


def config_of(root, *, generate=None, sources=(), attempt=1, uid="uid-1", clean=None, relative="work", **fields):
    return InstructionSetConfig(
        owner=owner("zh", uid, "InstructionSet"),
        attempt=attempt,
        workspace=workspace(root, relative),
        launch=Launch(),
        generate=generate,
        sources=list(sources),
        clean=Cleaning.model_validate(clean or {}),
        **fields,
    )


def make(config, api=None, environment=None, rank=0):
    """Run the step as a pod does; returns the context, in which its words are, and the artifact."""
    context = RunContext(config, rank=rank)
    asked = {"endpoint": api.endpoint(config, environment), "clock": api.clock} if api is not None else {}
    try:
        artifact = instruction_set.run(config, context, **asked)
    finally:
        context.close()
    return context, artifact


def set_directory(config):
    return context_path(config) / "artifact"


def context_path(config):
    return Path(config.workspace.path)


def lines(config, part="train"):
    """The records of a part of the set."""
    text = (set_directory(config) / part / "records.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def report(config):
    return yaml.safe_load((set_directory(config) / "report.yaml").read_text(encoding="utf-8"))


def written(directory, records, name="records.jsonl"):
    directory.mkdir(parents=True, exist_ok=True)
    (directory / name).write_text("".join(f"{json.dumps(each, ensure_ascii=False)}\n" for each in records), "utf-8")
    return directory


def many(count, seed=0, **more):
    chance = random.Random(seed)
    return [
        {"instruction": chinese(chance, 15), "input": "", "output": chinese(chance, 40), **more} for _ in range(count)
    ]


def bytes_of(config):
    files = sorted(path for path in set_directory(config).rglob("*") if path.is_file() and "herdsman" not in path.name)
    return {path.relative_to(set_directory(config)).as_posix(): path.read_bytes() for path in files}
