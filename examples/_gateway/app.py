"""What is answered: the device at /disk, and where it has holes at /disk/extents."""

import asyncio
import json
import logging
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from hmac import compare_digest
from http import HTTPStatus
from typing import Any, TypeAlias, cast

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

import aioblk

from .answers import Content, Download, Map
from .clients import Client, Clients
from .conditions import check, is_same
from .problems import ProblemError, on_device_error, on_problem, problem_of
from .ranges import Part, parse_content_range, parse_range, within
from .transfers import Body, Upload, View, do_stepwise
from .versions import Change, Versions

MOST_JSON = 4096
"""Bytes of what a PATCH says."""

NUMBER = re.compile(r"\d{1,19}", re.ASCII)

log = logging.getLogger("gateway")


@dataclass(frozen=True)
class Policy:
    """What whoever runs the gateway decides."""

    content_type: str = "application/octet-stream"
    patience: float = 30.0
    """Seconds that a client may take for a piece."""
    requests: int = 32
    """At a time, of one client."""
    token: str | None = None
    """What clients have to know, if anything."""


def application(
    device: aioblk.BlockDevice, clients: Clients, versions: Versions, policy: Policy
) -> Starlette:
    """An ASGI application, for connections that are a :class:`Connection`."""
    disk = Disk(device, clients, versions, policy)
    return Starlette(
        routes=[
            Route("/disk", disk.serves(disk.methods)),
            Route("/disk/extents", disk.serves(disk.of_extents)),
        ],
        exception_handlers={
            ProblemError: on_problem,
            aioblk.BlkioError: on_device_error,
            HTTPException: _on_http_exception,
            ClientDisconnect: _on_disconnect,
        },
    )


def _on_http_exception(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return ProblemError(
        HTTPStatus(error.status_code), "what there is is at /disk and at /disk/extents"
    ).response()


def _on_disconnect(_: Request, error: Exception) -> Response:
    return Response(status_code=HTTPStatus.BAD_REQUEST)  # which nobody takes any more


Handler: TypeAlias = Callable[[Request, Client], Awaitable[ASGIApp]]


class Disk:
    """The device, as HTTP has it."""

    def __init__(
        self, device: aioblk.BlockDevice, clients: Clients, versions: Versions, policy: Policy
    ) -> None:
        self._device = device
        self._view: View = aioblk.ByteView(device)
        self._clients = clients
        self._versions = versions
        self._policy = policy
        changing: dict[str, Handler] = {"PUT": self.put, "PATCH": self.patch, "DELETE": self.delete}
        self.methods: dict[str, Handler] = {
            "GET": self.get,
            "HEAD": self.get,
            "OPTIONS": self.options,
            **({} if device.read_only else changing),
        }
        self.of_extents: dict[str, Handler] = {"GET": self.extents, "HEAD": self.extents}

    def serves(self, methods: dict[str, Handler]) -> "Resource":
        return Resource(methods, self._clients, self._policy.token)

    # --- reading --------------------------------------------------------------------------------------------

    async def get(self, request: Request, client: Client) -> ASGIApp:
        part, headers = self._part(request), request.headers
        tag = self._versions.tag(part)
        common: dict[str, str] = {
            "Accept-Ranges": "bytes",
            "Cache-Control": "no-cache" if tag else "no-store",
            "X-Content-Type-Options": "nosniff",
        }
        if tag:
            common["ETag"] = tag
        if not check(headers, tag, reads=True):
            return Response(None, HTTPStatus.NOT_MODIFIED, common)
        ranges: list[Part] | None = None
        if request.method == "GET" and "range" in headers and is_same(headers, tag):
            ranges = parse_range(headers["range"], part.length)  # for GET only, says RFC 9110
        if ranges is None:
            content = Content(HTTPStatus.OK, common, self._policy.content_type, [(b"", part)])
        else:
            content = Content.of_ranges(common, self._policy.content_type, ranges, part)
        if request.method == "HEAD":
            return Response(None, content.status, content.headers)
        since = self._versions.latest if tag else None
        return Download(content, self._view, client, self._versions, since, self._policy.patience)

    async def options(self, request: Request, _: Client) -> ASGIApp:
        """As oVirt's imageio tells what it can."""
        features = ["extents"] if self._device.read_only else ["extents", "zero", "discard", "flush"]
        told = {
            "features": features,
            "max_readers": self._policy.requests,
            "max_writers": 0 if self._device.read_only else self._policy.requests,
            "size": self._device.capacity,
            "block_size": self._device.limits.request_alignment,
        }
        return JSONResponse(told, headers={"Allow": ", ".join(self.methods), "Accept-Ranges": "bytes"})

    async def extents(self, request: Request, _: Client) -> ASGIApp:
        if request.query_params.get("context", "zero") != "zero":
            raise ProblemError(HTTPStatus.NOT_FOUND, "there is only the context zero: what reads as zeroes")
        return Map(self._device, self._part(request), self._policy.patience)

    # --- changing -------------------------------------------------------------------------------------------

    async def put(self, request: Request, client: Client) -> ASGIApp:
        """The body becomes what is at its place, which is in the URL, or in Content-Range: so curl goes on
        with what broke off. What is not whole leaves what was written of it, and says how much that is."""
        whole, flush = self._part(request), _switch(request, "flush", default=True)
        part, is_all = self._place(request, whole)
        upload = Upload(self._view, client, part)
        body = Body(request.stream(), self._policy.patience)
        change = self._begin(request, whole, part)
        try:
            await upload.run(body)
            if await body.has_more():
                raise ProblemError(HTTPStatus.BAD_REQUEST, f"the body does not end after {part.length} bytes")
            if is_all and upload.written < part.length:
                detail = f"the body ends after {upload.written} of {part.length} bytes"
                raise ProblemError(HTTPStatus.BAD_REQUEST, detail)
        except aioblk.BlkioError as error:
            raise problem_of(error, offset=part.offset, written=upload.written) from error
        except ProblemError as problem:
            problem.members |= {"offset": part.offset, "written": upload.written}
            raise
        except ClientDisconnect:
            log.warning(
                "%s broke off: of %d bytes for offset %d, %d were written, and not flushed",
                *(address_of(request.scope), part.length, part.offset, upload.written),
            )
            raise
        finally:
            tag = self._versions.end(change, whole)
        return await self._changed(tag, flush=flush)

    def _place(self, request: Request, whole: Part) -> tuple[Part, bool]:
        """Which part it is, and whether the body has to be as long."""
        length = int(request.headers.get("content-length", -1))
        if (given := request.headers.get("content-range")) is not None:
            part = parse_content_range(given, whole.length).moved(whole.offset)
        elif "size" in request.query_params or length < 0:
            part = whole
        else:
            part = Part(whole.offset, within(Part(0, length), whole.length).length)
        if length not in (-1, part.length):
            detail = f"a body of {length} bytes does not fit the {part.length} that it is for"
            raise ProblemError(HTTPStatus.BAD_REQUEST, detail)
        return part, given is not None or "size" in request.query_params

    async def patch(self, request: Request, client: Client) -> ASGIApp:
        """What imageio knows, and discarding: {"op": "zero", "offset": 0, "size": 4096, "flush": false}."""
        whole, told = self._part(request), await self._read_json(request)
        operation, flush = told.get("op"), told.get("flush", False)
        if operation == "flush":
            return await self._changed(None, flush=True)
        methods = {"zero": self._view.write_zeroes, "discard": self._view.discard}
        if not isinstance(operation, str) or operation not in methods:
            raise ProblemError(
                HTTPStatus.BAD_REQUEST, f"op must be zero, discard or flush, not {operation!r}"
            )
        if "size" not in told and "size" not in request.query_params:
            raise ProblemError(HTTPStatus.BAD_REQUEST, "size is missing")
        offset, size = told.get("offset", 0), told.get("size", whole.length)
        for name, value in (("offset", offset), ("size", size)):
            if type(value) is not int or value < 0:
                raise ProblemError(HTTPStatus.BAD_REQUEST, f"{name} must be a number of bytes, not {value!r}")
        if type(flush) is not bool:
            raise ProblemError(HTTPStatus.BAD_REQUEST, f"flush must be true or false, not {flush!r}")
        part = within(Part(offset, size), whole.length).moved(whole.offset)
        return await self._do(request, client, whole, part, methods[operation], flush=flush)

    async def delete(self, request: Request, client: Client) -> ASGIApp:
        """Zeroes, and room for something else. Nobody deletes all by mistake: the part is to be named."""
        if not {"offset", "size"} <= set(request.query_params):
            detail = "only a part can be deleted: name it, as by ?offset=0&size=4096"
            raise ProblemError(HTTPStatus.BAD_REQUEST, detail)
        whole, flush = self._part(request), _switch(request, "flush", default=True)
        return await self._do(request, client, whole, whole, self._view.write_zeroes, flush=flush)

    async def _do(
        self,
        request: Request,
        client: Client,
        whole: Part,
        part: Part,
        method: Callable[[int, int], Awaitable[None]],
        *,
        flush: bool,
    ) -> Response:
        change = self._begin(request, whole, part)
        try:
            await do_stepwise(client, part, method, lambda: request.scope["connection"].is_gone)
        finally:
            tag = self._versions.end(change, whole)
        return await self._changed(tag, flush=flush)

    def _begin(self, request: Request, whole: Part, part: Part) -> Change:
        """In one turn of the loop: of two that have seen the same version, one is refused."""
        check(request.headers, self._versions.tag(whole), reads=False)
        return self._versions.begin(part)

    async def _changed(self, tag: str | None, *, flush: bool) -> Response:
        if flush:
            await self._view.flush()
        return Response(headers={"ETag": tag} if tag else None)

    # --- what requests say ----------------------------------------------------------------------------------

    def _part(self, request: Request) -> Part:
        """What the URL names: all, or a resource of its own, with an entity tag of its own."""
        capacity = self._device.capacity
        offset = _number(request, "offset", 0)
        size = _number(request, "size", max(0, capacity - offset))
        return within(Part(offset, size), capacity)

    async def _read_json(self, request: Request) -> dict[str, Any]:
        told = b""
        try:
            async with asyncio.timeout(self._policy.patience):
                async for chunk in request.stream():
                    told += chunk
                    if len(told) > MOST_JSON:
                        detail = f"more than {MOST_JSON} bytes are not needed to say what is to be done"
                        raise ProblemError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, detail)
        except TimeoutError:
            raise ProblemError(HTTPStatus.REQUEST_TIMEOUT, "what is to be done came too slowly") from None
        try:
            found = json.loads(told)
        except (ValueError, RecursionError) as error:
            raise ProblemError(HTTPStatus.BAD_REQUEST, f"it is no JSON: {error}") from None
        if not isinstance(found, dict):
            raise ProblemError(HTTPStatus.BAD_REQUEST, 'an object such as {"op": "flush"} is needed')
        return cast(dict[str, Any], found)


def _number(request: Request, name: str, default: int) -> int:
    text = request.query_params.get(name)
    if text is None:
        return default
    if not NUMBER.fullmatch(text):
        raise ProblemError(HTTPStatus.BAD_REQUEST, f"{name} must be a number of bytes, not {text[:100]!r}")
    return int(text)


def _switch(request: Request, name: str, *, default: bool) -> bool:
    text = request.query_params.get(name, "y" if default else "n")
    if text not in ("y", "n"):
        raise ProblemError(HTTPStatus.BAD_REQUEST, f"{name} must be y or n, not {text[:100]!r}")
    return text == "y"


def address_of(scope: Scope) -> str:
    client = scope.get("client")
    return client[0] if client else "somebody"


class Resource:
    """What is at a path: an ASGI application, for as long as whose answer takes the client is here."""

    def __init__(self, methods: dict[str, Handler], clients: Clients, token: str | None) -> None:
        self._methods = methods
        self._clients = clients
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        self._refuse_strangers(request)
        handler = self._methods.get(request.method)
        if handler is None:
            allowed = ", ".join(self._methods)
            raise ProblemError(
                HTTPStatus.METHOD_NOT_ALLOWED, f"here are {allowed}", headers={"Allow": allowed}
            )
        with self._clients.request(address_of(scope)) as client:
            answer = await handler(request, client)
            await answer(scope, receive, send)

    def _refuse_strangers(self, request: Request) -> None:
        if self._token is not None:
            given = request.headers.get("authorization", "")
            if not compare_digest(given.encode(), f"Bearer {self._token}".encode()):
                raise ProblemError(
                    HTTPStatus.UNAUTHORIZED, "the token is missing", headers={"WWW-Authenticate": "Bearer"}
                )
