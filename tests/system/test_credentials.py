"""Each model is read with the credentials that may read it, from the registry it was asked of."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lab.ca import Authority
from tests.lab.content import digest_of
from tests.lab.program import wait_until
from tests.lab.registry import Registry
from tests.lab.tokens import Rules, TokenServer
from tests.system.trust_stage import MIB, OURS, SEGMENT, askers, digests, model, node, told

pytestmark = pytest.mark.system

#: What containerd makes of the façade's challenge when the pod brought nothing.
_NO_SECRET = "pull access denied, repository does not exist or may require authorization"


def test_registries_with_one_name_for_different_models(folder: Path) -> None:
    """The same repository and tag at two registries, one of them with TLS from a private authority and Basic, through
    one façade: each container path shows its own model, read with the node's credentials."""
    users = {"node": "node secret"}
    with node(folder) as at, Registry(folder / "tls", users=users, authority=Authority(folder / "ca")) as private:
        at.containerd.hosts(private)
        plain, plain_weights = model(at.registry, 5)
        secret, secret_weights = model(private, 6)
        assert plain.reference.partition("/")[2] == secret.reference.partition("/")[2]
        assert _NO_SECRET in told(lambda: at.cri.pull(secret.reference))
        at.daemon.login(private.host, "node", "node secret")
        container = at.run({"/plain": at.cri.pull(plain.reference), "/secret": at.cri.pull(secret.reference)})
        for registry, pushed, place, weights in (
            (at.registry, plain, "/plain", plain_weights),
            (private, secret, "/secret", secret_weights),
        ):
            assert digests(at.cri, container, place) == pushed.layers
            assert registry.bytes_of(digest_of(weights)) == weights.size
        assert askers(private, digest_of(secret_weights)) == {OURS}
        assert "node secret" not in at.daemon.log_text()


def test_a_model_that_only_the_pods_credentials_read(folder: Path) -> None:
    """Behind a token server: the pod's pull secret opens what the node's credentials do not, and feeds the reads in
    the container. Who comes without it is refused afterwards too, and the secret is written nowhere."""
    rules = Rules({"node": "node secret", "pod": "pod secret"}, {"node": {"models/shared"}})
    tokens = TokenServer(Authority(folder / "ca"), rules)
    with node(folder) as at, tokens, Registry(folder / "r", tokens=tokens) as registry:
        at.containerd.hosts(registry)
        at.daemon.login(registry.host, "node", "node secret")
        shared, shared_weights = model(registry, 7, "models/shared")
        private, private_weights = model(registry, 8, "models/private")
        assert _NO_SECRET in told(lambda: at.cri.pull(private.reference))
        volumes = {
            "/shared": at.cri.pull(shared.reference),
            "/private": at.cri.pull(private.reference, ("pod", "pod secret")),
        }
        container = at.run(volumes)
        digest = private.layers["weights.safetensors"]
        assert registry.bytes_of(digest) == 0
        middle = private_weights.size // 2
        ran = at.cri.exec(
            container, ["/bin/sh", "-c", f"dd if=/private/weights.safetensors bs=1M count=1 skip={middle // MIB}"]
        )
        assert ran.stdout == private_weights.at(middle, MIB)
        assert 0 < registry.bytes_of(digest) <= 2 * SEGMENT
        assert digests(at.cri, container, "/private") == private.layers
        assert digests(at.cri, container, "/shared") == shared.layers
        assert registry.bytes_of(digest_of(shared_weights)) == shared_weights.size
        assert {request.user for request in tokens.requests if request.status == 200} == {"node", "pod"}
        assert _NO_SECRET in told(lambda: at.cri.pull(private.reference))
        assert "401 Unauthorized" in told(lambda: at.cri.pull(private.reference, ("pod", "guessed")))
        assert "pod secret" not in at.daemon.log_text()
        assert not [path for path in at.daemon.root.glob("*.db*") if b"pod secret" in path.read_bytes()]


def test_a_pods_secret_does_not_outlive_the_daemon(folder: Path) -> None:
    """Kept in memory only: after a restart missing bytes of the mounted model are an error that the status explains,
    and the next pull with the secret brings them, to the same container."""
    with node(folder) as at, Registry(folder / "r", users={"pod": "pod secret"}) as registry:
        at.containerd.hosts(registry)
        pushed, weights = model(registry, 10)
        container = at.run({"/model": at.cri.pull(pushed.reference, ("pod", "pod secret"))})
        at.daemon.restart()
        registry.forget()
        read = ["/bin/sha256sum", "/model/weights.safetensors"]
        failed = at.cri.exec(container, read)
        assert (failed.code, failed.stdout) == (1, b"")
        assert registry.bytes_of(digest_of(weights)) == 0
        assert {request.status for request in registry.served()} == {401}
        assert "wants a user name and password" in at.daemon.cli("status", pushed.reference).stdout
        assert at.cri.pull(pushed.reference, ("pod", "pod secret"))
        # Reads of what was just denied are denied at once for a few seconds more.
        assert wait_until(lambda: at.cri.exec(container, read).code == 0)
        assert digests(at.cri, container, "/model") == pushed.layers
        assert registry.bytes_of(digest_of(weights)) == weights.size
