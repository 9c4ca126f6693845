"""The prompts of Chinese-LLaMA-Alpaca's LangChain demonstration.

They are the instruction alone: the server puts it into the prompt template of its model, as it was tuned, so the same
words do for all generations. Of the first generation's refine prompt one misprint is gone: where two line ends were
meant, it had a backslash and two n.
"""

from langchain_core.prompts import ChatPromptTemplate

QA_STUFF = ChatPromptTemplate([("human", "{context}\n{question}")])
QA_INITIAL = ChatPromptTemplate(
    [("human", "以下为背景知识：\n{context_str}\n请根据以上背景知识, 回答这个问题：{question}。")]
)
QA_REFINE = ChatPromptTemplate(
    [
        (
            "human",
            "这是原始问题: {question}\n已有的回答: {existing_answer}\n"
            "现在还有一些文字，（如果有需要）你可以根据它们完善现有的回答。\n\n{context_str}\n\n"
            "请根据新的文段，进一步完善你的回答。",
        )
    ]
)
SUMMARY = ChatPromptTemplate([("human", "请为以下文字写一段摘要:\n{text}")])
SUMMARY_REFINE = ChatPromptTemplate(
    [
        (
            "human",
            "已有一段摘要：{existing_answer}\n现在还有一些文字，（如果有需要）你可以根据它们完善现有的摘要。\n"
            "{text}\n\n如果这段文字没有用，返回原来的摘要即可。请你生成一个最终的摘要。",
        )
    ]
)
