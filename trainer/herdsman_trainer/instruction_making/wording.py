"""What requests are made of: domains, kinds of task, and the sentences around them, in two languages.

The structure is that of the request of Chinese-LLaMA-Alpaca's crawler: six requirements, ten of 82 domains, ten of its
14 kinds of task, two lengths, twenty records. The kinds are its own; its list of domains is not published in full where
we know it from, so the domains here are ours, and so are the sentences.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

_DOMAINS = """
古代历史 ancient history|近现代史 modern history|考古 archaeology|地理 geography|旅行 travel|城市生活 city life
乡村生活 country life|民俗节日 customs and festivals|神话传说 myths and legends|哲学 philosophy|逻辑 logic|伦理 ethics
心理学 psychology|社会学 sociology|政治学 political science|国际关系 international relations|法律 law|经济学 economics
金融 finance|投资理财 personal finance|会计 accounting|市场营销 marketing|创业 founding a company|企业管理 management
人力资源 human resources|职场沟通 communication at work|教育 education|学前教育 early childhood|考试备考 exams
语文 mother tongue|外语学习 foreign languages|诗词 poetry|小说 novels|戏剧 drama|新闻 news|书信 letters
数学 mathematics|物理 physics|化学 chemistry|生物 biology|天文 astronomy|气象 weather|地质 geology|海洋 oceans
动物 animals|植物 plants|环境保护 environment|能源 energy|农业 agriculture|园艺 gardening|医学常识 medicine
营养健康 nutrition|运动健身 sports|心理健康 mental health|烹饪 cooking|饮食文化 food culture|茶与咖啡 tea and coffee
服装时尚 fashion|家居装修 homes|建筑 architecture|交通运输 transport|汽车 cars|航空航天 aerospace|机械制造 engineering
电子电路 electronics|通信 telecommunications|计算机科学 computer science|编程 programming|数据库 databases
操作系统 operating systems|网络安全 security|人工智能 artificial intelligence|数据分析 data analysis
电子游戏 video games|棋牌 board games|音乐 music|绘画 painting|电影 films|摄影 photography
手工 handicraft|宠物 pets
家庭关系 family
"""
DOMAINS = tuple(
    (zh, en) for zh, _, en in (pair.partition(" ") for line in _DOMAINS.split("\n") if line for pair in line.split("|"))
)
"""82 domains, each in Chinese and in English."""

KINDS = (
    ("开放式生成", "open generation"), ("分类", "classification"), ("问答", "question answering"), ("编辑", "editing"),
    ("摘要", "summary"), ("写作", "writing"), ("翻译", "translation"), ("写代码", "writing code"), ("分析", "analysis"),
    ("代码解析", "explaining code"), ("常识推理", "common sense reasoning"), ("写信", "writing a letter"),
    ("抽取", "extraction"), ("推荐", "recommendation"),
)  # fmt: skip
"""The 14 kinds of task of the original, each in Chinese and in English."""

LANGUAGES: Mapping[str, str] = {
    "ar": "Arabic", "bn": "Bengali", "de": "German", "el": "Greek", "en": "English", "es": "Spanish", "fa": "Persian",
    "fr": "French", "he": "Hebrew", "hi": "Hindi", "id": "Indonesian", "it": "Italian", "ja": "Japanese",
    "ko": "Korean", "nl": "Dutch", "pl": "Polish", "pt": "Portuguese", "ru": "Russian", "ta": "Tamil", "te": "Telugu",
    "th": "Thai", "tr": "Turkish", "uk": "Ukrainian", "ur": "Urdu", "vi": "Vietnamese", "zh": "Chinese",
}  # fmt: skip
"""What the request in English calls the languages of the API."""


@dataclass(frozen=True)
class Wording:
    """The sentences of a request; what stands in braces is filled in."""

    place: Literal[0, 1]
    """Which of each pair of domains and kinds belongs to it."""
    opening: str
    requirements: tuple[str, ...]
    guidance: str
    examples: str
    closing: str
    comma: str


CHINESE = Wording(
    place=0,
    opening="请写出{count}条互不相同的任务指令，并给出每条指令的答案。这些指令将用来检验一个语言模型完成任务的能力。要求如下：",
    requirements=(
        "主题多样，涉及这些领域：{domains}。",
        "措辞和类型多样，任务类型包括：{kinds}。",
        "如果只凭文字无法完成某条指令，就在 <output> 里说明为什么做不到。",
        "除非指令另有要求，一律使用中文；指令可以是命令，也可以是提问。",
        "需要材料的指令，在 <input> 里写出真实而具体的材料，不写占位符，最多{input}个字；不需要材料时 <input> 留空。",
        "<output> 是对指令的真实回答，少于{output}个字。",
    ),
    guidance="另外：{guidance}",
    examples="下面是几个例子，请不要重复它们：",
    closing='请用 JSON 写出这{count}条，只写 JSON：{{"records": [{{"kind": "任务类型", "instruction": "指令", '
    '"input": "材料", "output": "答案"}}]}}',
    comma="、",
)
ENGLISH = Wording(
    place=1,
    opening="Write {count} different task instructions, each with its answer. They will be used to examine how well a "
    "language model carries out tasks. Requirements:",
    requirements=(
        "Vary the topics, and take them from these domains: {domains}.",
        "Vary the wording and the type; types of task are: {kinds}.",
        "Where an instruction cannot be carried out with text alone, say in <output> why not.",
        "Write in {language}, unless an instruction asks for something else; it may be a command or a question.",
        "Where an instruction needs material, put real and specific material into <input>, no placeholder, of at most "
        "{input} characters; leave <input> empty where none is needed.",
        "<output> really answers the instruction, in fewer than {output} characters.",
    ),
    guidance="Besides: {guidance}",
    examples="These are examples; do not repeat them:",
    closing='Write the {count} as JSON, and nothing but JSON: {{"records": [{{"kind": "type of task", "instruction": '
    '"...", "input": "...", "output": "..."}}]}}',
    comma=", ",
)
WORDINGS: Mapping[str, Wording] = {"chinese-llama-alpaca": CHINESE, "self-instruct": ENGLISH}
"""The wording of each preset."""
