"""`analyze`: one line an image in input order, one complaint a broken file, and an exit status that says so."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engines.contracts import BundleError
from fifa_stream.analyze import IMAGES_PER_CALL, analyze_images, analyze_paths, image_files
from fifa_stream.records import Query, Verdict

MakeBench = Callable[..., Any]
MakeImage = Callable[..., bytes]


@pytest.fixture
def folder(tmp_path: Path, make_image: MakeImage) -> Path:
    """Two good images, a broken one, a text file, and one more level."""
    (tmp_path / "below").mkdir()
    (tmp_path / "b.png").write_bytes(make_image())
    (tmp_path / "a.JPG").write_bytes(make_image(kind="JPEG"))
    (tmp_path / "below" / "c.webp").write_bytes(make_image()[:80])
    (tmp_path / "notes.txt").write_text("not an image")
    return tmp_path


def test_folders_are_searched_for_images_in_order_and_files_are_taken_as_given(folder: Path) -> None:
    given = [folder / "notes.txt", folder, folder / "b.png"]
    assert list(image_files(given)) == [
        folder / "notes.txt",
        folder / "a.JPG",
        folder / "b.png",
        folder / "below" / "c.webp",
        folder / "b.png",
    ]


def test_json_lines_come_in_input_order_with_the_path_as_given(
    folder: Path, make_bench: MakeBench, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    paths = [Path("b.png"), Path("below"), Path("a.JPG"), Path("missing.png")]
    assert analyze_images(paths, make_bench().pipeline, as_json=True) == 1
    captured = capsys.readouterr()
    lines = [json.loads(line) for line in captured.out.splitlines()]
    assert [line["media"]["uri"] if "media" in line else line["uri"] for line in lines] == ["b.png", "below/c.webp", "a.JPG", "missing.png"]
    assert [line.get("error", {}).get("reason") for line in lines] == [None, "undecodable_image", None, "unreadable_file"]
    Verdict.from_bytes(captured.out.splitlines()[0].encode())
    complaints = captured.err.splitlines()
    assert [line.split(":")[:2] for line in complaints] == [["below/c.webp", " undecodable_image"], ["missing.png", " unreadable_file"]]


def test_all_good_is_status_zero_and_a_table(folder: Path, make_bench: MakeBench, capsys: pytest.CaptureFixture[str]) -> None:
    assert analyze_images([folder / "b.png"], make_bench().pipeline) == 0
    captured = capsys.readouterr()
    assert "fake" in captured.out and "left cheek" in captured.out and captured.err == ""


def test_an_empty_folder_is_a_failure_with_its_name(tmp_path: Path, make_bench: MakeBench, capsys: pytest.CaptureFixture[str]) -> None:
    assert analyze_images([tmp_path], make_bench().pipeline, as_json=True) == 1
    assert json.loads(capsys.readouterr().out)["error"]["reason"] == "unreadable_file"


def test_a_name_longer_than_a_file_may_have_is_refused_by_name(make_bench: MakeBench, capsys: pytest.CaptureFixture[str]) -> None:
    assert analyze_images([Path("a" * 300)], make_bench().pipeline, as_json=True) == 1
    assert json.loads(capsys.readouterr().out)["error"]["message"].startswith("File name too long")


def test_no_more_images_than_one_call_takes_are_held(tmp_path: Path, make_bench: MakeBench, make_image: MakeImage) -> None:
    for number in range(IMAGES_PER_CALL + 1):
        (tmp_path / f"{number:02}.png").write_bytes(make_image())
    bench = make_bench()
    assert analyze_images([tmp_path], bench.pipeline, as_json=True) == 0
    assert bench.analyzer.batches == [IMAGES_PER_CALL, 1]


def test_crop_and_query_reach_the_pipeline(folder: Path, make_bench: MakeBench, capsys: pytest.CaptureFixture[str]) -> None:
    bench = make_bench()
    assert analyze_images([folder / "b.png"], bench.pipeline, crop=True, query=Query(region="nose"), as_json=True) == 0
    line = json.loads(capsys.readouterr().out)
    assert bench.detector.sides == [] and line["faces"][0]["box"] == [0, 0, 320, 240]
    assert (line["query"]["region"], [answer["tampered"] for answer in line["query"]["answers"]]) == ("nose", [True])


@pytest.mark.parametrize(
    ("level", "query", "says"),
    [
        pytest.param(190, Query(region="right_cheek"), "right cheek, face 1: tampered (0.745). The left cheek is too sharp.", id="tampered"),
        pytest.param(
            60, Query(box_xyxy=(100, 60, 200, 150)), "box 100, 60, 200, 150, face 1: clean (0.235). Nothing here is manipulated.", id="clean"
        ),
    ],
)
def test_the_table_shows_the_answer(
    tmp_path: Path,
    make_bench: MakeBench,
    make_image: MakeImage,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    level: int,
    query: Query,
    says: str,
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.chdir(tmp_path)
    Path("a.png").write_bytes(make_image(level=level))
    assert analyze_images([Path("a.png")], make_bench().pipeline, query=query) == 0
    assert says in capsys.readouterr().out


def test_a_file_name_cannot_steer_the_terminal(tmp_path: Path, make_bench: MakeBench, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a\x1b[31m[red]\n.png").write_bytes(b"text")
    assert analyze_images([tmp_path], make_bench().pipeline) == 1
    captured = capsys.readouterr()
    assert "\x1b" not in captured.out + captured.err and "[red]" in captured.err and len(captured.err.splitlines()) == 1


def test_a_name_that_is_not_utf8_is_still_json(
    tmp_path: Path, make_bench: MakeBench, make_image: MakeImage, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "caf\udce9.png").write_bytes(make_image())
    assert analyze_images([tmp_path], make_bench().pipeline, as_json=True) == 0
    assert json.loads(capsys.readouterr().out)["media"]["uri"].endswith("caf\ufffd.png")


def test_a_page_is_written_with_every_image(folder: Path, make_bench: MakeBench) -> None:
    assert analyze_images([folder], make_bench().pipeline, html=folder / "out" / "page.html") == 1
    page = (folder / "out" / "page.html").read_text(encoding="utf-8")
    assert all(name in page for name in ("a.JPG", "b.png", "c.webp", "undecodable_image", "left cheek"))


def test_a_missing_bundle_is_an_engine_error(folder: Path) -> None:
    with pytest.raises(BundleError, match="no engine manifest"):
        analyze_paths([folder], engine=folder)
