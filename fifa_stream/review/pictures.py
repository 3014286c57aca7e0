"""Pictures of cases: found, held against the digest of their verdict, decoded within limits, and kept for a while.

What a browser gets is encoded anew from these pixels; the bytes that a stranger sent go no further than the decoder.
"""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Final, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from fifa_stream.decode import DecodeLimits, decode_image
from fifa_stream.records import RecordError, Verdict
from fifa_stream.review.sources import MAX_MEDIA_BYTES, Media, NoPicture
from fifa_stream.video import VideoLimits, open_chunk

ENCODED_CACHE_BYTES: Final = 64 << 20
"""Encoded images and chunks kept, so that a topic is not asked twice in a row."""
DECODED_CACHE_BYTES: Final = 128 << 20
"""Pixels kept: those of at least the last picture, however large."""
ANY_IMAGE: Final = DecodeLimits()
EVERY_FRAME: Final = VideoLimits(
    max_bytes=MAX_MEDIA_BYTES,
    sample_fps=1_000.0,
    max_frames=12 * 3600 * 60,
    max_duration_s=12 * 3600.0,
    max_decoded_frames=12 * 3600 * 60,
    decode_timeout_s=20.0,
)
"""Of a video any frame may have been looked at; only the one that is shown is decoded."""

V = TypeVar("V")


class Recent(Generic[V]):
    """Values by key, the last used ones up to so many bytes; always the last one. Not for two threads at once."""

    def __init__(self, max_bytes: int, size: Callable[[V], int]) -> None:
        self._max_bytes, self._size, self.num_bytes = max_bytes, size, 0
        self._values: OrderedDict[object, V] = OrderedDict()

    def get(self, key: object) -> V | None:
        """The value, which is then the last used."""
        value = self._values.get(key)
        if value is not None:
            self._values.move_to_end(key)
        return value

    def put(self, key: object, value: V) -> None:
        """Keep a value; older ones go."""
        if (old := self._values.pop(key, None)) is not None:
            self.num_bytes -= self._size(old)
        self._values[key] = value
        self.num_bytes += self._size(value)
        while self.num_bytes > self._max_bytes and len(self._values) > 1:
            _, gone = self._values.popitem(last=False)
            self.num_bytes -= self._size(gone)


class Pictures:
    """The pictures of all cases. May be shared by threads: one looks at a time."""

    def __init__(self, media: Sequence[Media], *, image: DecodeLimits = ANY_IMAGE, video: VideoLimits = EVERY_FRAME) -> None:
        self._media, self._image, self._video = media, image, video
        self._lock = threading.Lock()
        self._encoded = Recent[bytes](ENCODED_CACHE_BYTES, len)
        self._decoded = Recent[NDArray[np.uint8]](DECODED_CACHE_BYTES, lambda image_HWC: image_HWC.nbytes)

    def encoded(self, verdict: Verdict) -> bytes:
        """The image or chunk that a verdict speaks of, by its digest. Raises NoPicture."""
        with self._lock:
            return self._find(verdict)

    def frame(self, verdict: Verdict, index: int | None) -> NDArray[np.uint8]:
        """(height, width, 3) RGB, read-only: the image, or the sampled frame of a chunk. Raises NoPicture."""
        with self._lock:
            key = (verdict.media.sha256, index)
            if (image_HWC := self._decoded.get(key)) is None:
                image_HWC = self._decode(self._find(verdict), index)
                self._decoded.put(key, image_HWC)
        size = (verdict.media.height, verdict.media.width)
        if None not in size and image_HWC.shape[:2] != size:
            raise NoPicture(f"the picture is {image_HWC.shape[1]} x {image_HWC.shape[0]}, its verdict says {size[1]} x {size[0]}")
        return image_HWC

    def close(self) -> None:
        """Let the sources go."""
        for place in self._media:
            place.close()

    def _find(self, verdict: Verdict) -> bytes:
        digest = verdict.media.sha256
        if (kept := self._encoded.get(digest)) is not None:
            return kept
        why = f"no source has the picture {digest[:12]}; give it with --frames"
        for place in self._media:
            try:
                encoded = place.find(verdict)
            except NoPicture as error:
                why = str(error)
                continue
            if encoded is None:
                continue
            if hashlib.sha256(encoded).hexdigest() == digest:  # masks on other pixels would lie
                self._encoded.put(digest, encoded)
                return encoded
            why = "the picture has another digest than its verdict says"
        raise NoPicture(why)

    def _decode(self, encoded: bytes, index: int | None) -> NDArray[np.uint8]:
        try:
            if index is None:
                return decode_image(encoded, content_type=None, limits=self._image).image_HWC
            for shown in open_chunk(encoded, content_type=None, limits=self._video, only=(index,)).frames():
                if shown.index == index:
                    return shown.image_HWC
        except RecordError as error:
            raise NoPicture(f"{error.reason.value}: {error}") from None
        raise NoPicture(f"frame {index} does not come out of its chunk")
