"""Names of columns that people use, by what they hold: what is added here is known in every schema."""

import re

from hf_recipes.data.conversations.thought_columns import THOUGHTS_KEYS

# Columns of a question and its answer, in the order in which they are looked for: first these, then any of the two
# lists below, without regard to case.
PAIRS = (
    ("prompt", "response"),
    ("prompt", "completion"),
    ("query", "response"),
    ("question", "answer"),
    ("user", "assistant"),
    ("context", "target"),
    ("instruction", "output"),
    ("instruction", "target"),
    ("input", "target"),
    ("input", "output"),
    ("input", "content"),
    ("问", "答"),
)
# Columns of a forum's question, which has a title and a description, and its answer (baike2018qa, webtext2019zh).
FORUM = (("title", "desc", "answer"), ("title", "desc", "content", "answer_id"))
QUESTIONS = (
    *("prompt", "instruction", "question", "query", "user", "problem", "ask"),
    *("问题", "问", "提问", "指令", "提示词", "input", "输入"),
)
ANSWERS = (
    *("response", "completion", "answer", "output", "assistant", "solution", "attempt"),
    *("答案", "回答", "答", "回复", "输出"),
)
# Columns of what the answer to a prompt is compared with; verl's `reward_model` is an object.
REFERENCE_ANSWERS = (
    *("ground_truth", "reference_answer", "expected_answer", "final_answer", "correct_answer", "gold_answer"),
    "reward_model",
)
ANSWER_OF = {"title": "answer", **dict(reversed(PAIRS))}  # the first answer column of each prompt column
MESSAGE_COLUMNS = ("messages", "dialog", "conversation", "conversations", "dialogue", "chat", "turns", "data", "对话")
TEXT_COLUMNS = ("plain_text", "text")  # that may hold a whole conversation
# Columns beside a question and its answer or a conversation that are a part of it.
SYSTEM_COLUMNS = (
    *("system", "system_prompt", "system_message", "system_instruction", "meta_instruction", "sys", "sys_prompt"),
    *("系统", "系统提示", "系统提示词", "系统指令"),
)
TOOLS_COLUMNS = ("tools", "functions", "available_tools", "available_functions", "tool_list", "工具", "工具列表")
HISTORY_COLUMNS = (
    *("history", "chat_history", "conversation_history", "dialogue_history", "dialog_history"),
    *("历史", "历史对话", "对话历史", "历史记录"),
)
CONTEXT_COLUMNS = ("input", "输入", "context", "passage", "background", "desc", "上下文", "背景", "材料")
# Columns that say that an answer is not wanted, or not wholly: false of the first and 1 of the next say nothing.
HARMFUL = ("is_unsafe", "unsafe", "is_toxic", "toxic", "is_harmful", "harmful", "is_flagged", "flagged")
WEIGHTS = ("weight", "sample_weight", "loss_weight", "loss_mask")
UNWANTED = (
    *HARMFUL,
    *WEIGHTS,
    *("is_safe", "safe", "safety", "kto_tag"),
    *("rejected", "rejected_response", "rejected_messages", "rejected_answer"),
    *("response_rejected", "answer_rejected", "neg_resp"),
)
# Columns of what cannot be trained on, and what stands for one of them in a text.
MEDIA = frozenset(("image", "images", "video", "videos", "audio", "audios", "图片", "图像", "视频", "音频"))
MEDIUM = re.compile(r"<\|?(?:image|img|video|audio|vision)\w*\|?>", re.IGNORECASE)
REFERENCES = ("reference", "references")  # passages of an answer; of a prompt, answers
# Columns that a question needs, such as its choices; a document may have others of these names.
OF_QUESTIONS = (
    *("description", "knowledge", "evidence", "evidences", "tool", "observation"),
    *("options", "choices", "选项", "b", "c", "d", "opa", "opb", "opc", "opd"),
)
# Columns of a better and a worse answer, in the order in which they are looked for.
SIDE_COLUMNS = (
    ("chosen", "rejected"),
    ("selected", "rejected"),
    ("response_chosen", "response_rejected"),
    ("chosen_response", "rejected_response"),
    ("chosen_answer", "rejected_answer"),
    ("answer_chosen", "answer_rejected"),
    ("pos_resp", "neg_resp"),
    ("messages", "rejected_messages"),
    ("messages", "rejected_response"),
    ("conversations", "rejected_response"),
    ("response", "rejected_response"),
)
# Words that tell the columns of both sides apart, where the rest of their names is the same.
SIDE_WORDS = (
    *(("chosen", "rejected"), ("accepted", "rejected"), ("preferred", "rejected"), ("preferred", "dispreferred")),
    *(("preferred", "non_preferred"), ("better", "worse"), ("good", "bad"), ("winner", "loser"), ("win", "lose")),
    *(("positive", "negative"), ("pos", "neg"), ("好的", "差的"), ("好的", "坏的"), ("优质", "劣质")),
)
CHOSEN, REJECTED = ("chosen", "selected"), "rejected"
BETTER = "better_response_id"  # of PKU-SafeRLHF: which of response_0 and response_1 is the better one
LABEL_COLUMNS = ("kto_tag", "is_safe")  # where `label` is none

# Columns that usually carry meaning: a run whose examples do not show them stops.
MEANINGFUL = frozenset(
    {
        *(*SYSTEM_COLUMNS, *TOOLS_COLUMNS, *HISTORY_COLUMNS, *CONTEXT_COLUMNS, *THOUGHTS_KEYS),
        *(*UNWANTED, *REFERENCES, *OF_QUESTIONS),
        *(*MESSAGE_COLUMNS, "instruction", "question", "query", "problem", "documents", "answers"),
    }
    - {"data", "chat"}
)
MEANINGFUL_FOR = {
    "examples": MEANINGFUL,
    "prompts": MEANINGFUL - {*UNWANTED, *REFERENCES},
    "documents": MEANINGFUL - {*UNWANTED, *REFERENCES, *OF_QUESTIONS, "desc"},
}
CHOICES = "write it into the question"
# Words of names that usually carry meaning, by what to do about one, in the singular; and those of what is only said
# about it, as in reasoning_tokens_len.
WORDS = {
    "read it with --thoughts_column {name}": "reasoning thinking thought think cot trajectory 思考 思维 推理",
    "rename it history": "history previous 历史",
    "rename it tools": "tool function api 工具",
    "rename it system": "system persona role character 系统 人设 角色",
    "rename it context": (
        "context passage document doc article paragraph background material evidence knowledge "
        "reference excerpt snippet "
        "文章 原文 段落 材料 背景 资料 文档 上下文"
    ),
    CHOICES: "option choice candidate 选项",
}
ABOUT = re.compile(
    r"(?:\b|_)(?:id|len|length|token|num|number|count|type|kind|name|score|level|quality|source|lang|language|model|key|hash|"
    r"url|link|path|time|date|duration|rate|size|mode|effort|difficulty|complete|category|tag|topic|label|index|idx|format|"
    r"style|version|domain|reason|answer|response|output|solution|point|is|has)s?(?:\b|_)|长度|数|类|编号|来源|质量|分|名|级|答案|点"
)
# Words of what says true or false of an answer: that it is wanted, and that it is not.
WANTED = re.compile(
    r"(?:\b|_)(?:good|correct|keep|kept|valid|accepted|approved|passed|desirable)$|是否(?:正确|合格|保留)"
)
NOT_WANTED = re.compile(
    r"(?:\b|_)(?:bad|wrong|incorrect|invalid|deleted|toxic|harmful|unsafe|flagged|spam|nsfw)$|是否(?:有害|删除|违规)"
)
# Keys of turns that may say which of them carry loss.
MARKS = ("mask", "masked", "ignore", "ignore_loss", "no_loss", "skip", "train_detail", "training_detail")
