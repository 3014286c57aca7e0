"""The card of a folder of instruction data: what it holds, how balanced it is, how varied its texts are, and pages of examples to look at.

Every figure is counted from the samples themselves; nothing is typed by hand. The same folder gives the same card.
"""

import html
import io
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from engines import fict
from engines.contracts import FORGERY_TYPES
from trainer.dataset_examples import Examples, data_uri, examples_html
from trainer.faces import SWAP_SUM
from trainer.fifa_bench import text as words
from trainer.samples import ELEVEN_TASKS, Sample
from trainer.shards import Manifest, read_manifest, read_shards

PLOTS = "card"
"""Folder of the plots that `card.md` shows; `card.html` holds its own."""
LEVELS = ("image", "region", "box")
FAMILIES = ("real", *FORGERY_TYPES, SWAP_SUM)
COLORS = ("#44aa99", "#4477aa", "#cc6677", "#999933", "#882255", "#ddcc77")
"""Tol's muted scheme: told apart by colour-blind readers too."""

Table = tuple[tuple[str, ...], list[tuple[str, ...]]]
"""Heads, then rows."""

STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse;margin:1rem 0}th,td{border-bottom:1px solid #ddd;padding:.2rem .7rem;text-align:right}
th:first-child,td:first-child{text-align:left}h2{margin-top:2.5rem}img.plot{max-width:100%}
.face{border-top:2px solid #888;margin-top:1.5rem;padding-top:.5rem}.asked{display:flex;flex-wrap:wrap;gap:1rem}
.panel{width:16.5rem}.panel img{width:16.5rem}.panel p{margin:.3rem 0}.q{color:#666}.task{font-weight:600}
mark{padding:0 .2rem;border-radius:.2rem;color:#111}
"""


def write_dataset_card(folder: Path, *, num_examples: int = 12) -> None:
    """Write `card.md`, `card.html` and the plots into a folder that `write_instructions` completed.

    Raises FileNotFoundError or ValueError where the folder is none, is not complete, or its shards are not those of the manifest.
    """
    manifest = read_manifest(folder)
    tally, examples = _Tally(), Examples(num_examples)
    for image_HWC, samples in read_shards(folder):
        tally.add(samples)
        examples.offer(image_HWC, samples)
    tables = tally.tables()
    plots = {"families": _families_plot(tally), "concepts": _concepts_plot(tally)}
    (folder / PLOTS).mkdir(exist_ok=True)
    for name, png in plots.items():
        (folder / PLOTS / f"{name}.png").write_bytes(png)
    (folder / "card.md").write_text(_markdown(manifest, tables, plots), encoding="utf-8")
    (folder / "card.html").write_text(_html(manifest, tables, plots, examples), encoding="utf-8")


class _Tally:
    """What is counted while the shards are read."""

    def __init__(self) -> None:
        self.tasks: Counter[tuple[str, str, str]] = Counter()
        self.families: Counter[tuple[str, str]] = Counter()
        """Faces by set and family."""
        self.annotated: Counter[tuple[str, str]] = Counter()
        self.asked: Counter[tuple[str, str, bool]] = Counter()
        """Region and box queries by level, family and state."""
        self.concepts: dict[str, Counter[str]] = {"named": Counter(), "asked, tampered": Counter(), "asked, clean": Counter()}
        """At depth 33, by what was done with them."""
        self.parts: Counter[tuple[str, bool]] = Counter()
        """Region queries by part of the face and state."""
        self.texts: dict[tuple[str, str], list[str]] = defaultdict(list)
        """Plain `toe` answers by level and state."""

    def add(self, samples: Sequence[Sample]) -> None:
        """Count all samples of one face."""
        family = samples[0].forgery_type or "real"
        self.families[samples[0].dataset, family] += 1
        self.annotated[samples[0].dataset, family] += any(sample.task == "toe" for sample in samples)
        for sample in samples:
            state = "tampered" if sample.tampered else "clean"
            self.tasks[sample.task, sample.level, sample.probe or state] += 1
            if sample.probe is None and sample.task == "toe":
                self.texts[sample.level, state].append(sample.answer)
            if sample.probe is None and sample.task == "age":
                self._count_concepts(sample, family, state)

    def _count_concepts(self, sample: Sample, family: str, state: str) -> None:
        if sample.level != "image":
            self.asked[sample.level, family, sample.tampered] += 1
        if sample.concept is not None:
            self.concepts[f"asked, {state}"].update(_cells([sample.concept]))
            self.parts[fict.concepts()[sample.concept].path[1], sample.tampered] += 1
        self.concepts["named"].update(_cells(mask.concept for mask in sample.masks if mask.concept is not None))

    def tables(self) -> dict[str, Table]:
        """All tables of the card, by title."""
        return {
            "Samples": self._tasks_table(),
            "Faces": (
                ("set", "family", "faces", "with explanation"),
                [(dataset, family, str(faces), str(self.annotated[dataset, family])) for (dataset, family), faces in sorted(self.families.items())],
            ),
            "Region and box queries": self._asked_table(),
            "Texts": self._text_table(),
        }

    def _tasks_table(self) -> Table:
        kinds = ("tampered", "clean", *sorted({kind for _, _, kind in self.tasks} - {"tampered", "clean"}))
        rows = [(f"{task} / {level}", *(str(self.tasks[task, level, kind]) for kind in kinds)) for task, level in ELEVEN_TASKS]
        return ("task / level", *kinds), [*rows, ("all", *(str(sum(n for key, n in self.tasks.items() if key[2] == kind)) for kind in kinds))]

    def _asked_table(self) -> Table:
        rows: list[tuple[str, ...]] = []
        for level, family in sorted({(level, family) for level, family, _ in self.asked}):
            tampered, clean = self.asked[level, family, True], self.asked[level, family, False]
            rows.append((level, family, str(tampered), str(clean), f"{clean / (tampered + clean):.3f}"))
        if self.parts:
            rows.append(("region", "right by guessing from the asked part of the face alone", "", "", f"{self._guessed():.3f}"))
        return ("level", "family", "tampered", "clean", "clean share"), rows

    def _guessed(self) -> float:
        """How often the commoner state of the asked part is the true one: what a system reaches that reads the question and never looks."""
        return sum(max(self.parts[part, True], self.parts[part, False]) for part in {part for part, _ in self.parts}) / self.parts.total()

    def _text_table(self) -> Table:
        rows: list[tuple[str, ...]] = []
        for (level, state), texts in sorted(self.texts.items(), key=lambda item: (LEVELS.index(item[0][0]), item[0][1])):
            length = sum(len(words.words(text)) for text in texts) / len(texts)
            bleu = f"{words.self_bleu_4(texts):.3f}" if len(texts) > 1 else "-"
            shown = (f"{len(texts)}", f"{len(set(texts))}", f"{length:.1f}", f"{words.vocabulary(texts)}", f"{words.distinct_2(texts):.4f}", bleu)
            rows.append((f"{level}, {state}", *shown))
        return ("answers", "texts", "different", "words each", "vocabulary", "distinct-2", "self-BLEU-4"), rows


def _cells(concepts: Iterable[str]) -> set[str]:
    """Sub-parts (depth 33) of which one atom at least is meant; the boundary ring as one more."""
    meant = {atom for concept in concepts for atom in fict.concepts()[concept].atoms}
    cells = {cell for cell in fict.cells(33) if meant & set(fict.concepts()[cell].atoms)}
    return cells | ({fict.BOUNDARY} if meant & set(fict.BOUNDARY_ARCS) else set())


# Plots.


def _families_plot(tally: _Tally) -> bytes:
    """Faces by set, a colour each family."""
    sets = sorted({dataset for dataset, _ in tally.families})
    figure = Figure(figsize=(9, 0.5 * len(sets) + 1.6), layout="constrained")
    axes = figure.subplots()
    left = [0] * len(sets)
    for color, family in zip(COLORS, FAMILIES, strict=True):
        if not any(family == found for _, found in tally.families):
            continue
        faces = [tally.families[dataset, family] for dataset in sets]
        axes.barh(sets, faces, left=left, color=color, label=family.replace("_", " "))
        left = [before + more for before, more in zip(left, faces, strict=True)]
    axes.set_xlabel("faces")
    axes.invert_yaxis()
    axes.legend(frameon=False)
    return _png(figure)


def _concepts_plot(tally: _Tally) -> bytes:
    """How often each sub-part is named, and asked about tampered and clean."""
    cells = (*fict.cells(33), fict.BOUNDARY)
    figure = Figure(figsize=(10, 9), layout="constrained")
    for axes, color, (use, counts) in zip(figure.subplots(1, len(tally.concepts), sharey=True), COLORS, tally.concepts.items(), strict=False):
        axes.barh([fict.concepts()[cell].phrase for cell in cells], [counts[cell] for cell in cells], color=color)
        axes.set_title({"named": "named in answers"}.get(use, f"regions {use}"), fontsize=10)
        axes.margins(y=0.01)
    axes.invert_yaxis()
    return _png(figure)


def _png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110, metadata={"Software": None})  # no version in the bytes
    return file.getvalue()


# Pages.


def _facts(manifest: Manifest) -> list[str]:
    recipe, samples = manifest.recipe, sum(manifest.counts.values())
    return [
        f"{samples} questions about {manifest.faces} faces in {len(manifest.shards)} shards; parts: "
        + ", ".join(f"{part} {faces}" for part, faces in manifest.parts.items()) + ".",
        f"Grammar of the answers: {recipe.grammar}. Seed {recipe.seed}; {recipe.queries} regions and {recipe.queries} boxes a face, "
        f"of which {recipe.clean_share:.0%} are to be clean on fakes (none on faces synthesised whole).",
        *(["LABELS ARE SHUFFLED among faces of one set and family: only for the label-shuffle probe."] if recipe.shuffle_labels else []),
        f"Made by fifa-stream {manifest.project_version}; annotations sha256 {manifest.annotations_sha256[:16]}.",
    ]  # fmt: skip


def _markdown(manifest: Manifest, tables: Mapping[str, Table], plots: Mapping[str, bytes]) -> str:
    lines = ["# Instruction data: card", "", *(f"- {fact}" for fact in _facts(manifest)), "", "Examples to look at: `card.html`.", ""]
    for title, (heads, rows) in tables.items():
        lines += [f"## {title}", "", "| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
        lines += ["| " + " | ".join(row) + " |" for row in rows] + [""]
    for name in plots:
        lines += [f"![{name}]({PLOTS}/{name}.png)", ""]
    return "\n".join(lines)


def _html(manifest: Manifest, tables: Mapping[str, Table], plots: Mapping[str, bytes], examples: Examples) -> str:
    head = "<!doctype html><html lang='en'><meta charset='utf-8'><title>Instruction data: card</title>"
    parts = [head, f"<style>{STYLE}</style><h1>Instruction data</h1><ul>"]
    parts += [f"<li>{html.escape(fact)}</li>" for fact in _facts(manifest)] + ["</ul>"]
    for title, (heads, rows) in tables.items():
        parts.append(f"<h2>{html.escape(title)}</h2><table><tr>" + "".join(f"<th>{html.escape(head)}</th>" for head in heads) + "</tr>")
        parts += ["<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows] + ["</table>"]
    parts += [f"<h2>Balance: {name}</h2><img class='plot' alt='{name}' src='{data_uri(png, 'png')}'>" for name, png in plots.items()]
    return "\n".join([*parts, "<h2>Examples</h2>", examples_html(examples), "</html>"]) + "\n"
