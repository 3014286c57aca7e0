"""Tokens for SASL OAUTHBEARER: from a file that someone else renews, or from an issuer by client credentials (RFC 6749, 4.4).

kafka-python asks for a token on its IO thread, at every connection and before the broker's session ends. So nothing here may wait there: a file is
read, and an issuer's token is renewed ahead of time by a thread of its own.
"""

import base64
import binascii
import contextlib
import http.client
import json
import logging
import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus, urlencode, urlsplit

from kafka.net.sasl.oauth import AbstractTokenProvider

logger = logging.getLogger(__name__)

ISSUER_TIMEOUT_S = 3.0
MAX_ANSWER_BYTES = 1 << 16
RENEW_AT = 0.8
"""Part of a token's life after which it is renewed."""
DEFAULT_LIFE_S = 300.0
"""Of a token whose issuer does not say."""
RETRY_S = (1.0, 30.0)
"""Between tries of a renewal: the first wait and the longest; it doubles. The first is the shortest between any two renewals."""
MAX_LIFE_S = 365 * 86_400.0
"""A token that lives longer is renewed all the same."""
LATEST_S = 1e11
"""The year 5138: an `exp` beyond is none, or not in seconds."""

_BEARER_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")
_ERROR_CODE = re.compile(r"[a-z_]{1,40}")


class TokenError(Exception):
    """There is no token to show; the message gives cause and setting, and never holds a secret."""

    def __init__(self, why: str, remedy: str, *, may_pass: bool) -> None:
        """`may_pass`: whether waiting may help."""
        super().__init__(f"{why}; {remedy}")
        self.why, self.remedy, self.may_pass = why, remedy, may_pass


@dataclass(frozen=True, slots=True)
class Token:
    """What is shown to the broker, and until when (seconds since 1970)."""

    text: str = field(repr=False)
    expires_at: float


class FileTokens(AbstractTokenProvider):  # type: ignore[misc]  # kafka-python is untyped
    """A token in a file, read at every call: calls are as rare as connections, and the file is renewed in place."""

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        self._path, self._clock = path, clock

    def token(self) -> str:
        """The token that is in the file now. Raises TokenError."""
        return self.current().text

    def current(self) -> Token:
        """The same with its end, where it says nothing in `DEFAULT_LIFE_S`. Raises TokenError."""
        setting = f"kafka.sasl_oauth_token_file {str(self._path)!r}"
        try:
            text = self._path.read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            cause = (isinstance(error, OSError) and error.strerror) or "it is not text"
            raise TokenError(f"{setting} cannot be read: {cause}", "mount a readable file", may_pass=True) from None
        if not _BEARER_TOKEN.fullmatch(text):
            raise TokenError(f"{setting} holds no bearer token", "write one token into it and nothing else", may_pass=True)
        expires_at = jwt_expiry(text)
        if expires_at is not None and expires_at <= self._clock():
            ago_s = self._clock() - expires_at
            raise TokenError(f"the token in {setting} expired {ago_s:.0f} s ago", "see why it is not renewed, or set this clock", may_pass=True)
        return Token(text, expires_at or self._clock() + DEFAULT_LIFE_S)


class ClientCredentialsTokens(AbstractTokenProvider):  # type: ignore[misc]
    """Tokens of an issuer. The first is fetched by the first caller, each later one by a thread before the last has expired."""

    def __init__(
        self, url: str, client_id: str, read_secret: Callable[[], str], *, scope: str | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        """`read_secret` is called at each fetch, so that a secret in a file may change; what it raises, `token` raises."""
        self._url, self._client_id, self._read_secret, self._scope, self._clock = url, client_id, read_secret, scope, clock
        self._lock = threading.Lock()
        self._token: Token | None = None
        self._last_error: Exception | None = None
        self._closed = threading.Event()
        self._renewer = threading.Thread(target=self._renew, name="oauth-tokens", daemon=True)

    def token(self) -> str:
        """The current token; only the first call waits for the issuer, up to `ISSUER_TIMEOUT_S`. Raises TokenError."""
        return self.current().text

    def current(self) -> Token:
        """The same with its end. Raises TokenError."""
        with self._lock:
            if self._token is None:
                self._token = self._fetch()
                self._renewer.start()
            token = self._token
        if token.expires_at <= self._clock():
            raise self._last_error or TokenError("the token has expired and its renewal is on its way", "try again", may_pass=True)
        return token

    def close(self) -> None:
        """End the renewals."""
        self._closed.set()
        if self._renewer.is_alive():
            self._renewer.join()

    def _renew(self) -> None:
        assert self._token is not None
        retry_s, wait_s = RETRY_S[0], self._until_renewal(self._token)
        while not self._closed.wait(wait_s):
            try:
                fetched = self._fetch()
            except Exception as error:  # of any kind: an unreadable secret too may be mended while the token still holds
                logger.warning("OAuth token not renewed, trying again in %.0f s: %s", retry_s, error)
                self._last_error = error
                wait_s, retry_s = retry_s, min(2 * retry_s, RETRY_S[1])
            else:
                self._token, self._last_error = fetched, None
                retry_s, wait_s = RETRY_S[0], self._until_renewal(fetched)
                logger.info("OAuth token renewed: expires_in_s=%.0f", fetched.expires_at - self._clock())

    def _until_renewal(self, token: Token) -> float:
        # Never at once: a clock that jumps would make every token look old, and the issuer be asked without a pause.
        return max(RETRY_S[0], RENEW_AT * min(MAX_LIFE_S, token.expires_at - self._clock()))

    def _fetch(self) -> Token:
        form = {"grant_type": "client_credentials"} | ({"scope": self._scope} if self._scope else {})
        credentials = f"{quote_plus(self._client_id)}:{quote_plus(self._read_secret())}"
        headers = {"Authorization": f"Basic {base64.b64encode(credentials.encode()).decode()}", "Accept": "application/json"}
        request = urllib.request.Request(self._url, urlencode(form).encode(), headers)
        place = "{0.scheme}://{0.netloc}{0.path}".format(urlsplit(self._url))
        try:
            with _opener().open(request, timeout=ISSUER_TIMEOUT_S) as response:
                body = response.read(MAX_ANSWER_BYTES)
        except urllib.error.HTTPError as error:
            said = b""
            with error, contextlib.suppress(OSError, http.client.HTTPException):  # the status is enough
                said = error.read(MAX_ANSWER_BYTES)
            raise _refused(place, error.code, said) from None
        except http.client.HTTPException as error:  # another port; what it says is a stranger's
            why = f"the answer of the issuer {place} is not HTTP: {type(error).__name__}"
            raise TokenError(why, "check kafka.sasl_oauth_token_url", may_pass=True) from None
        except (OSError, ValueError) as error:
            cause = getattr(error, "reason", error)
            raise TokenError(f"the issuer {place} does not answer: {cause}", "check kafka.sasl_oauth_token_url", may_pass=True) from None
        answer = _object(body)
        text, life_s = answer.get("access_token"), answer.get("expires_in")
        if not isinstance(text, str) or not _BEARER_TOKEN.fullmatch(text):
            raise TokenError(f"the issuer {place} gave no access_token", "check kafka.sasl_oauth_token_url", may_pass=False)
        now = self._clock()
        if isinstance(life_s, int | float) and not isinstance(life_s, bool) and life_s > 0:
            return Token(text, now + min(life_s, MAX_LIFE_S))
        expires_at = jwt_expiry(text)
        if expires_at is not None and expires_at <= now:
            why = f"the token that the issuer {place} gave expired {now - expires_at:.0f} s ago"
            raise TokenError(why, "set this clock, or the issuer's", may_pass=True)
        return Token(text, expires_at or now + DEFAULT_LIFE_S)


def jwt_expiry(token: str) -> float | None:
    """`exp` of a JWT in seconds since 1970; None when the token does not say. Nothing is verified: that is the broker's part."""
    payload = token.split(".")[1] if token.count(".") == 2 else ""
    try:
        claims = _object(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    except (binascii.Error, ValueError):
        return None
    expiry = claims.get("exp")
    return float(expiry) if isinstance(expiry, int | float) and not isinstance(expiry, bool) and abs(expiry) < LATEST_S else None


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Leaves a redirect an error: urllib would carry the credentials to the other host."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _opener() -> urllib.request.OpenerDirector:
    return urllib.request.build_opener(_NoRedirects)


def _refused(place: str, status: int, body: bytes) -> TokenError:
    """Of the answer only RFC 6749's error code is repeated: the rest is free text of a stranger."""
    code = _object(body).get("error")
    named = f" {code}" if isinstance(code, str) and _ERROR_CODE.fullmatch(code) else ""
    if code == "invalid_scope":
        remedy = "check kafka.sasl_oauth_scope"
    elif status in (400, 401, 403):
        remedy = "check kafka.sasl_oauth_client_id and kafka.sasl_oauth_client_secret"
    else:
        remedy = "check kafka.sasl_oauth_token_url"
    return TokenError(f"the issuer {place} refused with HTTP {status}{named}", remedy, may_pass=status >= 500 or status == 429)


def _object(body: bytes) -> dict[str, Any]:
    """A JSON object, or an empty one."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
