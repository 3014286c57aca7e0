"""The card of a folder of instruction data, and its pages of examples."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines import fict
from trainer import shards
from trainer.dataset_card import write_dataset_card
from trainer.dataset_examples import PALETTE, Examples, draw, markup_html
from trainer.faces import Face
from trainer.instruct import Recipe, Subject
from trainer.samples import Sample
from trainer.shards import read_manifest, read_shards, write_instructions


@pytest.fixture
def folder(
    make_face: Callable[..., Face], annotation_row: Callable[..., dict[str, Any]], grid_annotator: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> Path:  # fmt: skip
    """Four pairs of two sets with probes, one name that wants to be markup."""
    monkeypatch.setattr(shards, "process_annotator", grid_annotator)
    fakes = [make_face(number, dataset=dataset, fake=True) for number in range(3) for dataset in ("dfdc", "stargan")]
    faces = [*fakes, make_face(7), replace(make_face(8), name="<script>alert(1)</script>.png")]
    asked = [Subject(face, None, annotation_row(face)) for face in faces]
    write_instructions(asked, tmp_path, Recipe(queries=2, shuffled_queries=1.0))
    return tmp_path


def test_the_card_counts_what_is_there(folder: Path) -> None:
    write_dataset_card(folder)
    card = (folder / "card.md").read_text()
    samples = [sample for _, found in read_shards(folder) for sample in found]

    def count(task: str, level: str, tampered: bool) -> int:
        return sum((s.task, s.level, s.tampered, s.probe) == (task, level, tampered, None) for s in samples)

    for task, level in (("det", "image"), ("loc", "region"), ("age", "box")):
        probes = sum((s.task, s.level) == (task, level) and s.probe is not None for s in samples)
        assert f"| {task} / {level} | {count(task, level, True)} | {count(task, level, False)} | {probes} |" in card
    tampered, clean = (sum(s.level == "box" and s.task == "age" and s.forgery_type == "swap" and s.tampered is state and not s.probe for s in samples)
                       for state in (True, False))  # fmt: skip
    assert f"| box | swap | {tampered} | {clean} | {clean / (tampered + clean):.3f} |" in card
    states: dict[str, list[bool]] = {}
    for sample in samples:
        if sample.task == "age" and sample.concept is not None and not sample.probe:
            states.setdefault(fict.concepts()[sample.concept].path[1], []).append(sample.tampered)
    guessed = sum(max(sum(found), len(found) - sum(found)) for found in states.values()) / sum(map(len, states.values()))
    assert f"| region | right by guessing from the asked part of the face alone |  |  | {guessed:.3f} |" in card
    assert f"{len(samples)} questions about 8 faces" in card and sum(read_manifest(folder).counts.values()) == len(samples)
    assert all((folder / "card" / f"{name}.png").read_bytes().startswith(b"\x89PNG") for name in ("families", "concepts"))


def test_nothing_of_the_data_is_markup_of_the_page(folder: Path) -> None:
    write_dataset_card(folder)
    page = (folder / "card.html").read_text()
    assert "<script" not in page and "&lt;script&gt;alert(1)" in page
    assert not re.findall(r"(?:src|href)='(?!data:image/)", page)  # the page holds all it shows


def test_the_same_folder_gives_the_same_card(folder: Path) -> None:
    def card() -> list[bytes]:
        write_dataset_card(folder)
        return [path.read_bytes() for path in (folder / "card.md", folder / "card.html", *sorted((folder / "card").iterdir()))]

    assert card() == card()


def test_examples_take_one_of_each_family_in_turn_whatever_the_order(folder: Path) -> None:
    faces = list(read_shards(folder))

    def chosen(count: int, order: list[tuple[np.ndarray, list[Sample]]]) -> list[str]:
        examples = Examples(count)
        for image_HWC, samples in order:
            examples.offer(image_HWC, samples)
        return [f"{samples[0].dataset}/{samples[0].name}" for _, samples in examples.chosen()]

    assert chosen(3, faces) == chosen(3, faces[::-1])
    assert {name.partition("/")[0] for name in chosen(3, faces)} == {"dfdc", "ffhq_stylegan2", "stargan"}
    assert len(chosen(50, faces)) == 8


def test_faces_without_an_explanation_are_no_examples(make_face: Callable[..., Face]) -> None:
    examples = Examples(2)
    det = Sample(
        id="a#det", dataset="a", name="a", unit="a", task="det", prompt="?", answer="real [DET]", is_fake=False, forgery_type=None, tampered=False
    )
    examples.offer(np.zeros((224, 224, 3), np.uint8), [det])
    assert examples.chosen() == []


def test_phrases_stand_on_the_colour_of_their_mask(folder: Path) -> None:
    shown = markup_html("The <p> nose </p> [SEG] & the <p> chin </p> [SEG] <b>.")
    colors = ["({}, {}, {})".format(*color) for color in PALETTE[:2]]
    assert (
        shown == f"The <mark style='background:rgb{colors[0]}'>nose</mark> &amp; the <mark style='background:rgb{colors[1]}'>chin</mark> &lt;b&gt;."
    )
    image_HWC, samples = next((image, found) for image, found in read_shards(folder) if found[0].is_fake)
    sample = next(sample for sample in samples if sample.task == "loc" and sample.level == "region" and sample.tampered)
    assert sample.area is not None
    drawn = draw(np.zeros_like(image_HWC), sample)
    mask_HW, area_HW = (np.kron(rle.decode(), np.ones((2, 2), bool)) for rle in (sample.masks[0].rle, sample.area))
    assert not drawn[~(mask_HW | area_HW) & ~_near(mask_HW | area_HW)].any()
    inside = mask_HW & ~_near(~mask_HW) & ~_near(~area_HW)
    assert inside.any() and (drawn[inside] == np.round(np.array(PALETTE[0]) * 0.25)).all()
    assert (drawn == 255).all(-1).any()  # the asked area's outline


def _near(mask_HW: np.ndarray) -> np.ndarray:
    """Within three pixels."""
    grown = mask_HW.copy()
    for dy in range(-3, 4):
        for dx in range(-3, 4):
            grown |= np.roll(mask_HW, (dy, dx), (0, 1))
    return grown
