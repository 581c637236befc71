# SPDX-License-Identifier: GPL-2.0-or-later
"""Reading many disks when one may hang: it costs its share of patience, and the others are read all the same.

A thread that sits in a read which never returns cannot be ended. It is left behind, and keeps its process from being
gone altogether (the kernel waits for it), but not from going on.
"""

import queue
import threading
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from dmsoft.threads import launch

T = TypeVar("T")

# A rotating disk that sleeps takes up to half of this to spin up.
SECONDS: Final = 30.0

_Answers = queue.SimpleQueue[tuple[T | None, BaseException | None]]


def patiently(
    reads: Sequence[Callable[[], T]], seconds: float = SECONDS, *,
    given_up_on: Callable[[int, int], None] = lambda _index, _thread: None,
) -> list[tuple[T | None, BaseException | None] | None]:  # fmt: skip
    """What each of ``reads``, made one after the other, returned or raised; None for one that took longer, of which
    ``given_up_on`` is told the index and the kernel's number of the thread that is at it."""
    results: list[tuple[T | None, BaseException | None] | None] = []
    while len(results) < len(reads):
        answers: _Answers[T] = queue.SimpleQueue()
        given_up = threading.Event()
        rest = reads[len(results) :]
        thread = threading.Thread(target=_run, args=(rest, answers, given_up), daemon=True)
        launch(thread)
        for _ in rest:
            try:
                results.append(answers.get(timeout=seconds))
            except queue.Empty:
                given_up.set()
                given_up_on(len(results), thread.native_id or 0)
                results.append(None)
                break
        else:
            thread.join()  # callers fork
    return results


def _run(reads: Sequence[Callable[[], T]], answers: "_Answers[T]", given_up: threading.Event) -> None:
    for read in reads:
        if given_up.is_set():
            return
        try:
            answers.put((read(), None))
        except BaseException as err:  # whatever it is, it is for whoever asked
            answers.put((None, err))
