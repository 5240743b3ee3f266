"""The gRPC server on its unix socket.

The socket appears under its name when everything behind it answers, in one rename, with its mode set; it goes first at
the end. A socket that nobody answers on is replaced; one that somebody answers on is left alone. Whoever may write the
socket's folder could put another in its place, so that must be root alone.
"""

from __future__ import annotations

import logging
import os
import socket
import stat
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from modelvold.errors import InvalidInput, Refused, Unreachable

log = logging.getLogger(__name__)

#: A call is a thread, and so is a Prepare that waits for a registry: four times as many as may wait
#: (`snapshot.models`), so that neither they nor operators' streams keep a Stat from its answer. Threads start when
#: they are needed.
_THREADS = 128
#: Bytes. containerd's own bound, both ways.
_LARGEST_MESSAGE = 16 << 20
#: Seconds that calls under way have to end.
_GRACE = 2.0
#: Linux: sizeof(sun_path) without its terminating zero, and what `.<pid>` may add.
_LONGEST_ADDRESS = 107 - 8

#: Adds one service to the server; returns the service's full name.
Door = Callable[[grpc.Server], str]


class Server:
    """Answers on the unix socket `address` while its `with` block runs, with the services that `doors` open and
    `grpc.health.v1.Health` over them.

    Entering raises Refused when another daemon answers there, when something else than a socket lies there, or when
    the folder could be written by others; InvalidInput for a path too long for a socket; Unreachable when it cannot be
    bound.
    """

    def __init__(self, address: Path, doors: Iterable[Door]) -> None:
        self._address = address.absolute()
        if len(os.fsencode(self._address)) > _LONGEST_ADDRESS:
            raise InvalidInput(
                f"socket {address}: the path is longer than {_LONGEST_ADDRESS} bytes", "choose a shorter one"
            )
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="rpc")
        self._health = health.HealthServicer()
        self._server = grpc.server(
            self._pool,
            options=[
                ("grpc.max_receive_message_length", _LARGEST_MESSAGE),
                ("grpc.max_send_message_length", _LARGEST_MESSAGE),
                ("grpc.so_reuseport", 0),
            ],
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        self._services = ["", *(door(self._server) for door in doors)]
        self._inode = 0

    def __enter__(self) -> Self:
        try:
            self._check_place()
            self._appear()
        except BaseException:
            self._end()
            raise
        log.info("serve address=%s", self._address)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._vanish()
        self._end()
        log.info("stop address=%s", self._address)

    def _check_place(self) -> None:
        folder = self._address.parent
        folder.mkdir(mode=0o711, parents=True, exist_ok=True)
        status = folder.stat()
        others = stat.S_IWGRP | stat.S_IWOTH
        if status.st_uid not in (0, os.geteuid()) or (status.st_mode & others and not status.st_mode & stat.S_ISVTX):
            raise Refused(f"socket {self._address}: others than root can write its folder", f"chmod go-w {folder}")
        try:
            found = self._address.lstat()
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(found.st_mode):
            raise Refused(f"socket {self._address}: something that is no socket has this name", "move it away")
        if _is_answered(self._address):
            raise Refused(
                f"socket {self._address}: another daemon answers on it", "stop it, or choose another --address"
            )

    def _appear(self) -> None:
        own = self._address.with_name(f"{self._address.name}.{os.getpid()}")
        before = os.umask(0o177)
        try:
            self._server.add_insecure_port(f"unix:{own}")
        except RuntimeError as error:
            raise Unreachable(
                f"socket {own}: cannot listen on it: {error}", "see that its folder can be written"
            ) from error
        finally:
            os.umask(before)
        for service in self._services:
            self._health.set(service, health_pb2.HealthCheckResponse.SERVING)
        self._server.start()
        self._inode = own.lstat().st_ino
        own.rename(self._address)

    def _vanish(self) -> None:
        try:
            if self._address.lstat().st_ino == self._inode:
                self._address.unlink()
        except FileNotFoundError:
            log.warning("miss socket address=%s", self._address)

    def _end(self) -> None:
        self._health.enter_graceful_shutdown()
        self._server.stop(_GRACE).wait()
        self._pool.shutdown(wait=True, cancel_futures=True)


def _is_answered(address: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(str(address))
        except BlockingIOError:  # its backlog is full: somebody is there, and busy
            return True
        except (ConnectionRefusedError, FileNotFoundError):
            return False
    return True
