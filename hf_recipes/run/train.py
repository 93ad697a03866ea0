"""The training of a run, until its end or a signal, and what it writes."""

from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from hf_recipes.core.arguments.settings import Parser
from hf_recipes.core.distributed import leave_process_group
from hf_recipes.core.errors import say
from hf_recipes.core.files import write_json, writing
from hf_recipes.core.ledger import LEDGER, Ledger, write_ledgers
from hf_recipes.dry_run.peak_memory import PeakMemory
from hf_recipes.evaluation.held_out import HeldOut, write_held_out
from hf_recipes.publishing.model_card import CardWords, Training, model_card
from hf_recipes.publishing.push_callback import Publisher
from hf_recipes.publishing.redact import NAMES, hub_names
from hf_recipes.run.evaluate_callback import evaluated_with
from hf_recipes.run.finish import best_step, finish
from hf_recipes.run.output_dir import CARD, METRICS, SETTINGS, on_main_process
from hf_recipes.run.run_folder import RunFolder
from hf_recipes.trainer.failures.signals import Stopped
from hf_recipes.trainer.reports.trackers import add_trackers


def train(
    trainer, folder: RunFolder, ledgers: dict[str, Ledger], held_out: HeldOut, memory: PeakMemory, words: CardWords
) -> None:
    """Train, evaluate, and leave the whole folder: weights, settings, ledger, metrics, curves, model card."""
    parser, output_dir = folder.parser, Path(trainer.args.output_dir)
    trainer.begun_with = folder.begun_with and {**folder.begun_with, "card": asdict(words)}
    names = hub_names(parser.settings)
    on_main_process(trainer.args, _write_first, output_dir, parser, ledgers, held_out, names)

    def card(folder: Path) -> str:
        counts = {name: ledger.to_dict() for name, ledger in ledgers.items()}
        history, best = trainer.state.log_history, best_step(trainer)
        step = best["step"] if best else trainer.state.global_step
        return model_card(folder, Training(parser.settings, names, counts, history, step, words, best))

    publisher = Publisher(trainer.args) if trainer.args.push_to_hub else None
    if publisher:
        trainer.add_callback(publisher)
    trackers = add_trackers(trainer, parser)
    settings = evaluated_with(trainer, parser.settings)
    with trainer.with_watchdog():
        memory.start()
        result = trainer.train(resume_from_checkpoint=folder.checkpoint)
        if not trainer.stopped_by:
            with suppress(Stopped):
                seconds = result.metrics["train_runtime"]
                finish(trainer, folder.folder, card, ledgers, seconds, memory, trackers, settings)
    if trainer.stopped_by:
        again = "" if folder.checkpoint else " (leave out --overwrite_output_dir)" * trainer.args.overwrite_output_dir
        location = f"after step {trainer.state.global_step} of {trainer.state.max_steps}"
        say(
            f"stopped by {trainer.stopped_by} {location}; resume with the same command and --resume_from_checkpoint "
            f"true{again}"
        )
    if publisher and trainer.is_world_process_zero():
        leave_process_group()  # a long upload must not let the other processes' barrier run out of time
        if trainer.stopped_by:
            publisher.push_last(trainer.state.global_step)
        else:
            publisher.finish()


def _write_first(output_dir: Path, parser: Parser, ledgers: dict[str, Ledger], held_out: HeldOut, names: dict) -> None:
    """Write the settings and the ledger before the training, and delete what an earlier end of the run wrote."""
    with writing(f"--output_dir {output_dir}"):
        write_ledgers(output_dir / LEDGER, **ledgers)
        write_held_out(output_dir, held_out)
        parser.save_settings(output_dir / SETTINGS)
        write_json(output_dir / NAMES, names)
        for name in (METRICS, CARD):  # of a resumed run: they are of its former end
            (output_dir / name).unlink(missing_ok=True)
