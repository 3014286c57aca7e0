"""The card says what was measured, and keeps what can no longer be."""

import json
from pathlib import Path

from engines.bundle import read_manifest
from engines.contracts import MANIFEST_SCHEMA, PartSpec, canonical_digest
from engines.export import file_spec
from trainer.bundle import draft_manifest, seal
from trainer.card import flatten, write_card
from trainer.config import tiny

TABLES = {"detection": {"dfdc": {"auc": 0.91, "auc_low": 0.86, "auc_high": 0.94}}, "curves": {"roc": {"dfdc": {"fpr": [0.0], "tpr": [1.0]}}}}


def _sealed(folder: Path) -> None:
    (folder / "encoder.onnx").write_bytes(b"graph")
    part = PartSpec(**file_spec(folder / "encoder.onnx").model_dump(), inputs=(), outputs=())
    draft = draft_manifest(tiny().model, {"encoder": part}, folder, name="toy", version_="1", precision="fp16", provenance={"checkpoint": "x"})
    seal(folder, draft)


def test_figures_go_into_card_and_manifest_without_curves_and_bounds(tmp_path: Path) -> None:
    _sealed(tmp_path)
    manifest = write_card(tmp_path, TABLES)
    assert manifest.metrics == {"detection.dfdc.auc": 0.91}
    assert "0.910 (0.860 to 0.940)" in (tmp_path / "MODEL_CARD.md").read_text()


def test_the_card_shows_where_an_answer_that_never_looks_is_better(tmp_path: Path) -> None:
    _sealed(tmp_path)
    lead = {"age_miou": {"engine": 0.203, "constant": 0.25, "lead": -0.047}, "auc_dfdc": {"engine": 0.91, "constant": 0.5, "lead": 0.41}}
    manifest = write_card(tmp_path, TABLES | {"lead over the constant, least first": lead})
    card = (tmp_path / "MODEL_CARD.md").read_text()
    assert card.index("| age_miou | 0.203 | 0.250 | -0.047 |") < card.index("| auc_dfdc | 0.910 | 0.500 | 0.410 |")
    assert manifest.metrics == {"detection.dfdc.auc": 0.91}


def test_parity_outlives_its_checkpoint_until_it_is_measured_again(tmp_path: Path) -> None:
    _sealed(tmp_path)
    write_card(tmp_path, TABLES | {"parity": {"against torch, as stored": {"max_score_difference": 1e-6}}})
    again = write_card(tmp_path, TABLES)
    assert 1e-6 in again.metrics.values() and "measured at export" in (tmp_path / "MODEL_CARD.md").read_text()
    third = write_card(tmp_path, TABLES)
    assert third.metrics == again.metrics
    fresh = write_card(tmp_path, TABLES | {"parity": {"against torch, as stored": {"max_score_difference": 2e-6}}})
    assert 1e-6 not in fresh.metrics.values() and 2e-6 in fresh.metrics.values()


def test_how_areas_were_asked_is_sealed_with_the_figures(tmp_path: Path) -> None:
    _sealed(tmp_path)
    for asked, stated in ((False, False), (None, False), (True, True), (None, True)):
        assert write_card(tmp_path, TABLES, mirrored_regions=asked).mirrored_regions is stated
        assert read_manifest(tmp_path).mirrored_regions is stated
        assert ("mirror image" in (tmp_path / "MODEL_CARD.md").read_text()) is stated


def test_whose_words_were_measured_is_sealed_with_the_figures(tmp_path: Path) -> None:
    _sealed(tmp_path)
    for asked, stated in (("decoded", "decoded"), (None, "decoded"), ("measured", "measured"), (None, "measured")):
        assert write_card(tmp_path, TABLES, wording=asked).wording == read_manifest(tmp_path).wording == stated
        assert ("measurement against the surroundings" in (tmp_path / "MODEL_CARD.md").read_text()) is (stated == "measured")


def test_a_bundle_of_before_the_mirror_answers_from_the_crop_alone(tmp_path: Path) -> None:
    _sealed(tmp_path)
    body = json.loads((tmp_path / "manifest.json").read_text())
    del body["mirrored_regions"]
    body |= {"schema_version": "1.2"}
    (tmp_path / "manifest.json").write_text(json.dumps(body | {"digest": canonical_digest(body)}))
    assert not read_manifest(tmp_path).mirrored_regions
    told = write_card(tmp_path, TABLES, mirrored_regions=True)
    assert (told.schema_version, told.mirrored_regions) == (MANIFEST_SCHEMA, True)


def test_tables_become_one_level_of_names() -> None:
    assert flatten({"A b": {"c": {"d": 1.0}}}) == {"a_b.c.d": 1.0}
