"""Sessions and examples."""

import pytest

from hf_recipes.importers.chat_logs.messages import Message
from hf_recipes.importers.chat_logs.sessions import ME, MessageGroup, split_session, split_sessions


def test_silence_ends_a_session_and_groups_are_of_one_person():
    sent = [("a", 0), ("a", 60), ("me", 61), ("m2", 62), ("a", 62 + 3600), ("a", 63 + 7200), ("b", 64 + 7200)]
    messages = [Message("a.txt", n, time, sender, "x") for n, (sender, time) in enumerate(sent)]
    assert list(split_sessions(messages, range(len(sent)), {"me", "m2"}, 60)) == [
        [MessageGroup("a", [0, 1]), MessageGroup(ME, [2, 3]), MessageGroup("a", [4])],
        [MessageGroup("a", [5]), MessageGroup("b", [6])],
    ]
    assert [len(session) for session in split_sessions(messages, [0, 4], set(), 60)] == [1, 1]


def split(senders: str, max_turns: int) -> tuple[list[str], dict[int, str]]:
    """`senders` has m for me; examples come out as the indices of their first and last group."""
    session = [MessageGroup(ME if sender == "m" else sender, [index]) for index, sender in enumerate(senders)]
    dropped: dict[int, str] = {}

    def drop(groups, reason):
        dropped.update((group.indices[0], reason) for group in groups)

    examples = list(split_session(session, max_turns, drop))
    return [f"{example[0].indices[0]}-{example[-1].indices[0]}" for example in examples], dropped


FIRST = "begins a session: there is nothing that it answers"
LAST = "nothing of mine follows in its session"
FAR = "more than --max_turns before my answer"


@pytest.mark.parametrize(
    ("senders", "max_turns", "examples", "dropped"),
    [
        ("amam", 20, ["0-3"], {}),
        ("amamam", 4, ["0-3", "4-5"], {}),
        ("amam", 3, ["0-1", "2-3"], {}),
        ("mam", 20, ["1-2"], {0: FIRST}),
        ("amab", 20, ["0-1"], {2: LAST, 3: LAST}),
        ("abcabm", 3, ["3-5"], {0: FAR, 1: FAR, 2: FAR}),
        ("abmcabm", 4, ["0-2", "3-6"], {}),
        ("ab", 20, [], {0: LAST, 1: LAST}),
        ("m", 20, [], {0: FIRST}),
    ],
)
def test_examples_end_with_me(senders, max_turns, examples, dropped):
    assert split(senders, max_turns) == (examples, dropped)
