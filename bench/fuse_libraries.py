"""Which should serve FUSE from Python: mfusepy over libfuse 3, or the kernel's protocol spoken by ourselves (`mount/fuse/kernel.py`)?

    python -m bench.fuse_libraries [--rounds N] [--small]        as root; libfuse3.so.3 is Debian's libfuse3-3

A file of 2 GiB, cut into segments as the store cuts it, all of them in the page cache; beside it one of which nothing is here. Each side
is a process that serves both, found by the same image, from the same segment files:

- modelvold: `Shelf`, `Reads` and `Kernel`, with somebody to ask who never answers.
- mfusepy: `read` is one `pread`; requests of 1 MiB, kernel_cache, 65,535 in the background, and libfuse's own number of threads.
- mfusepy, threads: the first with 1000 threads at most, asynchronous direct I/O off, and `intr`: who waits looks twice a second whether
  its reader got a signal.

Speeds are of one reader, read or mapped, FUSE's pages dropped before it but for *warm*; *random* maps 4 KiB at random places. CPU is the
serving process's. Then many threads of one process wait for bytes that are not here: how long do 16 MiB of those that are here take
another process, and how soon does a process that waits end after SIGKILL, if it reads with `pread`, through a mapping, or with O_DIRECT?
(10 s: not in 10 s.) Of pyfuse3 there is what pip says.
"""

from __future__ import annotations

import errno
import importlib
import mmap
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from ctypes.util import find_library
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from modelvold.layer.cut import cut
from modelvold.layer.raw import toc_of_raw
from modelvold.linux import fuse
from modelvold.mount.fuse.files import Files
from modelvold.mount.fuse.kernel import Kernel
from modelvold.mount.fuse.reads import Reads
from modelvold.mount.fuse.shelf import Shelf
from modelvold.mount.fuse.wire import ALL
from modelvold.volume.erofs import write_image
from modelvold.volume.image import ImageReader
from modelvold.volume.tree import merge

from bench import report
from bench.measure import cpu_seconds, drop, peak_memory, turns, warm
from bench.readers import Piece, Readers
from bench.report import OURS, Figures
from tests.lab.content import Generated
from tests.lab.mounts import unmount_below
from tests.lab.program import Program

Start = Callable[[str, str, int], subprocess.Popen[bytes]]
MIB, GIB, GB = 1 << 20, 1 << 30, 10**9
_PRESENT, _MISSING = "model/present", "model/missing"
_PATIENCE, _PAGE, _PIECE = 10.0, 4096, 16 * MIB
_ASYNC_DIO = 1 << 15  # of fuse_common.h: FUSE_CAP_ASYNC_DIO
_SIDES = {OURS: "ours", "mfusepy": "plain", "mfusepy, threads": "threads"}
_SELF = [sys.executable, "-m", "bench.fuse_libraries"]


def main() -> None:
    chosen = report.arguments(__doc__).parse_args()
    size, waiting = (64 * MIB, (4,)) if chosen.small else (2 * GIB, (1, 64, 300))
    folder, figures = Path(tempfile.mkdtemp(prefix="modelvold-")), Figures()
    try:
        _write(folder, size)
        why_not = "" if find_library("fuse3") else "libfuse3.so.3 is not here; Debian's package libfuse3-3 brings it"
        why_not = why_not or _pip(folder / "site", "mfusepy")
        sides = [OURS] if why_not else list(_SIDES)
        with Readers(1) as readers:
            for who in turns(sides, chosen.rounds):
                with _served(folder, who) as (pid, _):
                    _measure(figures, who, folder / "mounted" / _PRESENT, pid, readers)
        for who in sides:
            for count in waiting:
                with _served(folder, who) as (pid, start):
                    _wait(figures, who, pid, start, count)
            for way in ("read", "mapped", "direct"):
                with _served(folder, who) as (_, start):
                    (reader := start(_MISSING, way, 1)).kill()
                    figures.add(f"SIGKILL of a reader that waits, {way}, s", who, _end_of(reader))
        print(report.machine(folder))
        print(f"{size // MIB} MiB; medians of {chosen.rounds}; of what they can do one try each")
        print(f"pyfuse3, from a wheel: {_pip(folder / 'none', 'pyfuse3', '--only-binary=:all:') or 'installed'}")
        print(f"mfusepy was not run: {why_not}" if why_not else "mfusepy as pip has it, over Debian's libfuse")
        report.show("fuse_libraries", chosen, figures)
    finally:
        unmount_below(folder)
        shutil.rmtree(folder)


def _write(folder: Path, size: int) -> None:
    """The image, and its segments as the store has them; the folder of a layer has its number."""
    tocs = toc_of_raw("present", size, 0o644, 0), toc_of_raw("missing", 8 * GIB, 0o644, 0)
    cuts = [cut(toc) for toc in tocs]
    (folder / "image").write_bytes(write_image(merge(tocs), cuts).bytes)
    for layer, extents in enumerate(cuts):
        (folder / f"{layer}").mkdir()
        for number, extent in enumerate(extents):
            content = b"" if layer else Generated(extent.length, number).at(0, extent.length)
            (folder / f"{layer}/{number:05}").write_bytes(content)


def _pip(target: Path, *words: str) -> str:
    """Installs below `target`. Empty, or the last of what pip says, without addresses."""
    pip = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--target", str(target), *words]
    ran = subprocess.run(pip, capture_output=True, text=True, check=False, timeout=300)
    return re.sub(r"\b\w+(?:\+\w+)?://\S+", "…", ran.stderr.strip().splitlines()[-1]) if ran.returncode else ""


@contextmanager
def _served(folder: Path, who: str) -> Iterator[tuple[int, Start]]:
    """The process that serves, and what starts a reader: so many threads that read 16 MiB each at a place of its own. Bytes that are not
    here are waited for when it returns. Readers end with the mount."""
    mounted, way = folder / "mounted", _SIDES[who]
    readers: list[subprocess.Popen[bytes]] = []
    site = {"PYTHONPATH": str(folder / "site")}

    def start(name: str, how: str, count: int) -> subprocess.Popen[bytes]:
        words = [*_SELF, "reader", str(mounted / name), how, str(count)]
        readers.append(subprocess.Popen(words, stderr=subprocess.DEVNULL))
        time.sleep(2 + count / 100 if name == _MISSING else 0)
        return readers[-1]

    mounted.mkdir(exist_ok=True)
    warm(sorted((folder / "0").iterdir()))
    with Program(who, [*_SELF, way, folder], folder / f"{way}.log", (mounted / _PRESENT).exists, site) as server:
        fuse.set_readahead(mounted, fuse.READAHEAD)
        try:
            yield server.pid, start
        finally:
            server.kill()  # who waits, and does not end by SIGKILL, is told that nobody serves
            for reader in readers:
                reader.kill()
                reader.wait()
            unmount_below(mounted)


def _measure(figures: Figures, who: str, file: Path, pid: int, readers: Readers) -> None:
    size = file.stat().st_size
    whole = [Piece(str(file), 0, size)]
    places = range(0, size, _PAGE)
    pages = [Piece(str(file), at, _PAGE) for at in random.Random(7).sample(places, min(4096, len(places) // 4))]
    for row, pieces in {"read": whole, "read, warm": whole, "mapped": whole, "mapped, random": pages}.items():
        if row != "read, warm":
            drop(file.parent)
        before = cpu_seconds(pid)
        swept = readers.sweep([pieces], is_mapped=row.startswith("mapped"))
        figures.add(f"{row}, GB/s", who, swept.bytes / (swept.ended - swept.began) / GB)
        figures.add(f"{row}, CPU s/GB", who, (cpu_seconds(pid) - before) / swept.bytes * GB)


def _wait(figures: Figures, who: str, pid: int, start: Start, count: int) -> None:
    waiting = start(_MISSING, "read", count)
    figures.add(f"{count} wait: 16 MiB of present bytes, s", who, _end_of(start(_PRESENT, "read", 1)))
    figures.add(f"{count} wait: threads that serve", who, len([*Path(f"/proc/{pid}/task").iterdir()]))
    figures.add(f"{count} wait: resident at most, MB", who, peak_memory(pid) / 1e6)
    assert waiting.poll() is None, "somebody got bytes that are not here"


def _end_of(process: subprocess.Popen[bytes]) -> float:
    """Seconds until then, `_PATIENCE` at most."""
    began = time.monotonic()
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=_PATIENCE)
    return min(time.monotonic() - began, _PATIENCE)


def _read(path: str, way: str, count: int) -> None:
    """A reader's own process."""
    file = os.open(path, os.O_RDONLY | (os.O_DIRECT if way == "direct" else 0))
    step = os.fstat(file).st_size // count // MIB * MIB

    def read(at: int) -> None:
        with mmap.mmap(-1, _PIECE) as buffer:  # at a page's start, as O_DIRECT wants it
            if way == "mapped":
                with mmap.mmap(file, _PIECE, prot=mmap.PROT_READ, offset=at) as mapped:
                    buffer[:] = mapped[:]
            else:
                os.preadv(file, [buffer], at)

    for number in range(count):
        threading.Thread(target=read, args=(number * step,)).start()


def _serve_ours(folder: Path) -> None:
    nobody: Any = SimpleNamespace(ask=lambda *_: None, withdraw=lambda *_: None)
    shelf, layers = Shelf(files := Files()), [folder / "0", folder / "1"]
    shelf.add("model", folder / "image", [(layer, len(list(layer.iterdir()))) for layer in layers])
    with Reads(shelf, files, nobody, deadline=3600.0) as reads:
        reads.shown((path.stat().st_ino, ALL) for path in layers[0].iterdir())
        Kernel(fuse.mount_root(folder / "mounted"), shelf, reads).run()


def _serve_mfusepy(folder: Path, way: str) -> None:
    library, never = importlib.import_module("mfusepy"), threading.Event()
    image = ImageReader(memoryview((folder / "image").read_bytes()))
    segments = [os.open(path, os.O_RDONLY) for layer in "01" for path in sorted((folder / layer).iterdir())]

    def find(path: str) -> int:
        if (nid := image.walk(path.removeprefix("/model")[1:].encode())) is None:
            raise library.FuseOSError(errno.ENOENT)
        return nid

    class Served(library.Operations):  # type: ignore[name-defined, misc]
        use_ns = True

        def init_with_config(self, connection: Any, config: Any) -> None:
            connection.max_read = connection.max_readahead = MIB
            connection.max_background = connection.congestion_threshold = 0xFFFF
            config.kernel_cache, config.entry_timeout, config.attr_timeout = 1, 86400.0, 86400.0
            if way == "threads":
                connection.want, config.intr = connection.want & ~_ASYNC_DIO, 1

        def getattr(self, path: str, fh: int | None = None) -> dict[str, int]:
            inode = image.inode(find(path))
            return {"st_mode": inode.mode, "st_size": inode.size, "st_nlink": inode.nlink}

        def readdir(self, path: str, fh: int) -> list[str]:
            return ["model"] if path == "/" else ["present", "missing"]

        def open(self, path: str, flags: int) -> int:
            return find(path)

        def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
            while path.endswith(_MISSING):
                never.wait(0.5 if way == "threads" else None)
                if library._libfuse.fuse_interrupted():  # noqa: SLF001
                    raise library.FuseOSError(errno.EINTR)
            extents = image.extents(fh, offset, size)
            return b"".join([os.pread(segments[each.device], each.length, each.offset) for each in extents])

    most = {"max_threads": 1000} if way == "threads" else {}
    library.FUSE(Served(), str(folder / "mounted"), foreground=True, ro=True, allow_other=True, max_read=MIB, **most)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["reader", path, way, count]:
            _read(path, way, int(count))
        case ["ours", where]:
            _serve_ours(Path(where))
        case ["plain" | "threads" as way, where]:
            _serve_mfusepy(Path(where), way)
        case _:
            main()
