# SPDX-License-Identifier: GPL-2.0-or-later
"""The first root file system of a guest: loads a few modules, puts a writable overlay over the host's files.

virtme-ng's own mounts the host without a cache and lets single directories be written; here the whole tree is one
overlay on a tmpfs, so that any path can be written in the guest and none of it reaches the host, and 9p may cache,
which halves the boot time under TCG.
"""

import io
import lzma
import shutil
from pathlib import Path

from virtme.cpiowriter import CpioWriter  # type: ignore[import-untyped]

from tests.harness.bootimage import unpack_zstd
from tests.harness.cached import cached, identity
from tests.harness.errors import HarnessError
from tests.harness.kernels import Kernel

MOUNT_TAG = "dmsoft-root"
_MODULES = ("virtio_pci", "virtio_console", "9p", "9pnet_virtio", "overlay", "unix")

_INIT = f"""#!/bin/busybox sh
# What goes wrong here is only seen on the console.
fail() {{ echo "initramfs: $*"; exec /bin/busybox poweroff -f; }}
/bin/busybox mount -t proc proc /proc
for word in $(/bin/busybox cat /proc/cmdline); do
  case $word in
    init=*) init=${{word#init=}} ;;
    dmsoft.modules=*) modules=${{word#dmsoft.modules=}} ;;
  esac
done
for module in $(/bin/busybox cat /modules/order); do
  /bin/busybox insmod /modules/$module || fail "insmod $module"
done
/bin/busybox mount -t 9p -o ro,version=9p2000.L,trans=virtio,access=any,cache=loose,msize=512000 {MOUNT_TAG} /host \\
  || fail "mount of the host's files"
/bin/busybox mount -t tmpfs -o mode=0755,size=75% tmpfs /writes
/bin/busybox mkdir /writes/upper /writes/work
/bin/busybox mount -t overlay -o lowerdir=/host,upperdir=/writes/upper,workdir=/writes/work overlay /newroot \\
  || fail "mount of the overlay"
release=$(/bin/busybox uname -r)
# What other software hooks into the start of every Python would run in each program of a test, and slowly.
/bin/busybox rm -f /newroot/usr/lib/python3/dist-packages/*.pth /newroot/usr/local/lib/python3*/dist-packages/*.pth
if [ -n "$modules" ]; then
  /bin/busybox rm -rf /newroot/usr/lib/modules/$release
  /bin/busybox mkdir -p /newroot/usr/lib/modules
  /bin/busybox ln -s "$modules" /newroot/usr/lib/modules/$release
fi
/bin/busybox umount /proc
exec /bin/busybox switch_root /newroot "$init"
"""


def build(kernel: Kernel, cache: Path) -> Path:
    """The image for ``kernel``, built once and kept under ``cache``. Raises `HarnessError` without busybox."""
    busybox = shutil.which("busybox", path="/bin:/usr/bin")
    if busybox is None:
        raise HarnessError("busybox is not installed; run ./dev setup")
    modules = _load_order(kernel)
    key = _INIT.encode() + identity(Path(busybox), *modules)
    return cached(cache, f"initramfs-{kernel.release}", key, lambda: _archive(Path(busybox), modules))


def _load_order(kernel: Kernel) -> list[Path]:
    """The files of the modules a guest needs before it sees its root, dependencies first; built-in ones drop out."""
    dependencies: dict[str, list[str]] = {}
    for line in (kernel.modules / "modules.dep").read_text().splitlines():
        path, _, needs = line.partition(":")
        # modules.dep lists the nearest dependency first, so the deepest one comes last.
        dependencies[Path(path).name.partition(".")[0].replace("-", "_")] = [*reversed(needs.split()), path]
    names = [name for module in _MODULES for name in dependencies.get(module, [])]
    return [kernel.modules / name for name in dict.fromkeys(names)]


def _archive(busybox: Path, modules: list[Path]) -> bytes:
    out = io.BytesIO()
    cpio = CpioWriter(out)
    for directory in (b"bin", b"dev", b"proc", b"host", b"writes", b"newroot", b"modules"):
        cpio.mkdir(directory, 0o755)
    cpio.mkchardev(b"dev/null", (1, 3), 0o666)
    cpio.mkchardev(b"dev/console", (5, 1), 0o600)
    cpio.write_file(b"bin/busybox", busybox.read_bytes(), 0o755)
    names = []
    for module in modules:
        name = module.name.partition(".")[0] + ".ko"
        names.append(name)
        cpio.write_file(b"modules/" + name.encode(), _plain(module), 0o644)
    cpio.write_file(b"modules/order", "\n".join(names).encode() + b"\n", 0o644)
    cpio.write_file(b"init", _INIT.encode(), 0o755)
    cpio.write_trailer()
    return out.getvalue()


def _plain(module: Path) -> bytes:
    """The module without its compression: busybox's insmod takes none. Debian 13 and later ship ``.ko.xz``."""
    data = module.read_bytes()
    if module.suffix == ".xz":
        return lzma.decompress(data)
    if module.suffix == ".zst":
        return unpack_zstd(data)
    return data
