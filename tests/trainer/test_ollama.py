"""Modelfiles: Ollama's grammar, Go templates that Go itself fills in, and the llama.cpp commands beside them."""

import json
import shlex

import pytest
import yaml
from transformers import AutoTokenizer

import herdsman_trainer.weights.ollama as ollama
from helm import helm
from herdsman.api.v1alpha1.lora_merge import OllamaOutput
from herdsman_trainer.chat_templates import chat_template
from herdsman_trainer.errors import BadInput
from herdsman_trainer.prompts import ALPACA_HEADER, SYSTEM_PROMPT, TEMPLATES
from herdsman_trainer.weights.llama_cpp_command import readme, server_command, terminal_command
from modelfiles import ModelfileError, read_modelfile
from tiny import tiny_bpe_tokenizer

USER = {"role": "user", "content": '为什么 "the sky" {{ .System }} is\n\nblue? '}
EARLIER = [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": "In the hills.\nThere."}]
CONVERSATIONS = {"one question": [USER], "a second turn": [*EARLIER, USER], "a third": [*EARLIER, *EARLIER, USER]}
SYSTEMS = {"its own": None, "another": "你是 a 'pirate'.\nSay \"arr\".", "none": ""}


def modelfile(template="alpaca", **options):
    output = OllamaOutput(**{key: options.pop(key) for key in ("system", "temperature_percent") if key in options})
    settings = {"file": "zh-Q8_0.gguf", "context": 2048, "bos": "<s>", "eos": "</s>", **options}
    return ollama.modelfile(output=output, template=template, **settings)


@pytest.fixture(scope="module")
def filled_in(tmp_path_factory):
    """What Go makes of every template, conversation and system prompt, by these three."""
    chart = tmp_path_factory.mktemp("chart")
    cases = []
    for name in TEMPLATES:
        for conversation, messages in CONVERSATIONS.items():
            for kind, system in SYSTEMS.items():
                given = {"system": system} if system is not None else {}
                read = read_modelfile(modelfile(name, bos="<|begin_of_text|>", eos="<|end_of_text|>", **given))
                first = [{"role": "system", "content": read.system}] if read.system else []  # as Ollama's server does
                context = {
                    "System": read.system or "",
                    "Messages": [{"Role": each["role"], "Content": each["content"]} for each in [*first, *messages]],
                }
                cases.append({"key": [name, conversation, kind], "template": read.template, "context": context})
    (chart / "templates").mkdir()
    (chart / "Chart.yaml").write_text("{apiVersion: v2, name: templates, version: 1.0.0}")
    (chart / "values.yaml").write_text(json.dumps({"cases": cases}))
    (chart / "templates/all.yaml").write_text(
        "{{ $filled := list }}{{ range .Values.cases }}{{ $filled = append $filled (tpl .template .context) }}{{ end }}"
        "filled: {{ $filled | toJson }}\n"
    )
    rendered = helm("template", str(chart))
    assert rendered.returncode == 0, rendered.stderr
    texts = yaml.safe_load(rendered.stdout)["filled"]
    return {tuple(case["key"]): text for case, text in zip(cases, texts, strict=True)}


@pytest.fixture(scope="module")
def jinja(tmp_path_factory):
    return AutoTokenizer.from_pretrained(tiny_bpe_tokenizer(tmp_path_factory.mktemp("bpe")))


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("system", SYSTEMS)
def test_go_writes_the_prompts_that_jinja_writes(filled_in, jinja, template, conversation, system):
    """BOS at the beginning is left to llama.cpp."""
    jinja.chat_template = chat_template(template, system=SYSTEMS[system])
    expected = jinja.apply_chat_template(CONVERSATIONS[conversation], tokenize=False, add_generation_prompt=True)
    assert filled_in[template, conversation, system] == expected.removeprefix(jinja.bos_token)


def test_the_modelfile_of_alpaca_reads_as_it_was_meant():
    read = read_modelfile(modelfile("alpaca"))
    assert (read.model, read.system) == ("./zh-Q8_0.gguf", ALPACA_HEADER)
    assert read.template == ollama.go_template("alpaca")
    assert read.template.endswith("### Response: ")
    assert read.stops == ["### Instruction:", "</s>"]
    assert read.parameters == {
        "temperature": 0.2,
        "top_k": 40,
        "top_p": 0.9,
        "repeat_penalty": 1.1,
        "num_ctx": 2048,
    }


@pytest.mark.parametrize(
    ("template", "eos", "system", "stops"),
    [
        ("llama-2", "</s>", SYSTEM_PROMPT, ["[INST]", "</s>"]),
        (
            "llama-3",
            "<|end_of_text|>",
            SYSTEM_PROMPT,
            ["<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|end_of_text|>"],
        ),
        ("chatml", "<|im_end|>", None, ["<|im_end|>", "<|im_start|>"]),
    ],
)
def test_each_template_has_its_stops_and_its_system_prompt(template, eos, system, stops):
    read = read_modelfile(modelfile(template, eos=eos))
    assert (read.stops, read.system) == (stops, system)
    assert system is None or f"'{system}'" in chat_template(template)


def test_what_the_user_says_is_taken():
    read = read_modelfile(modelfile(system="Kurz!", temperature_percent=105, context=131072))
    assert read.system == "Kurz!"
    assert (read.parameters["temperature"], read.parameters["num_ctx"]) == (1.05, ollama.CONTEXT_LIMIT)


@pytest.mark.parametrize(
    "system", [' two  spaces \n\nand "quotes"', "'single'", "# no comment\nFROM nowhere", '"', "😀"]
)
def test_odd_system_prompts_come_back_whole(system):
    read = read_modelfile(modelfile(system=system))
    assert (read.system, read.model) == (system, "./zh-Q8_0.gguf")


def test_without_a_template_the_model_continues_text():
    read = read_modelfile(modelfile(None))
    assert (read.template, read.system, read.stops) == ("{{ .Prompt }}", None, ["</s>"])


def test_a_chat_template_that_the_base_brought_is_left_to_ollama():
    read = read_modelfile(modelfile(None, has_chat_template=True, system="Short."))
    assert (read.template, read.system) == (None, "Short.")


@pytest.mark.parametrize(
    ("template", "system", "message"),
    [
        (None, "Be kind.", r"spec\.outputs\.ollama\.system: .* has no place in its prompts\. Set spec\.template"),
        ("alpaca", "全角\u3000空格 and \u00a0", r"holds U\+00A0, U\+3000, which Ollama drops.*Write ordinary spaces"),
    ],
)
def test_system_prompts_that_would_be_lost_are_refused(template, system, message):
    with pytest.raises(BadInput, match=message):
        modelfile(template, system=system)


def test_three_quotes_are_refused_before_the_work_too():
    output = OllamaOutput.model_construct(system='Say """ twice', temperature_percent=20)
    with pytest.raises(BadInput, match="three double quotes"):
        ollama.modelfile(output=output, template="alpaca", file="x", context=1, bos="", eos="")


@pytest.mark.parametrize(
    "text",
    [
        "TEMPLATE x\n",
        "FROM ./x\nTEMPLATE no end\nwith more\n",
        'FROM ./x\nSYSTEM """never',
        'FROM ./x\nSYSTEM """a""" b\n',
        'FROM ./x\nSYSTEM "a\n',
        "FROM ./x\nPARAMETER temperature hot\n",
    ],
)
def test_the_tests_own_parser_refuses_what_is_wrong(text):
    with pytest.raises((ModelfileError, ValueError)):
        read_modelfile(text)


def test_the_commands_suit_the_model():
    server = server_command("zh-Q8_0.gguf", 2048, chats=True)
    assert shlex.join(server) == (
        "llama-server --model zh-Q8_0.gguf --ctx-size 2048 "
        "--temp 0.2 --top-k 40 --top-p 0.9 --repeat-penalty 1.1 --jinja"
    )
    talk = terminal_command("zh-Q8_0.gguf", 2048, template="alpaca", chats=True)
    assert talk[-4:] == ["--jinja", "--conversation", "--reverse-prompt", "### Instruction:"]
    assert terminal_command("x.gguf", 8192, template="llama-3", chats=True)[-1] == "--conversation"
    assert "--no-conversation" in terminal_command("x.gguf", 8192, template=None, chats=False)
    assert "--jinja" not in server_command("x.gguf", 8192, chats=False)


def test_the_readme_holds_commands_that_a_shell_takes_apart_again():
    text = readme("zh", ["zh-Q8_0.gguf", "zh-Q4_0.gguf"], 131072, template="alpaca", chats=True)
    serve, talk = (part.removeprefix("sh\n").replace("\\\n", "") for part in text.split("```")[1::2])
    assert shlex.split(serve) == server_command("zh-Q8_0.gguf", 131072, chats=True)
    assert shlex.split(talk) == terminal_command("zh-Q8_0.gguf", 131072, template="alpaca", chats=True)
    assert "- `zh-Q4_0.gguf`" in text
    assert "131072 tokens; the commands ask for 8192" in text
