"""The task of a judge: answers first, then points for them, each pair in both orders."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from herdsman_trainer.benchmarks.answer_tasks import SamplesWork, never_stops
from herdsman_trainer.benchmarks.bootstrap import Measured
from herdsman_trainer.benchmarks.forward import Check
from herdsman_trainer.benchmarks.judge_client import JudgeClient
from herdsman_trainer.benchmarks.judge_words import Comparison, judge_prompt, read_points
from herdsman_trainer.benchmarks.work import Outcome
from herdsman_trainer.errors import BadInput

ASKED_AGAIN = 2
"""How often a judge is asked again whose points cannot be read."""
FEWEST_READ = 0.5
"""The share of questions whose points must be read, of both orders and all models."""
KEPT_CHARACTERS = 2000

Verdicts = Mapping[str, Mapping[str, Any]]
"""By key: {"points": [a, b] or None, "reply": what the judge said}."""


@dataclass(frozen=True, slots=True)
class Sitting:
    """One thing to ask: a question and whose answers are shown, in this order."""

    key: str
    question: int
    shown: tuple[int, ...]
    """Places of models."""


def sittings(questions: int, models: int) -> list[Sitting]:
    """Return all there is to ask: each model beside the first, in both orders; a single model alone."""
    if models == 1:
        return [Sitting(f"{question}/0", question, (0,)) for question in range(questions)]
    return [
        Sitting(f"{question}/{first}-{second}", question, (first, second))
        for question in range(questions)
        for model in range(1, models)
        for first, second in ((0, model), (model, 0))
    ]


class JudgeWork(SamplesWork):
    """Answers to questions, and a judge's points for them."""

    def verdicts(
        self, results: Sequence[Sequence[Any]], known: Verdicts, client: JudgeClient, check: Check
    ) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Yield (key, verdict) of what is not known yet, as the judge gives them; results are the models' answers."""
        judge = self.task.judge
        assert judge is not None
        missing = [each for each in sittings(len(self.asked), len(results)) if each.key not in known]

        def ask(sitting: Sitting) -> dict[str, Any]:
            asked = self.asked[sitting.question]
            texts = tuple(results[model][sitting.question]["text"] for model in sitting.shown)
            prompt = judge_prompt(Comparison(asked.text, asked.reference, texts), judge.criteria)
            return _verdict(client, prompt, len(texts))

        yield from _in_parallel(missing, ask, judge.endpoint.parallel, check)

    def judged(self, models: Sequence[str], results: Sequence[Sequence[Any]], verdicts: Verdicts) -> Outcome:
        """Return the scores; questions of which a verdict cannot be read are left out for all models."""
        points = np.full((len(self.asked), len(models), 2), np.nan)
        theirs = np.full_like(points, np.nan)
        for each in sittings(len(self.asked), len(models)):
            given = verdicts[each.key]["points"]
            if given is None:
                continue
            model, order = max(each.shown), int(each.shown[0] != 0)
            points[each.question, model, order] = given[each.shown.index(model)]
            if len(models) > 1:
                theirs[each.question, model, order] = given[each.shown.index(0)]
        if len(models) == 1:
            own = points[:, :, 0]
            base = own
        else:
            own, base = points.mean(axis=2), theirs.mean(axis=2)
            own[:, 0] = base[:, 1:].mean(axis=1)
            base[:, 0] = own[:, 0]
        read = np.isfinite(own).all(axis=1)
        self._check_read(read, verdicts)
        own, base = own[read].T, base[read].T
        ones = np.ones_like(own)
        wins = np.where(own > base, 1.0, np.where(own < base, 0.0, 0.5))
        measured = [Measured("score", own, ones, "higher"), Measured("winRate", wins, ones, "higher")]
        records = list(self._records(models, results, verdicts))
        details = {
            "questions": len(self.asked),
            "read": int(read.sum()),
            "judge": self.task.judge.endpoint.model if self.task.judge is not None else "",
            "bothOrdersAgree": _agreement(points, theirs),
            "samples": records,
        }
        notes = list(never_stops(models, results, self._max_tokens))
        if not read.all():
            notes.append(
                f"{int((~read).sum())} of {len(read)} questions are left out: the judge gave no points to read."
            )
        return Outcome(measured, details, notes, records)

    def _check_read(self, read: Any, verdicts: Verdicts) -> None:
        if read.mean() >= FEWEST_READ:
            return
        replies = (verdict["reply"] for verdict in verdicts.values() if verdict["points"] is None)
        raise BadInput(
            f"The judge's points can be read for {int(read.sum())} of {len(read)} questions; for example it said: "
            f"{next(replies, '')[:200]!r}.",
            hint="Use a model that follows instructions: it is asked to end with a line of JSON.",
        )

    def _records(
        self, models: Sequence[str], results: Sequence[Sequence[Any]], verdicts: Verdicts
    ) -> Iterator[dict[str, Any]]:
        asked_of: dict[int, list[Sitting]] = {}
        for each in sittings(len(self.asked), len(models)):
            asked_of.setdefault(each.question, []).append(each)
        for place, asked in enumerate(self.asked):
            yield {
                "prompt": asked.text,
                "answers": {model: results[row][place] for row, model in enumerate(models)},
                "verdicts": [
                    {"shown": [models[row] for row in each.shown], **verdicts[each.key]} for each in asked_of[place]
                ],
                **({"reference": asked.reference} if asked.reference else {}),
            }


def _verdict(client: JudgeClient, prompt: str, count: int) -> dict[str, Any]:
    reply = ""
    for _ in range(1 + ASKED_AGAIN):
        reply = client.ask(prompt)
        points = read_points(reply, count)
        if points is not None:
            return {"points": list(points), "reply": reply[:KEPT_CHARACTERS]}
    return {"points": None, "reply": reply[:KEPT_CHARACTERS]}


def _in_parallel(
    missing: Sequence[Sitting], ask: Callable[[Sitting], dict[str, Any]], parallel: int, check: Check
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield verdicts as they come, `parallel` under way at a time; what one raises ends it once those have ended."""
    todo = iter(missing)
    with ThreadPoolExecutor(parallel, thread_name_prefix="judge") as pool:
        going: dict[Future[dict[str, Any]], Sitting] = {}
        while True:
            for sitting in islice(todo, parallel - len(going)):
                going[pool.submit(ask, sitting)] = sitting
            if not going:
                return
            check()
            done, _ = wait(going, timeout=1.0, return_when=FIRST_COMPLETED)
            for future in sorted(done, key=_failed):  # what came is kept before a failure ends it
                yield going.pop(future).key, future.result()


def _failed(future: Future[dict[str, Any]]) -> bool:
    return future.exception() is not None


def _agreement(points: Any, theirs: Any) -> float | None:
    """Return the share of pairs in which both orders prefer the same answer, a tie being a preference of its own."""
    better = np.sign(points - theirs)
    known = np.isfinite(better).all(axis=2)
    return float((better[..., 0] == better[..., 1])[known].mean()) if known.any() else None
