"""Root, capabilities and user namespaces, by the texts of /proc/self."""

from __future__ import annotations

from modelvold.doctor import privileges
from modelvold.doctor.line import Line

ALL = "Name:\tx\nCapPrm:\t0000000000000000\nCapEff:\t000001ffffffffff\n"
WHOLE = "         0          0 4294967295\n"


def check(euid: int = 0, status: str = ALL, uid_map: str = WHOLE) -> list[Line]:
    return list(privileges.check(euid, status, uid_map))


def test_root_with_everything() -> None:
    assert [line.level for line in check()] == ["ok", "ok"]


def test_somebody_else_is_told_what_works() -> None:
    (line,) = check(euid=1000)
    assert (line.level, line.what) == ("warn", "root")
    assert "user 1000" in line.seen
    assert "modelvold serve --user" in line.mend
    assert "directory" in line.mend


def test_each_capability_is_named_with_its_use() -> None:
    without_sys_admin = ALL.replace("1ffffffffff", f"{(1 << 41) - 1 & ~(1 << 21):011x}")
    _, line = check(status=without_sys_admin)
    assert line.level == "warn"
    assert line.seen == "no CAP_SYS_ADMIN, which mounts, and asks the kernel for events"
    assert "directory is what works" in line.mend
    _, line = check(status="CapEff:\t0000000000200000\n")
    assert "CAP_CHOWN" in line.seen
    assert "CAP_SYS_ADMIN" not in line.seen
    assert "directory" not in line.mend


def test_a_status_that_says_nothing_grants_nothing() -> None:
    _, line = check(status="")
    assert "CAP_SYS_ADMIN" in line.seen


def test_root_of_a_user_namespace_is_not_root() -> None:
    line, _ = check(uid_map="0 1000 1\n")
    assert (line.level, line.what) == ("warn", "root")
    assert "user namespace" in line.seen
