"""Encodings of Chinese, Japanese and Korean text that is not UTF-8."""

import codecs
import re
import unicodedata

from hf_recipes.core.errors import UserError

NAMES = {
    "utf-8": "UTF-8",
    "gb18030": "GB18030",
    "cp950": "Big5",
    "cp932": "Shift-JIS (cp932)",
    "euc_jp": "EUC-JP",
    "cp949": "EUC-KR (cp949)",
    **dict.fromkeys(("utf-16", "utf-16-le", "utf-16-be"), "UTF-16"),
    "utf-32": "UTF-32",
}
MIN_KOREAN = 24  # characters: of so many Chinese ones in GB18030, some are no Korean syllables in EUC-KR
_KANA, _HANGUL = re.compile("[\u3041-\u30fe]"), re.compile("[\uac00-\ud7a3]")


def encoding_name(encoding: str) -> str:
    return NAMES.get(encoding, encoding)


def known_encoding(name: str) -> str:
    """The codec of an encoding that a user names.

    Raises:
        UserError: there is no such encoding of text.
    """
    try:
        "".encode(name)
    except LookupError:
        raise UserError(f"--encoding {name}: unknown; for example shift_jis, big5, euc_jp, euc_kr, gb18030") from None
    codec = codecs.lookup(name).name
    return codec.removesuffix("-sig") if codec.startswith("utf-") else name.lower().replace("_", "-")


def wide_encoding(first_bytes: bytes) -> str | None:
    """UTF-16 or UTF-32, by a byte order mark, or UTF-16 without one, in which every second byte of ASCII is zero."""
    if first_bytes.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "utf-32"
    if first_bytes.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    high, low = (first_bytes[start : 1 << 12 : 2].count(0) for start in (0, 1))
    # 一 is U+4E00, so a few of the others are zero too.
    if max(high, low) < max(4 * min(high, low), min(len(first_bytes), 1 << 12) / 40, 2):
        return None
    return "utf-16-le" if low > high else "utf-16-be"


def likely_encoding(sample: bytes) -> str:
    """The encoding that fits lines that are not UTF-8: the one whose characters are the frequent ones of a language.

    Japanese has kana, Korean hardly anything but syllables, and nine in ten Chinese characters are of the frequent
    half of GB 2312 or of Big5, which the bytes of the other encoding are not.
    """
    texts = {}
    for encoding in ("gb18030", "cp950", "cp932", "euc_jp", "cp949"):
        try:
            text = codecs.getincrementaldecoder(encoding)().decode(sample)  # which may end within a character
            texts[encoding] = [sign for sign in text if ord(sign) > 127]
        except UnicodeDecodeError:
            continue
    letters = {name: [sign for sign in text if unicodedata.category(sign)[0] == "L"] for name, text in texts.items()}

    def share(encoding: str, is_frequent) -> float:
        signs = letters.get(encoding)
        return sum(map(is_frequent, signs)) / len(signs) if signs else 0.0

    for encoding in ("cp932", "euc_jp"):
        if share(encoding, lambda sign: bool(_KANA.match(sign))) >= 0.25:
            return encoding
    if len(letters.get("cp949", ())) >= MIN_KOREAN and share("cp949", lambda sign: bool(_HANGUL.match(sign))) > 0.97:
        return "cp949"
    chinese = share("gb18030", lambda sign: b"\xb0\xa1" <= sign.encode("gb18030") <= b"\xd7\xf9")
    traditional = share("cp950", lambda sign: b"\xa4\x40" <= sign.encode("cp950") <= b"\xc6\x7e")
    return "cp950" if traditional > 0.85 and traditional > chinese + 0.2 else "gb18030"
