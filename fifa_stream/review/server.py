"""The desk on a port: a handful of fixed files, JSON, and pictures that were encoded here.

Three strangers are kept out. Another machine: loopback unless told otherwise, and beyond it a token. Another page in the reviewer's browser: no
answer to a host name that is not ours (DNS rebinding), none to a request that a foreign page began, and no change without a header that such a page
cannot send. And the records themselves: no string of theirs is markup (the page's policy has no inline script or style and no way to parse HTML), no
byte of theirs a picture.
"""

import contextlib
import hmac
import ipaddress
import json
import secrets
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

import uvicorn
from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from engines.contracts import Label
from fifa_stream.config import ConfigError
from fifa_stream.review.decisions import DecisionError
from fifa_stream.review.desk import Choice, Desk, Refusal
from fifa_stream.review.export import VerifyError
from fifa_stream.review.queue import Order, Standing, Wanted
from fifa_stream.review.sources import NoPicture

MAX_BODY_BYTES: Final = 64 << 10
MAX_QUERY_BYTES: Final = 8 << 10
MAX_HEAD_BYTES: Final = 16 << 10
"""Of a request before its body."""
MAX_CONNECTIONS: Final = 64
MIN_TOKEN_CHARACTERS: Final = 16
COOKIE: Final = "fifa-desk"
OURS: Final = "x-fifa-desk"
"""Header of every request of our page: one that a form or another page cannot set without asking first, and nobody answers such a question."""

POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
_HEADERS: Final = (
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), geolocation=(), microphone=()"),
    (b"cache-control", b"no-store"),
)
_ASSETS: Final = {
    "/": ("review/static/desk.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/desk.css": ("review/static/desk.css", "text/css"),
    "/desk.js": ("review/static/desk.js", "text/javascript"),
    "/player.js": ("review/static/player.js", "text/javascript"),
}
"""Every file that is served, read at start: no path of a request reaches the disk."""


@dataclass(frozen=True, slots=True)
class Door:
    """Who may come in."""

    port: int
    hosts: frozenset[str] = frozenset()
    """Names by which the desk may be addressed beside localhost and plain addresses, which no name server can turn."""
    token: str | None = None
    """None: whoever reaches the port."""
    is_tls: bool = False

    def knows(self, host: str) -> bool:
        """Whether a Host header is ours."""
        name, port = _split(host)
        if port is not None and port != self.port and name not in self.hosts:
            return False
        return name == "localhost" or name in self.hosts or _is_address(name)

    def is_own(self, origin: str, host: str) -> bool:
        """Whether a page of this origin is ours, under a Host header of ours. A proxy that has one of our names may add TLS."""
        schemes = ("https",) if self.is_tls else ("http", "https") if _split(host)[0] in self.hosts else ("http",)
        return origin in [f"{scheme}://{host}" for scheme in schemes]


def _split(host: str) -> tuple[str, int | None]:
    name, colon, port = host.rpartition(":")
    if not colon or "]" in port:
        return host.lower(), None
    return name.lower(), int(port) if port.isascii() and port.isdigit() and len(port) < 6 else -1


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Whether an address to bind is reached from this machine alone."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class _Guard:
    """Stands before everything: host, origin, session, size; and puts our headers on every answer."""

    def __init__(self, app: ASGIApp, door: Door, session: str) -> None:
        self._app, self._door, self._session = app, door, session

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *_HEADERS]
            await send(message)

        refusal = self._refusal(Request(scope))
        if refusal is not None:
            await refusal(scope, receive, send_with_headers)
            return
        await self._app(scope, _bounded(receive), send_with_headers)

    def _refusal(self, request: Request) -> Response | None:
        headers, path = request.headers, request.url.path
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not self._door.knows(hosts[0]):
            return _problem(421, "this desk has another name; open it by the address that it printed, or name it with --allow-host")
        if len(request.scope["query_string"]) > MAX_QUERY_BYTES or _is_long(headers.get("content-length", "0")):
            return _problem(413, f"the request is too large: at most {MAX_QUERY_BYTES} bytes of query and {MAX_BODY_BYTES} of body are taken")
        origin = headers.get("origin")
        is_foreign = (origin is not None and not self._door.is_own(origin, hosts[0])) or headers.get("sec-fetch-site") in ("cross-site", "same-site")
        is_link = request.method == "GET" and path == "/" and headers.get("sec-fetch-mode") == "navigate"
        if is_foreign and not is_link:
            return _problem(403, "the request comes from another page")
        if request.method not in ("GET", "HEAD") and (OURS not in headers or headers.get("content-type") != "application/json"):
            return _problem(403, "the request does not come from the desk's own page")
        if path.startswith("/api/") and path != "/api/session" and not self._is_in(request):
            return _problem(401, "the desk asks for its token")
        return None

    def _is_in(self, request: Request) -> bool:
        return self._door.token is None or _is_same(request.cookies.get(COOKIE, ""), self._session)


def _is_same(given: str, secret: str) -> bool:
    """In a time that says nothing about where they differ."""
    return hmac.compare_digest(given.encode("utf-8", "surrogatepass"), secret.encode())


def _bounded(receive: Receive) -> Receive:
    left = MAX_BODY_BYTES

    async def bounded() -> Message:
        nonlocal left
        message = await receive()
        left -= len(message.get("body", b""))
        if left < 0:
            raise HTTPException(413, f"the request is too large: at most {MAX_BODY_BYTES} bytes of body are taken")
        return message

    return bounded


def _is_long(length: str) -> bool:
    return not (length.isascii() and length.isdigit() and len(length) < 10 and int(length) <= MAX_BODY_BYTES)


def _problem(status: int, why: str) -> JSONResponse:
    return JSONResponse({"error": why}, status)


Work = Callable[[Request, Any], Any]


def desk_app(desk: Desk, door: Door) -> ASGIApp:
    """The application. `desk` is used by threads."""
    session = secrets.token_urlsafe(32)
    assets = {path: ((files("fifa_stream") / name).read_bytes(), kind) for path, (name, kind) in _ASSETS.items()}

    async def asset(request: Request) -> Response:
        content, kind = assets[request.url.path]
        return Response(content, media_type=kind)

    async def come_in(request: Request) -> Response:
        given = (await _body(request)).get("token")
        if door.token is None or (isinstance(given, str) and _is_same(given, door.token)):
            response = JSONResponse({"in": True})
            response.set_cookie(COOKIE, session, httponly=True, samesite="strict", secure=door.is_tls, path="/")
            return response
        return _problem(401, "that is not the token")

    def number(request: Request, name: str = "number") -> int:
        return int(request.path_params[name])

    def queue(request: Request, _: Any) -> Response:
        asked = request.query_params
        wanted = Wanted(
            Label(asked["label"]) if asked.get("label") else None,
            asked.get("type") or None,
            int(asked["stream"]) if asked.get("stream") else None,
            Standing(asked.get("standing", "all")),
        )
        order = Order(asked.get("order", "score"))
        return JSONResponse({"cases": desk.queue(order, wanted), "sampling": desk.sampling(order, wanted)})

    def rows(request: Request, _: Any) -> Response:
        return JSONResponse(desk.rows([int(one) for one in request.query_params.get("cases", "").split(",") if one]))

    def exported(request: Request, _: Any) -> Response:
        name, content = desk.export(number(request))
        return Response(content, media_type="application/zip", headers={"content-disposition": f'attachment; filename="{name}"'})

    jpeg = "image/jpeg"
    routes: Sequence[tuple[str, str, Work]] = (
        ("GET", "/api/desk", lambda request, body: JSONResponse(desk.head())),
        ("GET", "/api/queue", queue),
        ("GET", "/api/rows", rows),
        ("GET", "/api/cases/{number:int}", lambda request, body: JSONResponse(desk.case(number(request)))),
        ("GET", "/api/cases/{number:int}/frame.jpg", lambda request, body: Response(desk.frame_jpeg(number(request)), media_type=jpeg)),
        (
            "GET",
            "/api/cases/{number:int}/faces/{face:int}.jpg",
            lambda request, body: Response(desk.face_jpeg(number(request), number(request, "face")), media_type=jpeg),
        ),
        ("GET", "/api/cases/{number:int}/case.zip", exported),
        ("GET", "/api/streams/{number:int}", lambda request, body: JSONResponse(desk.stream(number(request)))),
        ("POST", "/api/decisions", lambda request, body: JSONResponse(desk.decide(Choice.model_validate(body)))),
        ("POST", "/api/undo", lambda request, body: JSONResponse(desk.undo())),
    )
    app = Starlette(
        routes=[
            *(Route(path, asset, methods=["GET"]) for path in assets),
            Route("/api/session", come_in, methods=["POST"]),
            *(Route(path, _answering(work, takes_body=method == "POST"), methods=[method]) for method, path, work in routes),
        ],
        exception_handlers={HTTPException: _told, ValueError: _no_number},
    )
    return _Guard(app, door, session)


async def _told(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException), "nothing else is handed here"
    return _problem(error.status_code, error.detail)


async def _no_number(_: Request, error: Exception) -> Response:
    return _problem(404, "there is no such number")  # of more digits than Python reads, in a path


async def _body(request: Request) -> dict[str, Any]:
    try:
        tree = json.loads(await request.body())
    except (ValueError, RecursionError):
        raise HTTPException(400, "the body is not JSON") from None
    if not isinstance(tree, dict):
        raise HTTPException(400, "the body is no JSON object")
    return tree


def _answering(work: Work, *, takes_body: bool) -> Callable[[Request], Awaitable[Response]]:
    """Work in a thread; what it refuses is told as JSON."""

    async def endpoint(request: Request) -> Response:
        body = await _body(request) if takes_body else None
        try:
            response: Response = await run_in_threadpool(work, request, body)
        except NoPicture as error:
            return _problem(404, str(error))
        except Refusal as error:
            return _problem(404, str(error))
        except VerifyError as error:
            return _problem(409, str(error))
        except DecisionError as error:
            return _problem(503, str(error))
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False, include_context=False)[0]
            return _problem(422, f"{'.'.join(map(str, first['loc']))[:80]}: {first['msg'][:200]}")
        except ValueError:
            return _problem(400, "a value of the request is none of those that there are")
        return response

    return endpoint


@dataclass(frozen=True, slots=True)
class Address:
    """Where the desk is reached."""

    host: str = "127.0.0.1"
    port: int = 8571
    """0: any."""
    token_file: Path | None = None
    names: tuple[str, ...] = ()
    """By which it is addressed beside its address: those of a proxy."""
    tls_certificate: Path | None = None
    tls_key: Path | None = None


def read_token(address: Address) -> str | None:
    """The token of the file, or one made up where the desk can be reached from other machines; None on this machine alone. Raises ConfigError."""
    if address.token_file is None:
        return None if is_loopback(address.host) else secrets.token_urlsafe(24)
    try:
        token = address.token_file.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        cause = (isinstance(error, OSError) and error.strerror) or "it is not text"
        raise ConfigError(f"--token-file {str(address.token_file)!r} cannot be read: {cause}; write a token into it") from None
    if len(token) < MIN_TOKEN_CHARACTERS or not token.isascii():
        raise ConfigError(
            f"--token-file {str(address.token_file)!r} holds no token of {MIN_TOKEN_CHARACTERS} ASCII characters or more; write one into it"
        )
    return token


def serve_desk(desk: Desk, address: Address, *, is_open: Callable[[str, str | None], None]) -> None:
    """Answer until interrupted. `is_open` gets the address to open, and the token where one was made up. Raises ConfigError."""
    token = read_token(address)
    try:
        listening = socket.create_server((address.host, address.port), family=socket.AF_INET6 if ":" in address.host else socket.AF_INET)
    except OSError as error:
        cause = error.strerror or error
        raise ConfigError(f"port {address.port} of {address.host!r} cannot be bound: {cause}; give --host and --port") from None
    with listening:
        port = listening.getsockname()[1]
        is_tls = address.tls_certificate is not None
        names = (*address.names, *(() if _is_address(address.host) else (address.host,)))
        door = Door(port, frozenset(name.lower() for name in names), token, is_tls)
        config = uvicorn.Config(
            desk_app(desk, door),
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            lifespan="off",
            ws="none",
            http="h11",
            h11_max_incomplete_event_size=MAX_HEAD_BYTES,
            limit_concurrency=MAX_CONNECTIONS,
            timeout_graceful_shutdown=2,
            ssl_certfile=address.tls_certificate,
            ssl_keyfile=address.tls_key,
        )
        try:
            config.load()
        except OSError as error:
            raise ConfigError(f"--tls-certificate and --tls-key cannot be used: {error}; give PEM files that belong together") from None
        host = f"[{address.host}]" if ":" in address.host else address.host
        is_open(f"{'https' if is_tls else 'http'}://{host}:{port}/", token if address.token_file is None else None)
        with contextlib.suppress(KeyboardInterrupt):  # which uvicorn raises again once it has closed
            uvicorn.Server(config).run(sockets=[listening])
