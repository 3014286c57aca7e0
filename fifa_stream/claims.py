"""Frames by reference: the bytes that a claim names, out of a folder, an S3-compatible store or an HTTPS server. docs/claims.md has the threat model.

A claim is text from a stranger. It is followed only inside the allow-list: entries and claims have one spelling each and are compared byte by byte.
No redirect is followed; size, time and digest are checked.

    RecordError      `claim_forbidden`, `claim_unavailable`, `claim_mismatch`: this claim leads nowhere, dead-letter it and go on
    TransientError   the store does not answer, breaks off, or says that it cannot now
    PutError         an image was not taken by a store

obstore finds the credentials and signs; the request itself is made here, because obstore 0.12 follows redirects to any host, whatever it is told.
"""

import contextlib
import errno
import hashlib
import http.client
import io
import logging
import os
import queue
import re
import socket
import ssl
import stat
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, NoReturn, Protocol, Self, TypeVar
from urllib.parse import urlsplit

from fifa_stream.config import ClaimSettings, ConfigError
from fifa_stream.records import Claim, Reason, RecordError, TransientError, is_plain_uri

if TYPE_CHECKING:
    from obstore.store import S3Config, S3Store

logger = logging.getLogger(__name__)

CHUNK_BYTES = 256 << 10
"""Read at once; between two reads the time limit is looked at."""
SIGNED_FOR = timedelta(minutes=15)
"""How long a signed request is good for: what S3 itself allows clocks to differ by."""
RETRY_FIRST_S = 0.1
"""Wait before the second try of a claim; doubled each time ..."""
RETRY_LONGEST_S = 5.0
"""... up to this."""

Method = Literal["GET", "PUT"]

_PLACES = {
    "file": re.compile(r"file:///.+/"),
    "s3": re.compile(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]/.*"),
    "https": re.compile(r"https://[a-z0-9-]{1,63}(\.[a-z0-9-]{1,63})*(:[0-9]{1,5})?/.*"),
}
_TRY_LATER = {408, 425, 429}
"""Statuses below 500 that S3 and HTTP servers mean for a moment only."""
_REFUSED_FOR_GOOD = {errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG}
_NOT_A_FILE = {errno.ELOOP, errno.ENXIO}
"""What opening a symbolic link without following it, or a socket, says."""
_PATH_ONLY = getattr(os, "O_PATH", os.O_RDONLY)
"""Folders are passed through, not listed: Linux needs no right to read them then."""


class PutError(Exception):
    """An image was not taken by the store; the message says why."""


@dataclass(frozen=True, slots=True)
class Place:
    """One entry of the allow-list: everything below it may be read."""

    prefix: str
    """As written; ends with '/', so that it ends between two parts of a path."""
    scheme: str
    authority: str
    """Bucket or host; empty for files."""
    path: str
    """Between the authority and what a claim adds: begins and ends with '/'."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read an entry. Raises ValueError."""
        scheme, _, rest = text.partition("://")
        kind = _PLACES.get(scheme)
        if kind is None or not kind.fullmatch(text) or not text.endswith("/") or not is_plain_uri(f"{text}x"):
            raise ValueError(f"{text!r} is none of file:///FOLDER/, s3://BUCKET/PREFIX/, https://HOST/PATH/; write it plainly and end it with '/'")
        urlsplit(text).port  # noqa: B018 (raises ValueError above 65535)
        authority, _, path = rest.partition("/")
        return cls(text, scheme, authority, f"/{path}")


class Store(Protocol):
    """Where claims lead: `ClaimStore`, or a toy."""

    def check(self, claim: Claim) -> object:
        """Raise RecordError for a claim that will not be fetched; touches neither files nor the network."""
        ...

    def fetch(self, claim: Claim) -> bytes:
        """Give the claim's bytes. Raises RecordError, TransientError. Called by several threads."""
        ...


class ClaimStore:
    """Every place that the settings allow. Holds no open files or connections; may be shared by threads."""

    def __init__(self, settings: ClaimSettings, *, unix_time_s: Callable[[], float] = time.time) -> None:
        """Raises ConfigError for an entry that is no place, and where obstore is needed and missing."""
        self._settings, self._unix_time_s = settings, unix_time_s
        try:
            self._places = tuple(Place.parse(text) for text in settings.allowed)
        except ValueError as error:
            raise ConfigError(f"setting claims.allowed: {error}") from None
        self._buckets = {place.authority: _bucket(place.authority, settings) for place in self._places if place.scheme == "s3"}
        self._tls = ssl.create_default_context() if any(place.scheme != "file" for place in self._places) else None

    def check(self, claim: Claim) -> Place:
        """Give the place that a claim lies in. Raises RecordError (`claim_forbidden`, `claim_unavailable` when it has expired)."""
        place = next((place for place in self._places if claim.uri.startswith(place.prefix)), None)
        if place is None or not is_plain_uri(claim.uri):
            message = f"{claim.uri[:160]!r} lies in no place of claims.allowed; add its prefix or send the image itself"
            raise RecordError(Reason.CLAIM_FORBIDDEN, message)
        if claim.size > self._settings.max_bytes:
            message = f"{claim.uri} has {claim.size} bytes by its claim, claims.max_bytes is {self._settings.max_bytes}; send a smaller image"
            raise RecordError(Reason.CLAIM_FORBIDDEN, message)
        if claim.expires_at_ms is not None and claim.expires_at_ms <= self._unix_time_s() * 1000:
            raise RecordError(Reason.CLAIM_UNAVAILABLE, f"{claim.uri} expired at {claim.expires_at_ms} ms; keep images longer than frames wait")
        return place

    def fetch(self, claim: Claim) -> bytes:
        """Read one claim, within claims.timeout_s; its size and digest are then what it says. Raises RecordError, TransientError."""
        place = self.check(claim)
        deadline = _Deadline(self._settings.timeout_s)
        try:
            return self._from_folder(claim, place, deadline) if place.scheme == "file" else self._from_server(claim, place, deadline)
        except (OSError, http.client.HTTPException) as error:
            raise TransientError(f"{claim.uri} could not be read: {_cause(error)}") from error

    def put(self, prefix: str, image: bytes, *, suffix: str, content_type: str | None) -> Claim:
        """Store an image below one of the places under its digest, all of it or nothing, and give the claim to it. Raises PutError, RecordError."""
        sha256 = hashlib.sha256(image).hexdigest()
        claim = Claim(f"{prefix}{sha256}{suffix}", sha256, len(image), content_type)
        place = self.check(claim)
        try:
            if place.scheme == "file":
                _write_whole(Path(claim.uri.removeprefix("file://")), image)
            elif place.scheme == "s3":
                with self._answer("PUT", claim, place, _Deadline(self._settings.timeout_s), body=image) as answer:
                    if answer.status not in (200, 201, 204):
                        raise PutError(f"{claim.uri} was not taken: status {answer.status}; check the bucket and the right to write to it")
            else:
                raise PutError(f"{prefix} cannot be written to; give a file:// or s3:// prefix")
        except (OSError, http.client.HTTPException, TransientError) as error:
            raise PutError(f"{claim.uri} was not taken: {_cause(error)}") from None
        return claim

    def _from_folder(self, claim: Claim, place: Place, deadline: "_Deadline") -> bytes:
        with open(_open_below(place, claim), "rb", buffering=0) as file:
            return _checked(_read(file, claim, deadline), claim)

    def _from_server(self, claim: Claim, place: Place, deadline: "_Deadline") -> bytes:
        with self._answer("GET", claim, place, deadline) as answer:
            if answer.status >= 500 or answer.status in _TRY_LATER:
                raise TransientError(f"{claim.uri} could not be read: status {answer.status}")
            if answer.status != 200:
                raise RecordError(Reason.CLAIM_UNAVAILABLE, f"{claim.uri} was refused: status {answer.status}{_remedy(answer.status)}")
            if answer.length not in (None, claim.size):
                raise _mismatch(claim, f"the store announces {answer.length}")
            image = _read(answer, claim, deadline)
            if len(image) < claim.size and answer.length:
                raise TransientError(f"{claim.uri} could not be read: the connection ended {answer.length} bytes too early")
            return _checked(image, claim)

    @contextlib.contextmanager
    def _answer(
        self, method: Method, claim: Claim, place: Place, deadline: "_Deadline", *, body: bytes | None = None
    ) -> Iterator[http.client.HTTPResponse]:
        """Ask for a claim; the answer's head has been read. The URL may be signed: it is a secret, and no message holds it."""
        url = _signed(self._buckets[place.authority], method, claim) if place.scheme == "s3" else claim.uri
        parts = urlsplit(url)
        with _connect(parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80), deadline) as plain:
            tls = self._tls if parts.scheme == "https" else None
            with plain if tls is None else tls.wrap_socket(plain, server_hostname=parts.hostname) as connected:
                connection = http.client.HTTPConnection(parts.netloc)
                connection.sock = _TimedSocket(connected, deadline)
                # The Host header is what was signed: with the port only where the URL has one.
                headers = {"Host": parts.netloc, "User-Agent": "fifa-stream", "Connection": "close"}
                connection.request(method, f"{parts.path}?{parts.query}" if parts.query else parts.path, body=body, headers=headers)
                yield connection.getresponse()


T = TypeVar("T")


class FetchPool(Generic[T]):
    """Threads that fetch claims. `submit` and `results` never wait and belong to one thread; results come in the order of completion."""

    def __init__(self, store: Store, *, threads: int, max_bytes_inside: int, attempts: int, retry_first_s: float = RETRY_FIRST_S) -> None:
        """`attempts` tries of a claim whose store does not answer; the threads start with the first claim."""
        self._store, self._num_threads, self._max_bytes_inside = store, threads, max_bytes_inside
        self._attempts, self._retry_first_s = attempts, retry_first_s
        self._inbox: queue.SimpleQueue[tuple[T, Claim] | None] = queue.SimpleQueue()
        self._outbox: queue.SimpleQueue[tuple[T, int, bytes | BaseException]] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._closed = threading.Event()
        self._num_inside = self._bytes_inside = 0

    @property
    def num_inside(self) -> int:
        """Submitted and not yet given back."""
        return self._num_inside

    @property
    def has_room(self) -> bool:
        """Whether the declared sizes of what is inside are below the bound; they exceed it by one claim at most."""
        return self._bytes_inside < self._max_bytes_inside

    def submit(self, key: T, claim: Claim) -> None:
        """Queue a claim under the caller's own key. One that will not be fetched takes no room: its RecordError is among the next results."""
        self._num_inside += 1
        try:
            self._store.check(claim)
        except RecordError as error:
            self._outbox.put((key, 0, error))
            return
        self._bytes_inside += claim.size
        if not self._threads:
            self._threads = [threading.Thread(target=self._turn, name=f"claims-{number}", daemon=True) for number in range(self._num_threads)]
            for thread in self._threads:
                thread.start()
        self._inbox.put((key, claim))

    def results(self) -> list[tuple[T, bytes | RecordError | TransientError]]:
        """Give what has become of claims since the last call. An error that is neither a record's nor a store's is raised: it is a fault of ours."""
        results: list[tuple[T, bytes | RecordError | TransientError]] = []
        with contextlib.suppress(queue.Empty):
            while True:
                key, size, outcome = self._outbox.get_nowait()
                self._num_inside -= 1
                self._bytes_inside -= size
                if not isinstance(outcome, bytes | RecordError | TransientError):
                    raise outcome
                results.append((key, outcome))
        return results

    def close(self, timeout_s: float = 1.0) -> None:
        """Forget what waits and end the threads. One that is inside a store is left behind after `timeout_s`; it ends within claims.timeout_s."""
        self._closed.set()
        for _ in self._threads:
            self._inbox.put(None)
        end_s = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, end_s - time.monotonic()))

    def _turn(self) -> None:
        while (item := self._inbox.get()) is not None and not self._closed.is_set():
            key, claim = item
            try:
                outcome: bytes | BaseException = self._fetch(claim)
            except BaseException as error:  # carried to the loop, which stops the process
                outcome = error
            self._outbox.put((key, claim.size, outcome))

    def _fetch(self, claim: Claim) -> bytes | RecordError | TransientError:
        for attempt in range(1, self._attempts + 1):
            try:
                return self._store.fetch(claim)
            except RecordError as error:
                return error
            except TransientError as error:
                wait_s = min(self._retry_first_s * 2 ** (attempt - 1), RETRY_LONGEST_S)
                if attempt == self._attempts or self._closed.wait(wait_s):
                    return TransientError(f"gave up after {attempt} tries: {error}")
                logger.warning("trying again: attempt=%d claim=%s error=%s", attempt, claim.uri, error)
        raise AssertionError("attempts is at least 1")


class _Deadline:
    """A moment by which everything must be over."""

    def __init__(self, seconds: float) -> None:
        self._seconds, self._end_s = seconds, time.monotonic() + seconds

    def left_s(self) -> float:
        """Raises TimeoutError when nothing is left."""
        left_s = self._end_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError(f"claims.timeout_s of {self._seconds:g} s is over")
        return left_s

    def apply(self, connected: socket.socket) -> None:
        """Let the next call on a socket end at the deadline."""
        connected.settimeout(self.left_s())


def _connect(host: str, port: int, deadline: _Deadline) -> socket.socket:
    """Connect to the first address that answers; unlike `socket.create_connection`, all of them share the time. Raises OSError."""
    refusal = OSError(f"{host} has no address")
    for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        connected = socket.socket(family, kind, protocol)
        try:
            deadline.apply(connected)
            connected.connect(address)
            deadline.apply(connected)  # the next call may be the handshake of TLS
        except OSError as error:
            connected.close()
            refusal = error
        else:
            return connected
    raise refusal


class _TimedSocket:
    """What http.client asks of a socket; every wait ends at the deadline, so that a server cannot hold us by sending a byte now and then."""

    def __init__(self, connected: socket.socket, deadline: _Deadline) -> None:
        self._socket, self._deadline = connected, deadline

    def sendall(self, data: bytes) -> None:
        self._deadline.apply(self._socket)
        self._socket.sendall(data)

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(_TimedReader(self._socket, self._deadline))

    def close(self) -> None:
        """The socket is closed by whoever opened it: http.client calls this before the body is read."""


class _TimedReader(io.RawIOBase):
    def __init__(self, connected: socket.socket, deadline: _Deadline) -> None:
        self._socket, self._deadline = connected, deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._deadline.apply(self._socket)
        return self._socket.recv_into(buffer)


class _Source(Protocol):
    def read(self, size: int, /) -> bytes | None: ...


def _read(source: _Source, claim: Claim, deadline: _Deadline) -> bytes:
    """Read the claim's bytes; of what exceeds its size, no more than one byte."""
    chunks, left = [], claim.size + 1
    while left:
        deadline.left_s()
        chunk = source.read(min(left, CHUNK_BYTES))
        if not chunk:
            break
        chunks.append(chunk)
        left -= len(chunk)
    return b"".join(chunks)


def _checked(image: bytes, claim: Claim) -> bytes:
    if len(image) > claim.size:
        raise _mismatch(claim, "more came")
    if len(image) < claim.size:
        raise _mismatch(claim, f"{len(image)} came")
    found = hashlib.sha256(image).hexdigest()
    if found != claim.sha256:
        raise RecordError(Reason.CLAIM_MISMATCH, f"{claim.uri} has sha256 {found}, its claim says {claim.sha256}; never overwrite what a claim names")
    return image


def _mismatch(claim: Claim, found: str) -> RecordError:
    return RecordError(Reason.CLAIM_MISMATCH, f"{claim.uri} has {claim.size} bytes by its claim, {found}; never overwrite what a claim names")


def _open_below(place: Place, claim: Claim) -> int:
    """Open a regular file below a folder of the allow-list. Symbolic links are followed only as far as they stay below it.

    Raises RecordError, TransientError, OSError.
    """
    try:
        folder = os.path.realpath(place.path, strict=True)
        at = os.open(folder, _PATH_ONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise TransientError(f"folder {place.path} of claims.allowed cannot be entered: {error.strerror}; is it mounted?") from error
    try:
        target = Path(os.path.realpath(os.path.join(folder, claim.uri[len(place.prefix) :])))
        if not target.is_relative_to(folder):
            raise RecordError(Reason.CLAIM_FORBIDDEN, f"{claim.uri} is a symbolic link out of {place.prefix}; store the image itself there")
        # One part at a time and following nothing: what is swapped for a link after it was resolved is refused.
        *parents, name = target.relative_to(folder).parts or (".",)
        for part in parents:
            below = os.open(part, _PATH_ONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
            os.close(at)
            at = below
        file = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)  # a FIFO would wait for a writer
    except OSError as error:
        _refuse(error, claim)
    finally:
        os.close(at)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise RecordError(Reason.CLAIM_FORBIDDEN, f"{claim.uri} is not a regular file; store the image as one")
    return file


def _refuse(error: OSError, claim: Claim) -> NoReturn:
    if error.errno in _REFUSED_FOR_GOOD:
        raise RecordError(Reason.CLAIM_UNAVAILABLE, f"{claim.uri} cannot be opened: {error.strerror}; keep images longer than frames wait") from error
    if error.errno in _NOT_A_FILE:
        raise RecordError(Reason.CLAIM_FORBIDDEN, f"{claim.uri} is not a regular file; store the image as one") from error
    raise error


def _write_whole(path: Path, image: bytes) -> None:
    """Let a file appear with all its bytes or not at all; it then holds them even if it did already."""
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        with part.open("xb") as file:
            file.write(image)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _bucket(name: str, settings: ClaimSettings) -> "S3Store":
    """A signer for one bucket; what the settings leave open comes from where AWS clients look for it: AWS_ variables, web identity, the instance."""
    try:
        from obstore.store import S3Store
    except ImportError:
        raise ConfigError(f"setting claims.allowed: s3://{name}/ needs obstore; install fifa-stream[claims]") from None
    config: S3Config = {}
    if settings.s3_endpoint is not None:
        config["aws_endpoint_url_s3"] = settings.s3_endpoint  # the name that wins over AWS_ variables
    if settings.s3_region is not None:
        config["region"] = settings.s3_region
    if settings.s3_access_key_id is not None and settings.s3_secret_access_key is not None:
        config |= {"access_key_id": settings.s3_access_key_id, "secret_access_key": settings.s3_secret_access_key.get_secret_value()}
    limit = timedelta(seconds=settings.timeout_s)
    return S3Store(
        name,
        config=config,
        client_options={"timeout": limit, "connect_timeout": limit},  # of the search for credentials; the pool tries again
        retry_config={"max_retries": 0, "retry_timeout": limit},
    )


def _signed(bucket: "S3Store", method: Method, claim: Claim) -> str:
    import obstore
    from obstore.exceptions import BaseError

    try:
        return obstore.sign(bucket, method, urlsplit(claim.uri).path.removeprefix("/"), SIGNED_FOR)
    except BaseError as error:
        raise TransientError(f"the request for {claim.uri} could not be signed, no credentials: {_cause(error)}") from None


def _remedy(status: int) -> str:
    if 300 <= status < 400:
        return " (a redirect, never followed); name the place itself: its host, endpoint or region"
    return "; check the right to read it" if status in (401, 403) else "; keep images longer than frames wait"


def _cause(error: Exception) -> str:
    """First line of an error, short: the rest of obstore's is a dump, that of a server's may be anything."""
    first = (str(error).splitlines() or [""])[0][:160]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
