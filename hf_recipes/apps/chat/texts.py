"""The texts of the chat, in English and in Chinese."""

from hf_recipes.apps import languages
from hf_recipes.apps.chat.models import BASE, Answer

_TEXTS = {
    "title": ("Chat", "对话"),
    "base": ("base model", "基座模型"),
    "model": ("Model", "由谁回答"),
    "compare with": ("Compare with, for the same question", "并排回答同一问题"),
    "no comparison": ("no comparison", "不对比"),
    "system": ("System prompt", "系统提示词"),
    "temperature": ("Temperature", "温度"),
    "temperature help": ("0: always the likeliest token", "0：总取概率最高的词元"),
    "top_p": ("Top-p", "Top-p"),
    "top_p help": ("sample from the likeliest tokens with this total probability", "只从累计概率达到此值的词元中采样"),
    "max_new_tokens": ("Maximum length", "最大长度"),
    "max_new_tokens help": ("tokens of an answer", "每个回答的词元数"),
    "repetition_penalty": ("Repetition penalty", "重复惩罚"),
    "repetition_penalty help": ("above 1: fewer repeated tokens", "大于 1：减少已出现过的词元"),
    "question": ("Your question", "你的问题"),
    "question help": ("Enter sends, Shift+Enter begins a line", "Enter 发送，Shift+Enter 换行"),
    "send": ("Send", "发送"),
    "stop": ("Stop", "停止"),
    "retry": ("Retry", "重试"),
    "clear": ("Clear", "清空"),
    "save": ("Save", "保存"),
    "empty": (
        "Ask something. A question can be edited with its pencil: it is answered again, and what followed is deleted.",
        "请提问。已提的问题可用旁边的铅笔修改：修改后会重新回答，其后的内容会删除。",
    ),
    "read": ("What the model read and wrote, with special tokens", "模型实际读到和写出的内容（含特殊词元）"),
    "first": ("First column", "第一列"),
    "second": ("Second column", "第二列"),
    "nothing": ("There is no question to answer again.", "没有可以重新回答的问题。"),
    "nothing to save": ("There is no answer to save yet.", "还没有可保存的回答。"),
    "too long": (
        "{count:,} characters are more than the limit of {most:,}.",
        "共 {count:,} 个字符，超过上限 {most:,}。",
    ),
    "bad setting": ("A setting is outside its range ({reason}).", "有设置超出范围（{reason}）。"),
    "refused": ("The question cannot be put to the model ({reason}).", "无法向模型提出这个问题（{reason}）。"),
    "memory": ("Out of memory on the device; shorten the question or the answer.", "显存或内存不足，请缩短问答。"),
    "failed": ("An error occurred; its message is in the terminal.", "出错了，详情见终端。"),
    "tokens": ("{read:,} tokens read, {written:,} written.", "读入 {read:,} 个词元，写出 {written:,} 个。"),
    "turns dropped": (
        "Too long for the model: the oldest turns were dropped ({read:,} of {length:,} tokens were read).",
        "超出模型的上下文长度：已去掉最早的几轮（读入 {length:,} 个词元中的 {read:,} 个）。",
    ),
    "question cut": (
        "Too long for the model: the beginning of the question was cut ({read:,} of {length:,} tokens were read).",
        "超出模型的上下文长度：已截去问题的开头（读入 {length:,} 个词元中的 {read:,} 个）。",
    ),
    "length": ("Cut at the maximum length.", "已达最大长度，回答被截断。"),
    "thoughts cut": ("Its thoughts were cut at their maximum length.", "思考已达最大长度，被截断。"),
    "stopped": ("Stopped.", "已停止。"),
    "empty answer": ("(no answer)", "（没有回答）"),
    "commands": (
        "/retry  /clear  /save FILE  /system TEXT  /model NAME  /set NAME VALUE  /read  /exit; Ctrl-C stops an answer",
        "/retry 重试  /clear 清空  /save 文件  /system 文本  /model 名称  /set 名称 值  /read 查看模型读到的内容  "
        "/exit 退出；Ctrl-C 停止回答",
    ),
    "no command": ("There is no {name}.", "没有 {name}。"),
    "now": ("{name}: {value}", "{name}：{value}"),
    "saved": ("Saved: {path}", "已保存：{path}"),
    "exists": ("{path} is there already; choose another name.", "{path} 已存在，请换一个名字。"),
    "not saved": ("{path} cannot be written ({reason}).", "{path} 无法写入（{reason}）。"),
}


class Texts(languages.Texts):
    table = _TEXTS

    def model(self, name: str) -> str:
        return self("base") if name == BASE else name

    def notes(self, answer: Answer) -> str:
        """Numbers of tokens read and written, what was truncated, and why the answer ended."""
        prompt = answer.prompt
        cut = "question cut" if prompt.question_cut else "turns dropped" if prompt.turns_dropped else None
        notes = [self(cut, read=len(prompt.ids), length=prompt.full_length)] if cut else []
        if answer.end:
            notes.append(self("tokens", read=len(prompt.ids), written=answer.tokens))
        notes += [self("thoughts cut")] if answer.cut_while_thinking else []
        notes += {"length": [self("length")], "stop": [self("stopped")]}.get(answer.end, [])
        return (" " if self.language == "en" else "").join(notes)
