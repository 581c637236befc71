# SPDX-License-Identifier: GPL-2.0-or-later
"""What the running kernel can do: targets and their versions."""

from collections.abc import Iterable

from dmsoft.dm.libdevmapper import TaskType
from dmsoft.dm.task import Task, prepare
from dmsoft.errors import DmsoftError, KernelError, NotRootError
from dmsoft.run import CommandError, run


def target_versions() -> dict[str, tuple[int, int, int]]:
    """Targets that are loaded now, with their versions. Raises `NotRootError`."""
    with Task(TaskType.LIST_VERSIONS) as task:
        task.run()
        return task.versions()


def require_targets(names: Iterable[str]) -> dict[str, tuple[int, int, int]]:
    """Load the modules of the targets ``names`` where needed; the versions of all targets.

    Raises `NotRootError`, and `KernelError` that names the first target the kernel does not have.
    """
    try:
        prepare()
    except NotRootError:
        raise
    except DmsoftError:
        _modprobe("dm-mod", "device-mapper")
        prepare()
    versions = target_versions()
    for name in sorted(set(names) - versions.keys()):
        _modprobe(f"dm-{name}", f"the target {name}")
        versions = target_versions()
        if name not in versions:
            raise _missing(f"the target {name}")
    return versions


def _missing(what: str) -> KernelError:
    return KernelError(f"The running kernel lacks {what}.", hint="Boot a kernel that has it, such as Debian's own.")


def _modprobe(module: str, what: str) -> None:
    try:
        run(["modprobe", "--", module])
    except CommandError as err:
        raise _missing(what) from err
