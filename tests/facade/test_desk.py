"""The façade's rules, asked over HTTP."""

from __future__ import annotations

import json
import logging

import pytest
from modelvold.errors import Forbidden, InvalidInput, NotFound, Unauthorized, Unreachable
from modelvold.oci.digest import Digest
from modelvold.oci.document import MANIFEST, Manifest, parse
from modelvold.oci.modelpack import read
from modelvold.oci.reference import Repository
from modelvold.oci.synthetic import pinned_tag, synthesize
from modelvold.registry.credentials import BasicCredentials

from tests.facade.conftest import Bench
from tests.facade.upstream import HOST, POD, ask, basic
from tests.oci.models import CNCF, document, entry, image, index_document, layer

NAME = f"{HOST}/team/model"
REPOSITORY = Repository(HOST, "team/model")
MODEL = document(layer("config.json"), layer("model.safetensors", b"weights"))
OTHER = document(layer("config.json", b"{ }"))


def synthetic_digest(content: bytes, repository: Repository = REPOSITORY) -> str:
    manifest = parse(content, "test")
    assert isinstance(manifest, Manifest)
    return str(synthesize(repository, read(manifest, "test")).manifest_digest)


def test_a_model_is_answered_with_its_synthetic_image(bench: Bench) -> None:
    original = bench.upstream.put(f"{NAME}:v1", MODEL)
    head = bench.manifest("v1", "HEAD")
    assert (head.status, head.body, head.digest) == (200, b"", synthetic_digest(MODEL))
    found = bench.manifest(head.digest)
    assert (found.status, found.headers["content-type"]) == (200, MANIFEST)
    assert str(Digest.of(found.body)) == head.digest
    assert head.headers["content-length"] == str(len(found.body))
    config = json.loads(found.body)["config"]
    blob = bench.blob(config["digest"])
    assert (blob.status, str(Digest.of(blob.body)), len(blob.body)) == (200, config["digest"], config["size"])
    assert blob.headers["content-type"] == config["mediaType"]
    assert bench.manifest("v1").body == found.body
    (record,) = bench.given.records.values()
    assert (record.original, record.document, record.private) == (original, MODEL, False)


def test_what_a_pull_asks_upstream(bench: Bench) -> None:
    """A tag is looked up each time, the manifest fetched once; a digest once given asks nothing."""
    bench.upstream.put(f"{NAME}:v1", MODEL)
    digest = bench.manifest("v1", "HEAD").digest
    bench.manifest(digest)
    bench.manifest("v1", "HEAD")
    assert bench.upstream.calls == [f"HEAD {NAME}:v1", f"GET {NAME}@{Digest.of(MODEL)}", f"HEAD {NAME}:v1"]


def test_a_tag_that_moved_is_followed_and_the_old_digest_stays(bench: Bench) -> None:
    bench.upstream.put(f"{NAME}:v1", MODEL)
    before = bench.manifest("v1", "HEAD").digest
    bench.upstream.put(f"{NAME}:v1", OTHER)
    assert bench.manifest("v1", "HEAD").digest == synthetic_digest(OTHER) != before
    assert bench.manifest(before).status == 200


def test_a_digest_once_given_survives_a_restart_and_the_registry(bench: Bench) -> None:
    bench.upstream.put(f"{NAME}:v1", MODEL)
    digest = bench.manifest("v1", "HEAD").digest
    bench.upstream.trouble = Unreachable("down")
    with bench.restarted() as facade:
        found = ask(facade.address, f"/v2/team/model/manifests/{digest}?ns={HOST}")
        assert str(Digest.of(found.body)) == digest
        config = json.loads(found.body)["config"]["digest"]
        assert ask(facade.address, f"/v2/team/model/blobs/{config}?ns={HOST}").status == 200


def test_the_record_is_made_again_when_it_was_lost(bench: Bench) -> None:
    bench.upstream.put(f"{NAME}:v1", MODEL)
    digest = bench.manifest("v1", "HEAD").digest
    bench.given.records.clear()
    assert bench.manifest("v1", "HEAD").digest == digest
    assert bench.manifest(digest).status == 200


def test_a_digest_is_served_for_its_own_repository_alone(bench: Bench) -> None:
    bench.upstream.put(f"{NAME}:v1", MODEL)
    found = bench.manifest(bench.manifest("v1", "HEAD").digest)
    assert bench.manifest(Digest.of(found.body), repository="team/else").status == 404
    assert bench.blob(json.loads(found.body)["config"]["digest"], repository="team/else").status == 404


def test_two_registries_with_one_name(bench: Bench) -> None:
    bench.upstream.put(f"{NAME}:v1", MODEL)
    bench.upstream.put("other.example:5000/team/model:v1", OTHER)
    assert bench.manifest("v1", "HEAD").digest == synthetic_digest(MODEL)
    there = ask(bench.facade.address, "/v2/team/model/manifests/v1?ns=other.example%3A5000", "HEAD")
    assert there.digest == synthetic_digest(OTHER, Repository("other.example:5000", "team/model"))


def test_a_pinned_tag_is_looked_up_by_its_digest(bench: Bench) -> None:
    original = bench.upstream.put(f"{NAME}:v1", MODEL)
    assert bench.manifest(pinned_tag(original), "HEAD").digest == synthetic_digest(MODEL)
    assert bench.upstream.calls[0] == f"HEAD {NAME}@{original}"


def test_an_image_is_sent_on_and_remembered(bench: Bench) -> None:
    digest = bench.upstream.put(f"{NAME}:app", image())
    assert bench.manifest("app", "HEAD").status == 404
    assert bench.manifest("app").error["code"] == "MANIFEST_UNKNOWN"
    asked = len(bench.upstream.calls)
    assert bench.manifest(digest).status == 404
    assert bench.manifest(digest, repository="another/repository").status == 404
    assert bench.blob(Digest.of(b"app")).error["code"] == "BLOB_UNKNOWN"
    assert len(bench.upstream.calls) == asked
    assert [call for call in bench.upstream.calls if call.startswith("GET")] == [f"GET {NAME}@{digest}"]
    assert bench.given.records == {}


def test_an_image_for_many_platforms_is_sent_on(bench: Bench) -> None:
    amd, arm = image("amd"), image("arm")
    digest = bench.upstream.put(f"{NAME}:app", index_document(entry(amd, "linux/amd64"), entry(arm, "linux/arm64")))
    bench.upstream.put(f"{NAME}:amd", amd)
    assert bench.manifest("app", "HEAD").status == 404
    asked = len(bench.upstream.calls)
    assert [bench.manifest(each).status for each in (digest, Digest.of(amd))] == [404, 404]
    assert len(bench.upstream.calls) == asked


def test_an_image_without_our_platform_is_sent_on(bench: Bench) -> None:
    bench.upstream.put(
        f"{NAME}:app", index_document(entry(image("a"), "linux/arm64"), entry(image("b"), "linux/s390x"))
    )
    assert bench.manifest("app", "HEAD").status == 404


def test_of_an_index_this_nodes_model_is_taken(bench: Bench) -> None:
    bench.upstream.put(f"{NAME}:m", MODEL)
    top = index_document(entry(image(), "linux/arm64"), entry(MODEL, artifact_type=f"{CNCF}.manifest.v1+json"))
    bench.upstream.put(f"{NAME}:v1", top)
    assert bench.manifest("v1", "HEAD").digest == synthetic_digest(MODEL)
    assert bench.manifest("v1").headers["content-type"] == MANIFEST


def test_an_index_of_models_without_ours_is_refused_with_a_list(bench: Bench) -> None:
    kind = f"{CNCF}.manifest.v1+json"
    bench.upstream.put(f"{NAME}:v1", index_document(entry(MODEL, artifact_type=kind), entry(OTHER, artifact_type=kind)))
    reply = bench.manifest("v1")
    assert reply.status == 422
    assert str(Digest.of(MODEL)) in reply.error["message"]
    assert str(Digest.of(OTHER)) in reply.error["message"]


def test_a_models_own_digest_is_answered_with_how_to_ask(bench: Bench) -> None:
    original = bench.upstream.put(f"{NAME}:v1", MODEL)
    reply = bench.manifest(original)
    assert (reply.status, reply.error["code"]) == (409, "DENIED")
    assert f"{NAME}:{pinned_tag(original)}" in reply.error["message"]
    assert bench.manifest(original, "HEAD").status == 409


def test_the_layer_says_who_asked_for_it(bench: Bench) -> None:
    bench.upstream.put(f"{NAME}:v1", MODEL)
    (only,) = json.loads(bench.manifest("v1").body)["layers"]
    reply = bench.blob(only["digest"])
    assert reply.status == 409
    assert NAME in reply.error["message"]
    assert "another snapshotter" in reply.error["message"]
    assert "pull it again" in reply.error["message"]


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (b"<html>", "not an OCI manifest"),
        (b" " * (5 << 20), "4 MiB"),
        (document(layer("../../x/../y")), "'..'"),
        (document(layer("m", mediaType="application/x-unknown")), "application/x-unknown"),
        (document(layer("m", metadata={"size": 99})), "size lies"),
        (document(layer("m", b"1"), layer("m", b"2")), "one path 'm'"),
    ],
)
def test_a_broken_model_fails_where_its_text_is_shown(bench: Bench, broken: bytes, said: str) -> None:
    """A HEAD that failed would send containerd on; so the digest it is given fails, and that text is shown."""
    bench.upstream.put(f"{NAME}:v1", broken)
    head = bench.manifest("v1", "HEAD")
    assert (head.status, head.headers["content-type"]) == (200, MANIFEST)
    assert int(head.headers["content-length"]) > 0
    for reply in (bench.manifest(head.digest), bench.manifest("v1")):
        assert (reply.status, reply.error["code"]) == (422, "MANIFEST_INVALID")
        assert said in reply.error["message"]
        assert f"{NAME}" in reply.error["message"]
    assert bench.manifest(head.digest, repository="team/else").status == 404
    assert bench.given.records == {}


def test_a_pinned_tag_of_no_model_fails_where_its_text_is_shown(bench: Bench) -> None:
    digest = bench.upstream.put(f"{NAME}:app", image())
    head = bench.manifest(pinned_tag(digest), "HEAD")
    assert head.status == 200
    reply = bench.manifest(head.digest)
    assert reply.status == 422
    assert "not a model" in reply.error["message"]


@pytest.mark.parametrize(
    ("trouble", "status", "code"),
    [
        (Unauthorized("no"), 401, "UNAUTHORIZED"),
        (NotFound("gone"), 424, "MANIFEST_UNKNOWN"),
        (Unreachable("refused, 429 or 5xx"), 503, "UNAVAILABLE"),
    ],
)
def test_trouble_upstream_is_answered_in_its_class(bench: Bench, trouble: Exception, status: int, code: str) -> None:
    bench.upstream.trouble = trouble  # type: ignore[assignment]
    for method in ("HEAD", "GET"):
        reply = bench.manifest("v1", method)
        assert reply.status == status
        assert (str(trouble) in reply.phrase) == (method == "HEAD"), "of a HEAD containerd shows the status line alone"
    assert reply.error["code"] == code


def test_trouble_is_not_remembered(bench: Bench) -> None:
    bench.upstream.put(f"{NAME}:v1", MODEL)
    bench.upstream.trouble = Unreachable("down")
    assert bench.manifest("v1", "HEAD").status == 503
    bench.upstream.trouble = None
    assert bench.manifest("v1", "HEAD").status == 200


@pytest.mark.parametrize("denial", [Unauthorized, Forbidden])
def test_a_private_model_is_opened_by_the_pods_credentials(
    bench: Bench, denial: type[Unauthorized | Forbidden]
) -> None:
    bench.upstream.put(f"{NAME}:v1", MODEL)
    bench.upstream.private.add(NAME)
    bench.upstream.denial = denial
    challenged = bench.manifest("v1", "HEAD")
    assert (challenged.status, challenged.headers["www-authenticate"]) == (
        401,
        'Basic realm="modelvold", charset="UTF-8"',
    )
    assert bench.upstream.brought == []
    head = bench.manifest("v1", "HEAD", headers=basic(POD))
    assert head.status == 200
    assert bench.upstream.brought == [(NAME, POD)]
    (record,) = bench.given.records.values()
    assert record.private


def test_a_private_model_by_digest_needs_what_upstream_accepts_now(bench: Bench) -> None:
    bench.upstream.put(f"{NAME}:v1", MODEL)
    bench.upstream.private.add(NAME)
    digest = bench.manifest("v1", "HEAD", headers=basic(POD)).digest
    wrong = BasicCredentials("pod", "wrong")
    assert bench.manifest(digest).status == 401
    assert bench.manifest(digest, headers=basic(wrong)).status == 401
    assert bench.manifest(digest, headers={"Authorization": "Bearer abc"}).status == 401
    assert bench.manifest(digest, headers=basic(POD)).status == 200
    bench.upstream.denial = Forbidden
    assert bench.manifest(digest, headers=basic(wrong)).status == 403
    bench.upstream.trouble = Unreachable("down")
    assert bench.manifest(digest, headers=basic(POD)).status == 503
    assert [each for each in bench.upstream.brought if each != (NAME, POD)] == []


def test_a_model_that_became_public_is_private_no_more(bench: Bench) -> None:
    bench.upstream.put(f"{NAME}:v1", MODEL)
    bench.upstream.private.add(NAME)
    digest = bench.manifest("v1", "HEAD", headers=basic(POD)).digest
    bench.upstream.private.clear()
    assert bench.manifest("v1", "HEAD").status == 200
    assert [record.private for record in bench.given.records.values()] == [False]
    bench.upstream.trouble = Unreachable("down")
    assert bench.manifest(digest).status == 200


def test_a_model_that_became_private_is_private(bench: Bench) -> None:
    bench.upstream.put(f"{NAME}:v1", MODEL)
    digest = bench.manifest("v1", "HEAD").digest
    bench.upstream.private.add(NAME)
    assert bench.manifest("v1", "HEAD", headers=basic(POD)).status == 200
    assert bench.manifest(digest).status == 401


def test_credentials_that_were_not_needed_are_not_kept(bench: Bench) -> None:
    bench.upstream.put(f"{NAME}:v1", MODEL)
    assert bench.manifest("v1", "HEAD", headers=basic(POD)).status == 200
    bench.upstream.put(f"{HOST}/team/app:v1", image())
    bench.upstream.private.add(f"{HOST}/team/app")
    assert bench.manifest("v1", "HEAD", repository="team/app", headers=basic(POD)).status == 404
    assert bench.upstream.brought == []


@pytest.mark.parametrize(
    ("target", "status", "said"),
    [
        ("/v2/team/model/manifests/v1", 400, "?ns="),
        ("/v2/team/model/manifests/v1?ns=", 400, "?ns="),
        ("/v2/team/model/manifests/v1?ns=reg.example&ns=other.example:5000", 400, "?ns="),
        ("/v2/team/model/manifests/v1?ns=elsewhere.example", 403, "no proxy"),
        ("/v2/team/model/manifests/v1?ns=127.0.0.1:22", 403, "no proxy"),
        ("/v2/team/model/manifests/v1?ns=reg.example/team", 400, "written out in full"),
        ("/v2/team/model/manifests/v1?ns=reg", 400, "written out in full"),
        ("/v2/team/MODEL/manifests/v1?ns=reg.example", 400, "repository"),
        ("/v2/team/../model/manifests/v1?ns=reg.example", 400, "repository"),
        ("/v2/team/model/manifests/sha256:12?ns=reg.example", 400, "digest"),
        ("/v2/team/model/manifests/%00?ns=reg.example", 400, "tag"),
        ("/v2/team/model/blobs/v1?ns=reg.example", 400, "digest"),
        ("/v2/team/model/tags/list?ns=reg.example", 404, "manifests or blobs"),
        ("/v2/_catalog", 404, "manifests or blobs"),
        ("/", 404, "manifests or blobs"),
    ],
)
def test_what_is_asked_wrongly_never_leaves_the_node(bench: Bench, target: str, status: int, said: str) -> None:
    reply = ask(bench.facade.address, target, headers=basic(POD))
    assert reply.status == status
    assert said in reply.error["message"]
    assert ask(bench.facade.address, target, "HEAD").status == status
    assert bench.upstream.calls == []


def test_a_request_of_our_own_has_gone_in_a_circle(bench: Bench) -> None:
    bench.upstream.put(f"{NAME}:v1", MODEL)
    for name in ("Modelvold-Hop", "modelvold-hop"):
        assert bench.manifest("v1", headers={name: "1"}).status == 508
    assert bench.upstream.calls == []


def test_a_configuration_that_cannot_be_read_is_said(bench: Bench) -> None:
    bench.upstream.hosts_trouble = InvalidInput("/etc/x/hosts.toml: line 3", "mend it")
    reply = bench.manifest("v1")
    assert reply.status == 500
    assert "/etc/x/hosts.toml: line 3" in reply.error["message"]


def test_it_says_that_it_is_a_registry(bench: Bench) -> None:
    reply = ask(bench.facade.address, "/v2/")
    assert (reply.status, reply.headers["docker-distribution-api-version"]) == (200, "registry/2.0")


def test_every_refusal_is_one_line_and_no_secret_is_written(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.upstream.put(f"{NAME}:v1", MODEL)
    bench.upstream.private.add(NAME)
    with caplog.at_level(logging.DEBUG):
        bench.manifest("v1", "HEAD", headers=basic(BasicCredentials("pod", "wrong-secret")))
        bench.manifest("v1", "HEAD", headers=basic(POD))
        ask(bench.facade.address, "/v2/team/model/manifests/v1?ns=elsewhere.example&token=hidden%0aforged")
        bench.manifest("none", "HEAD", headers=basic(POD))
    refusals = [record.getMessage() for record in caplog.records if record.getMessage().startswith("refuse request")]
    assert [line.split("status=")[1][:3] for line in refusals] == ["401", "403", "424"]
    text = caplog.text + repr(bench.upstream.brought) + repr(bench.facade)
    assert not [
        secret
        for secret in (POD.password, "wrong-secret", "hidden", basic(POD)["Authorization"].split()[1])
        if secret in text
    ]
