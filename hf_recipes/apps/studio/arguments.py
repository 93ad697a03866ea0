"""Settings of the studio."""

import os
from dataclasses import dataclass
from typing import Annotated, Literal

from hf_recipes.apps.access import check_access, is_loopback
from hf_recipes.core.arguments.limits import PositiveInt, at, check_limits
from hf_recipes.core.arguments.settings import setting


@dataclass
class StudioArguments:
    """Which folders the page may use, and who may connect."""

    root: list[str] | None = setting(
        "Folders that the page may read and write; commands run in the first. By default the working folder."
    )
    trainings: PositiveInt = setting("Trainings that run at the same time; others wait for their turn.", 1)
    max_upload_mb: PositiveInt = setting("Largest upload.", 200)
    trust_remote_code: bool = setting("Let the page run code that comes with a model or a checkpoint.", False)
    language: Literal["zh", "en"] | None = setting("At the start; by default the browser's.")
    port: Annotated[int, at(ge=1, le=65535)] = setting("Port of the page.", 7870)
    host: str = setting("Address of the page; others than 127.0.0.1 need --auth.", "127.0.0.1")
    auth: str | None = setting("user:password that visitors must give.")
    insecure: bool = setting("Let anybody in, where --host asks for --auth.", False)

    def __post_init__(self):
        check_limits(self)
        self.root = self.root or ["."]
        for folder in self.root:
            if not os.path.isdir(folder):
                raise ValueError(f"--root {folder}: no such folder")
        check_access(self.auth, self.insecure, {f"--host {self.host} lets the network in": not is_loopback(self.host)})
