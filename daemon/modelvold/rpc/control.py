"""`modelvold.control.v1.Control`: what an operator asks of the daemon, and the same asked from the other side.

The door is an adapter without thoughts over `Operator`. The client gives back the values and the failures that the
operator gave and raised: class and remedy travel as trailing metadata beside the text that every gRPC client shows.
"""

from __future__ import annotations

import logging
import os
import queue
import socket
import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc

from modelvold import errors
from modelvold.errors import Exhausted, Failure, NotYet, Refused, Unreachable
from modelvold.lending.report import Checked, Collected, NodeReport, Progress, Report, VolumeReport
from modelvold.rpc.codes import answering
from modelvold.rpc.gen import control_pb2, control_pb2_grpc
from modelvold.rpc.operator import Operator
from modelvold.rpc.server import Door
from modelvold.rpc.values import plain, value, volume

#: A pull, a mount or a check holds one of the server's threads to its end; the rest are containerd's.
_MOST_WAITING = 16
#: Bytes; remedies are a sentence. Headers are bounded at 8 KiB, of which the text may take most.
_LONGEST_REMEDY = 600
_FAILURE, _REMEDY = "modelvold-failure", "modelvold-remedy-bin"
_LARGEST_MESSAGE = 16 << 20
#: Seconds a person waits for an answer. A mount or a removal may wait for a registry or for reads under way.
_SHORT, _LONG = 10.0, 120.0

_T = TypeVar("_T")


def control_door(operator: Operator) -> Door:
    """Opens the service over `operator`; its full name is `modelvold.control.v1.Control`."""

    def add(server: grpc.Server) -> str:
        control_pb2_grpc.add_ControlServicer_to_server(_Control(operator), server)  # type: ignore[no-untyped-call]
        return control_pb2.DESCRIPTOR.services_by_name["Control"].full_name

    return add


class _Control(control_pb2_grpc.ControlServicer):
    def __init__(self, operator: Operator) -> None:
        self._operator = operator
        self._waiting = threading.BoundedSemaphore(_MOST_WAITING)

    def Status(self, request: control_pb2.StatusRequest, context: grpc.ServicerContext) -> control_pb2.StatusResponse:  # noqa: N802
        with _telling(context, "Status"):
            report = self._operator.report(request.reference or None)
            volumes = [control_pb2.Volume(**plain(one)) for one in report.volumes]
            return control_pb2.StatusResponse(node=control_pb2.Node(**plain(report.node)), volumes=volumes)

    def Mount(  # noqa: N802
        self, request: control_pb2.MountRequest, context: grpc.ServicerContext
    ) -> Iterator[control_pb2.MountStep]:
        asked = self._operator.mount(request.reference, Path(request.directory), lambda: not context.is_active())
        with _telling(context, "Mount"), self._place(f"mount {request.reference}"), _ending(asked) as steps:
            for step in steps:
                if isinstance(step, Progress):
                    yield control_pb2.MountStep(progress=control_pb2.Progress(**plain(step)))
                else:
                    yield control_pb2.MountStep(volume=control_pb2.Volume(**plain(step)))

    def Unmount(  # noqa: N802
        self, request: control_pb2.UnmountRequest, context: grpc.ServicerContext
    ) -> control_pb2.UnmountResponse:
        with _telling(context, "Unmount"):
            self._operator.unmount(Path(request.directory))
            return control_pb2.UnmountResponse()

    def Pull(self, request: control_pb2.PullRequest, context: grpc.ServicerContext) -> Iterator[control_pb2.Progress]:  # noqa: N802
        asked = self._operator.pull(request.reference, lambda: not context.is_active())
        with _telling(context, "Pull"), self._place(f"pull {request.reference}"), _ending(asked) as steps:
            for step in steps:
                yield control_pb2.Progress(**plain(step))

    def Remove(self, request: control_pb2.RemoveRequest, context: grpc.ServicerContext) -> control_pb2.RemoveResponse:  # noqa: N802
        with _telling(context, "Remove"):
            return control_pb2.RemoveResponse(freed=self._operator.remove(request.reference))

    def Pin(self, request: control_pb2.PinRequest, context: grpc.ServicerContext) -> control_pb2.PinResponse:  # noqa: N802
        with _telling(context, "Pin"):
            self._operator.pin(request.reference)
            return control_pb2.PinResponse()

    def Unpin(self, request: control_pb2.UnpinRequest, context: grpc.ServicerContext) -> control_pb2.UnpinResponse:  # noqa: N802
        with _telling(context, "Unpin"):
            self._operator.unpin(request.reference)
            return control_pb2.UnpinResponse()

    def Collect(  # noqa: N802
        self, request: control_pb2.CollectRequest, context: grpc.ServicerContext
    ) -> control_pb2.CollectResponse:
        with _telling(context, "Collect"):
            collected = self._operator.collect(request.dry_run)
            return control_pb2.CollectResponse(
                collected=[control_pb2.Collected(**plain(one)) for one in collected],
                freed=sum(one.bytes for one in collected),
            )

    def Verify(  # noqa: N802
        self, request: control_pb2.VerifyRequest, context: grpc.ServicerContext
    ) -> Iterator[control_pb2.Checked]:
        reference = request.reference or None
        asked = self._operator.verify(reference, request.repair, lambda: not context.is_active())
        with _telling(context, "Verify"), self._place(f"verify {reference or 'all'}"), _ending(asked) as steps:
            for step in steps:
                yield control_pb2.Checked(**plain(step))

    @contextmanager
    def _place(self, what: str) -> Iterator[None]:
        if not self._waiting.acquire(blocking=False):
            raise Exhausted(f"{what}: {_MOST_WAITING} pulls, mounts and checks wait already", "wait for one to end")
        try:
            yield
        finally:
            self._waiting.release()


class ControlClient:
    """Asks the daemon at the unix socket `address`. Raises what the operator raised; Unreachable when nobody
    answers.
    """

    def __init__(self, address: Path) -> None:
        self._address = address
        options = [("grpc.max_receive_message_length", _LARGEST_MESSAGE)]
        self._channel = grpc.insecure_channel(f"unix:{address.absolute()}", options)
        self._stub = control_pb2_grpc.ControlStub(self._channel)  # type: ignore[no-untyped-call]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._channel.close()

    def report(self, reference: str | None = None) -> Report:
        with self._raising(_SHORT):
            answer = self._stub.Status(control_pb2.StatusRequest(reference=reference or ""), timeout=_SHORT)
        return Report(value(NodeReport, answer.node), tuple(volume(one) for one in answer.volumes))

    def mount(self, reference: str, directory: Path) -> Generator[Progress | VolumeReport, None, None]:
        """Every step as it comes, the volume last. Closing the generator cancels the mount, not the work begun for it."""
        request = control_pb2.MountRequest(reference=reference, directory=str(directory))
        with self._raising(0), closing(_Call(self._stub.Mount(request))) as call:
            for step in call:
                yield volume(step.volume) if step.HasField("volume") else value(Progress, step.progress)

    def unmount(self, directory: Path) -> None:
        with self._raising(_LONG):
            self._stub.Unmount(control_pb2.UnmountRequest(directory=str(directory)), timeout=_LONG)

    def pull(self, reference: str) -> Generator[Progress, None, None]:
        """Every step as it comes, what was here before first. Closing the generator ends the wait, not the work begun for it."""
        with self._raising(0), closing(_Call(self._stub.Pull(control_pb2.PullRequest(reference=reference)))) as call:
            for step in call:
                yield value(Progress, step)

    def remove(self, reference: str) -> int:
        with self._raising(_LONG):
            return int(self._stub.Remove(control_pb2.RemoveRequest(reference=reference), timeout=_LONG).freed)

    def pin(self, reference: str) -> None:
        with self._raising(_LONG):
            self._stub.Pin(control_pb2.PinRequest(reference=reference), timeout=_LONG)

    def unpin(self, reference: str) -> None:
        with self._raising(_LONG):
            self._stub.Unpin(control_pb2.UnpinRequest(reference=reference), timeout=_LONG)

    def collect(self, *, dry_run: bool) -> Sequence[Collected]:
        with self._raising(_LONG):
            answer = self._stub.Collect(control_pb2.CollectRequest(dry_run=dry_run), timeout=_LONG)
        return [value(Collected, one) for one in answer.collected]

    def verify(self, reference: str | None, *, repair: bool) -> Generator[Checked, None, None]:
        """Every step as it comes. Closing the generator ends the check."""
        request = control_pb2.VerifyRequest(reference=reference or "", repair=repair)
        with self._raising(0), closing(_Call(self._stub.Verify(request))) as call:
            for step in call:
                yield value(Checked, step)

    @contextmanager
    def _raising(self, seconds: float) -> Iterator[None]:
        try:
            yield
        except grpc.RpcError as error:
            raise self._failure(error, seconds) from error

    def _failure(self, error: Any, seconds: float) -> Failure:
        text = str(error.details())
        told = dict(error.trailing_metadata() or ())
        if _FAILURE in told:
            remedy = bytes(told.get(_REMEDY, b"")).decode(errors="replace")
            message = text.removesuffix(f"; {remedy}") if remedy else text
            return _class(told[_FAILURE])(message, remedy)
        if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
            return NotYet(f"the daemon at {self._address} gave no answer in {seconds:.0f} s", "see its log")
        if error.code() is grpc.StatusCode.UNAVAILABLE:
            return _nobody(self._address, text)
        return Failure(f"the daemon at {self._address}: {text}", "see its log")


@contextmanager
def _ending(steps: Iterator[_T]) -> Iterator[Iterator[_T]]:
    """However the iteration ends, the generator behind it ends then, and not when it is collected."""
    try:
        yield steps
    finally:
        if isinstance(steps, Generator):
            steps.close()


class _Call:
    """A stream of answers, which `close` cancels.

    A thread of its own reads it: Ctrl-C raises KeyboardInterrupt wherever the main thread is, and within gRPC's locks that leaves
    them in pieces.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, name="answers")
        self._reader.start()

    def __iter__(self) -> Iterator[Any]:
        while (answer := self._answers.get()) is not None:
            if isinstance(answer, grpc.RpcError):
                raise answer
            yield answer

    def close(self) -> None:
        self._stream.cancel()
        self._reader.join()

    def _read(self) -> None:
        try:
            for answer in self._stream:
                self._answers.put(answer)
            self._answers.put(None)
        except grpc.RpcError as error:
            self._answers.put(error)


@contextmanager
def _telling(context: grpc.ServicerContext, call: str) -> Iterator[None]:
    # A person asked by name: that it is not there is news, as it is not when containerd asks.
    with answering(context, call, ordinary=logging.WARNING):
        try:
            yield
        except Failure as failure:
            remedy = failure.remedy.encode(errors="replace")[:_LONGEST_REMEDY]
            context.set_trailing_metadata(((_FAILURE, type(failure).__name__), (_REMEDY, remedy)))
            raise


def _nobody(address: Path, text: str) -> Failure:
    """Why nothing answers at `address`: asked of the kernel, for gRPC's own words are for its authors."""
    own = "start your own with `modelvold serve --user`"
    start = "start it with `systemctl start modelvold` or `modelvold serve`" if os.geteuid() == 0 else own
    start += "; another socket is named by --address"
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(_SHORT)
            probe.connect(str(address))
    except FileNotFoundError:
        return Unreachable(f"the daemon is not running: there is no socket {address}", start)
    except ConnectionRefusedError:
        return Unreachable(f"the daemon is not running: nobody listens at {address}", start)
    except PermissionError:
        return Refused(f"the daemon at {address} answers root and who runs it alone", f"run this as root, or {own}")
    except OSError as error:
        return Unreachable(f"the daemon at {address} cannot be reached: {error.strerror or error}", start)
    return Unreachable(f"the daemon at {address} broke off: {text}", "see its log; it may have been restarted")


def _class(name: str | bytes) -> type[Failure]:
    found = getattr(errors, str(name), Failure)
    return found if isinstance(found, type) and issubclass(found, Failure) else Failure
