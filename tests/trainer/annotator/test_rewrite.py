"""Rewrites: accepted where every fact is kept, refused with the right reason where one is not; the endpoint is never trusted."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from engines import grammar
from engines.claims import Claim, Finding
from trainer.annotator.rewrite import MAX_ATTEMPTS, MAX_RESPONSE_BYTES, Rewriter, rewrite_rows
from trainer.annotator.verify import verify

CLAIMS = [
    Claim("right_cheek", Finding("softer", 2.0, 0.8, 1.0, "around"), 0.6, "upper", ("nose",), "beside"),
    Claim("mouth", Finding("redder", 1.5, 12.0, 0.0, "around"), also=Finding("noisier", 1.2, 1.4, 1.0, "around")),
]
SOURCE = f"Swap or reenactment. {grammar.explain('swap', CLAIMS)}"
GOOD = (
    "Swap or reenactment. Next to the nose, the upper <p> right cheek </p> [SEG] is about 20% softer. "
    "The <p> mouth </p> [SEG] is 12 levels redder, and it has 40% more grain."
)
KEY = "key-of-the-test-48151623"

HOSTILE = {
    "no tags closed": (GOOD.replace("</p> [SEG] is about", "is about"), "markup_open"),
    "a mask without a phrase": (GOOD + " [SEG]", "markup_open"),
    "a phrase without a mask": (GOOD.replace("</p> [SEG] is 12", "</p> is 12"), "markup_open"),
    "another tag": (GOOD + " <b>", "markup_open"),
    "a new place, marked": (GOOD + " The <p> chin </p> [SEG] is softer.", "unbound_concept"),
    "a new place in plain words": (GOOD.replace("and it has", "like the chin it has"), "unbound_concept"),
    "a new place within a hyphen": (GOOD.replace("and it has", "and with an eye-like spot it has"), "unbound_concept"),
    "a neighbour of another claim": (GOOD.replace("redder,", "redder than the nose,"), "unbound_concept"),
    "a place dropped": (GOOD.split(" The <p> mouth")[0], "dropped_concept"),
    "an empty line": ("Nothing to see.", "dropped_concept"),
    "the other side, marked": (GOOD.replace("right cheek", "left cheek"), "flipped_side"),
    "the other side in plain words": (GOOD.replace("is about 20%", "on its left is about 20%"), "flipped_side"),
    "the viewer's side": (GOOD.replace("is about 20%", "(the viewer's right) is about 20%"), "flipped_side"),
    "the lower part": (GOOD.replace("upper", "lower"), "flipped_side"),
    "the opposite kind": (GOOD.replace("softer", "sharper"), "changed_kind"),
    "the kind negated": (GOOD.replace("is about 20% softer", "is not softer but keeps focus"), "changed_kind"),
    "more where less was measured": (GOOD.replace("20% softer", "softer with 20% more detail"), "changed_kind"),
    "a rise where a fall was measured": (GOOD.replace("is about 20% softer", "is softer as focus climbs 20%"), "changed_kind"),
    "another kind": (GOOD.replace("redder", "darker"), "changed_kind"),
    "called real": (GOOD + " It is authentic.", "changed_kind"),
    "another family": (GOOD.replace("Swap or reenactment", "Synthetic face"), "changed_kind"),
    "the kind left out": (GOOD.replace("is about 20% softer", "is odd"), "dropped_kind"),
    "a number of its own": (GOOD.replace("20%", "35%"), "invented_number"),
    "a number in words": (GOOD.replace("20%", "twenty-five percent"), "invented_number"),
    "a multiple": (GOOD.replace("about 20%", "twice as"), "invented_number"),
    "places in another order": (
        "The <p> mouth </p> [SEG] is 12 levels redder with more grain. The upper <p> right cheek </p> [SEG] is 20% softer.", "order",
    ),
    "a place said twice": (GOOD + " Again the <p> mouth </p> [SEG] is redder.", "order"),
    "a sermon": (GOOD + " It is so, and so it is." * 20, "too_long"),
    "other letters": (GOOD.replace("mouth is", "m\u043euth is").replace("softer", "s\u043efter"), "not_plain"),
    "a line break": (GOOD.replace(". The", ".\nThe"), "not_plain"),
    "a link": (GOOD + " See http://a.example for more.", "not_plain"),
    "markdown": ("**" + GOOD + "**", "not_plain"),
}  # fmt: skip


def test_a_rewrite_that_keeps_every_fact_is_accepted() -> None:
    assert verify(GOOD, CLAIMS, source=SOURCE) is None


def test_the_grammars_own_text_is_accepted() -> None:
    assert verify(SOURCE, CLAIMS, source=SOURCE) is None


@pytest.mark.parametrize("case", list(HOSTILE))
def test_a_rewrite_that_changes_a_fact_is_refused_with_its_reason(case: str) -> None:
    markup, reason = HOSTILE[case]
    refusal = verify(markup, CLAIMS, source=SOURCE)
    assert refusal is not None
    assert refusal.reason == reason, refusal


@pytest.mark.parametrize("reworded", ["20% less sharp", "20% blurrier", "softer by twenty percent", "less crisp by 20%, with detail dropping"])
def test_the_same_fact_in_other_words_is_accepted(reworded: str) -> None:
    assert verify(GOOD.replace("about 20% softer", reworded), CLAIMS, source=SOURCE) is None


# Against a local server.

Answer = Callable[[BaseHTTPRequestHandler], None]


class _Endpoint(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, answers: list[Answer]) -> None:
        self.answers, self.seen = answers, list[tuple[str, dict[str, str], bytes]]()
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class _Handler(BaseHTTPRequestHandler):
    server: _Endpoint

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.seen.append((self.path, {name.lower(): value for name, value in self.headers.items()}, body))
        answers = self.server.answers
        answers[min(len(self.server.seen), len(answers)) - 1](self)

    def log_message(self, format: str, *args: object) -> None:
        pass


def _sends(body: bytes, status: int = 200, **headers: str) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        with suppress(OSError):  # the client may have had enough
            handler.wfile.write(body)

    return answer


def _says(content: object) -> Answer:
    return _sends(json.dumps({"choices": [{"message": {"role": "assistant", "content": content}}]}).encode())


def _drips(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.end_headers()
    with suppress(OSError):
        for _ in range(3_000):
            handler.wfile.write(b" ")
            handler.wfile.flush()
            time.sleep(0.02)


@pytest.fixture
def serve() -> Iterator[Callable[..., _Endpoint]]:
    servers: list[_Endpoint] = []

    def start(*answers: Answer) -> _Endpoint:
        server = _Endpoint(list(answers))
        servers.append(server)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def _rewriter(server: _Endpoint, *, timeout_s: float = 5.0) -> Rewriter:
    return Rewriter(server.url, "some-model", timeout_s=timeout_s, pause_s=0.0)


def test_a_verified_answer_replaces_the_text(serve: Callable[..., _Endpoint]) -> None:
    server = serve(_says(f"  {GOOD}\n"))
    rewriter = _rewriter(server)
    assert rewriter.rewrite(SOURCE, CLAIMS) == GOOD
    assert (rewriter.accepted, dict(rewriter.refused)) == (1, {})
    path, _, body = server.seen[0]
    request = json.loads(body)
    assert (path, request["model"], request["temperature"]) == ("/v1/chat/completions", "some-model", 0)
    assert SOURCE in request["messages"][1]["content"]


@pytest.mark.parametrize("case", ["a new place, marked", "the other side, marked", "a place dropped", "the opposite kind"])
def test_a_refused_answer_falls_back_to_the_grammar_and_is_counted(serve: Callable[..., _Endpoint], case: str) -> None:
    markup, reason = HOSTILE[case]
    rewriter = _rewriter(serve(_says(markup)))
    assert rewriter.rewrite(SOURCE, CLAIMS) == SOURCE
    assert (rewriter.accepted, dict(rewriter.refused)) == (0, {reason: 1})


@pytest.mark.parametrize(
    "answer",
    [_sends(b"<html>"), _sends(b"[]"), _sends(b'{"choices": []}'), _says(None), _says(""), _says(["a"]), _sends(b"\xff\xfe"), _sends(b"[" * 100_000)],
    ids=["html", "list", "no choice", "null", "empty", "list content", "no text", "deep"],
)
def test_an_answer_that_is_no_completion_counts_as_none(serve: Callable[..., _Endpoint], answer: Answer) -> None:
    rewriter = _rewriter(serve(answer))
    assert rewriter.rewrite(SOURCE, CLAIMS) == SOURCE
    assert dict(rewriter.refused) == {"no_answer": 1}


def test_rows_are_reworded_one_by_one_and_clean_ones_left_alone(serve: Callable[..., _Endpoint]) -> None:
    told = {"markup": SOURCE, "text": "", "held_out": "as it was", "concepts": [{"claim": claim.to_json()} for claim in CLAIMS]}
    clean = {"markup": "This face is real.", "text": "This face is real.", "held_out": "", "concepts": []}
    rewriter = _rewriter(serve(_says(GOOD)))
    reworded, left = rewrite_rows([told, clean], rewriter)
    assert reworded["markup"] == GOOD and reworded["reworded"] and reworded["held_out"] == "as it was"
    assert "<p>" not in reworded["text"] and reworded["text"].startswith("Swap or reenactment. Next to the nose, the upper right cheek is")
    assert left == clean | {"reworded": False} and rewriter.accepted == 1


def test_an_endless_answer_is_cut(serve: Callable[..., _Endpoint]) -> None:
    rewriter = _rewriter(serve(_sends(b" " * (MAX_RESPONSE_BYTES + 10_000))))
    assert rewriter.rewrite(SOURCE, CLAIMS) == SOURCE
    assert dict(rewriter.refused) == {"no_answer": 1}


def test_a_dripping_answer_ends_at_the_deadline(serve: Callable[..., _Endpoint]) -> None:
    rewriter = _rewriter(serve(_drips), timeout_s=0.15)
    started = time.monotonic()
    assert rewriter.rewrite(SOURCE, CLAIMS) == SOURCE
    assert time.monotonic() - started < 0.15 * MAX_ATTEMPTS + 10.0  # one answer drips for a minute


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_endpoint_is_asked_again(serve: Callable[..., _Endpoint], status: int) -> None:
    server = serve(_sends(b"", status, Retry_After="0"), _says(GOOD))
    assert _rewriter(server).rewrite(SOURCE, CLAIMS) == GOOD
    assert len(server.seen) == 2


def test_retries_are_bounded(serve: Callable[..., _Endpoint]) -> None:
    server = serve(_sends(b"", 503))
    rewriter = _rewriter(server)
    assert rewriter.rewrite(SOURCE, CLAIMS) == SOURCE
    assert (len(server.seen), dict(rewriter.refused)) == (MAX_ATTEMPTS, {"no_answer": 1})


def test_the_key_is_sent_and_shown_nowhere(
    serve: Callable[..., _Endpoint], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("REWRITER_KEY_OF_THE_TEST", KEY)
    server = serve(_says(GOOD), _sends(KEY.encode(), 401))
    rewriter = Rewriter(server.url, "some-model", api_key_env="REWRITER_KEY_OF_THE_TEST", pause_s=0.0)
    rewriter.rewrite(SOURCE, CLAIMS)
    assert server.seen[0][1]["authorization"] == f"Bearer {KEY}"
    assert KEY.encode() not in server.seen[0][2]
    with pytest.raises(ValueError, match="HTTP 401") as refused:
        rewriter.rewrite(SOURCE, CLAIMS)
    assert KEY not in str(refused.value) + str(vars(rewriter)) + "".join(capfd.readouterr())


def test_a_redirect_does_not_carry_the_key_away(serve: Callable[..., _Endpoint]) -> None:
    other = serve(_says(GOOD))
    server = serve(_sends(b"", 307, Location=other.url + "/chat/completions"))
    with pytest.raises(ValueError, match="HTTP 307"):
        _rewriter(server).rewrite(SOURCE, CLAIMS)
    assert not other.seen


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://models.example/v1", "plain http"),
        ("ftp://models.example", "no endpoint"),
        ("https://user:word@models.example", "no endpoint"),
        ("", "no endpoint"),
    ],
)
def test_an_unsafe_address_is_refused_before_anything_is_sent(url: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        Rewriter(url, "some-model")
    assert "word" not in str(refused.value)


def test_a_missing_key_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with pytest.raises(ValueError, match="NO_SUCH_KEY"):
        Rewriter("https://models.example/v1", "some-model", api_key_env="NO_SUCH_KEY")
