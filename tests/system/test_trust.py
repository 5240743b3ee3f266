"""No container sees an empty model, and no image's author gets another's model by writing annotations."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path

import pytest

from tests.lab import debian, documents
from tests.lab.containerd import Containerd
from tests.lab.content import digest_of
from tests.lab.daemon import Daemon, Settings
from tests.lab.push import Pushed
from tests.lab.registry import Registry
from tests.system.trust_stage import OURS, askers, digests, model, node, told

pytestmark = pytest.mark.system

_AROUND = "has no layers that containerd understands (a model pulled around the façade?) and would be empty"
_MEND = "remove the image, see that hosts.toml names the façade, pull it again"


@pytest.mark.parametrize("listens", [False, True], ids=["stopped", "failing"])
def test_a_model_pulled_around_the_facade_is_in_no_container(folder: Path, listens: bool) -> None:
    """Façade stopped, or refusing: containerd pulls the artifact from the registry itself, by tag and by digest, and
    CreateContainer fails with a text that says why. (containerd fetches the weights, to no use; we ask for nothing.)"""
    settings: Settings = {} if listens else {"facade": {"listen": ""}}
    with node(folder, settings, hosts_dir=folder / "names-no-facade") as at:
        pushed, _ = model(at.registry, 1)
        for reference in (pushed.reference, pushed.pinned):
            volume = at.cri.pull(reference)
            said = at.refusal(volume)
            assert _AROUND in said
            assert _MEND in said
            at.cri.remove_image(volume)
        assert OURS not in askers(at.registry, pushed.layers["weights.safetensors"])
        assert at.daemon.cli("status", pushed.reference).returncode != 0
        assert ("no proxy" in at.daemon.log_text()) is listens
        # What the text asks for mends it.
        at.daemon.configure("facade", listen=at.daemon.facade)
        at.registry.write_hosts(at.daemon.hosts_dir, at.daemon.facade)
        at.daemon.restart()
        container = at.run({"/model": at.cri.pull(pushed.reference)})
        assert digests(at.cri, container, "/model") == pushed.layers


def test_a_model_by_its_own_digest_is_in_no_container(folder: Path) -> None:
    """The façade works, but no image can have the digest of the model's own manifest: the container is refused, and
    the façade's log names the tag to pin it by. That tag works."""
    with node(folder) as at:
        pushed, weights = model(at.registry, 2)
        said = at.refusal(at.cri.pull(pushed.pinned))
        assert _AROUND in said
        pinned = f"{pushed.reference.rpartition(':')[0]}:modelvold-sha256-{pushed.digest.removeprefix('sha256:')}"
        assert f"ask for {pinned} instead" in at.daemon.log_text()
        container = at.run({"/model": at.cri.pull(pinned)})
        assert digests(at.cri, container, "/model")["weights.safetensors"] == digest_of(weights)


def test_another_snapshotter_is_told_what_to_do(folder: Path) -> None:
    """A containerd with overlayfs, led to the façade, asks for the synthetic layer: the pull fails, and its message
    says that modelvold must be the snapshotter."""
    with node(folder) as at, Containerd(folder / "other", at.image) as other:
        pushed, _ = model(at.registry, 3)
        at.registry.write_hosts(other.certificates, at.daemon.facade)
        said = told(lambda: other.cri.pull(pushed.reference))
        assert "a model has no layer to unpack, yet another snapshotter asked" in said
        assert "make modelvold the snapshotter in containerd's configuration" in said
        assert other.cri.image_status(pushed.reference) is None
        assert at.registry.bytes_of(pushed.layers["weights.safetensors"]) == 0


def forged(registry: Registry, victim: Pushed) -> str:
    """An ordinary image whose author wrote the annotations that our façade writes, naming somebody else's model."""
    # A layer of its own: one that is unpacked already is not prepared again, whatever its annotations say.
    layer = documents.busybox_layer(debian.busybox(), {"/evil": b"mine"})
    described = registry.push.described("evil/image", layer)
    config = registry.push.described("evil/image", documents.image_config([described["digest"]]))
    annotations = {
        "containerd.io/snapshot/modelvold.reference": victim.pinned,
        "containerd.io/snapshot/modelvold.manifest": victim.digest,
    }
    manifest = documents.image_manifest(config, [{**described, "annotations": annotations}])
    registry.push.manifest("evil/image", "v1", manifest)
    return f"{registry.host}/evil/image:v1"


@pytest.mark.parametrize("known", [False, True], ids=["never-pulled", "on-this-node"])
def test_an_image_that_names_anothers_model_is_refused(folder: Path, known: bool) -> None:
    """The node could read the model named; the image is refused all the same, also when the model is on the node
    already, and the registry of the model is asked nothing."""
    with node(folder) as at, Registry(folder / "victim", users={"node": "node secret"}) as victim:
        at.containerd.hosts(victim)
        at.daemon.login(victim.host, "node", "node secret")
        pushed, _ = model(victim, 4)
        if known:
            at.cri.pull(pushed.reference)
        reference = forged(at.registry, pushed)
        victim.forget()
        said = told(lambda: at.cri.pull(reference))
        assert f"its layer's annotations name the model {pushed.pinned}" in said
        assert "is not one that the façade of this node gave" in said
        assert victim.served() == []
        assert at.cri.image_status(reference) is None


def test_a_copy_of_a_models_image_in_another_repository_is_refused(folder: Path) -> None:
    """The very documents that the façade gave for a model, put into the author's own repository: their digest is
    one we gave, but not for that repository. Refused, and the registry of the model is asked nothing."""
    with node(folder) as at, Registry(folder / "victim") as victim:
        at.containerd.hosts(victim)
        pushed, _ = model(victim, 9)
        manifest = given(at.daemon, victim, "manifests/v1")
        config = given(at.daemon, victim, f"blobs/{json.loads(manifest)['config']['digest']}")
        at.registry.push.described("evil/copy", config)
        planted(at.registry, "evil/copy", manifest)
        victim.forget()
        said = told(lambda: at.cri.pull(f"{at.registry.host}/evil/copy:v1"))
        assert f"its layer's annotations name the model {pushed.pinned}" in said
        assert f"but was pulled from {at.registry.host}/evil/copy" in said
        assert victim.served() == []


def given(daemon: Daemon, registry: Registry, what: str) -> bytes:
    """What the façade answers for `models/lab` of `registry`."""
    url = f"http://{daemon.facade}/v2/models/lab/{what}?ns={registry.host}"
    with urllib.request.urlopen(url, timeout=10) as answer:
        body: bytes = answer.read()
    return body


def planted(registry: Registry, repository: str, manifest: bytes) -> None:
    """Puts a manifest with a layer that does not exist into the registry's storage as `v1`: by push it is refused."""
    storage = registry.folder / "storage/docker/registry/v2"
    digest = digest_of(manifest)
    hexadecimal = digest.removeprefix("sha256:")
    manifests = storage / "repositories" / repository / "_manifests"
    for path, content in {
        storage / "blobs/sha256" / hexadecimal[:2] / hexadecimal / "data": manifest,
        manifests / "revisions/sha256" / hexadecimal / "link": digest.encode(),
        manifests / "tags/v1/current/link": digest.encode(),
    }.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
