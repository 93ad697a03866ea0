"""Report on the rows that a stage is going to train on, before it is trained, on how tokenizers cut the same texts, or
score the rows with a model as judge.

python scripts/inspect_data.py --model_name_or_path MODEL --train_file train.json --html report.html
python scripts/inspect_data.py --config configs/recipes/demo.yaml --model_name_or_path MODEL --show train.json:12
python scripts/inspect_data.py --tokenizer MODEL EXTENDED --text news.jsonl
python scripts/inspect_data.py --score --judge MODEL --train_file train.json --output_file scored.jsonl
"""

if __name__ == "__main__":
    from hf_recipes.command.script import begin_script

    begin_script()

import sys

from rich.console import Console

from hf_recipes.core.arguments.settings import Parser
from hf_recipes.core.errors import say
from hf_recipes.core.files import writing
from hf_recipes.core.script import json_to_stdout, run_script
from hf_recipes.evaluation.judging.arguments import JudgeArguments
from hf_recipes.evaluation.judging.rating import RatingArguments, rate_rows
from hf_recipes.evaluation.reports.page import write_page
from hf_recipes.evaluation.reports.report import report_values
from hf_recipes.evaluation.reports.terminal import print_report
from hf_recipes.inspection.inspect import inspect
from hf_recipes.inspection.settings import read_settings
from hf_recipes.inspection.tokenizers import TokenizersArguments, compare_tokenizers


def main() -> None:
    if "--tokenizer" in sys.argv:
        [arguments] = Parser([TokenizersArguments]).parse()
        show_json = json_to_stdout(arguments.json)
        report, count = compare_tokenizers(arguments), arguments.examples
    elif "--score" in sys.argv:
        args, judging = Parser([RatingArguments, JudgeArguments]).parse()
        rate_rows(args, judging, trust_remote_code=args.trust_remote_code, cache_dir=args.cache_dir)
        return
    else:
        context = read_settings(sys.argv[1:])
        show_json = json_to_stdout(context.args.json)
        report, arguments = inspect(context), context.inspection
        count = None if arguments.show else arguments.examples
    print_report(report, Console(highlight=False), count)
    show_json(report_values(report, arguments.language))
    if arguments.html:
        with writing(f"--html {arguments.html}"):
            write_page(report, arguments.html, arguments.language)
        say(f"the page is {arguments.html}")


if __name__ == "__main__":
    run_script(main)
