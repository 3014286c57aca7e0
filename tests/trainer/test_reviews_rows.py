"""Reviewed faces as training rows: whose word counts, which masks and words are left, where they came from, and that they can be removed."""

import base64
import json
from collections.abc import Callable
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from engines.contracts import Mask
from engines.preprocess import crop_face
from engines.reviews import Review
from trainer.annotator.annotate import Annotation, Annotator, Texts, decode_mask, load_annotations, process_annotator
from trainer.dataset_adapters import open_dataset
from trainer.instruct import Recipe, instruct, subjects
from trainer.review_frames import PictureKey, RunLengths, ShownFace, face_crop, mask_in_crop, read_pictures, read_verdicts
from trainer.review_rows import Why, annotate_reviews, forget
from trainer.reviews import Reviews

MakeReview = Callable[..., Review]
BOX = (150.0, 58.0, 290.0, 200.0)


def read(*reviews: Review) -> Reviews:
    return Reviews(tuple(reviews), 0, 0, 0, "0" * 64)


class ListeningAnnotator(Annotator):
    """Keeps what it is told of fakes and says a sentence a place; needs no mesh."""

    def __init__(self) -> None:
        self.told: list[tuple[dict[str, int], int, str]] = []

    def located(self, fake_HWC: Any, places: Any, mask_HW: Any, *, forgery_type: str) -> Annotation:
        self.told.append(({name: int(place.sum()) for name, place in places.items()}, int(mask_HW.sum()), forgery_type))
        return Annotation(forgery_type, mask_HW, tuple(places), (), Texts("", ""), "refused", None if places else "no_concept", {})

    def real(self, face_HWC: Any) -> Annotation:
        return Annotation(None, np.zeros((224, 224), bool), (), (), Texts("All is well.", "Untouched."), "good", None, {})


class Seen:
    """A folder with one picture, its verdict, and reviews of it."""

    def __init__(self, folder: Path, make_review: MakeReview, image_HWC: np.ndarray) -> None:
        self.frames, self.verdicts, self.image_HWC = folder / "frames", folder / "verdicts.jsonl", image_HWC
        self.frames.mkdir()
        buffer = BytesIO()
        Image.fromarray(image_HWC).save(buffer, "PNG")
        self.encoded = buffer.getvalue()
        self.digest = sha256(self.encoded).hexdigest()
        (self.frames / f"{self.digest}.png").write_bytes(self.encoded)
        height, width = image_HWC.shape[:2]

        def mask(y0: int, y1: int, x0: int, x1: int) -> dict[str, Any]:
            mask_HW = np.zeros((height, width), bool)
            mask_HW[y0:y1, x0:x1] = True
            return {"size": [height, width], "counts": Mask.encode(mask_HW).counts}

        evidence = [
            {"id": "0.0", "concept": "mouth", "mask": mask(136, 152, 200, 246)},
            {"id": "0.1", "concept": "nose", "mask": mask(104, 132, 210, 238)},
        ]
        face = {
            "id": 0,
            "box": BOX,
            "detection_confidence": 0.9,
            "quality": {"passed": True, "roll_deg": 1.0},
            "fake_score": 0.99,
            "evidence": evidence,
        }
        self.payload = json.dumps({"id": "fifa.frames/0/1", "engine": {"manifest_sha256": "e" * 64}, "faces": [face]}).encode()
        self.verdicts.write_bytes(self.payload + b"\n")
        self._make_review = make_review

    def review(self, number: int = 1, **changed: Any) -> Review:
        told = {
            "verdict_sha256": sha256(self.payload).hexdigest(),
            "media_sha256": self.digest,
            "box": BOX,
            "stream": "cam",
            "verdict": "fifa.frames/0/1",
        }
        return self._make_review(number, **(told | changed))


@pytest.fixture
def seen(tmp_path: Path, make_review: MakeReview) -> Seen:
    rng = np.random.default_rng(0)
    return Seen(tmp_path, make_review, rng.integers(0, 255, (300, 400, 3), np.uint8))


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [row for name in ("train.jsonl", "dev.jsonl") for row in load_annotations(folder / name)]


@pytest.mark.parametrize(
    ("changes", "places", "share"),
    [
        pytest.param([{}], {"mouth", "nose"}, 1.0, id="agree"),
        pytest.param([{"decision": "wrong_place", "evidence": ("0.0",), "objected": ("mouth",)}], {"nose"}, 0.5, id="wrong-place-of-one"),
        pytest.param([{"decision": "wrong_place"}], set(), 0.0, id="wrong-place-of-all"),
        pytest.param([{"decision": "wrong_text", "evidence": ("0.1",)}], {"mouth"}, 1.0, id="wrong-text-keeps-the-mask"),
        pytest.param([{"decision": "wrong_text"}], set(), 1.0, id="wrong-text-of-all"),
        pytest.param([{}, {"reviewer": "b", "decision": "wrong_place", "objected": ("nose",)}], {"mouth"}, 0.5, id="any-objection-counts"),
        pytest.param([{"label": "real", "fake_score": 0.1, "true_forgery_type": "identity_swap"}], set(), 0.0, id="overruled-label"),
    ],
)
def test_only_phrases_that_nobody_objects_to_are_told(
    seen: Seen, tmp_path: Path, changes: list[dict[str, Any]], places: set[str], share: float
) -> None:
    annotator = ListeningAnnotator()
    reviews = read(*(seen.review(**change) for change in changes))
    made = annotate_reviews(reviews, seen.frames, tmp_path / "out", verdicts=seen.verdicts, annotator=annotator)
    assert sum(made.rows.values()) == 1
    [(told, area, kind)] = annotator.told
    assert set(told) == places and kind == "identity_swap"
    whole = ListeningAnnotator()
    annotate_reviews(read(seen.review()), seen.frames, tmp_path / "whole", verdicts=seen.verdicts, annotator=whole)
    assert (area > 0.6 * whole.told[0][1]) if share == 1 else (area == 0) if share == 0 else 0 < area < whole.told[0][1]


def test_a_face_of_two_engines_has_the_phrases_of_the_verdict_that_is_there_and_no_others(seen: Seen, tmp_path: Path) -> None:
    """Faces and phrases are counted anew in every verdict: a number of one means nothing in another."""
    other = {"engine": "a" * 64, "face": 1, "verdict_sha256": "1" * 64, "decision": "wrong_place", "evidence": ("0.0",), "objected": ("chin",)}
    annotator = ListeningAnnotator()
    annotate_reviews(read(seen.review(**other), seen.review()), seen.frames, tmp_path / "out", verdicts=seen.verdicts, annotator=annotator)
    ((places, pixels, _),) = annotator.told
    assert {*places} == {"mouth", "nose"} and pixels == sum(places.values())


def test_without_verdicts_a_fake_has_no_masks(seen: Seen, tmp_path: Path) -> None:
    annotator = ListeningAnnotator()
    made = annotate_reviews(read(seen.review()), seen.frames, tmp_path / "out", annotator=annotator)
    assert annotator.told == [({}, 0, "identity_swap")] and made.refused == {"no_concept": 1}


def test_every_row_says_where_it_came_from(seen: Seen, tmp_path: Path) -> None:
    two = seen.review(), seen.review(reviewer="grace")
    annotate_reviews(read(*two), seen.frames, tmp_path / "out", verdicts=seen.verdicts, annotator=ListeningAnnotator())
    [row] = rows_of(tmp_path / "out")
    provenance = row["review"]
    assert row["is_fake"] and row["partial"] and provenance["streams"] == ["cam"] and provenance["media_sha256"] == seen.digest
    assert provenance["type_by"] == "engine, not objected to"
    assert [one["reviewer"] for one in provenance["reviews"]] == ["ada", "grace"]
    one = provenance["reviews"][0]
    assert (one["engine"], one["verdict"], one["verdict_sha256"]) == ("e" * 64, "fifa.frames/0/1", sha256(seen.payload).hexdigest())
    assert one["decided_at"].startswith("2026-01-01")


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        pytest.param([{}, {"reviewer": "b", "truth": "real"}], Why.CONFLICT, id="conflict"),
        pytest.param([{}, {"verdict": "fifa.frames/0/7", "engine": "f" * 64, "truth": "real"}], Why.CONFLICT, id="conflict-between-engines"),
        pytest.param([{"truth": None}], Why.NOT_TOLD, id="skipped"),
        pytest.param([{"label": "inconclusive", "decision": "agree", "truth": None}], Why.NOT_TOLD, id="inconclusive"),
        pytest.param([{"label": "real"}], Why.NO_TYPE, id="missed-fake-without-type"),
        pytest.param(
            [{"true_forgery_type": "identity_swap"}, {"reviewer": "b", "true_forgery_type": "entire_synthesis"}], Why.TYPES_CONFLICT, id="types"
        ),
        pytest.param([{"face": None, "box": None}], Why.NO_FACE, id="no-face"),
        pytest.param([{"media_sha256": "9" * 64}], Why.NO_PICTURE, id="no-picture"),
        pytest.param([{"verdict_sha256": "9" * 64}], Why.OTHER_VERDICT, id="other-verdict"),
    ],
)
def test_what_gives_no_row_is_listed(seen: Seen, tmp_path: Path, changes: list[dict[str, Any]], why: Why) -> None:
    reviews = read(*(seen.review(**change) for change in changes))
    made = annotate_reviews(reviews, seen.frames, tmp_path / "out", verdicts=seen.verdicts, annotator=ListeningAnnotator())
    assert [note.why for note in made.left_out] == [why] and not made.rows
    listed = [json.loads(line) for line in (tmp_path / "out" / "left-out.jsonl").read_text().splitlines()]
    assert [note["why"] for note in listed] == [why.value] and len(listed[0]["said"]) == len(changes)


def test_a_reviewer_names_the_type_of_a_fake_that_was_missed(seen: Seen, tmp_path: Path) -> None:
    review = seen.review(label="real", true_forgery_type="entire_synthesis")
    annotate_reviews(read(review), seen.frames, tmp_path / "out", annotator=ListeningAnnotator())
    [row] = rows_of(tmp_path / "out")
    assert row["forgery_type"] == "entire_synthesis" and row["review"]["type_by"] == "reviewer"


def test_the_index_is_a_set_that_the_adapters_read(seen: Seen, tmp_path: Path) -> None:
    reviews = read(seen.review(), seen.review(2, face=1, box=(20.0, 20.0, 120.0, 120.0), truth="real", verdict="fifa.frames/0/2"))
    annotate_reviews(reviews, seen.frames, tmp_path / "out", annotator=ListeningAnnotator())
    faces = open_dataset(f"csv:{tmp_path / 'out' / 'reviews.csv'}")
    rows = rows_of(tmp_path / "out")
    assert {(face.dataset, face.name, face.part, face.is_fake) for face in faces} == {
        (row["dataset"], row["name"], row["part"], row["is_fake"]) for row in rows
    }
    assert len({face.unit for face in faces}) == 1 and "cam" not in faces[0].unit
    assert len(subjects(rows, faces, tmp_path / "out")) == 2
    fake = next(face for face in faces if face.is_fake)
    assert (fake.image() == crop_face(seen.image_HWC, BOX, None, 224).image_HWC).all()


def test_all_of_a_stream_trains_or_all_of_it_judges(tmp_path: Path, make_review: MakeReview, seen: Seen) -> None:
    reviews = []
    for number in range(40):
        content = np.full((60, 60, 3), number, np.uint8)
        cv2.imwrite(str(seen.frames / f"{number}.png"), content)
        digest = sha256((seen.frames / f"{number}.png").read_bytes()).hexdigest()
        streams = [f"cam-{number % 10}"] + (["cam-0"] if number == 11 else [])  # one picture in two streams
        told = {"truth": "real", "media_sha256": digest, "box": (0.0, 0.0, 60.0, 60.0)}
        reviews += [make_review(100 * place + number, stream=stream, **told) for place, stream in enumerate(streams)]
    made = annotate_reviews(read(*reviews), seen.frames, tmp_path / "out", annotator=ListeningAnnotator(), report_share=2)
    parts: dict[str, set[str]] = {}
    for row in rows_of(tmp_path / "out"):
        for stream in row["review"]["streams"]:
            parts.setdefault(stream, set()).add(row["part"])
    assert all(len(part) == 1 for part in parts.values()) and parts["cam-0"] == parts["cam-1"]
    assert set().union(*parts.values()) == {"train", "report"} and sum(made.rows.values()) == 40


def test_a_stream_is_forgotten_with_its_crops(tmp_path: Path, make_review: MakeReview, seen: Seen) -> None:
    reviews = [seen.review(stream="mine"), seen.review(2, stream="theirs", face=1, box=(20.0, 20.0, 120.0, 120.0), truth="real")]
    reviews += [seen.review(3, stream="mine", face=2, box=(5.0, 5.0, 60.0, 60.0), label="real")]
    out = tmp_path / "out"
    annotate_reviews(read(*reviews), seen.frames, out, annotator=ListeningAnnotator())
    assert len(list((out / "faces").iterdir())) == 2
    assert forget(out, ["mine"]) == 1
    assert [row["review"]["streams"] for row in rows_of(out)] == [["theirs"]] and len(list((out / "faces").iterdir())) == 1
    assert not any("mine" in path.read_text() for path in out.iterdir() if path.is_file())
    assert len(open_dataset(f"csv:{out / 'reviews.csv'}")) == 1
    annotate_reviews(read(reviews[0]), seen.frames, out, annotator=ListeningAnnotator())
    assert [row["review"]["streams"] for row in rows_of(out)] == [["mine"]], "the folder is written anew"
    assert len(list((out / "faces").iterdir())) == 1


def test_a_note_on_a_picture_of_two_streams_is_forgotten_with_either(tmp_path: Path, seen: Seen) -> None:
    told = [seen.review(stream="mine"), seen.review(verdict="fifa.frames/1/1", stream="theirs", truth="real")]
    for stream in ("mine", "theirs"):
        made = annotate_reviews(read(*told), seen.frames, tmp_path / stream, annotator=ListeningAnnotator())
        assert [note.why for note in made.left_out] == [Why.CONFLICT]
        assert forget(tmp_path / stream, [stream]) == 0 and (tmp_path / stream / "left-out.jsonl").read_text() == ""


def test_a_folder_that_was_not_made_of_reviews_is_left_alone(tmp_path: Path, seen: Seen) -> None:
    annotate_reviews(read(seen.review()), seen.frames, tmp_path, annotator=ListeningAnnotator())
    row = json.loads((tmp_path / "train.jsonl").read_text() + (tmp_path / "dev.jsonl").read_text())
    (tmp_path / "train.jsonl").write_text(json.dumps({name: value for name, value in row.items() if name != "review"}) + "\n")
    with pytest.raises(ValueError, match="was not made of reviews"):
        forget(tmp_path, ["cam"])
    (tmp_path / "left-out.jsonl").unlink()
    with pytest.raises(ValueError, match="was not made of reviews"):
        forget(tmp_path, ["cam"])
    assert len(list((tmp_path / "faces").iterdir())) == 1


# --- Pictures and verdicts --------------------------------------------------------------------------------------------------------------------


def test_pictures_are_found_by_digest_in_folders_and_recordings(seen: Seen, tmp_path: Path) -> None:
    wanted = [PictureKey(seen.digest, None)]
    (seen.frames / f"{seen.digest}.png").rename(seen.frames / "holiday.png")
    [(key, image_HWC)] = read_pictures(seen.frames, wanted)
    assert key == wanted[0] and (image_HWC == seen.image_HWC).all()
    recording = tmp_path / "frames.jsonl"
    record = {
        "topic": "t",
        "partition": 0,
        "offset": 1,
        "timestamp_ms": 0,
        "key": None,
        "headers": [],
        "value": base64.b64encode(seen.encoded).decode(),
    }
    recording.write_text("".join(json.dumps(line) + "\n" for line in (record | {"value": None}, {"reason": "x", "record": None}, record, record)))
    [(_, image_HWC)] = read_pictures(recording, wanted)
    assert (image_HWC == seen.image_HWC).all()


def test_a_still_of_a_chunk_is_named_by_its_frame(seen: Seen) -> None:
    (seen.frames / f"{'c' * 64}-12.png").write_bytes(seen.encoded)
    assert [key for key, _ in read_pictures(seen.frames, [PictureKey("c" * 64, 12)])] == [("c" * 64, 12)]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        pytest.param(f"{'9' * 64}.png", b"other", "not what its name says", id="other-digest"),
        pytest.param(f"{'c' * 64}-1.png", b"no picture", "no readable picture", id="no-picture"),
    ],
)
def test_a_picture_that_cannot_be_used_is_named(seen: Seen, name: str, content: bytes, words: str) -> None:
    (seen.frames / name).write_bytes(content)
    with pytest.raises(ValueError, match=words):
        list(read_pictures(seen.frames, [PictureKey("c" * 64, 1)]))


def test_verdicts_are_read_plain_and_recorded_with_the_digest_of_their_bytes(seen: Seen, tmp_path: Path) -> None:
    [plain] = read_verdicts(seen.verdicts)
    (tmp_path / "recorded").write_text(json.dumps({"value": base64.b64encode(seen.payload).decode()}))
    [recorded] = read_verdicts(tmp_path / "recorded")
    assert plain == recorded and plain.sha256 == sha256(seen.payload).hexdigest() and set(plain.faces) == {(None, 0)}
    (tmp_path / "broken").write_text('{"id": 1}')
    with pytest.raises(ValueError, match="line 1: id"):
        list(read_verdicts(tmp_path / "broken"))
    with pytest.raises(FileNotFoundError, match="verdicts"):
        list(read_verdicts(tmp_path / "none"))


@given(x=st.integers(0, 300), y=st.integers(0, 200), side=st.integers(60, 200), roll=st.sampled_from([None, 0.0, 20.0, -30.0]))
def test_a_mask_goes_into_the_crop_as_the_picture_does(x: int, y: int, side: int, roll: float | None) -> None:
    """A white patch on black is where its mask is, whatever the box and the turn of the face."""
    image_HWC = np.zeros((300, 400, 3), np.uint8)
    image_HWC[100:180, 150:260] = 255
    mask = Mask.encode(image_HWC[..., 0] > 0)
    shown = {"id": 0, "box": (0, 0, 1, 1), "detection_confidence": 1.0, "quality": {"passed": True, "roll_deg": roll}, "fake_score": 1}
    crop = face_crop(image_HWC, (float(x), float(y), float(x + side), float(y + side)), ShownFace.model_validate(shown))
    found_HW = mask_in_crop(RunLengths(size=mask.size_hw, counts=mask.counts), crop, (300, 400))
    lit_HW = crop.image_HWC[..., 0] >= 128
    border = cv2.dilate(lit_HW.astype(np.uint8), np.ones((7, 7))) - cv2.erode(lit_HW.astype(np.uint8), np.ones((7, 7)))
    assert not (found_HW ^ lit_HW)[border == 0].any()


def test_a_mask_of_another_picture_is_refused() -> None:
    with pytest.raises(ValueError, match="do not belong together"):
        mask_in_crop(RunLengths(size=(3, 3), counts="9"), crop_face(np.zeros((50, 50, 3), np.uint8), (0.0, 0.0, 40.0, 40.0), None, 224), (50, 50))
    longer, shorter = (Mask.encode(np.ones((side, side), bool)).counts for side in (400, 4))
    for counts in (longer, shorter, "", "~~"):  # those that are too short would leave the rest of the mask to what memory held before
        with pytest.raises(ValueError, match="none of a mask"):
            mask_in_crop(
                RunLengths(size=(50, 50), counts=counts), crop_face(np.zeros((50, 50, 3), np.uint8), (0.0, 0.0, 40.0, 40.0), None, 224), (50, 50)
            )


# --- With the annotator -----------------------------------------------------------------------------------------------------------------------


def test_a_reviewed_fake_is_asked_about_where_it_is_known_and_nowhere_else(tmp_path: Path, make_review: MakeReview) -> None:
    pytest.importorskip("ai_edge_litert", reason="the annotator needs the annotate extra (ai-edge-litert)")
    image_HWC = np.ascontiguousarray(pytest.importorskip("skimage.data").astronaut()[:300, :400])  # NASA, public domain
    image_HWC[136:152, 200:246] = cv2.GaussianBlur(image_HWC[136:152, 200:246], (0, 0), 3) // 2
    seen = Seen(tmp_path, make_review, image_HWC)
    out = tmp_path / "out"
    annotate_reviews(read(seen.review(decision="wrong_text", evidence=("0.1",))), seen.frames, out, verdicts=seen.verdicts)
    [row] = rows_of(out)
    assert row["refused"] is None and [concept["concept"] for concept in row["concepts"]] == ["mouth"]
    assert row["markup"].count("[SEG]") == row["held_out"].count("[SEG]") == 1 and "nose" not in row["text"].lower().split(" than ")[0]
    assert decode_mask(row["mask"]).sum() > decode_mask(row["concepts"][0]["mask"]).sum(), "the mask of the unworded phrase is kept"
    [subject] = subjects([row], open_dataset(f"csv:{out / 'reviews.csv'}"), out)
    samples = instruct(subject, Recipe(queries=3), process_annotator())
    assert {"det", "cls", "toe", "age"} <= {sample.task for sample in samples}
    assert not any(sample.task == "loc" and sample.level == "image" for sample in samples), "the whole of it is not known"
    assert all(sample.tampered for sample in samples), "nothing is called clean that nobody looked at"


def test_a_face_that_people_call_real_gets_a_clean_answer(tmp_path: Path, make_review: MakeReview) -> None:
    pytest.importorskip("ai_edge_litert", reason="the annotator needs the annotate extra (ai-edge-litert)")
    seen = Seen(tmp_path, make_review, np.ascontiguousarray(pytest.importorskip("skimage.data").astronaut()[:300, :400]))
    annotate_reviews(read(seen.review(truth="real")), seen.frames, tmp_path / "out", verdicts=seen.verdicts)
    [row] = rows_of(tmp_path / "out")
    assert not row["is_fake"] and row["refused"] is None and not decode_mask(row["mask"]).any() and "[SEG]" not in row["markup"]
    assert row["text"] and "partial" not in row
