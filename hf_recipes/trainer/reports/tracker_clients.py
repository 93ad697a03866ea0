"""swanlab, wandb and tensorboard behind one interface: start, log, texts, image, finish.

transformers' callbacks of the same trackers start them otherwise (in the cloud, with all training arguments as their
config, a git diff and the command line) and write in the thread of the training; what is left of them is one call.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import Any

import yaml

PATIENCE = 60.0  # seconds to wait for a tracker to start, and again to finish


class SwanLab:
    """swanlab in `mode` cloud, local, offline or disabled."""

    name = "swanlab"

    def __init__(self, args):
        mode = getattr(args, "swanlab_mode", None) or os.environ.get("SWANLAB_MODE") or "local"
        self.mode = "cloud" if mode == "online" else mode
        self.can_resume = self.mode == "cloud"
        self.folder = os.path.join(args.output_dir, "swanlog")

    def start(self, run_name: str, config: dict, run_id: str | None, step: int, bare: bool) -> str:
        import swanlab

        with self._quiet():
            self.run = swanlab.init(
                project=os.environ.get("SWANLAB_PROJECT", "hf_recipes"),
                name=run_name,
                mode=self.mode,
                log_dir=self.folder,
                id=run_id,
                resume="allow",
                reinit=True,
                config=config,
                # Without interactive, a run in the cloud would ask for its key at the terminal.
                settings=swanlab.Settings(interactive=False, **({"probe": {"runtime": False}} if bare else {})),
            )
        self.url = getattr(self.run, "url", None) if self.mode == "cloud" else None
        return self.run.id

    def log(self, metrics: dict[str, float], step: int) -> None:
        self.run.log(metrics, step=step)

    def texts(self, texts: Sequence[str], step: int, key: str) -> None:
        import swanlab

        self.run.log({key: [swanlab.Text(text) for text in texts]}, step=step)

    def image(self, path: Path, step: int) -> None:
        import swanlab

        self.run.log({"curves": swanlab.Image(str(path))}, step=step)

    def finish(self) -> None:
        with self._quiet():
            self.run.finish()

    @contextmanager
    def _quiet(self) -> Iterator[None]:
        """Without its greetings, which no setting stops; a run's last lines name the folder and `swanlab watch`."""
        try:
            from swanlab.sdk.internal.pkg.console import c as console
        except ImportError:  # of another version, which greets
            yield
            return
        console.quiet = self.mode == "local"
        try:
            yield
        finally:
            console.quiet = False


class Wandb:
    """wandb, offline unless ``WANDB_MODE`` says otherwise."""

    name = "wandb"

    def __init__(self, args):
        self.mode = os.environ.get("WANDB_MODE") or "offline"
        self.can_resume = self.mode == "online"
        self.folder = args.output_dir

    def start(self, run_name: str, config: dict, run_id: str | None, step: int, bare: bool) -> str:
        import wandb

        if self.mode == "online" and not wandb.login(prompt=False):  # else it would ask at the terminal
            raise ValueError("WANDB_MODE=online without a login; run `wandb login`, or set WANDB_API_KEY")
        settings = wandb.Settings(
            silent=True,
            disable_git=True,  # whose diff would hold whatever stands in a file that is not committed
            x_disable_meta=bare,
            init_timeout=PATIENCE,
            finish_timeout=PATIENCE,
        )
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "hf_recipes"),
            name=run_name,
            mode=self.mode,
            dir=self.folder,
            id=run_id,
            resume="allow" if run_id else None,
            reinit="finish_previous",
            config=config,
            settings=settings,
        )
        # A resumed run has steps again that it had before, which wandb's own counter refuses.
        self.run.define_metric("train/global_step")
        self.run.define_metric("*", step_metric="train/global_step", step_sync=True)
        self.url = getattr(self.run, "url", None) if self.mode == "online" else None
        return self.run.id

    def log(self, metrics: dict[str, Any], step: int) -> None:
        self.run.log({**metrics, "train/global_step": step})

    def texts(self, texts: Sequence[str], step: int, key: str) -> None:
        import wandb

        # A wandb.Table would be an artifact, half of which lies outside the run's folder.
        text = escape("\n\n——\n\n".join(texts))
        self.log({key: wandb.Html(f'<pre style="white-space: pre-wrap">{text}</pre>')}, step)

    def image(self, path: Path, step: int) -> None:
        import wandb

        self.log({"curves": wandb.Image(str(path))}, step)

    def finish(self) -> None:
        self.run.finish()


class TensorBoard:
    """Event files; a resumed run writes to the same folder, and replaces what came after its checkpoint."""

    name, mode, can_resume, url = "tensorboard", "files", True, None

    def __init__(self, args):
        self.folder = os.environ.get("TENSORBOARD_LOGGING_DIR") or os.path.join(args.output_dir, "tensorboard")

    def start(self, run_name: str, config: dict, run_id: str | None, step: int, bare: bool) -> str:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(self.folder, purge_step=step + 1 if run_id else None)
        self.writer.add_text("config", f"```yaml\n{yaml.safe_dump(config, allow_unicode=True, sort_keys=False)}```")
        return self.folder

    def log(self, metrics: dict[str, float], step: int) -> None:
        for name, value in metrics.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def texts(self, texts: Sequence[str], step: int, key: str) -> None:
        self.writer.add_text(key, "\n\n---\n\n".join(texts), step)

    def image(self, path: Path, step: int) -> None:
        import numpy as np
        from PIL import Image

        self.writer.add_image("curves", np.asarray(Image.open(path).convert("RGB")), step, dataformats="HWC")

    def finish(self) -> None:
        self.writer.close()


KINDS = (SwanLab, Wandb, TensorBoard)
