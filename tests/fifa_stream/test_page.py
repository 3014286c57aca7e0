"""The page loads nothing, escapes everything, and ties each phrase to its mask."""

import base64
import hashlib
import re
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fifa_stream.infer import EncodedImage
from fifa_stream.page import PageEntry, render_page, write_page
from fifa_stream.records import Note, NoteCode, Query, Verdict

MakeBench = Callable[..., Any]
MakeImage = Callable[..., bytes]
HOSTILE = "<script>alert(1)</script><img src=x onerror='a()'>\"&amp;"


class _Tags(HTMLParser):
    """Every tag and attribute of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def with_attribute(self, name: str) -> list[tuple[str, dict[str, str]]]:
        return [(tag, attributes) for tag, attributes in self.tags if name in attributes]


@pytest.fixture
def entry(make_bench: MakeBench, make_image: MakeImage) -> PageEntry:
    """One explained face."""
    image = make_image()
    (verdict,) = make_bench().pipeline.judge([EncodedImage(image)])
    return PageEntry("door 7", image, verdict, expected="not fake", is_as_expected=False)


def test_every_phrase_has_a_button_a_mask_and_a_shape_to_point_at(entry: PageEntry) -> None:
    parts = _Tags(render_page([entry], title="t")).with_attribute("data-evidence")
    assert [(tag, attributes["class"].split()[0]) for tag, attributes in parts] == [("image", "mask"), ("path", "hit"), ("button", "phrase")]
    assert {attributes["data-evidence"] for _, attributes in parts} == {"0-0-0"}


@pytest.fixture
def make_asked(make_bench: MakeBench, make_image: MakeImage) -> Callable[..., PageEntry]:
    """One asked face: `make_asked(query, level=)`."""

    def build(query: Query, *, level: int = 190) -> PageEntry:
        image = make_image(level=level)
        (verdict,) = make_bench().pipeline.judge([EncodedImage(image, query=query)])
        return PageEntry("door 7", image, verdict)

    return build


def test_an_answer_has_its_chip_and_text_and_masks_that_can_be_pointed_at(make_asked: Callable[..., PageEntry]) -> None:
    page = render_page([make_asked(Query(box_xyxy=(100, 60, 200, 150)))], title="t")
    assert '<span class="chip tampered">tampered</span>' in page and "Asked: <button" in page and ">box 100, 60, 200, 150</button>" in page
    kinds: dict[str, list[str]] = {}
    for _, attributes in _Tags(page).with_attribute("data-evidence"):
        kinds.setdefault(attributes["data-evidence"], []).append(attributes["class"].split()[0])
    assert kinds.keys() == {"0-0-0", "0-0-asked", "0-0-asked-0"}
    assert all(sorted(parts) == ["hit", "mask", "phrase"] for parts in kinds.values())
    boxes = [attributes for tag, attributes in _Tags(page).tags if tag == "rect" and attributes.get("class") == "asked"]
    assert boxes[0] == {"class": "asked", "x": "100", "y": "60", "width": "100", "height": "90"} and len(boxes) == 2


def test_a_clean_answer_has_a_text_and_nothing_to_point_at(make_asked: Callable[..., PageEntry]) -> None:
    page = render_page([make_asked(Query(region="right_cheek"), level=60)], title="t")
    assert "<h4>Asked: right cheek</h4>" in page and '<span class="chip clean">clean</span>' in page and "Nothing here is manipulated." in page
    assert not _Tags(page).with_attribute("data-evidence")


def test_a_question_that_nobody_was_asked_has_its_note_and_no_answer(make_asked: Callable[..., PageEntry]) -> None:
    page = render_page([make_asked(Query(box_xyxy=(0, 0, 5, 5)))], title="t")
    assert "query_not_on_a_face" in page and "Asked:" not in page


def test_a_mask_is_a_small_png_that_covers_what_the_verdict_says(entry: PageEntry) -> None:
    (mask,) = [a for _, a in _Tags(render_page([entry], title="t")).with_attribute("href") if a.get("class") == "mask"]
    kind, _, payload = mask["href"].partition(",")
    assert kind == "data:image/png;base64" and len(payload) < 4000
    with Image.open(BytesIO(base64.b64decode(payload))) as image:
        alpha = image.convert("RGBA").getchannel("A")
    left, _, right, _ = alpha.getbbox() or (0, 0, 0, 0)
    assert abs(left - alpha.width / 2) <= 2 and right > 0.8 * alpha.width  # the toy's mask is the right half of the crop


def test_nothing_is_loaded_and_only_our_own_style_and_script_run(entry: PageEntry) -> None:
    page = render_page([entry], title="t")
    tags = _Tags(page)
    for name in ("src", "href", "action"):
        assert all(attributes[name].startswith(("data:", "#")) for _, attributes in tags.with_attribute(name))
    (policy,) = [attributes["content"] for _, attributes in tags.with_attribute("http-equiv")]
    assert policy.startswith("default-src 'none'; img-src data:;") and "unsafe" not in policy
    for element in ("style", "script"):
        (body,) = re.findall(f"<{element}>(.*?)</{element}>", page, re.DOTALL)
        assert f"{element}-src 'sha256-{base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()}'" in policy
    assert not tags.with_attribute("style") and not [a for _, attributes in tags.tags for a in attributes if a.startswith("on")]
    assert "innerHTML" not in page


def test_strings_of_a_record_never_become_html(make_asked: Callable[..., PageEntry], make_image: MakeImage) -> None:
    entry = make_asked(Query(region="nose"))
    assert isinstance(entry.outcome, Verdict) and entry.outcome.query is not None
    face = entry.outcome.faces[0]
    assert face.explanation is not None
    item = face.evidence[0].model_copy(update={"phrase": HOSTILE, "char_span": (0, 6), "concept_path": (HOSTILE,), "measured": {HOSTILE: 1.0}})
    hostile_face = face.model_copy(
        update={"evidence": (item,), "explanation": face.explanation.model_copy(update={"text": HOSTILE}), "notes": _hostile_notes()}
    )
    explained = {"evidence": (item,), "explanation": hostile_face.explanation}
    answers = tuple(answer.model_copy(update=explained) for answer in entry.outcome.query.answers)
    query = entry.outcome.query.model_copy(update={"region": HOSTILE, "answers": answers})
    media = entry.outcome.media.model_copy(update={"content_type": HOSTILE})
    engine = entry.outcome.engine.model_copy(update={"name": HOSTILE, "version": HOSTILE})
    changes = {"faces": (hostile_face,), "media": media, "engine": engine, "timings_ms": {HOSTILE: 1.0}, "notes": _hostile_notes(), "query": query}
    verdict = entry.outcome.model_copy(update=changes)
    page = render_page(
        [PageEntry(HOSTILE, make_image(), verdict, HOSTILE, HOSTILE, True), PageEntry(HOSTILE, None, HOSTILE)], title=HOSTILE, banner=HOSTILE
    )
    tags = _Tags(page).tags
    assert [tag for tag, _ in tags].count("script") == 1 and not [tag for tag, _ in tags if tag == "img"]
    assert page.count("Asked: ") == 1 and "alert(1)" in page and not [a for _, attributes in tags for a in attributes if a.startswith("on")]


def _hostile_notes() -> Any:
    return (Note(code=NoteCode.BLURRED, message=HOSTILE),)


def test_expected_stands_beside_got(entry: PageEntry) -> None:
    page = render_page([entry], title="t")
    assert "<td>not fake</td><td>NO</td>" in page
    assert "Expected" not in render_page([PageEntry("a", None, entry.outcome)], title="t")


def test_a_file_that_changed_since_is_shown_without_its_picture(entry: PageEntry, tmp_path: Path, make_image: MakeImage) -> None:
    (tmp_path / "a.png").write_bytes(make_image(level=10))
    page = render_page([PageEntry("a", tmp_path / "a.png", entry.outcome)], title="t")
    assert "data:image/jpeg" not in page and "left cheek" in page


PROBE = """<script>
const lit = () => [...document.querySelectorAll(".is-active")].map((part) => part.classList[0]).sort().join("+") || "none";
const phrase = document.querySelector(".phrase"), hit = document.querySelector(".hit"), seen = [lit()];
// A page that the browser has not given the focus yet, as on a loaded machine, moves its focus but fires no event: the probe then fires it.
const move = (part, kind) => {
  part[kind]();
  if (!document.hasFocus()) part.dispatchEvent(new FocusEvent(kind));
  return (document.activeElement === part) === (kind === "focus");
};
seen.push(move(phrase, "focus") && lit()); seen.push(move(phrase, "blur") && lit());
hit.dispatchEvent(new Event("pointerenter")); seen.push(lit()); hit.dispatchEvent(new Event("pointerleave")); seen.push(lit());
phrase.click(); move(phrase, "blur"); seen.push(lit() + phrase.getAttribute("aria-pressed"));
hit.dispatchEvent(new KeyboardEvent("keydown", {key: "Escape"})); seen.push(lit() + phrase.getAttribute("aria-pressed"));
document.title = seen.join(" ");
</script>"""


def _dumped_by_chromium(page: Path) -> tuple[str, list[str]]:
    """The DOM after the scripts have run, and what went to the console."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    command = [
        chromium,
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        f"--user-data-dir={page.parent / 'profile'}",
        "--enable-logging=stderr",
        "--v=0",
        "--dump-dom",
        page.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def test_chromium_opens_the_page_without_a_console_error(entry: PageEntry, tmp_path: Path) -> None:
    write_page(tmp_path / "page.html", [entry, PageEntry("refused", None, "undecodable_image: cut short")], title="t", banner="b")
    dom, console = _dumped_by_chromium(tmp_path / "page.html")
    assert console == [] and 'data-evidence="0-0-0"' in dom


def test_phrase_and_mask_light_each_other(entry: PageEntry, tmp_path: Path) -> None:
    page = re.sub(r"<meta http-equiv=[^>]*>", "", render_page([entry], title="t"))  # our policy would not run the probe
    (tmp_path / "page.html").write_text(page.replace("</body>", PROBE + "</body>"), encoding="utf-8")
    dom, _ = _dumped_by_chromium(tmp_path / "page.html")
    both = "hit+mask+phrase"
    assert f"<title>none {both} none {both} none {both}true nonefalse</title>" in dom
