"""A bundle gets a region parser: sealed again, checked like every part, and served as torch computes it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from engines.analyzer import Analyzer
from engines.bundle import open_bundle, read_manifest
from engines.contracts import MANIFEST_SCHEMA, BundleError, BundleFault
from engines.preprocess import to_model_input
from engines.regions import NUM_ATOMS, NUM_CHANNELS
from engines.sealed import write_sealed
from trainer.pipeline import REGION_MASK_CUT, add_region_parser, find_parser
from trainer.region_parser.model import RegionParser
from trainer.region_parser.train import load_parser

Crops = Callable[[int], NDArray[np.uint8]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of random weights."""
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("run")
    (folder / "parser").mkdir()
    save_file(RegionParser().state_dict(), folder / "parser" / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def seeing(sealed: Path, run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle with that parser. Read only."""
    folder = Path(shutil.copytree(sealed, tmp_path_factory.mktemp("seeing") / "bundle"))
    add_region_parser(folder, run)
    return folder


def test_the_parser_is_a_part_like_any_other(copied: Path, run: Path) -> None:
    before = read_manifest(copied)
    after = add_region_parser(copied, run)
    assert (after.schema_version, after.region_mask_cut) == (MANIFEST_SCHEMA, REGION_MASK_CUT)
    assert {name: part for name, part in after.parts.items() if name != "region_parser"} == before.parts
    assert after.provenance["region_parser_sha256"] and after.calibration == before.calibration
    (copied / "region_parser.onnx").write_bytes(b"other")
    with pytest.raises(BundleError) as refused:
        open_bundle(copied, threads=1)
    assert refused.value.fault is BundleFault.FILE_DIGEST


def test_another_bundle_gives_its_parser_away_as_it_is(copied: Path, seeing: Path, sealed: Path, run: Path) -> None:
    taken = add_region_parser(copied, seeing, version="7")
    theirs = read_manifest(seeing)
    assert taken.version == "7" and taken.parts["region_parser"] == theirs.parts["region_parser"] and taken.wording == "measured"
    assert taken.provenance["region_parser_sha256"] == theirs.provenance["region_parser_sha256"]
    open_bundle(copied, threads=1)
    with pytest.raises(ValueError, match="has no region parser"):
        add_region_parser(copied, sealed)
    (copied / "region_parser.onnx").write_bytes(b"other")
    with pytest.raises(BundleError):
        find_parser(copied)
    assert isinstance(find_parser(run), RegionParser)


def test_the_served_parser_finds_what_torch_finds(seeing: Path, run: Path, crops: Crops) -> None:
    bundle = open_bundle(seeing, threads=1)
    analyzer = Analyzer(bundle)
    found = analyzer.regions(analyzer.encode(crops(2)), [0, 1])
    parser = load_parser(run, grid=bundle.manifest.preprocess.mask_size)
    with torch.no_grad():
        wanted = parser(torch.from_numpy(to_model_input(crops(2)))).numpy()
    assert wanted.shape[1] == NUM_CHANNELS
    for row in (0, 1):
        np.testing.assert_allclose(found[row].shares_AHW, wanted[row], atol=2e-2)  # weights are stored in half precision
        np.testing.assert_allclose(found[row].shares_AHW[:NUM_ATOMS].sum(0), 1, atol=1e-4)


def test_faces_judged_together_are_judged_alone(seeing: Path, crops: Crops) -> None:
    analyzer = Analyzer(open_bundle(seeing, threads=1))
    together = analyzer.analyze(crops(3), explain=["always"] * 3, queries=["nose"] * 3)
    for row, one in enumerate(together):
        (alone,) = analyzer.analyze(crops(3)[row : row + 1], explain=["always"], queries=["nose"])
        for ours, theirs in (
            (one.explanation, alone.explanation),
            (one.answer and one.answer.explanation, alone.answer and alone.answer.explanation),
        ):
            assert ours is not None and theirs is not None and ours.markup == theirs.markup
            for a, b in zip(ours.evidence, theirs.evidence, strict=True):
                np.testing.assert_allclose(a.mask_probability_HW, b.mask_probability_HW, atol=1e-3)


def test_a_parser_of_another_grid_is_refused(seeing: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(seeing, tmp_path / "odd"))
    manifest = read_manifest(copied)
    part = manifest.parts["region_parser"]
    image, (regions,) = part.inputs, part.outputs
    odd = part.model_copy(update={"inputs": image, "outputs": (regions.model_copy(update={"shape": (*regions.shape[:2], 7, 7)}),)})
    write_sealed(copied / "manifest.json", manifest.model_copy(update={"parts": {**manifest.parts, "region_parser": odd}}))
    with pytest.raises(BundleError) as refused:
        open_bundle(copied, threads=1)
    assert refused.value.fault is BundleFault.WRONG_INTERFACE and "region_parser" in str(refused.value)


def test_a_build_gets_no_parser(copied: Path, run: Path) -> None:
    body = json.loads((copied / "manifest.json").read_text())
    manifest = read_manifest(copied)
    spec = {"source_digest": body["digest"], "precision": "fp32", "runtime_version": "1"}
    write_sealed(copied / "manifest.json", type(manifest).model_validate(body | {"build": spec}))
    with pytest.raises(BundleError, match="is a build"):
        add_region_parser(copied, run)


def test_an_engine_without_a_parser_serves(copied: Path, crops: Crops) -> None:
    analyzer = Analyzer(open_bundle(copied, threads=1))
    assert analyzer.regions(analyzer.encode(crops(1)), [0]) == {}
