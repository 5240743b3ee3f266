"""Tars that lie, at the command line and through containerd: what is said, how much memory it takes, and that nothing stays."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import psutil
import pytest
from modelvold.oci.digest import Digest

from tests.fakes.registry import Generated
from tests.lab import documents
from tests.lab.backends import LAZY
from tests.layer.tars import END, header, member, pax
from tests.system.bad_stage import Stage, put_model, staged_or_skipped

pytestmark = pytest.mark.system

_TEN_MILLION = 10_000_000


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    """Which backend shows a volume makes no difference to one that is never opened."""
    with staged_or_skipped(LAZY) as stage:
        yield stage


@dataclass(frozen=True, slots=True)
class Case:
    """`says` and `next` stand in what the command line says, and in the pod's event."""

    tar: Callable[[], bytes | Generated]
    says: str
    path: str = ""
    next: str = "ask the producer to repack"


def _endless() -> Generated:
    """Ten million members, made when they are read."""

    def read(offset: int, length: int) -> bytes:
        first, last = offset // 512, -(-(offset + length) // 512)
        whole = b"".join(header(b"%d" % number) for number in range(first, last))
        return whole[offset - first * 512 :][:length]

    return Generated(_TEN_MILLION * 512, read)


CASES = {
    "a negative size": Case(
        lambda: header(b"minus", b"\xff" * 11 + b"\xf6") + END, "tar member 'minus' at byte 0: a size of -10 bytes"
    ),
    "a huge size": Case(lambda: header(b"huge", b"\x80" + b"\x7f" * 11) + END, "bytes end at"),
    "a size beyond the end": Case(
        lambda: header(b"long", 5000) + END, "its 5000 bytes end at 5512, beyond the tar's 1536"
    ),
    "a link to itself": Case(
        lambda: header(b"loop", kind=b"1", link=b"loop") + END, "'loop', which is no file before it"
    ),
    "links in a circle": Case(
        lambda: header(b"one", kind=b"1", link=b"two") + header(b"two", kind=b"1", link=b"one") + END,
        "'two', which is no file before it",
    ),
    "a name of 5,000 bytes": Case(
        lambda: pax(path=b"x" * 5000) + member(b"short", b"1") + END, "a path of 5000 bytes, more than 4095"
    ),
    "ten million members": Case(_endless, "files and folders", next="ask the producer to pack them in archives"),
    "cut short": Case(
        lambda: member(b"whole", b"w" * 600)[:1300], "the tar ends at 1300, inside the last block of its 600 bytes"
    ),
    "a path upwards": Case(lambda: member(b"a/../../etc/passwd", b"1") + END, "contains '..'"),
    "an absolute path": Case(lambda: member(b"/etc/passwd", b"1") + END, "is absolute"),
    "a device": Case(lambda: header(b"null", kind=b"3") + END, "a character device, which no volume can hold"),
    "a sparse file": Case(lambda: header(b"holes", kind=b"S") + END, "sparse"),
    "a broken checksum": Case(lambda: b"x" + header(b"a")[1:] + END, "checksum"),
    "no tar at all": Case(lambda: b"\x93NUMPY" + bytes(range(256)) * 8, "checksum"),
    "another name than the annotation's": Case(
        lambda: member(b"other.bin", b"1") + END, "by its annotation the tar holds 'weights.bin'", path="weights.bin"
    ),
    "a file that is a folder too": Case(
        lambda: member(b"a", b"1") + member(b"a/b", b"2") + END, "both claim the path 'a'"
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_tar_that_lies_is_named_and_leaves_nothing(stage: Stage, case: Case, request: pytest.FixtureRequest) -> None:
    """At the command line: status 1, one line with the model and the cause, one with the next step, one in the daemon's log;
    in a pod's event both; no volume, no mount, no content; and the daemon has not grown by more than a toc may take."""
    tar = case.tar()
    blob = tar if isinstance(tar, Generated) else Generated.of(tar)
    name = "bad-tar/" + request.node.callspec.id.replace(" ", "-").replace(",", "").replace("'", "")
    layer = documents.tar_layer(case.path, str(stage.fake.put_blob(blob, Digest.of(name.encode()))), blob.size)
    reference = put_model(stage.fake, name, [layer])
    before = psutil.Process(stage.daemon.pid).memory_info().rss
    for verb, call in ((stage.pull, "Pull"), (stage.mount, "Mount")):
        ran = verb(reference)
        assert ran.returncode == 1
        said, then = ran.stderr.splitlines()
        assert said.startswith(f"modelvold: {reference}: ")
        assert case.says in said
        assert case.next in then
        (line,) = stage.loud(name)[-1:]
        assert f"call={call} " in line
        assert case.says in line
    event = stage.refused_by_cri(reference)
    assert name in event
    assert case.says in event
    assert case.next in event
    assert psutil.Process(stage.daemon.pid).memory_info().rss - before < 400 << 20
    assert reference not in stage.volumes()
    assert stage.mounts() == []
    assert [path for path in (stage.daemon.root / "content").rglob("*") if path.is_file()] == []
    assert list((stage.daemon.root / "volumes").iterdir()) == []
    assert stage.containerd.cri.image_status(reference) is None
    assert stage.tracebacks() == 0
