"""Frames by reference: what a claim says is what is fetched, or the claim is refused with its reason; nothing outside the allow-list is touched."""

import contextlib
import hashlib
import logging
import os
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fifa_stream import claims
from fifa_stream.claims import ClaimStore, FetchPool, Place, PutError
from fifa_stream.config import ClaimSettings, ConfigError, load
from fifa_stream.infer import EncodedImage
from fifa_stream.records import Claim, FrameRecord, RawRecord, Reason, RecordError, TransientError, Verdict, is_plain_uri, parse_frame
from fifa_stream.testing import toy_result

IMAGE = b"image " * 50_000
"""More than one chunk."""
SECRET = "s3cr3t-of-the-test"


def claim(uri: str, image: bytes = IMAGE, **changes: Any) -> Claim:
    values: dict[str, Any] = {"sha256": hashlib.sha256(image).hexdigest(), "size": len(image), "content_type": "image/png", **changes}
    return Claim(uri, **values)


def parsed(*headers: tuple[str, str], value: bytes | None = None) -> FrameRecord:
    raw = RawRecord("fifa.frames", 0, 0, 0, None, value, tuple((name, text.encode()) for name, text in headers))
    return parse_frame(raw, max_value_bytes=100)


def refused(call: Callable[[], Any]) -> Reason:
    """The reason of a refusal, whose message is one line."""
    with pytest.raises(RecordError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return caught.value.reason


# The wire.

PLAIN = "file:///srv/frames/a.png"
DIGEST = "0f" * 32


def test_a_claim_is_read_from_headers() -> None:
    frame = parsed(
        ("claim-uri", PLAIN), ("claim-sha256", DIGEST.upper()), ("claim-size", "7"), ("claim-expires-ms", "9"), ("content-type", "image/PNG; q=1")
    )
    assert frame.claim == Claim(PLAIN, DIGEST, 7, "image/png", 9)


@given(st.integers(1, 2**63 - 1), st.none() | st.integers(0, 2**63 - 1), st.sampled_from([None, "image/png"]))
def test_a_claim_in_headers_is_the_claim_that_was_written(size: int, expires_at_ms: int | None, content_type: str | None) -> None:
    written = Claim(PLAIN, DIGEST, size, content_type, expires_at_ms)
    assert parsed(*written.headers.items()).claim == written


@pytest.mark.parametrize(
    ("changes", "value"),
    [
        pytest.param({}, b"image", id="an image beside the claim"),
        pytest.param({"claim-uri": ""}, None, id="no uri"),
        pytest.param({"claim-sha256": ""}, None, id="no digest"),
        pytest.param({"claim-size": ""}, None, id="no size"),
        pytest.param({"claim-sha256": "0f"}, None, id="short digest"),
        pytest.param({"claim-size": "0"}, None, id="no bytes"),
        pytest.param({"claim-size": "-1"}, None, id="fewer than none"),
        pytest.param({"claim-size": "all"}, None, id="size no number"),
        pytest.param({"claim-expires-ms": "soon"}, None, id="expiry no number"),
        pytest.param({"claim-uri": f"file:///{'a' * 1024}"}, None, id="uri too long"),
        pytest.param({"claim-uri": "file:///srv/../etc/passwd"}, None, id="dots"),
        pytest.param({"claim-uri": "file:///srv/%2e%2e/etc/passwd"}, None, id="escaped dots"),
        pytest.param({"claim-uri": "file:///srv/./a"}, None, id="one dot"),
        pytest.param({"claim-uri": "file:///srv//a"}, None, id="empty part"),
        pytest.param({"claim-uri": "file:///srv/"}, None, id="a folder"),
        pytest.param({"claim-uri": "file:///srv/a\n"}, None, id="line end"),
        pytest.param({"claim-uri": "file:/srv/a"}, None, id="no authority"),
        pytest.param({"claim-uri": "/srv/a"}, None, id="no scheme"),
        pytest.param({"claim-uri": "https://user:secret@host/a"}, None, id="user"),
        pytest.param({"claim-uri": "https://host/a?b=c"}, None, id="query"),
        pytest.param({"claim-uri": "https://host/a#b"}, None, id="fragment"),
        pytest.param({"claim-uri": "https://host\\@other/a"}, None, id="backslash"),
        pytest.param({"claim-uri": "https://h\u00f6st/a"}, None, id="not ASCII"),
    ],
)
def test_a_claim_in_bad_form_is_an_invalid_header(changes: dict[str, str], value: bytes | None) -> None:
    headers = {"claim-uri": PLAIN, "claim-sha256": DIGEST, "claim-size": "7", **changes}
    assert refused(lambda: parsed(*headers.items(), value=value)) is Reason.INVALID_HEADER


def test_a_record_without_image_and_claim_is_empty() -> None:
    assert refused(lambda: parsed()) is Reason.EMPTY_VALUE


def test_what_was_fetched_is_the_image_and_the_verdict_says_where_from() -> None:
    frame = parsed(*claim(PLAIN).headers.items())
    with pytest.raises(AssertionError, match=r"was to be fetched first"):
        _ = frame.value
    fetched = FrameRecord(frame.raw, "s", "image/png", None, None, None, False, None, None, claim=frame.claim, fetched=IMAGE)
    image, verdict = EncodedImage.of(fetched), toy_result(fetched)
    assert (image.value, image.uri) == (IMAGE, PLAIN)
    assert isinstance(verdict, Verdict)
    assert (verdict.media.uri, verdict.media.sha256) == (PLAIN, claim(PLAIN).sha256)


# The allow-list.


@pytest.mark.parametrize(
    "entry",
    [
        "/srv/frames/",
        "file:///",
        "file:///srv/frames",
        "file://host/srv/",
        "file:///srv/../",
        "file:///srv/fr%61mes/",
        "s3://bucket",
        "s3:///prefix/",
        "s3://Bucket/",
        "s3://b/",
        "https:///path/",
        "https://host",
        "https://user@host/",
        "https://host:99999/",
        "https://host:80a/",
        "https://a..b/",
        "http://host/",
        "ftp://host/",
        "",
    ],
)
def test_an_entry_that_is_no_plain_place_is_refused_at_start(entry: str) -> None:
    with pytest.raises(ConfigError, match=r"setting claims\.allowed: "):
        ClaimStore(ClaimSettings(allowed=(entry,)))


def test_the_allow_list_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIFA_CLAIMS__ALLOWED", '["file:///srv/frames/", "https://host/"]')
    monkeypatch.setenv("FIFA_CLAIMS__S3_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("FIFA_CLAIMS__S3_SECRET_ACCESS_KEY", SECRET)
    loaded = load()
    assert loaded.claims.allowed == ("file:///srv/frames/", "https://host/")
    assert SECRET not in loaded.masked_json() + repr(loaded)
    monkeypatch.delenv("FIFA_CLAIMS__S3_ACCESS_KEY_ID")
    with pytest.raises(ConfigError, match="go together") as caught:
        load()
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("endpoint", ["host", "ftp://host", "http://host:99999", "http://host/path", "http://user@host", "http://a..b"])
def test_an_endpoint_is_a_scheme_and_a_host(endpoint: str) -> None:
    with pytest.raises(ValueError, match=r"s3_endpoint|Port"):
        ClaimSettings(s3_endpoint=endpoint)


def test_without_an_allow_list_every_claim_is_forbidden() -> None:
    assert refused(lambda: ClaimStore(ClaimSettings()).fetch(claim(PLAIN))) is Reason.CLAIM_FORBIDDEN


@pytest.mark.parametrize(
    "uri",
    [
        "file:///srv/frames-2/a.png",
        "file:///srv/a.png",
        "file:///SRV/frames/a.png",
        "file://localhost/srv/frames/a.png",
        "FILE:///srv/frames/a.png",
        "s3://bucket/frames/a.png",
        "s3://bucket/frame/a.png",
        "s3://bucket.evil/frame/a.png",
        "https://host.evil/a.png",
        "https://host:8443/a.png",
        "http://host/a.png",
        "http://169.254.169.254/latest/meta-data/",
        "file:///srv/frames/../a.png",
        "file:///srv/frames/",
    ],
)
def test_a_prefix_ends_at_a_path_boundary_and_nothing_else_resembles_it(uri: str) -> None:
    store = ClaimStore(ClaimSettings(allowed=("file:///srv/frames/", "https://host/")))
    assert refused(lambda: store.check(claim(uri))) is Reason.CLAIM_FORBIDDEN


# Folders.


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The allowed folder `frames` with a.png; beside it a file that nobody may read."""
    (tmp_path / "frames" / "sub").mkdir(parents=True)
    (tmp_path / "frames" / "a.png").write_bytes(IMAGE)
    (tmp_path / "private.png").write_bytes(IMAGE)
    return tmp_path / "frames"


def folder_store(folder: Path, **changes: Any) -> ClaimStore:
    return ClaimStore(ClaimSettings(allowed=(f"file://{folder}/",), **changes), unix_time_s=lambda: 1_000.0)


def test_a_file_is_fetched(folder: Path) -> None:
    store = folder_store(folder)
    assert store.fetch(claim(f"file://{folder}/a.png")) == IMAGE
    assert store.fetch(claim(f"file://{folder}/a.png", expires_at_ms=1_000_001)) == IMAGE


def test_links_that_stay_inside_are_followed(folder: Path) -> None:
    (folder / "sub" / "link.png").symlink_to("../a.png")
    (folder / "linked").symlink_to("sub")
    (folder.parent / "other").symlink_to(folder)
    assert folder_store(folder).fetch(claim(f"file://{folder}/linked/link.png")) == IMAGE
    assert folder_store(folder.parent / "other").fetch(claim(f"file://{folder.parent}/other/a.png")) == IMAGE


def make_escape(folder: Path) -> None:
    (folder / "x").symlink_to("../private.png")


def make_absolute_escape(folder: Path) -> None:
    (folder / "x").symlink_to(folder.parent / "private.png")


def make_dangling_escape(folder: Path) -> None:
    (folder / "x").symlink_to("/no/such/file")


def make_device_link(folder: Path) -> None:
    (folder / "x").symlink_to("/dev/zero")


def make_fifo(folder: Path) -> None:
    os.mkfifo(folder / "x")


def make_folder(folder: Path) -> None:
    (folder / "x").mkdir()


def make_loop(folder: Path) -> None:
    (folder / "x").symlink_to("x")


def make_link_to_itself(folder: Path) -> None:
    (folder / "x").symlink_to(".")


def make_socket(folder: Path) -> None:
    with contextlib.chdir(folder), socket.socket(socket.AF_UNIX) as listener:
        listener.bind("x")


@pytest.mark.parametrize(
    "make",
    [
        make_escape,
        make_absolute_escape,
        make_dangling_escape,
        make_device_link,
        make_fifo,
        make_folder,
        make_loop,
        make_link_to_itself,
        make_socket,
    ],
)
def test_only_regular_files_inside_the_folder_are_read(folder: Path, make: Callable[[Path], None]) -> None:
    make(folder)
    assert refused(lambda: folder_store(folder).fetch(claim(f"file://{folder}/x"))) is Reason.CLAIM_FORBIDDEN


def test_a_link_to_a_folder_outside_is_no_way_out(folder: Path) -> None:
    (folder / "x").symlink_to("..")
    assert refused(lambda: folder_store(folder).fetch(claim(f"file://{folder}/x/private.png"))) is Reason.CLAIM_FORBIDDEN


def test_a_folder_swapped_for_a_link_after_it_was_resolved_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "sub" / "private.png").write_bytes(IMAGE)
    resolve = os.path.realpath

    def swap_afterwards(path: str, *, strict: bool = False) -> str:
        resolved = resolve(path, strict=strict)
        if resolved.endswith("private.png"):
            shutil.rmtree(folder / "sub")
            (folder / "sub").symlink_to("..")
        return resolved

    monkeypatch.setattr(os.path, "realpath", swap_afterwards)
    assert refused(lambda: folder_store(folder).fetch(claim(f"file://{folder}/sub/private.png"))) is Reason.CLAIM_UNAVAILABLE


@pytest.mark.parametrize("path", ["b.png", "sub/b.png", "none/b.png", "a.png/b.png", "a" * 400])
def test_what_is_not_there_is_unavailable(folder: Path, path: str) -> None:
    assert refused(lambda: folder_store(folder).fetch(claim(f"file://{folder}/{path}"))) is Reason.CLAIM_UNAVAILABLE


def test_a_folder_that_is_not_there_is_the_stores_failure_and_no_records(tmp_path: Path) -> None:
    with pytest.raises(TransientError, match="is it mounted"):
        folder_store(tmp_path / "frames").fetch(claim(f"file://{tmp_path}/frames/a.png"))


def test_an_expired_claim_is_not_read(folder: Path) -> None:
    assert refused(lambda: folder_store(folder).fetch(claim(f"file://{folder}/a.png", expires_at_ms=1_000_000))) is Reason.CLAIM_UNAVAILABLE


def test_a_claim_above_the_limit_is_not_read(folder: Path) -> None:
    store = folder_store(folder, max_bytes=len(IMAGE) - 1)
    assert refused(lambda: store.fetch(claim(f"file://{folder}/a.png"))) is Reason.CLAIM_FORBIDDEN


def test_no_file_stays_open(folder: Path) -> None:
    make_fifo(folder)
    make_loop(folder / "sub")
    store = folder_store(folder)
    before = len(os.listdir("/proc/self/fd"))
    for path in ("a.png", "x", "sub/x", "sub", "b.png", "none/b.png"):
        with contextlib.suppress(RecordError):
            store.fetch(claim(f"file://{folder}/{path}"))
    assert len(os.listdir("/proc/self/fd")) == before


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.binary(min_size=1, max_size=64), st.integers(1, 66), st.booleans())
def test_bytes_are_given_only_if_they_are_what_the_claim_says(folder: Path, image: bytes, size: int, is_digest_right: bool) -> None:
    (folder / "a.png").write_bytes(image)
    said = claim(f"file://{folder}/a.png", image if is_digest_right else image + b"x", size=size)
    if size == len(image) and is_digest_right:
        assert folder_store(folder).fetch(said) == image
    else:
        assert refused(lambda: folder_store(folder).fetch(said)) is Reason.CLAIM_MISMATCH


class Touched:
    """What this process opens and connects to, by the interpreter's own account; hooks cannot be removed, so it is told when to look."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Any]] | None = None
        sys.addaudithook(self._see)

    def _see(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.events is not None and (event == "open" or event.startswith("socket.")):
            self.events.append((event, arguments[0]))

    @contextlib.contextmanager
    def watching(self) -> Iterator[list[tuple[str, Any]]]:
        self.events = events = []
        try:
            yield events
        finally:
            self.events = None


TOUCHED = Touched()
PIECES = st.sampled_from(
    [
        *(
            "file:",
            "FILE:",
            "s3:",
            "https:",
            "http:",
            "//",
            "/",
            "..",
            ".",
            "%2e%2e",
            "%2F",
            "\\",
            "@",
            "?",
            "#",
            ":80",
            "\0",
            "\n",
            "\u2024",
            "\uff0f",
        ),
        *("ROOT", "ROOT/", "a.png", "sub", "localhost", "127.0.0.1", "bucket", "private.png", "escape", "etc/passwd"),
    ]
)
NAMES = st.sampled_from(["a.png", "sub", "escape", "inside", "private.png", "..", "frames"])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=400)
@given(
    st.text(max_size=40)
    | st.lists(PIECES, max_size=9).map("".join)
    | st.lists(NAMES, max_size=4).map(lambda names: "/".join(["file://ROOT", *names]))
)
def test_whatever_a_claim_names_nothing_outside_is_touched(folder: Path, text: str) -> None:
    if not (folder / "escape").is_symlink():
        (folder / "escape").symlink_to("..")
        (folder / "inside").symlink_to("sub/..")
    store = folder_store(folder)
    headers = claim(text.replace("ROOT", str(folder)) or "x").headers
    with TOUCHED.watching() as touched:
        try:
            frame = parsed(*((name, value) for name, value in headers.items()))
            assert frame.claim is not None
            place = store.check(frame.claim)
        except RecordError as error:
            assert error.reason in (Reason.CLAIM_FORBIDDEN, Reason.INVALID_HEADER)
            assert touched == []
            return
        assert frame.claim.uri.startswith(place.prefix)
        with contextlib.suppress(RecordError):
            assert store.fetch(frame.claim) == IMAGE
    opened = [name for event, name in touched if event == "open"]
    assert len(opened) == len(touched), "no network"
    # The folder, then names below it one by one, each without a separator and relative to the one before.
    assert opened[:1] == [str(folder)]
    assert all(isinstance(name, int) or ("/" not in name and name != "..") for name in opened[1:])


# An object server: path-style S3, or plain HTTPS, with faults.


class ObjectServer:
    """Objects by path, and what happens to requests for them."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.objects: dict[str, bytes] = {}
        self.fault: Callable[[BaseHTTPRequestHandler], None] | None = None
        """Answers in place of the object."""
        self.requests: list[tuple[str, str, bool]] = []
        """(method, path, is signed)."""
        self.stopped = threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one_request(self) -> None:
                with contextlib.suppress(OSError):  # the client has left: what it should do with some of the faults
                    super().handle_one_request()
                self.close_connection = True

            def do_GET(self) -> None:
                path = self._note()
                if server.fault:
                    server.fault(self)
                elif path in server.objects:
                    answer(self, 200, server.objects[path])
                else:
                    answer(self, 404, b"<Error><Code>NoSuchKey</Code></Error>")

            def do_PUT(self) -> None:
                path = self._note()
                image = self.rfile.read(int(self.headers["Content-Length"]))
                if server.fault:
                    server.fault(self)
                else:
                    server.objects[path] = image
                    answer(self, 200, b"")

            def _note(self) -> str:
                parts = urlsplit(self.path)
                server.requests.append((self.command, unquote(parts.path), "X-Amz-Signature=" in parts.query))
                return unquote(parts.path)

            def log_message(self, format: str, *arguments: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        if tls:
            self._http.socket = tls.wrap_socket(self._http.socket, server_side=True, do_handshake_on_connect=False)
        self.port = self._http.server_port
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self.stopped.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


def answer(handler: BaseHTTPRequestHandler, status: int, body: bytes, **headers: str) -> None:
    handler.send_response(status)
    for name, value in {"Content-Length": str(len(body)), **{name.replace("_", "-"): value for name, value in headers.items()}}.items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(body)


@pytest.fixture
def server() -> Iterator[ObjectServer]:
    running = ObjectServer()
    yield running
    running.close()


@pytest.fixture(autouse=True)
def no_aws_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)


def bucket_store(server: ObjectServer, *allowed: str, **changes: Any) -> ClaimStore:
    pytest.importorskip("obstore", reason="needs obstore, the extra 'claims'")
    values = {"s3_endpoint": f"http://127.0.0.1:{server.port}", "s3_access_key_id": "id", "s3_secret_access_key": SECRET, **changes}
    return ClaimStore(ClaimSettings(allowed=allowed or ("s3://bucket/frames/",), **values))


def test_an_object_is_fetched_with_a_signature(server: ObjectServer) -> None:
    server.objects["/bucket/frames/a.png"] = IMAGE
    assert bucket_store(server).fetch(claim("s3://bucket/frames/a.png")) == IMAGE
    assert server.requests == [("GET", "/bucket/frames/a.png", True)]


def test_the_endpoint_of_the_settings_wins_over_variables(server: ObjectServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ENDPOINT", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    server.objects["/bucket/frames/a.png"] = IMAGE
    assert bucket_store(server).fetch(claim("s3://bucket/frames/a.png")) == IMAGE


PART = st.text("abcXYZ019._~!$&'()*+,;=@:-", min_size=1, max_size=12).filter(lambda part: part not in (".", ".."))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=50)
@given(st.lists(PART, min_size=1, max_size=4).map("/".join))
def test_the_object_asked_for_is_the_one_that_the_claim_names(server: ObjectServer, key: str) -> None:
    uri = f"s3://bucket/{key}"
    assert is_plain_uri(uri)
    server.objects = {f"/bucket/{key}": key.encode()}
    assert bucket_store(server, "s3://bucket/").fetch(claim(uri, key.encode())) == key.encode()


def redirect_to(location: str) -> Callable[[BaseHTTPRequestHandler], None]:
    return lambda handler: answer(handler, 307, b"", Location=location)


def test_a_redirect_is_not_followed(server: ObjectServer) -> None:
    other = ObjectServer()
    try:
        other.objects["/bucket/frames/a.png"] = IMAGE
        server.fault = redirect_to(f"http://127.0.0.1:{other.port}/bucket/frames/a.png")
        assert refused(lambda: bucket_store(server).fetch(claim("s3://bucket/frames/a.png"))) is Reason.CLAIM_UNAVAILABLE
        with pytest.raises(PutError, match="status 307"):
            bucket_store(server).put("s3://bucket/frames/", IMAGE, suffix=".png", content_type="image/png")
        assert other.requests == []
        assert [method for method, _, _ in server.requests] == ["GET", "PUT"]
    finally:
        other.close()


def drip_head(server: ObjectServer) -> Callable[[BaseHTTPRequestHandler], None]:
    """One byte of an endless header after another: every single read succeeds soon."""

    def fault(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
        while not server.stopped.wait(0.01):
            handler.wfile.write(b"x")

    return fault


def drip_body(server: ObjectServer) -> Callable[[BaseHTTPRequestHandler], None]:
    def fault(handler: BaseHTTPRequestHandler) -> None:
        answer(handler, 200, b"", Content_Length=str(len(IMAGE)))
        while not server.stopped.wait(0.01):
            handler.wfile.write(b"x")

    return fault


def say_nothing(server: ObjectServer) -> Callable[[BaseHTTPRequestHandler], None]:
    return lambda handler: server.stopped.wait() and None


@pytest.mark.parametrize("fault", [drip_head, drip_body, say_nothing])
def test_a_slow_server_is_cut_at_the_time_limit(server: ObjectServer, fault: Callable[[ObjectServer], Any]) -> None:
    server.fault = fault(server)  # without an end, so that only the limit can end it
    with pytest.raises(TransientError, match=r"frames/a\.png could not be read: (TimeoutError|timed out)"):
        bucket_store(server, timeout_s=0.2).fetch(claim("s3://bucket/frames/a.png"))


@pytest.mark.parametrize("status", [500, 503, 429, 408])
def test_a_store_that_cannot_now_is_asked_again_and_then_given_up(server: ObjectServer, status: int, caplog: pytest.LogCaptureFixture) -> None:
    server.fault = lambda handler: answer(handler, status, b"")
    pool: FetchPool[str] = FetchPool(bucket_store(server), threads=1, max_bytes_inside=1, attempts=3, retry_first_s=0.001)
    with caplog.at_level(logging.DEBUG), contextlib.closing(pool):
        pool.submit("frame", claim("s3://bucket/frames/a.png"))
        [(key, outcome)] = all_results(pool)
    assert (key, type(outcome)) == ("frame", TransientError)
    assert str(outcome) == f"gave up after 3 tries: s3://bucket/frames/a.png could not be read: status {status}"
    assert len(server.requests) == 3
    assert "trying again: attempt=2" in caplog.text
    assert SECRET not in caplog.text
    assert "Signature" not in caplog.text + str(outcome)


def test_a_store_that_recovers_is_read(server: ObjectServer) -> None:
    server.objects["/bucket/frames/a.png"] = IMAGE

    def fail_once(handler: BaseHTTPRequestHandler) -> None:
        server.fault = None
        answer(handler, 500, b"")

    server.fault = fail_once
    pool: FetchPool[int] = FetchPool(bucket_store(server), threads=1, max_bytes_inside=1, attempts=2, retry_first_s=0.001)
    with contextlib.closing(pool):
        pool.submit(1, claim("s3://bucket/frames/a.png"))
        assert all_results(pool) == [(1, IMAGE)]


@pytest.mark.parametrize("status", [301, 400, 401, 403, 404, 410])
def test_a_permanent_refusal_is_the_claims_own(server: ObjectServer, status: int) -> None:
    server.fault = lambda handler: answer(handler, status, b"no")
    assert refused(lambda: bucket_store(server).fetch(claim("s3://bucket/frames/a.png"))) is Reason.CLAIM_UNAVAILABLE


@pytest.mark.parametrize(
    "body", [pytest.param(IMAGE[:-1], id="one byte less"), pytest.param(IMAGE + b"x", id="one more"), pytest.param(b"", id="none")]
)
def test_an_object_of_another_size_is_a_mismatch(server: ObjectServer, body: bytes) -> None:
    server.objects["/bucket/frames/a.png"] = body
    assert refused(lambda: bucket_store(server).fetch(claim("s3://bucket/frames/a.png"))) is Reason.CLAIM_MISMATCH


def test_an_object_with_another_digest_is_a_mismatch(server: ObjectServer) -> None:
    server.objects["/bucket/frames/a.png"] = IMAGE[:-1] + b"x"
    assert refused(lambda: bucket_store(server).fetch(claim("s3://bucket/frames/a.png"))) is Reason.CLAIM_MISMATCH


def test_reading_stops_when_more_comes_than_was_declared(server: ObjectServer) -> None:
    def never_end(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        chunk = b"%x\r\n%s\r\n" % (len(IMAGE), IMAGE)
        while not server.stopped.is_set():
            handler.wfile.write(chunk)  # the first one alone is what the claim says

    server.fault = never_end
    assert refused(lambda: bucket_store(server).fetch(claim("s3://bucket/frames/a.png"))) is Reason.CLAIM_MISMATCH


def test_an_answer_that_announces_another_size_is_not_read(server: ObjectServer) -> None:
    def announce(handler: BaseHTTPRequestHandler) -> None:
        answer(handler, 200, b"", Content_Length=str(2**40))
        server.stopped.wait()

    server.fault = announce
    assert refused(lambda: bucket_store(server, timeout_s=600).fetch(claim("s3://bucket/frames/a.png"))) is Reason.CLAIM_MISMATCH


def break_off(handler: BaseHTTPRequestHandler) -> None:
    answer(handler, 200, IMAGE[:1000], Content_Length=str(len(IMAGE)))


def break_off_in_a_chunk(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1000\r\nxx")


def talk_nonsense(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"\x00\xff" * 100 + b"\r\n\r\n")


def hang_up(handler: BaseHTTPRequestHandler) -> None:
    pass


@pytest.mark.parametrize("fault", [break_off, break_off_in_a_chunk, talk_nonsense, hang_up])
def test_a_connection_that_breaks_is_worth_another_try(server: ObjectServer, fault: Callable[[BaseHTTPRequestHandler], None]) -> None:
    server.fault = fault
    with pytest.raises(TransientError) as caught:
        bucket_store(server).fetch(claim("s3://bucket/frames/a.png"))
    assert "\n" not in str(caught.value)


def test_a_store_that_is_not_there_is_worth_another_try() -> None:
    closed = ObjectServer()
    closed.close()
    with pytest.raises(TransientError, match="ConnectionRefusedError"):
        bucket_store(closed).fetch(claim("s3://bucket/frames/a.png"))


def test_without_credentials_the_store_is_at_fault_and_not_the_record(server: ObjectServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:1")  # else the instance's own service is asked
    store = bucket_store(server, s3_access_key_id=None, s3_secret_access_key=None, timeout_s=1)
    with pytest.raises(TransientError, match="could not be signed") as caught:
        store.fetch(claim("s3://bucket/frames/a.png"))
    assert "\n" not in str(caught.value)
    assert server.requests == []


def test_s3_without_obstore_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    with pytest.raises(ConfigError, match=r"install fifa-stream\[claims\]"):
        ClaimStore(ClaimSettings(allowed=("s3://bucket/",)))


@pytest.fixture
def tls_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectServer]:
    """Speaks TLS as localhost, with a certificate that SSL_CERT_FILE trusts."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl to make a certificate")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    running = ObjectServer(context)
    yield running
    running.close()


def test_https_is_read_from_allowed_hosts_with_a_certificate_that_is_theirs(tls_server: ObjectServer, monkeypatch: pytest.MonkeyPatch) -> None:
    host = f"https://localhost:{tls_server.port}/frames/"
    tls_server.objects["/frames/a.png"] = IMAGE
    assert ClaimStore(ClaimSettings(allowed=(host,))).fetch(claim(f"{host}a.png")) == IMAGE
    assert tls_server.requests == [("GET", "/frames/a.png", False)]
    by_number = f"https://127.0.0.1:{tls_server.port}/frames/"
    with pytest.raises(TransientError, match="SSLCertVerificationError"):
        ClaimStore(ClaimSettings(allowed=(by_number,))).fetch(claim(f"{by_number}a.png"))
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(TransientError, match="SSLCertVerificationError"):
        ClaimStore(ClaimSettings(allowed=(host,))).fetch(claim(f"{host}a.png"))
    assert len(tls_server.requests) == 1


def test_https_redirects_are_not_followed(tls_server: ObjectServer, server: ObjectServer) -> None:
    host = f"https://localhost:{tls_server.port}/frames/"
    tls_server.fault = redirect_to(f"http://127.0.0.1:{server.port}/")
    assert refused(lambda: ClaimStore(ClaimSettings(allowed=(host,))).fetch(claim(f"{host}a.png"))) is Reason.CLAIM_UNAVAILABLE
    assert server.requests == []


# Storing.


def test_a_stored_file_appears_whole_under_its_digest(folder: Path) -> None:
    store = folder_store(folder)
    stored = store.put(f"file://{folder}/sub/", IMAGE, suffix=".png", content_type="image/png")
    assert stored == claim(f"file://{folder}/sub/{stored.sha256}.png")
    assert store.fetch(stored) == IMAGE
    assert store.put(f"file://{folder}/sub/", IMAGE, suffix=".png", content_type="image/png") == stored
    assert [path.name for path in (folder / "sub").iterdir()] == [f"{stored.sha256}.png"]


def test_a_stored_object_is_fetched_again(server: ObjectServer) -> None:
    store = bucket_store(server)
    assert store.fetch(store.put("s3://bucket/frames/", IMAGE, suffix=".png", content_type="image/png")) == IMAGE


def test_what_is_not_taken_says_why(folder: Path, server: ObjectServer) -> None:
    with pytest.raises(PutError, match="FileNotFoundError"):
        folder_store(folder).put(f"file://{folder}/none/", IMAGE, suffix=".png", content_type=None)
    server.fault = lambda handler: answer(handler, 403, b"")
    with pytest.raises(PutError, match="status 403"):
        bucket_store(server).put("s3://bucket/frames/", IMAGE, suffix=".png", content_type=None)
    with pytest.raises(PutError, match="give a file:// or s3:// prefix"):
        ClaimStore(ClaimSettings(allowed=("https://host/",))).put("https://host/", IMAGE, suffix=".png", content_type=None)


# The pool.


class ToyStore:
    """Gives the URI back as the image; a claim waits until the test lets it go."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.asked = threading.Event()
        self.error: BaseException | None = None

    def check(self, claim: Claim) -> None:
        if claim.uri.startswith("x"):
            raise RecordError(Reason.CLAIM_FORBIDDEN, "no")

    def fetch(self, claim: Claim) -> bytes:
        self.asked.set()
        self.gate.wait()
        if self.error:
            raise self.error
        return claim.uri.encode()


def all_results(pool: FetchPool[Any]) -> list[tuple[Any, bytes | RecordError | TransientError]]:
    """Wait for everything inside."""
    results, end_s = [], time.monotonic() + 30
    while pool.num_inside:
        assert time.monotonic() < end_s, "a claim is lost"
        results += pool.results()
        time.sleep(0.001)
    return results


@settings(deadline=None, max_examples=25)
@given(st.lists(st.sampled_from(["a", "b", "x"]), max_size=30), st.integers(1, 5))
def test_every_claim_comes_back_once_with_its_own_result(uris: list[str], threads: int) -> None:
    pool: FetchPool[int] = FetchPool(ToyStore(), threads=threads, max_bytes_inside=100, attempts=1)
    with contextlib.closing(pool):
        for number, uri in enumerate(uris):
            pool.submit(number, claim(uri))
        results = all_results(pool)
    assert sorted(key for key, _ in results) == list(range(len(uris)))
    assert all(isinstance(outcome, RecordError) if uris[key] == "x" else outcome == uris[key].encode() for key, outcome in results)
    assert pool.has_room


def test_room_is_counted_in_declared_bytes_until_results_are_taken() -> None:
    store = ToyStore()
    store.gate.clear()
    pool: FetchPool[int] = FetchPool(store, threads=1, max_bytes_inside=100, attempts=1)
    with contextlib.closing(pool):
        pool.submit(0, claim("x", size=2**60))
        pool.submit(1, claim("a", size=99))
        assert (pool.has_room, pool.num_inside) == (True, 2)
        pool.submit(2, claim("b", size=1))
        assert (pool.has_room, pool.num_inside) == (False, 3)
        assert [key for key, _ in pool.results()] == [0]
        assert pool.results() == []
        store.gate.set()
        assert all_results(pool) == [(1, b"a"), (2, b"b")]
        assert (pool.has_room, pool.num_inside) == (True, 0)


@pytest.mark.parametrize("error", [ValueError("ours"), MemoryError(), SystemExit(3)])
def test_an_error_of_ours_reaches_the_loop_and_threads_go_on(error: BaseException) -> None:
    store = ToyStore()
    store.error = error
    pool: FetchPool[int] = FetchPool(store, threads=1, max_bytes_inside=100, attempts=3)
    with contextlib.closing(pool):
        pool.submit(1, claim("a"))
        with pytest.raises(type(error)):
            all_results(pool)
        store.error = None
        pool.submit(2, claim("b"))
        assert all_results(pool) == [(2, b"b")]


def test_closing_waits_neither_for_a_stuck_store_nor_for_the_next_try(monkeypatch: pytest.MonkeyPatch) -> None:
    stuck, failing = ToyStore(), ToyStore()
    stuck.gate.clear()
    failing.error = TransientError("not now")
    monkeypatch.setattr(claims, "RETRY_LONGEST_S", 1000.0)
    for store in (stuck, failing):
        pool: FetchPool[int] = FetchPool(store, threads=2, max_bytes_inside=100, attempts=1000, retry_first_s=1000.0)
        pool.submit(1, claim("a"))
        assert store.asked.wait(30)
        pool.close(timeout_s=0.01)
    stuck.gate.set()
    end_s = time.monotonic() + 30
    while any(thread.name.startswith("claims-") for thread in threading.enumerate()):
        assert time.monotonic() < end_s, "a thread outlives its pool"
        time.sleep(0.001)


def test_no_thread_starts_before_the_first_claim_that_is_fetched() -> None:
    pool: FetchPool[int] = FetchPool(ToyStore(), threads=2, max_bytes_inside=100, attempts=1)
    pool.submit(1, claim("x"))
    assert [key for key, _ in pool.results()] == [1]
    assert not any(thread.name.startswith("claims-") for thread in threading.enumerate())
    pool.close()


def test_a_place_splits_into_what_it_is_made_of() -> None:
    assert Place.parse("s3://bucket/a/b/") == Place("s3://bucket/a/b/", "s3", "bucket", "/a/b/")
    assert Place.parse("file:///srv/frames/").path == "/srv/frames/"
