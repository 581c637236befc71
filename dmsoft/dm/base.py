# SPDX-License-Identifier: GPL-2.0-or-later
"""What every device-mapper target has: a kind, parameters that print and parse, a comparison with the kernel's."""

from typing import ClassVar, Self

from dmsoft.dm.status import bad_text


def device_word(word: str) -> str:
    if not word or word == "-" or any(char.isspace() for char in word):
        raise ValueError(f"'{word}' does not name a device")
    return word


class BaseTarget:
    """What all targets share: ``kind``, the kernel's parameters, and the comparison with what the kernel shows."""

    kind: ClassVar[str]

    def params(self) -> str:
        raise NotImplementedError

    @classmethod
    def _parse(cls, text: str) -> Self:
        raise NotImplementedError

    @classmethod
    def parse(cls, text: str) -> Self:
        """The target whose ``params()``, or whose line in ``dmsetup table``, is ``text``."""
        try:
            return cls._parse(text)
        except ValueError as err:
            raise bad_text(cls.kind, text) from err

    def shows_as(self, shown: "BaseTarget") -> bool:
        """Whether ``shown``, read from the kernel, can be this target as it was loaded. Devices as ``MAJ:MIN``."""
        return self == shown
