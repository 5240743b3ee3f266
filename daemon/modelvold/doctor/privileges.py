"""Who runs us, and what the kernel lets them do: `/proc/self/status` and `uid_map`, as in proc(5). Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator

from modelvold.doctor.line import Group, Line, copied

GROUP = Group("privileges")
#: What the daemon uses, by number (linux/capability.h): the unit in systemd/ grants the same.
_NEEDED = {
    21: ("CAP_SYS_ADMIN", "mounts, and asks the kernel for events"),
    0: ("CAP_CHOWN", "gives files their owners"),
    1: ("CAP_DAC_OVERRIDE", "writes in folders of other owners"),
    2: ("CAP_DAC_READ_SEARCH", "reads in folders of other owners"),
    3: ("CAP_FOWNER", "gives files of other owners their modes"),
    4: ("CAP_FSETID", "keeps setgid bits of folders"),
}
_SYS_ADMIN = 21
#: To look at other users' processes: nothing that the daemon needs.
CAP_SYS_PTRACE = 19
_WHOLE_MAP = ["0", "0", "4294967295"]
_WITHOUT_ROOT = (
    "run it as root; without root this works, lazily where the package fuse3 is installed, else by the backend directory, with store and"
    " sockets in your own folders:"
)


def check(euid: int, status: str, uid_map: str) -> Iterator[Line]:
    """`status` and `uid_map` are the texts of /proc/self."""
    if euid != 0:
        mend = f"{_WITHOUT_ROOT}\n{copied('modelvold serve --user')}"
        yield GROUP.warn("root", f"no: user {euid}, so nothing can be mounted for containers", mend)
        return
    if uid_map.split() != _WHOLE_MAP:
        yield GROUP.warn(
            "root", "of a user namespace only, where the kernel refuses most mounts", "run it outside that namespace"
        )
    else:
        yield GROUP.ok("root", "yes")
    yield _capabilities(status)


def can(capability: int, status: str) -> bool:
    """Whether it is effective, by the text of /proc/self/status."""
    effective = re.search(r"(?m)^CapEff:\s*([0-9a-fA-F]+)$", status)
    return bool(effective and int(effective[1], 16) >> capability & 1)


def _capabilities(status: str) -> Line:
    missing = [number for number in _NEEDED if not can(number, status)]
    if not missing:
        return GROUP.ok("capabilities", ", ".join(name for name, _ in _NEEDED.values()))
    names = " ".join(_NEEDED[number][0] for number in missing)
    seen = "; ".join(f"no {name}, which {use}" for name, use in (_NEEDED[number] for number in missing))
    without = " Without CAP_SYS_ADMIN the backend directory is what works." if _SYS_ADMIN in missing else ""
    return GROUP.warn(
        "capabilities",
        seen,
        f"grant {names}: in a systemd unit by CapabilityBoundingSet, in a pod by"
        f" `securityContext: {{privileged: true}}`.{without}",
    )
