"""`fifa-stream review`: one line for what is wrong, a file that verifies, and a word for what does not."""

import contextlib
import http.client
import json
import signal
import ssl
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import trustme
from typer.testing import CliRunner, Result

from fifa_stream.cli import app
from fifa_stream.review.export import verify


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["review", *arguments])


@pytest.fixture
def files(toys: Any) -> list[str]:
    answers, frames = toys.write([toys.verdict(offset, level=220) for offset in range(3)])
    return ["--verdicts", str(answers), "--frames", str(frames), "--decisions", str(toys.log), "--reviewer", "ann"]


def test_a_case_is_exported_and_verified(files: list[str], tmp_path: Path) -> None:
    out = tmp_path / "case.zip"
    done = run("export", "fifa.frames/0/1", "--out", str(out), *files)
    digest = verify(out.read_bytes()).manifest.digest
    assert done.exit_code == 0 and done.stdout == f"{out}: digest {digest}\n"
    checked = run("verify", str(out), "--digest", digest)
    assert checked.exit_code == 0 and checked.stdout.startswith("ok: 5 parts, 1 masks, 0 reviews of verdict fifa.frames/0/1; exported ")
    assert "came on another way" in run("verify", str(out)).stdout and "came on another way" not in checked.stdout
    assert run("export", "fifa.frames/0/1", "--out", str(out), *files).exit_code == 2, "a file is not written over"


def test_a_changed_file_is_told_in_one_line(files: list[str], tmp_path: Path) -> None:
    out = tmp_path / "case.zip"
    run("export", "fifa.frames/0/1", "--out", str(out), *files)
    content = bytearray(out.read_bytes())
    content[content.index(b'"fake_score"') + 14] ^= 1
    out.write_bytes(content)
    done = run("verify", str(out))
    assert done.exit_code == 1 and done.stderr.startswith("fifa-stream: ") and done.stderr.count("\n") == 1 and not done.stdout


@pytest.mark.parametrize(
    ("arguments", "status", "why"),
    [
        pytest.param(["verify", "nowhere.zip"], 2, "cannot be read", id="no file"),
        pytest.param(["export", "x", "--out", "y.zip"], 2, "--reviewer", id="nobody exports"),
        pytest.param([], 2, "--reviewer", id="nobody reviews"),
        pytest.param(["--reviewer", "a\x1b[2Jb"], 2, "--reviewer", id="a name that steers a terminal"),
        pytest.param(["--reviewer", "ann", "--tls-key", "k.pem"], 2, "go together", id="half of TLS"),
        pytest.param(["--reviewer", "ann", "--verdicts", "none.jsonl"], 2, "cannot be read", id="no verdicts"),
        pytest.param(["--reviewer", "ann", "--verdicts", "v.jsonl", "--since", "1h"], 2, "--since is of the topics", id="files have no since"),
        pytest.param(["--reviewer", "ann", "--to-topic", "a b"], 2, "no name of a topic", id="no topic"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(arguments: list[str], status: int, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = run(*arguments)
    assert done.exit_code == status and why in done.stderr and done.stderr.count("\n") == 1


def test_lines_among_the_decisions_that_are_no_reviews_are_told(files: list[str], toys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a reviewer would find what was decided by another version, or by hand, gone without a word."""
    monkeypatch.setattr("fifa_stream.review.server.serve_desk", lambda desk, address, *, is_open: None)
    assert "no reviews" not in run(*files).stderr
    toys.log.write_bytes(b'{"schema_version": "2.0"}\n{\n')
    done = run(*files)
    assert done.exit_code == 0 and f"2 entries of {toys.log} are no reviews and count nothing" in done.stderr


def test_a_verdict_that_there_is_not_is_told(files: list[str], tmp_path: Path) -> None:
    done = run("export", "fifa.frames/0/9", "--out", str(tmp_path / "x.zip"), *files)
    assert done.exit_code == 1 and "there is no verdict" in done.stderr and not (tmp_path / "x.zip").exists()


def test_the_check_needs_neither_a_server_nor_an_engine(files: list[str], tmp_path: Path) -> None:
    """An appeals team installs the package alone: the extra, the runtime and the broker's client may be missing."""
    out = tmp_path / "case.zip"
    run("export", "fifa.frames/0/1", "--out", str(out), *files)
    missing = ("starlette", "uvicorn", "onnxruntime", "kafka", "av")
    code = f"import sys; sys.modules.update(dict.fromkeys({missing})); from fifa_stream.cli import app; app(['review', 'verify', {str(out)!r}])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.startswith("ok: "), done.stderr


def test_beyond_this_machine_the_desk_asks_for_the_token_that_it_printed_and_ends_with_ctrl_c(files: list[str], tmp_path: Path) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    certificate.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    certificate.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
    options = ["--host", "0.0.0.0", "--port", "0", "--tls-certificate", str(tmp_path / "cert.pem"), "--tls-key", str(tmp_path / "key.pem")]
    command = [sys.executable, "-m", "fifa_stream.cli", "review", *files, *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        counted, address, told = (process.stdout.readline() for _ in range(3))
        assert counted == "3 cases of 1 streams, 0 decided; decisions go to reviews.jsonl\n" and address.startswith("open https://0.0.0.0:")
        port, token = int(address.strip().rstrip("/").rpartition(":")[2]), told.removeprefix("token: ").strip()
        trusted = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))

        def asked(path: str, body: bytes | None = None, **headers: str) -> tuple[int, str]:
            connection = http.client.HTTPSConnection("127.0.0.1", port, context=trusted)
            with contextlib.closing(connection):
                connection.request("GET" if body is None else "POST", path, body, headers)
                answer = connection.getresponse()
                return answer.status, answer.headers.get("set-cookie", "")

        ours = {"x-fifa-desk": "1", "content-type": "application/json"}
        assert asked("/api/desk")[0] == 401
        status, cookie = asked("/api/session", json.dumps({"token": token}).encode(), **ours)
        assert status == 200 and "Secure" in cookie
        assert asked("/api/desk", cookie=cookie.partition(";")[0])[0] == 200
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0 and process.stderr.read() == ""
