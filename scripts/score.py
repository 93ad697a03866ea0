"""Score every answer of a file with a reward model; a second call goes on where the first stopped.

python scripts/score.py --model_name_or_path MODEL --peft_path runs/reward --input_file pairs.jsonl \\
    --output_file scored.jsonl
"""

import os
import sys

from hf_recipes.core.errors import UserError, say
from hf_recipes.core.settings import Parser, run_script
from hf_recipes.evaluation.score import AnswerReader, ScoreArguments, open_scores, read_score_ledger, score_rows
from hf_recipes.models.arguments import ModelArguments
from hf_recipes.models.inference.opening import is_reward_model, load_for_inference, open_for_inference


def main() -> None:
    model_args, args = Parser([ModelArguments, ScoreArguments]).parse()
    if int(os.environ.get("RANK", 0)) > 0:
        return  # the first process scores all rows
    source = {"trust_remote_code": args.trust_remote_code, "cache_dir": args.cache_dir}
    config, tokenizer = open_for_inference(model_args, chat_template=args.chat_template, **source)
    if not is_reward_model(config, model_args.peft_path):
        raise UserError(
            f"{model_args.peft_path or model_args.model_name_or_path}: not a reward model; scripts/reward.py trains one"
        )
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    reader = AnswerReader(args, tokenizer, min(filter(None, (limit, args.max_length)), default=None))
    ledger = read_score_ledger(reader)

    total = ledger.totals["read"]
    with open_scores(args, model_args, reader, ledger, config, tokenizer.chat_template) as results:
        if results.count:
            say(f"{results.path}: {results.count:,} of {total:,} rows are there")
        if results.count < total:
            model = load_for_inference(model_args, tokenizer, is_reward=True, **source)
            try:
                score_rows(model, reader, results, args.batch_size, total)
            except KeyboardInterrupt:
                say(f"\ninterrupted after {results.count:,} of {total:,} rows; the same command goes on")
                sys.exit(130)
    say(f"{total:,} rows in {args.output_file}, their settings in {results.sidecar}")


if __name__ == "__main__":
    run_script(main)
