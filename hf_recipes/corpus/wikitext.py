"""MediaWiki's markup as plain text, without a parser: what a reader sees as prose stays, boxes and tables go."""

import html
import re

# A link that is no number or test of a shell, a reference, a table, a heading on a line of its own, bold text.
MARKUP = re.compile(
    r"\[\[(?=[^\[\]\n]*[^\W\d])[^\s\[\]][^\[\]\n]*\]\]|<ref[\s>/]"
    r"|^[ :]*\{\||^(={2,6})[ \t]*[^=\s][^=\n]*\1[ \t]*$|'''[^'\n]+'''"
    r"|\{\{(?=[^{}\n]*\}\})[^{}\n]*[一-鿿]",
    re.M,
)
_INVISIBLE = re.compile(
    r"<!--(?:(?!<!--).)*?-->|<ref\b[^<>]*/>|<(ref|gallery|timeline|score|imagemap)\b[^<>]*>(?:(?!<\1\b).)*?</\1>"
    r"|__[A-Z]{3,}__"
    r"|^#(?:redirect|重定向)[^\n]*",
    re.S | re.M | re.I,
)
_TAG = re.compile(
    r"</?(?:abbr|big|blockquote|center|cite|del|div|em|font|i|ins|b|u|s|li|noinclude|includeonly|onlyinclude|nowiki|ol|p|poem"
    r"|references|ruby|rb|rt|rp|small|span|strong|sub|sup|tt|ul|var)\b[^<>]*>",
    re.I,
)
_BREAK = re.compile(r"<br\s*/?>", re.I)
_VARIANT = re.compile(r"-\{([^{}]*)\}-")
_TEMPLATE = re.compile(r"\{\{([^{}]*)\}\}")
_TABLE = re.compile(r"\{\|(?:(?!\{\||\|\}).)*\|\}", re.S)
_LINK = re.compile(r"\[\[([^\[\]]*)\]\]")
_NO_PROSE = re.compile(
    r"(?:file|image|media|category|文件|檔案|档案|图像|圖像|分类|分類|[a-z]{2,3}|zh-[a-z-]+) *:", re.I
)
_EXTERNAL = re.compile(r"\[(?:https?:)?//[^\s\[\]]+(?:[ \t]+([^\[\]\n]*))?\]")
_QUOTES = re.compile("'{2,5}")
_HEADING = re.compile(r"^(={1,6})(?!=)([^\n]+?)\1[ \t]*$", re.M)
_LIST = re.compile(r"^[*#:;]+[ \t]*", re.M)
_EMPTY_LINES = re.compile(r"\n{3,}")
MAX_DEPTH = 20  # of templates, tables and links within each other


def has_wiki_markup(text: str) -> bool:
    return bool(MARKUP.search(text))


def without_wiki_markup(text: str) -> str:
    """`text` without markup; links as their labels, lists as lines, -{zh-hans:…;zh-hant:…}- as the simplified text.

    A first line that the next one begins with (a title above an article) goes. A text without markup is unchanged.
    """
    if not has_wiki_markup(text):
        return text
    text = _BREAK.sub("\n", _INVISIBLE.sub("", text))
    text = _VARIANT.sub(_simplified, text)
    for pattern, shown in ((_TEMPLATE, _template_text), (_TABLE, ""), (_LINK, _label)):
        for _ in range(MAX_DEPTH):
            text, count = pattern.subn(shown, text)
            if not count:
                break
    text = _EXTERNAL.sub(lambda match: match[1] or "", text)
    text = _HEADING.sub(lambda match: match[2].strip(), _QUOTES.sub("", _TAG.sub("", text)))
    text = html.unescape(_LIST.sub("", text)).replace("\xa0", " ")
    text = _EMPTY_LINES.sub("\n\n", "\n".join(map(str.rstrip, text.split("\n")))).strip()
    title, _, rest = text.partition("\n")
    return rest.lstrip() if title and rest.lstrip().startswith(title) else text


def _simplified(match: re.Match) -> str:
    forms = dict(part.strip().split(":", 1) for part in match[1].rpartition("|")[2].split(";") if ":" in part)
    if not forms:
        return match[1]
    return next(
        (forms[name] for name in ("zh-hans", "zh-cn", "zh") if name in forms), next(iter(forms.values()))
    ).strip()


def _template_text(match: re.Match) -> str:
    """The text of ``{{lang|en|text}}``; nothing of any other template."""
    name, *parts = match[1].split("|")
    return (
        parts[-1].strip() if re.fullmatch(r"\s*(?:lang|nowrap|nobr|transl)(?:-\w+)?\s*", name, re.I) and parts else ""
    )


def _label(match: re.Match) -> str:
    target, _, label = match[1].partition("|")
    if _NO_PROSE.match(target.strip()):
        return ""
    return (label.rpartition("|")[2] or target.strip().lstrip(":")).strip()
