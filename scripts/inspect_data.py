"""Look at what a stage is going to learn from, before it is trained: no weights are read.

python scripts/inspect_data.py --model_name_or_path MODEL --train_file train.json --html report.html
python scripts/inspect_data.py --config configs/recipes/demo.yaml --model_name_or_path MODEL --show train.json:12
"""

import sys

from rich.console import Console

from hf_recipes.core.errors import say
from hf_recipes.core.settings import run_script
from hf_recipes.inspection.inspect import inspect
from hf_recipes.inspection.page import write_page
from hf_recipes.inspection.stages import read_settings
from hf_recipes.inspection.terminal import print_report


def main() -> None:
    settings = read_settings(sys.argv[1:])
    report = inspect(settings)
    look = settings.look
    print_report(report, Console(highlight=False), None if look.show else look.examples)
    if look.html:
        write_page(report, look.html)
        say(f"the page is {look.html}")


if __name__ == "__main__":
    run_script(main)
