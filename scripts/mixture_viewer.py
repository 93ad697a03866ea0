"""Set the shares of a mixture in the browser, and write the policy that pretrain.py --mixture takes.

python scripts/mixture_viewer.py --folder data
python scripts/mixture_viewer.py --port 8600 --lang en
"""

if __name__ == "__main__":
    from hf_recipes.command.script import begin_script

    begin_script()

import os
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

import hf_recipes
from hf_recipes.apps.ports import free_port
from hf_recipes.core.arguments.settings import Parser, setting
from hf_recipes.core.errors import UserError, say
from hf_recipes.core.script import run_script

PAGE = os.path.join(hf_recipes.__path__[0], "apps", "mixture", "viewer.py")
SETTINGS = {
    "server.address": "127.0.0.1",
    "server.headless": "true",
    "server.maxUploadSize": "0",
    "server.fileWatcherType": "none",
    "browser.gatherUsageStats": "false",
    "client.toolbarMode": "minimal",
}


@dataclass
class Arguments:
    folder: str | None = setting("Folder of corpora, which the page can also be told.")
    port: int = setting("Port of the page on this machine; another where it is taken.", 8501)
    lang: Literal["zh", "en"] | None = setting("Language of the page; by default the locale's.")

    def __post_init__(self):
        if not 0 < self.port < 65536:
            raise ValueError(f"--port {self.port}: a port is a number from 1 to 65535")
        if self.folder and not os.path.isdir(self.folder):
            raise ValueError(f"--folder {self.folder}: no such folder")


def main() -> None:
    [arguments] = Parser([Arguments]).parse()
    if find_spec("streamlit") is None:
        raise UserError("the viewer needs Streamlit: pip install -e '.[viewer]'")
    port = free_port(arguments.port)
    if port is None:
        raise UserError(f"--port {arguments.port}: no port from here on is free; choose a lower one")
    if port != arguments.port:
        say(f"--port {arguments.port} is taken; taking {port}")
    settings = [f"--{name}={value}" for name, value in SETTINGS.items()]
    page = [f"--{name}={value}" for name in ("folder", "lang") if (value := getattr(arguments, name))]
    command = [sys.executable, "-m", "streamlit", "run", PAGE, *settings, f"--server.port={port}", "--", *page]
    sys.stdout.flush()
    os.execv(sys.executable, command)  # Streamlit answers Ctrl-C and SIGTERM itself


if __name__ == "__main__":
    run_script(main)
