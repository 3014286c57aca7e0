"""A toy engine in NumPy whose every habit is known: it writes given answers, and its masks follow the phrases or, on request, ignore them."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from engines.analyzer import Analyzer
from engines.bundle import Bundle
from engines.contracts import FORGERY_TYPES, Calibration, DecoderSpec, Manifest, OperatingPoint, PreprocessSpec, QueryLevel
from engines.preprocess import IMAGE_MEAN, IMAGE_STD
from engines.prompts import BBOX, PHRASE, PHRASE_END, PROMPTS, SEG, SEP, Vocabulary
from trainer.samples import SIDE, Sample
from trainer.tokenizer import train_tokenizer

IMAGE, GRID, CELLS = 64, 32, 4
PLACES = {"nose": 5, "mouth": 10, "eyes": 6, "cheeks": 9, "forehead": 2}
"""Where the toy shows a phrase: a cell of a 4 x 4 division of the crop, in reading order."""
Arrays = Mapping[str, NDArray[Any]]


def cell(place: int, side: int) -> NDArray[np.bool_]:
    """The (side, side) mask of one cell."""
    row, column = divmod(place % CELLS**2, CELLS)
    mask_HW = np.zeros((side, side), bool)
    step = side // CELLS
    mask_HW[row * step : (row + 1) * step, column * step : (column + 1) * step] = True
    return mask_HW


class ToyEncoder:
    """Reads the number of a face off its first pixel; its logit grows with the brightness of the cell of the nose."""

    inputs, outputs = (), ()

    def __init__(self) -> None:
        self.faces: list[int] = []
        """Number of every face encoded, in order."""

    def run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        image_BHWC = feeds["image"].transpose(0, 2, 3, 1) * IMAGE_STD + IMAGE_MEAN
        numbers = [round(float(value) * 255) for value in image_BHWC[:, 0, 0, 0]]
        self.faces += numbers
        rows = len(numbers)
        brightness_B = image_BHWC[:, cell(PLACES["nose"], IMAGE)].mean((1, 2), np.float64).round(5)
        prefix_BPE = np.zeros((rows, 1, 2), np.float32)
        prefix_BPE[:, 0, 0] = [-1.0 - number for number in numbers]
        return {
            "det_logit": (8 * brightness_B - 4).astype(np.float32), "type_logits": np.tile(np.arange(4, dtype=np.float32), (rows, 1)),
            "artifact_logits": np.zeros((rows, 4), np.float32), "image_embeds": np.zeros((rows, 4, 2), np.float32), "prefix_embeds": prefix_BPE,
        }  # fmt: skip


class ToyBoxEncoder:
    """Turns a box into the token `<bbox>`, beside which stands the cell of its centre."""

    inputs, outputs = (), ()

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._bbox = vocabulary.ids[BBOX]
        self.boxes: list[tuple[float, ...]] = []
        """Every box that was asked about, in order."""

    def run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        self.boxes += [tuple(box) for box in feeds["box"].tolist()]
        x, y = ((feeds["box"][:, edge] + feeds["box"][:, edge + 2]) / 2 // (IMAGE // CELLS) for edge in (0, 1))
        return {"box_embeds": np.stack([np.full(len(x), self._bbox), y * CELLS + x], 1).astype(np.float32)}


class ToyDecoder:
    """Writes the given answers, as logits at every position. Embeddings are token ids, so it sees what it is fed; the state of a [SEG] names a place.

    It reads the slots up to its own position, as attention over a cache does: what stands behind, such as padding, it cannot see.
    """

    inputs, outputs = (), ()

    def __init__(self, vocabulary: Vocabulary, write: Callable[..., str], *, follows: bool) -> None:
        self._vocabulary, self._write, self._follows = vocabulary, write, follows
        self._questions: dict[tuple[int, ...], tuple[str, ...]] = {tuple(vocabulary.prompt_ids(task)): (task,) for task in PROMPTS}
        for task in PROMPTS:
            self._questions[tuple(vocabulary.prompt_ids(task, "box"))] = (task, BBOX)
            self._questions |= {tuple(vocabulary.prompt_ids(task, "region", phrase)): (task, phrase) for phrase in PLACES}
        self.prefills = 0
        """Rows that began, over all runs."""

    def bind(self, state: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]) -> "BoundToyDecoder":
        ((rows, _, capacity, _),) = set(shapes.values())
        return BoundToyDecoder(self, rows, capacity)

    def run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        raise NotImplementedError

    def write(self, slots_BC2: NDArray[np.float64], feeds: Arrays) -> dict[str, NDArray[Any]]:
        """One run over these slots."""
        fed_BS2, slot_BS = feeds["inputs_embeds"], feeds["positions"]
        self.prefills += len(fed_BS2) * (fed_BS2[0, 0, 0] < 0)
        logits = np.zeros((*slot_BS.shape, self._vocabulary.size), np.float32)
        hidden = np.zeros((*slot_BS.shape, 2), np.float32)
        for row, column in np.ndindex(*slot_BS.shape):
            slot = slot_BS[row, column]
            slots_BC2[row, slot] = fed_BS2[row, column]
            face, *read = slots_BC2[row, : slot + 1, 0].round().astype(int).tolist()
            if self._vocabulary.ids[SEP] not in read:
                continue
            begin = read.index(self._vocabulary.ids[SEP]) + 1
            asked, said = self._questions[tuple(read[:begin])], read[begin:]
            wanted = self._vocabulary.answer_ids(self._write(-1 - face, *asked))
            logits[row, column, wanted[min(len(said), len(wanted) - 1)]] = 1.0
            if said and said[-1] == self._vocabulary.ids[SEG]:
                hidden[row, column, 0] = self._place(said, asked[1:], slots_BC2[row, 1 : begin + 1, 1].max())
        return {"logits": logits, "hidden": hidden}

    def _place(self, said: list[int], area: tuple[str, ...], box_place: float) -> float:
        ids = self._vocabulary.ids
        ordinal = said.count(ids[SEG]) - 1
        if self._follows and ids[PHRASE] in said:
            begin = len(said) - 1 - said[::-1].index(ids[PHRASE])
            phrase = self._vocabulary.tokenizer.decode(said[begin + 1 : said.index(ids[PHRASE_END], begin)]).strip()
            return PLACES[phrase]
        return box_place if area == (BBOX,) else PLACES[area[0]] if area else list(PLACES.values())[ordinal]


class BoundToyDecoder:
    """The slots of a cache."""

    def __init__(self, decoder: ToyDecoder, rows: int, capacity: int) -> None:
        self._decoder, self._slots_BC2 = decoder, np.zeros((rows, capacity, 2))

    def run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        return self._decoder.write(self._slots_BC2, feeds)

    def place(self, rows: Sequence[int], source: "BoundToyDecoder", source_rows: Sequence[int]) -> None:
        self._slots_BC2[list(rows)] = source._slots_BC2[list(source_rows)]


class ToyMaskDecoder:
    """Shows the cell that the state names, and is the surer the higher its number."""

    inputs, outputs = (), ()

    def run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        places = [round(float(value)) for value in feeds["seg_embeds"][:, 0]]
        logits = np.stack([np.where(cell(place, GRID), 9.0, -9.0) for place in places])
        return {"mask_logits": logits.astype(np.float32), "iou_logit": np.array(places, np.float32) / 10}


@pytest.fixture(scope="session")
def vocabulary() -> Vocabulary:
    """A tokenizer that knows the prompts and FICT."""
    return Vocabulary(train_tokenizer(["The <p> nose </p> [SEG] is odd."], 600))


def toy_manifest(vocab_size: int, query_levels: tuple[QueryLevel, ...] = ()) -> Manifest:
    """Of an engine without files."""
    decoder = DecoderSpec(
        num_layers=1, num_heads=1, head_dim=2, width=2, vocab_size=vocab_size, num_prefix_tokens=1, capacity=160, max_new_tokens=120
    )
    point = OperatingPoint(name="toy", fake_at=0.6, real_below=0.0, explain_at=0.0)
    mean, std = (tuple(float(value) for value in values) for values in (IMAGE_MEAN, IMAGE_STD))
    return Manifest(
        name="toy", version="0", precision="fp32", backend="onnxruntime", parts={}, files={},
        preprocess=PreprocessSpec(image_size=IMAGE, grid=2, mask_size=GRID, crop_scale=1.3, mean=mean, std=std),  # type: ignore[arg-type]
        decoder=decoder, forgery_types=FORGERY_TYPES, fict_depth=14, query_levels=query_levels,
        calibration=Calibration(method="temperature", scale=1.0, bias=0.0, fitted_on="nothing"),
        operating_points={"toy": point}, default_operating_point="toy", score_baseline=(0.05,) * 20, licences={}, provenance={}, metrics={},
        digest=hashlib.sha256(b"toy").hexdigest(),
    )  # fmt: skip


@pytest.fixture
def toy_bundle(vocabulary: Vocabulary) -> Callable[..., Bundle]:
    """`toy_bundle(write, follows=True, query_levels=())`: an opened bundle whose decoder writes `write(face number, task)`.

    Where it answers queries, asked about a region or box it writes `write(face number, task, phrase or <bbox>)`.
    """

    def build(write: Callable[..., str], *, follows: bool = True, query_levels: tuple[QueryLevel, ...] = ()) -> Bundle:
        table_VE = np.zeros((vocabulary.size, 2), np.float32)
        table_VE[:, 0] = np.arange(vocabulary.size)
        decoder = ToyDecoder(vocabulary, write, follows=follows)
        engines: Any = {"encoder": ToyEncoder(), "decoder": decoder, "mask_decoder": ToyMaskDecoder(), "box_encoder": ToyBoxEncoder(vocabulary)}
        return Bundle(toy_manifest(vocabulary.size, query_levels), Path(), engines, vocabulary, table_VE)

    return build


@pytest.fixture
def toy_analyzer(toy_bundle: Callable[..., Bundle]) -> Callable[..., Analyzer]:
    """The serving analyzer over `toy_bundle`."""
    return lambda write, **habits: Analyzer(toy_bundle(write, **habits))


@pytest.fixture(scope="session")
def crop() -> Callable[..., NDArray[np.uint8]]:
    """`crop(number, bright=...)`: a face crop that bears its number, dark but for the cells of the phrases in `bright`."""

    def build(number: int, *, bright: Sequence[str] = ()) -> NDArray[np.uint8]:
        image_HWC = np.full((IMAGE, IMAGE, 3), 40, np.uint8)
        for phrase in bright:
            image_HWC[cell(PLACES[phrase], IMAGE)] = 240
        image_HWC[0, 0] = number
        return image_HWC

    return build


@pytest.fixture(scope="session")
def region() -> Callable[[str], NDArray[np.bool_]]:
    """Where the toy's face has a concept, at the records' size."""
    return lambda concept: cell(PLACES[concept], SIDE)


@pytest.fixture(scope="session")
def ask() -> Callable[..., Sample]:
    """`ask(number, task, **fields)`: a sample of face `number`; even faces are fake."""

    def build(number: int, task: str, **fields: Any) -> Sample:
        fake = number % 2 == 0
        known: dict[str, Any] = {
            "dataset": "toy", "name": f"{number}.png", "unit": str(number // 4), "prompt": PROMPTS.get(task, ""), "answer": "",  # type: ignore[call-overload]
            "is_fake": fake, "forgery_type": "identity_swap" if fake else None, "tampered": fake,
        }  # fmt: skip
        made = known | {"task": task, "id": f"{number}#{task}"} | fields
        return Sample(**made)

    return build
