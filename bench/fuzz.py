"""`make fuzz`: seeded hostile records through the real loop, claims, decoders and video, with toys for the engine and the broker.

Every record must end as one verdict or one dead letter, in a process that lives on and grows no further than 1.2 times what it held after the first
500. A record is a function of seed and number: `--only NUMBER` runs one again. Writes docs/bench/fuzz.md.
"""

import argparse
import functools
import gc
import hashlib
import io
import os
import random
import struct
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from fifa_stream.claims import ClaimStore
from fifa_stream.config import ClaimSettings, DeadLetterSettings, KafkaSettings, LimitSettings, Settings, VideoSettings
from fifa_stream.decode import DecodeLimits
from fifa_stream.detect import DetectLimits
from fifa_stream.infer import FramePipeline, PipelineLimits
from fifa_stream.records import Claim, Headers, OutRecord, Verdict
from fifa_stream.runner import Runner
from fifa_stream.testing import MemoryBroker, MemoryConsumer, MemoryProducer, ToyAnalyzer, toy_bundle
from fifa_stream.video import VideoLimits

try:
    import av
except ImportError:  # the extra `video`: without it chunks are refused, which is to be survived as well
    av = None  # type: ignore[assignment]

ROOT = Path(__file__).resolve().parent.parent
ROUND = 250
"""Records in flight or waiting at once."""
SETTLED_AFTER = 500
MAX_GROWTH = 1.2
ROUND_S = 300.0
"""A round that takes longer hangs."""
MAX_PIXELS = 1_000_000
KAFKA = KafkaSettings()
TOPICS = {KAFKA.frames_topic: 2, KAFKA.verdicts_topic: 2, KAFKA.dead_letters_topic: 1}


# --- Sound material, made once ----------------------------------------------------------------------------------------------------------------


def picture(size: tuple[int, int], mode: str = "RGB") -> Image.Image:
    """A gradient with noise: compresses little, like a photograph."""
    width, height = size
    noise_HWC = np.random.default_rng(width * height).integers(-20, 20, (height, width, 3))
    ramp_HW = np.linspace(30, 220, width)[None, :] * np.ones((height, 1))
    return Image.fromarray(np.clip(ramp_HW[..., None] + noise_HWC, 0, 255).astype(np.uint8)).convert(mode)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    """One image file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@functools.cache
def images() -> tuple[bytes, ...]:
    """Of every format and mode that is accepted."""
    large, small = picture((320, 240)), picture((96, 64))
    exif = Image.Exif()
    exif[0x0112] = 6
    return (
        encoded(large, "JPEG", quality=85),
        encoded(small, "JPEG", progressive=True, exif=exif),
        encoded(small.convert("CMYK"), "JPEG"),
        encoded(small, "PNG"),
        encoded(small.convert("RGBA"), "PNG"),
        encoded(small.convert("P"), "PNG", transparency=0),
        encoded(Image.fromarray((np.arange(64 * 96, dtype=np.uint16) * 10).reshape(64, 96)), "PNG"),
        encoded(large, "WEBP", quality=80),
        encoded(small.convert("RGBA"), "WEBP", lossless=True),
    )


@functools.cache
def chunks() -> tuple[bytes, ...]:
    """H.264 in MP4: plain, fragmented, with B frames; none without PyAV."""
    return () if av is None else (clip(12), clip(6, movflags="+frag_keyframe+empty_moov+default_base_moof"), clip(30, bframes="2"))


def clip(count: int, *, movflags: str = "", bframes: str = "0") -> bytes:
    """Gray frames at 25 a second."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4", options={"movflags": movflags} if movflags else {}) as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        stream.codec_context.options = {"g": "6", "bf": bframes, "preset": "ultrafast"}
        stream.codec_context.thread_count = 1
        for index in range(count):
            frame = av.VideoFrame.from_ndarray(np.full((64, 96, 3), 20 + 5 * index, np.uint8), format="rgb24")
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode(None):
            container.mux(packet)
    return buffer.getvalue()


@functools.cache
def bombs() -> tuple[bytes, ...]:
    """Small files that claim or hold much: pixels by the header, a plain area by its data, texts and profiles that unpack to 16 MiB."""
    zeros = bytes(16 << 20)
    text = PngInfo()
    text.add_text("comment", "x" * (16 << 20), zip=True)
    small = picture((64, 64))
    return (
        png_of_size(60_000, 60_000),
        png_of_size(2**31 - 1, 2**31 - 1),
        encoded(Image.new("1", (10_000, 10_000)), "PNG"),
        encoded(Image.new("L", (1000, 1000)), "PNG"),
        encoded(small, "PNG", pnginfo=text),
        encoded(small, "PNG", icc_profile=zeros),
        jpeg_of_size(encoded(small, "JPEG"), 65_500, 65_500),
        b"RIFF" + struct.pack("<I", 30) + b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + b"\xff" * 6,
        encoded(small, "WEBP", save_all=True, append_images=[picture((64, 64), "L").convert("RGB")]),
        encoded(small, "PNG", save_all=True, append_images=[Image.new("RGB", (64, 64))]),
    )


def png_of_size(width: int, height: int) -> bytes:
    """A PNG whose header says this, over a few bytes of data."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def jpeg_of_size(value: bytes, width: int, height: int) -> bytes:
    """The same JPEG with another size in its frame header."""
    at = value.index(b"\xff\xc0") + 5
    return value[:at] + struct.pack(">HH", height, width) + value[at + 4 :]


FOREIGN = (
    b"GIF89a" + bytes(40),
    b"BM" + bytes(60),
    b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>",
    b"<!doctype html><html></html>",
    b'{"image": null}',
    b"%PDF-1.7\n",
    b"PK\x03\x04" + bytes(30),
    b"\x1f\x8b" + bytes(20),
    "\u202egpj.exe \x1b[31m".encode(),
    b"\x00\x00\x00\x14ftypavif" + bytes(40),
    b"\x00" * 500,
    b"plain text",
)
HOSTILE = (
    b"\xff\xfe\x00",
    b"\xc3(",
    "\u202e\u2066\x1b[2J\r\nx: y".encode(),
    b"A" * 70_000,
    b"'; DROP TABLE frames; --",
    b"../../etc/passwd",
    b"%s%n{0}",
)
NUMBERS = (b"0", b"17", b"-1", b"1e9", b"nan", b"1_0", b"\xd9\xa3", b"9223372036854775808", b"1" * 5000, b" 7 ", b"")
QUERIES = (b"right_cheek", b"right cheek", b"nose", b"third eye", b"0,0,40,40", b"10,10,5,5", b"nan,0,1,inf", b"1e400,0,1,1", b"1,2", b",,,", b"\xff")
TYPES = (
    b"image/jpeg",
    b"image/png",
    b"IMAGE/PNG; q=1",
    b"image/webp",
    b"video/mp4",
    b"text/html",
    b"application/octet-stream",
    b"\xff\xff",
    b"a" * 300,
)


# --- Records ----------------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Hostile:
    """One record and what it was meant to be."""

    kind: str
    record: OutRecord


def damaged(value: bytes, draw: random.Random) -> bytes:
    """Truncated, with bits turned, a number overwritten, a piece cut out, or continued by another file."""
    way = draw.randrange(5)
    at = draw.randrange(len(value))
    if way == 0:
        return value[:at]
    if way == 1:
        changed = bytearray(value)
        for _ in range(draw.randint(1, 24)):
            changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
        return bytes(changed)
    if way == 2:
        return value[:at] + struct.pack(">I", draw.choice((0, 1, 0x7FFFFFFF, 0xFFFFFFFF, draw.getrandbits(32)))) + value[at + 4 :]
    if way == 3:
        return value[:at] + value[at + draw.randint(1, 400) :]
    other = draw.choice(images() + chunks())
    return value[:at] + other[draw.randrange(len(other)) :]


def value_of(draw: random.Random) -> tuple[str, bytes | None]:
    """A value by itself."""
    kinds: Mapping[str, Callable[[], bytes | None]] = {
        "image, sound": lambda: draw.choice(images()),
        "image, damaged": lambda: damaged(draw.choice(images()), draw),
        "image, bomb": lambda: draw.choice(bombs()),
        "chunk, sound": lambda: draw.choice(chunks() or images()),
        "chunk, damaged": lambda: damaged(draw.choice(chunks() or images()), draw),
        "chunk, damaged header": lambda: damaged_boxes(draw.choice(chunks() or images()), draw),
        "foreign": lambda: draw.choice(FOREIGN),
        "junk": lambda: draw.choice((b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"\x00\x00\x00\x14ftypisom")) + draw.randbytes(draw.randint(0, 400)),
        "nothing": lambda: draw.choice((None, b"")),
    }
    kind = draw.choices(list(kinds), weights=(6, 8, 2, 1, 4, 4, 2, 2, 1))[0]
    return kind, kinds[kind]()


def damaged_boxes(value: bytes, draw: random.Random) -> bytes:
    """Numbers overwritten inside `moov`, which says how much is where."""
    begin = value.find(b"moov")
    if begin < 0:
        return damaged(value, draw)
    changed = bytearray(value)
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(begin, min(len(changed) - 4, begin + 900))
        changed[at : at + 4] = struct.pack(">I", draw.choice((0, 1, 0x7FFFFFFF, 0xFFFFFFFF, 1 << draw.randrange(32))))
    return bytes(changed)


def headers_of(draw: random.Random) -> list[tuple[str, bytes]]:
    """Often plain, sometimes missing, doubled, huge or hostile."""
    if draw.random() < 0.4:
        return []
    if draw.random() < 0.6:
        return [("stream-id", b"camera-1"), ("frame-index", b"3"), ("pts-ms", b"120")]
    names = (
        "stream-id",
        "frame-index",
        "pts-ms",
        "deadline-ms",
        "fifa-crop",
        "fifa-query",
        "content-type",
        "traceparent",
        "ce_id",
        "Frame-Index",
        "x-note",
    )
    pools: Mapping[str, Sequence[bytes]] = {"fifa-query": QUERIES, "content-type": TYPES, "fifa-crop": (b"true", b"1", b"maybe", b"", b"\xff")}
    headers = []
    for _ in range(draw.randint(1, 6)):
        name = draw.choice(names)
        pool = pools.get(name, NUMBERS if name.endswith(("-ms", "-index", "-Index")) else (b"s", *HOSTILE))
        headers.append((name, draw.choice(pool if draw.random() < 0.9 else HOSTILE)))
    return headers


def claim_of(draw: random.Random, folder: Path) -> tuple[str, list[tuple[str, bytes]]]:
    """A claim, true or not; the file is there where the kind needs one."""
    image = draw.choice(images())
    sha256 = hashlib.sha256(image).hexdigest()
    path = folder / "allowed" / sha256
    if not path.exists():
        path.write_bytes(image)
    inside = f"file://{folder}/allowed"
    claim = functools.partial(Claim, sha256=sha256, size=len(image), content_type=None)
    kinds: Mapping[str, Callable[[], Claim]] = {
        "claim, true": lambda: claim(f"{inside}/{sha256}"),
        "claim, slow": lambda: claim(f"{inside}/slow/{sha256}"),
        "claim, outside": lambda: claim(
            draw.choice((f"file://{folder}/secret", "file:///etc/hostname", "https://example.org/x", "s3://bucket/x", f"{inside}x/y"))
        ),
        "claim, no plain URI": lambda: claim(
            draw.choice((f"{inside}/../secret", f"{inside}/%2e%2e/secret", f"{inside}//x", "file:relative", "\x1b[2J"))
        ),
        "claim, missing": lambda: claim(f"{inside}/{'0' * 64}"),
        "claim, no file": lambda: claim(draw.choice((f"{inside}/folder", f"{inside}/pipe", f"{inside}/link"))),
        "claim, other digest": lambda: Claim(f"{inside}/{sha256}", "0" * 64, len(image), None),
        "claim, other size": lambda: Claim(f"{inside}/{sha256}", sha256, len(image) + draw.choice((-1, 1, 1 << 40)), None),
        "claim, expired": lambda: claim(f"{inside}/{sha256}", expires_at_ms=1),
    }
    kind = draw.choice(list(kinds))
    headers = [(name, text.encode()) for name, text in kinds[kind]().headers.items()]
    if draw.random() < 0.1:
        kind, headers = "claim, broken headers", [*headers[: draw.randrange(1, len(headers))], ("claim-size", draw.choice(NUMBERS))]
    return kind, headers


def hostile(seed: int, number: int, folder: Path) -> Hostile:
    """Record `number`: the same for the same seed, whatever came before."""
    draw = random.Random(f"{seed}/{number}")
    key = draw.choice((None, b"camera-1", b"camera-2", b"")) if draw.random() < 0.95 else draw.choice((b"\xff\xfe", b"k" * 5000))
    headers: Headers
    if draw.random() < 0.2:
        kind, claims = claim_of(draw, folder)
        value = b"both" if draw.random() < 0.05 else b""
        headers = tuple([*claims, *(headers_of(draw) if draw.random() < 0.3 else [])])
    else:
        kind, content = value_of(draw)
        headers, value = tuple(headers_of(draw)), content if content is not None else b""
    return Hostile(kind, OutRecord(key, value, headers))


# --- The run ----------------------------------------------------------------------------------------------------------------------------------


class SlowStore:
    """The real store; what lies below `slow/` comes late."""

    def __init__(self, store: ClaimStore) -> None:
        self._store = store

    def check(self, claim: Claim) -> object:
        """As the store says."""
        return self._store.check(claim)

    def fetch(self, claim: Claim) -> bytes:
        """As the store gives."""
        if "/slow/" in claim.uri:
            time.sleep(0.02)
        return self._store.fetch(claim)


@dataclass
class Tally:
    """What came of the records."""

    answers: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By kind and answer: a label, or the reason of a dead letter."""
    rss_settled_mib: float = 0.0
    rss_mib: float = 0.0
    faults: list[str] = field(default_factory=list)

    @property
    def is_sound(self) -> bool:
        """Every record answered once, and memory flat."""
        return not self.faults and (not self.rss_settled_mib or self.rss_mib <= MAX_GROWTH * self.rss_settled_mib)


class Feeder:
    """Gives the loop a round of records when the last one is answered, and checks its answers: the consumer calls it before each poll."""

    def __init__(self, broker: MemoryBroker, numbers: Sequence[int], seed: int, folder: Path, stop: Callable[[], None]) -> None:
        self.tally = Tally()
        self._broker, self._numbers, self._seed, self._folder, self._stop = broker, numbers, seed, folder, stop
        self._fed = 0
        self._round: dict[tuple[str, int, int], str] = {}
        self._began = time.monotonic()

    def __call__(self) -> None:
        """Feed, or wait."""
        answers = [*self._broker.records(KAFKA.verdicts_topic), *self._broker.records(KAFKA.dead_letters_topic)]
        if self._round and len(answers) < len(self._round):
            if time.monotonic() - self._began > ROUND_S:
                raise TimeoutError(f"{len(answers)} of {len(self._round)} records are answered after {ROUND_S:.0f} s")
            return
        self._check()
        self._forget()
        if self._fed in range(SETTLED_AFTER, SETTLED_AFTER + ROUND):
            self.tally.rss_settled_mib = rss_mib()
        if self._fed >= len(self._numbers):
            self._stop()
            return
        for number in self._numbers[self._fed : self._fed + ROUND]:
            made = hostile(self._seed, number, self._folder)
            raw = self._broker.append(KAFKA.frames_topic, made.record, partition=number % TOPICS[KAFKA.frames_topic])
            self._round[raw.topic, raw.partition, raw.offset] = made.kind
        self._fed += len(self._round)
        self._began = time.monotonic()

    def _check(self) -> None:
        seen = Counter[tuple[str, int, int]]()
        for place, answer in self._answers():
            seen[place] += 1
            self.tally.answers[self._round.get(place, "never sent"), answer] += 1
        for place in self._round.keys() | seen.keys():
            if place not in self._round or seen[place] != 1:
                self.tally.faults.append(f"{'/'.join(map(str, place))} ({self._round.get(place, 'never sent')}) has {seen[place]} answers")

    def _answers(self) -> Iterator[tuple[tuple[str, int, int], str]]:
        for record in self._broker.records(KAFKA.verdicts_topic):
            verdict = Verdict.from_bytes(record.value or b"")
            assert verdict.input is not None
            yield (verdict.input.topic, verdict.input.partition, verdict.input.offset), verdict.label.value
        for record in self._broker.records(KAFKA.dead_letters_topic):
            headers = dict(record.headers)
            yield (headers["dlq-topic"].decode(), int(headers["dlq-partition"]), int(headers["dlq-offset"])), headers["dlq-reason"].decode()

    def _forget(self) -> None:
        """A broker drops what is old. The last record of a partition stays, so that offsets go on."""
        self._round = {}
        for topic, count in TOPICS.items():
            for partition in range(count):
                log = self._broker.read((topic, partition), 0, 1 << 60)
                self._broker.rewrite(topic, partition, log[-1:] if topic == KAFKA.frames_topic else [])


def rss_mib() -> float:
    """Resident memory of this process."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


@contextmanager
def claim_folder() -> Iterator[Path]:
    """An allowed folder with what a claim must not follow, beside a secret."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        allowed = folder / "allowed"
        (allowed / "folder").mkdir(parents=True)
        (folder / "secret").write_bytes(images()[0])
        (allowed / "link").symlink_to(folder / "secret")
        (allowed / "slow").symlink_to(allowed)  # a link that stays inside is followed
        os.mkfifo(allowed / "pipe")
        yield folder


def run(numbers: Sequence[int], seed: int) -> Tally:
    """The records through the loop."""
    with claim_folder() as folder:
        settings = Settings(
            limits=LimitSettings(max_pixels=MAX_PIXELS, max_record_bytes=1 << 20),
            claims=ClaimSettings(allowed=(f"file://{folder}/allowed/",)),
            dead_letters=DeadLetterSettings(max_run=0, max_ratio=1.0),
        )
        broker = MemoryBroker(TOPICS)
        consumer = MemoryConsumer(broker, KAFKA.group_id)
        pipeline = FramePipeline(limits_of(settings), ToyAnalyzer(), toy_bundle())
        runner = Runner(
            settings,
            pipeline,
            consumer=consumer,
            open_producer=lambda: MemoryProducer(broker),
            store=SlowStore(ClaimStore(settings.claims)),
        )
        feeder = Feeder(broker, numbers, seed, folder, runner.stop)
        consumer.on_poll = feeder
        outcome = runner.run()
        tally = feeder.tally
        if outcome.value != "drained":
            tally.faults.append(f"the loop ended: {outcome.value}")
    tally.rss_mib = rss_mib()
    return tally


def limits_of(settings: Settings) -> PipelineLimits:
    """As `fifa_stream.serve.load_pipeline` sets them."""
    limits, video = settings.limits, VideoSettings()
    return PipelineLimits(
        decode=DecodeLimits(max_image_bytes=limits.max_record_bytes, max_pixels=limits.max_pixels),
        detect=DetectLimits(max_side_px=limits.max_side, max_faces=limits.max_faces, min_face_px=limits.min_face_px),
        video=VideoLimits(max_bytes=limits.max_record_bytes, max_pixels=limits.max_pixels, max_frames=4, decode_timeout_s=video.decode_timeout_s),
    )


def page(tally: Tally, options: argparse.Namespace) -> str:
    """Markdown."""
    kinds = sorted({kind for kind, _ in tally.answers})
    verdicts = ("real", "inconclusive", "fake")
    lines = [
        "# Fuzz",
        "",
        f"`make fuzz`, {date.today():%Y-%m-%d}: {tally.answers.total()} records, seed {options.seed}. Each has one answer: "
        f"{'yes' if not tally.faults else 'NO'}. Resident memory after the first {SETTLED_AFTER} / at the end: "
        f"{tally.rss_settled_mib:.0f} / {tally.rss_mib:.0f} MiB.",
        "",
        "| record | verdicts | dead letters by reason |",
        "|---|---|---|",
    ]
    for kind in kinds:
        reasons = sorted((answer, count) for (its, answer), count in tally.answers.items() if its == kind and answer not in verdicts)
        told = ", ".join(f"{answer} {count}" for answer, count in reasons)
        lines.append(f"| {kind} | {sum(tally.answers[kind, label] for label in verdicts)} | {told} |")
    return "\n".join([*lines, ""])


def main() -> int:
    """Run; 1 where a record has no answer or two, or memory grew."""
    parser = argparse.ArgumentParser(description="Hostile records through the real loop.")
    parser.add_argument("--records", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int, metavar="NUMBER", help="this record alone")
    parser.add_argument("--out", type=Path, help="page to write")
    options = parser.parse_args()
    tally = run(range(options.records) if options.only is None else [options.only], options.seed)
    text = page(tally, options)
    if options.out is not None:
        options.out.write_text(text)
    print(text)
    for fault in tally.faults[:20]:
        print(fault, file=sys.stderr)
    return int(not tally.is_sound)


if __name__ == "__main__":
    sys.exit(main())
