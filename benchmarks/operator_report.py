"""What the operator's benchmark has found, beside the goals."""

from typing import Any


def goals(found: dict[str, Any], *, paced: bool) -> dict[str, tuple[float, float, bool]]:
    """Return each goal as (figure, bound, met)."""
    made, done = found["resource -> Job, ms"], found["Job done -> resource done, ms"]
    checked = {"writes each": (found["writes each"], 20.0, found["writes each"] <= 20)}
    if paced:
        for title, spread_of, bounds in (("resource -> Job", made, (50, 250)), ("Job done -> done", done, (50, 150))):
            for name, bound in zip(("p50", "p95"), bounds, strict=True):
                checked[f"{title} {name}, ms"] = (spread_of[name], float(bound), spread_of[name] <= bound)
    else:
        ratio = found["a second"] / found["plain"]["a second"]
        checked["of plain Jobs' rate"] = (round(ratio, 2), 0.45, ratio >= 0.45)
    again = found["restart"]
    checked["ready after a restart, s"] = (again["ready"], 5.0, again["ready"] <= 5)
    checked["writes after a restart"] = (sum(again["writes"].values()), 0.0, not again["writes"])
    checked["memory after a restart, MiB"] = (again["MiB"], 250.0, again["MiB"] <= 250)
    return checked


def table(found: dict[str, dict[str, Any]]) -> str:
    """Return all figures as Markdown."""
    rows = [
        ("runs", lambda it: it["runs"]),
        ("until all are Complete, s", lambda it: it["seconds"]),
        ("a second", lambda it: it["a second"]),
        ("plain Jobs a second", lambda it: it["plain"]["a second"] if "plain" in it else ""),
        ("raw API writes a second", lambda it: it["raw"]),
        ("resource -> Job, ms p50 / p95", lambda it: _pair(it["resource -> Job, ms"])),
        ("Job Complete -> resource Complete, ms p50 / p95", lambda it: _pair(it["Job done -> resource done, ms"])),
        ("API writes each", lambda it: it["writes each"]),
        ("of these a plain Job's", lambda it: it["plain"]["writes each"] if "plain" in it else ""),
        ("CPU of the operator, ms each", lambda it: it["cpu ms each"]),
        ("memory of the operator, MiB", lambda it: it["MiB"]),
        ("restart: ready after, s", lambda it: it["restart"]["ready"]),
        ("restart: writes in 20 s", lambda it: sum(it["restart"]["writes"].values())),
        ("restart: memory, MiB", lambda it: it["restart"]["MiB"]),
        ("goals missed", lambda it: ", ".join(n for n, (_, _, met) in it["goals"].items() if not met) or "none"),
    ]
    lines = ["| | " + " | ".join(found) + " |", "| --- |" + " ---: |" * len(found)]
    lines += [f"| {title} | " + " | ".join(str(of(it)) for it in found.values()) + " |" for title, of in rows]
    return "\n".join(lines) + "\n"


def _pair(spread_of: dict[str, float]) -> str:
    return f"{spread_of['p50']} / {spread_of['p95']}"
