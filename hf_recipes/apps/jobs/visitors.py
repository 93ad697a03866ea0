"""What each visitor has filled in and begun, by a cookie: a page that is opened again has it."""

import hashlib
import time
from pathlib import Path
from typing import Any

from hf_recipes.apps.jobs.jobs import FOLDER, read_json
from hf_recipes.core.files import write_json

COOKIE = "studio_visitor"


class Visitor:
    """`form` are the values of the page's fields by name, `jobs` the last job of each kind."""

    def __init__(self, root: Path, cookie: str | None):
        self.id = hashlib.sha256(cookie.encode()).hexdigest()[:16] if cookie else ""
        self.path = root / FOLDER / "visitors" / f"{self.id or 'nobody'}.json"
        kept = read_json(self.path)
        self.form: dict[str, Any] = {
            "stage": "sft",
            "language": "zh",
            "source": "hf",
            "count": 100,
            **kept.get("form", {}),
        }
        self.jobs: dict[str, str] = kept.get("jobs", {})
        self.changed: float = kept.get("changed", 0)

    def save(self, **form: Any) -> None:
        if form:
            self.form |= form
            self.changed = time.time()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.path, {"form": self.form, "jobs": self.jobs, "changed": self.changed})
