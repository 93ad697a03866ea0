import pytest

from hf_recipes.inspection.mojibake import find_mojibake

TEXTS = {
    "cp932": "桜です。春になると川沿いの道に咲きます。",
    "euc_jp": "明日の天気は晴れのち曇り、最高気温は二十五度でしょう。",
    "big5": "在信義區的圖書館借書，需要先辦理借書證。",
    "cp949": "오늘 날씨가 정말 좋네요. 내일은 비가 올 예정이니 우산을 챙기세요.",
    "gb18030": "请问怎么办理借书证？需要带身份证原件吗？",
}
NAMES = {"cp932": "Shift-JIS", "euc_jp": "EUC-JP", "big5": "Big5", "cp949": "EUC-KR"}


@pytest.mark.parametrize("encoding", NAMES)
def test_other_encodings_read_as_gb18030_are_named(encoding):
    text = TEXTS[encoding].encode(encoding).decode("gb18030")
    assert find_mojibake(f"1. {text}") == (f"mojibake ({NAMES[encoding]} read as GB18030)", 3)


@pytest.mark.parametrize("encoding", TEXTS)
@pytest.mark.parametrize("read_as", ["latin-1", "cp1252", "gb18030"])
def test_every_misreading_is_noticed(encoding, read_as):
    for written in {encoding, "utf-8"} - {read_as}:
        text = TEXTS[encoding].encode(written).decode(read_as, "ignore")
        assert find_mojibake(text), (written, text)


def test_utf8_read_as_gbk_without_punctuation():
    text = "中文编码问题".encode().decode("gb18030")
    assert text == "涓枃缂栫爜闂" or find_mojibake(text) == ("mojibake (UTF-8 read as GB18030)", 0)


@pytest.mark.parametrize(
    "text",
    [
        *TEXTS.values(),
        "The café's naïve façade — très élégant, señor!",
        "······ °C ±1×2÷3",
        "αβγδε Жизнь прожить",
        "①②③④⑤⑥⑦⑧ ｶﾀｶﾅ",
        "啊啊啊啊啊啊啊啊啊啊啊啊",
        "龘靐齉爩鱻麤灪龗",
        "學而時習之，不亦說乎？有朋自遠方來，不亦樂乎？",
        "Tiếng Việt có dấu",
    ],
)
def test_texts_as_they_were_written_are_none(text):
    assert find_mojibake(text) is None
