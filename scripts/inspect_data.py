"""Report on the rows that a stage is going to train on, before it is trained: no weights are read.

python scripts/inspect_data.py --model_name_or_path MODEL --train_file train.json --html report.html
python scripts/inspect_data.py --config configs/recipes/demo.yaml --model_name_or_path MODEL --show train.json:12
"""

import sys

from rich.console import Console

from hf_recipes.core.errors import say
from hf_recipes.core.files import writing
from hf_recipes.core.settings import run_script
from hf_recipes.evaluation.reports.page import write_page
from hf_recipes.evaluation.reports.terminal import print_report
from hf_recipes.inspection.inspect import inspect
from hf_recipes.inspection.settings import read_settings


def main() -> None:
    context = read_settings(sys.argv[1:])
    report = inspect(context)
    arguments = context.inspection
    print_report(report, Console(highlight=False), None if arguments.show else arguments.examples)
    if arguments.html:
        with writing(f"--html {arguments.html}"):
            write_page(report, arguments.html)
        say(f"the page is {arguments.html}")


if __name__ == "__main__":
    run_script(main)
