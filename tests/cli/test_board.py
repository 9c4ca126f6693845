"""What the board on a terminal looks like, at the widths people have."""

import io

import pytest
from rich.console import Console

from builders import NOW
from herdsman.api.durations import duration
from herdsman.api.meta import Condition
from herdsman.api.v1alpha1.status import Metric, Phase, Progress, Status
from herdsman.cli.columns import print_columns
from herdsman.cli.figures import bar, shorter, size, speed
from herdsman.cli.reports import report_line
from herdsman.cli.rows import Board
from herdsman.core.world import Key

BASE, LORA, CHAT = Key("ModelImport", "base"), Key("PretrainJob", "zh-embeddings"), Key("ModelServer", "chat")


def waiting():
    condition = Condition(
        type="DependenciesReady",
        status="False",
        reason="ReferenceNotReady",
        message="spec.model: not yet",
        observed_generation=1,
        last_transition_time=NOW,
    )
    return Status(phase=Phase.WAITING, conditions=[condition])


def training(step=1250):
    progress = Progress(
        percent=step // 20,
        step=step,
        total_steps=2000,
        tokens_per_second=12345,
        estimated_remaining_seconds=80,
        activity="training",
        metrics=[Metric(name="loss", value="5.3125")],
    )
    return Status(phase=Phase.RUNNING, progress=progress)


STATUSES = {BASE: Status(phase=Phase.SUCCEEDED), LORA: training(), CHAT: waiting()}


def lines(width, statuses=STATUSES):
    console = Console(width=width, file=io.StringIO(), force_terminal=False)
    console.print(Board(statuses, {CHAT: [BASE, LORA]}))
    return console.file.getvalue().splitlines()


BOARDS = {
    80: """
   RESOURCE          PHASE      PROGRESS               STEP   LOSS  TOK/S    ETA
 ✔ mi/base           Succeeded
 ● pj/zh-embeddings  Running    ━━━━━━━────  62%  1250/2000  5.312  12.3k  1m20s
 ○ ms/chat           Waiting    after zh-embeddings
""",
    120: """
   RESOURCE                   PHASE      PROGRESS                            STEP   LOSS  TOK/S    ETA
 ✔ ModelImport/base           Succeeded
 ● PretrainJob/zh-embeddings  Running    ━━━━━━━━━━━━━━━─────────  62%  1250/2000  5.312  12.3k  1m20s  training
 ○ ModelServer/chat           Waiting    after zh-embeddings
""",
}


@pytest.mark.parametrize("width", BOARDS)
def test_the_board_fits_the_terminal(width):
    assert [line.rstrip() for line in lines(width)] == BOARDS[width].strip("\n").splitlines()


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120, 200])
def test_no_line_is_wider_than_the_terminal(width):
    shown = lines(width, {**STATUSES, Key("LoRAMerge", "a" * 40): training(10)})
    assert len(shown) == 5
    assert max(map(len, shown)) <= width


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (59.4, "59s"), (80, "1m20s"), (3600, "1h00m"), (90_000, "1d01h"), (-3, "0s")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("5.31252", "5.313"),
        ("12345", "12,345"),
        ("0.042137", "0.04214"),
        ("0.00001234", "1.23e-05"),
        ("1234.5", "1,234"),
        ("nan", "nan"),
        ("yes", "yes"),
    ],
)
def test_figures_are_short(value, text):
    assert shorter(value) == text


@pytest.mark.parametrize(
    ("count", "text"), [(4, "4 B"), (1536, "1.5 kB"), (13_476_839_424, "13.5 GB"), (2e12, "2.0 TB")]
)
def test_sizes(count, text):
    assert size(count) == text


@pytest.mark.parametrize(("rate", "text"), [(None, ""), (347, "347"), (21_500, "21.5k")])
def test_speeds(rate, text):
    assert speed(rate) == text


@pytest.mark.parametrize("percent", range(0, 101, 5))
def test_a_bar_is_as_wide_as_it_should_be(percent):
    assert len("".join(bar(percent, 20))) == 20


@pytest.mark.parametrize(
    ("report", "line"),
    [
        ({"loss_after": "4.25", "loss_before": "5.5"}, "loss 5.5 → 4.25"),
        ({"loss_base": "6", "loss_before": "5.5", "loss_after": "4.25"}, "loss 5.5 → 4.25 (base 6)"),
        ({"steps": "30", "train_loss_first": "6", "train_loss_last": "5"}, "train loss 6 → 5 · steps 30"),
        ({"loss_before": "5.5"}, "loss before 5.5"),
        (dict.fromkeys("abcdef", "1"), "a 1 · b 1 · c 1 · d 1"),
        (
            {"threshold_0": "0.5", "quiz/base/accuracy": "0.31", "quiz/tuned/accuracy": "0.415"},
            "quiz accuracy: base 0.31, tuned 0.415",
        ),
        ({}, ""),
    ],
)
def test_a_report_tells_first_what_changed(report, line):
    assert report_line(Status(report=[Metric(name=name, value=value) for name, value in report.items()])) == line


def test_columns_are_as_wide_as_their_widest_cell_and_never_cut():
    console = Console(width=20, file=io.StringIO())
    print_columns(console, ("A", ">N"), [["x" * 30, "1"], ["y", "100"]])
    assert console.file.getvalue().splitlines() == [
        "A" + " " * 33 + "N",
        "x" * 30 + "    1",
        "y" + " " * 31 + "100",
    ]
