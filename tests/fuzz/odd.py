# SPDX-License-Identifier: GPL-2.0-or-later
"""Odd bytes, words and values: what an attacker, a torn write or a typing error makes of good ones."""

import json
import random
from typing import Any

from tests.mutations import anywhere

# Words that parsers, shells, terminals and file systems break on. No NUL: no argument and no path can have one.
WORDS = (
    "", " ", "-", "--", "---", "-1", "0", "00", "+1", "1.5", "1e9", "0x10", "१२", "٣", "½", "1_0", "9" * 30,
    "9" * 5000, "nan", "inf", "-inf", "1e999", "null", "true", "%", "100%", "999%", "%s%n", "{}", "$(reboot)",
    "`reboot`", ";reboot", "|", "&&", "*", "?", "~", "~root", ".", "..", "../..", "../../etc/passwd", "/", "//",
    "/dev", "/dev/null", "/dev/zero", "/dev/tty", "/proc/self/mem", "/proc/self/fd/0", "/sys", "/dev/block/0:0",
    "/dev/block/1:1/..", "/no/such", "a/b", "a\\b", "a b", "a\tb", "a\nb", "a\rb", "a\x08b", "\x7f", "\x1b[2J",
    "\x1b]0;title\x07", "\x9b31m", "\u202ereversed", "\u200b", "\ufeff", "e\u0301", "Ä", "日本語", "😀", "\ud800",
    "\udcff", "\udcff\udcfe", "x" * 48, "x" * 49, "x" * 300, "x" * 5000, "=", "a=", "=a", "a=b=c", "--json", "--help",
    "--debug", "-h", "--yes", "--no-such", "control", "lower", "metadata", "slot1", "primary", "'", '"', "\\", "1M",
    "4K", "1E", "999999999999999999E", "1MiB", "1 M", "-1M", "0M", "5m", "30s", "0s", "999999999999999999w", "1d",
    "ms",
)  # fmt: skip
# Values that fields break on.
VALUES: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 255, 1 << 31, 1 << 32, 1 << 62, 1 << 63, (1 << 64) - 1, 10**40, 1e308, -0.0, 0.5, "",
    "x" * 5000, "../../etc/x", "\x1b[2J\nfake: yes", "\x00", "a" * 32, "2026-13-41T99:99:99Z", [], {}, [[[]]] * 50,
    [None] * 300,
)  # fmt: skip
_TOKENS = (
    b"",
    b"\0",
    b"\xff",
    b"\n",
    b" ",
    b"-",
    b"0",
    b"9" * 50,
    b"\x1b[2J",
    b"{",
    b"[" * 500,
    b'"',
    b"\\u0000",
    b"\xed\xa0\x80",
)


def bytes_of(good: bytes, chance: random.Random) -> bytes:
    """``good`` with one to eight changes: bits, lost ends, repeated and lost parts, tokens put in."""
    data = bytearray(good)
    for _ in range(chance.choice([1, 1, 2, 8])):
        at, length = chance.randrange(len(data) + 1), chance.choice([1, 1, 2, 8, 64, 512])
        match chance.randrange(6):
            case 0 if at < len(data):
                data[at] ^= 1 << chance.randrange(8)
            case 1:
                del data[at : at + length]
            case 2:
                data[at:at] = data[at : at + length]
            case 3:
                data[at : at + chance.choice([0, length])] = chance.choice(_TOKENS)
            case 4:
                del data[at:]
            case _:
                data[at : at + length] = chance.randbytes(min(length, len(data) - at))
    return bytes(data)


def json_of(good: bytes, chance: random.Random) -> bytes:
    """A JSON text with a value in it replaced, taken out or named otherwise; now and then its bytes are changed."""
    if chance.random() < 0.3:
        return bytes_of(good, chance)
    found = json.loads(good)
    if not isinstance(found, dict | list) or not found or chance.random() < 0.05:
        return json.dumps(chance.choice(VALUES)).encode()
    place, key = anywhere(found, chance)
    inner = place[key]
    how = chance.random()
    if how < 0.1:
        del place[key]
    elif how < 0.2 and isinstance(place, dict):
        place[chance.choice(["", "more", "x" * 1000, "\x1b[2J\n"])] = place.pop(key)
    else:
        place[key] = chance.choice([odd for odd in VALUES if odd is not inner])
    return json.dumps(found, separators=(",", ":")).encode()


def word(good: tuple[str, ...], chance: random.Random, share: float = 0.7) -> str:
    """One of ``good``, or in that share of all cases an odd word or both in one."""
    if chance.random() >= share:
        return chance.choice(good)
    if chance.random() < 0.7:
        return chance.choice(WORDS)
    return chance.choice(good) + chance.choice(("", "=", ",", ":", " ", "/", "\n")) + chance.choice(WORDS)


def text_of(good: str, chance: random.Random) -> str:
    """``good`` with words of it replaced, lost, repeated and put elsewhere, or with its bytes changed."""
    if chance.random() < 0.4:
        return bytes_of(good.encode(), chance).decode(errors=chance.choice(["replace", "surrogateescape"]))
    words = good.split(" ")
    for _ in range(chance.choice([1, 1, 2, 4])):
        at = chance.randrange(len(words) + 1)
        match chance.randrange(4):
            case 0 if at < len(words):
                words[at] = word((words[at],), chance)
            case 1:
                del words[at : at + 1]
            case 2:
                words.insert(at, chance.choice([*words, *WORDS]))
            case _:
                chance.shuffle(words)
    return " ".join(words)
