"""Which faces a pack judges by, and that it is of the checkpoint it names."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from engines.acceptance import compare, judge, read_pack
from engines.analyzer import Analyzer
from engines.bundle import Bundle
from engines.contracts import Manifest
from engines.export import round_module
from engines.prompts import Vocabulary
from trainer.acceptance_pack import acceptance_pack, checkpoint_of, evenly, reference_bundle
from trainer.bundle import draft_manifest
from trainer.checkpoint import save_model
from trainer.config import tiny
from trainer.faces import Face, fit
from trainer.model import FiFaMLLM
from trainer.parts import TorchEngine, torch_engines
from trainer.tokenizer import train_tokenizer


@pytest.fixture
def dev_faces(make_face: Callable[..., Face]) -> list[Face]:
    """Two reals and two fakes to judge, two to calibrate on, and some of the parts that no pack may show."""
    rows = [(number, part, number % 2 == 0) for number, part in enumerate(("select",) * 4 + ("calibrate",) * 2 + ("report", "train") * 2)]
    return [make_face(number, dataset="ffhq_stylegan2", part=part, fake=fake) for number, part, fake in rows]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, Path]:
    """A tiny checkpoint, and a bundle of it whose parts run in torch, rounded as a bundle stores them."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(2)
    model = FiFaMLLM(tiny().model).eval()
    save_model(folder, model, tiny(), {})
    round_module(model)
    digest = sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    draft = draft_manifest(tiny().model, {}, folder, name="toy", version_="1", precision="fp16", provenance={"checkpoint_sha256": digest})
    engines = {**torch_engines(model), "face_detector": TorchEngine(nn.Identity(), (), ())}
    vocabulary = Vocabulary(train_tokenizer(["The <p> nose </p> [SEG] is too smooth."] * 5, tiny().model.vocab_size))
    table = model.language.model.embed_tokens.weight.detach().numpy()
    return Bundle(Manifest.model_validate({**draft, "digest": "0" * 64}), folder, engines, vocabulary, table), folder


def test_the_reference_sees_faces_and_regions_as_the_bundle_does(exported: tuple[Bundle, Path]) -> None:
    """Else its masks would end elsewhere, and every build would be refused."""
    bundle, checkpoint = exported
    parser = TorchEngine(nn.Identity(), (), ())
    reference = reference_bundle(
        replace(bundle, engines={**bundle.engines, "region_parser": parser}), checkpoint_of(bundle, checkpoint), rounded=True
    )
    assert reference.engines["region_parser"] is parser and reference.engines["face_detector"] is bundle.engines["face_detector"]
    assert reference.engines["encoder"] is not bundle.engines["encoder"]


def test_the_pack_accepts_the_bundle_it_was_written_for(exported: tuple[Bundle, Path], dev_faces: list[Face], tmp_path: Path) -> None:
    bundle, checkpoint = exported
    acceptance_pack(dev_faces, bundle, checkpoint_of(bundle, checkpoint), tmp_path)
    pack = read_pack(tmp_path)
    assert judge(compare(Analyzer(bundle), pack), "fp32") == []
    assert (pack.spec.num_judged, pack.spec.num_explained, pack.spec.num_calibration) == (4, 2, 2)
    assert pack.spec.counts == {"ffhq_stylegan2": (2, 2)}


def test_faces_that_are_judged_are_of_no_other_part(exported: tuple[Bundle, Path], dev_faces: list[Face], tmp_path: Path) -> None:
    acceptance_pack(dev_faces, exported[0], checkpoint_of(*exported), tmp_path)
    pack, side = read_pack(tmp_path), tiny().model.image_size
    for part, crops in (("select", pack.judged_NHWC), ("calibrate", pack.calibration_NHWC)):
        want = {fit(face.image(), side).tobytes() for face in dev_faces if face.part == part}
        assert {np.ascontiguousarray(crop).tobytes() for crop in crops} == want
    assert pack.is_fake_N.tolist() == [True, True, False, False]


def test_another_checkpoint_is_not_the_one_of_a_bundle(exported: tuple[Bundle, Path]) -> None:
    bundle, checkpoint = exported
    stated = bundle.manifest.model_copy(update={"provenance": {"checkpoint_sha256": "d" * 64}})
    with pytest.raises(ValueError, match="was exported from checkpoint dddddddddddd"):
        checkpoint_of(replace(bundle, manifest=stated), checkpoint)


@pytest.mark.parametrize("fakes", [True, False])
def test_faces_of_one_label_are_no_pack(exported: tuple[Bundle, Path], dev_faces: list[Face], tmp_path: Path, fakes: bool) -> None:
    with pytest.raises(ValueError, match="it needs reals and fakes"):
        acceptance_pack([face for face in dev_faces if face.is_fake is fakes], exported[0], checkpoint_of(*exported), tmp_path)


def test_small_sets_are_taken_whole_and_large_ones_share_the_rest(make_face: Callable[..., Face]) -> None:
    faces = [make_face(number, dataset="dfdc", fake=fake) for number in range(20) for fake in (True, False)]
    faces += [make_face(number, dataset="london") for number in range(3)]
    chosen = Counter((face.dataset, face.is_fake) for face in evenly(faces, 15))
    assert chosen == {("london", False): 3, ("dfdc", True): 6, ("dfdc", False): 6}
    assert [face.name for face in evenly(faces, 15)] == [face.name for face in evenly(faces, 15)]


def test_every_person_comes_before_anyone_comes_twice(make_face: Callable[..., Face]) -> None:
    faces = [replace(make_face(number), unit=str(number % 4)) for number in range(12)]
    assert len({face.unit for face in evenly(faces, 4)}) == 4
