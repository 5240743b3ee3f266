"""Bytes that are not as promised, or never come: what is said, what readers get, and whom it delays."""

from __future__ import annotations

import errno
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import grpc
import pytest
from modelvold.oci.digest import Digest

from tests.fakes.registry import Behaviour, FakeRegistry, Generated, generated
from tests.lab.backends import Backend
from tests.lab.content import digest_of
from tests.lab.documents import model_layer
from tests.lab.program import wait_until
from tests.system.bad_stage import Stage, put_model, staged_or_skipped

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def stage(backend: Backend) -> Iterator[Stage]:
    with staged_or_skipped(backend) as stage:
        yield stage


def _larger(fake: FakeRegistry) -> str:
    """The manifest says 400,000 bytes, the blob has 300,000."""
    digest = fake.put_blob(b"L" * 300_000)
    return put_model(fake, "lies/larger", [model_layer("a.bin", str(digest), 400_000)])


def _smaller(fake: FakeRegistry) -> str:
    """The manifest says 200,000 bytes, the blob has 300,000."""
    digest = fake.put_blob(b"S" * 300_000)
    return put_model(fake, "lies/smaller", [model_layer("a.bin", str(digest), 200_000)])


def _rotten(fake: FakeRegistry) -> str:
    """The registry has other bytes than those of the digest."""
    right = b"R" * 300_000
    digest = fake.put_blob(Generated.of(b"X" + right[1:]), Digest.parse(digest_of(right)))
    return put_model(fake, "lies/rotten", [model_layer("a.bin", str(digest), len(right))])


def _mend(fake: FakeRegistry, repository: str, content: bytes) -> str:
    """What the producer pushes in its place."""
    return put_model(fake, repository, [model_layer("a.bin", str(fake.put_blob(content)), len(content))])


LIES = {
    "larger than the blob": (
        _larger,
        b"L" * 300_000,
        "has only 300000 bytes of it: the manifest names a size of 400000",
        "lazy",
    ),
    "smaller than the blob": (
        _smaller,
        b"S" * 300_000,
        "has 300000 bytes of it: the manifest names a size of 200000",
        "lazy",
    ),
    "another digest": (_rotten, b"R" * 300_000, "its bytes have digest sha256:", "quarantined"),
}


@pytest.mark.parametrize(("lie", "right", "says", "state"), LIES.values(), ids=LIES)
def test_bytes_that_are_not_as_promised_are_refused_until_mended(
    stage: Stage, lie: Callable[[FakeRegistry], str], right: bytes, says: str, state: str
) -> None:
    """A pull fails with the reason; status shows it and counts nothing as present; a container that has the model gets an
    input/output error and no byte, or is never made where bytes must be here first; `rm` clears it, and a mended registry then
    serves the right bytes."""
    reference = lie(stage.fake)
    uses = _container_of if stage.backend.is_lazy else _no_container_of
    with uses(stage, reference, says):
        before = len(stage.loud(reference.removesuffix(":v1")))
        ran = stage.pull(reference)
        assert ran.returncode == 1
        assert says in ran.stderr
        assert "the producer must push it again" in ran.stderr or "modelvold rm" in ran.stderr
        *event, told = stage.loud(reference.removesuffix(":v1"))[before:]
        assert all(re.search(r"fetch content=\S+ segment=0 failed|quarantine content=", line) for line in event)
        assert "refuse call=Pull" in told
        assert all(says in line for line in (*event, told))
        assert wait_until(lambda: stage.volumes()[reference]["present"] == 0, 10)
        shown = stage.volumes()[reference]
        state = "fetching" if state == "lazy" and not stage.backend.is_lazy else state
        assert (shown["state"], shown["durable"], shown["verified"]) == (state, 0, 0)
        assert says in shown["last_error"]
    removed = stage.daemon.cli("rm", reference)
    assert removed.returncode == 0, removed.stderr
    assert reference not in stage.volumes()
    assert stage.mounts() == []
    _mend(stage.fake, reference.removesuffix(":v1").partition("/")[2], right)
    assert stage.pull(reference).returncode == 0
    assert stage.mount(reference).returncode == 0
    assert (stage.folder / "at/a.bin").read_bytes() == right
    stage.umount()
    assert stage.daemon.cli("rm", reference).returncode == 0
    assert stage.mounts() == []


@contextmanager
def _container_of(stage: Stage, reference: str, says: str) -> Iterator[None]:
    """One that has the model, and reads it in vain when the block has ended; `rm` refuses meanwhile."""
    cri = stage.containerd.cri
    volume = cri.pull(reference)
    pod = cri.run_pod("liar")
    container = cri.create_container(pod, cri.pull(stage.image.reference), {"/model": volume})
    cri.start(container)
    yield
    read = cri.exec(container, ["/bin/cat", "/model/a.bin"])
    assert (read.code, read.stdout) == (1, b"")
    assert b"Input/output error" in read.stderr
    in_use = stage.daemon.cli("rm", reference)
    assert in_use.returncode == 1
    assert "in use by" in in_use.stderr
    cri.remove_pod(pod)
    cri.remove_image(volume)


@contextmanager
def _no_container_of(stage: Stage, reference: str, says: str) -> Iterator[None]:
    """The model is not even pulled, and the pod's event says why; nor is it mounted."""
    event = stage.refused_by_cri(reference)
    assert reference in event
    assert says in event
    assert "the producer must push it again" in event or "modelvold rm" in event
    assert stage.mounts() == []
    yield
    ran = stage.mount(reference)
    assert ran.returncode == 1
    assert says in ran.stderr
    assert stage.mounts() == []


def test_a_reader_of_a_wrong_size_gets_eio_by_itself(stage: Stage) -> None:
    """Without a pull: mounting asks for no bytes and succeeds, the first read fails with EIO, status says why. Where bytes must
    be here first, mounting fails."""
    reference = _larger(stage.fake)
    ran = stage.mount(reference)
    assert ran.returncode == (0 if stage.backend.is_lazy else 1)
    if stage.backend.is_lazy:
        with pytest.raises(OSError, match=re.escape("Input/output error")) as error:
            (stage.folder / "at/a.bin").read_bytes()
        assert error.value.errno == errno.EIO
        stage.umount()
    assert "the manifest names a size of 400000 bytes that lies" in stage.volumes()[reference]["last_error"]
    assert stage.daemon.cli("rm", reference).returncode == 0


def test_a_quarantine_outlives_the_daemon(stage: Stage) -> None:
    """After a restart it is still refused by name, nothing of it is present, and `rm` clears it."""
    reference = _rotten(stage.fake)
    assert stage.pull(reference).returncode == 1
    stage.daemon.restart()
    shown = stage.volumes()[reference]
    assert (shown["state"], shown["present"]) == ("quarantined", 0)
    assert "its bytes have digest sha256:" in shown["last_error"]
    for ran in (stage.mount(reference), stage.pull(reference)):
        assert ran.returncode == 1
        assert "is in quarantine: its bytes have digest" in ran.stderr
        assert "modelvold rm" in ran.stderr
    assert stage.daemon.cli("rm", reference).returncode == 0
    assert reference not in stage.volumes()
    assert stage.mounts() == []


def test_bytes_that_come_slowly(stage: Stage) -> None:
    """Where all of them must be here first, containerd's pull is told after 20 s how far it is; the work goes on, and the pull
    that kubelet makes next finds it done."""
    cri, content = stage.containerd.cri, generated(24 << 20, seed=90)
    stage.fake.add_model("good/slow", "v1", {"a.bin": content})
    reference = f"{stage.fake.address}/good/slow:v1"
    stage.fake.behaviour.rate = 1 << 18
    if not stage.backend.is_lazy:
        event = stage.refused_by_cri(reference)
        assert re.search(rf"model {reference}: [1-9]\d? % of its {24 << 20} bytes are here", event)
        assert "the work goes on" in event
        assert stage.mounts() == []
    stage.fake.behaviour.rate = None
    volume = cri.pull(reference)
    pod = cri.run_pod("patient")
    container = cri.create_container(pod, cri.pull(stage.image.reference), {"/model": volume})
    cri.start(container)
    read = cri.exec(container, ["/bin/sha256sum", "/model/a.bin"])
    assert f"sha256:{read.stdout.decode().split()[0]}" == str(content.digest())
    cri.remove_pod(pod)
    cri.remove_image(volume)
    assert wait_until(lambda: stage.mounts() == [], 10)
    assert stage.daemon.cli("rm", reference).returncode == 0


def test_a_registry_that_never_answers_delays_nobody_else(stage: Stage) -> None:
    """While pulls of it hang, at the command line and in containerd, a garbage collection runs and an ordinary pod
    starts; the command line then says what did not answer."""
    cri = stage.containerd.cri
    image, other = cri.pull(stage.image.reference), stage.registry.push.image("lab/other", files={"/other": b"x"})
    with FakeRegistry() as silent:
        silent.behaviour = Behaviour(hang=True)
        stage.lead(silent.address)
        reference = f"{silent.address}/models/hung:v1"
        said: dict[str, str] = {}
        hung = [
            threading.Thread(target=lambda: said.update(cli=stage.pull(reference).stderr), name="hung-cli"),
            threading.Thread(target=lambda: said.update(cri=_refused(stage, reference)), name="hung-cri"),
        ]
        for thread in hung:
            thread.start()
        assert wait_until(lambda: len(silent.requests) >= 2)
        # RemoveImage is answered when containerd's garbage collection has run (images.SynchronousDelete).
        cri.remove_image(cri.pull(other.reference))
        assert cri.image_status(other.reference) is None
        pod = cri.run_pod("ordinary")
        container = cri.create_container(pod, image)
        cri.start(container)
        assert cri.is_running(container)
        assert stage.volumes() is not None
        assert all(thread.is_alive() for thread in hung), f"no pull was to have ended: {said}"
        cri.remove_pod(pod)
        hung[0].join(60)
        assert said["cli"].startswith(f"modelvold: {reference}: {silent.address}: no answer in time")
        assert "check the host's name, the network, and hosts.toml" in said["cli"]
        # One line for the pull, one for containerd's HEAD, which the façade has answered by now.
        assert wait_until(lambda: len(stage.loud(silent.address)) == 2), stage.loud(silent.address)
        assert any("has not answered for 15 s; check that it is up" in line for line in stage.loud(silent.address))
    hung[1].join(60)
    assert reference in said["cri"]
    assert reference not in stage.volumes()
    assert stage.mounts() == []


def test_a_registry_silent_about_blobs_is_asked_once_for_what_is_here(stage: Stage) -> None:
    """Eight layers that the store has from elsewhere: the registry is asked whether it would give the first one, and
    as it does not say, nothing is shared; the pull goes on."""
    files = {f"{number}.bin": b"%d" % number * 1000 for number in range(8)}
    stage.fake.add_model("good/shared", "v1", files)
    known = f"{stage.fake.address}/good/shared:v1"
    assert stage.pull(known).returncode == 0
    with FakeRegistry() as silent:
        silent.add_model("models/silent", "v1", files)
        silent.behaviour = Behaviour(only="/v2/.*/blobs/.*", hang=True)
        stage.lead(silent.address)
        reference = f"{silent.address}/models/silent:v1"
        if stage.backend.is_lazy:
            image = stage.containerd.cri.pull(reference)
            assert len([request for request in silent.requests if request.is_blob]) == 1
            stage.containerd.cri.remove_image(image)
        else:
            event = stage.refused_by_cri(reference)
            assert f"model {reference}: 0 % of its" in event
            assert "the work goes on" in event
        assert stage.volumes()[reference]["present"] == 0
    for name in (reference, known):
        assert stage.daemon.cli("rm", name).returncode == 0
    assert stage.mounts() == []


def _refused(stage: Stage, reference: str) -> str:
    try:
        return stage.containerd.cri.pull(reference)
    except grpc.RpcError as error:
        return str(error)
