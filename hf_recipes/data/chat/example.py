"""What one training example shows of a conversation, as texts."""

from dataclasses import dataclass, field


@dataclass
class Example:
    """What one example shows of a conversation, of which it has the first `turns` messages.

    `prompt` is what a server sends before the last answer, `answer` what the model has to write: what the template puts
    before the turn's own texts, thoughts, the content and calls of tools, and last `end`, the special tokens that end
    the turn; `rest` is the white space that the template writes after them. `earlier` are the answers in the prompt
    that carry loss too: index of the message, range of characters. `left_out` are what the prompt does not show of
    earlier turns, `remarks` what else is to be known of the row.
    """

    prompt: str
    turns: int
    answer: str = ""
    end: str = ""
    rest: str = ""
    earlier: list[tuple[int, int, int]] = field(default_factory=list)
    is_labelled: bool = True
    left_out: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
