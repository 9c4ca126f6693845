"""Golden conversions: how records of every form become records in the Alpaca schema, from every kind of file."""

import json

import pyarrow
import pytest
from pyarrow import parquet

from herdsman_trainer.errors import BadInput
from herdsman_trainer.instruction_making.conversion import convert
from herdsman_trainer.instruction_making.given import converted
from herdsman_trainer.instruction_making.records import AlpacaRecord, Dropped
from instruction_api import given


def record(instruction, output, extra=""):
    return AlpacaRecord(instruction, extra, output)


def sharegpt(*turns, **more):
    return {"conversations": [{"from": who, "value": text} for who, text in turns], **more}


def messages(*turns, **more):
    return {"messages": [{"role": who, "content": text} for who, text in turns], **more}


TWO_TURNS = (("human", "问一"), ("gpt", "答一"), ("human", "问二"), ("gpt", "答二"))
FORMS = {
    "Alpaca": ({"instruction": "问", "input": "料", "output": "答"}, {}, [record("问", "答", "料")]),
    "Alpaca without an input": ({"instruction": "问", "output": "答"}, {}, [record("问", "答")]),
    "Alpaca with null": ({"instruction": "问", "input": None, "output": "答"}, {}, [record("问", "答")]),
    "Alpaca with a number": ({"instruction": "1+1", "output": 2}, {}, [record("1+1", "2")]),
    "Alpaca with more columns": (
        {"id": 7, "instruction": "问", "output": "答", "lang": "zh"},
        {},
        [record("问", "答")],
    ),
    "prompt and completion": ({"prompt": "问", "completion": "答"}, {}, [record("问", "答")]),
    "question, context and answer": (
        {"question": "问", "context": "料", "answer": "答"},
        {},
        [record("问", "答", "料")],
    ),
    "named columns": (
        {"问题": "问", "答案": "答", "instruction": "别的"},
        {"columns": {"instruction": "问题", "output": "答案"}},
        [record("问", "答")],
    ),
    "Alpaca without an output": ({"instruction": "问"}, {}, [record("问", "")]),
    "Alpaca with a list": ({"instruction": ["问"], "output": "答"}, {}, Dropped.UNKNOWN_FORM),
    "ShareGPT, first turn": (sharegpt(*TWO_TURNS), {}, [record("问一", "答一")]),
    "ShareGPT, each turn": (
        sharegpt(*TWO_TURNS),
        {"conversations": "EachTurn"},
        [record("问一", "答一"), record("问二", "答二")],
    ),
    "ShareGPT, with history": (
        sharegpt(*TWO_TURNS),
        {"conversations": "WithHistory"},
        [record("问二", "答二", "User: 问一\nAssistant: 答一")],
    ),
    "ShareGPT that begins in the middle": (sharegpt(("gpt", "答零"), *TWO_TURNS), {}, [record("问一", "答一")]),
    "ShareGPT that ends with a question": (
        sharegpt(*TWO_TURNS, ("human", "问三")),
        {"conversations": "EachTurn"},
        [record("问一", "答一"), record("问二", "答二")],
    ),
    "ShareGPT, two questions in a row": (
        sharegpt(("human", "你好"), ("human", "在吗"), ("gpt", "在")),
        {},
        [record("你好\n在吗", "在")],
    ),
    "ShareGPT, a system prompt beside": (sharegpt(*TWO_TURNS, system="你是诗人"), {}, [record("问一", "答一")]),
    "ShareGPT, a system prompt kept": (
        sharegpt(("system", "你是诗人"), *TWO_TURNS),
        {"keepSystemPrompts": True},
        [record("你是诗人\n\n问一", "答一")],
    ),
    "ShareGPT with a tool": (sharegpt(("human", "问"), ("observation", "{}"), ("gpt", "答")), {}, Dropped.UNKNOWN_ROLE),
    "ShareGPT without an answer": (sharegpt(("human", "问")), {}, Dropped.NO_OUTPUT),
    "ShareGPT of strings": ({"conversations": ["问", "答"]}, {}, Dropped.UNKNOWN_FORM),
    "messages": (messages(("system", "你是诗人"), ("user", "问"), ("assistant", "答")), {}, [record("问", "答")]),
    "messages, several turns": (
        messages(("user", "问一"), ("assistant", "答一"), ("user", "问二"), ("assistant", "答二")),
        {"conversations": "WithHistory"},
        [record("问二", "答二", "User: 问一\nAssistant: 答一")],
    ),
    "messages of parts": (
        messages(("user", [{"type": "text", "text": "问"}, {"type": "text", "text": "题"}]), ("assistant", "答")),
        {},
        [record("问题", "答")],
    ),
    "messages with a picture": (
        messages(("user", [{"type": "image_url", "image_url": {"url": "x"}}]), ("assistant", "答")),
        {},
        Dropped.UNKNOWN_FORM,
    ),
    "messages under the key of ShareGPT": (
        {"conversations": [{"role": "user", "content": "问"}, {"role": "assistant", "content": "答"}]},
        {},
        [record("问", "答")],
    ),
    "messages where ShareGPT is said": (messages(("user", "问")), {"format": "ShareGPT"}, Dropped.UNKNOWN_FORM),
}


@pytest.mark.parametrize("form", FORMS)
def test_what_becomes_of(form, tmp_path):
    value, options, expected = FORMS[form]
    assert convert(value, given(tmp_path, **options)) == expected


CSV = 'instruction,input,output\n问一,,答一\n"问,二","料\n两行","答""二"""\n'
FILES = {
    "a.json": json.dumps([{"instruction": "问一", "output": "答一"}, {"instruction": "问二", "output": "答二"}]),
    "b.jsonl": '\ufeff{"instruction": "问一", "output": "答一"}\n\n{"instruction": "问二", "output": "答二"}\r\n',
    "c.csv": "\ufeffinstruction,input,output\r\n问一,,答一\r\n问二,,答二\r\n",
    "d.tsv": "instruction\toutput\n问一\t答一\n问二\t答二\n",
    "e.csv": "instruction;output\n问一;答一\n问二;答二",
    "f.json": json.dumps(
        [sharegpt(("human", "问一"), ("gpt", "答一")), messages(("user", "问二"), ("assistant", "答二"))]
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_the_same_two_records_from(name, tmp_path):
    (tmp_path / name).write_text(FILES[name], encoding="utf-8", newline="")
    assert list(converted(given(tmp_path), tmp_path)) == [record("问一", "答一"), record("问二", "答二")]


def test_fields_of_a_table_hold_separators_line_ends_and_quotes(tmp_path):
    (tmp_path / "a.csv").write_text(CSV, encoding="utf-8")
    assert list(converted(given(tmp_path), tmp_path)) == [record("问一", "答一"), record("问,二", '答"二"', "料\n两行")]


def test_parquet_with_columns_and_with_conversations(tmp_path):
    table = pyarrow.table({"instruction": ["问一", None], "input": [None, "料"], "output": ["答一", "答二"]})
    parquet.write_table(table, tmp_path / "a.parquet")
    turns = [[{"from": "human", "value": "问"}, {"from": "gpt", "value": "答"}]]
    parquet.write_table(pyarrow.table({"conversations": turns}), tmp_path / "b.parquet")
    found = list(converted(given(tmp_path), tmp_path))
    assert found == [record("问一", "答一"), record("", "答二", "料"), record("问", "答")]


def test_files_are_read_in_the_order_of_their_names_and_others_are_left(tmp_path):
    for name, text in (("b/z.jsonl", "二"), ("a.jsonl", "一"), (".hidden.jsonl", "零")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps({"instruction": text, "output": text}), encoding="utf-8")
    (tmp_path / "README.md").write_text("no records", encoding="utf-8")
    assert [found.instruction for found in converted(given(tmp_path), tmp_path)] == ["一", "二"]


BAD = {
    "JSON that breaks off": ("a.jsonl", b'{"instruction": "a", "output": "b"}\n{"instruction"', 2, "Malformed JSON"),
    "a record that is no object": ("a.json", b"[1]", 1, "not a JSON object"),
    "bytes of GB18030": ("a.csv", "instruction,output\n问,答\n".encode("gb18030"), 2, "not UTF-8"),
    "UTF-16": ("a.csv", "instruction,output\n".encode("utf-16"), 1, "UTF-16"),
    "no file of a known form": ("a.docx", b"x", None, "no *.json"),
    "an empty table": ("a.csv", b"", 1, "The table is empty"),
    "two columns of one name": ("a.csv", b"output,output\na,b\n", 1, "Two columns"),
    "a row with too many fields": ("a.csv", b"instruction,output\na,b\nc,d,e\n", 3, "3 fields"),
    "a quote that is never closed": ("a.csv", b'instruction,output\na,"b\nc\n', 2, "malformed"),
    "keys of no known form": ("a.jsonl", b'{"text": "a"}\n', 1, "no known form (its keys: text)"),
    "what is called Parquet and is none": ("a.parquet", b"PAR1 not really", None, "no sound Parquet file"),
    "a named column that is not there": ("a.jsonl", b'{"instruction": "a"}', 1, "no known form"),
}


@pytest.mark.parametrize("what", BAD)
def test_refused_with_a_sentence(what, tmp_path):
    name, content, line, sentence = BAD[what]
    (tmp_path / name).write_bytes(content)
    options = {"columns": {"instruction": "问题"}} if "named column" in what else {}
    with pytest.raises(BadInput) as refused:
        list(converted(given(tmp_path, **options), tmp_path))
    assert sentence in str(refused.value)
    assert refused.value.line == line
    assert refused.value.hint
    assert str(tmp_path) in refused.value.file


def test_a_record_of_unknown_form_among_others_is_counted_and_not_refused(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"instruction": "a", "output": "b"}\n{"text": "c"}\n', encoding="utf-8")
    assert list(converted(given(tmp_path), tmp_path)) == [record("a", "b"), record("", "")]
