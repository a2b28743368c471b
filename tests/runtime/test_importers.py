import json
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arbiters.errors import InvalidError
from soma_agents.runtime.importers import (
    chatterbot_dialogues,
    conversation_of,
    read_conversations,
)

OPENAI = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Is tea hot?"},
        {"role": "assistant", "content": "Yes."},
    ]
}
SHAREGPT = {
    "conversations": [
        {"from": "human", "value": "Is tea hot?"},
        {"from": "gpt", "value": "Yes."},
    ]
}


def node(role, text, parent, **rest):
    content = {"content_type": "text", "parts": [text]}
    message = {"author": {"role": role}, "content": content, **rest}
    return {"message": message, "parent": parent}


def chatgpt(**changes):
    return {
        "title": "Tea",
        "create_time": 1700000000.5,
        "current_node": "b2",
        "mapping": {
            "root": {"message": None, "parent": None},
            "sys": node("system", "", "root"),
            "q": node("user", "Is tea hot?", "sys"),
            "b1": node("assistant", "No.", "q"),
            "tool": node("tool", "thermometer", "q"),
            "b2": node("assistant", "Yes.", "tool"),
        },
    } | changes


@pytest.fixture
def file(tmp_path):
    def write(content, name="file"):
        path = tmp_path / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return write


def turns(conversation):
    return [(message.role, message.content) for message in conversation.messages]


EXCHANGE = [("user", "Is tea hot?"), ("assistant", "Yes.")]


# --- formats -------------------------------------------------------------------------------


def test_chatgpts_export_is_read_along_its_current_branch(file):
    result = read_conversations(file([chatgpt()]))

    (found,) = result.conversations
    assert turns(found) == EXCHANGE
    assert (found.source, found.title) == ("chatgpt", "Tea")
    assert found.happened_at == datetime.fromtimestamp(1700000000.5, UTC)
    assert result.rejected == []


def test_without_a_current_node_the_last_one_is_taken(file):
    (found,) = read_conversations(file([chatgpt(current_node=None)])).conversations

    assert turns(found) == EXCHANGE


def test_chatgpts_pictures_code_and_hidden_messages_are_left_out(file):
    export = chatgpt()
    mapping = export["mapping"]
    mapping["q"]["message"]["content"] = {
        "content_type": "multimodal_text",
        "parts": [{"asset_pointer": "file"}, "Is tea hot?"],
    }
    mapping["tool"] = node("assistant", "print(1)", "hidden")
    mapping["tool"]["message"]["content"] = {"content_type": "code", "text": "print(1)"}
    hidden = {"is_visually_hidden_from_conversation": True}
    mapping["hidden"] = node("user", "My profile", "q", metadata=hidden)

    (found,) = read_conversations(file([export])).conversations

    assert turns(found) == EXCHANGE


def test_openai_chat_lines_are_read(file):
    developer = {"role": "developer", "content": "Be kind."}
    call = {"role": "assistant", "content": None, "tool_calls": []}
    parts = [{"type": "text", "text": "Is tea"}, {"type": "image_url"}, {"text": "hot?"}]
    second = {
        "messages": [
            developer,
            call,
            {"role": "tool", "content": "90 °C"},
            {"role": "user", "content": parts},
            OPENAI["messages"][2],
        ]
    }

    result = read_conversations(file(f"{json.dumps(OPENAI)}\n\n{json.dumps(second)}\n"))

    first, other = result.conversations
    assert turns(first) == [("system", "Be brief."), *EXCHANGE]
    assert turns(other) == [
        ("system", "Be kind."),
        ("user", "Is tea\nhot?"),
        ("assistant", "Yes."),
    ]
    assert {found.source for found in result.conversations} == {"openai"}


@pytest.mark.parametrize(
    "content",
    [OPENAI, [OPENAI], OPENAI["messages"], [OPENAI["messages"]], json.dumps(OPENAI) + "\n"],
)
def test_openai_messages_may_stand_in_a_list_an_object_or_a_line(file, content):
    (found,) = read_conversations(file(content)).conversations

    assert turns(found)[1:] == EXCHANGE


@pytest.mark.parametrize(
    "content",
    [
        SHAREGPT,
        [SHAREGPT],
        json.dumps(SHAREGPT) + "\n",
        {"conversation": SHAREGPT["conversations"]},
    ],
)
def test_sharegpt_is_read_as_list_and_as_lines(file, content):
    (found,) = read_conversations(file(content)).conversations

    assert (turns(found), found.source) == (EXCHANGE, "sharegpt")


@pytest.mark.parametrize(
    "text",
    [
        "User: Is tea hot?\nAssistant: Yes.",
        "Human: Is tea hot?\r\nAI: Yes.\r\n",
        "A: Is tea hot?\nB: Yes.\n",
        "Q: Is tea hot?\nA: Yes.\n",
        "\ufeff\n\nuser :  Is tea hot?\nbot:Yes.",
    ],
)
def test_dialogues_in_plain_text_are_read(file, text):
    (found,) = read_conversations(file(text.encode())).conversations

    assert (turns(found), found.source) == (EXCHANGE, "text")


def test_blank_lines_part_dialogues_and_lines_without_speaker_go_on(file):
    result = read_conversations(
        file("A: Is tea hot?\nB: Yes.\nVery: so.\n \n\nA: And ice?\nB: No.\n")
    )

    first, second = result.conversations
    assert turns(first)[-1] == ("assistant", "Yes.\nVery: so.")
    assert turns(second) == [("user", "And ice?"), ("assistant", "No.")]


# --- the same conversation -----------------------------------------------------------------


def test_the_digest_is_of_the_words_whatever_the_format_and_the_spacing(file):
    digests = {
        read_conversations(file(content)).conversations[0].digest
        for content in (
            SHAREGPT,
            [chatgpt()],
            "User: Is tea   hot?\nAssistant: Yes.",
            {"messages": OPENAI["messages"][1:]},
        )
    }

    assert len(digests) == 1
    assert read_conversations(file(OPENAI)).conversations[0].digest not in digests


# --- bad input -----------------------------------------------------------------------------


def test_bad_lines_are_reported_with_line_and_reason_and_the_rest_goes_in(file):
    good = json.dumps(OPENAI)
    bad = [
        "{broken",
        "[1, 2]",
        "7",
        '"text"',
        "null",
        "true",
        '{"other": 1}',
        '{"messages": 7}',
        '{"messages": [7]}',
        '{"messages": [{"role": "alien", "content": "x"}]}',
        '{"messages": [{"role": ["user"], "content": "x"}]}',
        '{"messages": [{"role": "user", "content": 7}]}',
        '{"messages": [{"role": "user", "content": "x"}]}',
        '{"messages": []}',
        '{"mapping": 7}',
        '{"mapping": {}}',
        '{"mapping": {"a": {"parent": "a"}}, "current_node": "a"}',
        "[" * 100_000,
    ]

    result = read_conversations(file("\n".join([good, *bad, good])))

    assert len(result.conversations) == 2
    assert [rejected.line for rejected in result.rejected] == list(range(2, len(bad) + 2))
    why = [rejected.why for rejected in result.rejected]
    assert why[0].startswith("not JSON: ")
    assert why[1] == "a conversation is an object, not a list"
    assert why[6] == "it has none of 'mapping', 'messages' and 'conversations'"
    assert why[8] == "turn 1 is a number, not an object"
    assert why[9] == "turn 1 has unknown role 'alien'"
    assert why[12] == "nobody asks and is answered in it"
    assert "in a circle" in why[16]


def test_a_bad_item_of_a_list_is_reported_with_the_line_it_begins_in(file):
    result = read_conversations(file(json.dumps([OPENAI, {"x": 1}, OPENAI], indent=1)))

    assert len(result.conversations) == 2
    (rejected,) = result.rejected
    assert rejected.line == 18
    assert json.dumps([OPENAI, {"x": 1}], indent=1).split("\n")[17].strip() == "{"


def test_a_bad_dialogue_is_reported_with_its_line(file):
    result = read_conversations(
        file("User: Hi\nAssistant: Hello\n\nsome prose\n\nUser: nobody answers\n")
    )

    assert [(r.line, r.why) for r in result.rejected] == [
        (4, "no speaker in 'some prose'; expected 'User: …'"),
        (6, "nobody asks and is answered in it"),
    ]


@pytest.mark.parametrize("create_time", [None, "yesterday", True, 1e300, float("nan")])
def test_a_strange_time_is_no_time(file, create_time):
    (found,) = read_conversations(file([chatgpt(create_time=create_time, title=7)])).conversations

    assert found.happened_at is None
    assert found.title == ""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b" \n ", "is empty"),
        (b"\xff\xfe\x00", r"is not UTF-8 \(byte 0\)"),
        (b"Dear diary, today I was hot.", "is of no known format"),
        (b'[{"song": "la"}]', "is of no known format"),
        (b"[{", "is of no known format"),
        (b"\x89PNG\r\n", "is not UTF-8"),
        (b"PK\x03\x04zipped", "is of no known format"),
    ],
)
def test_a_file_that_holds_no_conversations_is_refused_by_name(file, content, message):
    path = file(content, name="odd.json")

    with pytest.raises(InvalidError, match=rf"odd\.json {message}"):
        read_conversations(path)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InvalidError, match=r"none\.json cannot be read: No such file"):
        read_conversations(tmp_path / "none.json")


def test_a_file_of_a_known_format_without_a_good_conversation_says_why(file):
    result = read_conversations(file({"messages": []}))

    assert result.conversations == []
    assert result.rejected[0].line == 1


def read_or_refuse(path):
    try:
        return read_conversations(path)
    except InvalidError as error:
        return str(error)


@settings(deadline=None, max_examples=50)
@given(st.binary(max_size=300) | st.text(max_size=300).map(str.encode))
def test_any_file_is_read_or_refused(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "any"
    path.write_bytes(content)

    result = read_or_refuse(path)

    assert isinstance(result, str) or result.conversations or result.rejected


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from(["user", "assistant", "x", "n"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["messages", "role", "content", "mapping", "parent", "message", "n"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@settings(deadline=None, max_examples=50)
@given(JSON)
def test_any_json_is_read_or_refused(tmp_path_factory, value):
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_text(json.dumps(value))

    result = read_or_refuse(path)

    assert not isinstance(result, str) or str(path) in result


# --- the demo's dialogues ------------------------------------------------------------------


def test_the_corpus_has_hundreds_of_different_dialogues_in_a_fixed_order():
    dialogues = chatterbot_dialogues()

    assert len({dialogue.digest for dialogue in dialogues}) == len(dialogues) > 500
    assert dialogues == chatterbot_dialogues()
    for dialogue in dialogues:
        roles = [message.role for message in dialogue.messages]
        assert roles == ["user", "assistant"] * (len(roles) // 2)


def test_a_reply_that_looks_like_a_boolean_stays_a_word():
    words = {m.content for dialogue in chatterbot_dialogues() for m in dialogue.messages}

    assert not words & {"True", "False"}


def test_a_title_is_one_short_line():
    long = conversation_of(EXCHANGE, source="text", title="a\n" * 1000)

    assert len(long.title) == 200
    assert "\n" not in long.title
