"""What a request has to pass before anything reads it: the bearer token and the limit on its body.

Contract: ASGI middleware. 401 without the right token, on every path but the documentation's; 413 for a body over the
limit, which is never held in memory beyond it. Neither reply repeats anything of the request.
"""

import hmac

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

OPEN_PATHS = frozenset({"/docs", "/openapi.json", "/docs/oauth2-redirect"})
"""What a browser may read without a token: it says how the service is called, and nothing that was sent to it."""


class Gate:
    """See the module's contract. `token` None lets everybody in."""

    def __init__(self, app: ASGIApp, token: str | None, max_body_bytes: int):
        self._app = app
        self._expected = None if token is None else f"Bearer {token}".encode()
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, its body read, or answer it here."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if not self._allowed(scope):
            detail = "This scorer wants a token: send the header 'Authorization: Bearer TOKEN'."
            refusal = JSONResponse({"detail": detail}, 401, headers={"www-authenticate": "Bearer"})
            await refusal(scope, receive, send)
            return
        body = await self._body(scope, receive)
        if body is None:
            detail = (
                f"The request's body has more than {self._max_body_bytes} bytes. Send fewer items or smaller images."
            )
            await JSONResponse({"detail": detail}, 413, headers={"connection": "close"})(scope, receive, send)
            return
        pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return pending.pop() if pending else await receive()

        await self._app(scope, replay, send)

    def _allowed(self, scope: Scope) -> bool:
        if self._expected is None or scope["path"] in OPEN_PATHS:
            return True
        sent = Headers(scope=scope).get("authorization", "")
        return hmac.compare_digest(sent.encode(), self._expected)

    async def _body(self, scope: Scope, receive: Receive) -> bytes | None:
        """The whole body, None where it is over the limit. A caller that hangs up leaves what it sent so far."""
        announced = Headers(scope=scope).get("content-length", "")
        if announced.isdecimal() and int(announced) > self._max_body_bytes:
            return None
        chunks, size = [], 0
        while True:
            message = await receive()
            chunk = message.get("body", b"")
            size += len(chunk)
            if size > self._max_body_bytes:
                return None
            chunks.append(chunk)
            if not message.get("more_body", False):
                return b"".join(chunks)
