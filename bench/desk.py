"""The review desk in a browser, against records of the shipped engine: how smoothly it scrolls, what axe finds, what keys reach; and its pictures.

    python -m bench.desk [--cases 1000] [--work DIR] [--screenshots docs/images] [--out docs/bench/desk.md]

Frames of the demo move a little and are manipulated for a while; each different frame is judged once by the engine, and every stream is followed by
the memory that a worker has. The desk runs as its own process and reads the files. Needs Chromium.
"""

import argparse
import contextlib
import io
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path

import numpy as np
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from engines.analyzer import Analyzer
from engines.bundle import bundled_engine, open_bundle
from fifa_stream.demo_photographs import demo_frames
from fifa_stream.infer import EncodedImage, FramePipeline, PipelineLimits
from fifa_stream.memory.partition import PartitionMemory
from fifa_stream.memory.stream import MemoryLimits
from fifa_stream.recording import Recorded
from fifa_stream.records import InputCoordinates, OutRecord, Query, RawRecord, Verdict, parse_frame

FRAMES_A_STREAM = 40
FRAME_MS = 200
SHIFTS = 9
"""Places from which a photograph is seen: as a hand that holds a camera moves."""
WINDOW = 0.94
"""Of the photograph's side."""
RECORDED = 1_000
"""Frames that are written out; later ones are copies of them, which the desk finds by their digest."""
ROUGHEST_MS = 200
"""Longest task that is let pass."""
WCAG = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"], "resultTypes": ["violations"]}
START_MS = 1_770_000_000_000

LONG_TASKS = """
window.longTasks = [];
new PerformanceObserver((list) => { for (const entry of list.getEntries()) window.longTasks.push(entry.duration); })
  .observe({ type: "longtask", buffered: true });
"""


@dataclass(frozen=True, slots=True)
class Shot:
    """One different frame, and what the engine says of it."""

    encoded: bytes
    query: Query | None
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Scrolled:
    """What one way through the queue cost."""

    cases: int
    steps: int
    long_tasks_ms: tuple[float, ...]
    """Tasks of the page's thread above 50 ms, which is what browsers report."""
    rows_in_page: int
    """Elements of the queue at the end."""
    walked: int
    """Cases then opened one after another, by a key."""
    walk_tasks_ms: tuple[float, ...]


def shots() -> dict[str, list[Shot]]:
    """By photograph and what was done to it: the frame from `SHIFTS` places, judged."""
    bundle = open_bundle(bundled_engine())
    pipeline = FramePipeline(PipelineLimits(), Analyzer(bundle, appearance=True), bundle)
    found: dict[str, list[Shot]] = {}
    for frame in demo_frames():
        if frame.kind not in ("untouched", "manipulated"):
            continue
        query = Query(region="mouth") if "mouth" in frame.place else None
        images = [seen_from(frame.encoded, number) for number in range(SHIFTS)]
        verdicts = pipeline.judge([EncodedImage(image, query=query) for image in images])
        found[frame.name] = [Shot(image, query, verdict) for image, verdict in zip(images, verdicts, strict=True) if isinstance(verdict, Verdict)]
    return found


def seen_from(encoded: bytes, number: int) -> bytes:
    """A photograph, its window moved a little."""
    with Image.open(BytesIO(encoded)) as opened:
        image = opened.convert("RGB")
    side = round(image.width * WINDOW)
    reach = image.width - side
    left, top = (round(reach * (0.5 + 0.5 * float(turn(number * 2 * np.pi / SHIFTS)))) for turn in (np.cos, np.sin))
    buffer = BytesIO()
    image.crop((left, top, left + side, top + side)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def write_records(folder: Path, taken: dict[str, list[Shot]], num_cases: int) -> None:
    """`frames.jsonl` and `verdicts.jsonl`: streams of `FRAMES_A_STREAM`, one in three untouched, the others manipulated in their second quarter and
    their last."""
    memory = PartitionMemory(MemoryLimits(), max_streams=10_000)
    untouched = [name for name in taken if "(" not in name]
    with (folder / "frames.jsonl").open("w") as frames, (folder / "verdicts.jsonl").open("wb") as verdicts:
        for offset in range(num_cases):
            number, at = divmod(offset, FRAMES_A_STREAM)
            plain = untouched[number % len(untouched)]
            edits = [name for name in taken if name.startswith(f"{plain}, ") and "(" in name]
            is_edited = number % 3 != 0 and at * 4 // FRAMES_A_STREAM in (1, 3)
            shot = taken[edits[number % len(edits)] if is_edited else plain][at % SHIFTS]
            key = f"camera-{number:03d}".encode()
            headers = [("stream-id", key), ("frame-index", str(at).encode()), ("pts-ms", str(at * FRAME_MS).encode())]
            if at == FRAMES_A_STREAM - 1:
                headers.append(("stream-end", b"true"))
            record = OutRecord(key, shot.encoded, tuple(headers))
            raw = RawRecord("fifa.frames", 0, offset, START_MS + offset * FRAME_MS, key, shot.encoded, record.headers)
            if offset < RECORDED:
                frames.write(Recorded.of(record, topic=raw.topic, partition=0, offset=offset, timestamp_ms=raw.timestamp_ms).line() + "\n")
            frame = parse_frame(raw, max_value_bytes=1 << 24)
            verdict = shot.verdict.model_copy(update={"id": raw.place, "input": InputCoordinates.of(frame)})
            seen = memory.see(frame, verdict)
            assert seen is not None, "nothing was shed"
            memory.keep(seen)
            verdicts.write(seen.verdict.to_bytes() + b"\n")


@contextlib.contextmanager
def running(folder: Path, *options: str, frames: Path | None = None) -> Iterator[str]:
    """The desk as a process of its own, on the files of a folder; its address."""
    command = [sys.executable, "-m", "fifa_stream.cli", "review", "--reviewer", "A. Reviewer", "--port", "0", *options]
    command += ["--verdicts", str(folder / "verdicts.jsonl"), "--frames", str(frames or folder / "frames.jsonl")]
    command += ["--decisions", str(folder / "reviews.jsonl")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            address = next(line.split()[1] for line in process.stdout if line.startswith("open "))
            yield address
        finally:
            process.terminate()


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """Debian's browser, without a window."""
    executable = shutil.which("chromium") or shutil.which("google-chrome")
    if executable is None:
        raise SystemExit("needs Chromium: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox", "--disable-dev-shm-usage"])
        try:
            yield browser
        finally:
            browser.close()


def opened(browser: Browser, address: str, *, dark: bool = False) -> Page:
    """The desk in a page of its own, its first case shown."""
    page = browser.new_page(viewport={"width": 1400, "height": 1100}, color_scheme="dark" if dark else "light", reduced_motion="reduce")
    page.add_init_script(LONG_TASKS)
    page.goto(address)
    page.locator("#case-faces .view, #case-faces p").first.wait_for()
    until(page, "document.querySelector('#player-time').textContent !== '' && !desk.isOpening")
    until(page, ROWS_ARE_FILLED)
    return page


def until(page: Page, holds: str, *, timeout_s: float = 20.0) -> None:
    """Wait until an expression holds in the page. Playwright's own way to wait evaluates strings there, which the desk's policy forbids."""
    deadline = time.monotonic() + timeout_s
    while not page.evaluate(holds):
        assert time.monotonic() < deadline, f"did not come to hold: {holds}"
        page.wait_for_timeout(20)


ROWS_ARE_FILLED = "[...document.querySelectorAll('#rows .row')].every((row) => row.children.length)"
IS_AT_END = "list.scrollTop + list.clientHeight >= list.scrollHeight - 1"


BUSY = "new Promise((done) => setTimeout(() => { const began = performance.now(); while (performance.now() - began < 120); setTimeout(done, 200); }))"


def scroll(page: Page, *, steps: int = 120, walked: int = 40) -> Scrolled:
    """From the first case to the last by the wheel, back by the keyboard's Home, then case by case."""
    page.evaluate(BUSY)
    assert page.evaluate("window.longTasks.some((one) => one > 100)"), "the observer does not see a task of 120 ms"
    page.evaluate("window.longTasks.length = 0")
    page.locator("#list").hover()
    height = page.evaluate("document.querySelector('#rows').clientHeight")
    for _ in range(steps):
        page.mouse.wheel(0, height / steps)
        page.evaluate("new Promise(requestAnimationFrame)")
    until(page, IS_AT_END)
    until(page, ROWS_ARE_FILLED)
    page.locator("#list").focus()
    page.keyboard.press("Home")
    until(page, "document.querySelector('#list').scrollTop === 0")
    until(page, "document.querySelector('#row-0')?.getAttribute('aria-selected') === 'true' && !desk.isOpening")
    tasks, rows = _long_tasks(page), page.locator("#rows .row").count()
    for number in range(1, walked + 1):
        page.keyboard.press("j")
        until(page, f"queue.at === {number} && !desk.isOpening && desk.case.n === queue.cases[{number}]")
    return Scrolled(page.evaluate("queue.cases.length"), steps, tasks, rows, walked, _long_tasks(page))


def _long_tasks(page: Page) -> tuple[float, ...]:
    """What the observer saw since the last call."""
    page.evaluate("new Promise((done) => setTimeout(done, 300))")  # it tells of a task after it
    tasks = tuple(float(one) for one in page.evaluate("window.longTasks"))
    page.evaluate("window.longTasks.length = 0")
    return tasks


def violations(page: Page) -> list[str]:
    """What axe finds against WCAG 2.2 A and AA: rule and place."""
    found = Axe().run(page, options=WCAG).response["violations"]
    return [f"{one['id']}: {' '.join(node['target'][0] for node in one['nodes'][:3])}: {one['help']}" for one in found]


VIEWS = ("queue, case, player, choosing phrases", "help")
"""The first is one document, of which a screen shows a part."""


def show(page: Page, view: str) -> None:
    """Bring a view up, by keys."""
    page.keyboard.press("Escape")
    page.locator("#case").focus()
    page.keyboard.press("Escape")
    if view == "help":
        page.keyboard.press("?")
        page.locator("#help[open]").wait_for()
    else:
        show_segment(page)
        page.keyboard.press("p")
        page.locator("#choose").wait_for()


def show_segment(page: Page) -> None:
    """The peak of a segment of the stream at hand."""
    page.keyboard.press("]")
    page.keyboard.press("[")
    until(page, "desk.segment !== null && !desk.isOpening")


def picture(page: Page, path: Path) -> int:
    """The page as WebP; its size in bytes."""
    until(page, "[...document.querySelectorAll('#case image')].every((image) => image.getBBox().width > 0)")
    page.evaluate("new Promise((done) => setTimeout(done, 250))")
    with Image.open(io.BytesIO(page.screenshot())) as shot:
        shot.convert("RGB").save(path, "WEBP", quality=82, method=6)
    return path.stat().st_size


def screenshots(browser: Browser, address: str, folder: Path) -> list[tuple[Path, int]]:
    """The desk by day and by night, the player and the keys."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    page = opened(browser, address)
    page.locator("button.phrase").nth(1).hover()
    written.append((folder / "desk.webp", picture(page, folder / "desk.webp")))
    page.mouse.move(5, 5)
    show_segment(page)
    page.locator("#player").scroll_into_view_if_needed()
    written.append((folder / "desk-player.webp", picture(page, folder / "desk-player.webp")))
    page.close()
    page = opened(browser, address, dark=True)
    page.keyboard.press("p")
    written.append((folder / "desk-dark.webp", picture(page, folder / "desk-dark.webp")))
    page.keyboard.press("Escape")
    show(page, "help")
    written.append((folder / "desk-keys.webp", picture(page, folder / "desk-keys.webp")))
    page.close()
    return written


def table(scrolled: Sequence[Scrolled], found: dict[str, list[str]], opening_s: float, version: str) -> str:
    """The figures as Markdown."""
    lines = [
        f"# The desk in Chromium {version}, {datetime.now(UTC):%Y-%m-%d}",
        "",
        f"`python -m bench.desk`; headless, two shared cores. Records of the shipped engine: frames of the demo from {SHIFTS} places, each judged "
        "once, repeated in streams that the worker's own memory follows.",
        "",
        "| cases | wheel steps from end to end | longest task, ms | tasks above 50 ms | rows in the page | opened one by one | longest task, ms |",
        "|---|---|---|---|---|---|---|",
        *(
            f"| {one.cases} | {one.steps} | {_longest(one.long_tasks_ms)} | {len(one.long_tasks_ms)} | {one.rows_in_page} "
            f"| {one.walked} | {_longest(one.walk_tasks_ms)} |"
            for one in scrolled
        ),
        "",
        f"From the command to the first case on the page, {scrolled[0].cases} cases: {opening_s:.1f} s.",
        "",
        "| view | violations of WCAG 2.2 A and AA that axe finds |",
        "|---|---|",
        *(f"| {view} | {'; '.join(rules) or 'none'} |" for view, rules in found.items()),
        "",
    ]
    return "\n".join(lines)


def _longest(tasks_ms: Sequence[float]) -> str:
    return f"{max(tasks_ms):.0f}" if tasks_ms else "none above 50"


def main() -> int:
    """Measure, write, and say whether what is asked holds."""
    parser = argparse.ArgumentParser(prog="python -m bench.desk", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", type=int, nargs="+", default=[1_000, 20_000])
    parser.add_argument("--work", type=Path, help="keep the records here between runs")
    parser.add_argument("--screenshots", type=Path)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    scrolled: list[Scrolled] = []
    found: dict[str, list[str]] = {}
    opening_s = 0.0
    with tempfile.TemporaryDirectory() as temporary, chromium() as browser:
        work = arguments.work or Path(temporary)
        taken: dict[str, list[Shot]] | None = None
        for number, num_cases in enumerate(arguments.cases):
            folder = work / str(num_cases)
            if not (folder / "verdicts.jsonl").exists():
                folder.mkdir(parents=True, exist_ok=True)
                taken = taken or shots()
                write_records(folder, taken, num_cases)
            (folder / "reviews.jsonl").unlink(missing_ok=True)
            began = time.monotonic()
            with running(folder) as address:
                page = opened(browser, address)
                if number == 0:
                    opening_s = time.monotonic() - began
                scrolled.append(scroll(page))
                page.close()
                if number:
                    continue
                for dark in (False, True):
                    page = opened(browser, address, dark=dark)
                    for view in VIEWS:
                        show(page, view)
                        found[f"{view}, {'dark' if dark else 'light'}"] = violations(page)
                    page.close()
                if arguments.screenshots:
                    for path, size in screenshots(browser, address, arguments.screenshots):
                        print(f"{path}: {size} bytes")
        page_text = table(scrolled, found, opening_s, browser.version)
    print(page_text)
    if arguments.out:
        arguments.out.write_text(page_text, "utf-8")
    return int(any(found.values()) or any(max(one.long_tasks_ms, default=0) > ROUGHEST_MS for one in scrolled))


if __name__ == "__main__":
    sys.exit(main())
