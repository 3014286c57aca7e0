"""DeepfakeBench's JSON index -> faces: dataset > label > split > (compression) > video > {label, frames[], masks[]}.

Read at SCLBD/DeepfakeBench: preprocessing/rearrange.py @cf3bc12 writes the index, training/dataset/abstract_dataset.py @db3e348 reads it. Two
things are done otherwise than there. Frames are taken evenly over the whole video, in the order of their numbers; there, the count is overwritten
before the step is computed and the sort key does not vary, so that the first frames as listed are taken. A video's name carries its label, so that a
real and a fake folder of one name stay two videos.

Their Celeb-DF, DFD, UADFV and DeeperForensics indices list test videos under `train` too: here a unit belongs to the last of train, val and test that
names it, and a split that is left without a video is refused.
"""

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from trainer.faces import SWAP_SUM, Face, Part
from trainer.image_index import Cropper, Entry, read_faces

log = logging.getLogger(__name__)

SPLITS: Mapping[str, Part] = {"train": "train", "val": "select", "test": "report"}
"""Their split -> our part; of two that share a video the later one has it."""
COMPRESSIONS = ("c23", "c40", "raw")
DEFAULT_FRAMES = 8
"""Frames of a video; theirs are 32, most of which repeat their neighbours."""
MAX_INDEX_BYTES = 1 << 30

FORGERY_OF_LABEL: Mapping[str, str | None] = {
    "FF-real": None, "FF-DF": "identity_swap", "FF-FS": "identity_swap", "FF-FH": "identity_swap", "FF-SH": "identity_swap",
    "FF-F2F": "expression_swap", "FF-NT": "expression_swap",
    "DFD_real": None, "DFD_fake": "identity_swap",
    "CelebDFv1_real": None, "CelebDFv1_fake": "identity_swap", "CelebDFv2_real": None, "CelebDFv2_fake": "identity_swap",
    "DFDCP_Real": None, "DFDCP_FakeA": SWAP_SUM, "DFDCP_FakeB": SWAP_SUM,
    "DFDC_Real": None, "DFDC_Fake": SWAP_SUM,
    "DF_real": None, "DF_fake": "identity_swap",
    "UADFV_Real": None, "UADFV_Fake": "identity_swap",
    "roop_Real": None, "roop_Fake": "identity_swap",
}  # fmt: skip
"""Forgery type of each of their labels (training/config/test_config.yaml @b0a4c55), None for real. DFDC's methods are not named: either swap."""

_FF_VIDEO = re.compile(r"(\d{3})(?:_(\d{3}))?")
"""FaceForensics++: '000' is an original; '000_003' is the video 000 with the face or the expression of 003."""
_CELEB_VIDEO = re.compile(r"(id\d+)(?:_id\d+)?_\d+")
"""Celeb-DF: 'id0_0000' is a video of id0; 'id0_id1_0000' one of id0 with another face."""


@dataclass(frozen=True, slots=True)
class _Video:
    label: str
    name: str
    frames: tuple[str, ...]
    """As listed, in the order of their numbers."""
    masks: Mapping[str, str]
    """By frame number."""

    @property
    def key(self) -> str:
        """Unique in the index."""
        return f"{self.label}/{self.name}"

    @property
    def is_fake(self) -> bool:
        return FORGERY_OF_LABEL[self.label] is not None


def load_deepfakebench(
    index: Path, root: Path, *, split: str = "test", frames: int = DEFAULT_FRAMES, compression: str = "c23", crop: Cropper | None = None
) -> list[Face]:
    """Read `frames` frames of each video of a split; `root` holds the files, whatever folder the index was written in.

    A fake of FaceForensics++ has for twin the frame of the same number of its original where that frame is read too. Raises FileNotFoundError or
    ValueError for an index of another shape, an unknown label, or a frame that is not there.
    """
    if frames < 1:
        raise ValueError(f"frames={frames} of each video; take at least 1")
    dataset, by_label = _read_index(index)
    names = list(SPLITS)[list(SPLITS).index(split) :]
    listed = {name: _videos(index, by_label, name, compression) for name in names if name == split or _stands_in(by_label, name)}
    units = _units([video for videos in listed.values() for video in videos])
    taken = {units[video.key] for name in names[1:] for video in listed.get(name, ())}
    videos = [video for video in listed[split] if units[video.key] not in taken]
    if not videos:
        raise ValueError(f"{index}: split {split!r} has no video{' that a later split does not name too' if listed[split] else ''}; choose another")
    videos.sort(key=lambda video: video.is_fake)
    skip = _machine_prefix(index, root, videos[0].frames[even_positions(len(videos[0].frames), frames)[0]])
    return read_faces(root, f"deepfakebench-{dataset}", _entries(videos, units, SPLITS[split], frames, skip), crop)


def even_positions(count: int, wanted: int) -> list[int]:
    """Positions of the middles of `wanted` equal stretches of 0..count-1; all positions when there are no more than that."""
    return list(range(count)) if count <= wanted else [(2 * i + 1) * count // (2 * wanted) for i in range(wanted)]


# --- The index --------------------------------------------------------------------------------------------------------------------------------


def _read_index(index: Path) -> tuple[str, dict[str, Any]]:
    if not index.is_file():
        raise FileNotFoundError(f"there is no index {index}; preprocessing/rearrange.py of DeepfakeBench writes it")
    if (size := index.stat().st_size) > MAX_INDEX_BYTES:
        raise ValueError(f"{index} has {size} bytes, {MAX_INDEX_BYTES} are allowed; write one index a dataset")
    try:
        content = json.loads(index.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{index} is no JSON ({error}); write it again with preprocessing/rearrange.py") from None
    if not isinstance(content, dict) or len(content) != 1 or not all(isinstance(labels, dict) and labels for labels in content.values()):
        raise ValueError(f"{index} does not hold one dataset with its labels at the top; write one index a dataset")
    ((dataset, by_label),) = content.items()
    return str(dataset), by_label


def _stands_in(by_label: Mapping[str, Any], split: str) -> bool:
    """Whether the index has the split in a usable form; their DFDC index has a nameless single video for `val`."""
    contents = [splits.get(split) for splits in by_label.values() if isinstance(splits, dict)]
    return any(isinstance(content, dict) and "frames" not in content for content in contents)


def _videos(index: Path, by_label: Mapping[str, Any], split: str, compression: str) -> list[_Video]:
    found: list[_Video] = []
    for label, splits in by_label.items():
        where = f"{index}: {label} > {split}"
        content = splits.get(split) if isinstance(splits, dict) else None
        if isinstance(content, dict) and content and content.keys() <= set(COMPRESSIONS):
            if compression not in content:
                raise ValueError(f"{where} has no compression {compression!r}; choose {', '.join(content)}")
            content = content[compression]
        if not isinstance(content, dict) or "frames" in content:
            raise ValueError(f"{where} does not list videos by name; choose a split that does")
        found += [_video(f"{where} > {name}", name, video) for name, video in content.items()]
    with_frames = [video for video in found if video.frames]
    if len(with_frames) < len(found):
        log.warning("%s: %d of %d videos of split %s list no frame and are left out", index, len(found) - len(with_frames), len(found), split)
    return with_frames


def _video(where: str, name: str, video: Any) -> _Video:
    match video:
        case {"label": str(label), "frames": [*frames]} if all(isinstance(path, str) for path in (*frames, *(video.get("masks") or ()))):
            if label not in FORGERY_OF_LABEL:
                raise ValueError(f"{where}: label {label!r} is not known; known are {', '.join(FORGERY_OF_LABEL)}")
            masks = {_number(path): path for path in video.get("masks") or ()}
            return _Video(label, name, tuple(sorted(set(frames), key=_in_order)), masks if FORGERY_OF_LABEL[label] else {})
    raise ValueError(f"{where} is no {{label, frames, masks}} with lists of paths; write the index again with preprocessing/rearrange.py")


def _slashes(path: str) -> PurePosixPath:
    """Indices written on Windows hold back slashes."""
    return PurePosixPath(path.replace("\\", "/"))


def _number(path: str) -> str:
    """The file's name without suffix; by hand, since an index lists a million frames."""
    name = path.replace("\\", "/").rpartition("/")[2]
    return name.rpartition(".")[0] or name


def _in_order(path: str) -> tuple[list[int], str]:
    return [int(digits) for digits in re.findall(r"\d+", _number(path))], path


# --- Units, twins, frames ---------------------------------------------------------------------------------------------------------------------


def _units(videos: list[_Video]) -> dict[str, str]:
    """What a split must not divide, by video: in FaceForensics++ the originals that some fake joins, in Celeb-DF the person shown, else the video."""
    joined: dict[str, str] = {}

    def first_of(name: str) -> str:
        while (other := joined.setdefault(name, name)) != name:
            name = other
        return name

    matches = {video.key: _FF_VIDEO.fullmatch(video.name) for video in videos if video.label.startswith("FF-")}
    for pair in filter(None, matches.values()):
        low, high = sorted((first_of(pair[1]), first_of(pair[2] or pair[1])))
        joined[high] = low
    return {video.key: first_of(match[1]) if (match := matches.get(video.key)) else _own_unit(video) for video in videos}


def _own_unit(video: _Video) -> str:
    match = _CELEB_VIDEO.fullmatch(video.name) if video.label.startswith("CelebDF") else None
    return match[1] if match else video.key


def _entries(videos: list[_Video], units: Mapping[str, str], part: Part, frames: int, skip: int) -> list[Entry]:
    """Reals, which come first, take their own even frames; a fake takes the same numbers where it has them all, so that every frame has a twin."""
    sampled: dict[str, dict[str, str]] = {}
    entries = []
    for video in videos:
        original = _original(video)
        by_number = {_number(path): path for path in video.frames}
        paths = [video.frames[position] for position in even_positions(len(video.frames), frames)]
        if (wanted := sampled.get(original)) and wanted.keys() <= by_number.keys():
            paths = [by_number[number] for number in wanted]
        sampled[video.key] = {_number(path): path for path in paths}
        for number, path in sampled[video.key].items():
            name, mask = f"{video.key}/{number}", video.masks.get(number)
            twin = f"{original}/{number}" if number in sampled.get(original, ()) else None
            mask_file = None if mask is None else _below(mask, skip)
            kind = FORGERY_OF_LABEL[video.label]
            entries.append(Entry(name, name, _below(path, skip), video.is_fake, kind, units[video.key], part, twin, mask_file))
    return entries


def _original(video: _Video) -> str:
    """Key of the video that a fake of FaceForensics++ was made from; '' where it cannot be told."""
    match = _FF_VIDEO.fullmatch(video.name) if video.label.startswith("FF-") and video.is_fake else None
    return f"FF-real/{match[1]}" if match else ""


def _machine_prefix(index: Path, root: Path, path: str) -> int:
    """How many leading folders of the index's paths belong to the machine that wrote it: as few as leave a file below `root`."""
    parts = _slashes(path).parts
    for skip in range(len(parts)):
        below = PurePosixPath(*parts[skip:])
        if ".." not in below.parts and not below.is_absolute() and (root / below).is_file():
            return skip
    raise FileNotFoundError(f"{index}: neither {path!r} nor an end of it is a file below {root}; give the folder of the images as root=DIR")


def _below(path: str, skip: int) -> str:
    return str(PurePosixPath(*_slashes(path).parts[skip:]))
