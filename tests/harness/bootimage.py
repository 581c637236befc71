# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel as QEMU starts it quickest: uncompressed, because an emulated CPU needs four seconds to unpack it."""

import lzma
import struct
import subprocess
from pathlib import Path

from tests.harness.cached import cached, identity
from tests.harness.kernels import Kernel

# The x86 boot protocol (Documentation/arch/x86/boot.rst): offsets of the number of 512-byte setup sectors after the
# first, of the magic, and of the compressed payload's place (counted from the end of the setup sectors) and length.
_SETUP_SECTORS, _MAGIC, _PAYLOAD = 0x1F1, 0x202, 0x248
# ELF note (name size, descriptor size, type XEN_ELFNOTE_PHYS32_ENTRY, name) with which QEMU starts an ELF kernel.
_PVH_NOTES = tuple(struct.pack("<III", 4, size, 18) + b"Xen\0" for size in (4, 8))


def build(kernel: Kernel, cache: Path) -> Path:
    """The uncompressed kernel, made once and kept under ``cache``; its image as it is where that cannot be had."""
    try:
        return cached(cache, f"vmlinux-{kernel.release}", identity(kernel.image), lambda: _bootable(kernel.image))
    except ValueError:
        return kernel.image


def _bootable(image: Path) -> bytes:
    elf = unpack(image.read_bytes())
    if not any(note in elf for note in _PVH_NOTES):
        raise ValueError("the kernel has no PVH entry point")
    return elf


def unpack(image: bytes) -> bytes:
    """The ELF file inside a bzImage. Raises `ValueError` for another format or an unknown compression."""
    if image[_MAGIC : _MAGIC + 4] != b"HdrS":
        raise ValueError("not a bzImage")
    offset, length = struct.unpack_from("<II", image, _PAYLOAD)
    start = 512 * (image[_SETUP_SECTORS] + 1) + offset
    # The last four bytes are the unpacked size, written there by the kernel's build.
    payload = image[start : start + length - 4]
    if payload.startswith(b"\xfd7zXZ\0"):
        return lzma.decompress(payload)
    if payload.startswith(b"\x28\xb5\x2f\xfd"):
        return unpack_zstd(payload)
    raise ValueError("the kernel's compression is not known")


def unpack_zstd(data: bytes) -> bytes:
    """``data`` without its zstd compression, which Python's library cannot undo before 3.14."""
    return subprocess.run(["zstd", "-dc"], input=data, check=True, capture_output=True).stdout
