"""A real PostgreSQL server on a socket of its own, to be used, killed and started again."""

import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path

import psutil

ADMINISTRATOR = "soma"


def programs():
    """The folder of `initdb` and `pg_ctl`; None when PostgreSQL is not installed."""
    on_path = shutil.which("pg_ctl")
    found = [Path(on_path)] if on_path else Path("/usr/lib/postgresql").glob("*/bin/pg_ctl")
    newest = max(found, key=lambda program: program.parts[-3], default=None)
    return newest and newest.resolve().parent


def unprivileged():
    """Whom to run as: PostgreSQL refuses to run as root. None: as we are."""
    if os.geteuid() != 0:
        return None
    known = {user.pw_name for user in pwd.getpwall()}
    return next((name for name in ("postgres", "nobody") if name in known), None)


class PostgresServer:
    """One server in a temporary directory, with a database for whoever asks."""

    def __init__(self, bin_: Path) -> None:
        self._bin = bin_
        self._user = unprivileged()
        # Not below pytest's directory, which only its owner may enter.
        self.directory = Path(tempfile.mkdtemp(prefix="soma-pg-"))
        self._data = self.directory / "data"
        self._schemas = 0
        if self._user:
            shutil.chown(self.directory, self._user)
        self._run(
            "initdb", "-D", self._data, "-U", ADMINISTRATOR, "-A", "trust", "-E", "UTF8", "-N"
        )
        self.start()

    def start(self):
        options = f"-c listen_addresses='' -c unix_socket_directories='{self.directory}'"
        log = self.directory / "log"
        self._run("pg_ctl", "start", "-w", "-D", self._data, "-l", log, "-o", options)

    def kill(self):
        """`kill -9` of all its processes at once."""
        postmaster = psutil.Process(int((self._data / "postmaster.pid").read_text().split()[0]))
        processes = [postmaster, *postmaster.children(recursive=True)]
        for process in processes:
            process.kill()
        psutil.wait_procs(processes)

    def remove(self):
        self._run("pg_ctl", "stop", "-m", "immediate", "-D", self._data)
        shutil.rmtree(self.directory)

    def sql(self, statement):
        """Run one statement and return what psql prints: rows of columns parted by `|`."""
        return self._run(
            *("psql", "-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1"),
            *("-h", self.directory, "-U", ADMINISTRATOR, "-d", "postgres", "-c", statement),
        ).strip()

    def url(self):
        """Of a fresh, empty schema in the one database: a place for one log."""
        self._schemas += 1
        schema = f"log{self._schemas}"
        self.sql(f"CREATE SCHEMA {schema}")
        place = f"postgresql://{ADMINISTRATOR}@/postgres?host={self.directory}"
        return f"{place}&search_path={schema}"

    def _run(self, program, *arguments):
        as_whom = {"user": self._user, "group": _group(self._user), "extra_groups": []}
        # Not a pipe: the server would inherit it and hold it open.
        with tempfile.TemporaryFile() as output:
            done = subprocess.run(
                [self._bin / program, *arguments],
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                check=False,
                **(as_whom if self._user else {}),
            )
            output.seek(0)
            said = output.read().decode()
        assert done.returncode == 0, f"{program}: {said}"
        return said


def _group(user):
    return pwd.getpwnam(user).pw_gid if user else None
