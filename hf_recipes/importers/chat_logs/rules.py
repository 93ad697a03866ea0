"""The rules for messages: which are used, and which marks are removed from them."""

import re

from hf_recipes.importers.arguments import QQArguments
from hf_recipes.importers.chat_logs.members import SYSTEM, Members
from hf_recipes.importers.chat_logs.messages import CARD, FORWARD, MEDIA, MEDIA_REMOVED, TEXT, Message

_RECALLED = re.compile(r".{0,40}撤回了.{0,40}(?:一条(?:群|成员)?消息|的消息)[。\s]*(?:重新编辑)?(?:（.*）)?")
_MEDIA = re.compile(r"\[(?:图片|照片|表情|动画表情|自定义表情|原创表情|表情包|涂鸦|语音|视频)\]")
_CARD = re.compile(
    r"<\?xml|<msg\b|\{\"app\"\s*:|\[[^\[\]\n]{0,40}聊天记录\]|\[(?:QQ红包|红包|转账|合并转发|转发多条消息|分享|链接|QQ小程序"
    r"|小程序|应用|名片|推荐好友|推荐群|位置|位置共享|音乐|音乐分享|礼物|戳一戳|闪照|文件|群签到|群投票|群公告|语音通话|视频通话)\]"
)
_NOT_SHOWN = re.compile(
    r"(?:请(?:使用|升级|用|在)|可以?在).{0,16}(?:手机QQ|版本|手机).{0,8}(?:查看|查收|体验|领取)|暂不支持(?:查看|显示)|QQ版本不支持"
)
_BLANK_LINES = re.compile(r"\s*\n\s*")
_ONLY_MEDIA = "nothing but [图片], [表情], [语音] and the like"
_A_CARD = "a card, or what the client could not show"


class Rules:
    """Which messages are used, and which marks are removed from them."""

    def __init__(self, args: QQArguments, members: Members):
        self._args = args
        names = {name for names in members.names.values() for name in names} | {"全体成员"}
        longest_first = sorted(map(re.escape, names), key=len, reverse=True)
        mention = re.compile(f"[@＠](?:{'|'.join(longest_first)})[ \u2005]?")
        self._mention = mention if args.mentions == "strip" else None

    def apply(self, message: Message) -> tuple[str, list[str], str | None]:
        """The text, what was changed in it, and the reason to drop the message, or None."""
        args, kind = self._args, message.kind
        text = message.text.strip().replace("\u2005", " ")  # which WeChat sets after a mention
        repairs = list(message.repairs)
        if args.recalled == "drop" and kind is None and _RECALLED.fullmatch(text):
            return text, [], "recalled"
        if message.sender == SYSTEM and args.system_notices == "drop":
            return text, [], "system notice"
        if kind == FORWARD:
            return text, [], "forwarded, words of others"
        if args.cards == "drop" and (kind == CARD or (kind is None and _is_card(text))):
            return text, [], _A_CARD
        if args.media_marks == "strip":
            if kind == MEDIA:
                return "", [], _ONLY_MEDIA
            if kind in (None, TEXT) and (stripped := _MEDIA.sub("", text)) != text:
                repairs.append(MEDIA_REMOVED)
                text = _BLANK_LINES.sub("\n", stripped).strip()
                if not text:
                    return text, [], _ONLY_MEDIA
        if self._mention and (stripped := self._mention.sub("", text)) != text:
            repairs.append("@mentions removed")
            text = stripped.strip()
        return text, repairs, None if text else "empty"


def _is_card(text: str) -> bool:
    return bool(_CARD.match(text) or (len(text) < 120 and _NOT_SHOWN.search(text)))
