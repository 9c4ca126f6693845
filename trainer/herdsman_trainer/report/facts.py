"""What a report tells, in the words and the order of both of its forms."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from herdsman.api.durations import duration
from herdsman.api.v1alpha1.status import Artifact
from herdsman_trainer.divergence import PASSED_OVER, REWINDS, SKIPPED
from herdsman_trainer.free_space import size_text

Row = tuple[str, ...]
Lines = Sequence[Mapping[str, Any]]
MOMENTS = {"unmodified": "the unmodified model", "before": "before", "after": "after"}


@dataclass(frozen=True)
class Figure:
    """One result, with what it was before."""

    name: str
    after: str
    before: str = ""


@dataclass(frozen=True)
class Sample:
    """One prompt and what was written to it, in the order in which it was."""

    prompt: str
    expected: str | None
    texts: tuple[tuple[str, str], ...]
    """(when, text)."""


@dataclass(frozen=True)
class RunFacts:
    """What is known at the end of a run."""

    kind: str
    name: str
    stage: str
    figures: Mapping[str, float | str]
    """Counts, losses and notes, by the names of the artifact's report."""
    inputs: Sequence[Row]
    """(field, where, digest)."""
    data: Mapping[str, float | str]
    """What became of the data."""
    settings: Mapping[str, Any]
    """The recipe, flat."""
    metrics: Lines
    samples: Lines
    attempts: Lines
    now: datetime = field(default_factory=lambda: datetime.now(UTC))

    @property
    def steps(self) -> list[Mapping[str, Any]]:
        """The records of steps."""
        return [line for line in self.metrics if "attempt" in line]

    @property
    def evaluations(self) -> list[tuple[float, float]]:
        """(step, held-out loss), with those before and after the run."""
        between = [(line["step"], line["heldout_loss"]) for line in self.metrics if _number(line.get("heldout_loss"))]
        last = int(self.figures.get("steps", 0))
        ends = ((0, "heldout_loss_before"), (last, "heldout_loss_last"), (self.published_step, "heldout_loss_after"))
        known = [(step, float(self.figures[name])) for step, name in ends if name in self.figures]
        return sorted({*between, *known})

    @property
    def published_step(self) -> int:
        """The step whose weights were published."""
        return int(self.figures.get("published_step", self.figures.get("steps", 0)))

    @property
    def events(self) -> list[tuple[float, str]]:
        """(step, what happened): restarts and returns to a checkpoint."""
        restarts = [
            (line["step"], f"attempt {line['attempt']} resumed") for line in self.attempts if line.get("attempt", 1) > 1
        ]
        told = [(line["step"], str(line["event"])) for line in self.metrics if "event" in line]
        best = [(self.published_step, "the weights that were published")] if "published_step" in self.figures else []
        return sorted([*restarts, *told, *best])

    def series(self, name: str) -> list[tuple[float, float]]:
        """Return (step, value) of a figure of the steps."""
        return [(line["step"], float(line[name])) for line in self.steps if _number(line.get(name))]

    def summary(self) -> str:
        """Return the run in a sentence or two."""
        tokens, seconds = sum(value for _, value in self.series("tokens")), self.seconds
        share = _ratio(self.figures.get("trainable_parameters"), self.figures.get("parameters"))
        parts = [f"Stage {self.stage}, {_count(self.figures.get('steps', 0))} optimizer steps"]
        parts += [f"{_count(tokens)} tokens in {duration(seconds)}"] if tokens else []
        parts += [f"{share:.2%} of {_count(self.figures['parameters'])} parameters trained"] if share else []
        attempts = len(self.attempts)
        parts += [f"{attempts} attempts"] if attempts > 1 else []
        return f"{', '.join(parts)}. Finished {self.now:%Y-%m-%d %H:%M} UTC."

    @property
    def seconds(self) -> float:
        """The time that the steps took."""
        return sum(value for _, value in self.series("seconds"))

    def results(self) -> list[Figure]:
        """Return the figures that people look for first."""
        known = self.figures
        found = [
            _changed("Held-out loss, nats a character", known, "heldout_loss_per_char"),
            _changed("Held-out loss, nats a token", known, "heldout_loss"),
            _changed("Held-out perplexity", known, "heldout_perplexity"),
            _changed("Training loss, nats a token", known, "train_loss", "first", "last"),
        ]
        if "published_step" in known:
            found.append(Figure("Weights published", f"those of step {_count(known['published_step'])}, the best"))
        tokens = sum(value for _, value in self.series("tokens"))
        if tokens and self.seconds:
            found.append(Figure("Tokens a second, mean", _count(round(tokens / self.seconds))))
        if mfu := [value for _, value in self.series("mfu")]:
            found.append(Figure("MFU, mean", f"{sum(mfu) / len(mfu):.3f}"))
        counts = ((SKIPPED, "Steps passed over"), (REWINDS, "Returns"), (PASSED_OVER, "Batches passed over"))
        found += [Figure(title, _count(known[name])) for name, title in counts if known.get(name)]
        return [figure for figure in found if figure is not None]

    def data_rows(self) -> list[Row]:
        """Return what became of the data."""
        return [(name.replace("_", " "), _plain(value)) for name, value in self.data.items()]

    def setting_rows(self) -> list[Row]:
        """Return the recipe."""
        return [(name, _plain(value)) for name, value in self.settings.items() if value != ""]

    def attempt_rows(self) -> list[Row]:
        """Return one row an attempt: number, start, first step, steps that count, speed, on what."""
        return [self._attempt(line) for line in self.attempts]

    def _attempt(self, line: Mapping[str, Any]) -> Row:
        own = [step for step in self.steps if step.get("attempt") == line.get("attempt")]
        seconds, tokens = (sum(step.get(name) or 0 for step in own) for name in ("seconds", "tokens"))
        start = line.get("resumed_from_step")
        return (
            str(line.get("attempt", "")),
            str(line.get("started", "")).replace("T", " ").replace("+00:00", ""),
            f"step {start}" if start is not None else "the start",
            _count(len(own)),
            _count(round(tokens / seconds)) if seconds else "",
            f"{line.get('processes', 1)} x {line.get('device', '')}",
        )

    def artifact_rows(self, artifact: Artifact) -> list[Row]:
        """Return the contract of the result."""
        rows = {
            "kind": artifact.kind,
            "digest": artifact.digest,
            "size": size_text(artifact.bytes),
            "rows of the embedding": artifact.vocab_size,
            "tokenizer": artifact.tokenizer_digest,
            "base": artifact.base_digest,
            "type": artifact.dtype,
            "prompt template": artifact.prompt_template,
        }
        return [(name, _plain(value)) for name, value in rows.items() if value is not None]

    def sample_list(self) -> list[Sample]:
        """Return the prompts with all that was written to them."""
        return list(self._samples())

    def _samples(self) -> Iterator[Sample]:
        taken = [line for line in self.samples if isinstance(line.get("samples"), list)]
        if not taken:
            return
        for place, first in enumerate(taken[0]["samples"]):
            texts = [(_moment(line), line["samples"][place]["text"]) for line in taken if place < len(line["samples"])]
            yield Sample(first["prompt"], first.get("expected") or _expected(taken, place), tuple(texts))


ATTEMPT_TITLES = ("attempt", "started (UTC)", "from", "steps that count", "tokens/s", "on")


def _expected(taken: Lines, place: int) -> str | None:
    found = (line["samples"][place].get("expected") for line in taken if place < len(line["samples"]))
    return next((text for text in found if text), None)


def _moment(line: Mapping[str, Any]) -> str:
    moment = str(line.get("moment"))
    return MOMENTS.get(moment, f"step {line['step']}")


def _changed(
    title: str, known: Mapping[str, float | str], stem: str, before: str = "before", after: str = "after"
) -> Figure | None:
    if f"{stem}_{after}" not in known:
        return None
    parts = [_plain(known[f"{stem}_{before}"])] if f"{stem}_{before}" in known else []
    if f"{stem}_base" in known:
        parts.insert(0, f"{_plain(known[f'{stem}_base'])} unmodified")
    return Figure(title, _plain(known[f"{stem}_{after}"]), " → ".join(parts))


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _ratio(part: Any, whole: Any) -> float | None:
    return float(part) / float(whole) if part and whole else None


def _count(value: float | str) -> str:
    return f"{int(value):,}"


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float) and not value.is_integer():
        return f"{value:.4g}"
    return f"{int(value):,}" if isinstance(value, int | float) else str(value)
