"""The report of a training: it is there, it is true, it needs nothing from elsewhere, and it changes no digest."""

import json
import re
from html.parser import HTMLParser

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig

import training_configs as build
from herdsman.api.v1alpha1.recipes import Checkpoints
from herdsman.api.v1alpha1.samples import Samples
from herdsman_trainer import report as module
from herdsman_trainer.artifacts import read_manifest, verify_artifact
from herdsman_trainer.distributed import Processes
from herdsman_trainer.errors import BadInput, Interrupted
from herdsman_trainer.loss_curve import LossCurve
from herdsman_trainer.report.charts import Series, line_chart, smoothed, thinned
from herdsman_trainer.run_context import RunContext
from herdsman_trainer.run_records import RecordFile
from herdsman_trainer.samples import Prompt, without_frame, write
from herdsman_trainer.steps import pretrain, sft
from herdsman_trainer.tokenizers import load_tokenizer
from herdsman_trainer.training import Trainer
from herdsman_trainer.training_run import check_held_out
from herdsman_trainer.utilisation import Utilisation, product_parameters
from herdsman_trainer.weights.merge import EMBEDDING, HEAD

pytestmark = pytest.mark.usefixtures("one_thread_for_all")
EVIL = "<script>alert(1)</script> | 从前"


@pytest.fixture(scope="module")
def one_thread_for_all():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def home(tmp_path_factory, one_thread_for_all):
    """Model, data, and in `work` a run of two attempts that published its best weights."""
    root = tmp_path_factory.mktemp("home")
    build.base_model(root)
    build.corpus(root)
    build.records(root)
    build.larger_tokenizer(root)
    with pytest.raises(Interrupted):
        run(config(root, attempt=1), stop_after=5)
    run(config(root, attempt=2))
    return root


def config(root, attempt=1, work="work", **changes):
    """A learning rate so high that the held-out loss rises again after a few steps."""
    given = {
        "max_steps": 16,
        "learning_rate": 5e-2,
        "evaluate_every_steps": 2,
        "checkpoints": Checkpoints(every_steps=8, keep_last=1, keep_best=1, publish="Best"),
        "samples": Samples(prompts=[EVIL, "The river"], max_tokens=8, every_steps=8),
    }
    return build.pretrain_config(root, work=work, attempt=attempt, tokenizer=root / "larger", **(given | changes))


def run(of, step=pretrain, stop_after=None):
    context = RunContext(of)
    original = Trainer._step

    def stopping(self, state):
        if state.step == stop_after:
            context.request_stop()
        return original(self, state)

    Trainer._step = stopping
    try:
        return step.run(of, context)
    finally:
        Trainer._step = original
        context.close()


def figures(root, work="work"):
    return {item.name: item.value for item in read_manifest(root / work / "artifact").report}


def page(root, work="work"):
    return (root / work / "artifact" / "report.html").read_text(encoding="utf-8")


class Elements(HTMLParser):
    """Collects tags, and checks that they close in the order in which they open."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in ("meta", "path", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag != "path":
            assert self.open.pop() == tag

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs


def test_the_page_needs_nothing_from_elsewhere_and_runs_nothing(home):
    found = Elements(page(home))
    assert not {"script", "link", "img", "iframe", "object"} & set(found.tags)
    assert not [name for name, _ in found.attributes if name in ("src", "href") or name.startswith("on")]
    assert "@import" not in page(home)
    assert "url(" not in page(home)
    assert EVIL.split()[0] not in page(home)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page(home)


def test_the_page_tells_what_was_trained_on_what_and_how_it_went(home):
    text = page(home)
    manifest = read_manifest(home / "work" / "artifact")
    words = ("PretrainJob demo", "16 optimizer steps", "2 attempts", "lora.rank", "Held-out loss, nats a character")
    for told in (manifest.artifact.digest, *manifest.inputs.values(), *words):
        assert told in text
    charts = re.findall(r'aria-label="([^":]+): from', text)
    assert charts == ["Loss, nats a token", "Learning rate", "Tokens a second", "Gradient&#x27;s norm before clipping"]
    assert text.count('<path class="dot b"') == 9  # before, seven between, and the published
    assert "step 5: attempt 2 resumed" in text


def test_the_samples_are_those_before_during_and_after(home):
    lines = [json.loads(line) for line in (home / "work" / "samples.jsonl").read_text().splitlines()]
    published = int(figures(home)["published_step"])
    taken = [(line["step"], line["moment"]) for line in lines]
    assert taken == [(0, "unmodified"), (0, "before"), (8, "step"), (published, "after")]
    assert all([sample["prompt"] for sample in line["samples"]] == [EVIL, "The river"] for line in lines)
    text = page(home)
    assert [text.count(f"<dt>{when}</dt>") for when in ("the unmodified model", "before", "step 8", "after")] == [2] * 4


def test_markdown_tells_the_same(home):
    text = (home / "work" / "artifact" / "report.md").read_text(encoding="utf-8")
    assert text.startswith("# PretrainJob demo\n\nStage LoRA, 16 optimizer steps")
    assert re.search(r"`[▁-█]{16}`", text)
    assert r"\<script\>alert(1)\</script\> \| 从前" in text
    assert "those of step " in text
    tables = [line for line in text.splitlines() if line.startswith("| spec.")]
    assert [line.split(" | ")[0] for line in tables] == ["| spec.model", "| spec.tokenizer", "| spec.dataset"]


def test_the_report_is_no_part_of_the_digest_and_no_stranger(home):
    manifest = verify_artifact(home / "work" / "artifact", "Digests")
    assert manifest.artifact.report == "report.html"
    assert not {"report.html", "report.md"} & manifest.files.keys()
    again = run(config(home, work="again"))
    assert again.digest == manifest.artifact.digest  # though it took one attempt and another time
    (home / "again" / "artifact" / "notes.txt").touch()
    with pytest.raises(BadInput, match="not part of the artifact"):
        verify_artifact(home / "again" / "artifact")


def test_the_best_weights_are_published_and_the_figures_are_theirs(home):
    told = figures(home)
    best = int(told["published_step"])
    assert 0 < best < 16
    lines = [json.loads(line) for line in (home / "work" / "metrics.jsonl").read_text().splitlines()]
    losses = {line["step"]: line["heldout_loss"] for line in lines if "heldout_loss" in line}
    assert best == min(losses, key=losses.get)
    assert float(told["heldout_loss_after"]) == pytest.approx(losses[best], rel=1e-5)
    assert float(told["heldout_loss_last"]) > losses[best]
    kept = sorted(path.name for path in (home / "work" / "checkpoints").iterdir())
    assert kept == [f"step-{best:08d}", "step-00000016"]
    short = run(config(home, work="short", max_steps=16, checkpoints=Checkpoints(every_steps=best, keep_last=9)))
    assert short.digest != read_manifest(home / "work" / "artifact").artifact.digest
    mine = load_file(home / "work" / "artifact" / "adapter_model.safetensors")
    state = load_file(home / "short" / "checkpoints" / f"step-{best:08d}" / "state.safetensors")
    trained = {key: value for key, value in state.items() if key.startswith("parameter/")}
    assert len(trained) == len(mine)
    assert torch.equal(mine[f"base_model.model.{HEAD}"], trained[f"parameter/{HEAD}"])


def test_the_status_names_the_best_step_and_draws_the_loss(home):
    progress = json.loads((home / "work" / "progress.json").read_text())
    assert re.fullmatch(r"[▁-█]{16}", progress["lossCurve"])
    metrics = {item["name"]: item["value"] for item in progress["metrics"]}
    assert "mfu" not in metrics  # on the CPU


def test_instructions_are_shown_without_their_template_and_beside_the_answer_of_the_data(home):
    of = build.sft_config(home, work="tuned", max_steps=2, samples=Samples(max_tokens=4, count=2))
    run(of, sft)
    lines = [json.loads(line) for line in (home / "tuned" / "samples.jsonl").read_text().splitlines()]
    assert [line["moment"] for line in lines] == ["before", "after"]
    for sample in lines[0]["samples"]:
        assert re.fullmatch(r"Say \d+\.", sample["prompt"])
        assert sample["expected"]
    assert page(home, "tuned").count("<article") == 2


def test_no_samples_are_written_where_none_are_wanted(home):
    run(config(home, work="none", max_steps=1, samples=Samples(count=0), checkpoints=Checkpoints(every_steps=8)))
    assert not (home / "none" / "samples.jsonl").exists()
    assert "Samples" not in page(home, "none")


def test_a_report_that_cannot_be_made_costs_no_training(home, monkeypatch, caplog):
    monkeypatch.setattr(module, "page", lambda *_: 1 // 0)
    artifact = run(config(home, work="plain", max_steps=1, checkpoints=Checkpoints(every_steps=8)))
    assert artifact.report is None
    assert "published without it" in caplog.text
    assert verify_artifact(home / "plain" / "artifact").artifact == artifact


def test_the_best_of_no_held_out_part_is_refused_with_a_remedy(home, tmp_path):
    with pytest.raises(BadInput, match="no part of the data is held out") as refused:
        run(config(home, work="blind", held_out_fraction=0.0))
    assert "heldOutFraction" in refused.value.hint
    check_held_out(config(home, checkpoints=Checkpoints()), type("Data", (), {"held_out": None}))


def test_text_around_an_instruction_is_taken_off():
    assert without_frame([1, 2, 3, 9, 8, 4, 5], [1, 2, 3, 4, 5]) == [9, 8]
    assert without_frame([1, 2, 3], [1, 2, 3]) == []
    assert without_frame([7, 7], [7]) == [7]


def test_each_row_ends_at_its_own_end(home):
    tokenizer = load_tokenizer(home / "model")
    end, script = tokenizer.eos_id, {0: [5, 6, 7], 1: [8]}

    def logits(ids, mask):
        found = torch.zeros(*ids.shape, tokenizer.vocab_size + 3)
        found[..., -1] = 9.0  # rows beyond the vocabulary, as a padded head has, are never chosen
        for row, count in enumerate(mask.sum(1).tolist()):
            done = count - 2
            found[row, count - 1, script[row][done] if done < len(script[row]) else end] = 5.0
        return found

    prompts = [Prompt((1, 2), "a"), Prompt((3, 4), "b")]
    assert write(logits, prompts, tokenizer, {end}, 9, Processes()) == [
        tokenizer.decode([5, 6, 7]),
        tokenizer.decode([8]),
    ]
    assert write(logits, prompts, tokenizer, {end}, 2, Processes())[0] == tokenizer.decode([5, 6])


SEVEN_B = LlamaConfig(
    hidden_size=4096,
    intermediate_size=11008,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=32,
    vocab_size=49953,
    tie_word_embeddings=False,
)
ROWS = torch.Size([49953, 4096])
LORA = {"model.layers.0.self_attn.q_proj.lora_A.weight": torch.Size([8, 2_498_560])}
"""As many as r = 8 on all seven has."""


def test_the_mfu_of_the_measured_run_is_the_one_that_was_reckoned():
    trained = {EMBEDDING: ROWS, HEAD: ROWS, **LORA}
    frozen, own = product_parameters(SEVEN_B, trained)
    assert (frozen, own) == (6_476_005_376, 204_607_488 + 19_988_480)
    found = Utilisation(SEVEN_B, trained, 989e12)
    # 1,925 tokens a second are an MFU of 0.054, 12,957 of 0.362 (quality.md)
    assert found.of(4096, 8, 4096 / 1925) == pytest.approx(0.054, abs=5e-4)
    assert found.of(4096, 8, 4096 / 12957) == pytest.approx(0.362, abs=5e-4)
    assert Utilisation(SEVEN_B, trained, None).of(4096, 8, 1.0) is None
    assert found.of(0, 8, 1.0) is None


@pytest.mark.parametrize(
    ("trained", "tied", "own"),
    [
        ({EMBEDDING: ROWS}, False, 0),
        ({EMBEDDING: ROWS}, True, 204_607_488),
        ({HEAD: ROWS}, False, 204_607_488),
        ({"model.norm.weight": torch.Size([4096]), "model.layers.0.mlp.up_proj.weight": torch.Size([4, 3])}, False, 12),
    ],
    ids=["an embedding is looked up", "a tied one is the head", "the head", "a matrix, and a norm that is none"],
)
def test_only_matrix_products_count(trained, tied, own):
    shape = LlamaConfig(**{**SEVEN_B.to_dict(), "tie_word_embeddings": tied})
    frozen, found = product_parameters(shape, trained)
    assert found == own
    assert frozen + found == 6_476_005_376 + 204_607_488


def test_the_loss_curve_fits_a_status_and_grows_with_the_run():
    curve = LossCurve(100, width=10)
    assert str(curve) == ""
    for step in range(1, 51):
        curve.add(step, 10.0 - step / 10)
    curve.add(51, float("nan"))
    assert str(curve) == "█▆▅▃▁"
    assert str(LossCurve(3, [(1, 2.0), (2, 2.0)])) == "▁▁"
    assert len(str(LossCurve(10**6, ((step, 1.0 / step) for step in range(1, 10**6, 999))))) == 16


def test_a_long_run_is_drawn_with_few_points_and_a_peak_flattens_nothing():
    points = [(float(step), 3.0 + 1 / step) for step in range(1, 10_001)]
    assert len(thinned(points)) == 400
    assert smoothed(points[:10]) == points[:10]
    assert len(smoothed(points[:400])) == 400
    peaked = [*points[:300], (301.0, 5000.0)]
    drawn = line_chart("Loss", [Series("training", peaked)], marks=[(50, "attempt 2 <resumed>")])
    assert "peaks up to 5,000 are cut" in drawn
    assert "attempt 2 &lt;resumed&gt;" in drawn
    assert line_chart("Loss", [Series("training", [(1.0, 2.0)])]) == ""
    assert line_chart("Loss", [Series("training", [(1.0, 2.0), (2.0, 2.0)])]).count("<svg") == 1


def test_records_that_a_crash_has_damaged_are_left_out(tmp_path):
    log = RecordFile(tmp_path / "metrics.jsonl")
    log.append({"step": 1, "loss": 2.0})
    log.append({"step": 1, "event": "went back"})
    log.append({"step": 2, "loss": float("inf")})
    with (tmp_path / "metrics.jsonl").open("ab") as stream:
        stream.write(b'{"step": 3, "lo' + b"\0" * 20 + b"\xff\n[1]\n7\n")
    assert log.lines() == [{"step": 1, "loss": 2.0}, {"step": 1, "event": "went back"}, {"step": 2, "loss": None}]
    log.drop_after(1)
    assert log.lines() == [{"step": 1, "loss": 2.0}]  # what happened at step 1 happens again
