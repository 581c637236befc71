# SPDX-License-Identifier: GPL-2.0-or-later
"""Writes pages that tell what they are: each is full of (sequence number, page number), and numbers only rise.

``DEVICE MAILBOX SEED FIRST``: until its standard input ends; after each fsync it marks how far everything is durable.
Imports nothing of ours, so that it starts at once.
"""

import json
import mmap
import os
import random
import select
import struct
import sys
from pathlib import Path

PATH = Path(__file__).resolve()
PAGE = 4096
STAMP = struct.Struct("<QQ")
_MARK = 1 << 20


def stamp(number: int, page: int) -> bytes:
    return STAMP.pack(number, page) * (PAGE // STAMP.size)


def main() -> None:
    device, mailbox, seed, first = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    chance, number, errors = random.Random(seed), first, []
    fd, mail = (os.open(path, os.O_RDWR | os.O_DIRECT) for path in (device, mailbox))
    pages = os.lseek(fd, 0, os.SEEK_END) // PAGE
    # Few places for the most part, so that a resync beside it comes to an end on a slow machine as well.
    hot = [chance.randrange(pages) for _ in range(6)]
    buffer, mark = mmap.mmap(-1, 16 * PAGE), mmap.mmap(-1, PAGE)
    print("ready", flush=True)
    while not select.select([0], [], [], chance.choice([0, 0.03, 0.1]))[0]:
        count = chance.choice([1, 1, 1, 1, 1, 1, 1, 16])
        page = min(chance.choice(hot) if chance.random() < 0.85 else chance.randrange(pages), pages - count)
        for index in range(count):
            buffer[index * PAGE : (index + 1) * PAGE] = stamp(number + index, page + index)
        try:
            with memoryview(buffer) as view, view[: count * PAGE] as part:
                os.pwritev(fd, [part], page * PAGE)
            number += count
            if chance.random() < 0.1:
                os.fsync(fd)
                mark[:] = f"synced {number - 1}".encode().ljust(PAGE, b"\0")
                os.pwritev(mail, [mark], _MARK)
        except OSError as err:
            errors.append(str(err))
            break
    print(json.dumps({"next": number, "errors": errors}))


if __name__ == "__main__":
    main()
