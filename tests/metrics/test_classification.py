import numpy as np
import pytest
from matplotlib import font_manager
from matplotlib import pyplot as plt

from hf_recipes.evaluation.reports import plots
from hf_recipes.evaluation.reports.plots import draw_confusion
from hf_recipes.metrics.text import confusion, macro_f1, per_class

REFERENCES = ["年龄", "年龄", "年龄", "性别", "性别", "疾病"]
PREDICTIONS = ["年龄。", "性别", "我不知道", " 性别", "年龄", ""]


def test_confusion_has_a_column_for_other_answers():
    matrix, labels = confusion(PREDICTIONS, REFERENCES)
    assert labels == ["年龄", "性别", "疾病"] and matrix.dtype == np.int64
    assert matrix.tolist() == [[1, 1, 0, 1], [1, 1, 0, 0], [0, 0, 0, 1]]
    matrix, labels = confusion(PREDICTIONS, REFERENCES, ["疾病", "性别", "年龄", "药物"])
    assert matrix.tolist() == [[0, 0, 0, 0, 1], [0, 1, 1, 0, 0], [0, 1, 1, 0, 1], [0, 0, 0, 0, 0]]
    with pytest.raises(ValueError, match="'疾病' is none of the labels"):
        confusion(PREDICTIONS, REFERENCES, ["年龄", "性别"])
    assert confusion([], [])[0].shape == (0, 1)


def test_per_class_by_hand():
    assert per_class(PREDICTIONS, REFERENCES) == {
        "年龄": {"precision": 1 / 2, "recall": 1 / 3, "f1": 2 / 5, "support": 3},
        "性别": {"precision": 1 / 2, "recall": 1 / 2, "f1": 1 / 2, "support": 2},
        "疾病": {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 1},
    }
    assert macro_f1(PREDICTIONS, REFERENCES) == pytest.approx((2 / 5 + 1 / 2 + 0) / 3)
    assert macro_f1(REFERENCES, REFERENCES) == 1.0 and macro_f1([], []) == 0.0


def texts_of(monkeypatch, draw) -> list[str]:
    """What a picture says, and that its fonts have every character of it."""
    found, save = [], plots.save_figure

    def look(figure, path):
        for text in figure.findobj(plt.Text):
            if text.get_text().strip():
                have = font_manager.get_font(font_manager.findfont(text.get_fontproperties())).get_charmap()
                assert {ord(character) for character in text.get_text()} <= have.keys(), text
                found.append(text.get_text())
        save(figure, path)

    monkeypatch.setattr(plots, "save_figure", look)
    draw()
    return found


def test_picture_without_a_chinese_font(tmp_path, monkeypatch):
    fonts = [font for font in font_manager.fontManager.ttflist if font.name.startswith(("DejaVu", "Last Resort"))]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", fonts)
    monkeypatch.setattr(font_manager, "findSystemFonts", list)
    matrix, labels = confusion(PREDICTIONS, REFERENCES)
    said = texts_of(monkeypatch, lambda: draw_confusion(matrix, labels, tmp_path / "confusion.png"))
    assert {"1", "2", "3", "other", "prediction", "reference"} <= set(said)
    assert (tmp_path / "confusion.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "confusion.txt").read_text(encoding="utf-8") == "1\t年龄\n2\t性别\n3\t疾病\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["confusion.png", "confusion.txt"]


def test_picture_with_a_font_for_the_labels(tmp_path, monkeypatch):
    matrix, labels = confusion(["yes", "no", "no"], ["yes", "yes", "no"])
    said = texts_of(monkeypatch, lambda: draw_confusion(matrix, labels, tmp_path / "confusion.png"))
    assert {"yes", "no", "other"} <= set(said)
    assert [path.name for path in tmp_path.iterdir()] == ["confusion.png"]
