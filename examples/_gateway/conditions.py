"""Conditions that a request makes (RFC 9110, section 13), judged by a strong entity tag, or by none."""

import re
from http import HTTPStatus

from starlette.datastructures import Headers

from .problems import ProblemError

TAG = re.compile(r'(?:W/)?"[\x21\x23-\x7e\x80-\xff]*"')


def check(headers: Headers, tag: str | None, *, reads: bool) -> bool:
    """Whether a request is to be carried out; if not, the client has this version already.

    Without a tag, which is while the part is changing, no tag matches, and ``*`` does: there is something.

    Raises:
        ProblemError: 412, it is not as the client believes.
    """
    if (wanted := _all(headers, "if-match")) is not None and not _matches(wanted, tag):
        raise _failed("If-Match", tag)
    if (known := _all(headers, "if-none-match")) is not None and _matches(known, tag, weakly=True):
        if reads:
            return False
        raise _failed("If-None-Match", tag)
    return True


def is_same(headers: Headers, tag: str | None) -> bool:
    """Whether a range is wanted, by If-Range, or otherwise all of what there is now. No date ever fits."""
    wanted = headers.get("if-range")
    return wanted is None or (tag is not None and wanted.strip() == tag)


def _all(headers: Headers, name: str) -> str | None:
    values = headers.getlist(name)
    return ", ".join(values) if values else None


def _matches(text: str, tag: str | None, *, weakly: bool = False) -> bool:
    if text.strip() == "*":
        return True
    tags = TAG.findall(text)
    return tag is not None and (tag in tags or (weakly and f"W/{tag}" in tags))


def _failed(name: str, tag: str | None) -> ProblemError:
    state = "it is being changed just now" if tag is None else f"it is {tag} now"
    headers = None if tag is None else {"ETag": tag}
    return ProblemError(HTTPStatus.PRECONDITION_FAILED, f"{name} does not hold: {state}", headers=headers)
