# SPDX-License-Identifier: GPL-2.0-or-later
"""The load's own eyes: what it would not see, it could not find."""

import random
import shutil
import sqlite3
import tarfile
from pathlib import Path

import pytest

from tests.load.guest import troubles
from tests.load.work import Fio, Sqlite, Tree, Worker, WorkError


def test_one_wrong_byte_in_a_tree(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(range(256)) * 40)
    with tarfile.open(tmp_path / "tree.tar", "w") as archive:
        archive.add(tmp_path / "file", "some/file")
    folder = tmp_path / "tree"
    folder.mkdir()
    tree = Tree(random.Random(1), tmp_path / "tree.tar")
    tree.begin(folder)
    tree.inspect(folder, still=True)
    packed = next(path for path in (folder / "kept/.git/objects").glob("??/*") if path.stat().st_size > 1000)
    for path, complaint in ((folder / "stays/some/file", "another one"), (packed, "git fsck")):
        good = path.read_bytes()
        path.chmod(0o600)
        path.write_bytes(good[:-1000] + bytes([good[-1000] ^ 1]) + good[-999:])
        with pytest.raises(WorkError, match=complaint):
            tree.inspect(folder, still=True)
        path.write_bytes(good)


@pytest.mark.slow
def test_one_wrong_byte_of_fio(tmp_path: Path) -> None:
    fio = Fio(random.Random(1))
    fio.begin(tmp_path)
    fio.round()
    fio.inspect(tmp_path, still=True)
    with (tmp_path / "random.1.0").open("r+b") as file:
        file.seek(123456)
        byte = file.read(1)
        file.seek(123456)
        file.write(bytes([byte[0] ^ 1]))
    with pytest.raises(WorkError, match="verify failed"):
        fio.inspect(tmp_path, still=True)


def test_a_bank_that_lost_something(tmp_path: Path) -> None:
    work = Sqlite(random.Random(1))
    work.begin(tmp_path)
    work.inspect(tmp_path, still=True)
    with sqlite3.connect(tmp_path / "bank") as bank:
        bank.execute("update account set balance = balance + 1 where id = 7")
    with pytest.raises(WorkError, match="500001 in all"):
        work.inspect(tmp_path, still=True)


def test_what_the_kernel_says_of_other_disks() -> None:
    pulled = [
        "I/O error, dev vdc, sector 123 op 0x1:(WRITE) flags 0x0",
        "Buffer I/O error on dev vdc, logical block 3, async page read",
    ]
    others = [
        "I/O error, dev vda, sector 123 op 0x1:(WRITE) flags 0x0",
        "Buffer I/O error on dev dm-3, logical block 3, lost async page write",
        "EXT4-fs error (device dm-3): ext4_lookup:1785: inode #13: comm cp: iget: checksum invalid",
        "EXT4-fs warning (device dm-3): ext4_end_bio:343: I/O error 10 writing to inode 12",
        "XFS (dm-3): Metadata I/O Error (0x1) detected at xfs_trans_read_buf_map",
        "XFS (dm-3): Corruption of in-memory data (0x8) detected",
        "JBD2: Detected IO errors while flushing file data on dm-3-8",
    ]
    fine = [
        "EXT4-fs (dm-3): mounted filesystem with ordered data mode. Quota mode: none.",
        "XFS (dm-3): Ending recovery",
    ]
    assert troubles([*pulled, *fine, *others], {"vdc", "vdd"}) == others
    assert troubles(pulled, set()) == pulled


def test_a_worker_tells_what_went_wrong(tmp_path: Path) -> None:
    worker = Worker(Sqlite(random.Random(1)), tmp_path / "bank")
    worker.begin()
    shutil.rmtree(tmp_path / "bank")
    worker.start()
    worker.join()
    with pytest.raises(WorkError):
        worker.check()
