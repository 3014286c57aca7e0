"""The desk as people have it: a thousand cases, keys alone, axe, and strings that would be markup elsewhere.

How long anything takes is for `python -m bench.desk`.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
pytest.importorskip("axe_playwright_python", reason="needs axe-playwright-python")

from bench.desk import VIEWS, chromium, opened, running, scroll, show, show_segment, until, violations  # noqa: E402
from fifa_stream.review.export import verify  # noqa: E402

STREAMS, FRAMES = 25, 40
HOSTILE = "<script>document.title='gone'</script>\u202edlo\u0000\u2066<img src=x onerror=\"document.title='gone'\"><b>bold</b>"
TOKEN = "0123456789abcdef-a-token"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if shutil.which("chromium") is None and shutil.which("google-chrome") is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    with chromium() as one:
        yield one


def write(folder: Path, toys: Any, verdicts: Any) -> Path:
    """Verdicts, and each different picture once."""
    (folder / "verdicts.jsonl").write_bytes(b"".join(verdict.to_bytes() + b"\n" for verdict in verdicts))
    images = folder / "images"
    images.mkdir()
    for number, (image, _) in enumerate(toys._made.values()):
        (images / f"{number}.png").write_bytes(image)
    return images


@pytest.fixture(scope="module")
def folder(toys_of_module: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("cases")
    verdicts = [one for number in range(STREAMS) for one in toys_of_module.of_a_stream(FRAMES, stream=f"camera {number}", first=number * FRAMES)]
    write(folder, toys_of_module, verdicts)
    return folder


@pytest.fixture(scope="module")
def address(browser: Any, folder: Path) -> Iterator[str]:
    with running(folder, frames=folder / "images") as address:
        yield address


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    complaints: list[str] = []
    page = opened(browser, address)
    page.on("console", lambda message: complaints.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    yield page
    page.close()
    assert complaints == []


def decided(folder: Path) -> list[dict[str, Any]]:
    path = folder / "reviews.jsonl"
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def case(page: Any) -> Any:
    return page.evaluate("desk.case.n")


def press(page: Any, *keys: str) -> None:
    """Keys, the first of them once the case is shown."""
    until(page, "!desk.isOpening")
    page.evaluate("say('')")
    for key in keys:
        page.keyboard.press(key)


def test_a_thousand_cases_scroll_with_a_handful_of_rows_in_the_page(page: Any) -> None:
    scrolled = scroll(page, steps=40, walked=3)
    assert scrolled.cases == STREAMS * FRAMES and scrolled.rows_in_page < 60
    page.keyboard.press("End")
    until(page, f"document.querySelector('#row-{STREAMS * FRAMES - 1}')?.getAttribute('aria-selected') === 'true'")
    until(page, "list.getAttribute('aria-activedescendant') === document.querySelector('[aria-selected=true]').id")


def test_every_action_is_a_key(page: Any, folder: Path) -> None:
    def told(words: str) -> None:
        until(page, f"find('said').textContent.startsWith({json.dumps(words)})")

    first = case(page)
    before = len(decided(folder)) if (folder / "reviews.jsonl").exists() else 0
    press(page, "a")
    told("agree")
    until(page, f"desk.case.n !== {first}")  # the next one comes by itself
    second = case(page)
    press(page, "k")
    until(page, f"desk.case.n === {first}")
    press(page, "j")
    until(page, f"desk.case.n === {second}")
    press(page, "d")
    told("disagree")
    press(page, "u")
    told("undone")
    until(page, f"desk.case.n === {second}")
    press(page, "p", "1", "Enter")
    told("wrong place")
    press(page, "u")
    told("undone")
    press(page, "t", "Escape", "t", "1", "Enter")
    told("wrong text")
    press(page, "u")
    told("undone")
    with page.expect_download() as download:
        press(page, "e")
    verified = verify(Path(download.value.path()).read_bytes())
    assert download.value.suggested_filename.endswith(".zip") and verified.verdict.id == page.evaluate("desk.case.verdict")
    press(page, "c")
    page.keyboard.type("a comment with the keys a d p t s u ?")
    page.keyboard.press("Escape")
    press(page, "s")
    told("skip")
    lines = decided(folder)[before:]
    assert [line["decision"] for line in lines] == ["agree", "disagree", "skip", "wrong_place", "skip", "wrong_text", "skip", "skip"]
    assert [line["withdrawn"] for line in lines] == [False, False, True, False, True, False, True, False]
    assert lines[3]["evidence"] == ["0.0"] and lines[3]["objected"] == ["left_cheek"] and lines[0]["sampling"] == "score"
    assert lines[-1]["comment"] == "a comment with the keys a d p t s u ?" and {line["reviewer"] for line in lines} == {"A. Reviewer"}


def test_an_inconclusive_face_is_told_by_a_key(page: Any, folder: Path) -> None:
    page.keyboard.press("o")
    page.keyboard.press("Tab")
    page.keyboard.type("inc")  # as a select is used without a mouse
    until(page, "document.querySelector('#count').textContent === '400 cases' && desk.case.label === 'inconclusive'")
    page.keyboard.press("Escape")
    press(page, "d", "Enter")
    until(page, "find('said').textContent === 'Choose real or fake.'")
    press(page, "f", "Enter")
    until(page, "find('said').textContent.startsWith('disagree')")
    assert (decided(folder)[-1]["label"], decided(folder)[-1]["truth"]) == ("inconclusive", "fake")


def test_a_stream_is_stepped_and_played_by_keys(page: Any) -> None:
    show_segment(page)
    peak = case(page)
    press(page, "ArrowLeft")
    until(page, f"desk.case.n === {peak - 1}")
    press(page, "ArrowRight")
    until(page, f"desk.case.n === {peak}")
    begin = peak - FRAMES + 1
    page.evaluate(f"openCase({begin}, null)")
    until(page, f"desk.case.n === {begin} && player.at === 0")
    press(page, " ")
    until(page, f"desk.case.n >= {begin + 2} && find('play').getAttribute('aria-pressed') === 'true'")
    press(page, " ")
    until(page, "find('play').getAttribute('aria-pressed') === 'false'")
    assert page.locator("#scrubber").get_attribute("aria-valuetext").endswith("of 40") and page.locator("#segments li").count() == 1
    assert page.locator("#player-chart .segment").count() == 1 and page.locator("#player-chart .smooth").count() == 1


def test_a_key_that_is_held_decides_once(page: Any, folder: Path) -> None:
    press(page, "o", "Escape")
    page.evaluate("choose(20)")
    until(page, "desk.case.n === queue.cases[20] && !desk.isOpening")
    before = len(decided(folder)) if (folder / "reviews.jsonl").exists() else 0
    page.keyboard.down("a")
    until(page, "desk.case.n === queue.cases[21] && !desk.isOpening")
    page.keyboard.down("a")  # as the keyboard repeats it
    page.keyboard.up("a")
    press(page, "s")
    until(page, "desk.case.n === queue.cases[22]")
    assert [line["decision"] for line in decided(folder)[before:]] == ["agree", "skip"]


def test_a_comment_and_a_type_are_for_one_decision(page: Any, folder: Path) -> None:
    page.evaluate("choose(queue.cases.length - 1)")  # after which no other case comes
    until(page, "desk.case.n === queue.cases.at(-1) && !desk.isOpening")
    page.locator("#comment").fill("of the first")
    page.locator("#true-type").select_option("entire_synthesis")
    page.locator("#true-type").press("Escape")
    press(page, "d")
    until(page, "find('said').textContent.startsWith('disagree')")
    press(page, "d")
    until(page, "find('said').textContent.startsWith('disagree')")
    first, second = decided(folder)[-2:]
    assert (first["comment"], first["true_forgery_type"]) == ("of the first", "entire_synthesis")
    assert (second["comment"], second["true_forgery_type"]) == ("", None)


SLOWLY = """(() => {
  const asked = fetch;
  globalThis.fetch = async (path, ...more) => {
    if (String(path).startsWith("/api/cases/")) await new Promise((done) => setTimeout(done, 400));
    return asked(path, ...more);
  };
})()"""


def test_a_case_that_is_still_on_its_way_does_not_come_after_an_undo(page: Any) -> None:
    page.evaluate("choose(30)")
    until(page, "desk.case.n === queue.cases[30] && !desk.isOpening")
    page.evaluate(SLOWLY)
    page.keyboard.press("s")
    until(page, "find('said').textContent.startsWith('skip')")
    page.wait_for_timeout(100)
    page.keyboard.press("u")
    until(page, "find('said').textContent.startsWith('undone')")
    page.wait_for_timeout(700)
    assert page.evaluate("desk.case.n === queue.cases[30] && queue.at === 30 && !desk.isOpening")


def test_how_a_case_came_up_is_told_of_the_queue_and_not_of_where_it_lies(page: Any, folder: Path) -> None:
    """Of a draw by chance what lies in a segment may not be missing, and what was stepped to was not drawn."""

    def sampled(key: str) -> tuple[str, str | None]:
        before = len(decided(folder)) if (folder / "reviews.jsonl").exists() else 0
        press(page, key)
        until(page, "find('said').textContent.startsWith('skip')")
        (line,) = decided(folder)[before:]
        return line["sampling"], line["segment"]

    scored = page.evaluate("queue.cases[0]")
    page.locator("#order").select_option("random")
    until(page, f"queue.cases.length === 1000 && queue.at === 0 && queue.cases[0] !== {scored} && desk.case.n === queue.cases[0] && !desk.isOpening")
    number = page.evaluate("queue.cases.findIndex((number) => number % 40 === 25)")
    page.evaluate(f"choose({number})")
    until(page, f"desk.case.n === queue.cases[{number}] && !desk.isOpening && player.segmentAt() !== null")
    assert sampled("s") == ("random", None), "drawn by chance, and inside a segment"
    until(page, f"desk.case.n === queue.cases[{number + 1}] && !desk.isOpening")
    page.evaluate(f"choose({page.evaluate('queue.cases.findIndex((number) => number % 40 === 3)')})")
    until(page, "desk.case.n % 40 === 3 && !desk.isOpening && player.at === 3")
    page.keyboard.press("ArrowRight")
    until(page, "desk.case.n % 40 === 4")
    assert sampled("s") == ("other", None), "stepped to"
    page.keyboard.press("u")
    until(page, "find('said').textContent.startsWith('undone') && desk.case.n % 40 === 4 && !desk.isOpening")
    assert sampled("s") == ("other", None), "came back"
    page.locator("#standing").select_option("mine")
    until(page, "queue.at === 0 && desk.case.n === queue.cases[0] && queue.cases.length < 1000 && !desk.isOpening")
    assert sampled("s") == ("other", None), "drawn from what I chose before"


LIT = "[...document.querySelectorAll('#case .is-active')].map((part) => part.classList[0]).sort().join('+')"


def test_a_phrase_shows_its_mask_and_a_mask_its_phrase(page: Any) -> None:
    both = "hit+mask+phrase"
    page.locator("#case .phrase").first.hover()
    assert page.evaluate(LIT) == both
    page.mouse.move(2, 2)
    assert page.evaluate(LIT) == ""
    page.locator("#case .hit").first.focus()
    until(page, f"{LIT} === '{both}'")
    page.keyboard.press("Enter")
    assert page.locator("#case .phrase").first.get_attribute("aria-pressed") == "true"
    page.keyboard.press("Escape")
    assert page.locator("#case .phrase").first.get_attribute("aria-pressed") == "false"


SHOWS_FOCUS = """(() => {
  const at = document.activeElement, style = getComputedStyle(at);
  return [at.tagName, style.outlineStyle !== "none" && style.outlineWidth !== "0px" || style.stroke === "rgb(255, 255, 255)"];
})()"""


def test_wherever_tab_leads_the_focus_is_seen(page: Any) -> None:
    tags = set()
    for _ in range(32):
        page.keyboard.press("Tab")
        tag, is_shown = page.evaluate(SHOWS_FOCUS)
        assert is_shown or tag == "BODY", tag
        tags.add(tag)
    assert {"A", "BUTTON", "SELECT", "DIV", "path", "TEXTAREA", "INPUT"} <= tags


def test_a_page_loaded_again_shows_the_case_and_what_was_decided(page: Any) -> None:
    page.evaluate("choose(5)")
    until(page, "desk.case.n === queue.cases[5]")
    number = case(page)
    press(page, "a")
    until(page, f"desk.case.n !== {number}")
    page.goto(page.url.split("#")[0] + f"#{number}")
    page.reload()
    until(page, f"typeof desk !== 'undefined' && desk.case?.n === {number} && queue.at >= 0")
    assert page.locator(".decide .is-mine").get_attribute("data-decision") == "agree" and "A. Reviewer" in page.locator("#decisions").inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(browser: Any, address: str, scheme: str) -> None:
    page = opened(browser, address, dark=scheme == "dark")
    found = {}
    for view in VIEWS:
        show(page, view)
        found[view] = violations(page)
    page.evaluate("find('help').style.background = '#777'; find('help-title').style.color = '#888'")
    assert [one.partition(":")[0] for one in violations(page)] == ["color-contrast"], "axe looks"
    page.close()
    assert found == {view: [] for view in VIEWS}


def test_the_help_names_every_key_and_can_turn_single_keys_off(page: Any) -> None:
    page.keyboard.press("?")
    assert page.locator("#keys tr").count() == page.evaluate("KEYS.length") + 1
    number = case(page)
    page.locator("#single-keys").focus()
    page.keyboard.press(" ")
    page.keyboard.press("Escape")
    page.keyboard.press("j")
    page.keyboard.press("Alt+j")
    until(page, "queue.at === 1")
    until(page, f"desk.case.n !== {number}")
    page.evaluate("localStorage.clear()")


def test_behind_its_token_strings_of_a_record_stay_text(browser: Any, toys: Any, tmp_path: Path) -> None:
    verdict = toys.verdict(0, level=220, camera=HOSTILE)
    (face,) = verdict.faces
    assert face.explanation is not None
    text, item = HOSTILE + "y" * 10_000, face.evidence[0]
    changes = {
        "explanation": face.explanation.model_copy(update={"text": text}),
        "evidence": (item.model_copy(update={"phrase": HOSTILE, "char_span": (0, 8), "concept_path": (HOSTILE,), "measured": {HOSTILE: 1.0}}),),
        "forgery_type": face.forgery_type.model_copy(update={"label": HOSTILE, "probs": {HOSTILE: 1.0}}),
    }
    media = verdict.media.model_copy(update={"uri": HOSTILE, "content_type": HOSTILE})
    engine = verdict.engine.model_copy(update={"name": HOSTILE, "version": HOSTILE})
    cuts = verdict.operating_point.model_copy(update={"name": HOSTILE})
    (streamed,) = toys.of_a_stream(1)
    (segment,) = streamed.segments
    segment = segment.model_copy(
        update={"id": HOSTILE, "forgery_type": HOSTILE, "evidence": (segment.evidence[0].model_copy(update={"concept": HOSTILE}),)}
    )
    point = streamed.timeline[0].model_copy(update={"t_ms": (1 << 63) - 1})  # as header pts-ms may say
    changed = {"id": HOSTILE, "faces": (face.model_copy(update=changes),), "media": media, "engine": engine, "operating_point": cuts}
    hostile = verdict.model_copy(update=changed | {"timeline": (point,), "segments": (segment,), "stream": streamed.stream})
    images = write(tmp_path, toys, [hostile])
    (tmp_path / "token").write_text(TOKEN)
    with running(tmp_path, "--token-file", str(tmp_path / "token"), frames=images) as address:
        page = browser.new_page()
        complaints: list[str] = []
        page.on("dialog", lambda dialog: complaints.append(dialog.message))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(address)
        page.locator("#entry[open]").wait_for()
        page.keyboard.type("not the token, but as long")
        page.keyboard.press("Enter")
        until(page, "find('entry-said').textContent === 'that is not the token'")
        page.locator("#token").fill(TOKEN)
        page.keyboard.press("Enter")
        page.locator("#case-faces .view image").first.wait_for()
        page.locator("#comment").fill(HOSTILE)
        page.keyboard.press("Escape")
        page.keyboard.press("a")
        page.locator("#decisions li").first.wait_for()
        page.locator("#segments button").first.click()
        until(page, "desk.segment !== null && !desk.isOpening")
        page.keyboard.press("p")
        page.locator("#choose").wait_for()
        shown = page.locator("body").inner_text()
        assert page.title() == "Review desk" and complaints == []
        assert page.evaluate("document.querySelectorAll('body script, body img, body b').length") == 0
        assert shown.count("<script>document.title='gone'</script>") >= 8 and "\\u{202e}" in shown and "yyyy" in shown
        assert not {"\u202e", "\u2066", "\u0000"} & set(page.evaluate("document.documentElement.textContent"))
        page.close()
    assert decided(tmp_path)[0]["comment"] == HOSTILE
