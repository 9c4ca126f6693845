"""Several processes agree, and do the mathematics of one."""

import importlib.util
import json
import os
import warnings

import pytest
import torch
from safetensors.torch import load_file

import training_configs as build
from herdsman.api.v1alpha1.divergence import Divergence
from herdsman.api.v1alpha1.recipes import Batch, Checkpoints, DeepSpeed, Fsdp
from herdsman_trainer.distributed import PeerFailed, Processes, connected
from herdsman_trainer.errors import BadInput, Interrupted, Temporary
from herdsman_trainer.run_context import RunContext
from herdsman_trainer.steps import pretrain
from herdsman_trainer.training import Trainer
from ranks import as_ranks, in_child

ZERO = {f"zero{stage}": DeepSpeed(zero_stage=stage) for stage in (1, 2, 3)}
TOLERANCE = 2e-6
"""Sums of other orders differ in float32's last bits; measured: 4e-7 for two processes, 6e-7 for ZeRO-3."""

needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed (pip install herdsman[deepspeed])"
)


def check(function):
    """Run `function(processes)` on two connected ranks and expect both to end well."""

    def work():
        torch.set_num_threads(1)
        with connected("cpu") as processes:
            function(processes)

    assert as_ranks(work) == [0, 0]


def test_a_single_process_needs_no_group():
    processes = Processes()
    assert processes.on_first(lambda: 3) == 3
    assert processes.sum([1, 2.5]) == [1.0, 2.5]
    assert not processes.any(False)
    processes.barrier()


def test_all_ranks_get_what_rank_0_did():
    def function(processes):
        made = processes.on_first(lambda: {"by": processes.rank})
        assert made == {"by": 0}
        assert processes.sum([processes.rank, 1.0]) == [1.0, 2.0]
        assert processes.any(processes.rank == 1)
        assert not processes.any(False)
        processes.barrier()

    check(function)


def test_a_refusal_on_rank_0_is_raised_on_all():
    def function(processes):
        def refuse():
            raise BadInput("Wrong.", file="a.txt", line=3, hint="Fix it.", reason="ArtifactMismatch")

        with pytest.raises(BadInput) as refused:
            processes.on_first(refuse)
        error = refused.value
        assert (error.message, error.file, error.line, error.hint) == ("Wrong.", "a.txt", 3, "Fix it.")
        assert error.reason == "ArtifactMismatch"

    check(function)


def test_a_bug_on_rank_0_leaves_nobody_waiting():
    def function(processes):
        with pytest.raises(ZeroDivisionError if processes.is_first else PeerFailed):
            processes.on_first(lambda: 1 // 0)

    check(function)


def test_gradients_are_summed_in_pieces_and_a_missing_one_is_zero(monkeypatch):
    monkeypatch.setattr("herdsman_trainer.distributed.BUCKET_ELEMENTS", 5)

    def function(processes):
        parameters = [torch.nn.Parameter(torch.zeros(2, 2)) for _ in range(3)]
        for number, parameter in enumerate(parameters[:2]):
            parameter.grad = torch.full((2, 2), float(10 * number + processes.rank))
        processes.sum_gradients(parameters)
        assert [float(item.grad[0, 0]) for item in parameters] == [1.0, 21.0, 0.0]

    check(function)


def test_a_gpu_that_is_not_there_is_bad_input():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(BadInput, match="PyTorch sees none"), connected("cuda"):
        pass


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Model and corpus, and in `one` the result of a single process."""
    root = tmp_path_factory.mktemp("home")
    build.base_model(root)
    build.corpus(root)
    assert in_child(job(root, "one")) == 0
    return root


@pytest.fixture(scope="module")
def zero_home(home):
    """The same, with DeepSpeed imported once: the forked ranks inherit it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        importlib.import_module("deepspeed")
        importlib.import_module("torch._inductor.compile_fx")  # which it imports when it starts
    return home


def job(root, work, stop_after=None, attempt=1, **options):
    """Return a function that runs a pre-training of six steps of eight sequences, or the part up to a stop."""
    options = {
        "batch": Batch(global_sequences=8, micro_sequences=2),
        "checkpoints": Checkpoints(every_steps=100, keep_last=1),
        **options,
    }
    config = build.pretrain_config(root, work=work, attempt=attempt, **options)

    def run():
        torch.set_num_threads(1)
        context = RunContext(config)
        if stop_after is None:
            pretrain.run(config, context)
            return
        step = Trainer._step

        def stopping(self, state):
            if state.step == stop_after and context.rank == 0:
                context.request_stop()
            return step(self, state)

        Trainer._step = stopping
        with pytest.raises(Interrupted):
            pretrain.run(config, context)

    return run


def assert_same_weights(root, work, other="one", *, modules=False):
    """Compare with the single process: at most TOLERANCE of the largest value of each matrix.

    ZeRO-3 computes with transformers' `modules`, whose sums have other orders throughout: where a gradient is next to
    nothing Adam makes a whole step of its sign, so single values may be off by more, and the matrices hardly at all.
    """
    mine = load_file(root / work / "artifact" / "adapter_model.safetensors")
    theirs = load_file(root / other / "artifact" / "adapter_model.safetensors")
    assert mine.keys() == theirs.keys()
    for name, expected in theirs.items():
        difference = mine[name] - expected
        if modules:
            assert difference.norm() <= 5e-4 * expected.norm(), name
        assert difference.abs().max() <= (2e-3 if modules else TOLERANCE) * expected.abs().max(), name


def test_two_processes_reach_the_weights_of_one(home):
    assert as_ranks(job(home, "two")) == [0, 0]
    assert_same_weights(home, "two")


@needs_deepspeed
@pytest.mark.parametrize("settings", ["zero1", "zero2", "zero3"])
def test_zero_reaches_the_weights_of_one_process(zero_home, settings):
    assert as_ranks(job(zero_home, settings, deepspeed=ZERO[settings])) == [0, 0]
    assert_same_weights(zero_home, settings, modules=settings == "zero3")


def each_with_its_part(work):
    """The job, looking at every update whether a process holds half of everything and no more."""

    def run():
        from herdsman_trainer.fsdp_engine import FsdpEngine

        update, looked = FsdpEngine.update, []

        def looking(self, rate):
            done = update(self, rate)
            for whole in self._parameters:
                moments = self._optimizer.state[whole]["exp_avg"]
                assert whole.to_local().shape[0] <= -(-whole.shape[0] // 2)
                assert moments.to_local().shape == whole.to_local().shape
            looked.append(done)
            return done

        FsdpEngine.update = looking
        work()
        assert len(looked) == 6

    return run


@pytest.mark.parametrize("reshard", [True, False], ids=["resharding", "keeping"])
def test_fsdp_reaches_the_weights_of_one_process(home, reshard):
    work = f"fsdp-{reshard}"
    assert as_ranks(each_with_its_part(job(home, work, fsdp=Fsdp(reshard_after_forward=reshard)))) == [0, 0]
    assert_same_weights(home, work, modules=True)


@needs_deepspeed
def test_documents_apart_are_the_same_to_both_ways_of_computing(zero_home):
    """A single process packs documents as sequences of their own, ZeRO-3 masks them for transformers' modules."""
    assert in_child(job(zero_home, "apart", attend_within="Document")) == 0
    assert as_ranks(job(zero_home, "apart-zero3", attend_within="Document", deepspeed=ZERO["zero3"])) == [0, 0]
    assert_same_weights(zero_home, "apart-zero3", "apart", modules=True)
    with pytest.raises(AssertionError, match="weight"):
        assert_same_weights(zero_home, "apart", "one", modules=True)


def test_two_processes_stop_together_and_one_goes_on(home):
    assert as_ranks(job(home, "cut", stop_after=3)) == [0, 0]
    assert [path.name for path in (home / "cut" / "checkpoints").iterdir()] == ["step-00000003"]
    assert in_child(job(home, "cut", attempt=2)) == 0
    assert_same_weights(home, "cut")


@needs_deepspeed
def test_any_number_of_processes_and_nodes_and_any_engine_continues_a_checkpoint_of_any_other(zero_home):
    def cut(attempt, **options):
        return job(zero_home, "chain", stop_after=attempt, attempt=attempt, **options)

    assert in_child(cut(1)) == 0
    assert as_ranks(cut(2, deepspeed=ZERO["zero3"])) == [0, 0]
    assert as_ranks(cut(3, deepspeed=ZERO["zero2"]), nodes=2) == [0, 0]
    assert as_ranks(cut(4), nodes=2) == [0, 0]
    assert as_ranks(cut(5, fsdp=Fsdp())) == [0, 0]
    assert as_ranks(job(zero_home, "chain", attempt=6, deepspeed=ZERO["zero1"])) == [0, 0]
    assert_same_weights(zero_home, "chain", modules=True)
    attempts = [json.loads(line) for line in (zero_home / "chain" / "attempts.jsonl").read_text().splitlines()]
    told = [(line["resumed_from_step"], line["processes"]) for line in attempts]
    assert told == [(None, 1), (1, 2), (2, 2), (3, 2), (4, 2), (5, 2)]


def poisoned(work, step, here):
    """The job, with a loss that is not a number for one global batch, on the rank `here` or on all."""

    def run():
        from herdsman_trainer.fused import plain_ops

        now, rank = [], int(os.environ.get("RANK", "0"))
        original = Trainer._step
        cross_entropy = plain_ops.cross_entropy_

        def noting(self, state):
            now[:] = [state.batch]
            return original(self, state)

        def bad(logits, *arguments):
            losses = cross_entropy(logits, *arguments)
            if now == [step] and here in (None, rank):
                logits.fill_(float("nan"))
                return losses * float("nan")
            return losses

        Trainer._step = noting
        plain_ops.cross_entropy_ = bad
        work()

    return run


@needs_deepspeed
@pytest.mark.parametrize("settings", ["zero2"])
def test_zero_passes_over_a_step_and_goes_back_to_a_checkpoint_as_one_process_does(zero_home, settings):
    policy = {
        "divergence": Divergence(skip=0, rewinds=1),
        "checkpoints": Checkpoints(every_steps=1, keep_last=4),
    }
    assert in_child(poisoned(job(zero_home, f"{settings}-one", **policy), 3, None)) == 0
    several = job(zero_home, f"{settings}-two", deepspeed=ZERO[settings], **policy)
    assert as_ranks(poisoned(several, 3, 1)) == [0, 0]  # one rank alone sees it
    assert_same_weights(zero_home, f"{settings}-two", f"{settings}-one")
    assert report(zero_home, f"{settings}-two")["batches_passed_over"] == "2"


def report(root, work):
    manifest = json.loads((root / work / "artifact" / "herdsman-artifact.json").read_text())
    return {item["name"]: item["value"] for item in manifest["report"]}


def test_what_the_writing_thread_of_rank_0_meets_ends_all_ranks(home):
    work = job(home, "full", checkpoints=Checkpoints(every_steps=1, keep_last=1, background=True))

    def run():
        from herdsman_trainer import checkpoint_folder

        checkpoint_folder.free_bytes = lambda _: 0
        with pytest.raises(Temporary, match="no space left for a checkpoint"):
            work()

    assert as_ranks(run) == [0, 0]


@pytest.mark.parametrize(
    "spread",
    [
        pytest.param({"deepspeed": ZERO["zero3"]}, marks=needs_deepspeed, id="zero3"),
        pytest.param({"fsdp": Fsdp()}, id="fsdp"),
    ],
)
def test_what_is_spread_goes_on_from_a_checkpoint_in_bf16(request, home, spread):
    if "deepspeed" in spread:
        request.getfixturevalue("zero_home")
    name = "-".join(spread)
    assert in_child(job(home, f"half-{name}", precision="bf16")) == 0
    for attempt, stop in ((1, 3), (2, None)):
        work = job(home, f"spread-{name}", attempt=attempt, stop_after=stop, precision="bf16", **spread)
        assert as_ranks(work) == [0, 0]
    theirs, mine = (losses(home, f"{work}-{name}") for work in ("half", "spread"))
    assert mine == pytest.approx(theirs, rel=1e-4)
    assert len(mine) == 6


def losses(root, work):
    return [json.loads(line)["loss"] for line in (root / work / "metrics.jsonl").read_text().splitlines()]
