# SPDX-License-Identifier: GPL-2.0-or-later
"""PostgreSQL under pgbench, killed in the middle: what it acknowledged is there after its recovery, also in a copy."""

import contextlib
import glob
import os
import pwd
import random
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from tests.load.work import LONG_SECONDS, WorkError, do

USER = "postgres"
_START_SECONDS = 300
_SETTINGS = {
    "listen_addresses": "", "fsync": "on", "full_page_writes": "on", "shared_buffers": "16MB", "max_connections": "20",
    "min_wal_size": "32MB", "max_wal_size": "64MB", "checkpoint_timeout": "30s", "autovacuum_naptime": "10s",
    "jit": "off",
}  # fmt: skip
_COMPLAINTS = ("PANIC", "invalid page", "could not read", "could not write", "could not fsync", "could not extend")
_TELL = "insert into told values ({}) returning number;\n"
# Whatever was committed as a whole, these are equal.
_BALANCES = """
select count(distinct sum) = 1, max(sum) from (
  select sum(abalance) from pgbench_accounts union all select sum(tbalance) from pgbench_tellers
  union all select sum(bbalance) from pgbench_branches union all select coalesce(sum(delta), 0) from pgbench_history
) as sums
"""


def programs() -> Path:
    """The folder of the newest server installed. Raises `WorkError`."""
    found = sorted(glob.glob("/usr/lib/postgresql/*/bin/postgres"), key=lambda path: int(path.split("/")[4]))
    if not found:
        raise WorkError("PostgreSQL is not installed")
    return Path(found[-1]).parent


def as_user(*argv: str | Path) -> list[str]:
    """PostgreSQL refuses to run as root."""
    return ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", *map(str, argv)]


class Server:
    """One server on ``data``, reached over a socket in a folder of its own; a context manager."""

    def __init__(self, data: Path, socket: Path) -> None:
        self._data, self._socket = data, socket
        self._log = socket / "log"

    def __enter__(self) -> "Server":
        self._socket.mkdir(exist_ok=True)
        own(self._socket)
        words = [word for name, value in _SETTINGS.items() for word in ("-c", f"{name}={value}")]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                as_user(programs() / "postgres", "-D", self._data, "-k", self._socket, *words),
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        deadline = time.monotonic() + _START_SECONDS
        while subprocess.run(self.connect("pg_isready", "-q"), check=False).returncode:
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise WorkError(f"PostgreSQL does not start: {self._log.read_text()[-3000:]}")
            time.sleep(0.5)
        return self

    def __exit__(self, *_: object) -> None:
        """In order: a checkpoint, and out."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(LONG_SECONDS)
            finally:
                self.kill()
        log = self._log.read_text(errors="replace")
        if bad := [line for line in log.splitlines() if any(words in line for words in _COMPLAINTS)]:
            raise WorkError(f"PostgreSQL complains: {bad[:5]}")

    def kill(self) -> None:
        """SIGKILL to the server and all its processes, wherever they are."""
        if self._process.poll() is not None:
            return
        self._process.send_signal(signal.SIGSTOP)  # it may be starting one more at any moment
        while _fields(self._process.pid)[0] not in "TZX":
            time.sleep(0.01)
        children = [pid for pid in _processes() if _parent(pid) == self._process.pid]
        self._process.kill()
        for pid in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()
        # The next one refuses to start while one of them is attached to its memory.
        while any(_parent(pid) for pid in children):
            time.sleep(0.1)

    def connect(self, program: str, *words: str) -> list[str]:
        return [str(programs() / program), "-h", str(self._socket), "-U", USER, *words]

    def ask(self, query: str, database: str = "bench") -> str:
        return do(*self.connect("psql", "-XAtq", "-d", database, "-c", query)).strip()

    def look(self, acknowledged: int) -> None:
        """Every index and table is whole, the books balance, everything can be read, nothing acknowledged is gone."""
        do(*self.connect("pg_amcheck", "--heapallindexed", "-d", "bench"))
        balanced, total = self.ask(_BALANCES).split("|")
        newest = int(self.ask("select coalesce(max(number), 0) from told"))
        if balanced != "t" or newest < acknowledged:
            raise WorkError(f"the books say {balanced} ({total}), and {newest} of {acknowledged} that was acknowledged")
        do(*self.connect("pg_dump", "--file=/dev/null", "bench"))


class Postgres:
    """pgbench, and beside it rows that are counted when their commit is acknowledged."""

    name = "postgres"

    def __init__(self, chance: random.Random, cluster: Path, scratch: Path) -> None:
        self._chance, self._cluster, self._scratch = chance, cluster, scratch
        self._data, self._told = Path(), 0

    def begin(self, folder: Path) -> None:
        self._data = folder / "data"
        self._data.mkdir(mode=0o700)
        do("tar", "-xf", self._cluster, "-C", self._data)

    def round(self) -> None:
        with self._server() as server:
            bench = subprocess.Popen(
                server.connect("pgbench", "-n", "-c", "4", "-T", str(LONG_SECONDS), "bench"),
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            teller = subprocess.Popen(
                server.connect("psql", "-XAtq", "-d", "bench"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            assert teller.stdin is not None and teller.stdout is not None
            try:
                deadline = time.monotonic() + 5 + 10 * self._chance.random()
                while time.monotonic() < deadline:
                    teller.stdin.write(_TELL.format(self._told + 1))
                    teller.stdin.flush()
                    if teller.stdout.readline().strip() != str(self._told + 1):
                        raise WorkError("PostgreSQL does not take a row")
                    self._told += 1
                if bench.poll() is not None:
                    raise WorkError(f"pgbench ended by itself, with {bench.returncode}")
                server.kill()
            finally:
                for each in (bench, teller):
                    each.kill()
                    each.wait()
        with self._server() as server:
            server.look(self._told)

    def inspect(self, folder: Path, *, still: bool) -> None:
        # Its process lives, but not on this copy.
        (folder / "data/postmaster.pid").unlink(missing_ok=True)
        with Server(folder / "data", self._scratch / "copy") as server:
            server.look(self._told if still else 0)

    def _server(self) -> Server:
        return Server(self._data, self._scratch / "mirror")


def own(folder: Path) -> None:
    entry = pwd.getpwnam(USER)
    os.chown(folder, entry.pw_uid, entry.pw_gid)


def make_cluster(archive: Path) -> None:
    """A cluster with all that `Postgres` works on, as an archive; made on the host, as it would take minutes on an
    emulated processor."""
    words = ("-k", "--wal-segsize=4", "-A", "trust", "-U", USER, "--no-sync", "--locale=C.UTF-8")
    # Somewhere that the user can reach.
    with tempfile.TemporaryDirectory(prefix="dmsoft-load-", dir="/var/tmp") as name:
        data, socket = Path(name) / "data", Path(name) / "socket"
        own(Path(name))
        do(*as_user(programs() / "initdb", "-D", data, *words))
        with Server(data, socket) as server:
            server.ask("create database bench", "postgres")
            server.ask("create extension amcheck")
            server.ask("create table told(number integer primary key)")
            do(*server.connect("pgbench", "-i", "-q", "bench"))
        do("tar", "-cf", archive, "-C", data, ".")


def _processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _fields(pid: int) -> tuple[str, int]:
    """State and parent of a process (proc(5)); Z and 0 for one that has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return "Z", 0
    return fields[0], int(fields[1])


def _parent(pid: int) -> int:
    """0 for one that has ended."""
    state, parent = _fields(pid)
    return 0 if state in "ZX" else parent
