# SPDX-License-Identifier: GPL-2.0-or-later
"""Files that are made once and kept."""

import fcntl
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


def cache_folder() -> Path:
    """Where kernels, boot images and QEMU are kept between runs, for every checkout of this user."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "dmsoft"


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """``folder``, made if need be, is filled by one run at a time."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def cached(folder: Path, name: str, key: bytes, make: Callable[[], bytes]) -> Path:
    """The file for ``name`` and ``key``; what is read at that path is whole, however many runs make it at once."""
    target = folder / f"{name}-{hashlib.sha256(key).hexdigest()[:12]}"
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=folder)
        try:
            with open(descriptor, "wb") as partial:
                partial.write(make())
            Path(name).rename(target)
        finally:
            Path(name).unlink(missing_ok=True)
    return target


def identity(*files: Path) -> bytes:
    """What changes when one of ``files`` does, without reading them."""
    return ";".join(f"{file}:{file.stat().st_size}:{file.stat().st_mtime_ns}" for file in files).encode()
