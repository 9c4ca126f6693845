"""New records: replies are asked for until enough records of them have stayed."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from herdsman.api.job_config import GenerationConfig, InstructionSetConfig
from herdsman.api.v1alpha1.generation import Generation
from herdsman_trainer.errors import BadInput
from herdsman_trainer.instruction_making.asking import Asking, Clock
from herdsman_trainer.instruction_making.endpoint import Endpoint
from herdsman_trainer.instruction_making.journal import Entry, Journal
from herdsman_trainer.instruction_making.keeping import Keeper, counted
from herdsman_trainer.instruction_making.records import AlpacaRecord
from herdsman_trainer.instruction_making.replies import read_reply
from herdsman_trainer.instruction_making.requests import LONGEST_INSTRUCTION, Form, Requests
from herdsman_trainer.instruction_making.spending import Usage, cost

FIRST_BARREN, BARREN = 5, 20
"""Requests in a row of which no record stays, at the beginning and later, after which no more are made."""
_KEPT = "The replies are kept: a new resource with the same requests on the same claim takes them without asking."


class Run(Protocol):
    """What generating needs of the run around it."""

    def report(
        self,
        *,
        activity: str | None = None,
        done: float | None = None,
        metrics: Mapping[str, float | str] | None = None,
    ) -> None:
        """Say how far the work is."""

    def raise_if_stopped(self) -> None:
        """Raise Interrupted if a stop was asked for."""


@dataclass
class Generated:
    """What came of asking."""

    wanted: int
    kept: int = 0
    usage: Usage = field(default_factory=Usage)
    unreadable: int = 0
    """Replies without a single record in them."""
    repaired: int = 0
    """Replies that were no JSON as they stood."""
    filtered: int = 0
    """Requests that the API refused to answer."""
    given_up: int = 0
    """Requests at which the API failed again and again."""
    ended_by: str | None = None
    """Why there are fewer records than wanted, as the end of a sentence; None where there are as many."""
    key: str = ""
    """What names the requests; see Requests.key."""

    def figures(self, spec: Generation) -> dict[str, float | str]:
        """Return the figures for people."""
        found: dict[str, float | str] = {"requests": self.usage.requests, "request_tokens": self.usage.tokens}
        if spec.price is not None:
            found["cost"] = float(round(cost(self.usage, spec.price), 4))
        return found


def first_form(config: GenerationConfig) -> Form:
    """Return how the first reply is asked for."""
    given = config.spec.answer_format
    if given == "Auto":
        return "Schema" if config.endpoint.ours else "Object"
    return given


def generate(
    config: InstructionSetConfig,
    keeper: Keeper,
    seed_tasks: Sequence[AlpacaRecord],
    run: Run,
    *,
    endpoint: Callable[[], Endpoint] | None = None,
    clock: Clock | None = None,
) -> Generated:
    """Ask until as many records as are wanted have stayed in `keeper`, or the budget or the quota ends.

    What stays follows from the replies in the order of their requests. Raises BadInput where there is not enough and
    more will not come, Temporary where it may come later.
    """
    asked = config.generate
    assert asked is not None, "only called where something is asked for"
    form = first_form(asked)
    bound = min(LONGEST_INSTRUCTION, config.clean.longest_instruction) if asked.endpoint.ours else None
    requests = Requests(asked.spec, config.language, config.seed, seed_tasks, bound=bound)
    made = Generated(asked.spec.records, key=requests.key(asked.endpoint.identity, form))
    api = Endpoint(asked.endpoint, asked.spec.limits.request_seconds) if endpoint is None else endpoint()
    root = Path(config.workspace.root)
    with closing(api), Journal(root, made.key, config.owner.uid, config.attempt) as journal:
        asking = Asking(
            api=api,
            requests=requests,
            journal=journal,
            spec=asked.spec,
            model=asked.endpoint.model,
            form=form,
            run=run,
            seed=config.seed,
            enough=lambda: asked.spec.min_records is not None and made.kept >= asked.spec.min_records,
            clock=clock or Clock(),
        )
        found = len(journal)
        if found:
            run.report(activity=f"taking {found} replies that are there")
        _collect(asking, made, keeper, len(config.sources), run)
        made.ended_by = made.ended_by or (asking.ended_by if made.kept < made.wanted else None)
    _check_enough(made, asked.spec)
    return made


def forget_replies(config: InstructionSetConfig, key: str) -> None:
    """Remove the replies that this resource got, once the set is published."""
    with Journal(Path(config.workspace.root), key, config.owner.uid, config.attempt) as journal:
        journal.forget()


def _collect(asking: Asking, made: Generated, keeper: Keeper, part: int, run: Run) -> None:
    barren = 0
    for entry in asking.entries():
        before = made.kept
        _take(entry, made, keeper, part)
        barren = 0 if made.kept > before else barren + 1
        if made.kept >= made.wanted:
            return
        _tell(asking, made, keeper, run)
        if barren >= (BARREN if made.kept else FIRST_BARREN):
            made.ended_by = f"{barren} requests in a row gave nothing that stays ({counted(keeper.dropped)})"
            return
        asking.needed = _needed(made, asking.spec)


def _take(entry: Entry, made: Generated, keeper: Keeper, part: int) -> None:
    made.usage += entry.usage
    if entry.reply is None:
        made.given_up += 1
        return
    if entry.reply.filtered:
        made.filtered += 1
        return
    found = read_reply(entry.reply.text, cut=entry.reply.cut)
    made.repaired += found.repaired
    made.unreadable += found.is_empty
    for record in found.records:
        made.kept += keeper.take(record, part, generated=True)
        if made.kept >= made.wanted:
            return


def _needed(made: Generated, spec: Generation) -> int:
    """Return how many more requests will be needed at the present yield."""
    a_request = made.kept / made.usage.requests if made.kept else spec.records_per_request
    return max(1, math.ceil((made.wanted - made.kept) / a_request))


def _tell(asking: Asking, made: Generated, keeper: Keeper, run: Run) -> None:
    if not asking.answers:  # replies that were there before tell nothing of the speed
        run.raise_if_stopped()
        return
    figures: dict[str, Any] = {"records": len(keeper), "records_dropped": keeper.dropped.total()}
    run.report(
        activity=f"generating, {made.kept:,} of {made.wanted:,} records",
        done=made.kept / made.wanted,
        metrics={**figures, **made.figures(asking.spec)},
    )


def _check_enough(made: Generated, spec: Generation) -> None:
    barren = made.ended_by is not None and "in a row" in made.ended_by
    least = spec.min_records if spec.min_records is not None else made.wanted if barren else 1
    if made.kept >= min(least, made.wanted):
        return
    found = f"{made.kept:,} of {made.wanted:,} records"
    if barren:
        hint = (
            "Ask the model yourself once, to see what it answers. More domains, seedTasks or a higher "
            f"temperaturePercent bring variety; spec.clean may be too strict; minRecords takes less. {_KEPT}"
        )
    else:
        hint = f"Raise spec.generate.budget, or set minRecords to what will do. {_KEPT}"
    raise BadInput(f"There are {found}, and no more will come: {made.ended_by}.", hint=hint)
