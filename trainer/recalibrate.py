"""A calibration out of reviews: proposed in a sealed file, and applied by a command of its own to the very engine it was made for. Nothing is silent.

What is fitted is what `trainer.calibrate` fits, a scale and a bias on the raw logit, on faces that speak of their queue (`review_sampling`): the mix
of real and fake is then the stream's own, not that of our sets. It is proposed only if streams it has not seen gain by it beyond doubt.
A calibration changes what a score means, not who is called fake: the cuts move with the map, so that every label stays what it was.
"""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field
from scipy.optimize import minimize
from scipy.special import expit, logit
from sklearn.model_selection import StratifiedGroupKFold

from engines.bundle import file_spec, read_manifest, seal_manifest, verify_files
from engines.contracts import Calibration, Manifest, OperatingPoint, Sha256
from engines.sealed import SealError, read_sealed, write_sealed
from trainer.fifa_bench.detection import NLL_CLIP, LogitMap, ece
from trainer.fifa_bench.intervals import Interval, bootstrap_interval, clustered_wilson, ratio_interval
from trainer.review_sampling import Selected, selected
from trainer.reviewer_error import MIN_SHARED, MOST, ReviewerError, bounds_without_error, chance_of_fake, fake_voices, reviewer_error, without_error
from trainer.reviews import Case, Reviews

MIN_FACES, MIN_STREAMS = 20, 10
"""Of each class, reviewed faces and the streams they come from."""
MAX_LOG_SCALE, MAX_BIAS = 4.0, 30.0
"""Of a map: from 0.018 to 55, and odds beyond any stream's."""
FOLDS = 5
RESAMPLES = 500
FIGURE_NAMES = {"ece": "ECE", "nll": "log-likelihood error", "brier": "Brier score"}
PROPOSAL, PAGE = "proposal.json", "proposal.md"
STALE = ("ece", "balanced_ece", "nll", "brier")
"""Last words of manifest metrics that hang on the calibration."""

Labels = NDArray[np.bool_]
Scores = NDArray[np.float64]
Fit = Callable[[Scores, Scores, Scores], LogitMap]
"""`_Judged.chance_N`, raw scores and weights to a map."""


class Refusal(StrEnum):
    """Why no calibration is proposed or applied: the whole list, beside `review_sampling.Unrepresentative`."""

    OTHER_ENGINE = "other_engine"
    NO_RAW_SCORE = "no_raw_score"
    TOO_FEW = "too_few"
    UNKNOWN_ERROR = "unknown_error"
    """Too few faces were seen by two reviewers to tell how often they err, and nobody stated it."""
    ERROR_TOO_HIGH = "error_too_high"
    NO_GAIN = "no_gain"
    BROKEN_PROPOSAL = "broken_proposal"
    FOLDER_IN_USE = "folder_in_use"


class RecalibrationError(ValueError):
    """Nothing is proposed, or nothing is applied; the message says why and what would help."""

    def __init__(self, fault: Refusal, message: str) -> None:
        super().__init__(message)
        self.fault = fault


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Figure(_Closed):
    """One measure on streams that the map was not fitted on, weighted to the queue."""

    before: float
    after: float
    change_low: float
    change_high: float
    """95 % interval of after - before, over streams."""


class Proposal(_Closed):
    """A calibration that somebody may apply to one engine."""

    schema_version: Literal["1.0"] = "1.0"
    kind: Literal["calibration_proposal"] = "calibration_proposal"
    engine: Sha256
    """Manifest digest of the only engine that it may be applied to."""
    engine_name: str
    engine_version: str
    current: Calibration
    proposed: Calibration
    operating_points: dict[str, OperatingPoint]
    """Moved with the map: every label stays."""
    score_baseline: tuple[float, ...]
    """The engine's own, seen through the new map."""
    faces: int = Field(ge=1)
    streams: int = Field(ge=1)
    fakes: int = Field(ge=1)
    """As most voices say, their errors among them."""
    reviewers: int = Field(ge=1)
    fake_share: float
    """Estimated for the queue."""
    fake_share_low: float
    fake_share_high: float
    figures: dict[str, Figure]
    """'ece', 'nll' and 'brier', reviewers' errors taken out."""
    reviewer_error: float
    reviewer_error_low: float
    reviewer_error_high: float
    shared_faces: int
    """Seen by two reviewers or more: what the error rate rests on; 0 where it was stated, not measured."""
    basis: str
    warnings: tuple[str, ...]
    reviews_sha256: Sha256
    made_at: AwareDatetime
    digest: Sha256


@dataclass(frozen=True, slots=True)
class _Judged:
    """Faces with their truth, raw score and say."""

    is_fake_N: Labels
    """By most voices; real where both sides are equal. Only folds and counts go by it."""
    voice_N: Scores
    """Share of the voices that say fake."""
    chance_N: Scores
    """That the face is fake, by what was said of it alone."""
    fake_N: Scores
    """Unbiased estimates of the truth, reviewers' errors taken out: 0 and 1 where nobody errs."""
    raw_N: Scores
    weight_N: Scores
    stream_N: tuple[str, ...]


def propose(
    reviews: Reviews, manifest: Manifest, *, totals: Sequence[int] | None = None, error: ReviewerError | None = None, now: datetime | None = None
) -> Proposal:
    """Fit a map on the reviews of one engine and measure it on streams it has not seen. Writes nothing.

    How often reviewers err is measured where two saw a face, else stated as `error`; fit and figures are as if they did not. The gain must hold
    wherever in its interval that rate lies. Raises RecalibrationError (all but the last two) and `review_sampling.SelectionError`.
    """
    cases = reviews.cases(manifest.digest)
    if not cases:
        known = ", ".join(digest[:12] for digest in sorted(reviews.engines)) or "none"
        raise RecalibrationError(
            Refusal.OTHER_ENGINE,
            f"no review speaks of engine {manifest.digest[:12]}, those of the file of {known}; a map fits the scores of one engine: give that one",
        )
    heard = [case for case in cases if case.is_heard]
    with_raw = [case for case in heard if case.first.raw_score is not None]
    if heard and not with_raw:
        raise RecalibrationError(Refusal.NO_RAW_SCORE, "no review holds a raw score; let the desk write raw_score of the face")
    chosen = selected(with_raw, totals)
    error = error or _measured_error(cases)
    judged = _judged(chosen, error.rate)
    _check_counts(judged)
    current = LogitMap(manifest.calibration.scale, manifest.calibration.bias)
    fits: dict[str, Fit] = {
        "temperature": partial(fit_voices, bias=0.0),
        "platt": fit_voices,
        "shift": partial(fit_voices, scale=current.scale),
    }
    unseen = {name: _cross_validated(judged, fit) for name, fit in fits.items()}
    best = min(unseen, key=lambda name: float(np.average(_nll(judged.fake_N, unseen[name]), weights=judged.weight_N)))
    figures = _figures(judged, current.probability(judged.raw_N), unseen[best])
    _check_gain(judged, current.probability(judged.raw_N), unseen[best], figures, error)
    found = fits[best](judged.chance_N, judged.raw_N, judged.weight_N)
    new = LogitMap(round(found.scale, 6), round(found.bias, 6))
    share = min(max(float(np.average(judged.fake_N, weights=judged.weight_N)), 0.0), 1.0)
    low, high = bounds_without_error(clustered_wilson(judged.voice_N, judged.stream_N, judged.weight_N), error)
    return Proposal(
        engine=manifest.digest,
        engine_name=manifest.name,
        engine_version=manifest.version,
        current=manifest.calibration,
        proposed=Calibration(
            method="temperature" if best == "temperature" else "platt",
            scale=new.scale,
            bias=new.bias,
            fitted_on=f"{int(judged.is_fake_N.sum())} faces that people called fake and {int((~judged.is_fake_N).sum())} others; {chosen.basis}",
            ece=round(figures["ece"].after, 4),
        ),
        operating_points={name: moved(point, current, new) for name, point in manifest.operating_points.items()},
        score_baseline=seen_through(manifest.score_baseline, current, new),
        faces=len(chosen.cases),
        streams=len(set(judged.stream_N)),
        fakes=int(judged.is_fake_N.sum()),
        reviewers=len({review.reviewer for case in chosen.cases for review in case.told}),
        fake_share=share,
        fake_share_low=low,
        fake_share_high=high,
        figures=figures,
        basis=chosen.basis,
        reviewer_error=error.rate,
        reviewer_error_low=error.low,
        reviewer_error_high=error.high,
        shared_faces=error.shared,
        warnings=tuple(_warnings(chosen, error, reviews.engines, manifest)),
        reviews_sha256=reviews.sha256,
        made_at=now or datetime.now(UTC),
        digest="0" * 64,
    )


def write_proposal(draft: Proposal, folder: Path) -> Proposal:
    """Seal a proposal into a folder, which is made, with a page to read beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    proposal = write_sealed(folder / PROPOSAL, draft)
    (folder / PAGE).write_text(page(proposal), encoding="utf-8")
    return proposal


def apply(path: Path, engine: Path, out: Path, *, version: str | None = None) -> Manifest:
    """Write a copy of an engine bundle with the proposed calibration into `out`; the bundle itself stays as it is.

    Raises RecalibrationError (`broken_proposal`, `other_engine`, `folder_in_use`) and BundleError for a bundle that is not whole.
    """
    try:
        proposal = read_sealed(path, Proposal)
    except SealError as error:
        raise RecalibrationError(Refusal.BROKEN_PROPOSAL, f"{error}; make it again with `fifa-train recalibrate`") from None
    manifest = read_manifest(engine)
    if manifest.digest != proposal.engine:
        raise RecalibrationError(
            Refusal.OTHER_ENGINE,
            f"{path} was made for engine {proposal.engine[:12]}, {engine} is {manifest.digest[:12]}; review that engine's verdicts and propose again",
        )
    verify_files(engine, manifest)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RecalibrationError(Refusal.FOLDER_IN_USE, f"{out} is there already; a bundle is never changed in place: name a new folder")
    out.mkdir(parents=True, exist_ok=True)
    for spec in (*manifest.parts.values(), *manifest.files.values()):
        shutil.copyfile(engine / spec.file, out / spec.file)
    body: dict[str, Any] = json.loads(manifest.model_dump_json())
    body["version"] = version or f"{manifest.version}+reviews.{proposal.digest[:8]}"
    body["calibration"] = json.loads(proposal.proposed.model_dump_json())
    body["operating_points"] = {name: json.loads(point.model_dump_json()) for name, point in proposal.operating_points.items()}
    body["score_baseline"] = list(proposal.score_baseline)
    body["metrics"] = {name: value for name, value in manifest.metrics.items() if name.rpartition(".")[2] not in STALE}
    body["provenance"] = {**manifest.provenance, "recalibrated_from": manifest.digest, "calibration_proposal": proposal.digest}
    if (card := manifest.files.get("model_card")) is not None:
        with (out / card.file).open("a", encoding="utf-8") as sink:
            sink.write("\n" + _card_section(proposal))
        body["files"]["model_card"] = file_spec(out / card.file).model_dump(mode="json")
    sealed = seal_manifest(out, Manifest.model_validate(body))
    verify_files(out, read_manifest(out))
    return sealed


# --- The fit ----------------------------------------------------------------------------------------------------------------------------------


def fit_voices(chance_N: Scores, logit_N: Scores, weight_N: Scores, *, scale: float | None = None, bias: float | None = None) -> LogitMap:
    """The map under which what was said is most likely: a face counts as fake with `chance_N` and as real with the rest, not as either for sure
    (forward correction: Patrini et al., CVPR 2017). Bounded whatever the voices, since no chance is 0 or 1; without errors that is Platt's fit.

    A given scale leaves the bias alone, what another mix of real and fake asks for (Saerens et al., Neural Computation 14, 2002); bias 0 is a
    temperature.
    """
    share_N = weight_N / weight_N.sum()

    def unpacked(parameters: Scores) -> tuple[float, float]:
        free = parameters.tolist()
        return float(np.exp(free.pop(0))) if scale is None else scale, free.pop(0) if bias is None else bias

    def loss(parameters: Scores) -> tuple[float, Scores]:
        factor, offset = unpacked(parameters)
        p_N = expit(logit_N * factor + offset)
        said_N = p_N * chance_N + (1 - p_N) * (1 - chance_N)
        slope_N = -share_N * p_N * (1 - p_N) * (2 * chance_N - 1) / said_N
        gradient = ([float((slope_N * logit_N).sum()) * factor] if scale is None else []) + ([float(slope_N.sum())] if bias is None else [])
        return -float((share_N * np.log(said_N)).sum()), np.array(gradient)

    free = int(scale is None) + int(bias is None)
    bounds = ([(-MAX_LOG_SCALE, MAX_LOG_SCALE)] if scale is None else []) + ([(-MAX_BIAS, MAX_BIAS)] if bias is None else [])
    found = minimize(loss, np.zeros(free), jac=True, method="L-BFGS-B", bounds=bounds, options={"ftol": 1e-14, "gtol": 1e-10})
    return LogitMap(*unpacked(found.x))


def _measured_error(cases: Sequence[Case]) -> ReviewerError:
    error = reviewer_error(cases)
    if error is None:
        raise RecalibrationError(
            Refusal.UNKNOWN_ERROR,
            f"fewer than {MIN_SHARED} faces were seen by two reviewers, so that it is not known how often they err; let a second one see some, or "
            "state it (--reviewer-error)",
        )
    if error.high > MOST:
        raise RecalibrationError(
            Refusal.ERROR_TOO_HIGH,
            f"reviewers differ as if each erred on {error.rate:.0%} of the faces ({error.low:.0%} to {error.high:.0%}); settle first what fake means",
        )
    return error


def _judged(chosen: Selected, error_rate: float) -> _Judged:
    cases = chosen.cases
    voice_N = np.array([fake_voices(case) for case in cases])
    least = 1 / (len(cases) + 2)  # nobody is surer than that
    return _Judged(
        np.array([case.truth == "fake" for case in cases], bool),
        voice_N,
        np.array([chance_of_fake(case, max(error_rate, least)) for case in cases]),
        without_error(voice_N, error_rate),
        np.array([case.first.raw_score for case in cases], np.float64),
        chosen.weight_N,
        tuple(case.stream for case in cases),
    )


def _check_counts(judged: _Judged) -> None:
    """Enough of both classes, those left out that are there by reviewers' errors."""
    for name, rows_N, estimate in (("fake", judged.is_fake_N, judged.fake_N.sum()), ("real", ~judged.is_fake_N, (1 - judged.fake_N).sum())):
        faces = min(int(rows_N.sum()), round(float(estimate)))
        streams = len({stream for stream, row in zip(judged.stream_N, rows_N, strict=True) if row})
        if faces < MIN_FACES or streams < MIN_STREAMS:
            raise RecalibrationError(
                Refusal.TOO_FEW,
                f"{faces} faces of {streams} streams are {name}, reviewers' errors left out; {MIN_FACES} of {MIN_STREAMS} are needed: review more",
            )


def _cross_validated(judged: _Judged, fit: Fit) -> Scores:
    """Probability of each face by a map that was fitted without its stream."""
    probability_N = np.zeros(judged.raw_N.size)
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0)
    for rest, held in folds.split(judged.raw_N, judged.is_fake_N, judged.stream_N):
        probability_N[held] = fit(judged.chance_N[rest], judged.raw_N[rest], judged.weight_N[rest]).probability(judged.raw_N[held])
    return probability_N


def _nll(fake_N: Scores, probability_N: Scores) -> Scores:
    """Of each face; linear in the truth, so that an unbiased estimate of it gives an unbiased loss."""
    sure_N = np.clip(probability_N, NLL_CLIP, 1 - NLL_CLIP)
    return -(fake_N * np.log(sure_N) + (1 - fake_N) * np.log(1 - sure_N))


def _brier(fake_N: Scores, probability_N: Scores) -> Scores:
    """Likewise: the square of a truth of 0 or 1 is the truth itself."""
    return np.square(probability_N) - 2 * probability_N * fake_N + fake_N


def _figures(judged: _Judged, before_N: Scores, after_N: Scores) -> dict[str, Figure]:
    fake_N, weight_N, streams = judged.fake_N, judged.weight_N, judged.stream_N
    figures = {}
    for name, loss in {"nll": _nll, "brier": _brier}.items():
        before, after = (float(np.average(loss(fake_N, p_N), weights=weight_N)) for p_N in (before_N, after_N))
        figures[name] = _figure(before, after, _change(loss, judged, fake_N, before_N, after_N))

    def error_of(p_N: Scores, rows: NDArray[np.intp]) -> float:
        return ece(fake_N[rows], p_N[rows], weight_N=weight_N[rows])

    everyone = np.arange(fake_N.size)
    interval = bootstrap_interval(lambda rows: error_of(after_N, rows) - error_of(before_N, rows), streams, resamples=RESAMPLES)
    return {"ece": _figure(error_of(before_N, everyone), error_of(after_N, everyone), interval), **figures}


def _change(loss: Callable[[Scores, Scores], Scores], judged: _Judged, fake_N: Scores, before_N: Scores, after_N: Scores) -> Interval:
    return ratio_interval(judged.weight_N * (loss(fake_N, after_N) - loss(fake_N, before_N)), judged.weight_N, judged.stream_N)


def _check_gain(judged: _Judged, before_N: Scores, after_N: Scores, figures: Mapping[str, Figure], error: ReviewerError) -> None:
    worst = max(_change(_nll, judged, without_error(judged.voice_N, rate), before_N, after_N).high for rate in (error.low, error.rate, error.high))
    if worst >= 0 or figures["ece"].after >= figures["ece"].before:
        raise RecalibrationError(
            Refusal.NO_GAIN,
            f"on streams it has not seen the best map changes NLL {_told(figures['nll'])} and ECE {_told(figures['ece'])}: no gain beyond doubt; "
            "keep the engine's own calibration, or review more",
        )


def _figure(before: float, after: float, change: Interval) -> Figure:
    return Figure(before=before, after=after, change_low=change.low, change_high=change.high)


def _told(figure: Figure) -> str:
    return f"from {figure.before:.4f} to {figure.after:.4f} (change {figure.change_low:+.4f} to {figure.change_high:+.4f})"


def moved(point: OperatingPoint, old: LogitMap, new: LogitMap) -> OperatingPoint:
    """The cuts of an operating point where they give the same labels on the scores of another map."""
    cuts = {name: _through(getattr(point, name), old, new) for name in ("fake_at", "real_below", "explain_at")}
    return OperatingPoint(name=point.name, fpr_target=point.fpr_target, **cuts)


def _through(score: float, old: LogitMap, new: LogitMap) -> float:
    """What a score of the old map is on the new one; 0 and 1 stay."""
    return score if score in (0.0, 1.0) else float(new.probability(np.array((logit(score) - old.bias) / old.scale)))


def seen_through(share_B: Sequence[float], old: LogitMap, new: LogitMap) -> tuple[float, ...]:
    """A histogram of scores in equal bins as it would be under the new map; scores lie even within a bin."""
    if not share_B:
        return ()
    edges = np.linspace(0, 1, len(share_B) + 1)
    mapped = np.array([_through(float(edge), old, new) for edge in edges])
    reached = np.interp(edges, mapped, np.concatenate([[0.0], np.cumsum(share_B)]))
    return tuple(round(float(share), 6) for share in np.diff(reached))


def _warnings(chosen: Selected, error: ReviewerError, engines: Mapping[str, int], manifest: Manifest) -> list[str]:
    found = []
    if error.shared == 0:
        found.append(f"that reviewers err on {error.rate:.1%} of the faces was stated, not measured")
    if chosen.unseen:
        found.append(f"{chosen.unseen:.1%} of the queue lie in strata of score that were not reviewed")
    if others := sum(engines.values()) - engines.get(manifest.digest, 0):
        found.append(f"{others} reviews of other engines are not in it")
    return found


# --- What people read -------------------------------------------------------------------------------------------------------------------------


def page(proposal: Proposal) -> str:
    """The proposal in Markdown."""
    old, new = (LogitMap(c.scale, c.bias) for c in (proposal.current, proposal.proposed))
    lines = [
        f"# Proposed calibration of {proposal.engine_name} {proposal.engine_version}",
        "",
        f"For engine `{proposal.engine}` and no other. Proposal `{proposal.digest}`, made {proposal.made_at:%Y-%m-%d %H:%M} UTC from reviews "
        f"`{proposal.reviews_sha256[:12]}`. Nothing has been changed.",
        "",
        f"{proposal.faces} faces of {proposal.streams} streams, {proposal.fakes} of them called fake, by {proposal.reviewers} "
        f"reviewer{'s' if proposal.reviewers != 1 else ''}. {proposal.basis.capitalize()}. Fakes in the queue: {proposal.fake_share:.1%} "
        f"({proposal.fake_share_low:.1%} to {proposal.fake_share_high:.1%}).",
        "",
        f"A reviewer errs on {proposal.reviewer_error:.1%} of the faces ({proposal.reviewer_error_low:.1%} to {proposal.reviewer_error_high:.1%}, "
        f"from {proposal.shared_faces} faces that two saw); map and figures are as if nobody did.",
        "",
        "| | scale | bias |",
        "|---|---:|---:|",
        f"| now ({proposal.current.method}) | {old.scale:g} | {old.bias:g} |",
        f"| proposed ({proposal.proposed.method}) | {new.scale:g} | {new.bias:g} |",
        "",
        "On streams that the map was not fitted on; in brackets the 95 % interval of the change over streams:",
        "",
        "| | now | proposed | change |",
        "|---|---:|---:|---:|",
        *(
            f"| {FIGURE_NAMES[name]} | {f.before:.4f} | {f.after:.4f} | {f.after - f.before:+.4f} ({f.change_low:+.4f} to {f.change_high:+.4f}) |"
            for name, f in proposal.figures.items()
        ),
        "",
        "What a score becomes:",
        "",
        "| now | proposed |",
        "|---:|---:|",
        *(f"| {score:.2f} | {_through(score, old, new):.3f} |" for score in (0.05, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)),
        "",
        "Cuts move with the map, so every label stays what it is:",
        "",
        "| point | fake at | real below |",
        "|---|---:|---:|",
        *(f"| {name} | {point.fake_at:.4g} | {point.real_below:.4g} |" for name, point in proposal.operating_points.items()),
        "",
        *(f"- **Note:** {warning}." for warning in proposal.warnings),
        *([""] if proposal.warnings else []),
        "To apply it, into a new bundle with a digest of its own:",
        "",
        "```sh",
        "fifa-train apply-calibration proposal.json --engine BUNDLE --out NEWBUNDLE",
        "```",
    ]
    return "\n".join(lines) + "\n"


def _card_section(proposal: Proposal) -> str:
    old, new, error = proposal.current, proposal.proposed, proposal.figures["ece"]
    return f"""## Recalibrated from reviews
Made out of engine `{proposal.engine}` by proposal `{proposal.digest}`: scale {new.scale:g}, bias {new.bias:g} in place of {old.scale:g} and
{old.bias:g}, fitted on {new.fitted_on}. ECE on streams not fitted on: {error.before:.4f} before, {error.after:.4f} after, for a queue
with {proposal.fake_share:.1%} fakes. Cuts moved with the map, so labels are those of that engine; what is said of calibration and of scores above
was measured before.
"""
