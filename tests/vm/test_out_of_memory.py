# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory that runs out: a command that cannot go on leaves nothing suspended and promises nothing, and whoever has to
resume the mirror is not ended for it."""

import contextlib
import ctypes
import faulthandler
import gc
import io
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dmsoft.dm.device import Device
from dmsoft.units import MIB
from tests.vm.rig import NAME, Rig, sh, suspended, wait_until

pytest_plugins = ("tests.vm.rig",)
pytestmark = [pytest.mark.slow, pytest.mark.kernel_log(allow="oom|Out of memory|Memory cgroup")]

SIZE = 24 * MIB
_LONGEST_SECONDS = 60
GROUP = Path("/sys/fs/cgroup/dmsoft-test")


def address_space() -> int:
    """Bytes that this process has mapped."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def limit(more_bytes: int) -> None:
    """So much more, and nothing that this process has, or is about to give back."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    most = address_space() + more_bytes
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def limited(more_bytes: int, at_suspend: bool, *words: str) -> tuple[int, str]:
    """Exit status and standard error of a verb in a child, which may map so much more memory, from its beginning or
    from the first suspend on."""
    out, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(out)
            gc.freeze()  # what pytest has left to be collected includes memory that is not inherited
            faulthandler.register(signal.SIGALRM, file=theirs, chain=True)  # it says where it hangs, and ends
            signal.alarm(_LONGEST_SECONDS)
            code, said = _run_limited(more_bytes, at_suspend, list(words))
            os.write(theirs, said.encode())
            os._exit(code)
        finally:
            os._exit(99)
    os.close(theirs)
    with os.fdopen(out, "rb") as file:
        said = file.read().decode()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), said


def _run_limited(more_bytes: int, at_suspend: bool, words: list[str]) -> tuple[int, str]:
    from dmsoft.cli import run

    err = io.StringIO()
    with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()):
        if at_suspend:
            suspend = Device.suspend

            def limiting(self: Device, **options: bool) -> None:
                suspend(self, **options)
                limit(more_bytes)

            Device.suspend = limiting  # type: ignore[method-assign]
        else:
            limit(more_bytes)
        code = run(words)
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    return code, err.getvalue()


@pytest.mark.parametrize(("at_suspend", "amounts"), [(False, (0, 40)), (True, (0, 10))])
def test_a_command_that_gets_no_more_memory(rig: Rig, at_suspend: bool, amounts: tuple[int, ...]) -> None:
    rig.create(primary=rig.cut("p0", SIZE), one=rig.cut("s0", SIZE))
    rig.resync()
    codes = []
    for more in amounts:
        rig.write(3, 4)
        before = rig.secondary_header("one").sync.era
        code, said = limited(more * MIB, at_suspend, "resync", NAME)
        codes.append(code)
        print(more, code, said, flush=True)
        assert code in (0, 1, 6), said
        wait_until("nothing is suspended", lambda: not suspended())
        if code:
            assert "Error: " in said and "Hint: " in said, said
            assert rig.secondary_header("one").sync.era == before or not rig.differing("one"), said
            assert "Traceback" not in said, said
        rig.superset("one")
        assert rig.resync()["kind"] in ("incremental", "none")
        rig.equal()
    print(codes)
    assert codes[0] != 0


# It suspends the mirror, says so, and eats memory until it is ended.
_EATER = """
import sys
from dmsoft.mirror import barrier, locate
from dmsoft.mirror.running import Running, guard_of

running = Running.of(locate.assemble(sys.argv[1]))
with guard_of(running, coupled=True) as guard, barrier.barrier(running.names, guard, freeze=False, deadline=600):
    print("here", flush=True)
    sys.stdin.read(1)
    eaten = []
    while True:
        eaten.append(b"x" * (1 << 20))
"""


@pytest.fixture
def group() -> Iterator[Path]:
    """A control group that is ended as a whole when its memory runs out."""
    root = GROUP.parent
    if not (root / "cgroup.controllers").exists():
        sh("mount", "-t", "cgroup2", "cgroup2", root)
    (root / "cgroup.subtree_control").write_text("+memory")
    GROUP.mkdir()
    (GROUP / "memory.oom.group").write_text("1")
    yield GROUP
    for line in (GROUP / "cgroup.procs").read_text().split():
        (root / "cgroup.procs").write_text(line)
    GROUP.rmdir()


def test_a_command_that_is_ended_for_its_memory(rig: Rig, group: Path) -> None:
    """With all of its control group but the guard, which resumes what it left."""
    rig.create(primary=rig.cut("p0", SIZE), one=rig.cut("s0", SIZE))
    rig.resync()
    process = subprocess.Popen(
        ["sh", "-c", f'echo $$ >{group}/cgroup.procs; exec "$@"', "sh", sys.executable, "-c", _EATER, NAME],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None and process.stdout.readline() == b"here\n"
    assert suspended()
    used = int((group / "memory.current").read_text())
    (group / "memory.max").write_text(str(used + 8 * MIB))
    process.communicate(b"x", timeout=60)
    assert process.returncode == -signal.SIGKILL
    wait_until("nothing is suspended", lambda: not suspended(), seconds=10)
    wait_until("the guard has ended", lambda: not (group / "cgroup.procs").read_text().split())
    rig.write(3)
    assert rig.stale("one") == {3}
    rig.resync()
    rig.equal()
