import asyncio
import gzip

import pytest

from arbiters.errors import CorruptError
from arbiters.events import ConversationDeleted
from arbiters.testing import enveloped
from policies.retention import Retention
from soma_agents.storage.database import Database
from soma_agents.storage.event_log import SqliteEventLog
from soma_agents.storage.sqlite_files import Schema

SOON = Retention(keep=5, segment=10)


def said(number):
    circumstances = {"id": f"e{number}", "idempotency": f"e{number}", "key": "k"}
    if number:
        circumstances["cause"] = f"e{number - 1}"
    # A separator of Unicode's own is part of a line, not its end.
    return enveloped(ConversationDeleted(conversation=f"word-{number}\u2028"), **circumstances)


async def filled(path, count=38, rules=SOON):
    log = await SqliteEventLog.open(path, rules)
    await log.append([said(number) for number in range(count)])
    await archived(log)
    await log.close()
    return await SqliteEventLog.open(path, rules)


async def archived(log):
    if log._archiver is not None:
        await asyncio.wait([log._archiver])


@pytest.fixture
async def log(tmp_path):
    log = await filled(tmp_path / "events.db")
    yield log
    await log.close()


def segments(tmp_path):
    return {path.name: gzip.decompress(path.read_bytes()) for path in tmp_path.glob("archive/*")}


async def test_old_content_moves_in_whole_segments_and_the_newest_stays(log, tmp_path):
    inside = await log._database.rows("SELECT offset FROM events WHERE payload IS NOT NULL")

    assert [offset for (offset,) in inside] == list(range(31, 39))
    assert sorted(segments(tmp_path)) == [f"{first:012d}.jsonl.gz" for first in (1, 11, 21)]
    await log._database.checkpoint()
    assert b"word-0" not in (tmp_path / "events.db").read_bytes()


async def test_readers_notice_nothing(log):
    read = (await log.read(0, limit=100)).envelopes

    assert [e.payload["conversation"] for e in read] == [f"word-{n}\u2028" for n in range(38)]
    assert (await log.find("e7")).payload == {"conversation": "word-7\u2028"}
    assert [e.id for e in await log.caused_by("e7")] == ["e8"]
    assert await log.append([said(3)]) == [4]
    assert await log.verify() == 38


async def test_what_is_erased_from_the_archive_is_nowhere(log, tmp_path):
    assert await log.erase(["e3", "e12", "e37"]) == 3

    kept = [e.id for e in (await log.read(0, limit=100)).envelopes]
    assert kept == [f"e{n}" for n in range(38) if n not in (3, 12, 37)]
    for word in (b"word-3\\u", b"word-3\xe2", b"word-12", b"word-37"):
        assert not any(word in content for content in segments(tmp_path).values())
        assert not any(word in file.read_bytes() for file in tmp_path.glob("events.db*"))
    assert await log.verify() == 38
    assert await log.erase(["e3"]) == 0


async def test_content_erased_from_a_file_before_the_log_says_so_is_heard_by_nobody(log):
    log._archive.erase(1, range(1, 8))

    batch = await log.read(0, limit=6)

    assert [e.id for e in batch.envelopes] == [f"e{n}" for n in range(7, 13)]
    assert batch.end == 13
    assert await log.verify() == 38


@pytest.mark.parametrize("harm", ["cut", "changed", "lost", "line"])
async def test_a_damaged_segment_is_named_and_the_rest_is_read(log, tmp_path, harm):
    path = tmp_path / "archive" / "000000000011.jsonl.gz"
    content = path.read_bytes()
    match harm:
        case "cut":
            path.write_bytes(content[:-9])
        case "changed":
            path.write_bytes(
                gzip.compress(gzip.decompress(content).replace(b"word-12", b"word-99"))
            )
        case "line":
            path.write_bytes(gzip.compress(gzip.decompress(content).partition(b"\n")[2]))
        case "lost":
            path.unlink()

    with pytest.raises(CorruptError, match=r"000000000011\.jsonl\.gz.*restore it from a backup"):
        await log.verify()

    with pytest.raises(CorruptError):
        await log.read(10)
    assert len((await log.read(20, limit=100)).envelopes) == 18


async def test_a_segment_written_before_a_crash_is_written_again(tmp_path):
    log = await filled(tmp_path / "events.db", rules=Retention())
    (tmp_path / "archive").mkdir()
    (tmp_path / "archive" / "000000000001.jsonl.gz").write_bytes(b"half")
    await log.close()

    log = await SqliteEventLog.open(tmp_path / "events.db", SOON)
    await log.append([said(38)])
    await archived(log)

    assert await log.verify() == 39
    assert len(segments(tmp_path)) == 3
    await log.close()


async def test_without_room_for_an_archive_the_log_goes_on_and_tries_again(tmp_path):
    (tmp_path / "archive").write_text("in the way")
    log = await SqliteEventLog.open(tmp_path / "events.db", SOON)
    await log.append([said(number) for number in range(20)])
    await archived(log)

    (tmp_path / "archive").unlink()
    await log.append([said(20)])
    await archived(log)

    assert list(segments(tmp_path)) == ["000000000001.jsonl.gz"]
    assert await log.verify() == 21
    await log.close()


async def test_a_log_of_the_first_release_is_read_and_archived(tmp_path):
    path = tmp_path / "events.db"
    log = await filled(path, rules=Retention())
    rows = await log._database.rows("SELECT * FROM events")
    await log.close()
    path.unlink()
    first = Schema("event_log", SqliteEventLog.schema.migrations[:1])
    database = await Database.open(path, first)
    marks = ", ".join("?" * 16)
    await database.execute_many(f"INSERT INTO events VALUES ({marks})", [r[:16] for r in rows])
    await database.close()

    log = await SqliteEventLog.open(path, SOON)
    await log.append([said(38)])
    await archived(log)

    assert await log.verify() == 39
    assert len(segments(tmp_path)) == 3
    await log.close()
