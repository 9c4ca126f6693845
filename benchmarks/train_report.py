"""What the training benchmark has found, beside the goals."""

from typing import Any

PEAK = 989e12
"""Dense 16-bit operations a second of an H100 or H200."""
PRETRAIN, LLAMA3, SFT = "7B, blocks of 512", "8B, blocks of 1024", "7B, instructions"

Goal = tuple[float, float, bool]


def goals(found: dict[str, Any]) -> dict[str, Goal]:
    """Return each goal whose figures are there as (figure, bound, met)."""
    speed = {name: case["tokens/s"] for name, case in found.items() if "tokens/s" in case}
    checked: dict[str, Goal] = {}

    def at_least(title: str, figure: float, bound: float) -> None:
        checked[title] = (figure, bound, figure >= bound)

    def at_most(title: str, figure: float, bound: float) -> None:
        checked[title] = (figure, bound, figure <= bound)

    def ratio(title: str, mine: str, theirs: str, bound: float) -> None:
        if mine in speed and theirs in speed:
            at_least(title, speed[mine] / speed[theirs], bound)

    published = f"{PRETRAIN}: published"
    ratio("pre-training: times the recipe as published", f"{PRETRAIN}: ours", published, 10)
    ratio("pre-training: times the compiled stock tuning", f"{PRETRAIN}: ours", f"{PRETRAIN}: compiled", 1.6)
    ratio("within the published memory: times the recipe", f"{PRETRAIN}: ours, recomputed", published, 6)
    ratio("four bits: times the recipe", f"{PRETRAIN}: ours, four bits", published, 4)
    ratio("8B: times the recipe as published", f"{LLAMA3}: ours", f"{LLAMA3}: published", 4.5)
    ratio("instructions: times one sample a micro-batch", f"{SFT}: ours", f"{SFT}: published", 60)
    ratio("instructions: times packed stock", f"{SFT}: ours", f"{SFT}: stock, packed", 1.8)
    for title, name, bound in (("pre-training: MFU", PRETRAIN, 0.60), ("8B: MFU", LLAMA3, 0.55)):
        if f"{name}: ours" in speed:
            at_least(title, found[f"{name}: ours"]["mfu"], bound)
    if published in speed and f"{PRETRAIN}: ours, recomputed" in speed and found[published]["GB"]:
        mine = found[f"{PRETRAIN}: ours, recomputed"]["GB"]
        at_most("recomputed: peak memory of the published's", mine / found[published]["GB"], 1.0)
    if f"{PRETRAIN}: ours, four bits" in speed:
        at_most("four bits: peak memory, GB", found[f"{PRETRAIN}: ours, four bits"]["GB"], 12.5)
    accuracy = found.get(f"{PRETRAIN}: accuracy", {})
    if "ours" in accuracy:
        at_most("error of all gradients beside stock bf16's", accuracy["ours"]["all"] / accuracy["stock"]["all"], 1.0)
    return checked


def table(found: dict[str, Any]) -> str:
    """Return all figures as Markdown."""
    lines = [
        "| | tokens/s | MFU | peak memory, GB | step, ms | loss |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, case in found.items():
        if "failed" in case:
            lines.append(f"| {name} | failed: {case['failed'].splitlines()[-1][:80]} | | | | |")
        elif "tokens/s" in case:
            lines.append(
                f"| {name} | {case['tokens/s']:,.0f} | {case['mfu']:.3f} | {case['GB']:.1f} | {case['ms']:.1f} "
                f"| {case['loss']:.4f} |"
            )
    for name, case in found.items():
        for way in ("ours", "stock", "published"):
            if way in case:
                lines.append(
                    f"\n{name}, {way}: loss off by {case[way]['loss']:.2e}, gradients by at most "
                    f"{case[way]['worst']:.2e} ({case[way]['where']}), {case[way]['all']:.2e} over all."
                )
    return "\n".join(lines)
