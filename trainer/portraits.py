"""Face windows in portraits that are not yet face crops, by the serving detector and the serving crop rule."""

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from engines.face_detector import decode_faces, detector_input
from engines.preprocess import crop_side
from trainer.pretrained import centerface


class PortraitCropper:
    """Callable for `load_faces`: the square window (x, y, w, h) around the best face, inside the image."""

    def __init__(self) -> None:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        self._session = ort.InferenceSession(centerface().SerializeToString(), options, providers=["CPUExecutionProvider"])

    def __call__(self, image_HWC: NDArray[np.uint8]) -> tuple[int, int, int, int] | None:
        """Return None when no face is found: the whole image is then used."""
        image_1CHW, factor_x, factor_y = detector_input(np.ascontiguousarray(image_HWC), 640)
        heatmap, scale, offset, landmarks = self._session.run(None, {self._session.get_inputs()[0].name: image_1CHW})
        height, width = image_HWC.shape[:2]
        faces = decode_faces(
            heatmap[0, 0],
            scale[0],
            offset[0],
            landmarks[0],
            factor_xy=(factor_x, factor_y),
            frame_size_wh=(width, height),
            threshold=0.5,
        )
        if not faces:
            return None
        x0, y0, x1, y1 = faces[0].box_xyxy
        side = min(int(crop_side(faces[0].box_xyxy)), width, height)
        x = int(np.clip((x0 + x1 - side) / 2, 0, width - side))
        y = int(np.clip((y0 + y1 - side) / 2, 0, height - side))
        return x, y, side, side
