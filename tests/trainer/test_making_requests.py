"""What is asked, and what is read out of replies."""

import json
import re

import pytest

from herdsman.api.v1alpha1.generation import Generation
from herdsman_trainer.instruction_making.records import AlpacaRecord, Dropped
from herdsman_trainer.instruction_making.replies import read_reply
from herdsman_trainer.instruction_making.requests import Requests
from herdsman_trainer.instruction_making.wording import DOMAINS, KINDS

ORIGINAL_KINDS = "开放式生成, 分类, 问答, 编辑, 摘要, 写作, 翻译, 写代码, 分析, 代码解析, 常识推理, 写信, 抽取, 推荐"


def requests(language="zh", seed=42, seed_tasks=(), **fields):
    spec = Generation.model_validate({"endpoint": {"url": "https://a/v1", "model": "m"}, **fields})
    return Requests(spec, language, seed, seed_tasks)


def test_the_kinds_of_task_are_the_originals_and_the_domains_as_many():
    assert ", ".join(zh for zh, _ in KINDS) == ORIGINAL_KINDS
    assert len({zh for zh, _ in DOMAINS}) == len({en for _, en in DOMAINS}) == 82


def test_a_request_has_the_structure_of_the_original():
    asked = requests()
    for number in range(200):
        drawn, prompt = asked.drawn(number), asked.prompt(number)
        assert len(set(drawn.domains)) == len(set(drawn.kinds)) == 10
        assert set(drawn.domains) <= {zh for zh, _ in DOMAINS}
        assert 80 <= drawn.longest_input <= 120
        assert 128 <= drawn.longest_output <= 512
        assert "20条" in prompt
        assert [line[0] for line in prompt.splitlines()[1:7]] == list("123456")
        assert f"最多{drawn.longest_input}个字" in prompt
        assert f"少于{drawn.longest_output}个字" in prompt
        assert all(domain in prompt for domain in drawn.domains)
        assert all(kind in prompt for kind in drawn.kinds)


def test_every_domain_every_kind_and_both_ends_of_the_lengths_are_drawn():
    drawn = [requests().drawn(number) for number in range(2000)]
    assert {domain for each in drawn for domain in each.domains} == {zh for zh, _ in DOMAINS}
    assert {kind for each in drawn for kind in each.kinds} == {zh for zh, _ in KINDS}
    assert {80, 120} <= {each.longest_input for each in drawn}
    assert min(each.longest_output for each in drawn) < 135
    assert max(each.longest_output for each in drawn) > 505


def test_a_request_follows_from_seed_and_number_alone():
    one, other = requests(seed=1), requests(seed=1)
    [other.prompt(number) for number in (5, 3, 9)]
    assert [one.prompt(number) for number in range(10)] == [other.prompt(number) for number in range(10)]
    assert one.prompt(0) != one.prompt(1) != requests(seed=2).prompt(1)


def test_the_body_is_one_message_of_the_user_and_what_the_spec_says():
    body = requests().body(0, "gpt", "Text")
    assert set(body) == {"model", "messages", "max_tokens", "seed"}
    assert [message["role"] for message in body["messages"]] == ["user"]
    warm = requests(temperaturePercent=70, topPPercent=95).body(0, "gpt", "Object")
    assert (warm["temperature"], warm["top_p"], warm["response_format"]) == (0.7, 0.95, {"type": "json_object"})


def test_the_schema_names_the_kinds_that_were_drawn():
    asked = requests()
    schema = asked.body(3, "m", "Schema")["response_format"]["json_schema"]["schema"]
    members = schema["properties"]["records"]["items"]["properties"]
    assert members["kind"]["enum"] == list(asked.drawn(3).kinds)
    assert list(members) == ["kind", "instruction", "input", "output"]


def test_the_schema_for_our_own_servers_bounds_everything():
    spec = Generation.model_validate({"endpoint": {"modelServer": "m"}, "recordsPerRequest": 5})
    asked = Requests(spec, "zh", 42, bound=50)
    records = asked.body(0, "m", "Schema")["response_format"]["json_schema"]["schema"]["properties"]["records"]
    members, drawn = records["items"]["properties"], asked.drawn(0)
    assert (records["minItems"], records["maxItems"]) == (1, 5)
    assert members["instruction"]["maxLength"] == 50
    assert members["input"]["maxLength"] == drawn.longest_input
    assert members["output"]["maxLength"] == drawn.longest_output
    plain = requests().body(0, "m", "Schema")["response_format"]["json_schema"]["schema"]
    assert "maxLength" not in json.dumps(plain)
    assert "maxItems" not in json.dumps(plain)


def test_examples_domains_kinds_and_guidance_of_ones_own():
    examples = [AlpacaRecord(f"例{number}", "", "答") for number in range(5)]
    asked = requests(
        seed_tasks=examples,
        seedTasks={"dataset": {"volume": {"claim": "seeds"}}, "perRequest": 2},
        domains=["数据库"],
        taskKinds=["问答"],
        guidance="用口语 {写}",
    )
    prompt = asked.prompt(0)
    assert "领域：数据库。" in prompt
    assert "类型包括：问答。" in prompt
    assert "另外：用口语 {写}" in prompt
    assert len(re.findall(r'"instruction": "例\d"', prompt)) == 2


def test_another_language_is_asked_for_in_english():
    prompt = requests("de", preset="self-instruct").prompt(0)
    assert "Write in German" in prompt
    assert re.search(r"at most \d+ characters", prompt)


CHANGES = {
    "another seed": {"seed": 1},
    "another number of records": {"recordsPerRequest": 10},
    "a temperature": {"temperaturePercent": 50},
    "a guidance": {"guidance": "短"},
    "other domains": {"domains": ["茶"]},
}


@pytest.mark.parametrize("what", CHANGES)
def test_replies_are_kept_under_another_key_with(what):
    assert requests(**CHANGES[what]).key("a", "Text") != requests().key("a", "Text")


def test_the_key_stays_whatever_does_not_change_a_request():
    assert requests(records=5, budget={"tokens": 9}, limits={"parallel": 9}).key("a", "Text") == requests().key(
        "a", "Text"
    )
    assert requests().key("a", "Text") != requests().key("b", "Text")


A, B = AlpacaRecord("甲", "", "一", "问答"), AlpacaRecord("乙", "料", "二")
ONE, TWO = json.dumps(A._asdict(), ensure_ascii=False), json.dumps(B._asdict(), ensure_ascii=False)
REPLIES = {
    "as asked for": (f'{{"records": [{ONE}, {TWO}]}}', False, [A, B], False),
    "a list": (f"[{ONE}, {TWO}]", False, [A, B], False),
    "under another key": (f'{{"data": {{"items": [{ONE}]}}}}', False, [A], False),
    "a single record": (ONE, False, [A], False),
    "between words and fences": (f"好的：\n```json\n[{ONE},\n{TWO},]\n```\n祝好", False, [A, B], True),
    "after thoughts": (f"<think>[maybe {{</think>\n[{ONE}]", False, [A], False),
    "one a line": (f"{ONE}\n{TWO}\n", False, [A, B], True),
    "numbered": (f"1. {ONE}\n2. {TWO}", False, [A, B], True),
    "over several lines": (
        f"{json.dumps(A._asdict(), indent=2)}\n\n{json.dumps(B._asdict(), indent=2)}",
        False,
        [A, B],
        True,
    ),
    "Chinese keys": ('[{"指令": "甲", "输出": "一", "任务类型": "问答"}]', False, [A], False),
    "keys in angle brackets": ('[{"instruction": "乙", "<input>": "料", "<output>": "二"}]', False, [B], False),
    "single quotes": ("[{'instruction': '乙', 'input': '料', 'output': '二'}]", False, [B], True),
    "a comma too many": (f"[{ONE},]", False, [A], True),
    "quotes inside": ('[{"instruction": "说"你好"", "output": "x"}]', False, [AlpacaRecord('说"你好"', "", "x")], True),
    "a number as output": ('[{"instruction": "1+1", "output": 2}]', False, [AlpacaRecord("1+1", "", "2")], False),
    "a list as output": ('[{"instruction": "a", "output": ["b"]}]', False, [Dropped.UNKNOWN_FORM], False),
    "cut inside the last record": (
        f'{{"records": [{ONE}, {{"instruction": "乙", "output": "二',
        True,
        [A, Dropped.CUT_OFF],
        True,
    ),
    "cut behind a record": (f"[{ONE}, {TWO}", True, [A, Dropped.CUT_OFF], True),
    "no JSON at all": ("抱歉，我不能这样做。", False, [], True),
    "nothing": ("", False, [], True),
    "numbers": ("[1, 2, 3]", False, [], False),
    "a thousand brackets": ("{[" * 1000, False, [], True),
    "other objects": ('{"error": {"message": "busy"}}', False, [], False),
}


@pytest.mark.parametrize("what", REPLIES)
def test_records_of_a_reply(what):
    text, cut, expected, repaired = REPLIES[what]
    found = read_reply(text, cut=cut)
    assert (found.records, found.repaired) == (expected, repaired)
    assert found.is_empty is not any(isinstance(each, AlpacaRecord) for each in expected)


def test_a_reply_without_an_end_is_read_as_far_as_it_may_be_long():
    found = read_reply(f'[{ONE}, {{"instruction": "乙", "output": "{"啊" * 500_000}', cut=False)
    assert found.records == [A, Dropped.CUT_OFF]
