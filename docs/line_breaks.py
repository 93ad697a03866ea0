"""A line break between two Chinese characters is no space; in HTML it would be one."""

import re

CHINESE = "[\u3000-\u303f\u3400-\u9fff\uff00-\uffef]"
FENCED = re.compile(r"^(```.*?^```)$", re.MULTILINE | re.DOTALL)


def on_page_markdown(markdown: str, **kwargs) -> str:
    parts = FENCED.split(markdown)  # every second one is a fenced block
    parts[::2] = [re.sub(f"(?<={CHINESE})\n *(?={CHINESE})", "", part) for part in parts[::2]]
    return "".join(parts)
