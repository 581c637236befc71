# SPDX-License-Identifier: GPL-2.0-or-later
"""How long a backlog takes, told from two looks at a device's counters."""

import pytest

from dmsoft.mirror.backlog import expected


@pytest.mark.parametrize(
    ("looks", "seconds"),
    [
        ([(0, 7)], 0.0),
        ([(9, 7), (0, 16)], 0.0),
        ([(20, 0), (20, 10)], 0.2),  # as many came as were done
        ([(200, 5), (100, 105)], 0.1),
        ([(200, 5), (200, 5)], float("inf")),
    ],
)
def test_expected(looks: list[tuple[int, int]], seconds: float) -> None:
    left = iter(looks)
    assert expected(lambda: next(left), lambda _: None) == pytest.approx(seconds)
