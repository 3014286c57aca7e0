"""Output files of other systems as predictions, so that they are scored by the same metrics: GLaMM, SIDA, FakeShield, FFAA.

These systems answer about whole images. Run them on the crops of a split, each saved as `image_stem(sample)` + '.png' (one file a face); their answer
then counts for every image-level task they offer. Region and box queries stay unanswered.

What was read, and what is assumed where a system writes no file of its own:

- GLaMM (mbzuai-oryx/groundingLMM, eval/gcg/infer.py @b848f39, evaluate.py @dd7ad1a): one JSON file an image {image_id, caption, phrases, pred_masks},
  masks in COCO run lengths; its evaluation also accepts the same under one outer key. No mask has a score: confidence stays 1.
- SIDA (hzlsaber/SIDA could not be opened at any commit: a modified chat.py and README copies in other repositories were read): text and class are
  only printed, masks are saved as <stem>_mask_<i>.jpg with grey 0 or 100. ASSUMED: the printed text is kept as JSON lines {image,
  text_output}, `image` a path; optional `class` (real, synthetic, tampered). Only the best class is known, so the score is 0 or 1.
- FakeShield (zhipeixu/FakeShield: playground/DTE-FDM_output.jsonl and MFLM/test.py @de40a5f, DTE-FDM/llava/eval/model_vqa.py @35cc4d9): JSON lines
  {image, outputs} (at the other commit `text`), masks as files of the image's own name, white on black. Its verdict is a substring: "has not been
  tampered with". No score: 0 or 1.
- FFAA (thu-huangzc/FFAA @253b20e: eval.py, eval_llava.py, utils/file_utils.py, mids/selector.py): JSON lines {id, content, "match score"} between
  lines of running totals, which are skipped; `content` has one 'Field: value' a line. The forgery score is the match score of a fake verdict and one
  minus that of a real one; without a match score (eval_llava.py), 0 or 1. No masks. ASSUMED: the words of 'Forgery type' (its data set is not
  public); types are recognised by `FFAA_TYPES`.

Masks at other sizes are resized to 224 px by nearest neighbour. Phrases become FICT concepts by `concept_of`.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from engines import fict
from trainer.samples import SIDE, PredictedMask, Prediction, Rle, Sample

SIDA_MASK_GREY = 50
"""SIDA writes masks as JPEG with 0 and 100."""
WHITE_MASK_GREY = 127
MAX_PIXELS = 64_000_000
"""Larger masks are refused: no image of these systems is, and a wrong header could fill the memory."""
_SIDA_DENIED = re.compile(r"(?:\b(?:not|never|neither|nor|without)|n't)\s+(?:\w+\s+){0,2}(?:tampered|synthetic|real)\b")
FAKESHIELD_REAL = "has not been tampered with"
FFAA_FIELDS = ("Image description", "Forgery reasoning", "Analysis result", "Probability", "Forgery type")
FFAA_TYPES = (
    ("expression_swap", ("expression", "reenact")),
    ("attribute_manipulation", ("attribute", "edit")),
    ("entire_synthesis", ("synthe", "generat", "entire")),
    ("identity_swap", ("identity", "swap", "deepfake")),
)
"""Type -> words in lower case; the first that fits, so that 'expression swap' is not read as a swap of identity."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a system said of one image; None for what it does not offer."""

    text: str | None = None
    fake_score: float | None = None
    type_probs: dict[str, float] | None = None
    masks: tuple[PredictedMask, ...] | None = field(default=None)


def image_stem(sample: Sample) -> str:
    """File name without suffix under which a sample's face is handed to another system: safe for every file system, the same for all its tasks."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", f"{sample.dataset}__{sample.name}")


def glamm(samples: Iterable[Sample], folder: Path) -> list[Prediction]:
    """Predictions from a folder of GLaMM's GCG files. Raises ValueError for a file of another shape, FileNotFoundError without any file."""
    answers: dict[str, Answer] = {}
    files = sorted(folder.glob("*.json"))
    if not files:
        raise FileNotFoundError(f"{folder} holds no .json file; give the --output_dir of GLaMM's eval/gcg/infer.py")
    for path in files:
        row = _object(path.read_text(encoding="utf-8"), str(path))
        if len(row) == 1 and isinstance(inner := next(iter(row.values())), dict):
            row = inner
        caption, phrases, masks = (_field(row, key, kind, str(path)) for key, kind in (("caption", str), ("phrases", list), ("pred_masks", list)))
        if len(phrases) < len(masks):
            raise ValueError(f"{path}: {len(masks)} masks but {len(phrases)} phrases; each mask needs its phrase")
        shown = tuple(_predicted_mask(_from_rle(rle, str(path)), str(phrase)) for rle, phrase in zip(masks, phrases, strict=False))
        answers[path.stem] = Answer(text=caption, masks=shown)
    return _predictions(samples, answers, str(folder))


def sida(samples: Iterable[Sample], file: Path, masks: Path) -> list[Prediction]:
    """Predictions from SIDA's printed answers, kept as JSON lines, and its folder of masks. Raises ValueError naming the line that does not fit."""
    answers: dict[str, Answer] = {}
    for where, row in _lines(file):
        image, text = (_field(row, key, str, where) for key in ("image", "text_output"))
        stem = _stem(image)
        verdict = _sida_class(str(row.get("class", "")) or text, where)
        shown = [_from_image(path, SIDA_MASK_GREY) for path in sorted(masks.glob(f"{_no_wildcards(stem)}_mask_*"))] if verdict == "tampered" else []
        plain = re.sub(r"<[^>]*>|\[(?:CLS|SEG|END)\]", " ", text.split("ASSISTANT:")[-1])
        answers[_new(stem, answers, where)] = Answer(
            text=" ".join(plain.split()), fake_score=float(verdict != "real"), masks=tuple(_predicted_mask(mask_HW, None) for mask_HW in shown)
        )
    return _predictions(samples, answers, str(file))


def fakeshield(samples: Iterable[Sample], file: Path, masks: Path) -> list[Prediction]:
    """Predictions from FakeShield's DTE-FDM output and its MFLM output folder. Raises ValueError naming the line that does not fit."""
    by_stem = {path.stem: path for path in sorted(masks.iterdir()) if path.is_file()}
    answers: dict[str, Answer] = {}
    for where, row in _lines(file):
        image = _field(row, "image", str, where)
        text = _field(row, "outputs" if "outputs" in row else "text", str, where)
        stem, is_fake = _stem(image), FAKESHIELD_REAL not in text
        shown = [_from_image(by_stem[stem], WHITE_MASK_GREY)] if is_fake and stem in by_stem else []
        answers[_new(stem, answers, where)] = Answer(
            text=text, fake_score=float(is_fake), masks=tuple(_predicted_mask(mask_HW, None) for mask_HW in shown)
        )
    return _predictions(samples, answers, str(file))


def ffaa(samples: Iterable[Sample], file: Path) -> list[Prediction]:
    """Predictions from a results file of FFAA. Raises ValueError naming the line that does not fit."""
    answers: dict[str, Answer] = {}
    for where, row in _lines(file):
        if "id" not in row and ("acc" in row or "Acc" in row or "Acc-2-class" in row):
            continue
        image, content = (_field(row, key, str, where) for key in ("id", "content"))
        fields = {name: match[1].strip() for name in FFAA_FIELDS if (match := re.search(rf"^{name}:\s*(.*)$", content, re.MULTILINE))}
        verdict = fields.get("Analysis result", "").lower()
        if not verdict.startswith(("real", "fake")):
            raise ValueError(f"{where}: `content` has no line 'Analysis result: real' or 'fake'; is this a results file of FFAA?")
        match_score = float(row.get("match score", 1.0))
        is_fake = verdict.startswith("fake")
        answers[_new(_stem(image), answers, where)] = Answer(
            text=fields.get("Forgery reasoning", ""),
            fake_score=min(max(match_score if is_fake else 1 - match_score, 0.0), 1.0),
            type_probs=_ffaa_type(fields.get("Forgery type", "")) if is_fake else None,
        )
    return _predictions(samples, answers, str(file))


ADAPTERS: Mapping[str, Callable[..., list[Prediction]]] = {"glamm": glamm, "sida": sida, "fakeshield": fakeshield, "ffaa": ffaa}
"""System -> adapter; `sida` and `fakeshield` take their folder of masks as well."""


def _sida_class(text: str, where: str) -> str:
    lowered = text.lower()
    named = re.search(r"(?:classified as|image is|class(?:ification)?:?)\s+(?:a |an )?(real|tampered|(?:full[y]? )?synthetic)", lowered)
    said = re.findall("[a-z]+", _SIDA_DENIED.sub(" ", lowered))  # words: 'realistic' says nothing, 'not tampered' the contrary
    found = named[1] if named else next((word for word in ("tampered", "synthetic", "real") if word in said), None)
    if found is None:
        raise ValueError(f"{where}: neither real, synthetic nor tampered is said; add the printed class as `class`")
    return "synthetic" if "synthetic" in found else found


def _ffaa_type(words: str) -> dict[str, float] | None:
    lowered = words.lower()
    return next(({kind: 1.0} for kind, hints in FFAA_TYPES if any(hint in lowered for hint in hints)), None)


# --- Answers to predictions -------------------------------------------------------------------------------------------------------------------


def _predictions(samples: Iterable[Sample], answers: Mapping[str, Answer], source: str) -> list[Prediction]:
    """An answer for each image-level sample whose task the system offers. Raises ValueError where images and samples do not fit each other."""
    wanted = [sample for sample in samples if sample.level == "image" and sample.probe is None]
    faces: dict[str, tuple[str, str]] = {}
    for sample in wanted:
        if faces.setdefault(image_stem(sample), (sample.dataset, sample.name)) != (sample.dataset, sample.name):
            raise ValueError(f"two faces share the file name {image_stem(sample)!r}; rename one in the split")
    unknown = sorted(set(answers) - set(faces))
    if unknown:
        raise ValueError(
            f"{source}: {len(unknown)} images belong to no sample, the first is {unknown[0]!r}; name crops by `image_stem` of their sample"
        )
    predictions = (_prediction(sample, answers[image_stem(sample)]) for sample in wanted if image_stem(sample) in answers)
    return [prediction for prediction in predictions if prediction is not None]


def _prediction(sample: Sample, answer: Answer) -> Prediction | None:
    match sample.task:
        case "det":
            return Prediction(id=sample.id, fake_score=answer.fake_score) if answer.fake_score is not None else None
        case "cls":
            return Prediction(id=sample.id, type_probs=answer.type_probs) if answer.type_probs is not None else None
        case "toe":
            return Prediction(id=sample.id, text=answer.text) if answer.text is not None else None
        case "loc":
            return Prediction(id=sample.id, masks=_together(answer.masks)) if answer.masks is not None else None
        case _:
            return Prediction(id=sample.id, text=answer.text, masks=answer.masks) if answer.masks is not None else None


def _together(masks: Sequence[PredictedMask]) -> tuple[PredictedMask, ...]:
    """One mask of all phrases: localisation does not ask for the phrases."""
    return (PredictedMask(rle=Rle.of(np.any([mask.rle.decode() for mask in masks], axis=0))),) if masks else ()


def _predicted_mask(mask_HW: NDArray[np.bool_], phrase: str | None) -> PredictedMask:
    resized = cv2.resize(mask_HW.astype(np.uint8), (SIDE, SIDE), interpolation=cv2.INTER_NEAREST_EXACT).astype(bool)
    return PredictedMask(concept=concept_of(phrase) if phrase else None, phrase=phrase, rle=Rle.of(resized))


# --- Reading ----------------------------------------------------------------------------------------------------------------------------------


def _object(text: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not JSON ({error.msg}); is this the system's own output file?") from None
    if not isinstance(row, dict):
        raise ValueError(f"{where}: a JSON object is expected, not {type(row).__name__}")
    return row


def _lines(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        if line.strip():
            where = f"{file}, line {number}"
            yield where, _object(line, where)


def _field(row: Mapping[str, Any], key: str, kind: type, where: str) -> Any:
    if not isinstance(row.get(key), kind):
        raise ValueError(f"{where}: no {key!r} of type {kind.__name__}, but {', '.join(sorted(row)) or 'nothing'}; see trainer/fifa_bench/foreign.py")
    return row[key]


def _stem(image: str) -> str:
    return PurePosixPath(image.replace("\\", "/")).stem


def _new(stem: str, answers: Mapping[str, Answer], where: str) -> str:
    """The image's name. Raises ValueError where it was answered before: which of two answers counts is not ours to choose."""
    if stem in answers:
        raise ValueError(f"{where}: image {stem!r} is answered a second time; keep one answer an image")
    return stem


def _no_wildcards(stem: str) -> str:
    return re.sub(r"([*?\[])", r"[\1]", stem)


def _from_rle(rle: Any, where: str) -> NDArray[np.bool_]:
    """COCO run lengths, compressed or as a list. Raises ValueError where they do not fill their size."""
    try:
        (height, width), counts = rle["size"], rle["counts"]
        if not 0 < int(height) * int(width) <= MAX_PIXELS:
            raise ValueError(f"{height} x {width} px")
        if not isinstance(counts, list):
            return Rle(size=(height, width), counts=str(counts)).decode()
        if sum(counts) != height * width:
            raise ValueError(f"{sum(counts)} of {height * width} px")
        return np.asarray(coco_mask.decode(coco_mask.frPyObjects(rle, height, width))).astype(bool)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{where}: a mask is not in COCO run lengths ({error}); {{size: [h, w], counts}} is expected") from None


def _from_image(path: Path, above: int) -> NDArray[np.bool_]:
    grey = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    if grey is None:
        raise ValueError(f"{path} is no image; masks are expected as PNG or JPEG")
    return np.asarray(grey) > above


# --- Phrases ----------------------------------------------------------------------------------------------------------------------------------

_SILENT = frozenset(
    (
        "the",
        "a",
        "an",
        "of",
        "on",
        "in",
        "at",
        "to",
        "s",
        "subject",
        "person",
        "her",
        "his",
        "their",
        "side",
        "area",
        "region",
        "part",
        "around",
        "near",
    )
)
"""Words that say nothing of the place."""
_OF_THE_VIEWER = frozenset(("viewer", "image", "picture", "photo", "photograph", "frame", "screen"))


def concept_of(phrase: str) -> str | None:
    """The FICT concept of a free phrase: the one whose words are the longest contained in it; None without any.

    Sides are normalised first: a single 'left' or 'right' anywhere goes to the front ('cheek on the right' = 'right cheek'), and is flipped where the
    phrase speaks of the viewer's or the image's side, for FICT speaks of the subject's. A phrase with both sides has none. A concept with a side
    needs the same side; plurals count as singulars; among equals the higher in the tree wins.
    """
    said = [_singular(word) for word in re.findall(r"[a-z]+", phrase.lower())]
    sides = {word for word in said if word in ("left", "right")}
    side = sides.pop() if len(sides) == 1 else None
    if side is not None and _OF_THE_VIEWER & set(said):
        side = "left" if side == "right" else "right"
    rest = " ".join(word for word in said if word not in ("left", "right") and word not in _SILENT and word not in _OF_THE_VIEWER)
    fitting = [
        (len(words.split()) + (own_side is not None), -place, concept)
        for place, (concept, own_side, words) in enumerate(_phrase_book())
        if own_side in (None, side) and f" {words} " in f" {rest} "
    ]
    return max(fitting)[2] if fitting else None


@cache
def _phrase_book() -> tuple[tuple[str, str | None, str], ...]:
    """Every concept with its side and the singular words of its phrase, in tree order."""
    book = []
    for concept in fict.concepts().values():
        words = [_singular(word) for word in concept.phrase.split()]
        side = words[0] if words[0] in ("left", "right") else None
        plain = " ".join(word for word in words if word not in ("left", "right") and word not in _SILENT)
        if plain:
            book.append((concept.id, side, plain))
    return tuple(book)


def _singular(word: str) -> str:
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word
