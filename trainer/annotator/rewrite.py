"""An optional rewriter: any endpoint that speaks OpenAI's chat completions words an explanation anew, and nothing it answers is believed unchecked.

`verify` holds a rewrite against the claims behind it. It errs on the side of refusal: a refused rewrite costs nothing, the grammar's text stands.
"""

import json
import os
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from ipaddress import ip_address
from typing import IO, Any
from urllib.parse import urlsplit

from engines.claims import KINDS, Claim, read_claim
from engines.prompts import parse_markup
from trainer.annotator.verify import Reason, Refusal, verify

MAX_RESPONSE_BYTES = 256 * 1024
RETRIED = (429, 500, 502, 503, 504)
MAX_ATTEMPTS = 3
MAX_PAUSE_S = 30.0

INSTRUCTIONS = """You reword the explanation of a manipulated face. Keep every fact, add none.
Rules:
- Write one or two plain English sentences for each fact, in the given order, as one paragraph of ASCII text.
- Mark each place exactly once, as it stands in the explanation: <p> phrase </p> [SEG]. Do not change, add, drop or reorder these marks.
- Name no other part of the face, except what a fact compares with. Keep right and left; they are the subject's.
- Say what was measured (softer, darker, ...) and keep its numbers. Do not invent numbers, causes or places.
Answer with the reworded explanation alone."""


class Rewriter:
    """Asks one endpoint; counts what became of its answers."""

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        api_key_env: str | None = None,
        timeout_s: float = 30.0,
        allow_plain_http: bool = False,
        pause_s: float = 1.0,
    ) -> None:
        """Check the settings; nothing is sent yet.

        Args:
            base_url: such as 'https://host/v1'; `/chat/completions` is put behind it. Plain http is taken to loopback alone.
            model: its name at the endpoint.
            api_key_env: name of the environment variable that holds the key; the key is read from it at each call and put nowhere else.
            timeout_s: for one attempt as a whole.
            allow_plain_http: take plain http to any host: keys and texts then travel in the clear.
            pause_s: before the first retry; doubles, at most `MAX_PAUSE_S`.

        Raises ValueError for an address that is refused, or where the named variable is not set.
        """
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query or parts.fragment:
            raise ValueError(f"{parts.scheme}://{parts.hostname} is no endpoint address; give one such as https://host/v1, without user or query")
        if parts.scheme == "http" and not _is_loopback(parts.hostname) and not allow_plain_http:
            raise ValueError(f"plain http to {parts.hostname} would show keys and texts on the way; use https, or allow it explicitly")
        if api_key_env is not None and not os.environ.get(api_key_env):
            raise ValueError(f"environment variable {api_key_env} is not set; put the endpoint's key there")
        self._url, self._model, self._api_key_env = base_url.rstrip("/") + "/chat/completions", model, api_key_env
        self._timeout_s, self._pause_s = timeout_s, pause_s
        handlers: list[urllib.request.BaseHandler] = [_NoRedirect()]
        if _is_loopback(parts.hostname):
            handlers.append(urllib.request.ProxyHandler({}))
        self._opener = urllib.request.build_opener(*handlers)
        self.accepted = 0
        self.refused: Counter[Reason] = Counter()

    def rewrite(self, markup: str, claims: Sequence[Claim], *, query: str | None = None) -> str:
        """Return a verified rewrite of a grammar's markup, or that markup itself where there is none; the reason is counted in `refused`.

        Raises ValueError where the endpoint refuses the request itself (wrong address, key or model): no other face would fare better.
        """
        answer = self._ask(_request(self._model, markup, claims))
        refusal = Refusal("no_answer", "no usable answer") if answer is None else verify(answer, claims, source=markup, query=query)
        if answer is None or refusal is not None:
            if refusal is not None:
                self.refused[refusal.reason] += 1
            return markup
        self.accepted += 1
        return answer

    def _ask(self, body: bytes) -> str | None:
        for attempt in range(MAX_ATTEMPTS):
            wait_s = min(MAX_PAUSE_S, self._pause_s * 2**attempt)
            try:
                return _content(self._post(body))
            except urllib.error.HTTPError as error:
                error.close()
                if error.code not in RETRIED:
                    host = urlsplit(self._url).hostname
                    raise ValueError(f"the endpoint at {host} answered HTTP {error.code}; check address, key and model {self._model!r}") from None
                wait_s = _retry_after(error, wait_s)
            except OSError:  # refused, reset, timed out
                pass
            except (ValueError, LookupError, TypeError, RecursionError):  # not the JSON of a chat completion
                return None
            if attempt + 1 < MAX_ATTEMPTS:
                time.sleep(wait_s)
        return None

    def _post(self, body: bytes) -> bytes:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self._api_key_env is not None:
            headers["Authorization"] = f"Bearer {os.environ[self._api_key_env]}"
        deadline = time.monotonic() + self._timeout_s
        request = urllib.request.Request(self._url, body, headers, method="POST")
        with self._opener.open(request, timeout=self._timeout_s) as response:
            return _read_bounded(response, deadline)


def rewrite_rows(rows: Iterable[dict[str, Any]], rewriter: Rewriter) -> Iterator[dict[str, Any]]:
    """Annotation rows with their training text reworded where that passed; the held-out text is left alone. `reworded` says which is which."""
    for row in rows:
        if not row["concepts"]:  # clean answers and refusals have no claims to hold a rewrite against
            yield row | {"reworded": False}
            continue
        markup = rewriter.rewrite(row["markup"], [read_claim(concept["claim"]) for concept in row["concepts"]])
        yield row | {"markup": markup, "text": parse_markup(markup)[0], "reworded": markup != row["markup"]}


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key to a host that nobody named."""

    def redirect_request(self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str) -> None:
        return None


def _request(model: str, markup: str, claims: Sequence[Claim]) -> bytes:
    facts = "\n".join(f"{number}. {_fact(claim)}" for number, claim in enumerate(claims, 1))
    messages = [{"role": "system", "content": INSTRUCTIONS}, {"role": "user", "content": f"Facts:\n{facts}\n\nExplanation:\n{markup}"}]
    return json.dumps({"model": model, "messages": messages, "temperature": 0, "seed": 0, "max_tokens": 60 + 80 * len(claims)}).encode()


def _fact(claim: Claim) -> str:
    found = [
        "redrawn, no single measurement departs" if each.kind == "altered"
        else f"{each.kind.replace('_', ' ')} by about {each.amount} {each.unit} ({KINDS[each.kind].measurement.replace('_', ' ')})"
        for each in claim.findings
    ]  # fmt: skip
    where = f"; {claim.reach} of it" + (f", its {claim.place} part" if claim.place else "")
    beside = f"; next to {' and '.join(name.replace('_', ' ') for name in claim.neighbours)}" if claim.neighbours else ""
    return f"{claim.phrase}: {' and '.join(found)}{where}{beside}"


def _content(body: bytes) -> str | None:
    content = json.loads(body)["choices"][0]["message"]["content"]
    return content.strip() if isinstance(content, str) and content.strip() else None


def _read_bounded(response: IO[bytes], deadline: float) -> bytes:
    """Read a body, but neither more than `MAX_RESPONSE_BYTES` (ValueError) nor past the deadline (TimeoutError), however slowly it drips."""
    chunks, total = [], 0
    while chunk := response.read1(8192) if hasattr(response, "read1") else response.read(8192):
        total += len(chunk)
        if total > MAX_RESPONSE_BYTES:
            raise ValueError("the answer is larger than any rewrite")
        if time.monotonic() > deadline:
            raise TimeoutError("the answer drips")
        chunks.append(chunk)
    return b"".join(chunks)


def _retry_after(error: urllib.error.HTTPError, otherwise_s: float) -> float:
    """Seconds that the endpoint asks for, within reason; a date or nonsense counts as none."""
    asked = error.headers.get("Retry-After", "") if error.headers else ""
    return min(MAX_PAUSE_S, float(asked)) if asked.isdigit() else otherwise_s


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
