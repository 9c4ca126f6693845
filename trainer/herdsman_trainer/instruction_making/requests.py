"""What request k asks: it follows from the spec, the seed and k alone."""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b, sha256
from typing import Any, Literal

from herdsman.api.v1alpha1.generation import Generation
from herdsman_trainer.instruction_making.records import AlpacaRecord
from herdsman_trainer.instruction_making.wording import DOMAINS, KINDS, LANGUAGES, WORDINGS, Wording

LONGEST_INSTRUCTION = 300
"""Characters of an instruction that our own servers write at most, or fewer where clean.longestInstruction says so."""
Form = Literal["Schema", "Object", "Text"]
"""How a reply is asked for."""


@dataclass(frozen=True)
class Drawn:
    """What was drawn for one request."""

    domains: Sequence[str]
    kinds: Sequence[str]
    longest_input: int
    longest_output: int
    examples: Sequence[AlpacaRecord]
    seed: int
    """What the API is told, so that it draws alike as far as it can."""


class Requests:
    """The requests of a generation."""

    def __init__(
        self,
        spec: Generation,
        language: str,
        seed: int,
        seed_tasks: Sequence[AlpacaRecord] = (),
        *,
        bound: int | None = None,
    ) -> None:
        """`bound` is the longest instruction: with it the schema says all lengths, so that no reply is endless.

        OpenAI's own API refuses such schemas, and so there is none for it.
        """
        self._spec = spec
        self._language = language
        self._seed = seed
        self._seed_tasks = seed_tasks
        self._bound = bound
        self._wording: Wording = WORDINGS[spec.preset]
        place = self._wording.place
        self._domains = spec.domains or [pair[place] for pair in DOMAINS]
        self._kinds = spec.task_kinds or [pair[place] for pair in KINDS]

    def drawn(self, number: int) -> Drawn:
        """Return what request `number` (from 0) is made of."""
        spec = self._spec
        digest = blake2b(f"{self._seed} {number}".encode(), digest_size=8).digest()
        chance = random.Random(int.from_bytes(digest, "little"))
        tasks = spec.seed_tasks.per_request if spec.seed_tasks is not None else 0
        return Drawn(
            domains=_some(chance, self._domains, spec.domains_per_request),
            kinds=_some(chance, self._kinds, spec.kinds_per_request),
            longest_input=chance.randint(spec.input_characters.least, spec.input_characters.most),
            longest_output=chance.randint(spec.output_characters.least, spec.output_characters.most),
            examples=_some(chance, self._seed_tasks, tasks),
            seed=chance.randrange(2**31),
        )

    def prompt(self, number: int) -> str:
        """Return the one message of request `number`."""
        drawn, words = self.drawn(number), self._wording
        filled = {
            "count": self._spec.records_per_request,
            "domains": words.comma.join(drawn.domains),
            "kinds": words.comma.join(drawn.kinds),
            "input": drawn.longest_input,
            "output": drawn.longest_output,
            "language": LANGUAGES[self._language],
        }
        lines = [words.opening.format(**filled)]
        lines += [f"{place}. {text.format(**filled)}" for place, text in enumerate(words.requirements, start=1)]
        if self._spec.guidance is not None:
            lines.append(words.guidance.format(guidance=self._spec.guidance))
        if drawn.examples:
            lines += [words.examples, *(example.to_line().decode().rstrip("\n") for example in drawn.examples)]
        return "\n".join([*lines, words.closing.format(**filled)])

    def body(self, number: int, model: str, form: Form) -> dict[str, Any]:
        """Return the body of request `number`; the original's is one message of the user and nothing else."""
        spec, drawn = self._spec, self.drawn(number)
        body: dict[str, Any] = {
            "model": model,
            "messages": [{"role": "user", "content": self.prompt(number)}],
            "max_tokens": spec.max_tokens,
            "seed": drawn.seed,
        }
        if spec.temperature_percent is not None:
            body["temperature"] = spec.temperature_percent / 100
        if spec.top_p_percent is not None:
            body["top_p"] = spec.top_p_percent / 100
        if form == "Object":
            body["response_format"] = {"type": "json_object"}
        elif form == "Schema":
            schema = reply_schema(drawn, spec.records_per_request, self._bound)
            body["response_format"] = {
                "type": "json_schema",
                "json_schema": {"name": "records", "strict": True, "schema": schema},
            }
        return body

    def key(self, identity: str, form: Form) -> str:
        """Return what names these requests to this endpoint: replies to others are none to these.

        It is a digest over the first requests as they are sent, so it changes with whatever changes them.
        """
        bodies = [self.body(number, "", form) for number in range(3)]
        text = json.dumps([identity, bodies, self._seed], sort_keys=True, ensure_ascii=False)
        return sha256(text.encode()).hexdigest()


def reply_schema(drawn: Drawn, most: int, bound: int | None) -> Mapping[str, Any]:
    """Return the JSON schema of a reply; with a bound for instructions also `most` records and the lengths drawn."""

    def text(longest: int | None) -> dict[str, Any]:
        return {"type": "string"} if bound is None else {"type": "string", "maxLength": longest}

    members = {
        "kind": {"type": "string", "enum": list(drawn.kinds)},
        "instruction": text(bound),
        "input": text(drawn.longest_input),
        "output": text(drawn.longest_output),
    }
    records: dict[str, Any] = {"type": "array"} if bound is None else {"type": "array", "minItems": 1, "maxItems": most}
    record = {
        "type": "object",
        "properties": members,
        "required": list(members),
        "additionalProperties": False,
    }
    return {
        "type": "object",
        "properties": {"records": {**records, "items": record}},
        "required": ["records"],
        "additionalProperties": False,
    }


def _some(chance: random.Random, of: Sequence[Any], count: int) -> list[Any]:
    return chance.sample(list(of), min(count, len(of)))
