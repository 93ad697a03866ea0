"""Answer every row of a file with a model, with or without an adapter; a second call resumes where the first stopped.

python scripts/predict.py --model_name_or_path MODEL --peft_path runs/first \\
    --input_file test.json --output_file out.jsonl
python scripts/predict.py --model_name_or_path MODEL --input_file test.csv --prompt_column question \\
    --output_file out.jsonl
"""

if __name__ == "__main__":
    from hf_recipes.command.script import begin_script

    begin_script(first_process_alone=True)

from functools import partial

from hf_recipes.core.arguments.settings import Parser
from hf_recipes.core.errors import UserError, say
from hf_recipes.core.script import run_script
from hf_recipes.data.chat.prompts import PromptReader
from hf_recipes.evaluation.over_file import date_of, run_over_file
from hf_recipes.evaluation.predict import (
    Predict,
    PredictArguments,
    count_cut,
    predict_settings,
    prompt_budget,
    thoughts_columns,
    write_submission,
)
from hf_recipes.evaluation.run_record import RunRecord
from hf_recipes.models.arguments import ModelArguments
from hf_recipes.models.inference.decoding import Decoding
from hf_recipes.models.inference.loading import open_for_inference
from hf_recipes.models.inference.thinking import cut_message
from hf_recipes.models.inference.vllm_model import check_vllm, load_for_answers
from hf_recipes.models.templates.options import TemplateArguments


def main() -> None:
    parser = Parser([ModelArguments, Decoding, PredictArguments, TemplateArguments])
    model_args, decoding, args, template = parser.parse()
    for name in ("use_lora", "lora_config"):
        if name in parser.given:
            raise UserError(f"--{name} is for training; name the adapter with --peft_path")
    record = RunRecord(model_args.peft_path or model_args.model_name_or_path, parser.given)
    args, decoding, model_args, template = record.apply(args, decoding, model_args, template)
    source = {"trust_remote_code": args.trust_remote_code, "cache_dir": args.cache_dir}
    template.keep_date(date_of(args))
    config, tokenizer = open_for_inference(model_args, template=template, **source)
    if args.engine == "vllm":
        check_vllm(model_args, tokenizer, config, decoding, args.vllm_args)
    budget = prompt_budget(config, decoding.max_new_tokens)
    reader = PromptReader(
        args.input_file,
        tokenizer,
        args.columns,
        may_lack=record.may_lack,
        text_as=args.text_as,
        max_source_length=min(filter(None, (budget, args.max_source_length)), default=None),
        cache_dir=args.cache_dir,
        encoding=args.encoding,
    )
    step = Predict(reader, decoding, args.batch_size, args.prediction_column)
    settings = predict_settings(args, model_args, decoding, reader, config)
    settings |= {"autocast": True} if record.autocast else {}
    source |= {**args.engine_options, "config": config, "autocast": record.autocast}
    open_model = partial(load_for_answers, model_args, tokenizer, **source)
    run_over_file(args, reader, step, settings, open_model)
    cut, answered = count_cut(args.output_file, args.prediction_column)
    if cut:
        say(f"{cut_message(cut, answered)}; {thoughts_columns(args.prediction_column)[1]} is true in these rows")
    if args.submission:
        say(f"submission in {write_submission(args.output_file, args.prediction_column)}")


if __name__ == "__main__":
    run_script(main)
