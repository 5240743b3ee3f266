"""Which proxy stands before which host: the variables as containerd reads them."""

from __future__ import annotations

import pytest
from modelvold.errors import InvalidInput
from modelvold.registry.proxies import Proxies, Proxy

NAMED = "foobar.com, .barbaz.net, *.wildcard.io, 192.168.1.1, 192.168.1.2:81, 192.168.1.3:80, 10.0.0.0/30, "
NAMED += "2001:db8::52:0:1, [2001:db8::52:0:2]:443, [2001:db8::52:0:3]:80, 2002:db8:a::45/64, port.org:8080"


def of(**environ: str) -> Proxies:
    return Proxies.of(environ)


def has_proxy(proxies: Proxies, host: str, port: int = 80, scheme: str = "http") -> bool:
    return proxies.before(scheme, host, port) is not None


@pytest.mark.parametrize(
    ("text", "scheme", "host", "port"),
    [
        ("127.0.0.1:8080", "http", "127.0.0.1", 8080),
        ("cache.corp.example.com:1234", "http", "cache.corp.example.com", 1234),
        ("cache.corp.example.com", "http", "cache.corp.example.com", 80),
        ("localhost", "http", "localhost", 80),
        ("https://cache.corp.example.com", "https", "cache.corp.example.com", 443),
        ("http://127.0.0.1:8080/", "http", "127.0.0.1", 8080),
        ("HTTP://Proxy:3128", "http", "proxy", 3128),
        ("https://[2001:db8::1]:3129", "https", "2001:db8::1", 3129),
        ("user:word@proxy:3128", "http", "proxy", 3128),
    ],
)
def test_how_a_proxy_is_named(text: str, scheme: str, host: str, port: int) -> None:
    for proxy in (of(HTTP_PROXY=text).http, of(https_proxy=text).https):
        assert proxy is not None
        assert (proxy.scheme, proxy.host, proxy.port) == (scheme, host, port)


def test_each_scheme_has_its_own() -> None:
    proxies = of(HTTP_PROXY="plain.tld", HTTPS_PROXY="https://secure.tld")
    assert str(proxies.before("http", "insecure.tld", 80)) == "http://plain.tld:80"
    assert str(proxies.before("https", "secure.tld", 443)) == "https://secure.tld:443"
    assert not has_proxy(of(HTTP_PROXY="plain.tld"), "secure.tld", 443, "https")
    assert not has_proxy(of(HTTPS_PROXY="secure.tld"), "insecure.tld")
    assert of() == Proxies()


def test_upper_case_goes_first_and_what_is_empty_is_not_there() -> None:
    assert str(of(HTTP_PROXY="upper", http_proxy="lower").http) == "http://upper:80"
    assert str(of(HTTPS_PROXY="", https_proxy="lower").https) == "http://lower:80"
    assert not has_proxy(of(HTTP_PROXY="p", NO_PROXY="a.org", no_proxy="b.org"), "a.org")
    assert has_proxy(of(HTTP_PROXY="p", NO_PROXY="a.org", no_proxy="b.org"), "b.org")
    assert not has_proxy(of(HTTP_PROXY="p", NO_PROXY="", no_proxy="b.org"), "b.org")


def test_under_cgi_whoever_asks_could_have_named_it() -> None:
    proxies = of(HTTP_PROXY="10.1.2.3:8080", HTTPS_PROXY="https://secure.tld", REQUEST_METHOD="GET")
    assert proxies.http is None
    assert has_proxy(proxies, "a.org", 443, "https")
    assert has_proxy(of(HTTP_PROXY="p", REQUEST_METHOD=""), "a.org")


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", False),
        ("127.0.0.1", False),
        ("127.0.0.2", False),
        ("::1", False),
        ("::ffff:127.0.0.1", False),
        ("::2", True),
        ("192.168.1.1", False),
        ("::ffff:192.168.1.1", False),
        ("192.168.1.2", True),  # another port
        ("192.168.1.3", False),
        ("192.168.1.4", True),
        ("10.0.0.2", False),
        ("10.0.0.4", True),
        ("2001:db8::52:0:1", False),
        ("2001:db8::52:0:2", True),  # another port
        ("2001:db8::52:0:3", False),
        ("2002:db8:a::123", False),
        ("fe80::424b:c8be:1643:a1b6", True),
        ("barbaz.net", True),
        ("www.barbaz.net", False),
        ("foobar.com", False),
        ("www.foobar.com", False),
        ("foofoobar.com", True),
        ("baz.com", True),
        ("localhost.net", True),
        ("local.localhost", True),
        ("barbarbaz.net", True),
        ("wildcard.io", True),
        ("nested.wildcard.io", False),
        ("awildcard.io", True),
        ("port.org", True),
    ],
)
def test_no_proxy(host: str, expected: bool) -> None:
    """Go's own table, and a few lines more."""
    assert has_proxy(of(HTTP_PROXY="proxy", NO_PROXY=NAMED), host) is expected
    assert not has_proxy(of(HTTP_PROXY="proxy", NO_PROXY=f"{NAMED},*"), host)


def test_no_proxy_with_ports() -> None:
    proxies = of(HTTP_PROXY="proxy", NO_PROXY=NAMED)
    for host, port in (("port.org", 8080), ("a.port.org", 8080), ("192.168.1.2", 81), ("2001:db8::52:0:2", 443)):
        assert not has_proxy(proxies, host, port)
    assert has_proxy(proxies, "192.168.1.3", 81)


@pytest.mark.parametrize(
    "entry", [":1", "", " , ", "*:80", "10.0.0.0/255.0.0.0", "10.0.0.0/33", "10.0.0.0/8:80", "[::1", "a b", "."]
)
def test_what_cannot_be_understood_exempts_nothing(entry: str) -> None:
    for host in ("example.com", "10.1.2.3", "2001:db8::1"):
        assert has_proxy(of(HTTP_PROXY="proxy", NO_PROXY=entry), host)


def test_names_in_other_letters() -> None:
    proxies = of(HTTP_PROXY="proxy", NO_PROXY="Example.COM,示例.com, .пример.рф")
    for host in ("example.com", "xn--fsq092h.com", "www.xn--fsq092h.com", "a.xn--e1afmkfd.xn--p1ai"):
        assert not has_proxy(proxies, host)
    assert has_proxy(proxies, "xn--e1afmkfd.xn--p1ai")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("socks5://127.0.0.1:1080", "socks5 proxies are not supported"),
        ("ftp://hush@x", "ftp proxies are not supported"),
        ("http://", "not of the form"),
        ("http://user:hush@", "not of the form"),
        ("http://user:hu/sh@proxy:3128", "not of the form"),
        ("http://user:12#hush@proxy:3128", "not of the form"),
        ("http://user:hush@proxy:port", "not of the form"),
        ("http://user:hush@proxy:99999", "not of the form"),
        ("http://user:hush@[::1", "not of the form"),
        ("http://user:hush@pro xy", "not of the form"),
        ("http://user:hush@proxy\n", "not of the form"),
        ("user:hush@://x", "not of the form"),
    ],
)
@pytest.mark.parametrize("variable", ["HTTP_PROXY", "HTTPS_PROXY", "https_proxy"])
def test_what_is_no_proxy(variable: str, text: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=f"^{variable}: {message}") as caught:
        Proxies.of({variable: text})
    assert "hush" not in str(caught.value)
    assert "user" not in caught.value.message.replace("[user:password@]", "")


def test_a_password_is_shown_to_nobody() -> None:
    proxies = of(HTTPS_PROXY="http://some%40one:hu%2Fsh@proxy:3128")
    assert proxies.https == Proxy("http", "proxy", 3128, "HTTPS_PROXY", "Basic c29tZUBvbmU6aHUvc2g=")
    assert proxies.https.headers == (("Proxy-Authorization", "Basic c29tZUBvbmU6aHUvc2g="),)
    assert of(HTTPS_PROXY="http://name@proxy").https == Proxy("http", "proxy", 80, "HTTPS_PROXY", "Basic bmFtZTo=")
    for text in (repr(proxies), str(proxies), str(proxies.https), repr(proxies.https)):
        assert not [secret for secret in ("some", "hu/sh", "hu%2Fsh", "c29t") if secret in text]
