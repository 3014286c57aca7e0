"""The acceptance pack: read whole or refused by name, and an engine judged by it."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from engines.acceptance import (
    BARS,
    MAX_CROPS,
    PACK_NAME,
    AcceptanceError,
    AcceptanceFault,
    AcceptancePack,
    auc,
    compare,
    judge,
    mean_iou,
    observe,
    read_pack,
    write_pack,
)
from engines.analyzer import Analyzer
from engines.bundle import Bundle, file_spec
from engines.contracts import Precision, canonical_digest
from engines.prompts import Vocabulary

ANSWER = "The face is changed. The <p> left lower cheek </p> [SEG] is too smooth."
CHECKPOINT = "c" * 64


@pytest.fixture(scope="session")
def of_checkpoint(reference: Bundle, served: Bundle) -> tuple[Analyzer, Analyzer]:
    """The torch reference and the exported bundle, both stating their checkpoint."""
    stated = served.manifest.model_copy(update={"provenance": {"checkpoint_sha256": CHECKPOINT}})
    return Analyzer(replace(reference, manifest=stated)), Analyzer(replace(served, manifest=stated))


@pytest.fixture(scope="session")
def written(of_checkpoint: tuple[Analyzer, Analyzer], crops: Callable[[int], np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pack of 6 judged crops, the first 3 of them fakes and 2 explained, and one to calibrate on. Read only."""
    folder = tmp_path_factory.mktemp("pack")
    images = crops(7)
    write_pack(
        folder,
        judged_NHWC=images[:6],
        is_fake_N=np.arange(6) < 3,
        calibration_NHWC=images[6:],
        reference=observe(of_checkpoint[0], images[:6], explained=2),
        about={
            "checkpoint_sha256": CHECKPOINT, "stored": "fp16", "parts": {"judged": "select", "calibration": "calibrate"},
            "counts": {"toy": (3, 3)}, "names": [f"{number:064x}" for number in range(7)],
        },
    )  # fmt: skip
    return folder


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    """A copy of the pack to damage."""
    for file in written.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def restate(folder: Path, **changed: Any) -> None:
    """Change fields of `pack.json`, its digest with them."""
    body = {**json.loads((folder / PACK_NAME).read_text()), **changed}
    body["files"] = {name: file_spec(folder / f"{name}.safetensors").model_dump() for name in ("crops", "reference")}
    body["digest"] = canonical_digest(body)
    (folder / PACK_NAME).write_text(json.dumps(body))


def refused(folder: Path) -> AcceptanceError:
    with pytest.raises(AcceptanceError) as caught:
        read_pack(folder)
    assert "\n" not in str(caught.value) and "fifa-train export --acceptance" in str(caught.value)
    return caught.value


def test_a_pack_returns_every_pixel_and_every_answer(
    written: Path, of_checkpoint: tuple[Analyzer, Analyzer], crops: Callable[[int], np.ndarray]
) -> None:
    pack = read_pack(written)
    expected = observe(of_checkpoint[0], crops(7)[:6], explained=2)
    np.testing.assert_array_equal(np.concatenate([pack.judged_NHWC, pack.calibration_NHWC]), crops(7))
    np.testing.assert_array_equal(pack.reference.raw_N, expected.raw_N)
    np.testing.assert_array_equal(pack.reference.maps_NHW, expected.maps_NHW)
    assert pack.reference.token_ids == expected.token_ids
    assert [len(masks) for masks in pack.reference.masks] == [len(masks) for masks in expected.masks]
    assert pack.spec.counts == {"toy": (3, 3)}


def test_the_exported_bundle_is_accepted_as_fp32(written: Path, of_checkpoint: tuple[Analyzer, Analyzer]) -> None:
    found = compare(of_checkpoint[1], read_pack(written))
    assert judge(found, "fp32") == []
    assert (found["faces"], found["explained"], found["auc_drop"]) == (6, 2, 0)


def test_masks_are_compared_behind_the_references_text_whatever_the_engine_says(
    written: Path, of_checkpoint: tuple[Analyzer, Analyzer], vocabulary: Vocabulary
) -> None:
    pack = read_pack(written)
    text = tuple(vocabulary.tokenizer.encode(ANSWER).ids)
    masks = observe(of_checkpoint[0], pack.judged_NHWC, explained=2, texts=[text, text]).masks
    assert [len(of_face) for of_face in masks] == [1, 1]
    found = compare(of_checkpoint[1], replace(pack, reference=replace(pack.reference, token_ids=(text, text), masks=masks)))
    assert found["masks"] == 2 and found["mask_iou"] >= 0.999
    assert found["token_agreement"] == 0


def test_an_engine_whose_scores_moved_is_told_by_how_much(written: Path, of_checkpoint: tuple[Analyzer, Analyzer]) -> None:
    pack = read_pack(written)
    moved = replace(pack, reference=replace(pack.reference, raw_N=pack.reference.raw_N + np.float32(0.5), maps_NHW=~pack.reference.maps_NHW))
    failed = judge(compare(of_checkpoint[1], moved), "fp32")
    assert [sentence.split()[0] for sentence in failed] == ["max_score_difference", "map_iou"]
    assert "map_iou is 0, a build of fp32 needs at least 0.999" in failed


def test_a_pack_of_another_checkpoint_is_refused_before_anything_runs(written: Path, served: Bundle) -> None:
    with pytest.raises(AcceptanceError, match=r"checkpoint cccccccccccc stored in fp16.*checkpoint unknown") as caught:
        compare(Analyzer(replace(served, engines={})), read_pack(written))
    assert caught.value.fault == AcceptanceFault.OTHER_CHECKPOINT


@pytest.mark.parametrize("name", [PACK_NAME, "crops.safetensors", "reference.safetensors"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    error = refused(folder)
    assert error.fault == AcceptanceFault.MISSING_FILE and name in str(error)


@pytest.mark.parametrize("name", ["crops.safetensors", "reference.safetensors"])
def test_one_flipped_bit_is_refused(folder: Path, name: str) -> None:
    content = bytearray((folder / name).read_bytes())
    content[-1] ^= 1
    (folder / name).write_bytes(content)
    assert refused(folder).fault == AcceptanceFault.FILE_DIGEST


def test_a_changed_count_is_refused(folder: Path) -> None:
    path = folder / PACK_NAME
    path.write_text(path.read_text().replace('"num_judged": 6', '"num_judged": 5'))
    assert refused(folder).fault == AcceptanceFault.PACK_DIGEST


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff", b"[" * 100_000], ids=["cut", "list", "no utf-8", "deep"])
def test_what_is_no_json_object_is_unreadable(folder: Path, content: bytes) -> None:
    (folder / PACK_NAME).write_bytes(content)
    assert refused(folder).fault == AcceptanceFault.UNREADABLE_PACK


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param({"num_judged": 5}, id="a judged crop fewer"),
        pytest.param({"num_calibration": MAX_CROPS}, id="too many crops"),
        pytest.param({"num_explained": 7}, id="more explained than judged"),
        pytest.param({"num_explained": 4}, id="a real one explained"),
        pytest.param({"image_size": 32}, id="another size"),
        pytest.param({"grid": 3}, id="another grid"),
        pytest.param({"names": ["0" * 64] * 6}, id="a crop without a name"),
    ],
)
def test_arrays_that_are_not_what_the_pack_states_are_refused(folder: Path, changed: dict[str, Any]) -> None:
    restate(folder, **changed)
    assert refused(folder).fault == AcceptanceFault.WRONG_CONTENT


def test_unknown_fields_are_refused(folder: Path) -> None:
    restate(folder, extra=1)
    error = refused(folder)
    assert error.fault == AcceptanceFault.UNREADABLE_PACK and "extra" in str(error)


@pytest.mark.parametrize(
    ("file", "tensor", "content"),
    [
        pytest.param("crops", "ends", np.arange(7, dtype=np.int64), id="crops cut elsewhere"),
        pytest.param("crops", "ends", np.arange(7, 0, -1, dtype=np.int64), id="falling ends"),
        pytest.param("crops", "is_fake", np.ones(6, bool), id="no reals"),
        pytest.param("reference", "raw_score", np.zeros(6, np.float64), id="another dtype"),
        pytest.param("reference", "masks", np.zeros((0, 8, 8), bool), id="masks of another size"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(folder: Path, file: str, tensor: str, content: np.ndarray) -> None:
    path = folder / f"{file}.safetensors"
    save_file(load_file(path) | {tensor: content}, path)
    restate(folder)
    assert refused(folder).fault == AcceptanceFault.WRONG_CONTENT


def test_a_crop_that_is_no_image_is_refused(folder: Path) -> None:
    path = folder / "crops.safetensors"
    tensors = load_file(path)
    save_file(tensors | {"webp": np.zeros_like(tensors["webp"])}, path)
    restate(folder)
    assert "no WebP" in str(refused(folder))


def test_the_same_pack_is_written_twice_with_the_same_digest(written: Path, tmp_path: Path) -> None:
    pack: AcceptancePack = read_pack(written)
    about = {key: getattr(pack.spec, key) for key in ("checkpoint_sha256", "stored", "parts", "counts", "names")}
    again = write_pack(
        tmp_path,
        judged_NHWC=pack.judged_NHWC, is_fake_N=pack.is_fake_N, calibration_NHWC=pack.calibration_NHWC, reference=pack.reference, about=about,
    )  # fmt: skip
    assert again == pack.spec


def test_every_precision_has_bars_and_nan_reaches_none() -> None:
    assert set(BARS) == set(get_args(Precision))
    for precision, bars in BARS.items():
        assert len(judge(dict.fromkeys(bars, float("nan")), precision)) == len(bars) > 0
    assert judge({"auc_drop": 0.002, "map_iou": 0.97, "mask_iou": 0.97}, "int8") == []


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), min_size=2).filter(lambda rows: len({fake for fake, _ in rows}) == 2))
def test_auc_is_the_share_of_pairs_in_order(rows: list[tuple[bool, int]]) -> None:
    fakes, reals = ([score for fake, score in rows if fake is side] for side in (True, False))
    share = np.mean([(fake > real) + 0.5 * (fake == real) for fake in fakes for real in reals])
    assert auc(np.array([fake for fake, _ in rows]), np.array([float(score) for _, score in rows])) == pytest.approx(share)


def test_overlap_counts_only_pairs_that_mark_anything() -> None:
    nothing, half, whole = np.zeros((2, 2), bool), np.eye(2, dtype=bool), np.ones((2, 2), bool)
    assert mean_iou(np.stack([nothing, half]), np.stack([nothing, whole])) == 0.5
    assert mean_iou(np.stack([nothing]), np.stack([nothing])) == 1.0
    assert mean_iou(np.stack([nothing, half]), np.stack([half, half])) == 0.5
