"""One draw of camera, cover and codec for both members of a pair: whatever differs afterwards is the manipulation.

A cover (bar, sticker, mosaic) is no forgery: it lies on both members and is never part of a mask, so that hidden evidence counts as absent.

A share of the pairs gets one more refocus on one member only: without it a detector learns "sharp = real".
"""

from dataclasses import dataclass, replace
from fractions import Fraction

import cv2
import numpy as np
from numpy.typing import NDArray

ImageHWC = NDArray[np.uint8]


COVER_SHARE = 0.02, 0.25
"""Share of the crop that a drawn cover hides, log-uniform."""


@dataclass(frozen=True, slots=True, eq=False)
class Cover:
    """Something laid over an image: one flat colour, or a mosaic of the image itself."""

    hidden_HW: NDArray[np.bool_]
    """At the size of the crop that training sees."""
    colour: tuple[int, int, int] | None
    """RGB; None for a mosaic."""

    def lay(self, image_HWC: ImageHWC) -> ImageHWC:
        """The image with what is hidden replaced."""
        if self.colour is not None:
            return np.where(self.hidden_HW[..., None], np.array(self.colour, np.uint8), image_HWC)
        height, width = image_HWC.shape[:2]
        small = cv2.resize(image_HWC, (MOSAIC_CELLS, MOSAIC_CELLS), interpolation=cv2.INTER_AREA)
        return np.where(self.hidden_HW[..., None], cv2.resize(small, (width, height), interpolation=cv2.INTER_NEAREST), image_HWC)


CLIP_FRAMES = 9
"""Of the clip a crop is encoded in: long enough for predicted frames on both sides of the middle one."""
PAN_PX = 1
"""How far the picture moves from frame to frame. A clip that stands still costs the codec nothing: its middle frame would be a mere still."""
FRAMES_PER_S = 25
X264 = {"x264-params": "cpu-independent=1"}
"""Without it x264's choice of bits (its macroblock tree) differs from run to run even on one thread."""
TRAINING_CLIP = 3
"""Frames while training, at preset veryfast: one predicted from the frame before is enough, and takes 2 ms."""
CRF = 20, 42
"""Rate factors of training."""
MOSAIC_CELLS = 16
"""Along one side of the crop: what a censoring filter leaves of a face."""


def cover_fill(rng: np.random.Generator) -> tuple[int, int, int] | None:
    """Black, grey, any colour, or (None) a mosaic."""
    kind = rng.random()
    if kind < 0.25:
        return None
    if kind < 0.45:
        return 0, 0, 0
    if kind < 0.7:
        return 128, 128, 128
    red, green, blue = rng.integers(0, 256, 3)
    return int(red), int(green), int(blue)


def cover(rng: np.random.Generator, size: int) -> Cover:
    """A rectangle or an ellipse somewhere on the crop."""
    area = float(np.exp(rng.uniform(*np.log(COVER_SHARE)))) * size * size
    aspect = float(np.exp(rng.uniform(-1.2, 1.2)))
    width, height = np.sqrt(area * aspect), np.sqrt(area / aspect)
    x, y = rng.uniform(0, size, 2)
    ys, xs = np.mgrid[0:size, 0:size]
    across, down = np.abs(xs - x) / (width / 2), np.abs(ys - y) / (height / 2)
    hidden = np.maximum(across, down) < 1 if rng.random() < 0.5 else across**2 + down**2 < 1.27
    return Cover(hidden, cover_fill(rng))


def beyond_the_frame(rng: np.random.Generator, size: int) -> Cover:
    """A face at the frame's edge: black on one side of the crop or two, as serving fills it (`engines.preprocess.crop_face`)."""
    hidden = np.zeros((size, size), bool)
    for turns in rng.choice(4, int(rng.integers(1, 3)), replace=False):
        np.rot90(hidden, int(turns))[: int(size * rng.uniform(0.02, 0.2))] = True
    return Cover(hidden, (0, 0, 0))


@dataclass(frozen=True, slots=True)
class Look:
    """What a photographer, a phone or a filter makes of a picture: coloured light, a tone curve, retouching, grain. No forgery."""

    lights: tuple[tuple[float, float, float], tuple[float, float, float]]
    """Gains of red, green and blue where the first light falls, and opposite."""
    toward_rad: float
    """Where the second light stands: 0 at the right of the crop, a quarter turn below it."""
    gamma: float
    contrast: float
    """Share of an S-curve in the tone curve."""
    vignette: float
    """Share of the light that the corners lack."""
    retouch: float
    """Share of the picture whose fine relief is smoothed away, edges kept."""
    sharpen: float
    """Of an unsharp mask."""
    grain: float
    """Standard deviation in grey levels, alike in all channels, a pixel or two wide."""
    gray: bool

    def of(self, image_HWC: NDArray[np.float32], seed: int) -> NDArray[np.float32]:
        """Give it to (S, S, 3) float32 grey levels; `seed` draws the grain."""
        size = image_HWC.shape[0]
        across = np.linspace(-1, 1, size, dtype=np.float32)
        first, second = (np.array(light, np.float32) for light in self.lights)
        share_HW = np.clip(0.5 + 0.5 * (across * np.float32(np.cos(self.toward_rad)) + across[:, None] * np.float32(np.sin(self.toward_rad))), 0, 1)
        x = image_HWC * (first + share_HW[..., None] * (second - first))
        if self.retouch:
            smooth = cv2.bilateralFilter(np.clip(x, 0, 255), 5, 30.0, 3.0)
            x = x + self.retouch * (smooth - x)
        if self.sharpen:
            x = x + self.sharpen * (x - cv2.GaussianBlur(x, (0, 0), 1.2))
        tone = np.power(np.clip(x, 0, 255) / 255, self.gamma)
        tone = tone + self.contrast * (tone * tone * (3 - 2 * tone) - tone)
        fallen_HW = 1 - self.vignette * (across**2 + across[:, None] ** 2) / 2
        x = 255 * tone * fallen_HW[..., None]
        if self.gray:
            x = np.repeat(x.mean(-1, keepdims=True), 3, -1)
        if self.grain:
            drawn_HW = np.random.default_rng(seed).standard_normal((size, size), np.float32)
            x = x + (1.6 * self.grain * cv2.GaussianBlur(drawn_HW, (0, 0), 0.6))[..., None]
        return np.asarray(x, np.float32)


def look(rng: np.random.Generator) -> Look:
    """Each part in some looks, most looks mild."""

    def light(spread: float) -> tuple[float, float, float]:
        red, green, blue = np.exp(rng.uniform(-spread, spread, 3))
        return float(red), float(green), float(blue)

    first = light(0.2)
    return Look(
        lights=(first, light(0.5) if rng.random() < 0.3 else first),
        toward_rad=float(rng.uniform(-np.pi, np.pi)),
        gamma=float(np.exp(rng.uniform(-0.4, 0.4))),
        contrast=float(rng.uniform(-0.5, 1.2)),
        vignette=float(rng.uniform(0, 0.5)) if rng.random() < 0.3 else 0.0,
        retouch=float(rng.uniform(0.3, 1.0)) if rng.random() < 0.3 else 0.0,
        sharpen=float(rng.uniform(0.2, 1.2)) if rng.random() < 0.3 else 0.0,
        grain=float(rng.uniform(1, 8)) if rng.random() < 0.25 else 0.0,
        gray=bool(rng.random() < 0.06),
    )


@dataclass(frozen=True, slots=True)
class Draw:
    """The parameters of one augmentation; apply it to as many images as share the scene."""

    size: int
    center_xy: tuple[float, float]
    zoom: float
    """Side of the window as a fraction of the image's."""
    angle_deg: float
    flip: bool
    gain: float
    bias: float
    saturation: float
    down: float | None
    blur: float | None
    noise: float | None
    jpeg: int | None
    noise_seed: int
    cover: Cover | None = None
    crf: int | None = None
    """Rate factor of H.264, which then comes before JPEG: a frame of a video that was sent as a picture."""
    look: Look | None = None

    def geometry(self, shape_hw: tuple[int, int]) -> NDArray[np.float64]:
        """Affine map from output pixels to image pixels, pixel centres at +0.5."""
        height, width = shape_hw
        scale = self.zoom * min(height, width) / self.size
        angle = np.deg2rad(self.angle_deg)
        rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) * scale
        if self.flip:
            rotation = rotation @ np.diag([-1.0, 1.0])
        half = np.array([self.size / 2, self.size / 2])
        center = np.array([self.center_xy[0] * width, self.center_xy[1] * height])
        return np.concatenate([rotation, (center - rotation @ half)[:, None]], 1)

    def image(self, image_HWC: ImageHWC) -> ImageHWC:
        """Cut, turn, light, degrade and encode; (size, size, 3) uint8 RGB out."""
        scale = self.zoom * min(image_HWC.shape[:2]) / self.size
        if scale > 1.5:  # warpAffine does not antialias
            image_HWC = cv2.resize(image_HWC, None, fx=1 / scale, fy=1 / scale, interpolation=cv2.INTER_AREA)
        to_image = self.geometry(image_HWC.shape[:2])
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        cut = cv2.warpAffine(image_HWC, _half_pixel(to_image), (self.size, self.size), flags=flags, borderMode=cv2.BORDER_REFLECT_101)
        x = cut.astype(np.float32)
        if self.look is not None:
            x = self.look.of(x, self.noise_seed)
        gray = x.mean(-1, keepdims=True)
        x = (gray + (x - gray) * self.saturation - 127.5) * self.gain + 127.5 + self.bias
        x = np.clip(x, 0, 255)
        if self.down is not None:
            side = max(16, int(self.size * self.down))
            x = cv2.resize(cv2.resize(x, (side, side), interpolation=cv2.INTER_AREA), (self.size, self.size), interpolation=cv2.INTER_LINEAR)
        if self.blur is not None:
            x = cv2.GaussianBlur(x, (0, 0), self.blur)
        if self.noise is not None:
            x = x + np.random.default_rng(self.noise_seed).standard_normal(x.shape, np.float32) * self.noise
        degraded = np.clip(x + 0.5, 0, 255).astype(np.uint8)
        if self.cover is not None:
            degraded = self.cover.lay(degraded)
        if self.crf is not None:
            degraded = h264(degraded, self.crf, clip_frames=TRAINING_CLIP, preset="veryfast")
        return degraded if self.jpeg is None else jpeg(degraded, self.jpeg)

    def alpha(self, alpha_HW: NDArray[np.float32]) -> NDArray[np.float32]:
        """Take a mask along: same window, no light, no codec; mirrored beyond the border, as the image is. What a cover hides is left out."""
        to_image = self.geometry(alpha_HW.shape)
        taken = cv2.warpAffine(
            alpha_HW, _half_pixel(to_image), (self.size, self.size), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REFLECT_101
        )
        return taken if self.cover is None else np.where(self.cover.hidden_HW, np.float32(0), taken)

    def labels(self, label_HW: NDArray[np.uint8], *, size: int, unknown: int) -> NDArray[np.uint8]:
        """Take labels along to (size, size): same window, nearest pixel, `unknown` beyond the border. Their names are not mirrored with a flip."""
        to_label = replace(self, size=size).geometry(label_HW.shape)
        flags = cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP
        taken = cv2.warpAffine(label_HW, _half_pixel(to_label), (size, size), flags=flags, borderMode=cv2.BORDER_CONSTANT, borderValue=unknown)
        return np.asarray(taken, np.uint8)


def _half_pixel(matrix_23: NDArray[np.float64]) -> NDArray[np.float64]:
    """OpenCV puts pixel centres on integers; our maps put them at +0.5."""
    shifted = matrix_23.copy()
    shifted[:, 2] += matrix_23[:, :2] @ np.array([0.5, 0.5]) - 0.5
    return shifted


def jpeg(image_HWC: ImageHWC, quality: int) -> ImageHWC:
    """Encode and decode."""
    _, encoded = cv2.imencode(".jpg", image_HWC[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    return np.asarray(cv2.imdecode(encoded, cv2.IMREAD_COLOR), np.uint8)[..., ::-1]


def h264(image_HWC: ImageHWC, crf: int, *, clip_frames: int = CLIP_FRAMES, preset: str = "medium") -> ImageHWC:
    """The middle frame of a slow pan over the crop, encoded by x264 (4:2:0) at a constant rate factor and decoded.

    Raises ModuleNotFoundError without PyAV.
    """
    try:
        import av
    except ImportError:
        raise ModuleNotFoundError("H.264 needs PyAV, which is not installed; pip install 'fifa-stream[video]'") from None
    height, width = image_HWC.shape[:2]
    reach = clip_frames // 2 * PAN_PX
    padded = np.pad(image_HWC, ((0, height % 2), (reach, reach + width % 2), (0, 0)), "edge")  # 4:2:0 needs even sides
    encoder = av.VideoCodecContext.create("libx264", "w")
    encoder.width, encoder.height, encoder.pix_fmt = width + width % 2, height + height % 2, "yuv420p"
    encoder.framerate, encoder.thread_count, encoder.options = Fraction(FRAMES_PER_S), 1, {"crf": str(crf), "preset": preset, **X264}
    decoder = av.VideoCodecContext.create("h264", "r")
    decoder.thread_count = 1
    packets = []
    for number in range(clip_frames):
        shifted = np.ascontiguousarray(padded[:, number * PAN_PX : number * PAN_PX + encoder.width])
        frame = av.VideoFrame.from_ndarray(cv2.cvtColor(shifted, cv2.COLOR_RGB2YUV_I420), format="yuv420p")
        frame.pts = number
        packets += encoder.encode(frame)
    frames = [frame for packet in (*packets, *encoder.encode(None)) for frame in decoder.decode(packet)] + decoder.decode(None)
    decoded_HWC = cv2.cvtColor(frames[clip_frames // 2].to_ndarray(), cv2.COLOR_YUV2RGB_I420)
    return np.ascontiguousarray(decoded_HWC[:height, :width])


def draw(rng: np.random.Generator, size: int) -> Draw:
    """The training distribution: flip, window 0.75-1, +-10 degrees, light, down-up scaling, blur, noise, JPEG 35-95."""
    zoom = float(np.sqrt(rng.uniform(0.75, 1.0)))
    slack = (1 - zoom) / 2
    return Draw(
        size=size,
        center_xy=(0.5 + float(rng.uniform(-slack, slack)), 0.5 + float(rng.uniform(-slack, slack))),
        zoom=zoom,
        angle_deg=float(rng.uniform(-10, 10)) if rng.random() < 0.5 else 0.0,
        flip=bool(rng.random() < 0.5),
        gain=float(rng.uniform(0.75, 1.25)),
        bias=float(rng.uniform(-20, 20)),
        saturation=float(rng.uniform(0.6, 1.4)),
        down=float(rng.uniform(0.35, 0.95)) if rng.random() < 0.4 else None,
        blur=float(rng.uniform(0.3, 1.5)) if rng.random() < 0.2 else None,
        noise=float(rng.uniform(1, 6)) if rng.random() < 0.2 else None,
        jpeg=int(rng.integers(35, 96)) if rng.random() < 0.7 else None,
        noise_seed=int(rng.integers(2**31)),
    )


def refocus_one(rng: np.random.Generator, real_HWC: ImageHWC, fake_HWC: ImageHWC) -> tuple[ImageHWC, ImageHWC]:
    """Soften or sharpen one member, so that sharpness says nothing about truth.

    A little more often against the data's habit (soft fakes) than with it: with one direction alone a detector learns "sharpened = fake" instead.
    """
    against_habit, soften = rng.random() < 0.6, rng.random() < 0.5
    changed = real_HWC if against_habit == soften else fake_HWC
    if soften:
        changed = cv2.GaussianBlur(changed, (0, 0), float(rng.uniform(0.5, 1.3)))
    else:
        soft = cv2.GaussianBlur(changed, (0, 0), float(rng.uniform(0.8, 1.6))).astype(np.float32)
        changed = np.clip(changed.astype(np.float32) * 2 - soft, 0, 255).astype(np.uint8)
    return (changed, fake_HWC) if against_habit == soften else (real_HWC, changed)
