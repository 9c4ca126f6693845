"""Prompts of questions, letter by letter as they were published, and their ids."""

import json

import pytest

from herdsman.api.v1alpha1.evaluation_tasks import MultipleChoice
from herdsman_trainer.benchmarks.question_prompts import Control, prompt_ids, question_prompt
from herdsman_trainer.benchmarks.questions import Question, SubjectQuestions
from herdsman_trainer.benchmarks.subjects import CEVAL, CMMLU, MMLU, group_of
from herdsman_trainer.errors import BadInput
from herdsman_trainer.tokenizers import load_tokenizer
from tiny import tiny_bpe_tokenizer, tiny_chatml_tokenizer, tiny_sentencepiece

EXAMPLE = Question("1+1=?", ("1", "2", "3", "4"), "B", 2)
ASKED = Question("2+2=?", ("1", "2", "3", "4"), "D", 2)
BODY = "2+2=?\nA. 1\nB. 2\nC. 3\nD. 4"
SHOWN = "1+1=?\nA. 1\nB. 2\nC. 3\nD. 4"
HEADER = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
SYSTEM = "You are a helpful assistant. 你是一个乐于助人的助手。"
NETWORKS = "以下是中国关于计算机网络考试的单项选择题，请选出其中的正确答案。\n\n"
FILE_NAME = "以下是中国关于computer_network考试的单项选择题，请选出其中的正确答案。\n\n"
AGRONOMY = "以下是中国关于农学考试的单项选择题，请选出其中的正确答案。\n\n"
START, END, EOT, BEGIN = "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|begin_of_text|>"


def user(text):
    return f"{START}user{END}\n\n{text}{EOT}{START}assistant{END}\n\n"


PUBLISHED = {
    "the first generation says nothing before a question without examples": (
        {"prompt": "chinese-llama-v1"},
        0,
        f"{BODY}\n答案：",
    ),
    "the first generation, with an example; subjects are called as their files": (
        {"prompt": "chinese-llama-v1"},
        1,
        f"{FILE_NAME}{SHOWN}\n答案：B\n\n{BODY}\n答案：",
    ),
    "the first generation in its template asks otherwise, and ends in a blank twice": (
        {"prompt": "chinese-llama-v1", "withTemplate": True},
        0,
        f"{HEADER}\n\n### Instruction:\n{BODY}\n答案是什么？ \n\n### Response: ",
    ),
    "the first generation's template holds the examples too": (
        {"prompt": "chinese-llama-v1", "withTemplate": True},
        1,
        f"{HEADER}\n\n### Instruction:\n{FILE_NAME}{SHOWN}\n答案：B\n\n{BODY}\n答案是什么？ \n\n### Response: ",
    ),
    "the second generation without template": (
        {"prompt": "chinese-llama-v2"},
        1,
        f"{FILE_NAME}{SHOWN}\n答案：B\n\n{BODY}\n答案：",
    ),
    "the second generation's template": (
        {"prompt": "chinese-llama-v2", "withTemplate": True},
        0,
        f"[INST] <<SYS>>\n{SYSTEM}\n<</SYS>>\n\n{BODY}\n答案： [/INST]",
    ),
    "the second generation shows examples as turns": (
        {"prompt": "chinese-llama-v2", "withTemplate": True},
        1,
        f"[INST] <<SYS>>\n{SYSTEM}\n<</SYS>>\n\n{FILE_NAME} [/INST]好的，我会结合computer_network相关知识回答"
        f"[INST] {SHOWN}\n答案：[/INST]B\n[INST] <<SYS>>\n{SYSTEM}\n<</SYS>>\n\n{BODY}\n答案： [/INST]",
    ),
    "the second generation asks CMMLU with a shorter system prompt": (
        {"format": "CMMLU", "prompt": "chinese-llama-v2", "withTemplate": True},
        1,
        "[INST] <<SYS>>\n你是一个乐于助人的助手。\n<</SYS>>\n\n"
        f"{AGRONOMY} [/INST]好的，我会结合农学相关知识回答[INST] {SHOWN}\n答案：[/INST]B\n"
        f"[INST] <<SYS>>\n你是一个乐于助人的助手。\n<</SYS>>\n\n{BODY}\n答案： [/INST]",
    ),
    "the third generation says the subject, in Chinese, also without examples": (
        {"prompt": "llama-3-chinese-v3"},
        0,
        f"{NETWORKS}{BODY}\n答案：",
    ),
    "the third generation's template of C-Eval writes a BOS of its own": (
        {"prompt": "llama-3-chinese-v3", "withTemplate": True},
        0,
        f"{BEGIN}{START}system{END}\n\n{SYSTEM}{EOT}{user(f'{NETWORKS}{BODY}{chr(10)}答案：')}",
    ),
    "the third generation shows examples as turns": (
        {"prompt": "llama-3-chinese-v3", "withTemplate": True},
        1,
        f"{BEGIN}{START}system{END}\n\n{SYSTEM}{EOT}{user(NETWORKS)}好的，我会结合计算机网络相关知识回答{EOT}"
        f"{user(f'{SHOWN}{chr(10)}答案：')}B{EOT}{user(f'{BODY}{chr(10)}答案：')}",
    ),
    "the third generation's template of CMMLU writes no BOS": (
        {"format": "CMMLU", "prompt": "llama-3-chinese-v3", "withTemplate": True},
        0,
        f"{START}system{END}\n\n{SYSTEM}{EOT}{user(f'{AGRONOMY}{BODY}{chr(10)}答案：')}",
    ),
    "MMLU has two blanks before the subject": (
        {"format": "MMLU"},
        1,
        "The following are multiple choice questions (with answers) about  abstract algebra.\n\n"
        f"{SHOWN}\nAnswer: B\n\n{BODY}\nAnswer:",
    ),
}
NAMES = {"CEval": "computer_network", "CMMLU": "agronomy", "MMLU": "abstract_algebra"}


def prompt_of(fields, shown, name=None):
    asked = MultipleChoice.model_validate_json(json.dumps({"dataset": {"volume": {"claim": "c"}}, **fields}))
    subject = SubjectQuestions(name or NAMES[asked.format], [ASKED], [EXAMPLE], None)
    return question_prompt(asked, subject, ASKED, shown)


@pytest.mark.parametrize("sentence", PUBLISHED)
def test_prompts_are_those_that_were_published(sentence):
    fields, shown, expected = PUBLISHED[sentence]
    assert "".join(prompt_of(fields, shown)) == expected


def test_a_subject_that_is_not_known_is_called_by_its_file_and_counted_with_the_others():
    assert "关于cooking考试" in "".join(prompt_of({"prompt": "llama-3-chinese-v3"}, 0, "cooking"))
    assert group_of("CEval", "cooking") == group_of("MMLU", "cooking") == "Other"


def test_the_tables_have_all_subjects():
    assert (len(CEVAL), len(CMMLU), len(MMLU)) == (52, 67, 57)
    sizes = {"STEM": 20, "Social Science": 10, "Humanities": 11, "Other": 11}
    assert {group: sum(each.group == group for each in CEVAL.values()) for group in sizes} == sizes
    assert sum(each.group == "China specific" for each in CMMLU.values()) == 15


@pytest.mark.parametrize("sentence", [sentence for sentence in PUBLISHED if "third" in sentence])
def test_ids_of_a_prompt_in_parts_are_those_of_a_tokenizer_that_reads_control_tokens_in_text(tmp_path, sentence):
    from tokenizers import Tokenizer

    directory = tiny_bpe_tokenizer(tmp_path)
    fields, shown, expected = PUBLISHED[sentence]
    published = Tokenizer.from_file(str(directory / "tokenizer.json")).encode(expected).ids  # which adds BOS
    ours = prompt_ids(prompt_of(fields, shown), load_tokenizer(directory), bos=True)
    assert ours == published
    assert ours[:2].count(ours[0]) == (2 if expected.startswith(BEGIN) else 1)


def test_a_sentencepiece_prompt_is_one_text_behind_bos(tmp_path):
    tokenizer = load_tokenizer(tiny_sentencepiece(tmp_path))
    fields, shown, expected = PUBLISHED["the second generation shows examples as turns"]
    assert prompt_ids(prompt_of(fields, shown), tokenizer, bos=True) == [1, *tokenizer.encode(expected)]


def test_what_a_question_says_never_becomes_a_control_token(tmp_path):
    tokenizer = load_tokenizer(tiny_bpe_tokenizer(tmp_path))
    asked = MultipleChoice.model_validate({"dataset": {"volume": {"claim": "c"}}, "prompt": "llama-3-chinese-v3"})
    sly = Question(f"{EOT}{START}", ("1", "2", "3", "4"), "A", 2)
    prompt = question_prompt(asked, SubjectQuestions("logic", [sly], [], None), sly, 0)
    assert tokenizer.control_id(EOT) not in prompt_ids(prompt, tokenizer, bos=True)


def test_a_tokenizer_without_the_control_tokens_is_refused(tmp_path):
    tokenizer = load_tokenizer(tiny_chatml_tokenizer(tmp_path))
    with pytest.raises(BadInput, match="needs the control token <\\|begin_of_text\\|>") as caught:
        prompt_ids([Control(BEGIN)], tokenizer, bos=False)
    assert "multipleChoice.prompt" in caught.value.hint
