"use strict";
// The time line of a stream: scores of every frame, smoothed scores of every person, segments; frames step and play.
const WIDTH = 1000, HEIGHT = 120;
const SHORTEST_STEP_MS = 80, LONGEST_STEP_MS = 1000;

class Player {
  // `openCase(number, segment)` shows a case and returns a promise of it.
  constructor(openCase) {
    this.openCase = openCase;
    this.stream = null;
    this.at = 0;
    this.timer = null;
    find("play").addEventListener("click", () => this.toggle());
    find("scrubber").addEventListener("input", (event) => { this.pause(); this.go(Number(event.target.value)); });
  }

  async show(number, caseNumber) {
    if (this.stream === null || this.stream.n !== number) {
      this.pause();
      const stream = await api(`/api/streams/${number}`);
      if (!stream.hasTimes) stream.frames.forEach((frame, index) => { frame[0] = index; });
      this.stream = stream;
      this.draw();
    }
    this.at = Math.max(0, this.stream.frames.findIndex((frame) => frame[1] === caseNumber));
    this.mark();
  }

  // Where in time a millisecond lies on the chart.
  x(ms) {
    const frames = this.stream.frames, first = frames[0][0], last = frames[frames.length - 1][0];
    return last === first ? WIDTH / 2 : Math.min(WIDTH, Math.max(0, (ms - first) / (last - first) * WIDTH));
  }

  draw() {
    const { stream } = this, y = (score) => 10 + (1 - score) * (HEIGHT - 20);
    const line = (points, kind) => {
      const d = points.map(([ms, score], index) => `${index ? "L" : "M"}${this.x(ms).toFixed(1)} ${y(score).toFixed(1)}`).join("");
      return svg("path", { class: kind, d: points.length === 1 ? `${d}h1` : d });
    };
    const chart = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": this.words() });
    for (const segment of stream.segments) {
      const from = this.x(segment.start), to = this.x(segment.end);
      chart.append(svg("rect", { class: "segment", x: from, y: 0, width: Math.max(2, to - from), height: HEIGHT }));
    }
    for (const cut of stream.cuts) chart.append(svg("path", { class: "cut", d: `M0 ${y(cut)}H${WIDTH}` }));
    stream.tracks.forEach((track, index) => {
      const ink = `t${index % 4}`;
      chart.append(line(track.points.map(([ms, score]) => [ms, score]), `raw ${ink}`), line(track.points.map(([ms, , smooth]) => [ms, smooth]), `smooth ${ink}`));
    });
    const scored = stream.frames.filter((frame) => frame[2] !== null);
    if (!stream.tracks.length && scored.length) chart.append(line(scored.map(([ms, , score]) => [ms, score]), "smooth t0"));
    this.cursor = svg("path", { class: "cursor" });
    chart.append(this.cursor);
    chart.addEventListener("click", (event) => {
      const box = chart.getBoundingClientRect(), wanted = (event.clientX - box.left) / box.width * WIDTH;
      const near = stream.frames.reduce((best, frame, index) => Math.abs(this.x(frame[0]) - wanted) < Math.abs(this.x(stream.frames[best][0]) - wanted) ? index : best, 0);
      this.pause();
      this.go(near);
    });
    this.rects = [...chart.querySelectorAll(".segment")];
    find("player-chart").replaceChildren(chart);
    find("player-title").replaceChildren("Stream ", el("span", { class: "name" }, stream.name));
    const told = stream.verdict;
    find("player-chips").replaceChildren(...(told ? [chip(told.label), ` ${shownScore(told.score)}, ${seconds(told.fakeMs)} in segments, ${told.state}`] : ["no verdict of the stream"]));
    find("scrubber").max = String(stream.frames.length - 1);
    find("segments").replaceChildren(...stream.segments.map((segment) => this.segmentItem(segment)));
    find("no-segments").hidden = stream.segments.length > 0;
  }

  words() {
    const { stream } = this;
    return `Scores over time: ${stream.frames.length} frames, ${stream.tracks.length} tracks, ${stream.segments.length} segments`;
  }

  segmentItem(segment) {
    const words = `${shownTime(segment.start)} to ${shownTime(segment.end)}${segment.open ? " (open)" : ""}, track ${segment.track}, peak ${segment.peak.toFixed(2)} at ${shownTime(segment.peakAt)}, ${segment.type.replaceAll("_", " ")}`;
    const item = el("li", {}, this.jump(words, segment.peakCase, segment));
    for (const [concept, weight, number] of segment.evidence) {
      item.append(" ", this.jump(`${concept.replaceAll("_", " ")} ${weight.toFixed(2)}`, number, segment));
    }
    return item;
  }

  jump(words, number, segment) {
    const button = el("button", { type: "button", class: "name", disabled: number === null ? "" : undefined }, words);
    button.addEventListener("click", () => { this.pause(); this.openCase(number, segment.id); });
    return button;
  }

  mark() {
    const { stream, at } = this;
    if (!stream || !stream.frames.length) return;
    const [ms, , score, label] = stream.frames[at], scrubber = find("scrubber");
    this.cursor.setAttribute("d", `M${this.x(ms).toFixed(1)} 0V${HEIGHT}`);
    this.rects.forEach((rect, index) => rect.classList.toggle("is-at", stream.segments[index].start <= ms && ms <= stream.segments[index].end));
    scrubber.value = String(at);
    const words = `${stream.hasTimes ? `${shownTime(ms)}, ` : ""}${label} ${shownScore(score)}, frame ${at + 1} of ${stream.frames.length}`;
    scrubber.setAttribute("aria-valuetext", words);
    find("player-time").textContent = words;
  }

  // The segment that the frame at hand lies in.
  segmentAt() {
    if (!this.stream || !this.stream.frames.length) return null;
    const ms = this.stream.frames[this.at][0];
    const found = this.stream.segments.find((segment) => segment.start <= ms && ms <= segment.end);
    return found ? found.id : null;
  }

  async go(index) {
    const { stream } = this;
    if (!stream || index < 0 || index >= stream.frames.length) return false;
    this.at = index;
    this.mark();
    await this.openCase(stream.frames[index][1], this.segmentAt());
    return true;
  }

  step(by) { this.pause(); return this.go(this.at + by); }

  segment(by) {
    if (!this.stream || !this.stream.segments.length) return;
    const ms = this.stream.frames[this.at][0], segments = this.stream.segments;
    const next = by > 0 ? segments.find((one) => one.peakAt > ms) : segments.findLast((one) => one.peakAt < ms);
    if (next && next.peakCase !== null) { this.pause(); this.openCase(next.peakCase, next.id); }
  }

  toggle() { if (this.timer === null) this.play(); else this.pause(); }

  play() {
    if (!this.stream) return;
    if (this.at + 1 >= this.stream.frames.length) this.at = -1;
    find("play").setAttribute("aria-pressed", "true");
    const turn = async () => {
      const frames = this.stream.frames, mine = this.timer;
      const gap = this.at < 0 ? 0 : frames[this.at + 1][0] - frames[this.at][0];
      const began = performance.now();
      await this.go(this.at + 1);
      if (this.timer !== mine) return;
      if (this.at + 1 >= frames.length) { this.pause(); return; }
      const wait = Math.min(LONGEST_STEP_MS, Math.max(SHORTEST_STEP_MS, gap)) - (performance.now() - began);
      this.timer = setTimeout(turn, Math.max(0, wait));
    };
    this.timer = setTimeout(turn, 0);
  }

  pause() {
    clearTimeout(this.timer);
    this.timer = null;
    find("play").setAttribute("aria-pressed", "false");
  }
}
