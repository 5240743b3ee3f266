"""A registry that sends wrong bytes, and programs that have read them before all were here and could be judged.

The layer of each model is larger than a segment, so that its beginning can be read, wrong, while the rest is missing. Then a pull
brings the rest, the digest does not match, and from then on nobody who comes reads a wrong byte: not from the registry, not from
the disk, not from the page cache, whoever has it in memory.

Who has it mapped beside somebody else cannot be helped where EROFS shows it; the process that serves FUSE takes it from everybody.
"""

from __future__ import annotations

import errno
import os
import random
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import pytest
from modelvold.errors import Failure, Mismatch
from modelvold.lending.report import VolumeReport
from modelvold.oci.digest import Digest
from modelvold.points import Point
from modelvold.rpc.control import ControlClient

from tests.fakes.registry import FakeRegistry, Generated
from tests.fault.killer import Act, Board
from tests.fault.tally import Tally
from tests.lab.backends import FUSE, LAZY, Backend
from tests.lab.daemon import Daemon, Settings
from tests.lab.documents import model_config, model_layer, model_manifest, to_json
from tests.lab.mapper import Mapper
from tests.lab.program import wait_until

pytestmark = pytest.mark.system

SIZE = (20 << 20) + 4096  # two segments
RIGHT = random.Random(1).randbytes(SIZE)
WRONG = random.Random(2).randbytes(SIZE)
#: What is read before the layer is complete: all of it in the first segment.
READ = (1 << 20, 256 << 10)


@dataclass
class Stage:
    """`liar` sends wrong bytes, `honest` right ones; `at` is the folder where the model is shown."""

    daemon: Daemon
    liar: FakeRegistry
    honest: FakeRegistry
    tally: Tally
    board: Board
    at: Path
    backend: Backend

    def push(self, repository: str) -> str:
        """A model that both have, and that is asked for at the liar's."""
        self.tally.fault()
        layers = [model_layer("a.bin", str(Digest.of(RIGHT)), SIZE)]
        config = model_config(layers)
        described = {"digest": str(Digest.of(config)), "size": len(config)}
        manifest = to_json(model_manifest(described, layers))
        for registry, content in ((self.liar, WRONG), (self.honest, RIGHT)):
            registry.put_blob(config)
            registry.put_blob(Generated.of(content), Digest.of(RIGHT))
            registry.put_manifest(repository, "v1", manifest)
        return f"{self.liar.address}/{repository}:v1"

    def resort_to_honest(self) -> None:
        """Both are hosts of one registry, the liar is asked first."""
        self._lead(
            f'server = "{self.honest.origin}"\n[host."{self.liar.origin}"]\n  capabilities = ["pull", "resolve"]\n'
        )

    def liar_alone(self) -> None:
        self._lead(f'server = "{self.liar.origin}"\n')

    def mount(self, reference: str) -> Path:
        """The file."""
        self.at.mkdir(exist_ok=True)
        with ControlClient(self.daemon.socket) as control:
            list(control.mount(reference, self.at))
        return self.at / "a.bin"

    def pull(self, reference: str) -> None:
        with ControlClient(self.daemon.socket) as control:
            list(control.pull(reference))

    def pull_in_vain(self, reference: str) -> None:
        with pytest.raises(Mismatch, match="its bytes have digest"):
            self.pull(reference)

    def status(self, reference: str) -> VolumeReport:
        with ControlClient(self.daemon.socket) as control:
            (found,) = control.report(reference).volumes
        return found

    def poisoned(self, reference: str) -> list[str]:
        return sorted(self.status(reference).poisoned)

    def names(self, reference: str, *mappers: Mapper) -> bool:
        """Whether those are named who have wrong bytes mapped and keep them: by FUSE nobody does."""
        return self.poisoned(reference) == ([] if self.backend is FUSE else sorted(mapper.name for mapper in mappers))

    def read(self, path: Path, piece: tuple[int, int] = READ) -> bytes:
        """Afresh, by a descriptor of its own; nothing for EIO."""
        file = os.open(path, os.O_RDONLY)
        try:
            return os.pread(file, piece[1], piece[0])
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return b""
        finally:
            os.close(file)

    def denies(self, path: Path) -> bool:
        """Whether who comes gets EIO. Any other answer is wrong."""
        got = self.read(path)
        if got:
            self.tally.compare(got, b"", path)
        self.tally.denied += 1
        return True

    def agrees(self, path: Path, piece: tuple[int, int]) -> None:
        """Who comes reads the right bytes."""
        self.tally.compare(self.read(path, piece), RIGHT[piece[0] : sum(piece)], (path, piece))

    def is_denied(self, path: Path) -> bool:
        """Likewise, while the quarantine is being put up."""
        return self.read(path) == b""

    def clean(self, reference: str) -> None:
        with ControlClient(self.daemon.socket) as control:
            control.unmount(self.at)
            control.remove(reference)

    def _lead(self, text: str) -> None:
        home = self.daemon.hosts_dir / f"{self.liar.address.replace(':', '_')}_"
        home.mkdir(parents=True, exist_ok=True)
        (home / "hosts.toml").write_text(text)


def right(piece: tuple[int, int] = READ) -> str:
    return sha256(RIGHT[piece[0] : sum(piece)]).hexdigest()


def wrong(piece: tuple[int, int] = READ) -> str:
    return sha256(WRONG[piece[0] : sum(piece)]).hexdigest()


@pytest.fixture(scope="module", params=(LAZY, FUSE), ids=str)
def stage(module_folder: Path, tally: Tally, request: pytest.FixtureRequest) -> Iterator[Stage]:
    backend: Backend = request.param
    folder = module_folder / backend.name
    folder.mkdir()
    with ExitStack() as life:
        liar, honest = life.enter_context(FakeRegistry()), life.enter_context(FakeRegistry())
        board = life.enter_context(Board(folder / "board"))
        settings: Settings = {"fetch": {"prefetch": False}, "mount": backend.setting}
        daemon = Daemon(folder / "d", settings, python=board.python())
        made = Stage(daemon, liar, honest, tally, board, folder / "at", backend)
        made.liar_alone()
        life.enter_context(daemon)
        yield made


def test_what_was_read_before_is_read_no_more(stage: Stage) -> None:
    """Nobody has it mapped: who has the file open gets EIO like everybody else."""
    reference = stage.push("wrong/read")
    path = stage.mount(reference)
    with path.open("rb", buffering=0) as before:
        assert sha256(stage.read(path)).hexdigest() == wrong()
        stage.pull_in_vain(reference)
        assert wait_until(lambda: stage.is_denied(path), 10)
        assert stage.denies(path)
        with pytest.raises(OSError) as error:
            os.pread(before.fileno(), READ[1], READ[0])
        assert error.value.errno == errno.EIO
    assert (stage.status(reference).state, stage.poisoned(reference)) == ("quarantined", [])
    stage.clean(reference)


def test_mapped_by_one_program(stage: Stage) -> None:
    """It is ended by SIGBUS rather than go on with wrong bytes; nothing is poisoned."""
    reference = stage.push("wrong/mapped")
    path = stage.mount(reference)
    with Mapper(path) as mapper:
        assert mapper.read(*READ) == wrong()
        stage.pull_in_vain(reference)
        assert wait_until(lambda: stage.is_denied(path), 10)
        assert stage.denies(path)
        assert stage.poisoned(reference) == []
        assert mapper.read(*READ) == ""
        assert mapper.ended_by == signal.SIGBUS
    stage.clean(reference)


def test_mapped_by_two_programs(stage: Stage) -> None:
    """They cannot be helped: status names them; by FUSE they can, as if there were one. Who comes, at the volume's path or in a folder
    where it was shown before, gets EIO. When one of them is gone the other one has no wrong byte any more."""
    reference = stage.push("wrong/poisoned")
    path = stage.mount(reference)
    volume = Path(stage.status(reference).path) / "a.bin"
    with Mapper(path) as one, Mapper(path) as two:
        assert {one.read(*READ), two.read(*READ)} == {wrong()}
        stage.pull_in_vain(reference)
        assert wait_until(lambda: stage.names(reference, one, two), 10)
        assert wait_until(lambda: stage.is_denied(path), 10)
        assert stage.denies(volume)
        assert stage.denies(path)
        ended = [one, two]
        if stage.backend is not FUSE:
            assert {one.read(*READ), two.read(*READ)} == {wrong()}
            told = stage.daemon.cli("status").stdout
            assert one.name in told
            assert two.name in told
            ended.remove(two)
            two.end()
            assert wait_until(lambda: stage.poisoned(reference) == [], 30)
        for mapper in ended:
            assert mapper.read(*READ) == ""
            assert mapper.ended_by == signal.SIGBUS
    stage.clean(reference)


def test_the_daemon_dies_before_it_has_dropped_them(stage: Stage, tally: Tally) -> None:
    """When the segments are gone and the pages are not: the next one sees to it. The registry has been mended meanwhile."""
    reference = stage.push("wrong/killed")
    path = stage.mount(reference)
    with Mapper(path) as one, Mapper(path) as two:
        assert {one.read(*READ), two.read(*READ)} == {wrong()}
        stage.board.order(Act.KILL, Point.STORE_TRUNCATED, hit=2)
        with pytest.raises(Failure):
            stage.pull(reference)
        assert wait_until(lambda: not stage.daemon.is_running, 10)
        assert stage.board.is_done
        tally.kill()
        assert sha256(stage.read(path)).hexdigest() == wrong()
        stage.liar.put_blob(Generated.of(RIGHT), Digest.of(RIGHT))
        stage.daemon.stop()
        stage.daemon.start()
        tally.restart()
        assert wait_until(lambda: stage.names(reference, one, two), 10)
        assert wait_until(lambda: sha256(stage.read(path)).hexdigest() == right(), 10)
        stage.agrees(path, READ)
        stage.agrees(Path(stage.status(reference).path) / "a.bin", READ)
    assert wait_until(lambda: stage.poisoned(reference) == [], 30)
    stage.clean(reference)


def test_another_host_has_the_right_bytes(stage: Stage) -> None:
    """All is fetched again, and verified: who comes reads the right bytes, while the two that map wrong ones are named. With one
    of them gone, the other one reads right bytes too. By FUSE all do, at once."""
    stage.resort_to_honest()
    reference = stage.push("wrong/mended")
    path = stage.mount(reference)
    with Mapper(path) as one, Mapper(path) as two:
        assert {one.read(*READ), two.read(*READ)} == {wrong()}
        stage.pull(reference)
        assert wait_until(lambda: stage.names(reference, one, two), 10)
        assert stage.status(reference).state == "verified"
        if stage.backend is FUSE:
            assert wait_until(lambda: one.read(*READ) == right(), 10)
        for start in range(0, SIZE, 5 << 20):
            stage.agrees(path, (start, min(5 << 20, SIZE - start)))
        if stage.backend is not FUSE:
            assert {one.read(*READ), two.read(*READ)} == {wrong()}
            one.end()
            assert wait_until(lambda: stage.poisoned(reference) == [], 30)
        assert two.read(*READ) == right()
    stage.clean(reference)
    stage.liar_alone()
