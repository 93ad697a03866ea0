"""The pages that people read: both READMEs, the samples' description, and all of docs/, in English and Chinese."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "README_zh.md", "datasets/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
# English page → Chinese page.
TWINS = {ROOT / "README.md": ROOT / "README_zh.md"} | {
    page: ROOT / "docs" / "zh" / page.relative_to(ROOT / "docs" / "en")
    for page in PAGES
    if page.is_relative_to(ROOT / "docs" / "en")
}


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of a language, without their fences."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands(text: str) -> list[str]:
    """The command lines of the text's blocks, each in one line, without comments.

    Those of bash blocks are for other machines: docs/run_page.py leaves them out.
    """
    lines = "".join(blocks(text, "(?:ba)?sh")).replace("\\\n", " ").splitlines()
    lines = [" ".join(re.sub(r"(^|\s)#\s.*", "", line).split()) for line in lines]
    return [line for line in lines if line]


def section(text: str, title: str) -> str:
    """What stands under a heading of the second level."""
    return text.split(f"\n## {title}\n")[1].split("\n## ")[0]
