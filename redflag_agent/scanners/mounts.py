"""
Which mounts hold data: pure, so that every odd mount table can be tried.

Left out is what nobody can run out of or clean up: pseudo file systems, those in memory, and images, which are
full because they are made so. A device that is mounted more than once (bind mounts, subvolumes) counts once.
"""

from collections.abc import Iterable
from typing import Final

import attrs

PSEUDO: Final = frozenset(
    {
        "autofs", "bdev", "binder", "binfmt_misc", "bpf", "cgroup", "cgroup2", "configfs", "debugfs", "devfs",
        "devpts", "devtmpfs", "efivarfs", "fusectl", "mqueue", "nsfs", "proc", "pstore", "resctrl", "rootfs",
        "rpc_pipefs", "securityfs", "selinuxfs", "smackfs", "sysfs", "tracefs", "fuse.gvfsd-fuse", "fuse.lxcfs",
        "fuse.portal",
    }
)  # fmt: skip
"""The kernel's or the desktop's own. Asking an autofs would mount what it stands for."""

MEMORY: Final = frozenset({"hugetlbfs", "ramfs", "tmpfs"})

IMAGES: Final = frozenset(
    {"cramfs", "erofs", "iso9660", "romfs", "squashfs", "udf", "fuse.snapfuse", "fuse.squashfuse"}
)

_LAYERS: Final = frozenset({"aufs", "fuse.fuse-overlayfs", "overlay"})
"""Of a container. Seen from the host they lie on a file system that is listed itself; only a container's root is
all that it has."""


@attrs.frozen
class Mount:
    """
    A line of the mount table.

    Attributes:
        device: What is mounted.
        path: Where.
        type: Type of the file system.
        read_only: Whether it is mounted so.
    """

    device: str
    path: str
    type: str
    read_only: bool = False


def data_mounts(table: Iterable[Mount]) -> list[Mount]:
    """
    The mounts that hold data.

    Args:
        table: The mount table in its order: what is mounted later over the same path hides what was there.

    Returns:
        Each device once, where its path is shortest; the least deep first.
    """
    visible = {mount.path: mount for mount in table}
    chosen: dict[str, Mount] = {}
    for mount in sorted(filter(_holds_data, visible.values()), key=_depth):
        chosen.setdefault(_identity(mount), mount)
    return list(chosen.values())


def _holds_data(mount: Mount) -> bool:
    if mount.type in _LAYERS:
        return mount.path == "/"
    return mount.type not in PSEUDO | MEMORY | IMAGES and not mount.type.endswith(".AppImage")


def _identity(mount: Mount) -> str:
    # Some FUSE file systems call every mount by the name of the program: that says nothing.
    return mount.device if "/" in mount.device or ":" in mount.device else mount.path


def _depth(mount: Mount) -> tuple[int, str]:
    return mount.path.rstrip("/").count("/"), mount.path
