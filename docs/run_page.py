"""Run the commands of a page in their order, each shown before what it prints: ``python docs/run_page.py PAGE.md``.

They are the lines of its sh blocks, run by the shell in the current folder, with this Python's scripts first in PATH.
Those of bash blocks are for other machines, and are not run.
"""

import os
import re
import subprocess
import sys
import time
from pathlib import Path


def commands(page: Path) -> list[str]:
    """The command lines, each with its continuations."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    lines = "".join(blocks).replace("\\\n", "\0").splitlines()
    return [line.replace("\0", "\\\n") for line in lines if line and not line.startswith("#")]


def main() -> None:
    page = Path(sys.argv[1])
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    began = time.monotonic()
    for command in commands(page):
        print(f"\n$ {command}", flush=True)
        code = subprocess.run(command, shell=True, env=os.environ | {"PATH": path}).returncode
        if code:
            sys.exit(f"{page}: this command ended with {code}")
    print(f"\n{page}: all commands in {(time.monotonic() - began) / 60:.0f} minutes")


if __name__ == "__main__":
    main()
