# SPDX-License-Identifier: GPL-2.0-or-later
"""The lab's inside: runs as root in its VM and does what the host says, over a disk that is a mailbox."""

import contextlib
import fcntl
import json
import mmap
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.crash.mailbox import ANSWER, LENGTH, MARK, MOST, PAGE, TASK

Verb = dict[str, Any]
_ETC = Path("/etc/dmsoft")
_POLL_SECONDS = 0.005
_BLKFLSBUF = 0x1261


class Mail:
    """The guest's end of the mailbox."""

    def __init__(self) -> None:
        self.fd = os.open("/dev/disk/by-id/virtio-mail", os.O_RDWR | os.O_DIRECT)
        self._page = mmap.mmap(-1, PAGE)
        self._last = 0

    def mark(self, text: str) -> None:
        """Say on the tape what happens here; returns when it is there. From any thread."""
        with mmap.mmap(-1, PAGE) as page:
            page[:] = text.encode()[:PAGE].ljust(PAGE, b"\0")
            os.pwritev(self.fd, [page], MARK)

    def task(self) -> Verb:
        """Wait for the next task."""
        while True:
            os.preadv(self.fd, [self._page], TASK)
            number, length = LENGTH.unpack_from(self._page)
            if number != self._last:
                break
            time.sleep(_POLL_SECONDS)
        self._last = number
        with mmap.mmap(-1, MOST) as buffer:
            os.preadv(self.fd, [buffer], TASK)
            found: Verb = json.loads(buffer[LENGTH.size : LENGTH.size + length])
            return found

    def answer(self, value: object) -> None:
        data = json.dumps(value).encode()
        data = LENGTH.pack(self._last, len(data)) + data
        assert len(data) <= MOST
        with mmap.mmap(-1, -(-len(data) // PAGE) * PAGE) as buffer:
            buffer[: len(data)] = data
            os.pwritev(self.fd, [buffer], ANSWER)


def files() -> dict[str, str]:
    """What dmsoft keeps in /etc."""
    return {str(path): path.read_text() for path in _ETC.rglob("*") if path.is_file()}


def reset(etc: dict[str, str], disks: list[str]) -> None:
    """As after a boot: nothing in memory but those files in /etc."""
    from dmsoft.mirror.lock import RUN_DIR

    for folder in (_ETC, RUN_DIR):
        shutil.rmtree(folder, ignore_errors=True)
    for path, text in etc.items():
        Path(path).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        Path(path).write_text(text)
        os.chmod(path, 0o600)
    for disk in disks:
        # The disks are others now than the page cache may believe.
        fd = os.open(f"/dev/disk/by-id/virtio-{disk}", os.O_RDONLY)
        fcntl.ioctl(fd, _BLKFLSBUF)
        os.close(fd)


def main() -> None:
    from tests.crash.life import Life, careless
    from tests.harness.guestkit import Inventory, KernelLog, clean
    from tests.vm.rig import dmsoft, sh

    for module in ("dm_mod", "dm_era", "dm_raid", "dm_writecache", "dm_delay"):
        sh("modprobe", module)
    mail, before, log = Mail(), Inventory.now(), KernelLog()

    def verb(words: list[str]) -> Verb:
        start = time.monotonic()
        ran = dmsoft(*words)
        return {"code": ran.code, "out": ran.out, "err": ran.err, "seconds": time.monotonic() - start}

    def live(task: Verb) -> object:
        with careless(task["careless"]):
            Life(mail, task["seed"], task["story"], task["deeds"]).run()
        return None

    tasks: dict[str, Callable[[Verb], object]] = {
        "live": live,
        "reset": lambda task: reset(task["etc"], task["disks"]),
        "verbs": lambda task: [verb(words) for words in task["verbs"]],
        "clean": lambda _: {"left": clean(before), "faults": log.faults()},
    }
    while (task := mail.task())["do"] != "end":
        try:
            mail.answer({"is": tasks[task["do"]](task)})
        except BaseException as err:
            import traceback

            mail.answer({"failed": f"{err}\n{traceback.format_exc()}"[-20000:]})
    mail.answer({"is": None})


if __name__ == "__main__":
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with contextlib.suppress(KeyboardInterrupt):
        main()
    sys.exit(0)
