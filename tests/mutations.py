# SPDX-License-Identifier: GPL-2.0-or-later
"""Headers that somebody tampered with: bytes, lengths and whole values, with the checksum put right or not."""

import hashlib
import json
import random
from collections.abc import Iterator
from typing import Any

from dmsoft.member.header import HEADER_BYTES, SLOT_BYTES
from dmsoft.member.prefix import MAX_PAYLOAD_BYTES, PREFIX_BYTES

_ODD: tuple[Any, ...] = (
    None, True, -1, 0, 1 << 63, (1 << 64) - 1, 1e308, "", "x" * 5000, "../../etc/x", "\x1b[2J", [], {}, [[[]]] * 50,
)  # fmt: skip


def mutated(good: bytes, chance: random.Random) -> bytes:
    """A header region that differs from ``good`` in what is signed, or in the signature, in both of its copies."""
    how = chance.choice([_bytes, _lengths, _values, _lies, _lies, _nesting])
    region = bytearray(good)
    for slot in (0, SLOT_BYTES):
        block, data = how(region[slot : slot + PREFIX_BYTES], _payload(region, slot), chance)
        if chance.random() < 0.8:
            zeroed = block[:32] + bytes(32) + block[64:]
            block[32:64] = hashlib.sha256(zeroed + data).digest()
        copy = (bytes(block) + data)[:SLOT_BYTES]
        region[slot : slot + len(copy)] = copy
    assert len(region) == HEADER_BYTES
    return bytes(region)


def _payload(region: bytearray, slot: int) -> bytes:
    length = int.from_bytes(region[slot + 28 : slot + 32], "little")
    return bytes(region[slot + PREFIX_BYTES : slot + PREFIX_BYTES + length])


def _bytes(block: bytearray, data: bytes, chance: random.Random) -> tuple[bytearray, bytes]:
    changed = bytearray(data)
    for _ in range(chance.randint(1, 8)):
        part, at = (changed, chance.randrange(len(data))) if chance.random() < 0.7 else (block, chance.randrange(64))
        part[at] ^= 1 << chance.randrange(8)
    if changed == data:
        block[64] ^= 1  # the signature
    return block, bytes(changed)


def _lengths(block: bytearray, data: bytes, chance: random.Random) -> tuple[bytearray, bytes]:
    length = chance.choice(
        [0, 1, len(data) - 1, len(data) + 1, MAX_PAYLOAD_BYTES, MAX_PAYLOAD_BYTES + 1, (1 << 32) - 1]
    )
    block[28:32] = length.to_bytes(4, "little")
    return block, data.ljust(min(length, MAX_PAYLOAD_BYTES), b" ")[: min(length, MAX_PAYLOAD_BYTES)]


def anywhere(found: Any, chance: random.Random) -> tuple[Any, Any]:
    """A dict or list, not empty, in what a JSON text says (which is one itself), and one of its keys."""
    place = found
    while True:
        key = chance.choice(list(place) if isinstance(place, dict) else list(range(len(place))))
        inner = place[key]
        if not isinstance(inner, dict | list) or not inner or chance.random() < 0.3:
            return place, key
        place = inner


def _values(block: bytearray, data: bytes, chance: random.Random) -> tuple[bytearray, bytes]:
    """Any value, anywhere in it, is replaced."""
    payload = json.loads(data)
    place, key = anywhere(payload, chance)
    place[key] = chance.choice([odd for odd in _ODD if odd != place[key]])
    return _with(block, json.dumps(payload, separators=(",", ":")).encode())


def _lies(block: bytearray, data: bytes, chance: random.Random) -> tuple[bytearray, bytes]:
    """Every value is of its type, and some of them lie: numbers, flags, texts that a person is shown."""
    payload = json.loads(data)
    texts = ["\x1b[2J\x1b[31m", "x\nfake: yes", "../../../net/evil/x", "\u202e", "x" * 200]
    lies = [lambda: payload["identity"].update(by_id=chance.sample(texts, 2))]
    lies.append(lambda: payload["regions"].update({chance.choice(texts): {"offset": 1 << 20, "length": 4096}}))
    for place in _inner(payload):
        if "doubt" in place:
            lies.append(lambda place=place: place.update(doubt=chance.choice(texts)))
        for key, value in place.items():
            if isinstance(value, int):
                other = (
                    not value
                    if isinstance(value, bool)
                    else chance.choice([0, 1, value + 4096, 1 << 40, (1 << 63) - 1])
                )
                lies.append(lambda place=place, key=key, other=other: place.update({key: other}))
    for lie in chance.sample(lies, chance.choice([1, 1, 3])):
        lie()
    return _with(block, json.dumps(payload, separators=(",", ":")).encode() + b" ")


def _inner(value: Any) -> Iterator[dict[str, Any]]:
    """Every object in it, itself included."""
    if isinstance(value, dict):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _inner(inner)


def _nesting(block: bytearray, data: bytes, chance: random.Random) -> tuple[bytearray, bytes]:
    depth = chance.choice([100, 10_000, MAX_PAYLOAD_BYTES // 2])
    return _with(block, b'{"role":"secondary","regions":' + b"[" * depth + b"]" * (depth - 20) + b"}")


def _with(block: bytearray, data: bytes) -> tuple[bytearray, bytes]:
    data = data[:MAX_PAYLOAD_BYTES]
    block[28:32] = len(data).to_bytes(4, "little")
    return block, data
