"""Where stateless clients' conversations stand, now and after a restart."""

from arbiters.events import ChatMessage, MessageReceived, ReplyGiven, Timings
from arbiters.kernel.bus import Publisher
from arbiters.testing.bus import FakeClock, MemoryEventLog, SequentialIds
from soma_agents.serving.threads import Threads


def transcript(*texts):
    roles = ("user", "assistant")
    return [ChatMessage(role=roles[i % 2], content=text) for i, text in enumerate(texts)]


def test_a_conversation_is_found_where_it_stands_and_only_there():
    threads = Threads()
    threads.put("local", "ada", "c1", transcript("Hi", "Hello"))

    assert threads.find("local", "ada", transcript("Hi", "Hello")) == "c1"
    assert threads.find("local", "ada", transcript("Hi")) is None
    assert threads.find("local", "eve", transcript("Hi", "Hello")) is None

    threads.put("local", "ada", "c1", transcript("Hi", "Hello", "Well?", "Yes"))
    assert threads.find("local", "ada", transcript("Hi", "Hello")) is None


def test_a_client_that_trims_white_space_is_still_found():
    threads = Threads()
    threads.put("local", "ada", "c1", transcript("Hi", "Hello \n"))

    assert threads.find("local", "ada", transcript("Hi ", "Hello")) == "c1"


def test_only_so_many_are_kept_the_newest():
    threads = Threads(kept=2)
    for number in range(3):
        threads.put("local", "ada", f"c{number}", transcript(f"Hi {number}", "Hello"))

    assert threads.find("local", "ada", transcript("Hi 0", "Hello")) is None
    assert threads.find("local", "ada", transcript("Hi 2", "Hello")) == "c2"


async def test_a_restart_learns_from_the_log_where_conversations_stand():
    log = MemoryEventLog()
    publisher = Publisher(log=log, clock=FakeClock(), ids=SequentialIds(), producer="test")
    system = ChatMessage(role="system", content="Be brief.")
    await say(publisher, "c1", "Hi", "Hello", context=(system,))
    await say(publisher, "c1", "And?", "Nothing.")
    await say(publisher, "c2", "Hi", "Hello")

    threads = Threads()
    await threads.rebuild(log)

    whole = [system, *transcript("Hi", "Hello", "And?", "Nothing.")]
    assert threads.find("local", "owner", whole) == "c1"
    assert threads.find("local", "owner", transcript("Hi", "Hello")) == "c2"


async def say(publisher, conversation, text, reply, context=()):
    said = await publisher.publish(
        MessageReceived(conversation=conversation, message="m", content=text, context=context)
    )
    await publisher.publish(
        ReplyGiven(
            conversation=conversation,
            message="m",
            inference="i",
            content=reply,
            model="base",
            specialist="personal",
            config_hash="h",
            finish="stop",
            timings=Timings(first_token=0, total=0, prompt_tokens=1, completion_tokens=1),
        ),
        cause=said,
    )
