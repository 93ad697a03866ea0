"""Rows token by token, with what of them is learned."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from hf_recipes.inspection.report import Piece, Segment, visible
from hf_recipes.privacy.redactor import PLACEHOLDERS, Redactor

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHOWN = 600  # tokens of a segment that are drawn; of a longer one its beginning and its end
CHARACTER = 8  # tokens that one character may be split into


class Pen:
    """Draws token ids.

    Args:
        redactor: of what personal data is to be masked; None where all may be seen.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", redactor: Redactor | None = None):
        self.tokenizer, self.redactor = tokenizer, redactor

    def mask(self, text: str) -> str:
        return self.redactor.redact(text)[0] if self.redactor else text

    def draw(self, ids: Sequence[int], labels: Sequence[int], location: str = "") -> Segment:
        """One segment; what is learned is what has a label, but for the first token, which nothing predicts.

        Args:
            ids, labels: of one length; labels are -100 where nothing is learned.
        """
        ids, labelled = np.asarray(ids).tolist(), (np.asarray(labels) != -100).tolist()
        labelled[:1] = [False] * len(labelled[:1])
        parts = [(ids, labelled)]
        left_out = len(ids) - SHOWN
        if left_out > 0:
            half = SHOWN // 2
            parts = [(ids[:half], labelled[:half]), (ids[-half:], labelled[-half:])]
        drawn = [list(self._pieces(*part)) for part in parts]
        if self.redactor:
            for part in drawn:
                _mask(part, self.redactor)
        for piece in (piece for part in drawn for piece in part):
            piece.text = visible(piece.text)
        if left_out > 0:
            drawn.insert(1, [Piece(f"… {left_out:,} tokens …", left_out, None)])
        return Segment(location, [piece for part in drawn for piece in part])

    def draw_apart(self, ids: np.ndarray, labels: np.ndarray, positions: np.ndarray, location: str) -> list[Segment]:
        """A segment for each run of positions that begins with 0."""
        starts = np.flatnonzero(positions == 0).tolist()
        ends = [*starts[1:], len(ids)]
        return [
            self.draw(ids[a:b], labels[a:b], location if not number else "")
            for number, (a, b) in enumerate(zip(starts, ends, strict=True))
        ]

    def _pieces(self, ids: list[int], labelled: list[bool]) -> Iterator[Piece]:
        before: list[int] = []
        text_before, start = "", 0
        for end in range(1, len(ids) + 1):
            # Behind the token before, because some tokenizers take away the space that a text begins with.
            text = self._decode(before + ids[start:end])
            text = text[len(text_before) :] if text.startswith(text_before) else self._decode(ids[start:end])
            continues_adapter = end < len(ids) and labelled[end] == labelled[start] and end - start < CHARACTER
            if text.endswith("\ufffd") and continues_adapter:
                continue
            yield Piece(text, end - start, labelled[start])
            before, start = ids[start:end], end
            text_before = self._decode(before)

    def _decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def _mask(pieces: list[Piece], redactor: Redactor) -> None:
    """Put a placeholder into the first piece of each span of personal data, and nothing into its others."""
    ends = np.cumsum([len(piece.text) for piece in pieces])
    starts = ends - [len(piece.text) for piece in pieces]
    for span in reversed(redactor.find("".join(piece.text for piece in pieces))):
        first, last = np.searchsorted(ends, span.start, "right"), np.searchsorted(starts, span.end, "left") - 1
        head = pieces[first].text[: span.start - starts[first]] + PLACEHOLDERS[span.kind] + str(span.person or "")
        tail = pieces[last].text[span.end - starts[last] :]
        for piece in pieces[first : last + 1]:
            piece.text = ""
        pieces[last].text = tail
        pieces[first].text = head + (tail if first == last else "")
