"""Damaged files: found when SOMA is started or by `soma verify`, named, with a way out.

What is not found must have changed nothing. One kind of damage is beyond both, and only in the
databases of arbiters, which are made anew from the log: see `test_an_arbiter_s_database_…`.
"""

import asyncio
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from random import Random

import pytest

from arbiters.errors import CorruptError, SomaError
from arbiters.events import FactForgotten
from bench.restore import _settings, learn, living, talk
from soma_agents.app.verify import look, verify
from soma_agents.runtime.assembly import ARBITERS
from soma_agents.runtime.local import LocalRuntime
from soma_agents.settings import load_settings
from soma_agents.storage.event_log import SqliteEventLog
from soma_agents.storage.files import read_manifest
from soma_agents.storage.identifiers import SystemClock
from soma_agents.storage.keys import ApiKeys

LOG = "log/events.db"
STATES = [f"state/{name}.db" for name in ARBITERS]
DATABASES = [LOG, *STATES]
PAGE = 4096
FLIPS = 60
LENGTHS = 40


@pytest.fixture(scope="module")
def life(tmp_path_factory):
    """A data directory after a life, and as it was in the middle of it."""
    place = tmp_path_factory.mktemp("life")

    async def live():
        dice = Random(1)
        settings = _settings(place / "home")
        async with living(settings) as soma:
            await learn(soma, dice)
        shutil.copytree(place / "home", place / "earlier")
        async with living(settings) as soma:
            for number in range(60):
                sent = await talk(soma, "ann", number, dice)
            for name, host in soma.directory._hosts.items():
                await asyncio.wait_for(host._reach(sent[-1].offset), 20)
                assert name
        ApiKeys(settings.keys_file, SystemClock()).create("mira", user="mira")

    asyncio.run(live())
    return place


@pytest.fixture
def home(life, tmp_path):
    shutil.copytree(life / "home", tmp_path / "home")
    return tmp_path / "home"


def content(home, name):
    """Every row of every table."""
    with closing(sqlite3.connect(home / name)) as database:
        tables = [t for (t,) in database.execute("SELECT name FROM pragma_table_list")]
        return {t: database.execute(f"SELECT * FROM {t}").fetchall() for t in sorted(tables)}


def found(home):
    """What is found at the start, else by verifying; empty when all seems well."""
    settings = _settings(home)
    try:
        look(settings)
    except SomaError as error:
        return str(error)
    return "".join(f"{f['found']}; {f['way_out']}" for f in verify(settings) if not f["ok"])


def damaged(path, change):
    data = bytearray(path.read_bytes())
    path.write_bytes(change(data))


def flip(dice):
    def change(data):
        data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
        return data

    return change


def way_out(said):
    return any(word in said for word in ("restore", "anew", "move it", "upgrade", "again"))


def test_an_undamaged_life_is_sound(home):
    assert found(home) == ""


# --- the event log -------------------------------------------------------------------------


def test_a_flipped_bit_in_the_log_is_found_or_changed_nothing(life, tmp_path):
    truth, seen = content(life / "home", LOG), 0
    for seed in range(FLIPS):
        home = shutil.copytree(life / "home", tmp_path / str(seed))
        damaged(home / LOG, flip(Random(seed)))

        said = found(home)

        if said:
            seen += 1
            assert "events.db" in said, said
            assert way_out(said), said
        else:
            assert content(home, LOG) == truth, seed
        shutil.rmtree(home)
    assert seen > FLIPS / 2


def test_a_log_cut_off_anywhere_is_found(life, tmp_path):
    size = (life / "home" / LOG).stat().st_size
    dice = Random(2)
    lengths = {
        0,
        1,
        50,
        PAGE,
        size - 1,
        size - PAGE,
        *(dice.randrange(size) for _ in range(LENGTHS)),
    }
    for length in lengths:
        home = shutil.copytree(life / "home", tmp_path / str(length))
        damaged(home / LOG, lambda data, length=length: data[:length])

        said = found(home)

        assert "events.db" in said, (length, said)
        assert way_out(said), said
        shutil.rmtree(home)


def test_a_zeroed_page_of_the_log_is_found_or_changed_nothing(life, tmp_path):
    truth, size = content(life / "home", LOG), (life / "home" / LOG).stat().st_size
    for page in sorted(Random(3).sample(range(size // PAGE), min(30, size // PAGE))):
        home = shutil.copytree(life / "home", tmp_path / str(page))
        zeros = slice(page * PAGE, (page + 1) * PAGE)
        damaged(home / LOG, lambda d, z=zeros: d[: z.start] + bytes(PAGE) + d[z.stop :])

        said = found(home)

        assert ("events.db" in said and way_out(said)) or content(home, LOG) == truth, page
        shutil.rmtree(home)


def test_an_older_log_is_found_by_those_who_have_heard_more(life, home):
    shutil.copy(life / "earlier" / LOG, home / LOG)

    assert "lost its end" in found(home)


async def test_an_arbiter_does_not_go_on_over_a_log_that_lost_its_end(home):
    (home / LOG).unlink()
    soma = await LocalRuntime.start(_settings(home))

    done, _ = await asyncio.wait(soma._tasks, return_when=asyncio.FIRST_COMPLETED, timeout=20)

    with pytest.raises(CorruptError, match=r"ends at offset 0.*restore it from a backup"):
        raise done.pop().exception()
    await soma.close()


# --- a write-ahead log that is not the database's own --------------------------------------


@pytest.mark.parametrize("name", DATABASES)
@pytest.mark.parametrize("whose", ["another's", "an older one's"])
def test_a_foreign_write_ahead_log_is_refused(life, home, tmp_path, name, whose):
    source = life / "earlier" / name if whose == "an older one's" else life / "home" / "other.db"
    wal = write_ahead_log(shutil.copy(source, tmp_path) if source.exists() else tmp_path / "o.db")
    truth = content(home, name)
    beside = home / f"{name}-wal"
    beside.write_bytes(wal)

    said = found(home)

    assert f"{beside} does not belong to {home / name}" in said
    assert "move it elsewhere" in said
    beside.unlink()
    assert content(home, name) == truth


def write_ahead_log(path):
    """That of a database which somebody has open and has written to."""
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("CREATE TABLE more AS SELECT randomblob(20000) AS x")
        return Path(f"{path}-wal").read_bytes()


# --- arbiters' databases -------------------------------------------------------------------


@pytest.mark.parametrize("name", STATES)
def test_an_arbiter_s_database_is_damaged_and_nobody_sees_a_traceback(life, tmp_path, name):
    """SQLite keeps no checksums: a changed letter in a cell stays unseen until a replay.

    Everything else is found: in pages, cells' types, indexes, the schema.
    """
    truth = content(life / "home", name)
    for seed in range(FLIPS // 3):
        home = shutil.copytree(life / "home", tmp_path / str(seed))
        damaged(home / name, flip(Random(f"{name}{seed}")))

        said = found(home)

        if said:
            assert Path(name).name in said, said
            assert way_out(said), said
        else:
            left = content(home, name)
            assert {t: len(rows) for t, rows in left.items()} == {
                t: len(rows) for t, rows in truth.items()
            }
        shutil.rmtree(home)


@pytest.mark.parametrize("length", [600, PAGE - 1, PAGE, 3 * PAGE + 7])
def test_an_arbiter_s_database_that_was_cut_off_is_found(home, length):
    path = home / "state" / "user_profile.db"
    damaged(path, lambda data: data[:length])

    said = found(home)

    assert "user_profile.db" in said
    assert way_out(said)


@pytest.mark.parametrize("left", [None, b"", b"S"])
async def test_an_arbiter_s_database_that_is_gone_is_made_anew_from_the_log(life, home, left):
    truth = content(life / "home", "state/user_profile.db")["facts"]
    (home / "state" / "user_profile.db").unlink()
    if left is not None:
        (home / "state" / "user_profile.db").write_bytes(left)
    assert found(home) == ""

    async with living(_settings(home)) as soma:
        host = soma.directory._hosts["user_profile"]
        await host._reach(await soma.log.end())

    again = content(home, "state/user_profile.db")["facts"]
    assert sorted(again) == sorted(truth)
    assert len(again) > 5


# --- files ---------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["adapter_model.safetensors", "manifest.json"])
def test_a_flipped_bit_in_a_model_is_found_or_changed_nothing(life, tmp_path, file):
    for seed in range(FLIPS // 2):
        home = shutil.copytree(life / "home", tmp_path / str(seed))
        (model,) = (home / "models").iterdir()
        damaged(model / file, flip(Random(seed)))

        said = found(home)

        if not said:  # the name of the seal itself
            left = read_manifest(model)
            truth = read_manifest(life / "home" / "models" / model.name)
            assert left | truth == left, seed
        else:
            assert str(model) in said, (seed, said)
        shutil.rmtree(home)


def test_a_champion_that_is_missing_is_named(home):
    (model,) = (home / "models").iterdir()
    shutil.rmtree(model)

    assert f"{model} is missing" in found(home)


def test_a_model_under_another_s_name_is_named(home):
    (model,) = (home / "models").iterdir()
    shutil.copytree(model, home / "models" / "lora-other")

    assert "another's name" in found(home)


def test_a_flipped_bit_in_a_dataset_is_found(life, tmp_path):
    (dataset,) = (life / "home" / "datasets").glob("[!.]*")
    for file in sorted(p.name for p in dataset.iterdir() if p.stat().st_size):
        home = shutil.copytree(life / "home", tmp_path / file)
        damaged(home / "datasets" / dataset.name / file, flip(Random(file)))

        assert dataset.name in found(home), file


def test_a_flipped_bit_in_the_keys_lets_nobody_in_as_somebody_else(life, tmp_path):
    truth = ApiKeys(life / "home" / "keys.json", SystemClock()).list()
    seen = 0
    for seed in range(FLIPS * 3):
        path = shutil.copy(life / "home" / "keys.json", tmp_path / f"{seed}.json")
        damaged(path, flip(Random(seed)))
        try:
            left = ApiKeys(path, SystemClock()).list()
        except CorruptError as error:
            said = str(error)
            seen += str(path) in said and way_out(said)
        else:
            assert left == truth, seed
    assert seen > FLIPS * 2


@pytest.mark.parametrize("left", [b"", b"{", b"\xff\xfe", b"null"])
def test_keys_that_cannot_be_read_stop_the_start(home, left):
    (home / "keys.json").write_bytes(left)

    assert "keys.json" in found(home)


def test_keys_that_are_gone_are_missed(home):
    (home / "keys.json").unlink()

    assert "open on loopback" in found(home)


@pytest.mark.parametrize("left", [b"[server", b"\xff\xfe\x00", b"[server]\nprot = 1\n"])
def test_settings_that_cannot_be_read_are_named(home, left):
    (home / "soma.toml").write_bytes(left)

    with pytest.raises(SomaError, match=r"soma\.toml|did you mean"):
        load_settings(home, environ={})


# --- a newer SOMA --------------------------------------------------------------------------


@pytest.mark.parametrize("name", DATABASES)
def test_a_database_of_a_newer_soma_is_refused(home, name):
    with closing(sqlite3.connect(home / name)) as database:
        database.execute("UPDATE soma_schema SET version = version + 1")
        database.commit()

    said = found(home)

    assert str(home / name) in said
    assert "upgrade SOMA or restore an older backup" in said


@pytest.mark.parametrize("name", DATABASES)
async def test_a_database_of_the_oldest_soma_is_brought_up_to_date(home, name):
    """The oldest there is: a file with no table yet; every migration of every component runs."""
    truth = {t: [] for t in content(home, name)}
    (home / name).unlink()
    sqlite3.connect(home / name).close()
    if name == LOG:
        await (await SqliteEventLog.open(home / LOG)).close()
    else:
        async with living(_settings(home)) as soma:
            await soma.publisher.publish(FactForgotten(subject="x"))

    assert content(home, name).keys() == truth.keys()
