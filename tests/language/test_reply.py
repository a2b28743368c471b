from hypothesis import given, settings
from hypothesis import strategies as st

from soma_agents.language.reply import Reply
from soma_agents.language.tokenizer import ChatTokenizer
from soma_agents.language.waiting import FairQueue


def said(tokenizer: ChatTokenizer, text: str, stop: tuple[str, ...]) -> list[str]:
    """The pieces of a reply whose tokens are the bytes of `text`."""
    reply = Reply(tokenizer, stop)
    pieces: list[str] = []
    for token in tokenizer.encode(text):
        reply.push(token, None)
        if reply.stopped:
            break
        if (piece := reply.piece()) is not None:
            pieces.append(piece.text)
    if (piece := reply.last()) is not None:
        pieces.append(piece.text)
    return pieces


def test_text_flows_at_once_when_nothing_can_stop_it(metadata):
    assert said(ChatTokenizer(metadata), "abc", ()) == ["a", "b", "c"]


def test_a_stop_string_and_all_behind_it_is_dropped(metadata):
    assert "".join(said(ChatTokenizer(metadata), "one END two", ("END",))) == "one "


def test_the_beginning_of_a_stop_string_is_held_until_decided(metadata):
    pieces = said(ChatTokenizer(metadata), "xENx", ("END",))

    assert pieces == ["x", "ENx"]


def test_a_held_beginning_is_said_at_the_end(metadata):
    assert "".join(said(ChatTokenizer(metadata), "xEN", ("END",))) == "xEN"


def test_every_token_is_in_exactly_one_piece(metadata):
    tokenizer = ChatTokenizer(metadata)
    reply = Reply(tokenizer, ("é!",))
    ids = tokenizer.encode("aé?é")
    found: list[int] = []

    for token in ids:
        reply.push(token, None)
        if (piece := reply.piece()) is not None:
            found += piece.token_ids
    if (piece := reply.last()) is not None:
        found += piece.token_ids

    assert found == ids


@settings(deadline=None)
@given(
    text=st.text("abcé", max_size=30),
    stop=st.lists(st.text("abcé", min_size=1, max_size=4), max_size=3),
)
def test_no_part_of_the_stop_string_that_is_completed_first_is_ever_said(tiny, text, stop):
    completed = min((text.find(word) + len(word) for word in stop if word in text), default=None)
    ends = [place for word in stop if (place := text[:completed].find(word)) >= 0]

    pieces = said(tiny.tokenizer, text, tuple(stop))

    whole = "".join(pieces)
    assert text.startswith(whole)
    assert len(whole) <= min(ends, default=len(text))
    assert ends or whole == text


def test_tenants_take_turns():
    queue: FairQueue[str] = FairQueue()
    for tenant, item in [("busy", "b1"), ("busy", "b2"), ("busy", "b3"), ("quiet", "q1")]:
        queue.put(tenant, item)

    assert [queue.pop() for _ in range(len(queue))] == ["b1", "q1", "b2", "b3"]


def test_an_item_can_be_taken_out_of_turn():
    queue: FairQueue[str] = FairQueue()
    queue.put("a", "x")

    assert queue.remove("x")
    assert not queue.remove("x")
    assert queue.peek() is None
