"""Curves of runs as a picture; the tests' other runs draw none (`light_runs`)."""

import io

import numpy as np
import pytest
from PIL import Image

from hf_recipes.evaluation.reports.plots import draw_curves

LOSSES = [{"step": step, "loss": 1 / step, "loss_news": 2 / step} for step in (1, 2, 3)]
SCORES = [{"step": 3, "eval_dev_loss": 0.5, "eval_dev_rougeL": 0.7}]
MARGINS = [{"step": step, "loss": 1 / step, "rewards/margins": 0.1 * step, "kl": 0.01} for step in (1, 2, 3)]
ENTRIES = {"losses": LOSSES, "scores": LOSSES + SCORES, "margins": MARGINS, "nothing": []}


@pytest.mark.parametrize(("name", "panels"), [("losses", 1), ("scores", 2), ("margins", 2), ("nothing", 1)])
def test_curves_are_panels_of_a_picture(tmp_path, name, panels):
    draw_curves(ENTRIES[name], tmp_path / "curves.png")
    with Image.open(io.BytesIO((tmp_path / "curves.png").read_bytes())) as image:
        assert image.size == (120 * (1 + 5 * panels), 480)
        assert np.asarray(image.convert("L")).std() > 5  # something is drawn
