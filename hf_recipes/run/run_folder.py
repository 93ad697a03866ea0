"""The output folder of a run, locked by its first process, and the checkpoint that the run resumes from."""

from contextlib import suppress
from typing import Any

from hf_recipes.core.arguments.settings import Parser
from hf_recipes.core.folders import OutputFolder, held
from hf_recipes.core.script import at_end
from hf_recipes.data.chat.templates.dates import today
from hf_recipes.dry_run.data_stats import DataStats
from hf_recipes.models.arguments import ModelArguments
from hf_recipes.models.templates.options import TemplateArguments
from hf_recipes.run.arguments import RunArguments
from hf_recipes.run.output_dir import (
    ENDING,
    check_agreement,
    check_output_dir,
    check_sources,
    enter_output_dir,
    is_restart,
    on_main_process,
    open_folder,
)
from hf_recipes.run.resume import begun_with, compare_data, compare_settings, read_begun_with
from hf_recipes.trainer.checkpoints.find import find_checkpoint


class RunFolder:
    """Locked until the script ends; its methods are called by all processes.

    Attributes:
        checkpoint: the one to resume from.
        folder, begun_with: of the first process alone.
    """

    folder: OutputFolder | None = None
    begun_with: dict[str, Any] | None = None

    def __init__(self, parser: Parser, model_args: ModelArguments, args: RunArguments):
        self.parser, self.args = parser, args
        self.checkpoint: str | None
        self.checkpoint, day = on_main_process(args, self._open, model_args)
        if isinstance(args, TemplateArguments):
            args.chat_template_date = parser.settings["chat_template_date"] = day

    def _open(self, model_args: ModelArguments) -> tuple[str | None, str | None]:
        args = self.args
        self.folder = open_folder(args)
        check_sources(self.folder.path, model_args.model_name_or_path, model_args.peft_path)
        if not args.dry_run:
            at_end.enter_context(held(args.output_dir, ENDING if is_restart(self.folder) else 0))
            self.folder = open_folder(args)  # as the run that held the lock before left it
        check_output_dir(self.folder, args, model_args.use_lora)
        checkpoint = find_checkpoint(
            args.output_dir,
            args.resume_from_checkpoint or ("true" if is_restart(self.folder) else None),
            world_size=args.world_size,
            inexact=args.inexact_resume,
            trust=args.trust_checkpoint,
        )
        self._former = read_begun_with(checkpoint) if checkpoint else None
        settings = self.parser.settings
        if "chat_template_date" in settings and settings["chat_template_date"] is None:
            former = self._former["settings"].get("chat_template_date") if self._former else None
            settings["chat_template_date"] = former or today()
        # Weights are read for it, which a dry run does only to compare.
        self.begun_with = begun_with(self.parser, args) if self._former or not args.dry_run else {}
        if self._former:
            compare_settings(checkpoint, self._former, self.begun_with, args)
        return checkpoint, settings.get("chat_template_date")

    def compare_data(self, stats: DataStats, steps: int) -> None:
        """Refuse to resume on other rows."""
        on_main_process(self.args, self._compare_data, stats, steps)

    def _compare_data(self, stats: DataStats, steps: int) -> None:
        data = {"what": stats.what, "rows": stats.rows, "tokens": stats.tokens, "digest": stats.digest}
        self.begun_with |= {"data": data, "steps": steps}
        if self._former:
            compare_data(self.checkpoint, self._former, self.begun_with, self.args)

    def enter(self, stats: DataStats) -> None:
        """Claim what the run is going to write; all processes agree on settings and data."""
        on_main_process(self.args, self._enter)
        check_agreement(self.args, self.parser, **{stats.what: stats.rows, "tokens": stats.tokens})

    def _enter(self) -> None:
        enter_output_dir(self.folder, self.args)
        at_end.callback(self._settle)

    def _settle(self) -> None:
        with suppress(OSError):  # the disk is full, which was reported; the claims stay
            self.folder.settle()
