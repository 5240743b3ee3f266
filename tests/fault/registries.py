"""Registries that fail: each fault as it begins, and what a reader of a mounted model is to see of it.

The table is that of `tests.fault.test_registry`, whose tests have its names.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.fakes.registry import Auth, Behaviour, FakeRegistry, Generated
from tests.lab.daemon import Daemon
from tests.lab.program import wait_until
from tests.lab.reader import Reader

#: Seconds that a read waits without progress; a transfer may be silent for a third of it.
DEADLINE = 4.5
_NOWHERE = "http://127.0.0.1:1"  # tcpmux: nobody listens there
SIZE = (1 << 20) + 200_013


@dataclass
class Site:
    """A model at `registry`; `other` is a mirror before it, or the storage it redirects to. `data` are the bytes of cold.bin."""

    name: str
    daemon: Daemon
    registry: FakeRegistry
    other: FakeRegistry
    data: bytes
    normal: Behaviour
    at: Path
    digest: str = ""
    reader: Reader = field(init=False)

    @property
    def requests(self) -> int:
        return len(self.registry.requests)

    def lead(self, server: str, mirror: str = "") -> None:
        """Where the daemon finds the registry."""
        folder = self.daemon.hosts_dir / f"{self.registry.address.replace(':', '_')}_"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "hosts.toml").write_text(f'server = "{server}"\n' + (f'[host."{mirror}"]\n' if mirror else ""))

    def fail(self, **behaviour: object) -> None:
        self.registry.behaviour = Behaviour(**behaviour)  # type: ignore[arg-type]

    def hold(self, data: bytes) -> None:
        """Other bytes for the same digest."""
        self.registry.blobs[self.digest] = Generated.of(data)


@dataclass(frozen=True, slots=True)
class Fault:
    """`cause` is what status says while it lasts; empty where the reader gets right bytes all the same. `is_final`: there is nothing
    to wait for, so the registry is asked once; else it is asked as often as `asked`, as within one deadline and not in four. `place`:
    what kind of registry it is."""

    begin: Callable[[Site], None]
    cause: str = ""
    is_final: bool = False
    asked: range = range(2, 10)
    place: str = "plain"


def _mirror_fails(**behaviour: object) -> Callable[[Site], None]:
    def begin(site: Site) -> None:
        site.other.behaviour = Behaviour(**behaviour)  # type: ignore[arg-type]

    return begin


def _fails(**behaviour: object) -> Callable[[Site], None]:
    return lambda site: site.fail(**behaviour)


def _storage_refuses(status: int) -> Callable[[Site], None]:
    def begin(site: Site) -> None:
        site.other.behaviour = Behaviour(status={".*": status})

    return begin


def _token_server_down(site: Site) -> None:
    site.registry.forget_tokens()
    site.fail(status={"/token": 503})


def _password_changed(site: Site) -> None:
    site.registry.forget_tokens()
    site.registry.auth = Auth(bearer=True, password="changed")


def _larger_and_whole(site: Site) -> None:
    site.hold(site.data + b"more")
    site.fail(ignore_range=True)


def _restarts(site: Site) -> None:
    """It is up again once it has been asked in vain."""
    before = site.requests
    site.fail(status={".*": 503})

    def mend() -> None:
        wait_until(lambda: site.requests > before)
        site.fail()

    threading.Thread(target=mend, name="mend").start()


FAULTS = {
    # nothing wrong: others' trouble is not this one's
    "none": Fault(_fails()),
    # waited for, in vain
    "unreachable": Fault(lambda site: site.lead(_NOWHERE), "Connection refused", asked=range(1)),
    "silent": Fault(_fails(hang=True), "no answer in time"),
    "silent at a body's start": Fault(_fails(stall_after=0), r"silent for 1\.5 s"),
    "silent in a body": Fault(_fails(stall_after=1000), r"(silent for|too slow, .* in) 1\.5 s"),
    "dripping body": Fault(_fails(rate=20, piece=1), r"too slow, [0-9]+ bytes in 1\.5 s"),
    "dripping headers": Fault(_fails(drip_headers=0.05), "no answer in time"),
    "cut at a body's start": Fault(_fails(cut_after=0), "the connection ended early"),
    "resets": Fault(_fails(reset_after=0), "Connection reset by peer|the connection ended early"),
    "500": Fault(_fails(status={".*": 500}), "answered 500"),
    "503": Fault(_fails(status={".*": 503}), "answered 503"),
    "429": Fault(_fails(status={".*": 429}), "answered 429 DENIED, too many requests"),
    "429 for two seconds": Fault(
        _fails(status={".*": 429}, headers={"Retry-After": "2"}), "asks to wait 2 s", asked=range(1, 4)
    ),
    "401": Fault(_password_changed, "answered 401", place="token"),
    "401 without a challenge": Fault(_fails(status={".*": 401}), "answered 401"),
    "token server down": Fault(_token_server_down, "token server .* answered 503", place="token"),
    "403": Fault(_fails(status={".*": 403}), "answered 403"),
    "403 of storage": Fault(_storage_refuses(403), "redirects to .*, which answered 403", place="stored"),
    "400 of storage": Fault(_storage_refuses(400), "redirects to .*, which answered 400", place="stored"),
    # not worth waiting for
    "404": Fault(_fails(status={".*": 404}), "answered 404", is_final=True),
    "another range": Fault(_fails(wrong_range=512), "answers with bytes", is_final=True),
    "no range said": Fault(_fails(headers={"Content-Range": "bytes"}), "without saying which bytes", is_final=True),
    "a larger blob": Fault(
        lambda site: site.hold(site.data + b"more"), f"has {SIZE + 4} bytes of it.* that lies", is_final=True
    ),
    "a smaller blob": Fault(
        lambda site: site.hold(site.data[:-9]), f"has only {SIZE - 9} bytes of it.* that lies", is_final=True
    ),
    "more than asked": Fault(_fails(extra=b"more"), "declares .* bytes for a range of", is_final=True),
    "encoded": Fault(_fails(headers={"Content-Encoding": "gzip"}), "encodes its answer", is_final=True),
    "a larger blob, whole": Fault(_larger_and_whole, f"has {SIZE + 4} bytes of it.* that lies", is_final=True),
    # right bytes all the same
    "slow": Fault(_fails(rate=800_000, piece=8 << 10)),
    "silent again and again": Fault(_fails(stall_after=300_000)),
    "cut again and again": Fault(_fails(cut_after=300_000)),
    "reset again and again": Fault(_fails(reset_after=300_000)),
    "ends unsaid again and again": Fault(_fails(until_close=True, cut_after=300_000)),
    "no ranges": Fault(_fails(ignore_range=True)),
    "chunked": Fault(_fails(chunked=True)),
    "more than asked, behind its back": Fault(_fails(extra=b"HTTP/1.1 200 OK\r\n\r\n", extra_undeclared=True)),
    "more than asked, chunked": Fault(_fails(extra=b"more", chunked=True)),
    "restarts": Fault(_restarts),
    "token ends": Fault(lambda site: site.registry.forget_tokens(), place="token"),
    "mirror silent": Fault(_mirror_fails(hang=True), place="mirrored"),
    "mirror silent in a body": Fault(_mirror_fails(stall_after=300_000), place="mirrored"),
    "mirror drips": Fault(_mirror_fails(rate=20, piece=1), place="mirrored"),
    "mirror 503": Fault(_mirror_fails(status={".*": 503}), place="mirrored"),
    "mirror 404": Fault(_mirror_fails(status={".*": 404}), place="mirrored"),
    "mirror with another range": Fault(_mirror_fails(wrong_range=512), place="mirrored"),
}
