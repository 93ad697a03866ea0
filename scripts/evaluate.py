"""Evaluate a model, with or without an adapter, on named files; beside it the base or another model on the same rows.

python scripts/evaluate.py --model_name_or_path MODEL --peft_path runs/first --compare base \\
    --eval_files dev=dev.json exam=ceval_val.csv --output_dir runs/first/evaluation
python scripts/evaluate.py --model_name_or_path MODEL --eval_files PromptCBLUE/dev.json --output_dir evaluation
"""

if __name__ == "__main__":
    from hf_recipes.command.script import begin_script

    begin_script(first_process_alone=True)

from hf_recipes.core.arguments.settings import Parser
from hf_recipes.core.errors import UserError, say
from hf_recipes.core.folders import held
from hf_recipes.core.script import at_end, json_to_stdout, run_script
from hf_recipes.evaluation.compare import (
    EvaluateArguments,
    base_templates,
    check_engine,
    check_results,
    compare,
    evaluate,
    evaluate_base,
    open_folder,
    settings_of,
    write_results,
)
from hf_recipes.evaluation.held_out import with_held_out
from hf_recipes.evaluation.judging.arguments import JudgeArguments
from hf_recipes.evaluation.judging.pairwise import pair_judge
from hf_recipes.evaluation.registry import EvaluationArguments, as_in_run, build_methods, check_scored
from hf_recipes.evaluation.reports import tables as report
from hf_recipes.evaluation.run_record import EvaluatedRows, RunRecord
from hf_recipes.models.arguments import ModelArguments
from hf_recipes.models.inference.decoding import Decoding
from hf_recipes.models.inference.loading import is_reward_model, open_for_inference
from hf_recipes.models.inference.vllm_model import load_for_answers
from hf_recipes.models.templates.options import TemplateArguments
from hf_recipes.rewards.weighted_sum import Rewards


def main() -> None:
    kinds = [EvaluationArguments, EvaluateArguments, EvaluatedRows, TemplateArguments, JudgeArguments]
    parser = Parser([ModelArguments, Decoding, *kinds])
    model_args, decoding, evaluation, args, rows, template, judging = parser.parse()
    if args.compare == "base" and not model_args.peft_path:
        raise UserError("--compare base is the model without its adapter: name one with --peft_path")
    show_json = json_to_stdout(args.json)
    at_end.enter_context(held(args.output_dir))
    folder = open_folder(args)
    record = RunRecord(model_args.peft_path or model_args.model_name_or_path, parser.given)
    evaluation, made = with_held_out(evaluation, record, folder)
    rows, decoding, args, model_args, template = record.apply(rows, decoding, args, model_args, template)
    evaluation = as_in_run(record, evaluation, rows)
    template.keep_date()

    def prepare(model_args: ModelArguments, chat_template: str | None = None):
        config, tokenizer = open_for_inference(model_args, template=template, **args.source)
        tokenizer.chat_template = chat_template or tokenizer.chat_template
        limit = getattr(config.get_text_config(), "max_position_embeddings", None)
        options = {"max_drop_ratio": args.max_drop_ratio, "rows": rows, "may_lack": record.may_lack}
        options |= {"max_length": limit, "cache_dir": args.cache_dir}
        rewards = Rewards(evaluation, **args.source) if evaluation.specs else None
        methods = build_methods(evaluation, tokenizer, decoding=decoding, rewards=rewards, **options)
        check_scored(rewards, methods.values())
        is_reward = is_reward_model(config, model_args.peft_path)
        check_engine(model_args, args, methods, decoding, tokenizer, config, is_reward)
        opened = {**args.engine_options, "config": config, "is_reward": is_reward, "autocast": record.autocast}
        return tokenizer, methods, {**args.source, **opened}

    tokenizer, methods, options = prepare(model_args)
    templates = base_templates(args, tokenizer, methods)
    of_base = {name: prepare(model_args, templates[name])[1] for name in templates} or {"": methods}
    others = ModelArguments(args.compare) if args.compare not in (None, "base") else None
    other_tokenizer, other_methods, other_options = prepare(others) if others else (None, {}, {})
    who = "adapted" if model_args.peft_path else "model"
    check_results(folder, methods, [who, "base" if args.compare == "base" else "other"])
    judge = pair_judge(judging, args, methods, **args.source)
    settings = settings_of(model_args, args, evaluation, rows, decoding, tokenizer, judge and judge.settings)
    model = load_for_answers(model_args, tokenizer, **options)
    outcomes = {who: evaluate(model, methods, args.batch_size, who)}
    if args.compare == "base":
        with model.disable_adapter():
            outcomes["base"], settings["base_thinking"] = evaluate_base(model, of_base, args.batch_size)
    elif others:
        del model
        model = load_for_answers(others, other_tokenizer, **other_options)
        outcomes["other"] = evaluate(model, other_methods, args.batch_size, "other")
    first, *rest = outcomes.values()
    changes = compare(methods, first, *rest) if rest else {}
    del model  # room for the judge
    judged, kept = (judge(folder.path, outcomes), judge.files) if judge else ({}, [])
    show_json(write_results(folder, settings, methods, outcomes, changes, judged, made + kept, args.language))
    say(f"\n{report.comparison(rest[0].flat if rest else None, first.flat, changes, tuple(reversed(outcomes)))}\n")
    say(f"In {args.output_dir}: metrics.json, report.html, pictures, and the records of every row")


if __name__ == "__main__":
    run_script(main)
