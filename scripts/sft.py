"""Supervised fine-tuning of a causal language model, with LoRA or of all weights.

python scripts/sft.py --model_name_or_path MODEL --train_file train.json --output_dir runs/first
torchrun --nproc_per_node 4 scripts/sft.py --config configs/recipes/demo.yaml
"""

from hf_recipes.core.settings import run_script
from hf_recipes.dry_run.plan import row_figures
from hf_recipes.models.checks.packing import packing_leaks
from hf_recipes.run.arguments import SFTArguments
from hf_recipes.run.evaluate_callback import build_evaluations, prompts_of
from hf_recipes.run.run import GO_ON, Run
from hf_recipes.stages.sft import build_trainer, encoder_for, prepare_data


def main() -> None:
    run = Run(SFTArguments)
    run.open_model()
    args, config, tokenizer = run.args, run.config, run.tokenizer

    train, validation, ledgers = prepare_data(run.data, args, tokenizer, evaluates=run.evaluates)
    end_of_turn = tokenizer.convert_tokens_to_ids(encoder_for(tokenizer, args).end_of_turn)
    asked = prompts_of(validation)
    methods = build_evaluations(run.evaluation, args, run.data, config, tokenizer, asked, [end_of_turn])
    packs = packing_leaks(config.model_type) if args.packing or args.padding_free else None
    figures = row_figures(train, ledgers["train"], args, run.model_args.attn_implementation)
    if not run.plan(figures, methods, validation, packs=packs):
        return
    model = run.build_model(packs=packs)

    run.enter(evaluates=bool(validation or methods))
    trainer = build_trainer(model, args, train, validation, tokenizer, methods)
    run.train(trainer, ledgers)


if __name__ == "__main__":
    run_script(main, GO_ON)
