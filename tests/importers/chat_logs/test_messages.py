"""Times of messages, and texts without what they quote."""

import re

import pytest

from hf_recipes.importers.chat_logs.messages import QUOTE_REMOVED, new_message, to_seconds, without_quote


@pytest.mark.parametrize(
    ("time", "seconds"),
    [
        (1772798480, 1772798480),
        (1772798480000, 1772798480),
        ("1772798480", 1772798480),
        ("2026-03-06T12:01:20.000Z", 1772798480),
        ("2026-03-06T20:01:20+08:00", 1772798480),
        ("2026-03-06 12:01:20", 1772798480),
        ("2026/3/6 12:01", 1772798460),
        ("2026-13-06 12:01:20", None),
        ("", None),
        ("昨天", None),
        (None, None),
        ([], None),
    ],
)
def test_times(time, seconds):
    assert to_seconds(time) == seconds


def test_a_message_that_cannot_be_used_says_why():
    assert new_message("a", 1, "", "b", "c").problem == "no time"
    assert new_message("a", 1, 0, "b", "\udcff").problem == "bytes that are no text"
    assert new_message("a", 1, 0, "b", None).text == ""
    assert new_message("a", 1, 0, "b", " 好\r\n啊 ").text == "好\n啊"


def test_a_text_without_its_quote():
    quote = re.compile(r"\[引用 .*\]\Z", re.DOTALL)
    assert without_quote("好[引用 a：一\n二]", quote) == ("好", (QUOTE_REMOVED,))
    assert without_quote("好", quote) == ("好", ())
