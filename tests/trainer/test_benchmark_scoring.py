"""Scores of letters and answers, held against transformers' own generate; sharing and padding change nothing."""

import pytest
import torch
from transformers import GenerationConfig, LlamaForCausalLM

from herdsman_trainer.benchmarks import forward
from herdsman_trainer.benchmarks.choice_scores import (
    chosen,
    constrained,
    first_token,
    letters_of,
    log_likelihood,
)
from herdsman_trainer.benchmarks.decoding import answers
from herdsman_trainer.benchmarks.forward import Shared, common_prefix, continuation_nll, last_scores, share
from herdsman_trainer.benchmarks.text_loss import windows
from herdsman_trainer.errors import Diverged
from herdsman_trainer.tokenizers import load_tokenizer
from tiny import ENGLISH, tiny_llama

LINES = [line for line in ENGLISH.splitlines() if line]


def never():
    """Nobody asks to stop."""


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tiny_llama(tmp_path_factory.mktemp("model"), seed=3)


@pytest.fixture(scope="module")
def model(directory):
    return LlamaForCausalLM.from_pretrained(directory, attn_implementation="sdpa").eval().requires_grad_(False)


@pytest.fixture(scope="module")
def tokenizer(directory):
    return load_tokenizer(directory)


@pytest.fixture(scope="module")
def rows(tokenizer):
    """Prompts of different length that begin alike."""
    beginning = "A teacher asked the class: which of these is true? A. one B. two\n"
    return [[1, *tokenizer.encode(f"{beginning}{line}\nAnswer:")] for line in LINES]


def published_scores(model, row, letters):
    """What the published evaluation reads: scores of one step of sampling, with all warpers but no cut."""
    settings = GenerationConfig(
        do_sample=True,
        temperature=0.2,
        top_k=0,
        top_p=1.0,
        repetition_penalty=1.1,
        max_new_tokens=1,
        output_scores=True,
        return_dict_in_generate=True,
        pad_token_id=0,
    )
    ids = torch.tensor([row])
    made = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)
    scores = made.scores[0][0]
    return (scores[list(letters.bare)] + scores[list(letters.behind_colon)]).tolist()


def test_constrained_scores_are_those_of_a_step_of_generate_with_its_warpers(model, tokenizer, rows):
    letters = letters_of(tokenizer)
    expected = [published_scores(model, row, letters) for row in rows]
    found = constrained(model, rows, Shared(), letters, never)
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=1e-5, atol=1e-5)
    assert [chosen(scores) for scores in found] == [chosen(scores) for scores in expected]
    one_by_one = [constrained(model, [row], Shared(), letters, never)[0] for row in rows]
    assert one_by_one == expected, "a row alone takes the very same way through the model"


def test_letters_have_the_ids_of_a_word_and_of_a_letter_behind_a_colon(tokenizer):
    letters = letters_of(tokenizer)
    assert letters.bare[0] == tokenizer.encode("A")[0] != letters.behind_colon[0] == tokenizer.encode("：A")[-1]


def test_what_prompts_share_is_computed_once_and_gives_the_same_scores(model, tokenizer, rows):
    shared = share(model, rows)
    assert shared.ids == common_prefix(rows)
    assert len(shared.ids) > forward.SHORTEST_PREFIX
    alone = torch.cat([last_scores(model, [row], Shared(), never) for row in rows])
    torch.testing.assert_close(last_scores(model, rows, shared, never), alone, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(last_scores(model, rows, Shared(), never), alone, rtol=1e-4, atol=1e-5)
    again = last_scores(model, rows, shared, never)
    assert torch.equal(again, last_scores(model, rows, shared, never)), "what is shared is not used up"


@pytest.mark.parametrize(
    ("given", "prefix"),
    [
        ([[1, 2, 3], [1, 2, 4]], (1, 2)),
        ([[1, 2], [1, 2, 3]], (1,)),
        ([[1, 2, 3], [1, 2, 3]], (1, 2)),
        ([[5], [5]], ()),
        ([[1, 2], [3, 4]], ()),
        ([], ()),
    ],
)
def test_a_prefix_leaves_every_row_a_token(given, prefix):
    assert common_prefix(given) == prefix


def test_what_stands_in_the_padding_does_not_matter(model, rows, monkeypatch):
    expected = last_scores(model, rows, Shared(), never)

    def with_sevens(given, device):
        width = max(map(len, given))
        return torch.tensor([[*row, *[7] * (width - len(row))] for row in given], device=device)

    monkeypatch.setattr(forward, "padded", with_sevens)
    assert torch.equal(last_scores(model, rows, Shared(), never), expected)


def test_losses_of_many_windows_are_those_of_each_alone(model, tokenizer):
    cut = [window for line in LINES for window in windows(tokenizer.encode(line), 1, 16)]
    together = continuation_nll(model, cut, never)
    for (ids, first), losses in zip(cut, together, strict=True):
        logits = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        expected = [-float(logits[place - 1, ids[place]]) for place in range(first, len(ids))]
        assert losses == pytest.approx(expected, rel=1e-4)


def test_windows_predict_every_token_once_and_never_see_more_than_the_context():
    for length in range(1, 40):
        for context in (1, 2, 5, 8, 64):
            cut = windows(list(range(100, 100 + length)), 1, context)
            predicted = [ids[place] for ids, first in cut for place in range(first, len(ids))]
            assert predicted == list(range(100, 100 + length))
            assert all(len(ids) - 1 <= context and first >= 1 for ids, first in cut)


def test_log_likelihoods_are_sums_over_the_tokens_of_a_letter(model, tokenizer):
    prompts = [[f"{line}\nAnswer:"] for line in LINES[:4]]
    rows = [[1, *tokenizer.encode(prompt[0])] for prompt in prompts]
    found = log_likelihood(model, prompts, rows, Shared(), tokenizer, never)
    for prompt, row, scores in zip(prompts, rows, found, strict=True):
        for letter, score in zip("ABCD", scores, strict=True):
            whole = [1, *tokenizer.encode(f"{prompt[0]} {letter}")]
            logits = model(torch.tensor([whole])).logits[0].log_softmax(-1)
            expected = sum(float(logits[place - 1, whole[place]]) for place in range(len(row), len(whole)))
            assert score == pytest.approx(expected, rel=1e-4)


def test_first_tokens_are_scored_as_they_are(model, tokenizer, rows):
    plain = last_scores(model, rows, Shared(), never)
    ids = [tokenizer.encode(letter)[-1] for letter in "ABCD"]
    assert first_token(model, rows, Shared(), tokenizer, never) == plain[:, ids].tolist()


def test_of_equal_scores_the_first_letter_is_the_answer():
    assert (chosen([1, 1, 1, 1]), chosen([0, 2, 2, 1])) == ("A", "B")


def test_scores_that_are_no_numbers_are_told_and_not_taken_for_an_answer(directory, tokenizer, rows):
    broken = LlamaForCausalLM.from_pretrained(directory).eval().requires_grad_(False)
    broken.model.norm.weight.fill_(float("nan"))
    with pytest.raises(Diverged, match="not finite"):
        constrained(broken, rows[:2], Shared(), letters_of(tokenizer), never)


@pytest.mark.parametrize("penalty", [1.0, 1.1])
def test_answers_are_those_of_generate_one_by_one(model, rows, penalty):
    prompts = [row[-length:] for row, length in zip(rows, (3, 9, 20, 14), strict=False)]
    limits = [12, 5, 12, 1]
    stop = frozenset({2, 17, 40})
    found = answers(model, prompts, stop, limits, penalty, never)
    for prompt, limit, answer in zip(prompts, limits, found, strict=True):
        settings = GenerationConfig(
            do_sample=False,
            repetition_penalty=penalty,
            max_new_tokens=limit,
            eos_token_id=sorted(stop),
            pad_token_id=0,
        )
        ids = torch.tensor([prompt])
        made = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)
        expected = made[0, len(prompt) :].tolist()
        stopped = expected[-1] in stop
        assert (answer.ids, answer.stopped) == (expected[:-1] if stopped else expected, stopped)


def test_somebody_who_asks_to_stop_is_heard_between_tokens(model, rows):
    calls = []

    def third_time():
        calls.append(1)
        if len(calls) == 3:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        answers(model, rows[:2], frozenset(), [50, 50], 1.0, third_time)
