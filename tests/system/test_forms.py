"""By which names containerd gets a model: what `modelvold image` prints, and what each of them leads to."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path

import pytest
from modelvold.linux.machine import architecture
from modelvold.oci.synthetic import LABEL_MANIFEST, LABEL_REFERENCE

from tests.lab import documents
from tests.lab.daemon import Daemon
from tests.lab.push import Pushed
from tests.lab.services import Snapshots
from tests.system.node import Node, node, ok, status_of

pytestmark = pytest.mark.system


def test_every_form_leads_to_its_model(folder: Path) -> None:
    """The pinned tag and the synthetic digest go on to mean the first model after the tag has moved and the daemon was restarted."""
    with node(folder) as here:
        first = here.registry.push.model({"which": b"first"})
        forms = _forms(here.daemon, first.reference)
        assert forms == {
            "manifest": first.digest,
            "tag": first.reference,
            "pinned": f"{here.registry.host}/models/lab:modelvold-sha256-{first.digest.removeprefix('sha256:')}",
            "synthetic": forms["synthetic"],
        }
        here.cri.pull(forms["tag"])
        _shows(here, first)
        second = here.registry.push.model({"which": b"second"})
        here.daemon.restart()
        assert _forms(here.daemon, first.reference)["manifest"] == second.digest
        assert {name: _which(here, form) for name, form in forms.items() if name != "manifest"} == {
            "tag": "second",
            "pinned": "first",
            "synthetic": "first",
        }
        assert _forms(here.daemon, forms["pinned"]) == {**forms, "tag": ""}
        assert _forms(here.daemon, first.pinned) == {**forms, "tag": ""}


def test_of_an_index_this_nodes_model_is_named(folder: Path) -> None:
    with node(folder) as here:
        ours, other = (here.registry.push.model({"which": which}, tag=which.decode()) for which in (b"ours", b"other"))
        entries = [
            {"mediaType": documents.MANIFEST, "digest": digest, "size": size, "platform": platform}
            for digest, size, platform in (
                (other.digest, _size(here, other), {"os": "linux", "architecture": "s390x"}),
                (ours.digest, _size(here, ours), {"os": "linux", "architecture": architecture()}),
            )
        ]
        index = {"schemaVersion": 2, "mediaType": documents.INDEX, "manifests": entries}
        here.registry.push.manifest("models/lab", "both", index, documents.INDEX)
        forms = _forms(here.daemon, f"{here.registry.host}/models/lab:both")
        assert forms["manifest"] == ours.digest
        assert {_which(here, forms[name]) for name in ("tag", "pinned", "synthetic")} == {"ours"}


def _forms(daemon: Daemon, reference: str) -> dict[str, str]:
    found: dict[str, str] = json.loads(ok(daemon, "image", reference, "--json", "--config", daemon.file).stdout)
    return found


def _which(here: Node, form: str) -> str:
    """What a pod reads of the model that is asked for by `form`."""
    pod, container = here.container("reading", here.cri.pull(form))
    try:
        return here.sh(container, "cat /model/which")
    finally:
        here.cri.remove_pod(pod)


def _shows(here: Node, model: Pushed) -> None:
    """Its own reference and digest, to operators and to containerd's."""
    (volume,) = status_of(here.daemon)["volumes"]
    assert (volume["reference"], volume["manifest"]) == (model.reference, model.digest)
    with Snapshots(here.daemon.socket) as client:
        (info,) = client.list(f'labels."{LABEL_MANIFEST}"')
    assert (info.labels[LABEL_REFERENCE], info.labels[LABEL_MANIFEST]) == (model.pinned, model.digest)


def _size(here: Node, model: Pushed) -> int:
    path = f"{here.registry.url}/v2/models/lab/manifests/{model.digest}"
    asked = urllib.request.Request(path, headers={"Accept": documents.MANIFEST})
    with urllib.request.urlopen(asked, timeout=10) as answer:
        return len(answer.read())
