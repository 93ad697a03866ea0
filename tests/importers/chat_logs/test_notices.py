"""Notices of WeChat's client, as opposed to what people say."""

import pytest

from hf_recipes.importers.chat_logs.notices import is_notice


@pytest.mark.parametrize(
    "text",
    [
        "你撤回了一条消息",
        '"小满 Mina" 撤回了一条消息',
        '我拍了拍 "小满 Mina"',
        '"小满 Mina" 拍了拍我的脑袋',
        "“老桨” 拍了拍 “K:不睡”",
        "你已添加了小满 Mina，现在可以开始聊天了。",
        "老桨邀请K:不睡加入了群聊",
        '"老桨"通过扫描"小满"分享的二维码加入群聊',
        '"老桨"修改群名为“露营”',
        '你将"老桨"移出了群聊',
        "老桨领取了你的红包",
    ],
)
def test_notices(text):
    assert is_notice(text)


@pytest.mark.parametrize(
    "text",
    [
        "他拍了拍我的肩膀",
        "我刚加入群聊",
        "你为什么退出群聊了",
        "他刚才撤回了一条消息，你看到了吗",
        "我领取了红包",
        "现在可以开始聊天了吗",
    ],
)
def test_words(text):
    assert not is_notice(text)
