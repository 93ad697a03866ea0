"""docs/en/families.md and its Chinese twin say of each family what its tiny model was tested for."""

import re

from models.tiny_families import FAMILIES

from conftest import ROOT


def test_the_table_is_what_is_tested():
    for language in ("en", "zh"):
        text = (ROOT / "docs" / language / "families.md").read_text(encoding="utf-8")
        rows = re.findall(r"^\| ([^|]+) \| [^|]+ \| `lora_(\w+)\.json` \| (\S+) \| (\S+) \|$", text, re.MULTILINE)
        apart, yes = ("apart", "yes") if language == "en" else ("互不可见", "有")
        assert {name: (lora, packs == apart, rewards == yes) for name, lora, packs, rewards in rows} == {
            name: (family.lora, family.packs, family.rewards) for name, family in FAMILIES.items()
        }
