"""The model card, written from the measured tables and sealed into the bundle: no figure in it is typed by hand."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engines.bundle import read_manifest
from engines.contracts import MANIFEST_SCHEMA, Manifest
from trainer.bundle import seal
from trainer.fifa_bench.report import as_markdown

PARITY = ("parity", "price of", "price_of")
IN_MANIFEST = (
    "detection", "detection at the cuts", "forgery type", "localisation", "localisation against the frozen reference", "grounding",
    "text-mask alignment", "engine probes", *PARITY,
)  # fmt: skip
"""Tables whose figures also go into the manifest, which every start reads; the card has all."""

CARD = """# {name} {version}: model card

FiFa-MLLM `small` (arXiv:2510.20531): one DINOv2-small encoder cut to seven blocks and fine-tuned, DET and CLS queries, an artifact map, a
Llama-type language decoder trained from scratch, and a SAM-like mask decoder driven by `[SEG]` states. Weights are stored in {precision} and
computed in fp32.

**Use.** Research on face-forgery detection and its explanation; see `WEIGHTS_LICENCE.txt` and `NOTICE.txt`. A verdict is an estimate, not
proof: have a person look before anything is done to anyone.

**Not for.** Deciding alone; identity; audio; text or objects; faces under {min_px} px; whole-frame synthesis without a face.

## Training data
`train` rows of DFDC (swaps and reenactments), StarGAN edits of CelebA, FFHQ and StyleGAN2, Stable Diffusion 2.1 faces, Face Research Lab
London, AMFD, and our own self-blends, swaps, expressions and local edits made from their reals. Explanations and answers come from
FiFa-Annotator (a grammar bound to measurements; no language model). No identity, prompt or grid row of the tables below was trained on; the
survey set was never trained on.

## Calibration and operating points
{calibration_method} scaling (scale {scale}, bias {bias}), fitted on {fitted_on}.

| point | fake at | real below | false-alarm target |
|---|---|---|---|
{points}

{regions}

# Measured on the *report* part

In brackets 95 % intervals from a bootstrap over identities. `fifa-train evaluate` prints these tables; docs/fifa-bench.md defines every figure.
Where `lead` is below 0 in the table *lead over the constant*, one answer for everybody, given without a look at the face, is better.

{tables}
## Known limits
- Trained on two CPU cores: the learning curve was still rising. Local retouching and generators that are not in the list above are the weakest
  places; a family added teaches that family.
- DFDC names no method: its fakes train the sum of identity swap and expression swap, so the split between the two rests on our own
  manipulations.
- {wording}
- Error rates by group are measured where our sets say anything (table above): few people; age and ancestry are not labelled in our data.
"""

REGIONS = {
    True: "An asked region is located in the crop and in its mirror image, and the two answers are averaged; a box is asked of the crop alone.",
    False: "Asked regions and boxes are located in the crop alone.",
}
"""By the manifest's `mirrored_regions`."""


WORDINGS = {
    "decoded": """Explanations learned the annotator's grammar: they say what the annotator would have measured, and they can name a place that was
  not touched (hallucination above). What they score under shuffled labels needs no look at the face: only the difference is sight.""",
    "measured": """Explanations say what is measured on the crop, at the places that localisation marks, in the annotator's grammar: a number is a
  measurement against the surroundings or against what real faces show. That a place departs does not prove that a manipulation made it so, and a
  place can be named that was not touched (hallucination above). Where nothing is marked on a face that is called fake, the decoder writes, and its
  numbers are guesses.""",
}
"""By the manifest's `wording`."""


def write_card(folder: Path, tables: Mapping[str, Any], *, mirrored_regions: bool | None = None, wording: str | None = None) -> Manifest:
    """Write `MODEL_CARD.md` and the manifest's `metrics` from measured tables, and seal the bundle again.

    `mirrored_regions` and `wording` are how the engine answered when that was measured; None leaves what the manifest says.
    """
    manifest = read_manifest(folder)
    body = json.loads(manifest.model_dump_json())
    measured_with = {name: value for name, value in (("mirrored_regions", mirrored_regions), ("wording", wording)) if value is not None}
    if measured_with:
        body |= {"schema_version": MANIFEST_SCHEMA, **measured_with}
    tables = dict(tables) | _kept_parity(manifest, tables)
    points = "\n".join(f"| {name} | {p.fake_at:.4g} | {p.real_below:.4g} | {p.fpr_target} |" for name, p in manifest.operating_points.items())
    (folder / "MODEL_CARD.md").write_text(
        CARD.format(
            name=manifest.name, version=manifest.version, precision=manifest.precision, min_px=32,
            calibration_method=manifest.calibration.method.capitalize(), scale=manifest.calibration.scale, bias=manifest.calibration.bias,
            fitted_on=manifest.calibration.fitted_on, points=points, regions=REGIONS[body["mirrored_regions"]], wording=WORDINGS[body["wording"]],
            tables=_shown(tables),
        )
    )  # fmt: skip
    body["metrics"] = flatten({title: table for title, table in tables.items() if title in IN_MANIFEST or title.startswith(PARITY)})
    return seal(folder, body)


def _kept_parity(manifest: Manifest, tables: Mapping[str, Any]) -> dict[str, dict[str, dict[str, float]]]:
    """Parity with a checkpoint that is not at hand any more: as it was measured when these very graphs were made."""
    if any(title.startswith(PARITY) for title in tables):
        return {}
    kept: dict[str, dict[str, float]] = {}
    for name, value in manifest.metrics.items():
        title, _, rest = name.partition(".")
        if title.startswith(PARITY):
            row, _, measure = rest.rpartition(".")
            kept.setdefault((row or title).replace("_", " "), {})[measure] = value
    return {"parity measured at export": kept} if kept else {}


def _shown(tables: Mapping[str, Any]) -> str:
    """The tables alone, a level below the card's own heading."""
    _, _, body = as_markdown(dict(tables), title="").partition("\n")
    return body.strip() + "\n"


def flatten(tables: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Nested tables to one level: 'detection.dfdc.auc'."""
    flat: dict[str, float] = {}
    for key, value in tables.items():
        if key.endswith(("_low", "_high")):
            continue  # bounds stand in the card
        name = f"{prefix}{key.lower().replace(' ', '_')}"
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{name}.")
        else:
            flat[name] = round(float(value), 6)
    return flat
