"""What each visitor has filled in and begun, by a cookie: a page that is opened again has it."""

import hashlib
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_recipes.apps.jobs.jobs import FOLDER, read_json
from hf_recipes.core.files import write_json

COOKIE = "studio_visitor"
DEFAULTS = {"stage": "sft", "language": "zh", "source": "hf", "count": 100}
_saving = threading.Lock()  # of requests that come together, such as those of several fields


class Visitor:
    """`form` are the values of the page's fields by name, `jobs` the last job of each kind."""

    def __init__(self, root: Path, cookie: str | None):
        self.id = hashlib.sha256(cookie.encode()).hexdigest()[:16] if cookie else ""
        self.path = root / FOLDER / "visitors" / f"{self.id or 'nobody'}.json"
        self._read = read_json(self.path)
        self.form: dict[str, Any] = DEFAULTS | self._read.get("form", {})
        self.jobs: dict[str, str] = dict(self._read.get("jobs", {}))
        self.changed: float = self._read.get("changed", 0)

    def save(self, **form: Any) -> None:
        """Write what has changed here; what other requests have written since stays."""
        self.form |= form
        with _saving:
            kept = read_json(self.path)
            for name, values in (("form", self.form), ("jobs", self.jobs)):
                _update(values, self._read.get(name, {}), kept.get(name, {}))
            self.changed = time.time() if form else kept.get("changed", 0)
            self._read = {"form": dict(self.form), "jobs": dict(self.jobs), "changed": self.changed}
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self.path, self._read)


def _update(values: dict[str, Any], before: Mapping[str, Any], kept: Mapping[str, Any]) -> None:
    """Have in `values` what is `kept` where they do not differ from `before`."""
    changed = {name: value for name, value in values.items() if name not in before or before[name] != value}
    removed = before.keys() - values.keys()
    values.clear()
    values |= {name: value for name, value in kept.items() if name not in removed} | changed
