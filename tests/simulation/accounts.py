"""An instrument that keeps accounts: each request begins once and ends once, as the device counts them."""

from typing import final

import aioblk

from .oracle import Wrong

__all__ = ["Accounts"]


@final
class Accounts:
    """Of one device, since it was opened."""

    def __init__(self) -> None:
        self._under_way: set[aioblk.RequestInfo] = set()
        self._ended = 0
        self._wrong: str | None = None

    def request_begun(self, request: aioblk.RequestInfo) -> None:
        if request in self._under_way:
            self._wrong = f"{request} has begun twice"
        self._under_way.add(request)

    def request_finished(self, request: aioblk.RequestInfo, _error: BaseException | None) -> None:
        self._ended += request.requests
        if request not in self._under_way:
            self._wrong = f"{request} has ended, and was not under way"
        self._under_way.discard(request)

    def close(self, counted: aioblk.QueueStatistics) -> None:
        """Nothing is under way any more.

        Raises Wrong: the instrument was told otherwise, or of other requests than the device has counted.
        """
        if self._wrong is None and self._under_way:
            self._wrong = f"never ended, says the instrument: {self._under_way}"
        timed = sum(each.latency.count for each in counted.operations.values())
        if self._wrong is None and not timed <= counted.completed + counted.failed <= counted.submitted:
            self._wrong = f"more requests were timed than there were: {counted}"
        # Waiting for what was given up to land counts as a flush, and is nobody's request.
        flushes = counted.flush.completed + counted.flush.failed
        certain = counted.completed + counted.failed - flushes
        if self._wrong is None and self._ended < certain:
            self._wrong = f"of {certain} requests or more, the end of {self._ended} was told"
        if self._wrong is not None:
            raise Wrong(self._wrong)
