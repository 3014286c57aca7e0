"""Training the parser: it learns, it resumes exactly, and what it is measured by is right."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from engines import fict
from engines.regions import NUM_CHANNELS
from trainer.region_parser import train
from trainer.region_parser.labels import RegionMap
from trainer.region_parser.model import RegionParser
from trainer.region_parser.train import ParserConfig, class_weights, finished_steps, load_parser, region_iou, train_parser
from trainer.samples import SIDE

CONFIG = ParserConfig(steps=4, batch=2, warmup_steps=1, save_every=2)


@pytest.fixture()
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    path = tmp_path / "labels"
    path.mkdir()
    bands = np.repeat(rng.integers(0, 112, (4, 4)).astype(np.uint8), SIDE // 4, 1)
    atoms = np.repeat(bands[:, :, None], SIDE, 2)
    np.save(path / "atoms.npy", atoms)
    np.save(path / "arcs.npy", np.full_like(atoms, 8))
    np.save(path / "crops.npy", np.repeat((atoms * 2)[..., None], 3, -1))
    (path / "labels.json").write_text(json.dumps({"faces": 4}))
    return path


def trained(folder: Path, run: Path, config: ParserConfig) -> dict[str, torch.Tensor]:
    torch.manual_seed(99)  # the run seeds itself
    train_parser(folder, run, config, [])
    return load_file(run / "parser" / "model.safetensors")


def test_a_run_that_was_cut_off_ends_as_one_that_was_not(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = trained(folder, tmp_path / "whole", CONFIG)
    seen = iter(range(100))
    computed = train.region_loss

    def cut_off(*arguments: object) -> torch.Tensor:
        if next(seen) == 3:
            raise KeyboardInterrupt
        return computed(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train, "region_loss", cut_off)
        trained(folder, tmp_path / "cut", CONFIG)
    for name, tensor in trained(folder, tmp_path / "cut", CONFIG).items():
        torch.testing.assert_close(tensor, whole[name], rtol=0, atol=0)


def test_a_few_steps_lower_the_loss(folder: Path, tmp_path: Path) -> None:
    trained(folder, tmp_path / "run", replace(CONFIG, steps=14))
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run" / "parser_metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 14 and np.mean(losses[-3:]) < np.mean(losses[:3])


def test_an_unfinished_run_has_no_parser(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="fifa-train regions"):
        load_parser(tmp_path)


def test_a_torn_parser_is_named_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "parser").mkdir()
    (tmp_path / "parser" / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(ValueError, match=r"model.safetensors holds no tensors .*; copy it again"):
        load_parser(tmp_path)
    (tmp_path / "parser" / "facts.json").write_text('{"x')
    with pytest.raises(ValueError, match=r"facts.json is no JSON .*; copy it again"):
        finished_steps(tmp_path)


def test_rare_regions_weigh_more_within_bounds() -> None:
    labels_N = np.array([0] * 900 + [1] * 90 + [2] * 10, np.uint8)
    weights = class_weights(labels_N, 4)
    assert weights[0] < weights[1] < weights[2] <= weights[3] and weights.min() >= 0.25 and weights.max() <= 4


def test_a_perfect_parser_is_measured_as_one_and_a_blind_one_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    atoms = np.zeros((SIDE, SIDE), np.uint8)
    atoms[:, SIDE // 2 :] = fict.cells(112).index("left_mid_cheek")
    truth = RegionMap(atoms, np.full((SIDE, SIDE), 8, np.uint8))
    monkeypatch.setattr(train, "region_map", lambda crop_HWC: truth)

    class Told(torch.nn.Module):
        def __init__(self, perfect: bool) -> None:
            super().__init__()
            self.perfect = perfect

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            shares = torch.zeros(1, NUM_CHANNELS, SIDE, SIDE)
            for atom in np.unique(atoms):
                shares[0, int(atom)] = torch.from_numpy(atoms == atom).float() if self.perfect else 0.0
            return shares

    class Shown:
        def image(self) -> np.ndarray:
            return np.zeros((SIDE, SIDE, 3), np.uint8)

    perfect = region_iou(Told(True), [Shown()])  # type: ignore[arg-type, list-item]
    assert {perfect[level] for level in ("part", "sub_part", "atom")} == {1.0} and perfect["error_px"] == 0
    blind = region_iou(Told(False), [Shown()])  # type: ignore[arg-type, list-item]
    assert blind["atom"] == 0


def test_truth_is_the_union_of_atoms_or_of_arcs() -> None:
    rng = np.random.default_rng(1)
    truth = RegionMap(rng.integers(0, 112, (SIDE, SIDE)).astype(np.uint8), rng.integers(0, 9, (SIDE, SIDE)).astype(np.uint8))
    names = fict.cells(112)
    np.testing.assert_array_equal(truth.region("nose"), np.isin(truth.atom_HW, [names.index(a) for a in fict.concepts()["nose"].atoms]))
    np.testing.assert_array_equal(truth.region("face_boundary"), truth.arc_HW < 8)


def test_weights_load_at_any_grid(folder: Path, tmp_path: Path) -> None:
    trained(folder, tmp_path / "run", CONFIG)
    assert isinstance(load_parser(tmp_path / "run", grid=28), RegionParser)
