"""Members, rules for messages, sessions and examples."""

import pytest

from hf_recipes.core.errors import UserError
from hf_recipes.importers.arguments import QQArguments
from hf_recipes.importers.chat_logs.members import ME, SYSTEM, Members
from hf_recipes.importers.chat_logs.sessions import Message, MessageGroup, Rules, split_session, split_sessions


def members() -> Members:
    members = Members()
    members.add("12345", "小明", "明明")
    members.add("12346", "小红")
    members.add("12347", "小红")
    members.add("明明", "明明", is_account=False)
    return members


def test_me_is_a_number_or_a_nickname_and_every_name_of_it():
    assert members().find(["12345"]) == members().find(["小明"]) == {"12345", "明明"}
    assert members().find(["12346", "明明"]) == {"12346", "12345", "明明"}
    assert members().find([]) == set()
    with_wechat = members()
    with_wechat.add(ME)
    assert with_wechat.find([]) == {ME}


def test_me_is_one_person():
    with pytest.raises(UserError, match="--me 小红: 2 people have this nickname; give one of 12346, 12347"):
        members().find(["小红"])
    with pytest.raises(
        UserError, match="--me 小刚: nobody of this name or number writes here, but 小明, 小红, 小红, 明明 do"
    ):
        members().find(["小刚"])


def apply(text: str, sender: str = "12345", **flags):
    rules = Rules(QQArguments(input=["x"], output_dir="y", **flags), members())
    return rules.apply(Message(1, 0, sender, text))


MEDIA = "[图片], [表情], [语音] and the like"


@pytest.mark.parametrize(
    ("text", "expected", "repairs", "reason"),
    [
        ("你好[表情]", "你好", 1, None),
        ("[图片]\n山顶的云海！\n[图片]", "山顶的云海！", 1, None),
        ("[图片][表情]", "", 0, f"nothing but {MEDIA}"),
        ("[语音]", "", 0, f"nothing but {MEDIA}"),
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


def test_silence_ends_a_session_and_groups_are_of_one_person():
    sent = [("a", 0), ("a", 60), ("me", 61), ("m2", 62), ("a", 62 + 3600), ("a", 63 + 7200), ("b", 64 + 7200)]
    messages = [Message(n, time, sender, "x") for n, (sender, time) in enumerate(sent)]
    assert list(split_sessions(messages, range(len(sent)), {"me", "m2"}, 60)) == [
        [MessageGroup("a", [0, 1]), MessageGroup(ME, [2, 3]), MessageGroup("a", [4])],
        [MessageGroup("a", [5]), MessageGroup("b", [6])],
    ]
    assert [len(session) for session in split_sessions(messages, [0, 4], set(), 60)] == [1, 1]


def split(senders: str, max_turns: int) -> tuple[list[str], dict[int, str]]:
    """`senders` has m for me; examples come out as the indices of their first and last group."""
    session = [MessageGroup(ME if sender == "m" else sender, [index]) for index, sender in enumerate(senders)]
    dropped: dict[int, str] = {}

    def drop(groups, reason):
        dropped.update((group.indices[0], reason) for group in groups)

    examples = list(split_session(session, max_turns, drop))
    return [f"{example[0].indices[0]}-{example[-1].indices[0]}" for example in examples], dropped


FIRST = "begins a session: there is nothing that it answers"
LAST = "nothing of mine follows in its session"
FAR = "more than --max_turns before my answer"


@pytest.mark.parametrize(
    ("senders", "max_turns", "examples", "dropped"),
    [
        ("amam", 20, ["0-3"], {}),
        ("amamam", 4, ["0-3", "4-5"], {}),
        ("amam", 3, ["0-1", "2-3"], {}),
        ("mam", 20, ["1-2"], {0: FIRST}),
        ("amab", 20, ["0-1"], {2: LAST, 3: LAST}),
        ("abcabm", 3, ["3-5"], {0: FAR, 1: FAR, 2: FAR}),
        ("abmcabm", 4, ["0-2", "3-6"], {}),
        ("ab", 20, [], {0: LAST, 1: LAST}),
        ("m", 20, [], {0: FIRST}),
    ],
)
def test_examples_end_with_me(senders, max_turns, examples, dropped):
    assert split(senders, max_turns) == (examples, dropped)
