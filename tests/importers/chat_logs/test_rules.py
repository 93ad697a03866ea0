"""The rules for messages."""

import pytest

from hf_recipes.importers.arguments import QQArguments
from hf_recipes.importers.chat_logs.members import SYSTEM, Members
from hf_recipes.importers.chat_logs.messages import CARD, FORWARD, MEDIA, QUOTE_REMOVED, TEXT, Message
from hf_recipes.importers.chat_logs.rules import Rules


def members() -> Members:
    members = Members()
    members.add("12345", "小明")
    return members


def apply(text: str, sender: str = "12345", kind: str | None = None, repairs=(), **flags):
    rules = Rules(QQArguments(input=["x"], output_dir="y", **flags), members())
    return rules.apply(Message("a.txt", 1, 0, sender, text, kind, repairs))


ONLY_MEDIA = "[图片], [表情], [语音] and the like"


@pytest.mark.parametrize(
    ("text", "expected", "repairs", "reason"),
    [
        ("你好[表情]", "你好", 1, None),
        ("[图片]\n山顶的云海！\n[图片]", "山顶的云海！", 1, None),
        ("[图片][表情]", "", 0, f"nothing but {ONLY_MEDIA}"),
        ("[语音]", "", 0, f"nothing but {ONLY_MEDIA}"),
        ("[捂脸]好", "[捂脸]好", 0, None),
        ("@小明 你好", "@小明 你好", 0, None),
        ("", "", 0, "empty"),
        ("小明撤回了一条消息", None, 0, "recalled"),
        ("管理员 撤回了成员 小红 的一条消息", None, 0, "recalled"),
        ("他刚才撤回了一条消息，你看到了吗", "他刚才撤回了一条消息，你看到了吗", 0, None),
        ("[QQ红包]我发了一个红包，请使用新版手机QQ查收红包。", None, 0, "card"),
        ("[视频]你的QQ暂不支持查看视频短片，请升级到最新版本后查看。", None, 0, "card"),
        ("[群聊的聊天记录]", None, 0, "card"),
        ('<?xml version="1.0"?><msg serviceID="1">', None, 0, "card"),
        ('{"app":"com.tencent.miniapp"}', None, 0, "card"),
        ("[分享]一首歌", None, 0, "card"),
    ],
)
def test_the_text_of_a_message(text, expected, repairs, reason):
    kept, changed, why = apply(text)
    assert (why or "").startswith("a card" if reason == "card" else reason or "") and bool(why) == bool(reason)
    assert len(changed) == repairs
    if expected is not None:
        assert kept == expected


def test_every_rule_has_a_flag():
    assert apply("小明撤回了一条消息", recalled="keep")[2] is None
    assert apply("甲加入本群", SYSTEM)[2] == "system notice"
    assert apply("甲加入本群", SYSTEM, system_notices="keep")[2] is None
    assert apply("[分享]一首歌", cards="keep") == ("[分享]一首歌", [], None)
    assert apply("你好[表情]", media_marks="keep") == ("你好[表情]", [], None)
    assert apply("@小明 @全体成员 你好@别人", mentions="strip") == ("你好@别人", ["@mentions removed"], None)
    assert apply("@小明", mentions="strip") == ("", ["@mentions removed"], "empty")


def test_the_kind_of_a_message_decides_where_it_is_known():
    assert apply("[红包]恭喜", kind=TEXT) == ("[红包]恭喜", [], None)  # an emoji of WeChat
    assert apply("小明撤回了一条消息", kind=TEXT)[2] is None
    assert apply("@小明\u2005好", kind=TEXT, repairs=(QUOTE_REMOVED,)) == ("@小明 好", [QUOTE_REMOVED], None)
    assert apply("微信红包", kind=CARD)[2].startswith("a card")
    assert apply("微信红包", kind=CARD, cards="keep") == ("微信红包", [], None)
    assert apply("[视频]12s", kind=MEDIA)[2].startswith("nothing but")
    assert apply("[视频]12s", kind=MEDIA, media_marks="keep") == ("[视频]12s", [], None)
    assert apply("老桨: 我带炉子", kind=FORWARD, cards="keep")[2] == "forwarded, words of others"
