from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from modelvold.errors import InvalidInput
from modelvold.oci.digest import Digest
from modelvold.oci.reference import Reference, Repository

DIGEST = "sha256:" + "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("busybox", "docker.io/library/busybox:latest"),
        ("busybox:1.36", "docker.io/library/busybox:1.36"),
        ("ai/model", "docker.io/ai/model:latest"),
        ("index.docker.io/ai/model", "docker.io/ai/model:latest"),
        ("docker.io/busybox", "docker.io/library/busybox:latest"),
        ("localhost/m", "localhost/m:latest"),
        ("localhost:5000/m:v1", "localhost:5000/m:v1"),
        ("[::1]:5000/m", "[::1]:5000/m:latest"),
        ("Host/m", "Host/m:latest"),
        ("reg.example/a/b/c:t", "reg.example/a/b/c:t"),
        (f"reg.example/m@{DIGEST}", f"reg.example/m@{DIGEST}"),
        (f"reg.example/m:t@{DIGEST}", f"reg.example/m:t@{DIGEST}"),
    ],
)
def test_familiar_names(text: str, canonical: str) -> None:
    reference = Reference.parse(text)
    assert str(reference) == canonical
    assert Reference.parse(canonical) == reference


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "repository"),
        ("reg.example/", "repository"),
        ("reg.example/UPPER", "repository"),
        ("reg.example/a//b", "repository"),
        ("reg.example/../b", "repository"),
        ("reg.example/m:", "tag"),
        ("reg.example/m:a:b", "tag"),
        ("reg.example/m:" + "t" * 129, "tag"),
        ("reg.example/m@sha256:abc", "digest"),
        (f"reg.example/m@{DIGEST}@{DIGEST}", "digest"),
        ("reg.example/m@sha512:" + "0" * 128, "digest"),
        ("-reg.example/m", "host"),
        ("reg.example:port/m", "host"),
        ("reg.example/" + "a" * 250, "longer than 255"),
        ("reg.example/m\n", "repository"),
    ],
)
def test_what_is_wrong_is_named(text: str, named: str) -> None:
    with pytest.raises(InvalidInput, match=named):
        Reference.parse(text)


def test_the_digest_decides() -> None:
    reference = Reference.parse(f"reg.example/m:t@{DIGEST}")
    assert reference.target == DIGEST
    assert Reference.parse("reg.example/m:t").target == "t"
    other = Digest.of(b"other")
    assert str(reference.at(other)) == f"reg.example/m@{other}"


def test_a_repository_is_read_back_as_written_and_only_so() -> None:
    assert Repository.parse("docker.io/library/busybox") == Repository("docker.io", "library/busybox")
    for text in ("busybox", "reg.example/m:t", "index.docker.io/a/b", f"reg.example/m@{DIGEST}"):
        with pytest.raises(InvalidInput):
            Repository.parse(text)


COMPONENT = st.from_regex(r"[a-z0-9]+(?:[._-][a-z0-9]+){0,2}", fullmatch=True)
HOST = st.from_regex(r"[a-z0-9]{1,10}(\.[a-z0-9]{1,10}){1,3}(:[1-9][0-9]{0,4})?", fullmatch=True)


@given(
    HOST,
    st.lists(COMPONENT, min_size=1, max_size=4),
    st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,30}", fullmatch=True),
)
def test_canonical_references_come_back(host: str, path: list[str], tag: str) -> None:
    text = f"{host}/{'/'.join(path)}"
    if len(text) > 255 or host in {"docker.io", "index.docker.io"}:
        return
    reference = Reference.parse(f"{text}:{tag}")
    assert (str(reference.repository), reference.tag, reference.digest) == (text, tag, None)
    assert Repository.parse(text) == reference.repository
    assert Reference.parse(str(reference)) == reference


@given(st.text(max_size=60))
def test_any_text_is_a_reference_or_invalid(text: str) -> None:
    try:
        reference = Reference.parse(text)
    except InvalidInput:
        return
    assert Reference.parse(str(reference)) == reference
