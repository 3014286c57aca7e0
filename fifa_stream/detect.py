"""Stage 3: a frame's pixels to face crops, by the bundle's detector graph, and what each crop is like.

The limits fail only crops that no one could judge: training faces include dark and soft video frames. A face that fails is still scored, but carries
a note and does not decide the label of its frame.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engines.contracts import EngineError
from engines.face_detector import Detection, decode_faces, detector_input
from engines.preprocess import ROLL_LIMIT_DEG, Crop, crop_face, whole_image_crop
from engines.runtime import Engine
from fifa_stream.records import Note, NoteCode, Quality

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
"""ITU-R BT.601."""


@dataclass(frozen=True, slots=True)
class DetectLimits:
    """How faces are looked for, and from when on a face decides."""

    max_side_px: int = 640
    """Longer side of the detector's input."""
    second_side_px: int = 1280
    """A frame in which the first pass finds nothing is looked at once more at this size; small faces in large frames."""
    threshold: float = 0.5
    """Least confidence of a face."""
    max_faces: int = 16
    """Faces judged per frame, largest first."""
    min_face_px: float = 32.0
    """Shorter side of the face box in frame pixels; the smallest face of the DFDC training crops was 36."""
    min_sharpness: float = 1.0
    """As `laplacian_std` of the crop; the softest of 1,500 DFDC crops at 224 px has 1.39, half of them have less than 7.1."""
    min_brightness: float = 8.0
    """Mean luma; the darkest of those crops has 9.0."""
    max_brightness: float = 243.0
    """Mean luma; the brightest of those crops has 217."""


@dataclass(frozen=True, slots=True)
class Face:
    """One face crop and what is known of it before it is judged."""

    crop: Crop
    box_xyxy: tuple[float, float, float, float]
    """In frame pixels, inside the frame."""
    landmarks_52: NDArray[np.float32] | None
    """Right eye, left eye, nose tip, right and left mouth corner (the subject's sides) in frame pixels; None for ready-made crops."""
    confidence: float | None
    """Of the detector; None for ready-made crops."""
    quality: Quality
    notes: tuple[Note, ...]


@dataclass(frozen=True, slots=True)
class FoundFaces:
    """The faces of one frame, largest first."""

    faces: tuple[Face, ...]
    notes: tuple[Note, ...]
    """About the frame: `no_face`, `too_many_faces`."""


class FaceDetector:
    """Finds and crops faces. Not thread-safe: it runs an engine."""

    def __init__(self, engine: Engine, *, crop_size: int, limits: DetectLimits) -> None:
        self._engine, self._crop_size, self._limits = engine, crop_size, limits
        self._input = engine.inputs[0].name
        self._outputs = [output.name for output in engine.outputs]

    def detect(self, image_HWC: NDArray[np.uint8]) -> FoundFaces:
        """Find the faces of an RGB frame. Raises EngineError for outputs that are no numbers: `no_face` would be said of any frame."""
        found = self._run(image_HWC, self._limits.max_side_px)
        if not found and max(image_HWC.shape[:2]) > self._limits.max_side_px:
            found = self._run(image_HWC, self._limits.second_side_px)
        if not found:
            message = "no face was found; an image that already is a face crop needs fifa-crop: true"
            return FoundFaces((), (Note(code=NoteCode.NO_FACE, message=message),))
        notes: tuple[Note, ...] = ()
        if len(found) > self._limits.max_faces:
            message = f"{len(found)} faces were found, the {self._limits.max_faces} largest are judged (limits.max_faces)"
            notes = (Note(code=NoteCode.TOO_MANY_FACES, message=message),)
        largest = sorted(found, key=_shorter_side, reverse=True)[: self._limits.max_faces]
        return FoundFaces(tuple(self._face(image_HWC, detection) for detection in largest), notes)

    def whole(self, image_HWC: NDArray[np.uint8]) -> FoundFaces:
        """Take an image that already is one face crop."""
        height, width = image_HWC.shape[:2]
        crop = whole_image_crop(image_HWC, self._crop_size)
        quality, notes = assess(crop.image_HWC, face_px=min(width, height), roll_deg=None, is_inside=True, limits=self._limits)
        return FoundFaces((Face(crop, (0.0, 0.0, float(width), float(height)), None, None, quality, notes),), ())

    def _run(self, image_HWC: NDArray[np.uint8], max_side_px: int) -> list[Detection]:
        image_1CHW, factor_x, factor_y = detector_input(image_HWC, max_side_px)
        outputs = self._engine.run({self._input: image_1CHW})
        if not all(np.isfinite(output).all() for output in outputs.values()):
            raise EngineError("the face detector gives outputs that are no numbers; see whether the engine runs here with: fifa-stream engine check")
        heatmap, scale, offset, landmarks = (outputs[name] for name in self._outputs)
        height, width = image_HWC.shape[:2]
        return decode_faces(
            heatmap[0, 0],
            scale[0],
            offset[0],
            landmarks[0],
            factor_xy=(factor_x, factor_y),
            frame_size_wh=(width, height),
            threshold=self._limits.threshold,
        )

    def _face(self, image_HWC: NDArray[np.uint8], detection: Detection) -> Face:
        points = detection.landmarks_52
        crop = crop_face(image_HWC, detection.box_xyxy, points, self._crop_size)
        dx, dy = (points[1] - points[0]).tolist()
        height, width = image_HWC.shape[:2]
        is_inside = bool(((points >= 0) & (points <= (width, height))).all())
        quality, notes = assess(
            crop.image_HWC, face_px=_shorter_side(detection), roll_deg=math.degrees(math.atan2(dy, dx)), is_inside=is_inside, limits=self._limits
        )
        return Face(crop, detection.box_xyxy, points, detection.confidence, quality, notes)


def _shorter_side(detection: Detection) -> float:
    x0, y0, x1, y1 = detection.box_xyxy
    return min(x1 - x0, y1 - y0)


def assess(
    crop_HWC: NDArray[np.uint8], *, face_px: float, roll_deg: float | None, is_inside: bool, limits: DetectLimits
) -> tuple[Quality, tuple[Note, ...]]:
    """Measure a crop and say in notes what is wrong with it; `is_inside`: all five landmarks lie in the frame."""
    luma_HW = crop_HWC.astype(np.float32) @ _LUMA
    sharpness, brightness = laplacian_std(luma_HW), float(luma_HW.mean())
    faults: list[Note] = []
    if face_px < limits.min_face_px:
        faults.append(Note(code=NoteCode.FACE_TOO_SMALL, message=f"the face is {face_px:.0f} pixels wide, {limits.min_face_px:g} are needed"))
    if sharpness < limits.min_sharpness:
        faults.append(Note(code=NoteCode.BLURRED, message=f"sharpness {sharpness:.2f} is below {limits.min_sharpness:g}"))
    if brightness < limits.min_brightness:
        faults.append(Note(code=NoteCode.TOO_DARK, message=f"mean luma {brightness:.0f} is below {limits.min_brightness:g}"))
    if brightness > limits.max_brightness:
        faults.append(Note(code=NoteCode.TOO_BRIGHT, message=f"mean luma {brightness:.0f} is above {limits.max_brightness:g}"))
    if not is_inside:
        faults.append(Note(code=NoteCode.PARTLY_OUTSIDE, message="an eye, the nose or a mouth corner lies outside the frame"))
    notes = list(faults)
    if roll_deg is not None and abs(roll_deg) >= ROLL_LIMIT_DEG:
        notes.append(Note(code=NoteCode.ROTATED, message=f"the eye line is turned by {roll_deg:.0f} degrees"))
    quality = Quality(
        passed=not faults,
        face_px=round(face_px, 1),
        sharpness=round(sharpness, 2),
        brightness=round(brightness, 1),
        roll_deg=None if roll_deg is None else round(roll_deg, 1),
    )
    return quality, tuple(notes)


def laplacian_std(luma_HW: NDArray[np.float32]) -> float:
    """Standard deviation of the 4-neighbour Laplacian over the inner pixels; 0 for a flat image."""
    center = luma_HW[1:-1, 1:-1]
    laplacian = luma_HW[:-2, 1:-1] + luma_HW[2:, 1:-1] + luma_HW[1:-1, :-2] + luma_HW[1:-1, 2:] - 4 * center
    return float(laplacian.std())
