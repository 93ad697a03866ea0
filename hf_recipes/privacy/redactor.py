"""Replaces personal data in Chinese text by placeholders; rules and checksums find it.

Why no package: jionlp 1.5 knows no checksums, bank cards, street addresses or members of a chat, its eight
extractors in a row read 3 MB/s, and it brings 170 MB; presidio-analyzer 2.2 has no recognizers for China.
"""

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

from hf_recipes.core.errors import UserError
from hf_recipes.privacy import accounts, numbers
from hf_recipes.privacy.addresses import addresses
from hf_recipes.privacy.names import People, mentioned, people_named
from hf_recipes.privacy.spans import Rule, Span, plain

__all__ = ["PLACEHOLDERS", "Redactor", "Span", "mentioned"]

PLACEHOLDERS = {
    "secret": "<密钥>",
    "email": "<邮箱>",
    "id_card": "<身份证号>",
    "bank_card": "<银行卡号>",
    "document": "<证件号>",
    "birth_date": "<出生日期>",
    "mobile": "<手机号>",
    "landline": "<座机号>",
    "person": "用户",  # followed by the person's number
    "qq": "<QQ号>",
    "wechat": "<微信号>",
    "ip": "<IP地址>",
    "plate": "<车牌号>",
    "address": "<地址>",
}

# Cheap tests that skip a rule: most texts have few of these.
_digits = re.compile(r"[0-9](?:[^0-9A-Za-z一-鿿]{0,3}[0-9]){4}").search
_letters = re.compile(r"[A-Za-z][·•. -]{0,3}[A-Za-z0-9_-](?:[ -]?[A-Za-z0-9_-]){3}").search
_at_in_words = re.compile(r"[(（\[【 ](?:at|AT)|[(（\[【][aA][)）\]】]|艾特|圈[aA]|#[A-Za-z0-9-]+\.").search
_parameters = re.compile(
    "=|://|earer |密码|口令|[取问]码|[kK](?:ey|EY)|sk-|xox|hf_"
    "|gsk_|npm_|r8_|gh[pousr]_|_pat_|glpat|eyJ|AKI[AD]|LTAI|AIza|密钥|PRIVATE|oken|OKEN|assw|pwd|PASS"
    "|ecret|ECRET"
).search
_births = re.compile("生日|出生|DOB|irth").search


def _at(text: str) -> bool:
    return "@" in text or bool(_at_in_words(text))


def _points(text: str) -> bool:
    return text.count(".") > 2 or text.count(":") > 2


# The most certain rule first: of two overlapping spans, the first is kept.
_RULES: list[tuple[str, Callable | None, Rule]] = [
    ("secret", _parameters, accounts.secrets),
    ("email", _at, accounts.emails),
    ("id_card", _digits, numbers.id_cards),
    ("bank_card", _digits, numbers.bank_cards),
    ("document", _digits, numbers.documents),
    ("birth_date", _births, numbers.birth_dates),
    ("mobile", _digits, numbers.mobiles),
    ("landline", _digits, numbers.landlines),
    ("qq", _digits, accounts.qqs),
    ("wechat", _letters, accounts.wechats),
    ("ip", _points, accounts.ips),
    ("plate", _letters, numbers.plates),
    ("address", None, addresses),
    ("person", None, people_named),
]

_NAMES_OF_PEOPLE = ("qq", "wechat", "person")


class Redactor:
    """Finds personal data and replaces it, each of `people` by a placeholder with a number (用户1, 用户2, …).

    Names of others are replaced after 收件人, 联系人 and the like, without a number. Public numbers (10086, 12306,
    400-…), order and tracking numbers, private IP addresses and public name servers are no personal data.

    Args:
        people: the members of the chat: names, or a mapping from one name to other names of the same person
            (nickname → real name, QQ number, …). A name that is also an ordinary word is replaced only in a mention
            (``@明天``) or at the head of a message (``明天：``). Of two people with the same name, the first one is
            meant. Names also match without ornaments around them, and full names as given names in an address.
        kinds: keys of `PLACEHOLDERS`; all of them by default.
    """

    def __init__(self, people: Mapping[str, Iterable[str]] | Sequence[str] = (), kinds: Collection[str] | None = None):
        selected = set(PLACEHOLDERS if kinds is None else kinds)
        if unknown := sorted(selected - set(PLACEHOLDERS)):
            raise UserError(f"unknown kind of personal data {unknown[0]!r}: choose from {', '.join(PLACEHOLDERS)}")
        self._people = People(people) if people and "person" in selected else None
        self._rules = [(gate, rule) for kind, gate, rule in _RULES if kind in selected]

    def find(self, text: str) -> list[Span]:
        """The spans of `text`, in order and without overlaps."""
        narrow, positions = plain(text)
        gates: dict[Callable | None, bool] = {None: True}
        claimed, spans = bytearray(len(narrow)), []
        for gate, rule in self._rules:
            if gate not in gates:
                gates[gate] = bool(gate(narrow))
            if gates[gate]:
                spans += _claim(rule(narrow), claimed)
        spans = [span._replace(start=positions[span.start], end=positions[span.end]) for span in spans]
        if self._people:
            people, of_people = list(self._people.find(text)), bytearray(len(text))
            list(_claim(people, of_people))
            # A span that is both an account and a member is the member.
            kept = [span for span in spans if span.kind not in _NAMES_OF_PEOPLE or 1 not in of_people[slice(*span[:2])]]
            claimed = bytearray(len(text))
            spans = [*_claim(kept, claimed), *_claim(people, claimed)]
        return sorted(spans)

    def redact(self, text: str) -> tuple[str, Counter]:
        """`text` with placeholders, and their number by kind; placeholders in `text` are kept."""
        pieces, position, counts = [], 0, Counter()
        for start, end, kind, person in self.find(text):
            pieces += [text[position:start], PLACEHOLDERS[kind], str(person or "")]
            position = end
            counts[kind] += 1
        return "".join(pieces) + text[position:], counts


def _claim(spans: Iterable[Span], claimed: bytearray) -> Iterator[Span]:
    """Those of `spans` that overlap no earlier one and nothing `claimed` (a byte a character), where they are added."""
    for span in spans:
        if 1 not in claimed[span.start : span.end]:
            claimed[span.start : span.end] = b"\1" * (span.end - span.start)
            yield span
