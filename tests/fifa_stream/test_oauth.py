"""Tokens for OAUTHBEARER: read anew from a file, fetched and renewed by client credentials, and never in a message."""

import base64
import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from fifa_stream.oauth import ClientCredentialsTokens, FileTokens, TokenError, jwt_expiry
from fifa_stream.testing import FakeClock

SECRET = "the-client-secret"


def jwt(**claims: object) -> str:
    def part(value: object) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")

    return f"{part({'alg': 'none'})}.{part(claims)}.signature"


def test_a_token_file_is_read_at_every_call(tmp_path: Path) -> None:
    tokens = FileTokens(tmp_path / "token", clock=FakeClock(1_000))
    for text in (jwt(exp=2_000), jwt(exp=3_000)):
        (tmp_path / "token").write_text(text + "\n")
        assert tokens.token() == text


@pytest.mark.parametrize("text", [None, "", "two words", jwt(exp=999)], ids=["missing", "empty", "no token", "expired"])
def test_a_file_without_a_good_token_says_which_setting(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "token").write_text(text)
    with pytest.raises(TokenError, match=r"kafka\.sasl_oauth_token_file") as told:
        FileTokens(tmp_path / "token", clock=FakeClock(1_000)).token()
    assert not text or text not in str(told.value)


@pytest.mark.parametrize("token", ["", "a.b", "a.b.c", "....", jwt(exp="soon"), jwt(exp=True), jwt(), jwt(exp=10**400), jwt(exp=float("inf"))])
def test_a_token_that_does_not_say_has_no_expiry(token: str) -> None:
    assert jwt_expiry(token) is None


class Issuer(ThreadingHTTPServer):
    """Answers what it is told to; remembers what it was asked."""

    answer: tuple[int, dict[str, Any]] = (200, {"access_token": "first", "expires_in": 3_600})

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.came = threading.Event()
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                issuer.asked.append((self.headers["Authorization"], body))
                status, answer = issuer.answer
                self.send_response(status)
                if status == 302:
                    self.send_header("Location", "http://127.0.0.1:1/elsewhere")
                self.end_headers()
                self.wfile.write(json.dumps(answer).encode())
                if len(issuer.asked) > 1:
                    issuer.came.set()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/token"


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    with Issuer() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_client_credentials_are_exchanged_once_for_all_callers(issuer: Issuer) -> None:
    tokens = ClientCredentialsTokens(issuer.url, "client", lambda: SECRET, scope="frames")
    assert [tokens.token(), tokens.token()] == ["first", "first"]
    tokens.close()
    ((authorization, body),) = issuer.asked
    assert base64.b64decode(authorization.removeprefix("Basic ")).decode() == f"client:{SECRET}"
    assert body == "grant_type=client_credentials&scope=frames"


def test_a_token_is_renewed_before_it_expires(issuer: Issuer) -> None:
    issuer.answer = (200, {"access_token": "short", "expires_in": 0.2})
    tokens = ClientCredentialsTokens(issuer.url, "client", lambda: SECRET)
    assert tokens.token() == "short"
    assert issuer.came.wait(30)
    tokens.close()


@pytest.mark.parametrize(
    ("answer", "names"),
    [
        pytest.param((401, {"error": "invalid_client", "error_description": SECRET}), "kafka.sasl_oauth_client_secret", id="refused"),
        pytest.param((400, {"error": "invalid_scope"}), "kafka.sasl_oauth_scope", id="scope"),
        pytest.param((302, {}), "kafka.sasl_oauth_token_url", id="a redirect is not followed"),
        pytest.param((200, {"access_token": "no token, a sentence"}), "kafka.sasl_oauth_token_url", id="no token"),
    ],
)
def test_a_refusal_names_the_setting_and_no_secret(issuer: Issuer, answer: tuple[int, dict[str, Any]], names: str) -> None:
    issuer.answer = answer
    with pytest.raises(TokenError) as told:
        ClientCredentialsTokens(issuer.url, "client", lambda: SECRET).token()
    assert names in str(told.value)
    assert SECRET not in str(told.value)


@pytest.mark.parametrize("life_s", [10**400, float("inf"), 1e30])
def test_a_life_without_end_is_no_error_and_ends_no_renewal(issuer: Issuer, life_s: float) -> None:
    issuer.answer = (200, {"access_token": "long", "expires_in": life_s})
    tokens = ClientCredentialsTokens(issuer.url, "client", lambda: SECRET)
    assert tokens.token() == "long"
    assert tokens._renewer.is_alive()
    tokens.close()


def test_a_token_that_comes_expired_is_told_as_such_and_fetched_at_the_next_call(issuer: Issuer) -> None:
    issuer.answer = (200, {"access_token": jwt(exp=900)})
    tokens = ClientCredentialsTokens(issuer.url, "client", lambda: SECRET, clock=FakeClock(1_000))
    for _ in range(2):
        with pytest.raises(TokenError, match=r"expired 100 s ago; set this clock"):
            tokens.token()
    assert len(issuer.asked) == 2
    issuer.answer = (200, {"access_token": jwt(exp=2_000)})
    assert tokens.token() == jwt(exp=2_000)
    tokens.close()


def test_however_short_a_token_lives_its_issuer_is_given_a_pause(issuer: Issuer) -> None:
    issuer.answer = (200, {"access_token": "short", "expires_in": 0.001})
    tokens = ClientCredentialsTokens(issuer.url, "client", lambda: SECRET)
    with contextlib.suppress(TokenError):
        tokens.token()
    assert issuer.came.wait(30), "renewed"
    tokens.close()
    assert len(issuer.asked) <= 3, "about once a second, not hundreds of times"


@pytest.mark.parametrize(
    "said",
    [
        pytest.param(b"SSH-2.0-\x1b[2Jx\r\n", id="no HTTP"),
        pytest.param(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n10\r\nabc", id="cut"),
        pytest.param(b"HTTP/1.1 200 OK\r\nX: " + b"a" * 70_000 + b"\r\n\r\n", id="huge header"),
        pytest.param(b"HTTP/1.1 503 x\r\nTransfer-Encoding: chunked\r\n\r\n10\r\nabc", id="refusal cut"),
    ],
)
def test_an_answer_that_is_not_that_of_an_issuer_names_the_setting(said: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            with server.accept()[0] as connection:
                connection.recv(1 << 16)
                connection.sendall(said)

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(TokenError, match=r"check kafka\.sasl_oauth_token_url") as told:
            ClientCredentialsTokens(f"http://127.0.0.1:{server.getsockname()[1]}/token", "client", lambda: SECRET).token()
        thread.join()
    assert str(told.value).isprintable()
