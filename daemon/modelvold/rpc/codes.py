"""From failures to gRPC codes: the one table, and the one place where a call's error is answered and logged.

The codes are those that containerd turns into its own errors (`errdefs/pkg/errgrpc`); the text survives the way to a
pod's event.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType

import grpc

from modelvold import errors

log = logging.getLogger(__name__)

#: Total over the subclasses of Failure. What may go well when tried again later is UNAVAILABLE: kubelet tries again.
CODES: Mapping[type[errors.Failure], grpc.StatusCode] = MappingProxyType(
    {
        errors.Failure: grpc.StatusCode.UNKNOWN,
        errors.InvalidInput: grpc.StatusCode.INVALID_ARGUMENT,
        errors.NotFound: grpc.StatusCode.NOT_FOUND,
        errors.AlreadyExists: grpc.StatusCode.ALREADY_EXISTS,
        errors.Refused: grpc.StatusCode.FAILED_PRECONDITION,
        errors.InUse: grpc.StatusCode.FAILED_PRECONDITION,
        errors.NotAModel: grpc.StatusCode.INVALID_ARGUMENT,
        errors.Malformed: grpc.StatusCode.DATA_LOSS,
        errors.Mismatch: grpc.StatusCode.DATA_LOSS,
        errors.Unauthorized: grpc.StatusCode.UNAUTHENTICATED,
        errors.Forbidden: grpc.StatusCode.PERMISSION_DENIED,
        errors.Unreachable: grpc.StatusCode.UNAVAILABLE,
        errors.NotYet: grpc.StatusCode.UNAVAILABLE,
        errors.Exhausted: grpc.StatusCode.RESOURCE_EXHAUSTED,
        errors.Failing: grpc.StatusCode.UNAVAILABLE,
        errors.Unsupported: grpc.StatusCode.FAILED_PRECONDITION,
    }
)

# The text travels as a header, and clients bound the sum of those at 8 KiB, after percent-encoding.
_LONGEST_TEXT = 2000


def code_of(failure: errors.Failure) -> grpc.StatusCode:
    """The code of the failure's class, or of its nearest ancestor that has one."""
    return next(CODES[kind] for kind in type(failure).__mro__ if kind in CODES)


@contextmanager
def answering(context: grpc.ServicerContext, call: str, *, ordinary: int = logging.DEBUG) -> Iterator[None]:
    """Ends the call `call` with the code and text of what its block raises. What no room raised on purpose is
    INTERNAL, and logged with its trace. `ordinary` is the level at which it is logged that a thing is there, or is not."""
    try:
        yield
    except errors.Failure as failure:
        code, text = code_of(failure), str(failure)
        # containerd asks and is told so all day: whether a snapshot is there, whether a layer is.
        is_ordinary = isinstance(failure, (errors.AlreadyExists, errors.NotFound))
        log.log(ordinary if is_ordinary else logging.WARNING, "refuse call=%s code=%s why=%s", call, code.name, text)
    except Exception as error:
        code, text = grpc.StatusCode.INTERNAL, f"{type(error).__name__}: {error}; see the log of modelvold"
        log.exception("fail call=%s", call)
    else:
        return
    context.abort(code, text[:_LONGEST_TEXT])
