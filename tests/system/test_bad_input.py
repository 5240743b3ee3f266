"""Bad input, at the command line and through containerd: what is said, what is logged, and that nothing stays."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from modelvold.oci.digest import Digest

from tests.lab.backends import Backend
from tests.lab.documents import Document, model_layer
from tests.lab.program import free_port
from tests.system.bad_stage import Stage, put, put_model, staged_or_skipped

pytestmark = pytest.mark.system

_REPACK = "ask the producer to pack it"


@pytest.fixture(scope="module")
def stage(backend: Backend) -> Iterator[Stage]:
    with staged_or_skipped(backend) as stage:
        yield stage


@dataclass(frozen=True, slots=True)
class Case:
    """`put` makes the bad thing and gives its reference. `says` and `next` are in what the command line says, and in a pod's
    event; where containerd does not pass our words on, `untold` is what is there instead. `requests` are the façade's refusals.
    """

    put: Callable[[Stage], str]
    says: str
    next: str
    requests: int = 2
    untold: str = ""


def _layer(stage: Stage, path: str, content: bytes = b"w" * 5000, **fields: object) -> Document:
    return {**model_layer(path, str(stage.fake.put_blob(content)), len(content)), **fields}


def _nobody_there(stage: Stage) -> str:
    host = f"127.0.0.1:{free_port()}"
    stage.lead(host)
    return f"{host}/models/any:v1"


def _answered(status: int) -> Callable[[Stage], str]:
    def make(stage: Stage) -> str:
        stage.fake.add_model(f"bad/{status}", "v1", {"a.bin": b"w"})
        stage.fake.behaviour.status[f"/v2/bad/{status}/.*"] = status
        return f"{stage.fake.address}/bad/{status}:v1"

    return make


def _without_name(stage: Stage) -> str:
    stage.private.add_model("bad/private", "v1", {"a.bin": b"w"})
    return f"{stage.private.address}/bad/private:v1"


def _with_path(name: str, path: str) -> Callable[[Stage], str]:
    return lambda stage: put_model(stage.fake, f"bad/{name}", [_layer(stage, path)])


def _two_with_one_path(stage: Stage) -> str:
    return put_model(stage.fake, "bad/two", [_layer(stage, "a.bin"), _layer(stage, "./a.bin", b"other")])


def _size_of_metadata_lies(stage: Stage) -> str:
    return put_model(stage.fake, "bad/metadata", [_layer(stage, "a.bin", size=5001)])


CASES = {
    "unknown reference": Case(lambda stage: f"{stage.registry.host}/models/none:v1", "answered 404", "spelling", 1),
    "404": Case(_answered(404), "answered 404", "spelling", 1),
    "registry down": Case(_nobody_there, "Connection refused", "check the host's name", 1),
    "401": Case(_without_name, "wants a user name and password", "docker login", 1, "no basic auth credentials"),
    "403": Case(_answered(403), "answered 403", "ask whoever runs the registry", 1, "403 Forbidden"),
    "500": Case(_answered(500), "answered 500", "ask whoever runs the registry", 1),
    "not JSON": Case(
        lambda stage: put(stage.fake, "bad/json", b"<html>Log in</html>"), "JSON is malformed", "check the reference"
    ),
    "5 MB": Case(
        lambda stage: put_model(stage.fake, "bad/big", [_layer(stage, "a.bin")], annotations={"x": "y" * (5 << 20)}),
        "4 MiB",
        "repack",
    ),
    "unknown layer type": Case(
        lambda stage: put_model(stage.fake, "bad/type", [_layer(stage, "a.bin", mediaType="application/x.odd")]),
        "'application/x.odd' is not known",
        _REPACK,
    ),
    "inner ..": Case(_with_path("dots", "a/../../etc/passwd"), "path 'a/../../etc/passwd' contains '..'", _REPACK),
    "absolute path": Case(_with_path("absolute", "/etc/passwd"), "path '/etc/passwd' is absolute", _REPACK),
    "two layers, one path": Case(_two_with_one_path, "have one path 'a.bin'", _REPACK),
    "a size that contradicts itself": Case(_size_of_metadata_lies, "the size lies: 5000 bytes", _REPACK),
}
_UNTOLD = {name: case for name, case in CASES.items() if case.untold}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_what_cannot_be_opened_is_named_and_leaves_nothing(stage: Stage, case: Case) -> None:
    """At the command line: status 1, one line that names the thing and the cause, one with the next step; one line in
    the daemon's log for each try; no volume, no mount. Through containerd: the same, in the pod's event."""
    reference = case.put(stage)
    name = reference.removesuffix(":v1")
    before, traces = stage.volumes(), stage.tracebacks()
    for verb, call in ((stage.pull, "Pull"), (stage.mount, "Mount")):
        ran = verb(reference)
        assert ran.returncode == 1
        said, then = ran.stderr.splitlines()
        assert said.startswith(f"modelvold: {reference}:")
        assert case.says in said
        assert case.next in then
        (line,) = stage.loud(name)[-1:] if call == "Mount" else stage.loud(name)
        assert f"call={call} " in line
        assert case.says in line
        assert case.next in line
    assert len(stage.loud(name)) == 2
    event = stage.refused_by_cri(reference)
    assert name in event
    assert (case.untold or case.says) in event
    assert case.next in event or case.untold
    told = [line for line in stage.daemon.log_text().splitlines() if "facade.server: refuse" in line and name in line]
    assert len(told) == case.requests, "one line for each request of containerd's"
    assert all(case.next in line for line in told)
    assert stage.volumes() == before
    assert stage.mounts() == []
    assert stage.containerd.cri.image_status(reference) is None
    assert stage.tracebacks() == traces


@pytest.mark.xfail(
    strict=True, reason="containerd has nothing to answer a challenge with, and asks the registry itself"
)
@pytest.mark.parametrize("case", _UNTOLD.values(), ids=_UNTOLD)
def test_a_pods_event_names_the_next_step(stage: Stage, case: Case) -> None:
    """Not so where a registry wants to know who asks: the façade must challenge, which is all that it can then say. What we
    would say is in the daemon's log alone."""
    assert case.next in stage.refused_by_cri(case.put(stage))


def test_a_plain_image_is_no_model_to_the_command_line(stage: Stage) -> None:
    """It is said so, nothing is mounted, and containerd pulls it as ever."""
    for ran in (stage.pull(stage.image.reference), stage.mount(stage.image.reference)):
        assert ran.returncode == 1
        assert f"{stage.image.reference}: not a ModelPack model" in ran.stderr
        assert "pack the model as ModelPack" in ran.stderr
    assert stage.image.reference not in stage.volumes()
    assert stage.mounts() == []
    assert stage.containerd.cri.pull(stage.image.reference).startswith("sha256:")


def test_a_path_that_packers_begin_with_dots_is_stripped(stage: Stage) -> None:
    """ModelPack's packers write `../` for files beside the build folder; it names a file in the volume all the same."""
    reference = put_model(stage.fake, "odd/dots", [_layer(stage, "../../sub/x.json", b"{}"), _layer(stage, "./y.bin")])
    assert stage.mount(reference).returncode == 0
    at = stage.folder / "at"
    assert sorted(str(path.relative_to(at)) for path in at.rglob("*")) == ["sub", "sub/x.json", "y.bin"]
    assert (at / "sub/x.json").read_bytes() == b"{}"
    stage.umount()
    assert stage.daemon.cli("rm", reference).returncode == 0
    assert reference not in stage.volumes()


def test_another_manifest_than_the_digest_asked_for_is_refused(stage: Stage) -> None:
    """A registry that answers for a digest with a document of another: the digest is named, and nothing is opened."""
    stage.fake.add_model("bad/other", "v1", {"a.bin": b"w"})
    asked = Digest.of(b"a manifest it has lost")
    stage.fake.manifests["bad/other", str(asked)] = stage.fake.manifests["bad/other", "v1"]
    reference = f"{stage.fake.address}/bad/other@{asked}"
    for ran in (stage.pull(reference), stage.mount(reference)):
        assert ran.returncode == 1
        assert f"{reference}: what {stage.fake.address} sent has the digest" in ran.stderr
        assert f"not {asked}" in ran.stderr
        assert "the producer must push it again" in ran.stderr
    assert reference in stage.refused_by_cri(reference)
    told = [line for line in stage.loud("facade.server: refuse") if str(asked) in line]
    assert told
    assert all(f"{stage.fake.address} answers with another manifest" in line for line in told), told
    assert stage.containerd.cri.image_status(reference) is None
    assert not any("bad/other" in name for name in stage.volumes())
    assert stage.mounts() == []
