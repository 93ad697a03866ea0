"""Personal data in Chinese text, found by rules and checksums and replaced by placeholders.

Rules of our own: jionlp 1.5 (which brings 170 MB and reads about 3 MB/s with its eight extractors one after the other)
knows no checksums, bank cards, street addresses or members of a chat, and presidio has no recognizers for China.
"""

import ipaddress
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import date
from typing import NamedTuple

from hf_recipes.data.addresses import find_addresses
from hf_recipes.data.people import People
from hf_recipes.errors import UserError

PLACEHOLDERS = {
    "secret": "<密钥>",
    "email": "<邮箱>",
    "id_card": "<身份证号>",
    "bank_card": "<银行卡号>",
    "document": "<证件号>",
    "mobile": "<手机号>",
    "landline": "<座机号>",
    "person": "用户",  # and the person's number
    "qq": "<QQ号>",
    "wechat": "<微信号>",
    "ip": "<IP地址>",
    "plate": "<车牌号>",
    "address": "<地址>",
}


class Span(NamedTuple):
    """The characters [start, end) of a text, and what they are; `person` counts from 1."""

    start: int
    end: int
    kind: str
    person: int = 0


class Redactor:
    """Finds personal data and replaces it; each of `people` by a placeholder of their own (用户1, 用户2, …).

    Args:
        people: the members of the chat: names, or a mapping from one name to the other names of the same person
            (nickname → real name, QQ number, …). A name that is an ordinary word too is replaced only where it is
            mentioned (``@明天``) or heads a message (``明天：``). Of two people of one name, the first has it.
        kinds: keys of `PLACEHOLDERS`; all of them by default.

    Public numbers (10086, 12306, 400-…), private and loopback IP addresses and public name servers are no personal data.
    """

    def __init__(self, people: Mapping[str, Iterable[str]] | Sequence[str] = (), kinds: Collection[str] | None = None):
        unknown = sorted(set(kinds or ()) - set(PLACEHOLDERS))
        if unknown:
            raise UserError(f"unknown kind of personal data {unknown[0]!r}: choose of {', '.join(PLACEHOLDERS)}")
        kept = set(PLACEHOLDERS if kinds is None else kinds)
        self._people = People(people) if people and "person" in kept else None
        self._rules = [(gate, rule) for kind, gate, rule in _RULES if kind in kept]

    def find(self, text: str) -> list[Span]:
        """The spans of `text`, in order and apart from each other."""
        narrow = text.translate(_NARROW) if _WIDE.search(text) else text
        gates = {None: True}
        found: list[Span] = []
        for gate, rule in self._rules:
            if gate not in gates:
                gates[gate] = gate.search(narrow) is not None
            if gates[gate]:
                _add(found, rule(narrow))
        if self._people:
            people = [Span(start, end, "person", person) for start, end, person in self._people.find(text)]
            # A member's QQ number or account is that person, wherever it stands.
            weak = [span for span in found if span.kind in ("qq", "wechat") and _meets(span, people)]
            found = [span for span in found if span not in weak]
            _add(found, people)
        return sorted(found)

    def redact(self, text: str) -> tuple[str, Counter]:
        """`text` with placeholders, and how many of each kind. What is redacted already stays as it is."""
        pieces, position, counts = [], 0, Counter()
        for start, end, kind, person in self.find(text):
            pieces += [text[position:start], PLACEHOLDERS[kind], str(person) if person else ""]
            position = end
            counts[kind] += 1
        return "".join(pieces) + text[position:], counts


def _meets(span: Span, others: Iterable[Span]) -> bool:
    return any(span.start < other.end and other.start < span.end for other in others)


def _add(found: list[Span], spans: Iterable[Span]) -> None:
    for span in spans:
        if not _meets(span, found):
            found.append(span)


# Full-width letters, digits and the signs within numbers and mail addresses, one character for one.
_NARROW = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F) if chr(code - 0xFEE0).isalnum()}
_NARROW |= {ord(wide): narrow for wide, narrow in zip("＠．－＿＋　—–", "@.-_+ --", strict=True)}
_WIDE = re.compile(f"[{''.join(map(re.escape, map(chr, _NARROW)))}]")

_FIVE_DIGITS = re.compile(r"[0-9](?:[ -]?[0-9]){4}")
_LATIN = re.compile(r"[A-Za-z][A-Za-z0-9_-]{5}")
_LINK = re.compile(r"[?&]|://")
_AT = re.compile(r"@|[(（\[【] ?at\b", re.I)
_NOT_A_PERSONS = re.compile(r"(?:单号?|编号|流水号?|条码|号码包|批号|order|no\.?|#)[:： 是为号]*$", re.I)


def _before(text: str, position: int, count: int) -> str:
    return text[max(0, position - count) : position]


def _overlapping(pattern: re.Pattern, text: str) -> Iterator[re.Match]:
    position = 0
    while match := pattern.search(text, position):
        yield match
        position = match.start() + 1


def _group(kind: str, *patterns: re.Pattern) -> Callable[[str], Iterator[Span]]:
    """A rule: the first group of each match."""

    def find(text: str) -> Iterator[Span]:
        for pattern in patterns:
            for match in pattern.finditer(text):
                yield Span(*match.span(1), kind)

    return find


_SECRETS = _group(
    "secret",
    re.compile(
        r"[?&](?:[a-z_-]*(?:token|secret|passw(?:or)?d|pwd|sign|signature|auth_?key|api_?key|session(?:_?id)?|ticket|jwt)"
        r"|key(?==[\w-]{20}))=([^&#\s<>\"'，。；）)]+)",
        re.I,
    ),
    re.compile(r"://[^\s/:@]*:([^\s/<][^\s/]*)@"),
)

_EMAIL = re.compile(
    r"(?<![\w.+-])(?!git@)([\w.+-]{1,64}(?:@| ?[(（\[【] ?at ?[)）\]】] ?)(?:[a-z0-9-]+\.)+"
    r"(?!(?:png|jpe?g|gif|webp|svg|js|css|py|html?)\b)[a-z]{2,})",
    re.I | re.A,
)

_ID_CARD = re.compile(r"[1-8](?<![0-9][1-8])(?:[ -]?[0-9]){16}[ -]?[0-9Xx](?![0-9])")
_OLD_ID_CARD = re.compile(r"[1-8](?<![0-9][1-8])[0-9]{14}(?![0-9])")
_ID_WORD = re.compile(r"身份证|证件|公民身份|sfz|id.?card", re.I)
_PROVINCES = {
    *range(11, 16),
    *range(21, 24),
    *range(31, 38),
    *range(41, 47),
    *range(50, 55),
    *range(61, 66),
    71,
    81,
    82,
    83,
}


def _is_date(year: str, month: str, day: str) -> bool:
    try:
        return 1850 < date(int(year), int(month), int(day)).year <= date.today().year
    except ValueError:
        return False


def _id_cards(text: str) -> Iterator[Span]:
    """GB 11643: place, date of birth, sequence and a check digit modulo 11; the older form has no check digit."""
    for match in _overlapping(_ID_CARD, text):
        number = re.sub("[ -]", "", match[0]).upper()
        if int(number[:2]) in _PROVINCES and _is_date(number[6:10], number[10:12], number[12:14]):
            total = sum(int(digit) * 2 ** (17 - place) for place, digit in enumerate(number[:17]))
            if number[17] == "10X98765432"[total % 11] or _ID_WORD.search(_before(text, match.start(), 15)):
                yield Span(*match.span(), "id_card")
    for match in _OLD_ID_CARD.finditer(text):
        number = match[0]
        if _is_date("19" + number[6:8], number[8:10], number[10:12]) and int(number[:2]) in _PROVINCES:
            if _ID_WORD.search(_before(text, match.start(), 15)):
                yield Span(*match.span(), "id_card")


_BANK_CARD = re.compile(r"[2-9](?<![0-9A-Za-z_.][2-9])(?:[ -]?[0-9]){14,18}(?![0-9])")
_BANK_BINS = re.compile(r"62\d{14,17}|4\d{15}|5[1-5]\d{14}|35\d{14}|3[47]\d{13}|955[89]\d{12,15}")
_BANK_WORD = re.compile(r"卡号|银行|账[号户]|开户|工资卡|打款|转账|汇款|card", re.I)


def _passes_luhn(number: str) -> bool:
    """ISO/IEC 7812-1, annex B."""
    total = sum(map(int, number[-1::-2])) + sum(sum(divmod(2 * int(digit), 10)) for digit in number[-2::-2])
    return total % 10 == 0


def _bank_cards(text: str) -> Iterator[Span]:
    for match in _overlapping(_BANK_CARD, text):
        candidate = match[0]
        while len(number := re.sub("[ -]", "", candidate)) >= 15:
            known = _BANK_BINS.fullmatch(number) or _BANK_WORD.search(_before(text, match.start(), 12))
            if known and _passes_luhn(number) and not _NOT_A_PERSONS.search(_before(text, match.start(), 8)):
                yield Span(match.start(), match.start() + len(candidate), "bank_card")
                break
            candidate = candidate[: max(candidate.rfind(" "), candidate.rfind("-"), 0)]


_DOCUMENTS = _group(
    "document",
    re.compile(
        r"(?:护照|passport|通行证|台胞证|回乡证|军官证|士兵证|社保卡|医保卡|学号|学籍号|住院号|病历号|居住证|驾驶证|驾照|档案号"
        r"|准考证)(?:号码?|编号|no\.?|number|[:：#是为\s])*([A-Z]{0,3}[0-9]{6,14}[A-Z]?(?![0-9A-Z])|军字第[0-9]{5,8}号)",
        re.I,
    ),
)

_MOBILE = re.compile(
    r"((?:\+ ?86|86|0086)?[ -]?)(1[3-9][0-9](?:[ .-]?[0-9]{4}[ .-]?[0-9]{4}|[0-9][ -][0-9]{3}[ -][0-9]{4}"
    r"|[ -][0-9]{3}[ -][0-9]{5}))(?![0-9_]|\.[0-9]|(?![qvw])[a-z]|元|块|次|人|年|米|公里|个)",
    re.I,
)
_SPOKEN_MOBILE = re.compile(
    r"([一幺](?<![零〇一二三四五六七八九十幺][一幺])[三四五六七八九](?:[ -]?[零〇一二三四五六七八九幺]){9})(?![零〇一二三四五六七八九十幺])"
)
_CALLS = re.compile(r"(?:^|[^A-Za-z])(?:tel|phone|mobile|call|vx?|wx|qq|[mtp])$", re.I)


def _mobiles(text: str) -> Iterator[Span]:
    for match in _overlapping(_MOBILE, text):
        start = match.start() if match[1].strip(" -") else match.start(2)
        before = _before(text, start, 10)
        if before[-1:].isdigit() or (len(before) > 1 and before[-1] in "-." and before[-2].isdigit()):
            continue
        if re.search(r"[A-Za-z_.%]$", before) and not _CALLS.search(before):
            continue
        if not match[2].endswith("0000000") and not _NOT_A_PERSONS.search(before):
            yield Span(start, match.end(), "mobile")


_LANDLINE = re.compile(
    r"(?:\+ ?86[ -]?0?|[(（]0(?=[0-9]{2,3}[)）])|0(?<![0-9A-Za-z_.-]0))(?:10|2[0-9]|[3-9][0-9]{2})([)） -]{0,2})[2-9][0-9]{2,3}[ -]?[0-9]{4}"
    r"(?: ?(?:转分机|转|分机|ext\.?|-) ?[0-9]{1,6})?(?![0-9])",
    re.I,
)
_LOCAL_LANDLINE = re.compile(
    r"(?:座机|固话|固定电话|电话|tel)(?:号码?|[:：是\s])*([2-9][0-9]{2,3}[ -]?[0-9]{4})(?![0-9-])", re.I
)
_CALL_WORD = re.compile(r"电话|座机|固话|拨|打|传真|联系|tel|call|fax", re.I)


def _landlines(text: str) -> Iterator[Span]:
    for match in _LANDLINE.finditer(text):
        if match[1] or match[0][0] in "+(（" or _CALL_WORD.search(_before(text, match.start(), 10)):
            yield Span(*match.span(), "landline")
    for match in _LOCAL_LANDLINE.finditer(text):
        yield Span(*match.span(1), "landline")


_QQ = re.compile(
    r"(?:QQ|扣扣|企鹅|球球|(?<![A-Za-z])Q|扣)[号码群是为我加的发联系:：=(（，,\s]{0,6}([1-9][0-9]{4,10})"
    r"(?![0-9A-Za-z]|\.[0-9]|[万亿元人年次])",
    re.I,
)

_WECHAT_ID = r"([a-z](?:[a-z0-9]*[0-9_-])[a-z0-9_-]*(?<=[a-z0-9_-]{6}))(?<![a-z0-9_-]{21})(?![a-z0-9_-])"
_WECHATS = _group(
    "wechat",
    re.compile(r"(?:[微薇]信|v信|绿泡泡)(?:号码?|id|是|为|搜索?|加我?|联系|[:：\s(（])*" + _WECHAT_ID, re.I),
    re.compile(r"(?:微信号|微信id)(?:是|为|[:：\s])*([a-z][a-z0-9_-]{5,19})(?![a-z0-9_-])", re.I),
    re.compile(
        r"(?:[加+➕] ?我?(?:vx?|wx?)|(?<![a-z0-9_])(?:vx|wx|weixin|wechat)(?![a-z_-]))(?:号|id|是|为|[:：\s])*"
        + _WECHAT_ID,
        re.I,
    ),
    re.compile(r"(?:卫星|威信)(?:号?[:：]\s*|(?=[a-z0-9]+_))" + _WECHAT_ID, re.I),
)

_IPV4 = re.compile(r"[0-9]{1,3}(?:\.[0-9]{1,3}){3}(?![0-9A-Za-z]|\.[0-9])")
_IPV6 = re.compile(r"(?<![0-9A-Za-z:.])(?:[0-9a-f]{0,4}:){2,7}[0-9a-f]{1,4}(?![0-9A-Za-z:.])", re.I)
_VERSION_WORD = re.compile(r"(?:版本?|version|ver\.?|固件|升级|更新|升)[^0-9]{0,3}$", re.I)
_NAME_SERVERS = {"8.8.8.8", "8.8.4.4", "1.1.1.1", "1.0.0.1", "9.9.9.9", "114.114.114.114", "114.114.115.115"}
_NAME_SERVERS |= {"223.5.5.5", "223.6.6.6", "119.29.29.29", "180.76.76.76"}
_NOBODYS = [
    ipaddress.ip_network(network)
    for network in (
        *("0.0.0.0/8", "10.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16", "224.0.0.0/3"),
        *("::/127", "fc00::/7", "fe80::/10", "ff00::/8"),
    )
]


def _is_somebodys(address: str) -> bool:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    return address not in _NAME_SERVERS and not any(parsed in network for network in _NOBODYS)


def _ips(text: str) -> Iterator[Span]:
    for match in _IPV4.finditer(text):
        before = _before(text, match.start(), 10)
        # Four small numbers are a version or a section far oftener than an address.
        small = all(len(part) < 3 and int(part) < 32 for part in match[0].split("."))
        if re.search(r"[\w.]$|[A-Za-z]/$", before, re.A) or _VERSION_WORD.search(before):
            continue
        if _is_somebodys(match[0]) and (not small or re.search(r"ip\W{0,3}$", before, re.I)):
            yield Span(*match.span(), "ip")
    if "::" in text or text.count(":") > 6:
        for match in _IPV6.finditer(text):
            if len(re.findall("[0-9a-f]+", match[0], re.I)) > 2 and _is_somebodys(match[0]):
                yield Span(*match.span(), "ip")


_PLATE = re.compile(
    r"([京津沪渝冀豫云辽黑湘皖鲁新苏浙赣鄂桂甘晋蒙陕吉闽贵粤青藏川宁琼][A-HJ-NP-Z][·•. -]?"
    r"(?:[DF][A-HJ-NP-Z0-9][0-9]{4}|[0-9]{5}[A-K]|(?![A-Z0-9]{0,4}[A-Z][A-Z0-9]{0,3}[A-Z][A-Z0-9]{0,2}[A-Z])[A-HJ-NP-Z0-9]{5}"
    r"|[A-HJ-NP-Z0-9]{4}[挂学警港澳]))(?![A-Z0-9])",
    re.I,
)


_RULES: list[tuple[str, re.Pattern | None, Callable[[str], Iterator[Span]]]] = [
    ("secret", _LINK, _SECRETS),
    ("email", _AT, _group("email", _EMAIL)),
    ("id_card", _FIVE_DIGITS, _id_cards),
    ("bank_card", _FIVE_DIGITS, _bank_cards),
    ("document", _FIVE_DIGITS, _DOCUMENTS),
    ("mobile", _FIVE_DIGITS, _mobiles),
    ("mobile", None, _group("mobile", _SPOKEN_MOBILE)),
    ("landline", _FIVE_DIGITS, _landlines),
    ("qq", _FIVE_DIGITS, _group("qq", _QQ)),
    ("wechat", _LATIN, _WECHATS),
    ("ip", None, _ips),
    ("plate", None, _group("plate", _PLATE)),
    ("address", None, lambda text: (Span(*span, "address") for span in find_addresses(text))),
]
