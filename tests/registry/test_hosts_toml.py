"""hosts.toml as containerd reads it, and what it is not allowed to say."""

from __future__ import annotations

from pathlib import Path

import pytest
from modelvold.errors import InvalidInput
from modelvold.registry import address as addresses
from modelvold.registry import hosts_toml
from modelvold.registry.hosts import Hosts
from modelvold.registry.hosts_toml import Host

FILE = Path("/etc/containerd/certs.d/registry.example/hosts.toml")


def parse(text: str, namespace: str = "registry.example") -> tuple[Host, ...]:
    return hosts_toml.parse(text.encode(), FILE, namespace)


def urls(hosts: tuple[Host, ...]) -> list[str]:
    return [f"{host}{host.path}" for host in hosts]


def test_the_example_of_containerds_documentation() -> None:
    hosts = parse(
        """
        server = "https://registry-1.docker.io"

        [host."https://mirror.registry"]
          capabilities = ["pull"]
          ca = "/etc/certs/mirror.pem"
          skip_verify = false
          dial_timeout = "1m30s"
          [host."https://mirror.registry".header]
            x-custom-2 = ["value1", "value2"]

        [host."https://mirror-bak.registry/us"]
          capabilities = ["pull"]
          skip_verify = true
          client = [["one.cert", "one.key"], ["two.pem", ""]]

        [host."http://mirror.registry"]
          capabilities = ["pull"]

        [host."https://test-1.registry"]
          capabilities = ["pull", "resolve", "push"]
          ca = ["/etc/certs/test-1-ca.pem", "special.pem"]
          client = "client.pem"
        """,
        "docker.io",
    )
    assert urls(hosts) == [
        "https://mirror.registry/v2",
        "https://mirror-bak.registry/us/v2",
        "http://mirror.registry/v2",
        "https://test-1.registry/v2",
        "https://registry-1.docker.io/v2",
    ]
    assert [host.mirror for host in hosts] == [True, True, True, True, False]
    assert hosts[0].headers == (("x-custom-2", "value1"), ("x-custom-2", "value2"))
    assert hosts[0].dial_timeout == 90
    assert "value1" not in repr(hosts[0])
    assert [host.tls.verify for host in hosts] == [True, False, True, True, True]
    folder = FILE.parent
    assert hosts[1].tls.client == ((folder / "one.cert", folder / "one.key"), (folder / "two.pem", None))
    assert hosts[3].tls.ca == (Path("/etc/certs/test-1-ca.pem"), folder / "special.pem")
    assert hosts[3].tls.client == ((folder / "client.pem", None),)
    assert hosts[0].capabilities == {"pull"}
    assert hosts[4].capabilities == {"pull", "resolve", "push", "referrers"}


@pytest.mark.parametrize(
    ("text", "namespace", "expected"),
    [
        ("#", "registry.example", ["https://registry.example/v2"]),
        ("#", "registry.example:5000", ["https://registry.example:5000/v2"]),
        ("#", "docker.io", ["https://registry-1.docker.io/v2"]),
        ("#", "localhost", ["http://localhost/v2"]),
        ("#", "127.0.0.1:5000", ["http://127.0.0.1:5000/v2"]),
        ("#", "[::1]:5000", ["http://[::1]:5000/v2"]),
        ("#", "127.0.0.1:443", ["https://127.0.0.1:443/v2", "http://127.0.0.1:443/v2"]),
        ("skip_verify = true", "127.0.0.1:5000", ["https://127.0.0.1:5000/v2", "http://127.0.0.1:5000/v2"]),
        ("skip_verify = true", "registry.example", ["https://registry.example/v2"]),
        ('server = "other.example"', "registry.example", ["https://other.example/v2"]),
        ('server = "HTTPS://Other.Example"', "registry.example", None),
        ('server = "https://Other.Example"', "registry.example", ["https://other.example/v2"]),
        ('server = "https://u:p@other.example"', "registry.example", ["https://other.example/v2"]),
        ('server = "http://a.b:5000"\nca = "x"', "x.y", ["https://a.b:5000/v2", "http://a.b:5000/v2"]),
        ('server = "http://other.example"\nca = "x"', "x.y", ["http://other.example/v2"]),
        ('server = "http://other.example:80"\nca = "x"', "x.y", ["http://other.example:80/v2"]),
        ('server = "https://a.b/c//d/../v2/"', "x.y", ["https://a.b/c/v2"]),
        ('new_key = 5\n[host."https://m"]\nwhatever = []', "x.y", ["https://m/v2", "https://x.y/v2"]),
    ],
)
def test_which_hosts(text: str, namespace: str, expected: list[str] | None) -> None:
    if expected is None:
        with pytest.raises(InvalidInput):
            parse(text, namespace)
    else:
        assert urls(parse(text, namespace)) == expected


def test_plain_http_comes_only_after_an_answer_without_tls() -> None:
    secure, plain = parse('server = "http://other.example:5000"\nskip_verify = true')
    assert (secure.after_plain_answer, plain.after_plain_answer) == (False, True)


def test_root_keys_belong_to_the_server() -> None:
    mirror, server = parse('ca = "x.pem"\n[header]\na = "b"\n[host."https://m"]')
    assert (mirror.tls, mirror.headers) == (hosts_toml.NO_TLS, ())
    assert (server.tls.ca, server.headers) == ((FILE.parent / "x.pem",), (("a", "b"),))


@pytest.mark.parametrize(
    "text",
    [
        "server",
        "server = 5",
        'server = "ftp://x"',
        'server = "https://"',
        'server = "https://x?y"',
        'server = "https://x:99999"',
        'server = "https://x y"',
        'capabilities = ["pull", "fly"]',
        "capabilities = 5",
        "capabilities = [5]",
        "ca = 5",
        "ca = [[]]",
        "client = 5",
        "client = [5]",
        'client = [["a", "b", "c"]]',
        "client = [[5]]",
        'skip_verify = "yes"',
        "override_path = 1",
        'dial_timeout = "soon"',
        "dial_timeout = 5",
        'header = "x"',
        "[header]\na = 5",
        '[header]\n"a b" = "x"',
        '[header]\na = "x\\r\\ny"',
        '[header]\na = "\\u20ac"',
        "host = 5",
        '[host]\n"https://x" = 5',
        '[host."ftp://x"]',
        '[host."https://x"]\ncapabilities = ["fly"]',
        '[host."http://[::1"]',
        "a = " + "[" * 5000,
    ],
)
def test_a_malformed_file_is_named(text: str) -> None:
    with pytest.raises(InvalidInput, match=str(FILE)) as caught:
        parse(text)
    assert caught.value.remedy


def test_not_text() -> None:
    with pytest.raises(InvalidInput, match="not TOML"):
        hosts_toml.parse(b"\xff", FILE, "x.y")


@pytest.mark.parametrize(
    ("folder", "namespace", "found"),
    [
        ("registry.example_5000_", "registry.example:5000", True),
        ("registry.example:5000", "registry.example:5000", True),
        ("registry.example", "registry.example:5000", False),
        ("registry.example", "registry.example", True),
        ("_default", "registry.example", True),
    ],
)
def test_which_folder(tmp_path: Path, folder: str, namespace: str, found: bool) -> None:
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "hosts.toml").write_text('server = "https://found.example"')
    address = "found.example" if found else namespace
    assert [host.address for host in Hosts(tmp_path / "none", tmp_path).of(namespace)] == [address]


def test_the_first_folder_decides(tmp_path: Path) -> None:
    for folder in ("x.y_5_", "x.y:5", "_default"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "hosts.toml").write_text(
            f'server = "https://{folder.strip("_").replace(":", "-")}.example"'
        )
    (tmp_path / "second" / "x.y_5_").mkdir(parents=True)
    hosts = Hosts(tmp_path, tmp_path / "second")
    assert hosts.of("x.y:5")[0].address == "x.y_5.example"
    assert hosts.of("a.b")[0].address == "default.example"


def test_a_file_too_large(tmp_path: Path) -> None:
    (tmp_path / "_default").mkdir()
    (tmp_path / "_default" / "hosts.toml").write_text("#" * (2 << 20))
    with pytest.raises(InvalidInput, match="larger than 1 MiB"):
        Hosts(tmp_path).of("x.y")


@pytest.mark.parametrize("address", ["", ":5", "a:", "a:b", "a:0", "a:65536", "a/b", "..", "[::1", "::1", "a\n", "-a"])
def test_addresses_that_are_none(address: str) -> None:
    with pytest.raises(InvalidInput):
        addresses.split(address)


@pytest.mark.parametrize(
    ("address", "listener", "same"),
    [
        ("127.0.0.1:7878", "127.0.0.1:7878", True),
        ("localhost:7878", "127.0.0.1:7878", True),
        ("127.0.0.1:7878", "localhost:7878", True),
        ("[::1]:7878", "localhost:7878", True),
        ("[::1]:7878", "127.0.0.1:7878", False),
        ("127.0.0.2:7878", "127.0.0.1:7878", False),
        ("127.0.0.1:7879", "127.0.0.1:7878", False),
        ("127.0.0.1", "127.0.0.1:80", True),
        ("LOCALHOST:7878", "localhost:7878", True),
        ("localhost.example:7878", "localhost:7878", False),
    ],
)
def test_the_same_listener(address: str, listener: str, same: bool) -> None:
    assert addresses.is_same_listener(address, listener, "http") is same


@pytest.mark.parametrize(
    ("address", "loopback"),
    [
        ("localhost", True),
        ("127.1.2.3:5", True),
        ("[::1]", True),
        ("10.0.0.1", False),
        ("localhost.evil.example", False),
    ],
)
def test_loopback(address: str, loopback: bool) -> None:
    assert addresses.is_loopback(address) is loopback
