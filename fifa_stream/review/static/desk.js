"use strict";
// The desk: a queue that holds only the rows in sight, the case at hand, and decisions. Text of a record is only ever text: nothing here parses HTML.
const ROW_PX = 52, SPARE_ROWS = 6, MAX_KEPT_ROWS = 4000, ROWS_AT_ONCE = 100;
const SVG = "http://www.w3.org/2000/svg";

const find = (id) => document.getElementById(id);

const filled = (element, attributes, children) => {
  for (const [name, value] of Object.entries(attributes)) if (value !== undefined) element.setAttribute(name, value);
  element.append(...children);
  return element;
};
const el = (tag, attributes, ...children) => filled(document.createElement(tag), attributes, children);
const svg = (tag, attributes, ...children) => filled(document.createElementNS(SVG, tag), attributes, children);

const chip = (kind, text) => el("span", { class: `chip ${kind}` }, text ?? kind);
const shownScore = (score) => score === null ? "-" : score.toFixed(3);
const seconds = (ms) => ms === null ? "" : `${(ms / 1000).toFixed(1)} s`;
// A time of a stream, or the Unix time of a record; a sender may say any, and beyond 8.64e15 there is no date.
const shownTime = (ms) => ms === null ? "" : ms > 1e11 && ms <= 8.64e15 ? new Date(ms).toISOString().replace("T", " ").slice(0, 23) : seconds(ms);
const DECISIONS = { agree: "agree", disagree: "disagree", wrong_place: "wrong place", wrong_text: "wrong text", skip: "skip" };

const say = (text) => { find("said").textContent = text; };

async function api(path, body) {
  const asked = { headers: { "X-Fifa-Desk": "1", "Content-Type": "application/json" }, credentials: "same-origin" };
  if (body !== undefined) Object.assign(asked, { method: "POST", body: JSON.stringify(body) });
  const answer = await fetch(path, asked);
  if (answer.status === 401 && path !== "/api/session") {
    if (!find("entry").open) find("entry").showModal();
    throw new Error("the desk asks for its token");
  }
  const told = await answer.json().catch(() => ({ error: `status ${answer.status}` }));
  if (!answer.ok) throw new Error(told.error ?? `status ${answer.status}`);
  return told;
}

const attempt = (work) => async (...given) => {
  try {
    return await work(...given);
  } catch (error) {
    say(String(error.message ?? error));
    return undefined;
  }
};

// ---- the queue: as many rows in the page as are in sight

const queue = { cases: [], rows: new Map(), elements: new Map(), at: -1, wanted: 0, isAsking: false, sampling: "other" };

const list = find("list"), rows = find("rows");

function rowElement(index) {
  const row = el("div", { class: "row", role: "option", id: `row-${index}`, "aria-posinset": index + 1, "aria-setsize": queue.cases.length, "aria-label": `Case ${index + 1}, still loading` });
  row.style.transform = `translateY(${index * ROW_PX}px)`;
  row.addEventListener("click", () => choose(index));
  return row;
}

function fillRow(index, row) {
  const told = queue.rows.get(queue.cases[index]);
  row.setAttribute("aria-selected", String(index === queue.at));
  if (!told || row.dataset.told === told.stamp) return;
  row.dataset.told = told.stamp;
  row.removeAttribute("aria-label");
  const decided = told.mine ? DECISIONS[told.mine] : told.others ? `${told.others} by others` : "";
  row.replaceChildren(
    el("span", {}, told.name),
    el("span", { class: "right" }, chip(told.label), ` ${shownScore(told.score)}`),
    el("span", { class: "quiet" }, [shownTime(told.t), told.type?.replaceAll("_", " ")].filter(Boolean).join(", ")),
    el("span", { class: "right" }, decided),
  );
}

function drawRows() {
  const first = Math.max(0, Math.floor(list.scrollTop / ROW_PX) - SPARE_ROWS);
  const last = Math.min(queue.cases.length, Math.ceil((list.scrollTop + list.clientHeight) / ROW_PX) + SPARE_ROWS);
  for (const [index, row] of queue.elements) {
    if ((index < first || index >= last) && index !== queue.at) { row.remove(); queue.elements.delete(index); }
  }
  for (let index = first; index < last; index += 1) drawRow(index);
  if (queue.at >= 0 && queue.at < queue.cases.length) drawRow(queue.at);  // what is selected has an element to point at
  askForRows(first, last);
}

function drawRow(index) {
  let row = queue.elements.get(index);
  if (!row) {
    row = rowElement(index);
    queue.elements.set(index, row);
    rows.append(row);
  }
  fillRow(index, row);
}

const askForRows = attempt(async (first, last) => {
  if (queue.isAsking) return;
  const missing = queue.cases.slice(first, last).filter((number) => !queue.rows.has(number)).slice(0, ROWS_AT_ONCE);
  if (!missing.length) return;
  queue.isAsking = true;
  try {
    for (const row of await api(`/api/rows?cases=${missing.join(",")}`)) keepRow(row);
  } finally {
    queue.isAsking = false;
  }
  requestAnimationFrame(drawRows);
});

let stamp = 0;
function keepRow(row) {
  if (queue.rows.size > MAX_KEPT_ROWS) queue.rows.clear();
  row.stamp = String(stamp += 1);
  queue.rows.set(row.n, row);
}

let isDrawing = false;
list.addEventListener("scroll", () => {
  if (isDrawing) return;
  isDrawing = true;
  requestAnimationFrame(() => { isDrawing = false; drawRows(); });
}, { passive: true });
addEventListener("resize", drawRows);

const loadQueue = attempt(async () => {
  const asked = new URLSearchParams();
  for (const name of ["order", "label", "type", "stream", "standing"]) if (find(name).value) asked.set(name, find(name).value);
  const turn = queue.wanted += 1;
  const { cases, sampling } = await api(`/api/queue?${asked}`);
  if (turn !== queue.wanted) return;
  queue.cases = cases;
  queue.sampling = sampling;  // how its cases come up: what may be concluded from decisions beyond them hangs on that
  queue.at = -1;
  for (const row of queue.elements.values()) row.remove();
  queue.elements.clear();
  rows.style.height = `${cases.length * ROW_PX}px`;
  list.scrollTop = 0;
  list.removeAttribute("aria-activedescendant");
  find("count").textContent = `${cases.length} cases`;
  drawRows();
});

function select(index) {
  const before = queue.at;
  queue.at = index;
  if (queue.elements.has(before)) fillRow(before, queue.elements.get(before));
  if (index < 0) { list.removeAttribute("aria-activedescendant"); return; }
  if (index * ROW_PX < list.scrollTop) list.scrollTop = index * ROW_PX;
  if ((index + 1) * ROW_PX > list.scrollTop + list.clientHeight) list.scrollTop = (index + 1) * ROW_PX - list.clientHeight;
  drawRows();
  list.setAttribute("aria-activedescendant", `row-${index}`);
}

let opening = 0;
function choose(index) {
  if (!queue.cases.length) return;
  const wanted = Math.max(0, Math.min(queue.cases.length - 1, index));
  select(wanted);
  clearTimeout(opening);
  player.pause();
  desk.isOpening = true;
  opening = setTimeout(() => openCase(queue.cases[wanted], null, queue.sampling), 40);  // while a key is held only the last one is opened
}

// ---- the case at hand

const desk = { case: null, face: 0, segment: null, sampling: "other", turn: 0, choosing: null, isOpening: false, isSending: false };

// `sampling` says how the case came up: by the queue in its order, or by a step of the player, a link, a reload.
const openCase = attempt(async (number, segment, sampling = "other") => {
  const turn = desk.turn += 1;
  desk.isOpening = true;
  let told;
  try {
    told = await api(`/api/cases/${number}`);
  } finally {
    if (turn === desk.turn) desk.isOpening = false;
  }
  if (turn !== desk.turn) return;
  desk.case = told;
  desk.segment = segment;
  desk.sampling = segment === null ? sampling : "other";
  desk.face = Math.max(0, told.faces.findIndex((face) => face.id === told.lead));
  cancelChoice();
  clearExtras();
  drawCase();
  if (queue.cases[queue.at] !== number) select(queue.cases.indexOf(number));
  history.replaceState(null, "", `#${number}`);
  await player.show(told.stream, number);
});

function drawCase() {
  const told = desk.case;
  find("case-title").replaceChildren("Case ", el("span", { class: "name" }, told.verdict), told.frame === null ? "" : `, frame ${told.frame}`);
  const chips = [chip(told.label), ` ${shownScore(told.score)}`];
  if (told.shadow) chips.push(" other engine: ", chip(told.shadow.label), ` ${shownScore(told.shadow.score)}`);
  if (told.told) chips.push(" stream: ", chip(told.told.label), ` ${shownScore(told.told.score)}`);
  find("case-chips").replaceChildren(...chips);
  const size = told.width === null ? "" : `, ${told.width} x ${told.height}`;
  find("case-line").replaceChildren(
    el("span", { class: "name" }, told.uri ?? told.name), `, ${[shownTime(told.t), told.media].filter(Boolean).join(", ")}${size}; engine `, el("span", { class: "name" }, told.engine),
    `, manifest ${told.manifest}; operating point `, el("span", { class: "name" }, told.point.name), `: fake from ${told.point.fakeAt.toFixed(3)}, real below ${told.point.realBelow.toFixed(3)}`,
  );
  find("case-frame").replaceChildren(framePicture(told), ...noteList(told.notes));
  find("case-faces").replaceChildren(...told.faces.map((face, index) => faceSection(told, face, index)));
  if (!told.faces.length) find("case-faces").append(el("p", { class: "quiet" }, "No face."));
  drawDecisions(told.decisions);
  chooseFace(desk.face);
}

function framePicture(told) {
  if (told.noPicture !== null) return el("p", { class: "missing" }, `No picture: ${told.noPicture}`);
  if (told.width === null) return el("img", { src: `/api/cases/${told.n}/frame.jpg`, alt: "The frame" });
  const letter = Math.max(told.width, told.height) / 22;
  const frame = svg("svg", { viewBox: `0 0 ${told.width} ${told.height}`, role: "img", "aria-label": `The frame with ${told.faces.length} faces marked` });
  frame.append(svg("image", { href: `/api/cases/${told.n}/frame.jpg`, width: told.width, height: told.height, preserveAspectRatio: "none" }));
  for (const { id, label, box: [x0, y0, x1, y1] } of told.faces) {
    frame.append(svg("rect", { class: label, x: x0, y: y0, width: x1 - x0, height: y1 - y0 }));
    frame.append(svg("text", { x: x0 + letter / 4, y: y0 + letter, "font-size": letter, "stroke-width": letter / 8 }, String(id + 1)));
  }
  if (told.asked?.box) frame.append(askedBox(told.asked.box));
  return frame;
}

const askedBox = ([x0, y0, x1, y1]) => svg("rect", { class: "asked", x: x0, y: y0, width: x1 - x0, height: y1 - y0 });

function faceSection(told, face, index) {
  const section = el("section", { "data-face": face.id });
  const area = face.answer?.area ?? null;
  const marks = area === null ? face.marks : [...face.marks, area];
  const heading = told.faces.length > 1 ? el("button", { type: "button", "aria-pressed": "false", class: "choose-face" }, `Face ${face.id + 1}`) : `Face ${face.id + 1}`;
  if (told.faces.length > 1) heading.addEventListener("click", () => chooseFace(index));
  const words = el("div", {},
    el("div", { class: "heading" }, el("h3", {}, heading), el("span", { class: "score" }, face.score.toFixed(3)), chip(face.label), face.passed ? "" : el("span", { class: "quiet" }, "unfit to be judged")),
    scale(face.score, told.point),
    el("p", { class: "quiet" }, `If it is a fake: ${face.types.map(([name, p]) => `${name.replaceAll("_", " ")} ${(100 * p).toFixed(0)} %`).join(", ")}`),
  );
  if (face.pieces.length) words.append(explanation(face.pieces, face.marks), ...originOf(face), evidenceTable(face.marks));
  if (face.answer) {
    words.append(el("div", { class: "answer" },
      el("div", { class: "heading" }, el("h4", {}, "Asked: ", area === null ? face.answer.words : phraseButton(face.answer.words, area)), el("span", {}, face.answer.probability.toFixed(3)), chip(face.answer.tampered ? "tampered" : "clean")),
      explanation(face.answer.pieces, face.marks), ...originOf(face.answer)));
  }
  words.append(...noteList(face.notes));
  section.append(el("div", { class: "view" }, faceView(told, face, marks)), words);
  linkFace(section);
  return section;
}

function faceView(told, face, marks) {
  const [width, height] = face.view, size = { width, height };
  const view = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": `Face ${face.id + 1}` });
  if (told.noPicture === null) view.append(svg("image", { href: `/api/cases/${told.n}/faces/${face.id}.jpg`, ...size }));
  const drawn = marks.filter((mark) => mark.mask !== null).sort((one, other) => other.pixels - one.pixels);  // the smallest lies on top
  for (const mark of drawn) view.append(svg("image", { class: "mask", "data-evidence": mark.n, href: mark.mask, ...size }));
  if (face.askedBox) view.append(askedBox(face.askedBox));
  for (const mark of drawn) {
    view.append(svg("path", { class: "hit", "data-evidence": mark.n, d: mark.hit, tabindex: 0, role: "button", "aria-pressed": "false", "aria-label": `mask of: ${mark.words}` }, svg("title", {}, mark.words)));
  }
  return view;
}

const phraseButton = (text, mark) => el("button", { type: "button", class: `phrase k${mark.ink}`, "data-evidence": mark.n, "aria-pressed": "false" }, text);
const explanation = (pieces, marks) => el("p", { class: "explanation" }, ...pieces.map(([text, number]) => number === null ? text : phraseButton(text, marks[number])));

const originOf = (told) => told.origin ? [el("p", { class: "quiet" }, told.origin)] : [];

function scale(score, point) {
  const real = 100 * point.realBelow, fake = 100 * point.fakeAt;
  return svg("svg", { class: "scale", viewBox: "0 0 100 14", preserveAspectRatio: "none", role: "img", "aria-label": `score ${score.toFixed(3)} on a scale from 0, real, to 1, fake` },
    svg("rect", { class: "real", y: 4, width: real, height: 6 }), svg("rect", { class: "between", x: real, y: 4, width: Math.max(0, fake - real), height: 6 }),
    svg("rect", { class: "fake", x: fake, y: 4, width: 100 - fake, height: 6 }), svg("rect", { class: "at", x: Math.min(99.2, 100 * score), width: 0.8, height: 14 }));
}

function evidenceTable(marks) {
  const body = el("tbody", {}, ...marks.map((mark) => el("tr", {}, el("td", { class: "name" }, mark.words), el("td", { class: "name" }, mark.path),
    el("td", { class: "number" }, mark.confidence.toFixed(2)), el("td", { class: "name" }, mark.flaw ?? mark.measured.map(([name, value]) => `${name} ${value}`).join(", ")))));
  const head = el("tr", {}, ...["Phrase", "Concept", "Mask confidence", "Measured, inside against around"].map((name) => el("th", { scope: "col" }, name)));
  return el("details", {}, el("summary", {}, "Evidence"), el("div", { class: "scroll", tabindex: 0, role: "group", "aria-label": "Evidence" }, el("table", {}, el("thead", {}, head), body)));
}

const noteList = (notes) => notes.length ? [el("ul", { class: "notes" }, ...notes.map(([code, text]) => el("li", { class: "name" }, el("b", {}, code), `: ${text}`)))] : [];

function chooseFace(index) {
  const told = desk.case;
  desk.face = index;
  [...find("case-faces").querySelectorAll("[data-face]")].forEach((section, number) => {
    const isChosen = told.faces.length > 1 && number === index;
    section.classList.toggle("is-chosen", isChosen);
    section.querySelector(".choose-face")?.setAttribute("aria-pressed", String(isChosen));
  });
  cancelChoice();
  const face = told.faces[index], label = face ? face.label : told.label;
  const segment = player.stream?.segments.find((one) => one.id === desk.segment)?.name;  // as it may be shown
  find("about").textContent = `${face ? `Face ${face.id + 1}` : "The picture"} is said to be ${label}${desk.segment !== null && segment ? `, in segment ${segment}` : ""}.`;
}

function drawDecisions(decisions) {
  const ofFace = (face) => face === null ? "the picture" : `face ${face + 1}`;
  find("decisions").replaceChildren(...decisions.map((one) => el("li", { class: "name" },
    `${DECISIONS[one.decision]} about ${ofFace(one.face)}${one.truth ? `: it is ${one.truth}` : ""}${one.type ? `, ${one.type.replaceAll("_", " ")}` : ""}${one.phrases ? `, ${one.phrases} phrases` : ""}${one.comment ? `; ${one.comment}` : ""} - ${one.reviewer}, ${one.at}`)));
  const face = desk.case.faces[desk.face]?.id ?? null;
  const mine = decisions.find((one) => one.mine && one.face === face);
  for (const button of document.querySelectorAll("[data-decision]")) button.classList.toggle("is-mine", mine?.decision === button.dataset.decision);
}

// ---- decisions

function begin(decision) {
  const told = desk.case;
  player.pause();
  if (!told || desk.isOpening) { say("Not yet: the case is not shown."); return; }  // nobody decides about what is not seen
  const face = told.faces[desk.face] ?? null, label = face ? face.label : told.label;
  const isAboutPhrases = decision === "wrong_place" || decision === "wrong_text";
  if (isAboutPhrases && !face?.marks.length) { say("This face has no explanation to point at."); return; }
  if (!isAboutPhrases && !(decision === "disagree" && label === "inconclusive")) { decide(decision, [], null); return; }
  desk.choosing = decision;
  const options = find("choose-options");
  if (isAboutPhrases) {
    find("choose-title").textContent = decision === "wrong_place" ? "Which phrases point at the wrong place? None chosen: all." : "Which phrases are wrong? None chosen: all.";
    options.replaceChildren(...face.marks.map((mark, index) => el("label", {}, el("input", { type: "checkbox", value: mark.n }), ` ${index + 1} ${mark.words}`)));
  } else {
    find("choose-title").textContent = "It can be told. What is it?";
    options.replaceChildren(...["real", "fake"].map((truth) => el("label", {}, el("input", { type: "radio", name: "truth", value: truth }), ` ${truth} (${truth[0]})`)));
  }
  find("choose").hidden = false;
  options.querySelector("input").focus();
}

function finishChoice() {
  const chosen = [...find("choose-options").querySelectorAll("input:checked")].map((input) => input.value);
  if (desk.choosing === "disagree") {
    if (!chosen.length) { say("Choose real or fake."); return; }
    decide("disagree", [], chosen[0]);
  } else decide(desk.choosing, chosen.map(Number), null);
}

function cancelChoice() {
  if (desk.choosing === null) return;
  desk.choosing = null;
  find("choose").hidden = true;
  find("case").focus();
}

function clearExtras() {
  find("comment").value = "";
  find("true-type").value = "";
}

// One decision at a time: they are kept in the order in which they were made, and none is made twice.
const sending = (work) => attempt(async (...given) => {
  if (desk.isSending) throw new Error("Not yet: the last decision is still on its way.");
  desk.isSending = true;
  try {
    await work(...given);
  } finally {
    desk.isSending = false;
  }
});

const decide = sending(async (decision, phrases, truth) => {
  const told = desk.case, face = told.faces[desk.face] ?? null;
  const answer = await api("/api/decisions", {
    case: told.n, face: face ? face.id : null, decision, phrases, truth, true_forgery_type: find("true-type").value || null, comment: find("comment").value, segment: desk.segment, sampling: desk.sampling,
  });
  if (desk.case.n === told.n) { cancelChoice(); clearExtras(); }
  take(answer);
  say(`${DECISIONS[decision]}: case ${told.verdict}${answer.row.others ? `, ${answer.row.others} others decided` : ""}`);
  if (queue.at >= 0 && queue.at + 1 < queue.cases.length && desk.case.n === told.n && queue.cases[queue.at] === told.n) choose(queue.at + 1);
});

function take(answer) {
  keepRow(answer.row);
  if (desk.case && desk.case.n === answer.row.n) { desk.case.decisions = answer.decisions; drawDecisions(answer.decisions); }
  drawRows();
}

const exportCase = attempt(async () => {
  if (!desk.case) return;
  const answer = await fetch(`/api/cases/${desk.case.n}/case.zip`, { credentials: "same-origin" });
  if (!answer.ok) throw new Error((await answer.json()).error);
  const name = answer.headers.get("content-disposition").match(/filename="([\w.-]+)"/)[1];
  const link = el("a", { href: URL.createObjectURL(await answer.blob()), download: name });
  link.click();
  URL.revokeObjectURL(link.href);
  say(`exported: ${name}`);
});

const undo = sending(async () => {
  const answer = await api("/api/undo", {});
  clearTimeout(opening);
  desk.turn += 1;  // a case that is still on its way does not come any more
  take(answer);
  say(`undone: ${DECISIONS[answer.undone]}`);
  if (desk.case?.n === answer.row.n) { desk.isOpening = false; select(queue.cases.indexOf(answer.row.n)); } else openCase(answer.row.n, null, answer.sampling ?? "other");
});

// ---- keys

const KEYS = [
  ["j", "Next case", () => choose(queue.at + 1)],
  ["k", "Previous case", () => choose(queue.at - 1)],
  ["a", "Agree: label, place and text hold", () => begin("agree")],
  ["d", "Disagree: the label is wrong", () => begin("disagree")],
  ["p", "Wrong place: choose phrases with 1-9, then Enter", () => begin("wrong_place")],
  ["t", "Wrong text: choose phrases with 1-9, then Enter", () => begin("wrong_text")],
  ["s", "Skip: not to be told", () => begin("skip")],
  ["u", "Undo the last decision", () => undo()],
  ["f", "Next face", () => { if (desk.case?.faces.length) chooseFace((desk.face + 1) % desk.case.faces.length); }],
  ["c", "Write a comment; Esc leaves it", () => find("comment").focus()],
  ["y", "Correct the type of forgery", () => find("true-type").focus()],
  ["ArrowRight", "Next frame of the stream", () => player.step(1)],
  ["ArrowLeft", "Previous frame of the stream", () => player.step(-1)],
  [" ", "Play or pause the stream", () => player.toggle()],
  ["]", "Next segment, at its peak", () => player.segment(1)],
  ["[", "Previous segment, at its peak", () => player.segment(-1)],
  ["e", "Export the case as a file", () => exportCase()],
  ["o", "Order and filters", () => find("order").focus()],
  ["q", "The queue; there arrows, Page, Home and End move", () => list.focus()],
  ["?", "These keys", () => find("help").showModal()],
];
const HELD = new Set(["j", "k", "ArrowRight", "ArrowLeft", "[", "]"]);  // which act again while they are held; nothing is decided so
const KEY_NAMES = { " ": "Space", ArrowRight: "Right", ArrowLeft: "Left" };

find("keys").replaceChildren(...KEYS.map(([key, does]) => el("tr", {}, el("td", {}, el("kbd", {}, KEY_NAMES[key] ?? key)), el("td", {}, does))),
  el("tr", {}, el("td", {}, el("kbd", {}, "Tab")), el("td", {}, "Through phrases and masks: each shows the other; Enter keeps it, Esc lets go")));

const isWriting = (target) => target.matches?.("textarea, select, input:not([type=checkbox]):not([type=radio])");
const acts = (target) => target.matches?.("button, a, summary, [role=button], input");

document.addEventListener("keydown", (event) => {
  const { target, key } = event;
  if (event.repeat && key === "Enter" && desk.choosing !== null) { event.preventDefault(); return; }
  if (event.ctrlKey || event.metaKey || document.querySelector("dialog[open]")) return;
  if (isWriting(target)) {
    if (key === "Escape") find("case").focus();
    return;
  }
  if (desk.choosing !== null) {
    if (key === "Escape") { event.preventDefault(); cancelChoice(); return; }
    if (key === "Enter" && !target.matches("button")) { event.preventDefault(); finishChoice(); return; }
    const inputs = [...find("choose-options").querySelectorAll("input")];
    const chosen = desk.choosing === "disagree" ? inputs.find((input) => input.value[0] === key) : inputs[Number(key) - 1];
    if (chosen && key !== " ") { event.preventDefault(); chosen.click(); chosen.focus(); return; }
    if (target.matches("input")) return;
  }
  if (target === list && moveInList(key)) { event.preventDefault(); return; }
  if ((key === " " || key === "Enter") && acts(target)) return;
  if (!find("single-keys").checked && !event.altKey && key.length === 1) return;
  const found = KEYS.find(([name]) => name === key);
  if (!found) return;
  event.preventDefault();
  if (!event.repeat || HELD.has(key)) found[2]();
});

function moveInList(key) {
  const page = Math.max(1, Math.floor(list.clientHeight / ROW_PX) - 1);
  const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity };
  if (!(key in steps)) return false;
  choose(queue.at < 0 ? 0 : queue.at + steps[key]);
  return true;
}

for (const button of document.querySelectorAll("[data-decision]")) button.addEventListener("click", () => begin(button.dataset.decision));
find("undo").addEventListener("click", () => undo());
find("export").addEventListener("click", () => exportCase());
find("choose-done").addEventListener("click", finishChoice);
find("choose-cancel").addEventListener("click", cancelChoice);
find("help-open").addEventListener("click", () => find("help").showModal());
find("help-close").addEventListener("click", () => find("help").close());
for (const name of ["order", "label", "type", "stream", "standing"]) {
  find(name).addEventListener("change", async () => { await loadQueue(); if (queue.cases.length) choose(0); });
}
find("single-keys").checked = localStorage.getItem("single-keys") !== "off";
find("single-keys").addEventListener("change", (event) => localStorage.setItem("single-keys", event.target.checked ? "on" : "off"));

// ---- the door, and the start

const comeIn = async () => {
  try {
    await api("/api/session", { token: find("token").value });
    find("token").value = "";
    find("entry").close();
    start();
  } catch (error) {
    find("entry-said").textContent = error.message;
  }
};
find("entry-form").addEventListener("submit", (event) => { event.preventDefault(); comeIn(); });
find("entry").addEventListener("cancel", (event) => event.preventDefault());

const player = new Player((number, segment) => openCase(number, segment));

const start = attempt(async () => {
  const head = await api("/api/desk");
  const left = [head.left_out ? `${head.left_out} older cases left out` : "", ...head.refused.map(([why, count]) => `${count} verdicts not shown: ${why}`)];
  find("head").textContent = [`${head.reviewer}: ${head.decided} of ${head.cases} cases decided; decisions go to ${head.kept_in}`, ...left].filter(Boolean).join("; ");
  for (const [id, options] of [["type", head.types.map((name) => [name, name.replaceAll("_", " ")])], ["stream", head.streams.map(([number, name, count]) => [number, `${name} (${count})`])],
    ["true-type", head.true_types.map((name) => [name, name.replaceAll("_", " ")])]]) {
    find(id).replaceChildren(find(id).options[0], ...options.map(([value, words]) => el("option", { value }, words)));
  }
  find("order").querySelector("[value=disagreement]").disabled = !head.compared;
  await loadQueue();
  const asked = Number(location.hash.slice(1) || NaN);
  if (Number.isInteger(asked) && asked >= 0 && asked < head.cases) await openCase(asked, null);
  else if (queue.cases.length) choose(0);
});
start();
