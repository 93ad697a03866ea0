"""Names of people: the members of a chat, and addressees of parcels and forms."""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cache
from importlib.resources import files

from hf_recipes.privacy.spans import Span, groups

_joined = re.compile("[A-Za-z0-9_]{2}").fullmatch  # ASCII names match whole words, numbers whole numbers
_joined_digits = re.compile("[0-9]{2}").fullmatch
_COMMON = 10  # smallest count in jieba's corpus of an ordinary word

# The surnames of 95 % of the people of China, and the commonest of two characters.
_SURNAMES = (
    "王李张刘陈杨黄赵吴周徐孙马朱胡郭何高林罗郑梁谢宋唐许韩冯邓曹彭曾肖田董袁潘于蒋蔡余杜叶程苏魏吕丁任沈姚卢姜崔钟谭陆汪范金石廖贾夏韦付方白邹孟熊秦邱江"
    "尹薛闫段雷侯龙史陶黎贺顾毛郝龚邵万钱严覃武戴莫孔向汤傅康易乔赖文施洪季窦满柴柳祁岑庄翁骆樊殷齐梅盛倪俞章鲁葛詹关蓝牛游符"
)
_SURNAME = f"(?:欧阳|司马|上官|诸葛|司徒|东方|皇甫|尉迟|慕容|令狐|[{_SURNAMES}])"
_FULL_NAME = re.compile(rf"{_SURNAME}([一-鿿]{{2}})").fullmatch
_TITLE = "先生|女士|小姐|同学|老师|师傅"

_addressees = groups(
    "person",
    re.compile(
        r"(?:[收寄联申持户姓](?:(?<=[收寄])[件货]人|(?<=联)系人|(?<=申)请人|(?<=持)卡人|(?<=[户姓])名)(?:[:：是为叫\s]{1,3}|(?=[一-鿿]{2,4}"
        rf"(?:{_TITLE}))))({_SURNAME}(?!{_TITLE})[一-鿿]{{1,2}}?)(?=$|[^一-鿿]|{_TITLE}|[收的])"
    ),
)


def addressees(text: str) -> Iterator[Span]:
    """Full names after 收件人, 联系人, 户名 and the like, of people who are no members."""
    for span in _addressees(text):
        if text[span.start : span.end] not in _ordinary_words():
            yield span


@cache
def _ordinary_words() -> frozenset[str]:
    """Words of jieba's dictionary (lines of word, count and part of speech) that are not names of people."""
    rows = (line.split(" ") for line in (files("jieba") / "dict.txt").read_text("utf-8").splitlines())
    return frozenset(word for word, count, tag in rows if int(count) >= _COMMON and not tag.startswith("nr"))


def _is_ordinary(name: str) -> bool:
    if len(name) == 1 or (name.isascii() and len(name) < 3) or (name.isdigit() and len(name) < 5):
        return True
    return name in _ordinary_words()


_MENTION = re.compile(r"(?<![0-9A-Za-z_.+-])[@＠]([^\s@＠]{1,40})(?=\s|$)")
_EVERYONE = {"全体成员", "所有人", "全体群员", "管理员", "all", "everyone"}


def mentioned(text: str) -> list[str]:
    """Names in mentions as chat clients write them: ``@name`` before a space or the end."""
    return [name for name in _MENTION.findall(text) if name not in _EVERYONE]


# Symbols without punctuation: the nickname "真的吗？" must not match 真的吗.
_ORNAMENTS = r"[^0-9A-Za-z一-鿿\s!-/:-@\[-`{-~、。，！？：；…—～·“”‘’「」『』《》【】（）]+"
_WITH_ORNAMENTS = re.compile(rf"^{_ORNAMENTS}|{_ORNAMENTS}$")


def _variants(name: str) -> Iterator[str]:
    """`name` without ornaments around it (``ღ糖糖ღ``), and in lower and upper case unless it is a mere word."""
    bare = _WITH_ORNAMENTS.sub("", name)
    if len(re.findall("[一-鿿]", bare)) > 1:
        yield bare
    if name.isascii() and not name.isalpha():
        yield from (name.lower(), name.upper())


class People:
    """Finds names of `people`; see `Redactor`."""

    def __init__(self, people: Mapping[str, Iterable[str]] | Sequence[str]):
        named = people if isinstance(people, Mapping) else dict.fromkeys(people, ())
        self._numbers: dict[str, int] = {}
        for number, (name, others) in enumerate(named.items(), 1):
            for each in (name, *others):
                self._numbers.setdefault(each.strip(), number)
        for name, number in list(self._numbers.items()):
            for variant in _variants(name):
                self._numbers.setdefault(variant, number)
        given = {}
        for name, number in self._numbers.items():
            if match := _FULL_NAME(name):
                given.setdefault(match[1], number)
        # A member whose name is a placeholder needs no other one.
        for name in ("", *(f"用户{number}" for number in range(1, len(named) + 1))):
            self._numbers.pop(name, None)
        ordinary = {name for name in self._numbers if _is_ordinary(name)}
        self._words = _Names(ordinary | given.keys())
        self._names = _Names(self._numbers.keys() - ordinary)
        self._given = _Names(given.keys() - self._numbers.keys())
        self._numbers = given | self._numbers

    def find(self, text: str) -> Iterator[Span]:
        for start, end in self._names.find(text):
            name = text[start:end]
            joined = _joined_digits if name.isdigit() else _joined
            if not (joined(text[max(0, start - 1) : start + 1]) or joined(text[end - 1 : end + 1])):
                yield Span(start, end, "person", self._numbers[name])
        for address in _ADDRESS.finditer(text) if self._words else ():
            start = address.end()
            end = self._words.end(text, start)
            if end and (_AFTER_HEADER if address[0] == "" else _AFTER_MENTION).match(text, end):
                yield Span(start, end, "person", self._numbers[text[start:end]])
        for start, end in self._given.find(text):
            if _ADDRESSED.match(text, end) or self._is_called(text, start, end):
                yield Span(start, end, "person", self._numbers[text[start:end]])

    @staticmethod
    def _is_called(text: str, start: int, end: int) -> bool:
        """Whether the given name [start, end) opens a message, and is no ordinary word."""
        is_first = start == 0 or text[start - 1] == "\n"
        return bool(is_first and _AFTER_MENTION.match(text, end)) and not _is_ordinary(text[start:end])


_ADDRESS = re.compile("[@＠]|回复 ?|^", re.M)
_AFTER_MENTION = re.compile(r"[\s,，。:：!！?？@＠]|$")
_ADDRESSED = re.compile(rf"[哥姐]|{_TITLE}")
_AFTER_HEADER = re.compile(r"\s?(?:[:：(（]|<[\w.+-]+@)")


class _Names:
    """A trie of names: searching for many names costs little more than for few."""

    def __init__(self, names: Collection[str]):
        self._tree: dict = {}
        for name in names:
            node = self._tree
            for sign in name:
                node = node.setdefault(sign, {})
            node[""] = {}
        self._first = re.compile(f"[{''.join(map(re.escape, self._tree))}]") if names else None

    def __bool__(self) -> bool:
        return self._first is not None

    def end(self, text: str, start: int) -> int:
        """The end of the longest name that begins at `start`, or 0."""
        node, end = self._tree, 0
        for position in range(start, len(text)):
            node = node.get(text[position])
            if node is None:
                break
            if "" in node:
                end = position + 1
        return end

    def find(self, text: str) -> Iterator[tuple[int, int]]:
        position = 0
        for first in self._first.finditer(text) if self._first else ():
            start = first.start()
            if start >= position and (end := self.end(text, start)):
                yield start, end
                position = end
