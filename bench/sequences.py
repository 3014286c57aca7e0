"""Sequences whose truth is known: stills of real people that move, and for stretches of time show the forgery that was made of the same still.

A pair of a real face and its fake, cut alike, changes places without a jump: what differs inside a tampered interval is the manipulation alone. Pan,
zoom, roll and light change smoothly, noise and codec as in a video; shots cut to other people, and two people may share the picture. Whatever is
drawn comes from the sequence's seed.

    swap         DFDC fakes and their real twins (pair curated or loose)
    attribute    StarGAN edits of CelebA faces
    local        our own manipulations of 0.5 to 40 % of the face (`trainer.corpus.own_manipulation`)
    synthesis    StyleGAN2 and SD 2.1 faces, of which there are no twins: they come by a cut, between shots of real people
    restless     nobody is manipulated: a real person changes places with another photograph of theirs (neutral and smiling, or another clip)
"""

import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from io import BytesIO
from typing import Literal, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from engines.contracts import Box
from fifa_stream.mp4 import MP4
from trainer.corpus import own_manipulation
from trainer.faces import Face, ImageHWC, Part

Family = Literal["swap_curated", "swap_loose", "attribute", "local", "synthesis", "restless"]
FAMILIES: tuple[Family, ...] = ("swap_curated", "swap_loose", "attribute", "local", "synthesis")
"""Those that `plans` draws; `restless_plans` draws the control."""
SHARES: dict[Family, float] = {"swap_curated": 0.3, "swap_loose": 0.25, "attribute": 0.2, "local": 0.125, "synthesis": 0.125}
"""Of the sequences of a part."""
Staging = Literal["one", "cut", "two"]
"""One person all the time; cuts to another person and back; two people side by side."""
STAGINGS: tuple[Staging, ...] = ("one", "one", "one", "cut", "two")
RATES_FPS = (3, 3, 3, 3, 3, 4, 4, 2)
DURATION_S = (9, 13)
INTERVAL_S = (1.0, 6.0)
CHUNK_S = 2
WIDTHS: dict[Staging, int] = {"one": 480, "cut": 480, "two": 800}
HEIGHT = 360
SIDES: dict[Family, tuple[float, float]] = {
    "swap_curated": (0.6, 0.8),
    "swap_loose": (0.6, 0.8),
    "attribute": (0.85, 1.05),
    "local": (0.6, 0.8),
    "synthesis": (0.6, 0.8),
    "restless": (0.6, 0.8),
}
"""Of a still, in heights of the frame: CelebA's faces fill less of theirs."""
PAD = 0.2
"""Of the tile's side: reflected around it, where it fades into the background."""


@dataclass(frozen=True, slots=True)
class Person:
    """A still, and the forgery made of it where one is shown; in `restless` another real still in its place."""

    name: str
    unit: str
    """'set/identity cluster'."""
    real_HWC: ImageHWC | None
    """None for a person who never was."""
    fake_HWC: ImageHWC | None


class Interval(NamedTuple):
    """Frames [first, end) in which a person of the sequence is manipulated."""

    person: int
    first: int
    end: int


class Shot(NamedTuple):
    """Frames [first, end) that show these people, from left to right."""

    first: int
    end: int
    people: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Script:
    """What a sequence shows and what of it is true, without a pixel."""

    name: str
    family: Family
    staging: Staging
    fps: int
    num_frames: int
    units: tuple[str, ...]
    """Of its people."""
    shots: tuple[Shot, ...]
    tampered: tuple[Interval, ...]
    codec: Literal["jpeg", "h264"]
    swapped: tuple[Interval, ...] = ()
    """Where another photograph of the same person is shown: the face jumps, and nothing is manipulated."""

    @property
    def size_wh(self) -> tuple[int, int]:
        """Of its frames, in pixels."""
        return WIDTHS[self.staging], HEIGHT

    @property
    def first_suspect(self) -> str:
        """Whose identity the sequence counts for: that of the first person who may be manipulated."""
        return self.units[min(2, len(self.units) - 1) if self.family == "synthesis" else 0]

    @property
    def frame_ms(self) -> int:
        """From one frame to the next."""
        return 1000 // self.fps

    def shown(self, frame: int) -> tuple[int, ...]:
        """Who is in a frame, from left to right."""
        return next(shot.people for shot in self.shots if shot.first <= frame < shot.end)

    def person_at(self, frame: int, box: Box) -> int:
        """Whose face that is: people keep to their part of the picture."""
        people = self.shown(frame)
        place = int((box[0] + box[2]) / 2 * len(people) / self.size_wh[0])
        return people[min(len(people) - 1, max(0, place))]

    def is_tampered(self, person: int, frame: int) -> bool:
        """Whether a person is manipulated in a frame."""
        return _covers(self.tampered, person, frame)

    def shows_second(self, person: int, frame: int) -> bool:
        """Whether a frame shows the second still of a person: their forgery, or another photograph."""
        return self.is_tampered(person, frame) or _covers(self.swapped, person, frame)


def _covers(intervals: Sequence[Interval], person: int, frame: int) -> bool:
    return any(interval.person == person and interval.first <= frame < interval.end for interval in intervals)


@dataclass(frozen=True, slots=True)
class Plan:
    """A sequence before a pixel of it is drawn."""

    script: Script
    people: tuple[Person, ...]
    seed: int


class Record(NamedTuple):
    """What a producer would send: a JPEG, or a chunk of H.264 whose frames are all looked at."""

    value: bytes
    content_type: str
    start_ms: int
    frames: tuple[int, ...]


def plans(faces: Sequence[Face], part: Part, count: int, *, seed: int = 0, families: Sequence[Family] = FAMILIES) -> list[Plan]:
    """So many sequences of one part's people; families by their shares, of each a quarter untouched and a tenth fake from end to end.

    Of fewer families there are fewer sequences, and none is another."""
    rng = np.random.default_rng([909, seed, zlib.crc32(part.encode())])
    pool = _Pool([face for face in faces if face.part == part], rng)
    made: list[Plan] = []
    for family in families:
        for number in range(round(count * SHARES[family])):
            made.append(_plan(pool, family, number, np.random.default_rng([909, seed, zlib.crc32(f"{part} {family} {number}".encode())]), part))
    return made


def restless_plans(faces: Sequence[Face], part: Part, count: int) -> list[Plan]:
    """So many sequences, half of London and AMFD (smiling and neutral), half of DFDC (another clip), as far as the part has people with two
    photographs; none where it has none."""
    rng = np.random.default_rng([910, zlib.crc32(part.encode())])
    units: dict[str, list[Face]] = {}
    for face in faces:
        if face.part == part and not face.is_fake and face.dataset in ("dfdc", "london", "amfd"):
            units.setdefault(f"{face.dataset}/{face.unit}", []).append(face)
    names = sorted(unit for unit, some in units.items() if len(some) > 1)
    kinds = [some for is_clip in (False, True) if (some := [unit for unit in names if unit.startswith("dfdc/") is is_clip])]
    made = list[Plan]()
    for number in range(count if kinds else 0):
        some = kinds[number % len(kinds)]
        unit = some[(number // len(kinds)) % len(some)]
        one, other = (units[unit][int(place)] for place in rng.choice(len(units[unit]), 2, replace=False))
        draws = np.random.default_rng([910, zlib.crc32(f"{part} restless {number}".encode())])
        fps = RATES_FPS[int(draws.integers(len(RATES_FPS)))]
        num_frames = fps * int(draws.integers(DURATION_S[0], DURATION_S[1] + 1))
        shots = (Shot(0, num_frames, (0,)),)
        script = Script(
            name=f"{part}-restless-{number:03d}",
            family="restless",
            staging="one",
            fps=fps,
            num_frames=num_frames,
            units=(unit,),
            shots=shots,
            tampered=(),
            codec="h264" if number % 3 == 2 else "jpeg",
            swapped=tuple(_intervals(draws, fps, shots, "once" if number % 4 < 2 else "twice")),
        )
        person = Person(one.name, unit, _tile(one.image()), _tile(other.image()))
        made.append(Plan(script, (person,), seed=int(draws.integers(1 << 31))))
    return made


class _Pool:
    """People of one part, dealt out in turn."""

    def __init__(self, faces: Sequence[Face], rng: np.random.Generator) -> None:
        reals = {(face.dataset, face.name): face for face in faces if not face.is_fake}
        fakes = [face for face in faces if face.is_fake]
        own = [face for face in reals.values() if face.dataset in ("dfdc", "ffhq_stylegan2", "london", "amfd")]
        photographs = [face for face in own if face.dataset != "dfdc"]
        self._reals = reals
        self._decks: dict[str, list[Face]] = {
            "swap_curated": [face for face in fakes if face.dataset == "dfdc" and face.pair_quality == "curated"],
            "swap_loose": [face for face in fakes if face.dataset == "dfdc" and face.pair_quality == "loose"],
            "attribute": [face for face in fakes if face.dataset == "stargan"],
            "local": own,
            "synthesis": [face for face in fakes if face.dataset in ("ffhq_stylegan2", "sd21_faces")],
            "photographs": photographs,
        }
        for deck in self._decks.values():
            rng.shuffle(deck)
        self._dealt = dict.fromkeys(self._decks, 0)

    def _next(self, deck: str) -> Face:
        cards, at = self._decks[deck], self._dealt[deck]
        self._dealt[deck] += 1
        return cards[at % len(cards)]

    def pair(self, family: Family, rng: np.random.Generator, number: int) -> Person:
        """The next person of a family who can be shown real and fake; of `synthesis` one who is fake alone."""
        while True:
            face = self._next(family)
            unit = f"{face.dataset}/{face.unit}"
            if family == "synthesis":
                return Person(face.name, unit, None, _tile(face.image()))
            if family == "local":
                made = own_manipulation(face.image(), self._next("local").image(), rng, family_number=number)
                if made is not None:
                    return Person(face.name, unit, _tile(face.image()), _tile(made.image_HWC))
                continue
            twin = self._reals.get((face.dataset, face.real_twin or ""))
            if twin is not None:
                return Person(face.name, unit, _tile(twin.image()), _tile(face.image()))

    def real(self, family: Family, other_than: Sequence[str]) -> Person:
        """Somebody who is only shown as they are."""
        while True:
            face = self._next("photographs" if family == "synthesis" else family)
            if family in ("local", "synthesis"):
                real = face
            else:
                twin = self._reals.get((face.dataset, face.real_twin or ""))
                if twin is None:
                    continue
                real = twin
            unit = f"{real.dataset}/{real.unit}"
            if unit not in other_than:
                return Person(real.name, unit, _tile(real.image()), None)


def _tile(image_HWC: ImageHWC) -> ImageHWC:
    """At most 256 px a side: frames show no more."""
    shrink = 256 / max(image_HWC.shape[:2])
    image_HWC = np.ascontiguousarray(image_HWC)
    return image_HWC if shrink >= 1 else cv2.resize(image_HWC, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA)


def _plan(pool: _Pool, family: Family, number: int, rng: np.random.Generator, part: Part) -> Plan:
    staging: Staging = "cut" if family == "synthesis" else STAGINGS[number % len(STAGINGS)]
    fps = RATES_FPS[int(rng.integers(len(RATES_FPS)))]
    num_frames = fps * int(rng.integers(DURATION_S[0], DURATION_S[1] + 1))
    kind = rng.choice(["untouched", "whole", "once", "twice"], p=[0.25, 0.1, 0.35, 0.3])
    people: list[Person]
    tampered: list[Interval]
    if family == "synthesis":
        people = [pool.real(family, ())]
        people.append(pool.real(family, [people[0].unit]))
        fakes = {"untouched": 0, "whole": 1, "once": 1, "twice": 2}[str(kind)]
        people += [pool.pair(family, rng, number) for _ in range(fakes)]
        shots, tampered = _with_inserts(rng, fps, num_frames, fakes, whole=kind == "whole")
    else:
        people = [pool.pair(family, rng, number)]
        if staging != "one":
            people.append(pool.real(family, [people[0].unit]))
        shots = _cut(rng, fps, num_frames) if staging == "cut" else [Shot(0, num_frames, (0, 1) if staging == "two" else (0,))]
        tampered = _intervals(rng, fps, [shot for shot in shots if 0 in shot.people], str(kind))
    script = Script(
        name=f"{part}-{family}-{number:03d}",
        family=family,
        staging=staging,
        fps=fps,
        num_frames=num_frames,
        units=tuple(person.unit for person in people),
        shots=tuple(shots),
        tampered=tuple(tampered),
        codec="h264" if number % 3 == 2 else "jpeg",
    )
    return Plan(script, tuple(people), seed=int(rng.integers(1 << 31)))


def _cut(rng: np.random.Generator, fps: int, num_frames: int) -> list[Shot]:
    """A long shot of the first person, one of the second, the first again."""
    first = round(num_frames * rng.uniform(0.4, 0.6))
    away = round(fps * rng.uniform(1.5, 3.5))
    return [Shot(0, first, (0,)), Shot(first, first + away, (1,)), Shot(first + away, num_frames, (0,))]


def _with_inserts(rng: np.random.Generator, fps: int, num_frames: int, fakes: int, *, whole: bool) -> tuple[list[Shot], list[Interval]]:
    """Two real people by turns, and shots of people who never were between them."""
    if whole:
        return [Shot(0, num_frames, (2,))], [Interval(2, 0, num_frames)]
    if not fakes:
        middle = round(num_frames * rng.uniform(0.3, 0.7))
        return [Shot(0, middle, (0,)), Shot(middle, num_frames, (1,))], []
    lengths = [round(fps * rng.uniform(1.0, 4.0)) for _ in range(fakes)]
    rest = num_frames - sum(lengths)
    shares = rng.dirichlet([6.0] * (fakes + 1))
    shots, tampered, at = [], [], 0
    for number in range(fakes + 1):
        end = num_frames if number == fakes else at + max(fps, round(rest * shares[number]))
        shots.append(Shot(at, end, (number % 2,)))
        if number < fakes:
            at = min(end + lengths[number], num_frames - fps * (fakes - number))
            shots.append(Shot(end, at, (2 + number,)))
            tampered.append(Interval(2 + number, end, at))
    return [shot for shot in shots if shot.end > shot.first], [interval for interval in tampered if interval.end > interval.first]


def _intervals(rng: np.random.Generator, fps: int, shots: Sequence[Shot], kind: str) -> list[Interval]:
    """Of person 0, inside single shots, with a second untouched on either side of each."""
    if kind == "untouched":
        return []
    if kind == "whole":
        return [Interval(0, shot.first, shot.end) for shot in shots]
    wanted, found = {"once": 1, "twice": 2}[kind], list[Interval]()
    for _ in range(100):
        shot = shots[int(rng.integers(len(shots)))]
        length = round(fps * rng.uniform(*INTERVAL_S))
        if shot.end - shot.first < length + 2 * fps:
            continue
        first = int(rng.integers(shot.first + fps, shot.end - fps - length + 1))
        if all(first >= other.end + 2 * fps or first + length + 2 * fps <= other.first for other in found):
            found.append(Interval(0, first, first + length))
        if len(found) == wanted:
            break
    return sorted(found, key=lambda interval: interval.first)


class _Walk:
    """A smooth random course around 0, of about unit size: three slow waves."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._waves = [(rng.uniform(0.05, 0.4), rng.uniform(0, 2 * math.pi), rng.uniform(0.3, 1.0)) for _ in range(3)]
        self._norm = math.sqrt(sum(size * size for _, _, size in self._waves) / 2)

    def __call__(self, seconds: float) -> float:
        return sum(size * math.sin(2 * math.pi * hz * seconds + phase) for hz, phase, size in self._waves) / self._norm


class _Camera:
    """How one person is seen during one shot."""

    def __init__(self, rng: np.random.Generator, script: Script, place: int, num_places: int) -> None:
        width, height = script.size_wh[0] / num_places, script.size_wh[1]
        self._middle = (width * (place + 0.5) + rng.uniform(-0.06, 0.06) * width, height * (0.5 + rng.uniform(-0.05, 0.05)))
        self._side = height * rng.uniform(*SIDES[script.family])
        self._pan = (width * rng.uniform(0.02, 0.09), height * rng.uniform(0.01, 0.05))
        self._zoom, self._roll_deg = rng.uniform(0.02, 0.08), rng.uniform(1, 6)
        self._x, self._y, self._in, self._turn = (_Walk(rng) for _ in range(4))

    def paste(self, canvas_HWC: NDArray[np.float32], tile_HWA: NDArray[np.float32], seconds: float) -> None:
        """Put a tile with its alpha over the canvas."""
        side = self._side * math.exp(self._zoom * self._in(seconds)) * (1 + 2 * PAD)
        scale, roll = side / tile_HWA.shape[0], math.radians(self._roll_deg * self._turn(seconds))
        cos, sin = math.cos(roll) * scale, math.sin(roll) * scale
        half_x, half_y = tile_HWA.shape[1] / 2, tile_HWA.shape[0] / 2
        x, y = self._middle[0] + self._pan[0] * self._x(seconds), self._middle[1] + self._pan[1] * self._y(seconds)
        matrix = np.array([[cos, -sin, x - cos * half_x + sin * half_y], [sin, cos, y - sin * half_x - cos * half_y]])
        if scale < 0.75:  # an affine transform alone would alias
            shrink = scale / 0.75
            small = cv2.resize(tile_HWA, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA)
            matrix[:, :2] *= tile_HWA.shape[0] / small.shape[0]
            tile_HWA = small
        warped = cv2.warpAffine(tile_HWA, matrix, (canvas_HWC.shape[1], canvas_HWC.shape[0]), flags=cv2.INTER_LINEAR)
        alpha = warped[..., 3:]
        canvas_HWC += alpha * (warped[..., :3] - canvas_HWC)


def _faded(tile_HWC: ImageHWC) -> NDArray[np.float32]:
    """(H, W, 4) float32: the tile, reflected beyond its border, with an alpha that is 1 on the tile and falls to 0 outside."""
    height, width = tile_HWC.shape[:2]
    pad_y, pad_x = round(height * PAD), round(width * PAD)
    wide = cv2.copyMakeBorder(tile_HWC, pad_y, pad_y, pad_x, pad_x, cv2.BORDER_REFLECT_101).astype(np.float32)
    fall_y, fall_x = (
        np.clip(np.minimum(np.arange(n + 2 * p) + 1, (n + 2 * p) - np.arange(n + 2 * p)) / p, 0, 1) for n, p in ((height, pad_y), (width, pad_x))
    )
    return np.dstack([wide, np.outer(fall_y, fall_x).astype(np.float32)])


def pictures(plan: Plan) -> Iterator[ImageHWC]:
    """Its frames, (H, W, 3) uint8 RGB, before any codec."""
    rng, script = np.random.default_rng(plan.seed), plan.script
    tiles = [tuple(None if image is None else _faded(image) for image in (person.real_HWC, person.fake_HWC)) for person in plan.people]
    light, tint, noise = _Walk(rng), _Walk(rng), rng.uniform(0.5, 2.0)
    for shot in script.shots:
        cameras = [_Camera(rng, script, place, len(shot.people)) for place in range(len(shot.people))]
        backdrop_HWC = _backdrop(rng, [plan.people[person] for person in shot.people], script.size_wh)
        for frame in range(shot.first, shot.end):
            seconds = frame / script.fps
            canvas_HWC = backdrop_HWC.copy()
            for person, camera in zip(shot.people, cameras, strict=True):
                real, fake = tiles[person]
                tile = fake if script.shows_second(person, frame) else real
                assert tile is not None, f"{script.name} shows a person in frame {frame} of whom there is no such image"
                camera.paste(canvas_HWC, tile, seconds)
            canvas_HWC *= (1 + 0.08 * light(seconds)) * (1 + 0.02 * tint(seconds) * np.array([1, 0, -1], np.float32))
            canvas_HWC += rng.normal(0, noise, canvas_HWC.shape).astype(np.float32)
            yield np.clip(canvas_HWC, 0, 255).astype(np.uint8)


def _backdrop(rng: np.random.Generator, people: Sequence[Person], size_wh: tuple[int, int]) -> NDArray[np.float32]:
    """The colours of the stills, without a form: no second face shows."""
    stills = [person.real_HWC if person.real_HWC is not None else person.fake_HWC for person in people]
    tiny = np.concatenate([cv2.resize(still, (3, 3), interpolation=cv2.INTER_AREA) for still in stills if still is not None], 1)
    wide = cv2.resize(tiny.astype(np.float32), size_wh, interpolation=cv2.INTER_CUBIC)
    grain = cv2.resize(rng.normal(0, 6, (size_wh[1] // 8, size_wh[0] // 8)).astype(np.float32), size_wh, interpolation=cv2.INTER_CUBIC)
    return np.asarray(wide + grain[..., None], np.float32)


def records(plan: Plan) -> Iterator[Record]:
    """Its frames as a producer sends them."""
    rng, script = np.random.default_rng([plan.seed, 1]), plan.script
    if script.codec == "jpeg":
        drift, middle = _Walk(rng), rng.uniform(70, 92)
        for frame, picture_HWC in enumerate(pictures(plan)):
            quality = round(float(np.clip(middle + 8 * drift(frame / script.fps) + rng.normal(0, 2), 40, 97)))
            encoded = cv2.imencode(".jpg", picture_HWC[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
            yield Record(encoded.tobytes(), "image/jpeg", frame * script.frame_ms, (frame,))
        return
    crf, held, size = int(rng.integers(20, 29)), list[ImageHWC](), CHUNK_S * script.fps
    for frame, picture_HWC in enumerate(pictures(plan)):
        held.append(picture_HWC)
        if len(held) == size or frame == script.num_frames - 1:
            first = frame + 1 - len(held)
            yield Record(_clip(held, script.fps, crf), MP4, first * script.frame_ms, tuple(range(first, frame + 1)))
            held = []


def _clip(pictures_HWC: Sequence[ImageHWC], fps: int, crf: int) -> bytes:
    """An MP4 of H.264."""
    import av  # the extra `video`

    buffer = BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps)
        height, width = pictures_HWC[0].shape[:2]
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        context = stream.codec_context
        context.thread_count, context.options = 1, {"crf": str(crf), "preset": "veryfast", "bf": "0"}
        for number, picture_HWC in enumerate(pictures_HWC):
            frame = av.VideoFrame.from_ndarray(picture_HWC, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()
