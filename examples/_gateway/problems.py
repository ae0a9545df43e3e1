"""What went wrong, for clients: problem details (RFC 9457), and which status an error of a device is."""

import errno
from http import HTTPStatus
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse

import aioblk

RETRY_AFTER = {"Retry-After": "1"}


class ProblemError(Exception):
    """An answer that is no success. What is said beside status and detail are members of the JSON object."""

    def __init__(
        self, status: HTTPStatus, detail: str, *, headers: dict[str, str] | None = None, **members: Any
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.headers = headers
        self.members = members

    def response(self) -> JSONResponse:
        return JSONResponse(
            {"title": self.status.phrase, "status": self.status, "detail": str(self), **self.members},
            self.status,
            self.headers,
            "application/problem+json",
        )


STATUS = {
    errno.ENOSPC: HTTPStatus.INSUFFICIENT_STORAGE,
    errno.EDQUOT: HTTPStatus.INSUFFICIENT_STORAGE,
    errno.ENOTSUP: HTTPStatus.NOT_IMPLEMENTED,
    errno.EBADF: HTTPStatus.METHOD_NOT_ALLOWED,
}


def problem_of(error: aioblk.BlkioError, **members: Any) -> ProblemError:
    """Names the errno, and not the file: where it lies is the server's business."""
    if isinstance(error, (aioblk.DeviceLostError, aioblk.DeviceClosedError)):
        return ProblemError(
            HTTPStatus.SERVICE_UNAVAILABLE, "the device is gone", headers=RETRY_AFTER, **members
        )
    number = error.errno or errno.EIO
    detail = f"the device failed to {error.operation or 'do it'}: {error.strerror}"
    return ProblemError(
        STATUS.get(number, HTTPStatus.INTERNAL_SERVER_ERROR),
        detail,
        errno=errno.errorcode.get(number, number),
        **members,
    )


def on_problem(_: Request, error: Exception) -> JSONResponse:
    """An exception handler of Starlette's."""
    assert isinstance(error, ProblemError)
    return error.response()


def on_device_error(_: Request, error: Exception) -> JSONResponse:
    """An exception handler of Starlette's."""
    assert isinstance(error, aioblk.BlkioError)
    return problem_of(error).response()
