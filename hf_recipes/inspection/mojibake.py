"""Texts that were read in another encoding than they were written in."""

import re

# U+FFFD; a text in GBK that was read as another; UTF-8 read as GBK, in which 。，“ become 銆, 锛, 鈥; UTF-8 read as
# Latin-1 or cp1252, in which a Chinese character becomes a letter from ã to ï and two signs of the bytes 80 to BF.
_SIGNS = "€‚ƒ„…†‡ˆ‰Š‹Œ‘’“”•–—˜™š›œžŸŽ"  # of cp1252 for bytes from 80 to 9F
_SIGN = f"[\u0080-\u00bf{_SIGNS}]"
_KNOWN = re.compile(
    f"\ufffd|锟斤拷|烫烫烫|屯屯屯|[锛銆鈥]|(?:[\u00e3-\u00ef]{_SIGN}{{2}}){{2}}|Ã[\u0080-\u00bf]|Â[\u00a0-\u00bf]"
)
# Two bytes of a character, four times: the first is no ASCII.
_BYTES = re.compile(rf"(?:[\u0080-\u00ff{_SIGNS}][@-~\u0080-\u00ff{_SIGNS}]){{4,}}")
_WIDE = re.compile("[\u2e80-\ud7ff\ue000-\uffee\U00020000-\U0003ffff\u00b7\u00d7\u0391-\u0451\u2010-\u2642]+")
_UTF8 = re.compile(rb"(?:[\xe3-\xed][\x80-\xbf]{2}){2,}")
_HAN, _KANA, _HIRAGANA = re.compile("[㐀-鿿]"), re.compile("[ぁ-ヺ]"), re.compile("[ぁ-ん]")
_HANGUL, _PRIVATE = re.compile("[가-힣]"), re.compile("[\ue000-\uf8ff]")
_FREQUENT_HANGUL = re.compile("[이다는의에을를가하고지기리사은도로서한자시어나인있해대스아정그라니]")
SAMPLE, MIN_CHARACTERS = 600, 8
ENCODINGS = {"Shift-JIS": "cp932", "EUC-JP": "euc_jp", "EUC-KR": "cp949", "Big5": "big5", "GB18030": "gb18030"}


def find_mojibake(text: str) -> tuple[str, int] | None:
    """The kind of the first mojibake in `text`, as far as it can be known, and where it is; None without any."""
    if text.isascii():
        return None
    if match := _KNOWN.search(text):
        return "mojibake", match.start()
    if (match := _BYTES.search(text)) and len(set(match[0])) > 3 and (written := _read_as_latin(match[0])):
        return f"mojibake ({written} read as Latin-1)", match.start()
    wide = _WIDE.search(text)
    if wide and (written := _read_as_gb18030("".join(_WIDE.findall(text[wide.start() : wide.start() + SAMPLE])))):
        return f"mojibake ({written} read as GB18030)", wide.start()
    return None


def _read_as_latin(text: str) -> str | None:
    data = b"".join(sign.encode("cp1252" if sign in _SIGNS else "latin-1") for sign in text)
    for name, encoding in ENCODINGS.items():
        if _is_likely(name, _decoded(data, encoding)):
            return name
    return "another encoding"


def _read_as_gb18030(text: str) -> str | None:
    """The encoding of a text that was read as GB18030, of which `text` are the characters that are no ASCII."""
    if len(text) < MIN_CHARACTERS // 2:
        return None
    data = text.encode("gb18030", "ignore")
    if sum(map(len, _UTF8.findall(data))) > 0.6 * len(data):
        return "UTF-8"
    if len(text) < MIN_CHARACTERS or len(set(text)) < MIN_CHARACTERS // 2:
        return None
    # Japanese, and for Big5 Chinese in common characters, are no misreading, whatever else their bytes may be.
    is_japanese = len(_KANA.findall(text)) > 0.2 * len(text) and _common("EUC-JP", text) > 0.8
    is_chinese = max(_common("Big5", text), _common("GB18030", text)) > 0.7
    names = [name for name in ENCODINGS if name != "GB18030" and not (name == "Big5" and is_chinese)]
    likely = (name for name in names if _is_likely(name, _decoded(data, ENCODINGS[name])))
    return None if is_japanese else next(likely, None)


def _decoded(data: bytes, encoding: str) -> str:
    text = data.decode(encoding, "replace")
    return "" if text.count("\ufffd") > 0.05 * len(text) else text


def _is_likely(name: str, text: str) -> bool:
    """Whether `text` is in the language that an encoding is for, by its letters."""
    length = len(text)
    if length < 4:
        return False
    if name == "Shift-JIS":
        return len(_HIRAGANA.findall(text)) > 0.2 * length
    if name == "EUC-JP":
        return len(_KANA.findall(text)) > 0.2 * length and _common(name, text) > 0.9
    if name == "EUC-KR":
        hangul = len(_HANGUL.findall(text))
        return hangul > 0.8 * length and len(_FREQUENT_HANGUL.findall(text)) > 0.25 * hangul
    return _common(name, text) > 0.9 and len(_HAN.findall(text)) > 0.6 * length


def _common(name: str, text: str) -> float:
    """The share of the Chinese characters in `text`, with private-use ones, that an encoding has as common ones."""
    last = {"Big5": 0xC6, "EUC-JP": 0xCF, "GB18030": 0xD7}[name]
    han = _HAN.findall(text)
    if not han:
        return 1.0
    codes = (sign.encode("gb2312" if name == "GB18030" else ENCODINGS[name], "ignore") for sign in han)
    common = sum(len(code) == 2 and code[0] <= last for code in codes)
    return common / (len(han) + len(_PRIVATE.findall(text)))
