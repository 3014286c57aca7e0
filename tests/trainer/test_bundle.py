"""Sealing: the manifest states what stands in the folder, and its own digest."""

from pathlib import Path

import numpy as np
import pytest

from engines.bundle import check_support, read_manifest, verify_files
from engines.contracts import PartSpec
from engines.export import file_spec
from trainer.bundle import FILES, draft_manifest, score_histogram, seal
from trainer.config import tiny
from trainer.parts import CAPACITY


def drafted(folder: Path) -> dict[str, object]:
    (folder / "encoder.onnx").write_bytes(b"graph")
    part = PartSpec(**file_spec(folder / "encoder.onnx").model_dump(), inputs=(), outputs=())
    return draft_manifest(tiny().model, {"encoder": part}, folder, name="toy", version_="1", precision="fp16", provenance={"checkpoint": "x"})


def test_a_sealed_folder_is_what_its_manifest_says(tmp_path: Path) -> None:
    for name in ("tokenizer.json", "NOTICE.txt"):
        (tmp_path / name).write_text(name)
    sealed = seal(tmp_path, drafted(tmp_path))
    assert read_manifest(tmp_path, pinned_digest=sealed.digest) == sealed
    verify_files(tmp_path, sealed)
    assert {key: spec.file for key, spec in sealed.files.items()} == {"tokenizer": "tokenizer.json", "notice": "NOTICE.txt"}
    assert set(sealed.files) <= set(FILES)


def test_sealing_again_gives_the_same_digest_until_something_changes(tmp_path: Path) -> None:
    draft = drafted(tmp_path)
    first = seal(tmp_path, draft)
    assert seal(tmp_path, draft).digest == first.digest
    assert seal(tmp_path, draft | {"score_baseline": [1.0]}).digest != first.digest
    (tmp_path / "NOTICE.txt").write_text("new")
    assert seal(tmp_path, draft).digest != first.digest


def test_a_draft_states_this_versions_conventions(tmp_path: Path) -> None:
    sealed = seal(tmp_path, drafted(tmp_path))
    with pytest.raises(Exception, match="no part box_encoder, decoder, face_detector, mask_decoder"):  # all else is supported
        check_support(sealed)
    assert sealed.decoder.capacity == CAPACITY
    assert sealed.decoder.head_dim * sealed.decoder.num_heads == sealed.decoder.width


def test_the_score_baseline_is_shares_of_twenty_bins() -> None:
    shares = score_histogram(np.array([0.0, 0.01, 0.5, 1.0]))
    assert len(shares) == 20 and sum(shares) == pytest.approx(1.0)
    assert (shares[0], shares[10], shares[19]) == (0.5, 0.25, 0.25)
    assert score_histogram(np.array([])) == [0.0] * 20
