"""Who comes in, what they get, and what every answer forbids the browser."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from fifa_stream.config import ConfigError
from fifa_stream.review.server import MAX_BODY_BYTES, Address, Door, desk_app, is_loopback, read_token

PORT = 8571
HOME = f"http://127.0.0.1:{PORT}"
OURS = {"x-fifa-desk": "1", "content-type": "application/json"}
TOKEN = "0123456789abcdef-a-token"
AGREE = {"case": 0, "face": 0, "decision": "agree"}
MakeClient = Callable[..., TestClient]


@pytest.fixture(scope="module")
def verdicts(toys_of_module: Any) -> Any:
    return toys_of_module.of_a_stream(6)


@pytest.fixture
def make_client(toys_of_module: Any, toys: Any, verdicts: Any) -> MakeClient:
    """A browser before the desk: `make_client(base_url=, **door)`; decisions go where the test's own `toys` say."""

    def build(base_url: str = HOME, **door: Any) -> TestClient:
        desk = toys_of_module.desk(verdicts, log=toys.log)
        return TestClient(desk_app(desk, Door(PORT, **door)), base_url=base_url, raise_server_exceptions=True)

    return build


PATHS = (
    "/",
    "/desk.js",
    "/desk.css",
    "/player.js",
    "/page.js",
    "/page.css",
    "/api/desk",
    "/api/queue?order=score",
    "/api/rows?cases=0,1",
    "/api/cases/0",
)
PATHS += ("/api/cases/0/frame.jpg", "/api/cases/0/faces/0.jpg", "/api/streams/0", "/api/cases/4/case.zip")


def test_every_answer_has_a_policy_that_admits_nothing_inline(make_client: MakeClient) -> None:
    client = make_client()
    for path in (*PATHS, "/nowhere", "/api/cases/99"):
        headers = client.get(path).headers
        policy = headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'") and "unsafe" not in policy
        assert "require-trusted-types-for 'script'; trusted-types 'none'" in policy and "frame-ancestors 'none'" in policy
        assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "no-referrer"
        assert headers["cache-control"] == "no-store" and headers["cross-origin-resource-policy"] == "same-origin"


def test_everything_that_the_page_asks_for_is_there(make_client: MakeClient) -> None:
    client = make_client()
    kinds = {path: client.get(path) for path in PATHS}
    assert {path: answer.status_code for path, answer in kinds.items()} == dict.fromkeys(PATHS, 200)
    assert kinds["/"].headers["content-type"].startswith("text/html") and kinds["/api/cases/0"].headers["content-type"] == "application/json"
    assert kinds["/api/queue?order=score"].json()["cases"][0] in range(6) and [row["n"] for row in kinds["/api/rows?cases=0,1"].json()] == [0, 1]
    assert kinds["/api/cases/4/case.zip"].content.startswith(b"PK")


def test_the_pages_own_files_hold_no_inline_script_or_style_and_no_way_to_parse_html(make_client: MakeClient) -> None:
    client = make_client()
    page = client.get("/").text
    assert "style=" not in page and "<style" not in page and " on" not in page.replace(" one", "").replace(" only", "").replace(" on<", "")
    assert page.count("<script") == page.count("</script>") == page.count('<script defer src="/')
    for name in ("/desk.js", "/player.js", "/page.js"):
        text = client.get(name).text
        assert not any(word in text for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function(", "DOMParser"))


@pytest.mark.parametrize(
    "path",
    [
        "/../../etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/static/desk.js",
        "/page.css/../config.py",
        "/api/cases/-1",
        "/api/cases/0/faces/../../x",
        "/api/cases/1e9",
        "/api/cases/" + "9" * 5_000,
        "/api/streams/" + "9" * 30,
    ],
)
def test_no_path_leads_elsewhere(make_client: MakeClient, path: str) -> None:
    assert make_client().get(path).status_code == 404


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8571", "127.0.0.1.evil.example:8571", "127.0.0.1:80", "localhost:99999", "", "desk.example:8571"]
)
def test_another_name_is_refused_whatever_it_resolves_to(make_client: MakeClient, host: str) -> None:
    client = make_client()
    for path in ("/", "/api/desk"):
        assert client.get(path, headers={"host": host}).status_code == 421


@pytest.mark.parametrize(
    "host", ["127.0.0.1:8571", "localhost:8571", "[::1]:8571", "10.1.2.3:8571", "desk.example", "desk.example:443", "LOCALHOST:8571"]
)
def test_our_own_names_and_plain_addresses_are_answered(make_client: MakeClient, host: str) -> None:
    assert make_client(hosts=frozenset({"desk.example"})).get("/api/desk", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param({"content-type": "application/json"}, id="without our header"),
        pytest.param({"x-fifa-desk": "1", "content-type": "text/plain"}, id="as a form may send it"),
        pytest.param(OURS | {"origin": "https://evil.example"}, id="from another page"),
        pytest.param(OURS | {"origin": "null"}, id="from a page without an origin"),
        pytest.param(OURS | {"origin": f"https://127.0.0.1:{PORT}"}, id="from another scheme"),
        pytest.param(OURS | {"sec-fetch-site": "cross-site"}, id="begun by another site"),
        pytest.param(OURS | {"sec-fetch-site": "same-site"}, id="begun by another port"),
    ],
)
def test_another_page_cannot_decide(make_client: MakeClient, toys: Any, headers: dict[str, str]) -> None:
    assert make_client().post("/api/decisions", json=AGREE, headers=headers).status_code == 403
    assert not toys.log.read_bytes()


@pytest.mark.parametrize(
    ("host", "origin", "status"),
    [
        ("desk.example", "https://desk.example", 200),
        ("desk.example", "http://desk.example", 200),
        ("desk.example:8443", "https://desk.example:8443", 200),
        ("desk.example", "https://evil.example", 403),
        ("desk.example", "https://desk.example:444", 403),
    ],
)
def test_behind_a_proxy_that_adds_tls_the_desk_may_be_decided_at(make_client: MakeClient, host: str, origin: str, status: int) -> None:
    client = make_client(hosts=frozenset({"desk.example"}))
    assert client.post("/api/decisions", json=AGREE, headers=OURS | {"host": host, "origin": origin}).status_code == status


def test_another_page_cannot_show_our_pictures_and_may_link_to_the_desk(make_client: MakeClient) -> None:
    client, foreign = make_client(), {"sec-fetch-site": "cross-site"}
    assert client.get("/api/cases/0/frame.jpg", headers=foreign | {"sec-fetch-mode": "no-cors"}).status_code == 403
    assert client.get("/", headers=foreign | {"sec-fetch-mode": "navigate"}).status_code == 200


def test_a_decision_of_our_page_is_taken(make_client: MakeClient, toys: Any) -> None:
    client = make_client()
    answer = client.post("/api/decisions", json=AGREE, headers=OURS | {"origin": HOME, "sec-fetch-site": "same-origin"})
    assert answer.status_code == 200 and answer.json()["row"]["mine"] == "agree" and len(toys.lines()) == 1
    assert client.post("/api/undo", json={}, headers=OURS).json()["undone"] == "agree"
    assert client.post("/api/undo", json={}, headers=OURS).status_code == 404


@pytest.mark.parametrize(
    "value", ["[]", "1", "", "{", "[" * 50_000, '{"case": 0, "face": 0, "decision": "burn"}', '{"case": 0, "more": 1}', '{"case": -1}']
)
def test_a_body_that_is_no_decision_is_refused(make_client: MakeClient, toys: Any, value: str) -> None:
    assert make_client().post("/api/decisions", content=value, headers=OURS).status_code in (400, 422)
    assert not toys.log.read_bytes()


def test_a_request_too_large_is_refused_with_and_without_a_length(make_client: MakeClient) -> None:
    client, body = make_client(), b"x" * (MAX_BODY_BYTES + 1)
    assert client.post("/api/decisions", content=body, headers=OURS).status_code == 413
    assert client.post("/api/decisions", content=iter([body[:30_000]] * 4), headers=OURS).status_code == 413
    assert client.get(f"/api/rows?cases={'1,' * 5000}").status_code == 413
    assert client.get(f"/api/rows?cases={'1,' * 300}").status_code == 404


@pytest.mark.parametrize("query", ["order=worst", "label=maybe", "stream=x", "stream=99", "standing=none"])
def test_a_queue_that_there_is_not_is_refused(make_client: MakeClient, query: str) -> None:
    assert make_client().get(f"/api/queue?{query}").status_code in (400, 404)


def test_with_a_token_nothing_but_the_empty_page_is_given_without_it(make_client: MakeClient) -> None:
    client = make_client(token=TOKEN)
    assert client.get("/").status_code == 200
    for path in PATHS:
        if path.startswith("/api/"):
            assert client.get(path).status_code == 401
    assert client.post("/api/decisions", json=AGREE, headers=OURS).status_code == 401


@pytest.mark.parametrize("given", ["", "0123456789abcdef", TOKEN + "x", None, 7, "\ud800"])
def test_another_token_is_refused(make_client: MakeClient, given: Any) -> None:
    client = make_client(token=TOKEN)
    answer = client.post("/api/session", content=json.dumps({"token": given}), headers=OURS)
    assert answer.status_code == 401 and "set-cookie" not in answer.headers


@pytest.mark.parametrize("is_tls", [False, True])
def test_the_token_opens_the_desk_and_the_cookie_is_for_this_page_alone(make_client: MakeClient, is_tls: bool) -> None:
    client = make_client(base_url=HOME.replace("http", "https") if is_tls else HOME, token=TOKEN, is_tls=is_tls)
    answer = client.post("/api/session", json={"token": TOKEN}, headers=OURS)
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=strict" in cookie and TOKEN not in cookie and ("secure" in cookie) is is_tls
    assert client.get("/api/desk").status_code == 200
    assert make_client(token=TOKEN).get("/api/desk", headers={"cookie": "fifa-desk=made-up"}).status_code == 401


def test_a_case_without_its_picture_says_so(make_client: MakeClient, toys_of_module: Any) -> None:
    client = make_client()
    (toys_of_module.folder / "frames.jsonl").unlink()
    assert "cannot be read" in client.get("/api/cases/0").json()["noPicture"]
    assert client.get("/api/cases/0/frame.jpg").status_code == 404 and client.get("/api/cases/0/case.zip").status_code == 404


def test_a_decision_that_cannot_be_kept_is_told(make_client: MakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: int) -> None:
        raise OSError(28, "No space left on device")

    client = make_client()
    monkeypatch.setattr("fifa_stream.review.decisions.os.fsync", full)
    answer = client.post("/api/decisions", json=AGREE, headers=OURS)
    assert answer.status_code == 503 and "No space left" in answer.json()["error"]


@pytest.mark.parametrize(
    ("host", "is_here"), [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False), ("10.0.0.1", False)]
)
def test_beyond_this_machine_a_token_is_made_up(host: str, is_here: bool) -> None:
    assert is_loopback(host) is is_here
    assert (read_token(Address(host)) is None) is is_here
    assert is_here or read_token(Address(host)) != read_token(Address(host))


def test_a_token_comes_out_of_its_file(tmp_path: Path) -> None:
    path = tmp_path / "token"
    with pytest.raises(ConfigError, match="cannot be read"):
        read_token(Address(token_file=path))
    path.write_text("short\n")
    with pytest.raises(ConfigError, match="no token of 16"):
        read_token(Address(token_file=path))
    path.write_text(f"{TOKEN}\n")
    assert read_token(Address(token_file=path)) == TOKEN
