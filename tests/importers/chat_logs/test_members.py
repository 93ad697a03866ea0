"""Who is me."""

import pytest

from hf_recipes.core.errors import UserError
from hf_recipes.importers.chat_logs.members import EXPORTER, Members
from hf_recipes.importers.chat_logs.messages import ChatLog, Message


def members() -> Members:
    members = Members()
    members.add("12345", "小明", "明明")
    members.add("12346", "小红")
    members.add("12347", "小红")
    members.add("明明", "明明", is_account=False)
    return members


def test_me_is_a_number_or_a_nickname_and_every_name_of_it():
    assert members().find(["12345"]) == members().find(["小明"]) == {"12345", "明明"}
    assert members().find(["12346", "明明"]) == {"12346", "12345", "明明"}


def test_me_is_one_person():
    with pytest.raises(UserError, match="--me 小红: 2 people have this nickname; give one of 12346, 12347"):
        members().find(["小红"])
    with pytest.raises(
        UserError, match="--me 小刚: nobody of this name or number writes here, but 小明, 小红, 小红, 明明 do"
    ):
        members().find(["小刚"])


def chat(*senders: str, owner: str | None = None) -> ChatLog:
    return ChatLog("a.csv", owner=owner, messages=[Message("a.csv", 2, 0, sender, "x") for sender in senders])


def with_exporter() -> Members:
    people = members()
    people.add(EXPORTER, "阿豆")
    people.add("阿豆", is_account=False)
    return people


def test_without_a_name_me_is_the_exporter():
    assert with_exporter().find([], [chat("12345", EXPORTER, owner=EXPORTER)]) == {EXPORTER}
    logs = [chat("12345", "12346", owner="12345"), chat("12345", "12347")]
    assert members().find([], logs) == {"12345"}
    with pytest.raises(UserError, match=r"--me is missing: .* a\.csv does not say which of 小红, 小红 you are"):
        members().find([], [*logs, chat("12346", "12347")])


def test_the_exporter_is_one_of_the_people():
    logs = [chat("12345", EXPORTER, owner=EXPORTER), chat("阿豆", "12345")]
    assert with_exporter().find(["小明"], logs) == {"12345", "明明"}
    assert with_exporter().find(["阿豆"], logs) == {EXPORTER, "阿豆"}
    assert with_exporter().find(["我"], logs) == {EXPORTER, "阿豆"}


def test_an_exporter_and_a_member_of_one_nickname_are_two():
    logs = [chat("阿豆", EXPORTER, owner=EXPORTER)]
    with pytest.raises(UserError, match="--me 阿豆: 2 people have this nickname; give one of 我, or all that are you"):
        with_exporter().find(["阿豆"], logs)
    assert with_exporter().find(["我"], logs) == with_exporter().find([], logs) == {EXPORTER}


def test_accounts_of_one_exporter_are_one_and_those_of_several_are_not():
    logs = [chat("12346", "12345", owner="12345"), chat("12346", "12347", owner="12347")]
    assert members().find(["12345"], logs) == {"12345", "12347", "明明"}
    assert members().find(["12346"], logs) == {"12346"}
    logs = [chat("12346", "12345", owner="12345"), chat("12346", "12345", owner="12346")]
    assert members().find(["12345"], logs) == {"12345", "明明"}
    with pytest.raises(UserError, match=r"--me is missing: several people exported these chats \(小明, 小红\)"):
        members().find([], logs)


def test_an_exporter_who_writes_nothing_is_nobody():
    logs = [chat("12346", "12345", owner="99999")]
    assert members().find([], logs) == set()
    with pytest.raises(UserError, match="--me 我: nobody of this name or number writes here, but 小红, 小明 do"):
        members().find(["我"], logs)
