# SPDX-License-Identifier: GPL-2.0-or-later
"""One that hangs costs its share of patience, and keeps nobody from the others."""

import os
import threading
import time

from dmsoft.mirror import hung
from dmsoft.mirror.patience import patiently


def test_answers_come_in_order() -> None:
    assert patiently([]) == []
    assert patiently([lambda n=n: n * n for n in range(50)]) == [(n * n, None) for n in range(50)]  # type: ignore[misc]


def test_errors_come_back() -> None:
    error = OSError("broken")

    def fails() -> int:
        raise error

    assert patiently([lambda: 1, fails, lambda: 3]) == [(1, None), (None, error), (3, None)]


def test_those_that_hang_are_left_behind() -> None:
    forever, over = threading.Event(), []
    reads = [lambda: 0, lambda: int(forever.wait(30)), lambda: 2, lambda: int(forever.wait(30)), lambda: 4]
    start = time.monotonic()
    told = list[tuple[int, int]]()
    found = patiently(
        [*reads, lambda: over.append(1) or 5], 0.1, given_up_on=lambda index, thread: told.append((index, thread))
    )
    assert [index for index, _ in told] == [1, 3] and all(hung._stat(os.getpid(), thread) for _, thread in told)
    assert time.monotonic() - start < 20
    assert found == [(0, None), None, (2, None), None, (4, None), (5, None)]
    # One that answers after all does not go on with what others have done.
    forever.set()
    time.sleep(0.2)
    assert over == [1]
