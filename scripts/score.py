"""Score every answer of a file with a reward model; a second call resumes where the first stopped.

python scripts/score.py --model_name_or_path MODEL --peft_path runs/reward --input_file pairs.jsonl \\
    --output_file scored.jsonl
python scripts/score.py --model_name_or_path REWARD_MODEL --input_file answers.csv --prompt_column question \\
    --response_column answer --output_file scored.csv
"""

if __name__ == "__main__":
    from hf_recipes.command.script import begin_script

    begin_script(first_process_alone=True)

from functools import partial

from hf_recipes.core.arguments.settings import Parser
from hf_recipes.core.errors import UserError
from hf_recipes.core.script import run_script
from hf_recipes.data.chat.templates.dates import printed_date
from hf_recipes.evaluation.over_file import date_of, run_over_file, settings_of_model
from hf_recipes.evaluation.run_record import SHAPE, RunRecord
from hf_recipes.evaluation.score import AnswerReader, Score, ScoreArguments
from hf_recipes.models.arguments import ModelArguments
from hf_recipes.models.inference.loading import is_reward_model, load_for_inference, open_for_inference
from hf_recipes.models.templates.options import TemplateArguments


def main() -> None:
    parser = Parser([ModelArguments, ScoreArguments, TemplateArguments])
    model_args, args, template = parser.parse()
    # Of the rows' columns none: those that are scored are seldom the pairs of the training.
    record = RunRecord(model_args.peft_path or model_args.model_name_or_path, parser.given | SHAPE)
    args, model_args, template = record.apply(args, model_args, template)
    source = {"trust_remote_code": args.trust_remote_code, "cache_dir": args.cache_dir}
    template.keep_date(date_of(args))
    config, tokenizer = open_for_inference(model_args, template=template, **source)
    if not is_reward_model(config, model_args.peft_path):
        raise UserError(
            f"{model_args.peft_path or model_args.model_name_or_path}: not a reward model; scripts/reward.py trains one"
        )
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    max_length = min(filter(None, (limit, args.max_length)), default=None)
    settings = {
        **settings_of_model(model_args, config),
        "chat_template": tokenizer.chat_template,
        "chat_template_date": printed_date(tokenizer),
        "max_length": max_length,
        "method": "score",
    }
    settings |= {"autocast": True} if record.autocast else {}
    open_model = partial(load_for_inference, model_args, tokenizer, is_reward=True, **source, autocast=record.autocast)
    run_over_file(args, AnswerReader(args, tokenizer, max_length), Score(args.batch_size), settings, open_model)


if __name__ == "__main__":
    run_script(main)
