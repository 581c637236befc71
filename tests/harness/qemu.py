# SPDX-License-Identifier: GPL-2.0-or-later
"""The QEMU command line of one throw-away VM."""

import base64
import json
import shlex
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from tests.harness.initramfs import MOUNT_TAG
from tests.harness.kernels import Kernel

# Every device left out is one less for udev and its modules: this and a plain CPU halve the boot time under TCG.
_MACHINE = "q35,sata=off,smbus=off,i8042=off,vmport=off,hpet=off"
# The least x86-64-v2, which numpy needs: AVX is slow to emulate and has the kernel load a dozen crypto modules.
_TCG_CPU = "Nehalem-v1,+rdrand"
CHECKOUT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Image:
    """A raw image file behind one virtio disk, found in the guest at ``/dev/disk/by-id/virtio-SERIAL``.

    Every request to it is also written to ``log``, for `tests.harness.writelog`. ``speed`` and
    ``iops``: bytes and requests a second at most, 0 for no limit. If it is ``served``, ``path`` is the socket of a
    `tests.harness.nbd.Server`, which knows the disk by its serial.
    """

    path: Path
    serial: str
    log: Path | None = None
    speed: int = 0
    iops: int = 0
    served: bool = False

    @property
    def limits(self) -> str:
        """As properties of QEMU's throttle group; empty if there is none."""
        limits = {"x-bps-total": self.speed, "x-iops-total": self.iops}
        return ",".join(f"{name}={value}" for name, value in limits.items() if value)


@dataclass(frozen=True)
class Hardware:
    """What the VM is made of; ``program`` is QEMU, ``memory`` in MiB, ``accel`` is ``kvm`` or ``tcg``."""

    program: str
    kernel: Kernel
    boot_image: Path
    initramfs: Path
    images: tuple[Image, ...]
    memory: int
    cpus: int
    accel: str
    console: Path


def arguments(hardware: Hardware, ports: dict[str, int]) -> list[str]:
    """Argument list for QEMU; ``ports`` maps each virtio-serial port to an inherited, connected socket descriptor."""
    # PDEATHSIG: a VM never outlives the runner, however that ends.
    argv = ["setpriv", "--pdeathsig", "KILL", hardware.program, "-nodefaults", "-no-user-config", "-display", "none"]
    argv += ["-no-reboot", "-machine", _MACHINE, *_processor(hardware), "-m", f"{hardware.memory}M"]
    argv += ["-kernel", str(hardware.boot_image), "-initrd", str(hardware.initramfs)]
    argv += ["-append", " ".join(_kernel_command_line(hardware))]
    argv += ["-chardev", f"file,id=console,path={_escape(str(hardware.console))}", "-serial", "chardev:console"]
    argv += ["-fsdev", "local,id=root,path=/,security_model=none,readonly=on,multidevs=remap"]
    argv += ["-device", f"virtio-9p-pci,fsdev=root,mount_tag={MOUNT_TAG}", "-device", "virtio-serial-pci"]
    for name, descriptor in ports.items():
        argv += ["-chardev", f"socket,id={name},fd={descriptor}"]
        argv += ["-device", f"virtserialport,name=dmsoft.{name},chardev={name}"]
    for number, image in enumerate(hardware.images):
        if image.limits:
            argv += ["-object", f"throttle-group,id=limit{number},{image.limits}"]
        argv += ["-blockdev", json.dumps(_blockdev(image, number))]
        argv += ["-device", f"virtio-blk-pci,drive=disk{number},serial={image.serial}"]
    return argv


def _processor(hardware: Hardware) -> list[str]:
    if hardware.accel == "kvm":
        return ["-accel", "kvm", "-cpu", "host", "-smp", str(hardware.cpus)]
    return ["-accel", "tcg,thread=multi", "-cpu", _TCG_CPU, "-smp", str(hardware.cpus)]


def _kernel_command_line(hardware: Hardware) -> list[str]:
    virtme_init = Path(sysconfig.get_path("purelib")) / "virtme/guest/bin/virtme-ng-init"
    agent = shlex.join(["/usr/bin/python3", "-I", "-S", str(CHECKOUT / "tests/harness/guest.py")])
    words = [
        f"init={virtme_init}",
        "virtme_root_mods=1",
        "virtme_root_user=1",
        "virtme_hostname=dmsoft-vm",
        "virtme_console=ttyS0",
        f"virtme.exec=`{base64.b64encode(agent.encode()).decode()}`",
        "console=ttyS0",
        # Warnings and worse reach the console log, which is all that is left of a guest that died.
        "loglevel=5",
        # A panic must end the VM, and an oops is one: with -no-reboot the reset it asks for stops QEMU.
        "panic=-1",
        "oops=panic",
        "sysctl.kernel.hung_task_timeout_secs=60",
        # A host that is busy with other work stops an emulated CPU for a while: no fault of the guest.
        "watchdog_thresh=60",
        # On a busy host the check that an emulated timer ticks fails now and then, and the kernel panics over it.
        "no_timer_check",
        # What an emulated CPU need not do.
        "mitigations=off",
        "init_on_alloc=0",
        "apparmor=0",
        "audit=0",
        "modprobe.blacklist=lpc_ich,iTCO_wdt,pcspkr,evdev,button",
    ]
    modules = hardware.kernel.modules
    if modules.parent != Path("/usr/lib/modules"):
        words.append(f"dmsoft.modules={modules}")
    return words


def _blockdev(image: Image, number: int) -> dict[str, object]:
    """The disk as QEMU is to open it, limited in its speed if that is wished."""
    node = f"disk{number}"
    if not image.limits:
        return _opened(image, node)
    below = _opened(image, f"{node}-file")
    return {"driver": "throttle", "node-name": node, "throttle-group": f"limit{number}", "file": below}


def _opened(image: Image, node: str) -> dict[str, object]:
    """Host page cache with flushes honoured (QEMU's writeback), and discards passed through to the sparse file."""
    if image.served:
        server = {"type": "unix", "path": str(image.path)}
        return {"driver": "nbd", "node-name": node, "discard": "unmap", "server": server, "export": image.serial}
    file = {"driver": "file", "filename": str(image.path), "aio": "threads", "discard": "unmap"}
    if image.log is None:
        return {"driver": "raw", "node-name": node, "discard": "unmap", "file": file}
    raw = {"driver": "raw", "discard": "unmap", "file": file}
    log = {"driver": "raw", "file": {"driver": "file", "filename": str(image.log), "aio": "threads"}}
    return {"driver": "blklogwrites", "node-name": node, "discard": "unmap", "file": raw, "log": log}


def _escape(value: str) -> str:
    """QEMU's option lists are split at commas; a doubled one is literal."""
    return value.replace(",", ",,")
