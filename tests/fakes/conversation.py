"""The fake registry's side of each connection: what is asked, what is answered, and what goes wrong on the way."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import re
import secrets
import socket
import ssl
import struct
import threading
import urllib.parse
from collections.abc import Mapping
from typing import Any, Protocol

from modelvold.oci.digest import Digest

from tests.fakes.behaviour import BLOB_PATH, MANIFEST_PATH, Auth, Behaviour, Request
from tests.fakes.content import Generated

_RANGE = re.compile(r"bytes=([0-9]+)-([0-9]+)")


class Holdings(Protocol):
    """What a conversation sees of its registry."""

    auth: Auth | None
    behaviour: Behaviour
    requests: list[Request]
    blobs: dict[str, Generated]
    manifests: dict[tuple[str, str], tuple[bytes, str]]
    tokens: set[str]
    context: ssl.SSLContext | None
    ending: threading.Event

    @property
    def address(self) -> str: ...

    @property
    def origin(self) -> str: ...


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = False  # joined by server_close, so that nothing outlives the registry
    request_queue_size = 128

    def __init__(self, registry: Holdings, host: str) -> None:
        self.registry = registry
        self._connections: set[socket.socket] = set()
        self._lock = threading.Lock()
        super().__init__((host, 0), _Conversation)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._connections.add(request)
        try:
            context = self.registry.context
            if context is not None:
                request.settimeout(10)
                request = context.wrap_socket(request, server_side=True)
                request.settimeout(None)
                with self._lock:
                    self._connections.add(request)
            super().process_request_thread(request, client_address)
        except OSError:
            request.close()
        finally:
            with self._lock:
                self._connections = {one for one in self._connections if one.fileno() >= 0}

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is what many tests are about."""

    def end_connections(self) -> None:
        with self._lock:
            for one in self._connections:
                with contextlib.suppress(OSError):
                    socket.socket.shutdown(one, socket.SHUT_RDWR)


class _Conversation(http.server.BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server

    def log_message(self, format: str, *args: object) -> None:
        """`requests` is the log."""

    def flush_headers(self) -> None:
        drip = self.ill.drip_headers if self.asked.path != "/token" else 0
        for byte in b"".join(self._headers_buffer) if drip else b"":  # type: ignore[attr-defined]
            self.wfile.write(bytes([byte]))
            if self.server.registry.ending.wait(drip):
                break
        if drip:
            self._headers_buffer = []
        super().flush_headers()

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        registry = self.server.registry
        parts = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(parts.query))
        headers = {name.lower(): text for name, text in self.headers.items()}
        auth = headers.get("authorization", "").partition(" ")[0]
        self.asked = Request(
            self.command, parts.path, query, headers.get("range", ""), auth, headers, self.client_address[1]
        )
        registry.requests.append(self.asked)
        matches = re.fullmatch(registry.behaviour.only, parts.path) is not None
        self.ill = registry.behaviour if matches else Behaviour()
        if self.ill.delay:
            registry.ending.wait(self.ill.delay)
        if self.ill.hang:
            registry.ending.wait()
            self.close_connection = True
            return
        with contextlib.suppress(OSError):
            self._dispatch(registry, parts.path)
        if self.ill.drop_idle:
            self.close_connection = True

    def _dispatch(self, registry: Holdings, path: str) -> None:
        status = self.ill.status_of_method.get(self.command)
        status = status or next((s for form, s in self.ill.status.items() if re.fullmatch(form, path)), None)
        if status is not None:
            self._refuse(status, "UNAVAILABLE" if status >= 500 else "DENIED", self.ill.headers)
        elif path == "/token" and registry.auth is not None:
            self._give_token(registry, registry.auth)
        elif not self._is_welcome(registry):
            self._challenge(registry)
        elif found := MANIFEST_PATH.fullmatch(path):
            self._manifest(registry, found["repository"], found["target"])
        elif found := BLOB_PATH.fullmatch(path):
            self._blob(registry, found["target"])
        elif path == "/v2/":
            self._send(200, Generated.of(b"{}"), {"Content-Type": "application/json"})
        else:
            self._refuse(404, "NAME_UNKNOWN")

    def _is_welcome(self, registry: Holdings) -> bool:
        if registry.auth is None:
            return True
        kind, _, text = self.asked.headers.get("authorization", "").partition(" ")
        if registry.auth.bearer:
            return kind == "Bearer" and text in registry.tokens
        return registry.auth.is_known(f"{kind} {text}")

    def _challenge(self, registry: Holdings) -> None:
        found = MANIFEST_PATH.fullmatch(self.asked.path) or BLOB_PATH.fullmatch(self.asked.path)
        scope = f"repository:{found['repository']}:pull" if found else ""
        if registry.auth and registry.auth.bearer:
            challenge = f'Bearer realm="{registry.auth.realm or registry.origin}/token",service="{registry.address}",scope="{scope}"'
        else:
            challenge = 'Basic realm="fake"'
        self._refuse(401, "UNAUTHORIZED", {"WWW-Authenticate": challenge})

    def _give_token(self, registry: Holdings, auth: Auth) -> None:
        authorization = self.asked.headers.get("authorization", "")
        known = auth.is_known(authorization)
        if not known and (authorization or not auth.anonymous):
            self._refuse(401, "UNAUTHORIZED")
            return
        token = secrets.token_urlsafe(16)
        if registry.behaviour.token_losses:
            registry.behaviour.token_losses -= 1
        else:
            registry.tokens.add(token)
        said: dict[str, Any] = {auth.token_key: token} | ({} if auth.life is None else {"expires_in": auth.life})
        self._send(200, Generated.of(json.dumps(said).encode()), {"Content-Type": "application/json"})

    def _manifest(self, registry: Holdings, repository: str, target: str) -> None:
        held = registry.manifests.get((repository, target))
        if held is None:
            self._refuse(404, "MANIFEST_UNKNOWN")
            return
        document, media_type = held
        headers = {"Content-Type": media_type}
        if not self.ill.no_digest:
            headers["Docker-Content-Digest"] = self.ill.claimed_digest or str(Digest.of(document))
        self._send(200, Generated.of(document), headers)

    def _blob(self, registry: Holdings, target: str) -> None:
        blob = registry.blobs.get(target)
        if self.ill.redirect_to:
            location = f"{self.ill.redirect_to}{self.asked.path}?X-Signature=hush-{secrets.token_hex(8)}"
            location += f"&{self.ill.redirect_query}" if self.ill.redirect_query else ""
            headers = {"Location": location, **self.ill.redirect_headers}
            self._send(self.ill.redirect_status, Generated.of(b"<a>elsewhere</a>"), headers)
            return
        if self._is_worn_out(registry):
            self._refuse(403, "DENIED")
            return
        if blob is None:
            self._refuse(404, "BLOB_UNKNOWN")
            return
        headers = {"Content-Type": "application/octet-stream", "Docker-Content-Digest": target}
        asked = None if self.ill.ignore_range else _RANGE.fullmatch(self.asked.range)
        if asked is None:
            self._send(200, self._spoilt(blob, 0, blob.size), headers)
            return
        first, last = int(asked[1]) + self.ill.wrong_range, min(int(asked[2]) + self.ill.wrong_range, blob.size - 1)
        if first >= blob.size:
            self._refuse(416, "RANGE_INVALID", {"Content-Range": f"bytes */{blob.size}"})
            return
        headers["Content-Range"] = f"bytes {first}-{last}/{self.ill.claimed_size or blob.size}"
        self._send(206, self._spoilt(blob, first, last + 1 - first), headers)

    def _is_worn_out(self, registry: Holdings) -> bool:
        uses, signature = self.ill.signature_uses, self.asked.query.get("X-Signature", "")
        return uses is not None and sum(r.query.get("X-Signature") == signature for r in registry.requests) > uses

    def _spoilt(self, blob: Generated, start: int, size: int) -> Generated:
        def read(offset: int, length: int) -> bytes:
            got = blob.read(start + offset, length)
            return bytes([got[0] ^ 1]) + got[1:] if self.ill.corrupt and start + offset == 0 and got else got

        return Generated(size, read)

    def _refuse(self, status: int, code: str, headers: Mapping[str, str] | None = None) -> None:
        body = json.dumps({"errors": [{"code": code, "message": f"refused: {code}"}]}).encode()
        self._send(status, Generated.of(body), {"Content-Type": "application/json", **(headers or {})})

    def _send(self, status: int, body: Generated, headers: Mapping[str, str]) -> None:
        fine = 200 <= status < 300 and self.asked.path != "/token"
        self.asked.status = status
        self.send_response(status)
        for name, text in {**headers, **(self.ill.headers if fine else {})}.items():
            self.send_header(name, text)
        chunked, until_close = fine and self.ill.chunked, fine and self.ill.until_close
        if chunked:
            self.send_header("Transfer-Encoding", "chunked")
        elif until_close:
            self.send_header("Connection", "close")
        elif not (self.command == "HEAD" and self.ill.no_length):
            declared = len(self.ill.extra) if fine and not self.ill.extra_undeclared else 0
            self.send_header("Content-Length", str(body.size + declared))
        self.end_headers()
        if self.command == "HEAD":
            return
        self._send_body(body, self.ill if fine else Behaviour(), chunked=chunked)
        if until_close:
            self.close_connection = True

    def _send_body(self, body: Generated, ill: Behaviour, *, chunked: bool) -> None:
        """In pieces, until the body ends, or `ill` ends or holds it; what counts as sent is counted just before it
        is.
        """
        offset = 0
        stops = {ill.cut_after, ill.stall_after, ill.reset_after} - {None}
        while offset < body.size:
            if offset in stops and self._is_held(ill, offset):
                return
            stop = min((s for s in stops if s is not None and s > offset), default=body.size)
            size, rate = min(ill.piece, body.size - offset, stop - offset), ill.rate  # a test may change them meanwhile
            self._write(body.read(offset, size), chunked=chunked)
            offset += size
            if rate:
                self.server.registry.ending.wait(size / rate)
        if ill.extra:
            self._write(ill.extra, chunked=chunked)
        if chunked:
            self.wfile.write(b"0\r\n\r\n")

    def _is_held(self, ill: Behaviour, offset: int) -> bool:
        """Whether the body ends here."""
        if offset == ill.reset_after:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            os.close(self.connection.detach())
            self.close_connection = True
            return True
        if offset == ill.stall_after:
            while not ill.resume.wait(0.02) and not self.server.registry.ending.is_set():
                pass
        ended = offset == ill.cut_after or self.server.registry.ending.is_set()
        self.close_connection = self.close_connection or ended
        return ended

    def _write(self, piece: bytes, *, chunked: bool) -> None:
        self.asked.sent += len(piece)
        self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece) if chunked else piece)
