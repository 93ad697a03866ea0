"""Personal numbers: cards, documents, telephones, number plates.

Each pattern begins with a set of characters, which Python's `re` finds far faster than an alternative or a look-behind.
"""

import re
from collections.abc import Iterator
from datetime import date

from hf_recipes.privacy.spans import Span, around, before, groups, overlapping

# Words before a number that counts something or names a thing.
_IMPERSONAL = re.compile(
    r"(?:单号?|编号|版本号?|销量"
    r"|流水号?|条码|批号|(?:激活|兑换|邀请|校验|序列)[码号]"
    r"|order|(?<!card )no\.?|#|(?:u|任务|作品|视频|商品)i?id|时间戳|毫秒戳?|第|伤害|战力|战斗力|[积得]分|经验"
    r"|[量额数]|余额|总[共计]|次方|等于|(?:房间|直播间|会议|频道)号?)[:： 是为有了打到达约号]*$",
    re.I,
)

_ID_CARD = re.compile(r"[1-9](?<![0-9][1-9])(?:[ ./_-]?[0-9]){16}[ ./_-]?[0-9Xx](?![0-9])")
_OLD_ID_CARD = re.compile(r"[1-8](?<![0-9][1-8])[0-9]{14}(?![0-9])")
_ID_WORD = re.compile(r"[份休户老代居留住]证|证件|证号|身份|户口|实名|永居|sfz|shenfen|id.?card", re.I)
_PROVINCES = {
    *range(11, 16),
    *range(21, 24),
    *range(31, 38),
    *range(41, 47),
    *range(50, 55),
    *range(61, 66),
    71,
    *range(81, 84),
}


def _is_of_a_person(number: str, year: str, rest: str) -> bool:
    """Whether an ID number begins with a province, and `year` and `rest` (month and day) are a date of birth."""
    try:
        born = date(int(year), int(rest[:2]), int(rest[2:]))
    except ValueError:
        return False
    # Permanent residents of other countries: 9, province, country.
    return int(number[1:3] if number[0] == "9" else number[:2]) in _PROVINCES and 1850 < born.year <= date.today().year


def id_cards(text: str) -> Iterator[Span]:
    """GB 11643: region, date of birth, sequence number and a check digit modulo 11, which the older form lacks.

    After a word for ID cards, a wrong check digit and the older form are accepted.
    """
    for match in overlapping(_ID_CARD, text):
        number = re.sub("[ ./_-]", "", match[0]).upper()
        if _is_of_a_person(number, number[6:10], number[10:14]):
            total = sum(int(digit) * 2 ** (17 - index) for index, digit in enumerate(number[:17]))
            if number[17] == "10X98765432"[total % 11] or _ID_WORD.search(around(text, match, 12)):
                yield Span(*match.span(), "id_card")
    for match in _OLD_ID_CARD.finditer(text):
        number, word = match[0], _ID_WORD.search(around(text, match, 12))
        if word and _is_of_a_person(number, "19" + number[6:8], number[8:12]):
            yield Span(*match.span(), "id_card")


_BANK_CARD = re.compile(r"[2-9](?<![0-9A-Za-z_.][2-9])(?:[ .·_-]?[0-9]){14,22}(?![0-9])")
# UnionPay, Visa, Mastercard, JCB, American Express, and ICBC's older cards.
_BANK_BINS = re.compile(r"62\d{14,17}|4\d{15}|5[1-5]\d{14}|35\d{14}|3[47]\d{13}|955[89]\d{12,15}")
_IN_FOURS = re.compile(r"[0-9]{4}(?:([ .·_-])[0-9]{4})(?:\1[0-9]{4}){2}")
_BANK_WORD = re.compile(
    r"卡号|招商|工商|银行|银联|[账帐][号户]|开户|[资用蓄记]卡|[打收]款|转[账帐]|汇款|存折|[工农建交中招]行|邮储|card|visa|万事达",
    re.I,
)


def _passes_luhn(number: str) -> bool:
    """ISO/IEC 7812-1, annex B."""
    total = sum(map(int, number[-1::-2])) + sum(sum(divmod(2 * int(digit), 10)) for digit in number[-2::-2])
    return total % 10 == 0


def _is_named(candidate: str, number: str, prefix: str, suffix: str) -> bool:
    known = _BANK_BINS.fullmatch(number) and (_BANK_WORD.search(f"{prefix} {suffix}") or _IN_FOURS.match(candidate))
    return bool(known or re.search("(?:卡号?|[账帐][号户]|存折号?)[:： 是为]*$", prefix))


def bank_cards(text: str) -> Iterator[Span]:
    """Luhn-valid numbers of a known issuer, in groups of four digits, or after a word for bank cards.

    In such groups and after such a word a wrong check digit of a known issuer is accepted, right after 卡号
    and 账号 any number.
    """
    for match in overlapping(_BANK_CARD, text):
        candidate, prefix, suffix = match[0], before(text, match.start(), 12), text[match.end() : match.end() + 6]
        while len(number := re.sub("[ .·_-]", "", candidate)) >= 15:
            known = _BANK_BINS.fullmatch(number) or _IN_FOURS.fullmatch(candidate) or _BANK_WORD.search(prefix)
            if (
                known
                and (_passes_luhn(number) or _is_named(candidate, number, prefix, suffix))
                and not _IMPERSONAL.search(prefix)
            ):
                yield Span(match.start(), match.start() + len(candidate), "bank_card")
                break
            candidate = candidate[: max(*map(candidate.rfind, " .·_-"), 0)]  # a date or a name may follow


documents = groups(
    "document",
    re.compile(
        r"(?:护照|passport|Passport|PASSPORT|通行证|台胞证|回乡证|军官证|士兵证|社保[卡号]|医保卡|学生证|工作证|教师证|记者证|律师证|毕业证|学位证|结婚证|房产证|行驶证|签证|学号|学籍号|工号|员工号|警官证|住院号|病历号|居[住留]证|永居证|公积金(?=账?号)|医保(?=编?号)|门诊号|就诊卡?(?=号)|诊疗卡|驾驶证"
        r"|驾照|档案号|准考证|身[份分]证)(?:字?号码?|(?:档案)?编号|[账帐]号|[Nn][Oo]\.?|number|[:：#(（是为\s])*"
        r"((?![ -]?(?:19|20)[0-9]{2}[ -](?:0?[1-9]|1[0-2])(?![0-9]))"
        r"[A-Za-z]{0,3}[ -]?[0-9](?:[ -]?[0-9]){4,17}[A-Za-z]?(?![0-9A-Za-z])"
        r"|[一-鿿]字第 ?[0-9]{5,8} ?号)"
    ),
    # Numbers of vehicles (ISO 3779) and of a household's meters.
    re.compile(r"(?:车架号?|车辆识别(?:代号|码)|VIN|vin)码?[:：是为\s]*([A-HJ-NPR-Za-hj-npr-z0-9]{17})(?![0-9A-Za-z])"),
    re.compile(r"(?:户号|缴费号|燃气号)[:：是为\s]*([0-9]{8,13})(?![0-9A-Za-z])"),
    re.compile(r"([A-Z]{1,2}(?<![A-Za-z0-9][A-Z])(?<![A-Za-z0-9][A-Z]{2})[0-9]{6}[(（][0-9A][)）])"),  # of Hong Kong
)

birth_dates = groups(
    "birth_date",
    re.compile(
        r"(?:出生(?:日期|年月日?)|我的?(?:[农阴阳新公]历)?生日|(?<![一-鿿\w])生日(?=[:： ])"
        r"|DOB|[Dd]ate of [Bb]irth|[Mm]y birthday)[:：是为\s]{0,3}(?:is )?"
        r"(?:[农阴阳新公]历)?((?:19|20)[0-9]{2} ?[-/.年] ?[0-9]{1,2} ?[-/.月] ?[0-9]{1,2}日?"
        r"|[0-9]{1,2}/[0-9]{1,2}/(?:19|20)[0-9]{2}|(?:19|20)[0-9]{6})(?![0-9])"
    ),
)

_SEPARATOR = "[^0-9A-Za-z一-鿿]"
_MARK = r"[^0-9A-Za-z一-鿿,，、;；:：%=<>\n]"
_NOT_A_COUNT = (
    r"(?![0-9]|_[0-9A-Za-z]|\.[0-9]|(?![QVWqvw])[A-Za-z]"
    r"| ?(?:美?元|次|公里|字节|积?分(?!机)|粉丝|票|位[访用顾]|[KMGT]?i?B(?![A-Za-z])|点(?:伤害|血|经验|攻击)))"
)
_MOBILE = re.compile(
    rf"1[3-9][0-9](?:{_MARK}{{0,3}}[0-9]{{4}}{_MARK}{{0,3}}[0-9]{{4}}|[0-9][ -][0-9]{{3}}[ -][0-9]{{4}}"
    rf"|[ -][0-9]{{3}}[ -][0-9]{{5}}){_NOT_A_COUNT}|1([^\w\s,，、])[3-9](?:\1[0-9]){{9}}(?! ?[0-9])"
    r"|1[3-9](?:[ .-][0-9]{2}){3}[ .-][0-9]{3}(?![0-9])"
)
# In other groups after a word for telephones only: 1 5 4 0 …
_SPACED_MOBILE = re.compile(rf"1{_SEPARATOR}{{0,3}}[3-9](?:{_SEPARATOR}{{0,3}}[0-9]){{9}}{_NOT_A_COUNT}")
# Of Hong Kong, Macau and Taiwan; of other countries in groups; of North America.
_ABROAD = re.compile(
    r"(?:(?:\+ ?|00)(?:852|853|886)|85[23](?<![0-9A-Za-z_.-]...)(?=[ )）-])[)）]?)(?:[ -]?[0-9]){8,10}(?![0-9])"
    r"|\+(?<![0-9A-Za-z)）=]\+) ?(?!86)[1-9][0-9]{0,2}[ -](?:[ ()-]{0,2}[0-9]){8,11}(?![0-9])"
    r"|(?<![0-9A-Za-z])[(][2-9][0-9]{2}[)] ?[2-9][0-9]{2}-[0-9]{4}(?![0-9-])"
)
_TAIWANESE = re.compile(r"0(?<![0-9A-Za-z_.-]0)9[0-9]{2}([ -]?)[0-9]{3}\1[0-9]{3}(?![0-9])")
_PHONE_WORD = re.compile(
    r"(?:手 ?机|电 ?话|号码?|我的|联系|致电|拨|打|加|短信|tel|phone|mobile|call|[☎📞📱])[^0-9]{0,6}$", re.I
)
_PHONE_WORD_AFTER = re.compile("[^0-9A-Za-z]{0,4}(?:手机|电话)|[ ，,]{0,2}(?:[加打拨]我|联系我|找我|微信)")
_COUNTRY = re.compile(r"(?:\+ ?|00|(?<![0-9]))86[ -]?$")
_CALL = re.compile(r"(?:^|[^A-Za-z])(?:tel|phone|mobile|call|vx?|wx|qq|[mtp])$", re.I)
_WITHIN = re.compile(r"[0-9A-Za-z]_?$|[.%]$|[0-9]-$")
# A name in code or in a formula: seed=, x =
_ASSIGNED = re.compile(
    r"(?<![A-Za-z_])(?!\w*(?:tel|phone|mobile|contact|call|number))[A-Za-z_]\w* ?=[ \"']?$|[0-9)] ?= ?$", re.I | re.A
)


def mobiles(text: str) -> Iterator[Span]:
    for match in overlapping(_SPACED_MOBILE, text):
        start, prefix = match.start(), before(text, match.start(), 10)
        if country := _COUNTRY.search(prefix):
            start, prefix = start - len(country[0]), prefix[: country.start()]
        if (
            (_WITHIN.search(prefix) and not _CALL.search(prefix))
            or _IMPERSONAL.search(prefix)
            or _ASSIGNED.search(prefix)
        ):
            continue
        if (
            _MOBILE.match(match[0]) or _PHONE_WORD.search(prefix) or _PHONE_WORD_AFTER.match(text, match.end())
        ) and not match[0].endswith("0000000"):  # an amount
            yield Span(start, match.end(), "mobile")
    for match in _ABROAD.finditer(text):
        yield Span(*match.span(), "mobile")
    for match in _TAIWANESE.finditer(text):
        if match[1] or _PHONE_WORD.search(before(text, match.start(), 10)):
            yield Span(*match.span(), "mobile")


_LANDLINE = re.compile(
    r"[+(（08](?:(?<=\+) ?86[ -]?0?|(?<=8)(?<![0-9A-Za-z_.-]8)6-0?"
    r"|(?<=0)086[ -]|(?<=[(（])0(?=[0-9]{2,3}[)）])|(?<=0)(?<![0-9A-Za-z_.-]0))"
    r"(?:10|2[0-9]|[3-9][0-9]{2})([)） .·—–-]{0,3})[2-9][0-9]{2,3}[ .·-]{0,3}[0-9]{4}"
    r"(?: ?(?:转分机|转|分机|[Ee]xt\.?|-) ?[0-9]{1,6})?(?![0-9])"
    r"|(?:[(（]0[2-8][0-9]?[)）] ?|0(?<![0-9A-Za-z_.-]0)[2-8]-)[2-9][0-9]{2,3}[ -]?[0-9]{4}(?![0-9])"  # of Taiwan
)
_LOCAL = re.compile(
    r"(?:座机|固话|固定电话|电话|传真|tel|Tel|TEL)(?:号码?|[:：是系\s])*([2-9][0-9]{2,3}[ -]?[0-9]{4})(?![0-9-])"
    r"|(?:电话|手提|[Mm]obile|[Pp]hone|[Ww]hats[Aa]pp)"
    r"[俾畀给我啦嘅系是号码:：，, ]{0,8}((?!(?:19|20)[0-9]{2}[ -])[2-9][0-9]{3}[ -]?[0-9]{4})(?![0-9-])"
)
_ANOTHER = re.compile(r"[ 　、,，/和或]{1,2}([2-9][0-9]{6,7})(?![0-9.-])")
_CALL_WORD = re.compile(r"电话|座机|固话|拨|打|传真|联系|[专热]线|总机|前台|tel|call|fax", re.I)


def landlines(text: str) -> Iterator[Span]:
    for match in _LANDLINE.finditer(text):
        if match[1] or match[0][0] != "0" or match[0][2] == "-" or _CALL_WORD.search(before(text, match.start(), 10)):
            yield Span(*match.span(), "landline")
    for match in _LOCAL.finditer(text):
        while match:
            yield Span(*match.span(match.lastindex), "landline")
            match = _ANOTHER.match(text, match.end())


_OFFICE = r"([京津沪渝冀豫云辽黑湘皖鲁新苏浙赣鄂桂甘晋蒙陕吉闽贵粤青藏川宁琼](?<![里讯为度翼动]云) {0,2}"
# GA 36: a province, an office, and five characters (six for electric cars), at most two of them letters, never O or I.
plates = groups(
    "plate",
    re.compile(
        _OFFICE + r"[A-HJ-NP-Za-hj-np-z][·•.・･ —–-]{0,3}(?:[A-HJKa-hjk][·•. -]?[A-HJ-NP-Za-hj-np-z0-9][0-9]{4}"
        r"|[0-9](?: [0-9]){4,5}|[0-9]{5}[A-Ka-k]|[A-HJ-NP-Za-hj-np-z0-9]{4}[挂学警港澳]"
        r"|(?=[0-9]*(?:[A-Za-z][0-9]*){0,2}(?![0-9A-Za-z]))[A-HJ-NP-Za-hj-np-z0-9]{5}))(?![A-Za-z0-9]|\.[0-9])"
    ),
    # In pieces: at least two digits, and two letters at the most.
    re.compile(
        _OFFICE + r"[A-HJ-NP-Z][·•.・･ —–-]{0,3}(?=(?: ?[A-HJ-NP-Z])*(?: ?[0-9]){2}|(?: ?[0-9] ?[A-HJ-NP-Z]){2})"
        r"(?=(?: ?[0-9])*(?: ?[A-HJ-NP-Z](?: ?[0-9])*){0,2}(?! ?[A-Z0-9]))[A-HJ-NP-Z0-9](?: ?[A-HJ-NP-Z0-9]){4,5})"
        r"(?! ?[A-Za-z0-9]|\.[0-9])"
    ),
)
