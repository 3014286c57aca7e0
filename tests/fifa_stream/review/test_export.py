"""An exported case is whole or says what is not: every bit of the file counts, and nothing in it is unpacked before it is known."""

import hashlib
import io
import json
import struct
import zipfile
import zlib
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from engines.contracts import Label, canonical_digest
from fifa_stream.analyze_video import VideoOptions, judge_video
from fifa_stream.infer import EncodedImage, FramePipeline, PipelineLimits
from fifa_stream.records import Query, Verdict
from fifa_stream.review.cases import collect
from fifa_stream.review.decisions import DecisionFile
from fifa_stream.review.desk import Choice, Desk
from fifa_stream.review.export import VerifyError, archive_of, export_case, verify
from fifa_stream.review.pictures import Pictures
from fifa_stream.review.sources import ImageFiles
from fifa_stream.testing import ToyAnalyzer, toy_bundle
from tests.fifa_stream.test_video import faces_clip

HOSTILE = "<script>alert(1)</script>\u202e\u0000"
Members = dict[str, bytes]


@pytest.fixture(scope="module")
def exported(toys_of_module: Any) -> bytes:
    """A reviewed case with an explanation and an answer."""
    desk = toys_of_module.desk([toys_of_module.verdict(4, level=220, query=Query(region="left_cheek"))])
    desk.decide(Choice(case=0, face=0, decision="wrong_place", phrases=(0,), comment=HOSTILE))
    name, archive = desk.export(0)
    assert name == "case-0-4.zip"
    return bytes(archive)


def members(archive: bytes) -> Members:
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        return {one.filename: opened.read(one) for one in opened.infolist()}


def sealed(parts: Members, **changes: Any) -> bytes:
    """An archive whose manifest fits its parts: made by somebody who knows how."""
    tree = json.loads(parts["manifest.json"]) | changes
    tree["parts"] = [
        {"name": name, "sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content)}
        for name, content in parts.items()
        if name != "manifest.json"
    ]
    tree["digest"] = canonical_digest(tree)
    return archive_of(parts | {"manifest.json": json.dumps(tree, indent=1, ensure_ascii=False).encode() + b"\n"})


def test_an_exported_case_holds_together(exported: bytes) -> None:
    found = verify(exported)
    assert found.num_masks == 3 and found.verdict.id == found.manifest.verdict == "fifa.frames/0/4"
    assert [(review.reviewer, review.decision) for review in found.reviews] == [("ann", "wrong_place")] and found.manifest.exported_by == "ann"
    names = ["manifest.json", "index.html", "verdict.json", "media.png", "reviews.jsonl"]
    assert [*members(exported)] == [*names, "masks/face-0-0.png", "masks/face-0-asked-0.png", "masks/face-0-asked-1.png"]
    assert verify(exported, digest=found.manifest.digest.upper()).manifest == found.manifest


def test_the_page_opens_by_itself_and_escapes_what_people_wrote(exported: bytes) -> None:
    page = members(exported)["index.html"].decode()
    assert "default-src 'none'" in page and "wrong_place" in page and "&lt;script&gt;alert(1)" in page and "<script>alert(1)" not in page
    assert 'src="' not in page.replace('src="data:', "") and "http" not in page.replace("http-equiv", "")


def test_another_digest_than_the_told_one_is_another_file(exported: bytes) -> None:
    with pytest.raises(VerifyError, match="another one"):
        verify(exported, digest="0" * 64)


def test_a_flipped_bit_anywhere_is_found(exported: bytes) -> None:
    """Every byte of what holds the parts together, and bytes of each part: at its ends and spread over it."""
    found: set[int] = set()
    with zipfile.ZipFile(io.BytesIO(exported)) as opened:
        for one in opened.infolist():
            begin = one.header_offset + 30 + len(one.filename)
            found |= {*range(one.header_offset, begin), *(begin + int(at) for at in np.linspace(0, one.file_size - 1, 12))}
        found |= {*range(opened.start_dir, len(exported))}
    for number, at in enumerate(sorted(found)):
        changed = bytearray(exported)
        changed[at] ^= 1 << number % 8
        with pytest.raises(VerifyError):
            verify(bytes(changed))


def test_a_file_that_was_cut_or_grew_is_found(exported: bytes) -> None:
    for changed in (
        exported[:-1],
        exported[: len(exported) // 2],
        exported + b"\0",
        b"\0" + exported,
        b"",
        b"PK\x05\x06" + b"\0" * 18,
        exported + exported,
    ):
        with pytest.raises(VerifyError):
            verify(changed)


@pytest.mark.parametrize("name", ["index.html", "verdict.json", "media.png", "reviews.jsonl", "masks/face-0-0.png"])
def test_a_part_that_was_changed_or_left_out_is_named(exported: bytes, name: str) -> None:
    parts = members(exported)
    with pytest.raises(VerifyError, match=f"{name} was changed"):
        verify(archive_of(parts | {name: parts[name] + b" "}))
    with pytest.raises(VerifyError, match=name):
        verify(archive_of({other: content for other, content in parts.items() if other != name}))


def test_a_part_more_is_found(exported: bytes) -> None:
    parts = members(exported)
    with pytest.raises(VerifyError, match="not named by"):
        verify(archive_of(parts | {"masks/face-9-9.png": b"x"}))
    with pytest.raises(VerifyError, match="no such mask"):
        verify(sealed(parts | {"masks/face-9-9.png": parts["masks/face-0-0.png"]}))


def reworded(parts: Members, change: Callable[[dict[str, Any]], None]) -> Members:
    tree = json.loads(parts["verdict.json"])
    change(tree)
    return parts | {"verdict.json": json.dumps(tree).encode()}


def set_span(tree: dict[str, Any]) -> None:
    tree["faces"][0]["evidence"][0]["char_span"] = [0, 3]


def set_mask_size(tree: dict[str, Any]) -> None:
    tree["faces"][0]["evidence"][0]["mask"]["size"] = [240, 321]


def set_counts(tree: dict[str, Any]) -> None:
    tree["faces"][0]["evidence"][0]["mask"]["counts"] = "P1"


def set_box(tree: dict[str, Any]) -> None:
    tree["faces"][0]["evidence"][0]["box"] = [0, 0, 320, 240]


def set_answer(tree: dict[str, Any]) -> None:
    tree["query"]["answers"][0]["evidence"][0]["phrase"] = "nose"


def set_picture(tree: dict[str, Any]) -> None:
    tree["media"]["sha256"] = "0" * 64


def set_width(tree: dict[str, Any]) -> None:
    tree["media"]["width"] = 319


def set_label(tree: dict[str, Any]) -> None:
    tree["label"] = "surely"


def set_id(tree: dict[str, Any]) -> None:
    tree["id"] = "fifa.frames/0/5"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (set_span, "is not its phrase"),
        (set_mask_size, "lies on a picture of"),
        (set_counts, "run lengths"),
        (set_box, "not that of its mask"),
        (set_answer, "answer of face 0.*is not its phrase"),
        (set_picture, "another verdict"),
        (set_width, "lies on a picture|the verdict says 319"),
        (set_label, "no verdict"),
        (set_id, "another verdict"),
    ],
)
def test_a_verdict_that_does_not_hold_is_found_under_digests_that_fit(exported: bytes, change: Callable[[dict[str, Any]], None], why: str) -> None:
    with pytest.raises(VerifyError, match=why):
        verify(sealed(reworded(members(exported), change)))


def test_a_mask_file_that_shows_another_mask_is_found(exported: bytes) -> None:
    parts, buffer = members(exported), io.BytesIO()
    Image.fromarray(np.ones((240, 320), bool)).save(buffer, "PNG")
    for content, why in ((buffer.getvalue(), "is not the mask"), (b"\x89PNG", "does not decode"), (parts["media.png"], "size")):
        with pytest.raises(VerifyError, match=why):
            verify(sealed(parts | {"masks/face-0-0.png": content}))


def test_another_picture_or_reviews_of_another_verdict_are_found(exported: bytes, toys_of_module: Any) -> None:
    parts = members(exported)
    review = json.loads(parts["reviews.jsonl"])
    with pytest.raises(VerifyError, match="not the picture"):
        verify(sealed(parts | {"media.png": toys_of_module.judged(60)[0]}))
    with pytest.raises(VerifyError, match="about another verdict"):
        verify(sealed(parts | {"reviews.jsonl": json.dumps(review | {"verdict": "x"}).encode()}))
    for other in ({"verdict_sha256": "0" * 64}, {"frame": 3}):
        with pytest.raises(VerifyError, match="about another verdict, or another frame"):
            verify(sealed(parts | {"reviews.jsonl": json.dumps(review | other).encode()}))
    with pytest.raises(VerifyError, match="no review"):
        verify(sealed(parts | {"reviews.jsonl": b"{}"}))


def test_what_was_decided_of_an_earlier_answer_to_a_record_is_not_exported_with_the_later_one(toys: Any) -> None:
    verdict = toys.verdict(4, level=220)
    desk = toys.desk([verdict])
    desk.decide(Choice(case=0, face=0, decision="agree"))
    assert len(verify(desk.export(0)[1]).reviews) == 1
    again = toys.desk([verdict.model_copy(update={"timings_ms": {"total": 1.0}})])
    assert again.head()["decided"] == 1 and verify(again.export(0)[1]).reviews == ()


def zipped(parts: Members, *, compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return buffer.getvalue()


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "masks/../../x.png", "C:\\x", "masks\\a.png", "media.svg"])
def test_a_name_that_leads_out_is_refused(exported: bytes, name: str) -> None:
    with pytest.raises(VerifyError):
        verify(zipped(members(exported) | {name: b"x"}))


def test_a_bomb_is_refused_before_it_is_read(exported: bytes) -> None:
    bomb = zipped({"index.html": b"\0" * (64 << 20)}, compression=zipfile.ZIP_DEFLATED)
    assert len(bomb) < 1 << 17
    with pytest.raises(VerifyError, match="compressed"):
        verify(bomb)
    with pytest.raises(VerifyError, match="compressed"):
        verify(zipped(members(exported), compression=zipfile.ZIP_DEFLATED))
    with pytest.raises(VerifyError, match="more than 4096"):
        verify(zipped({f"masks/face-{number}-0.png": b"" for number in range(5_000)}))


def overlapping(count: int, kernel: bytes) -> bytes:
    """An archive each of whose parts holds all the later ones: many times its own size, and nothing in it is compressed."""
    tail, listed = kernel, list[tuple[bytes, int, int, int]]()
    for number in range(count):
        name, crc, size = f"masks/face-{number}-0.png".encode(), zlib.crc32(tail), len(tail)
        tail = struct.pack("<4s5H3L2H", b"PK\3\4", 20, 0, 0, 0, 33, crc, size, size, len(name), 0) + name + tail
        listed.append((name, crc, size, len(tail)))
    directory = b"".join(
        struct.pack("<4s6H3L5H2L", b"PK\1\2", 788, 20, 0, 0, 0, 33, crc, size, size, len(name), 0, 0, 0, 0, 0, len(tail) - from_end) + name
        for name, crc, size, from_end in listed
    )
    return tail + directory + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, count, count, len(directory), len(tail), 0)


def test_parts_that_lie_in_each_other_are_refused_before_they_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(archive: Any, one: Any) -> bytes:
        raise AssertionError("a part was read")

    monkeypatch.setattr(zipfile.ZipFile, "read", read)
    with pytest.raises(VerifyError, match="overlap"):
        verify(overlapping(50, b"\0" * 1_000))


def test_a_long_list_of_parts_is_refused_before_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zipfile, "ZipFile", None)
    entry = struct.pack("<4s6H3L5H2L", b"PK\1\2", 788, 20, 0, 0, 0, 33, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0) + b"x"
    directory = entry * 10_000
    for end in (b"", b"PK\6\7" + b"\0" * 16):
        with pytest.raises(VerifyError, match=r"more than 4096|does not end"):
            verify(directory + end + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, len(directory), 0, 0))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_part_that_comes_twice_is_refused(exported: bytes) -> None:
    buffer = io.BytesIO(exported)
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr("verdict.json", b"{}")
    with pytest.raises(VerifyError, match="twice"):
        verify(buffer.getvalue())


@pytest.mark.parametrize("content", [b"[]", b"{}", b"\xff", b"[" * 100_000, b'{"digest": 1}'])
def test_a_manifest_that_is_none_is_refused(exported: bytes, content: bytes) -> None:
    with pytest.raises(VerifyError, match=r"manifest\.json"):
        verify(archive_of(members(exported) | {"manifest.json": content}))


def test_a_frame_that_the_verdict_has_not_is_found(exported: bytes) -> None:
    with pytest.raises(VerifyError, match="of an image"):
        verify(sealed(members(exported), frame=3))


@pytest.fixture(scope="module")
def video() -> tuple[bytes, Verdict]:
    """A clip with one frame a second, manipulated in its middle, and its verdict."""
    clip = faces_clip([50] * 4 + [215] * 4 + [50] * 4)
    pipeline = FramePipeline(PipelineLimits(), ToyAnalyzer(), toy_bundle())
    return clip, judge_video(EncodedImage(clip, uri="clip.mp4"), pipeline, options=VideoOptions())


def test_a_frame_of_a_video_is_exported_with_its_masks_alone(video: tuple[bytes, Verdict], tmp_path: Path) -> None:
    clip, verdict = video
    (tmp_path / "clip.mp4").write_bytes(clip)
    book = collect([("v:1", verdict.to_bytes())])
    desk = Desk(book, Pictures([ImageFiles([tmp_path])]), DecisionFile(tmp_path / "r.jsonl"), reviewer="ann", kept_in="r.jsonl")
    assert len(book.cases) == 12 and desk.stream(0)["hasTimes"] and len(desk.stream(0)["segments"]) == 1
    number = desk.stream(0)["segments"][0]["peakCase"]
    case = book.cases[number]
    assert case.label is Label.FAKE and case.frame is not None and desk.case(number)["noPicture"] is None
    assert desk.frame_jpeg(number) != desk.frame_jpeg(0)
    desk.decide(Choice(case=number, face=0, decision="agree"))
    name, archive = desk.export(number)
    found = verify(archive)
    assert name == f"case-{verdict.media.sha256[:12]}-frame-{case.frame}.zip" and found.manifest.frame == case.frame
    assert found.num_masks == 1 and members(archive)["media.mp4"] == clip and [review.t_ms for review in found.reviews] == [case.t_ms]
    page = members(archive)["index.html"].decode()
    assert f"Frame {case.frame} at" in page and page.count("<h3>Frame ") == 1 and "data:image/jpeg" in page


def test_a_chunk_larger_than_any_picture_is_refused_before_a_mask_is_drawn(
    video: tuple[bytes, Verdict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chunk is not decoded, so nothing but the verdict tells its size, and a few bytes are a mask of two thousand million pixels."""
    clip, verdict = video
    frame = next(seen for seen in verdict.frames or () if seen.faces)
    archive = export_case(verdict.to_bytes(), frame.index, media=clip, reviews=[], exported_by=None, exported_at=datetime(2026, 1, 1, tzinfo=UTC))
    huge = reworded(members(archive), lambda tree: tree["media"].update(width=1 << 15, height=(1 << 16) - 1))
    monkeypatch.setattr("fifa_stream.review.export._check_spans_and_masks", None)
    with pytest.raises(VerifyError, match=r"32768 x 65535 pixels, more than 33554432"):
        verify(sealed(huge))


def test_what_would_not_pass_is_not_exported(toys_of_module: Any) -> None:
    image, verdict = toys_of_module.judged(220)
    now = datetime(2026, 1, 1, tzinfo=UTC)
    with pytest.raises(VerifyError, match="not the one that the verdict speaks of"):
        export_case(verdict.to_bytes(), None, media=image + b"x", reviews=[], exported_by=None, exported_at=now)
    (face,) = verdict.faces
    moved = face.model_copy(update={"evidence": (face.evidence[0].model_copy(update={"char_span": (0, 3)}),)})
    with pytest.raises(VerifyError, match="is not its phrase"):
        broken = verdict.model_copy(update={"faces": (moved,)}).to_bytes()
        export_case(broken, None, media=image, reviews=[], exported_by=None, exported_at=now)


def test_a_picture_that_does_not_decode_is_not_exported_and_says_so(toys_of_module: Any, video: tuple[bytes, Verdict]) -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    image, verdict = toys_of_module.judged(220)
    clip, of_clip = video
    for media, told, frame in ((image[: len(image) // 2], verdict, None), (clip[: len(clip) // 2], of_clip, 5)):
        changed = told.media.model_copy(update={"sha256": hashlib.sha256(media).hexdigest()})
        with pytest.raises(VerifyError, match="the picture does not decode: "):
            export_case(told.model_copy(update={"media": changed}).to_bytes(), frame, media=media, reviews=[], exported_by=None, exported_at=now)
