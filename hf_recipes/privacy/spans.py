"""Spans of personal data, and helpers of the rules."""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple
from unicodedata import digit, normalize

# Full-width, circled, mathematical and raised letters and digits → ASCII, character by character.
_STYLED = [0xB2, 0xB3, 0xB9, *range(0x2070, 0x2500), *range(0xFF01, 0xFF5F), *range(0x1D400, 0x1D800)]
_ASCII = {code: ascii for code in _STYLED if len(ascii := normalize("NFKC", chr(code))) == 1 and ascii.isalnum()}
# ⑴ ⒈ ⓵ ❶ ➀
_ASCII |= {
    code: str(value)
    for code in [*range(0x2460, 0x2500), *range(0x2776, 0x2794)]
    if 0 <= (value := digit(chr(code), -1)) < 10
}
_ASCII |= {ord(wide): ascii for wide, ascii in zip("＠．－＿＋＃［］\u3000", "@.-_+#[] ", strict=True)}
_is_styled = re.compile("[²³¹⁰-⓿❶-➓０-９Ａ-Ｚａ-ｚ＠．－＿＋＃［］\u3000\U0001d400-\U0001d7ff]").search

# What has no width: the frame of 1️⃣, joiners, variation selectors.
_MARKS = "\u00ad\u200b-\u200f\u2060\u20e3\ufe0e\ufe0f\ufeff"
_MARK = re.compile(f"[{_MARKS}]")
# Traditional forms of the characters that the rules know.
_SIMPLIFIED = str.maketrans(
    "佔來侷係倉個們傳傷億儲內兩別劉動務勞匯區厙厤厲叢吳呂咼員問喬單嗎噹嚮嚴國圍園堯報場塊塗壽夾婁媽孫學宮實寧寫專尋層"
    "巖帥師帳幹庫廈廣廳張強後從復愛慶慼應懷戰戶捨掛換摳摺撥擊數旂時晉暫曆曠書會東枴柺條棟楊業榦榮樂樓標樺機檔檯櫃權欒"
    "歐歷沒況湯準溫滬滿濛瀋灣為烏無熱爺爾獨瓊產畢當發監盧碼祿稅稱穀積竇箇節範篤簡簽粵紀約紅納級組結絡給絲經綠維線編緱"
    "練縣總繆繫羅羋習聞聯聶肅脫臺與舖荊莊華萇萬葉蒼蓋蔣蕭薊薑薩藍藺蘆蘇蘭處號衕衚衛袷裡複見視覺訂計訊託記訪許証話說誰"
    "談請諶諸謝證譙譚護豐貝負貢貨責貳貴費賀賁資賈賞賣賬賴賽贛趙車軌軍軒軟輝轅轉辦農迴這連週進遊達遞遲選遼還邊郟郵鄉鄒"
    "鄔鄧鄭鄴鄺酈醫鈕銀銷鋪錢錶鍾鎖鎮鐘鐵鑰長門閃開間閔閩閻闕關闞陝陰陳陸陽隊際險雋離難雲電韋韓頂項預領頻額顏顓顧飛養"
    "餘館饒馬馮駕駛駱驗體髮鬆鬥魚魯鮑鮮鳳鵝鹹麥黃點黨齊龍龐龔",
    "占来局系仓个们传伤亿储内两别刘动务劳汇区厍历厉丛吴吕呙员问乔单吗当向严国围园尧报场块涂寿夹娄妈孙学宫实宁写专寻层"
    "岩帅师帐干库厦广厅张强后从复爱庆戚应怀战户舍挂换抠折拨击数旗时晋暂历旷书会东拐拐条栋杨业干荣乐楼标桦机档台柜权栾"
    "欧历没况汤准温沪满蒙沈湾为乌无热爷尔独琼产毕当发监卢码禄税称谷积窦个节范笃简签粤纪约红纳级组结络给丝经绿维线编缑"
    "练县总缪系罗芈习闻联聂肃脱台与铺荆庄华苌万叶苍盖蒋萧蓟姜萨蓝蔺芦苏兰处号同胡卫夹里复见视觉订计讯托记访许证话说谁"
    "谈请谌诸谢证谯谭护丰贝负贡货责贰贵费贺贲资贾赏卖账赖赛赣赵车轨军轩软辉辕转办农回这连周进游达递迟选辽还边郏邮乡邹"
    "邬邓郑邺邝郦医钮银销铺钱表钟锁镇钟铁钥长门闪开间闵闽阎阙关阚陕阴陈陆阳队际险隽离难云电韦韩顶项预领频额颜颛顾飞养"
    "余馆饶马冯驾驶骆验体发松斗鱼鲁鲍鲜凤鹅咸麦黄点党齐龙庞龚",
)
_is_traditional = re.compile(f"[{''.join(map(chr, _SIMPLIFIED))}]").search

_NUMERALS = "零〇一二三四五六七八九幺两壹贰叁肆伍陆柒捌玖洞拐勾"
_DIGITS = str.maketrans(_NUMERALS + "，,、", "0012345678912123456789079   ")
_has_numeral = re.compile(f"[{_NUMERALS}]").search
_SPELT = re.compile(rf"[{_NUMERALS}0-9A-Z](?:[ ,，、.·•・･—–/-]?[{_NUMERALS}0-9A-Z]){{4,}}(?![十百千万亿])")
# Letters for digits: l38OO627159.
_LETTERED = re.compile(r"(?<![A-Za-z0-9_])(?:[0-9]|[lI](?=[ .-]?[3-9]))(?:[ .·_-]?[0-9lIOo]){5,}(?![A-Za-z0-9_])")
_has_lettered = re.compile("[0-9][ .-]?[lIOo]|[lI][ .-]?[3-9]").search
_LETTERS = str.maketrans("lIOo", "1100")


def plain(text: str) -> tuple[str, Sequence[int]]:
    """`text` as the rules read it, and the position in `text` of each of its characters and of its end.

    Styled letters and runs of five or more digits with Chinese ones or letters for digits are in ASCII, characters are
    simplified.
    """
    positions: Sequence[int] = range(len(text) + 1)
    if _MARK.search(text):
        positions = [position for position, sign in enumerate(text) if not _MARK.match(sign)] + [len(text)]
        text = _MARK.sub("", text)
    if _is_styled(text):
        text = text.translate(_ASCII)
    if _is_traditional(text):
        text = text.translate(_SIMPLIFIED)
    if _has_numeral(text):
        text = _SPELT.sub(lambda run: run[0].translate(_DIGITS) if _has_numeral(run[0]) else run[0], text)
    if _has_lettered(text):
        text = _LETTERED.sub(lambda run: run[0].translate(_LETTERS), text)
    return text, positions


class Span(NamedTuple):
    """The characters [start, end) of a text and their kind; `person` counts from 1."""

    start: int
    end: int
    kind: str
    person: int = 0


Rule = Callable[[str], Iterator[Span]]


def groups(kind: str, *patterns: re.Pattern) -> Rule:
    """A rule: the first group of each match of each pattern."""

    def find(text: str) -> Iterator[Span]:
        for pattern in patterns:
            for match in pattern.finditer(text):
                yield Span(*match.span(1), kind)

    return find


def overlapping(pattern: re.Pattern, text: str) -> Iterator[re.Match]:
    """All matches, including those that begin within another."""
    position = 0
    while match := pattern.search(text, position):
        yield match
        position = match.start() + 1


def before(text: str, position: int, count: int) -> str:
    return text[max(0, position - count) : position]


def around(text: str, match: re.Match, count: int) -> str:
    return f"{before(text, match.start(), count)} {text[match.end() : match.end() + count]}"
