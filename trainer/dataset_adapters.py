"""Other people's layouts on disk -> faces, by one spec for all:

    research:DIR                                                the research sets (`trainer.datasets`)
    pairs:DIR[?type=..&crop=..]                                 DIR/real/NAME.ext, DIR/fake/NAME.ext and, if known, DIR/mask/NAME.png
    csv:FILE[?crop=..]                                          columns file,label[,original,type,identity,split,mask]; paths below FILE's folder
    deepfakebench:FILE[?root=..&split=..&frames=..&compression=..&crop=..]      see `trainer.deepfakebench`

`crop=detect` finds the face in each image with the serving detector and cuts it by the serving rule; `crop=none`, the default, takes the image whole.
Images of a set without splits are of the *report* part: they judge and never train. `val` is our *select*, `test` our *report*.
"""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from engines.contracts import FORGERY_TYPES
from trainer.datasets import LOADERS, load_faces
from trainer.deepfakebench import COMPRESSIONS, DEFAULT_FRAMES, SPLITS, load_deepfakebench
from trainer.faces import SWAP_SUM, Face, Part
from trainer.image_index import MAX_FACES, Cropper, Entry, read_faces
from trainer.portraits import PortraitCropper

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
TYPES = (*FORGERY_TYPES, SWAP_SUM)
COLUMNS = ("file", "label", "original", "type", "identity", "split", "mask")
PARTS: Mapping[str, Part] = {"": "report", "select": "select", "calibrate": "calibrate", "report": "report", **SPLITS}
OPTIONS: Mapping[str, tuple[str, ...]] = {
    "research": (),
    "pairs": ("type", "crop"),
    "csv": ("crop",),
    "deepfakebench": ("root", "split", "frames", "compression", "crop"),
}
"""What may follow the question mark, by kind of set."""

Row = dict[str, str]
"""Cells by column, options by name."""


def open_dataset(spec: str) -> list[Face]:
    """Read the set that a spec names. Options are taken as they stand: no character is escaped (`FaceForensics++` is a folder).

    Raises ValueError for a spec outside the grammar above, and what the loader of its kind raises.
    """
    kind, colon, rest = spec.partition(":")
    if not colon or kind not in OPTIONS:
        raise ValueError(f"{spec!r} names no set; begin with one of {', '.join(f'{name}:' for name in OPTIONS)}")
    path, question, query = rest.partition("?")
    if not path:
        raise ValueError(f"{spec!r} names no path; write {kind}:PATH")
    options: Row = {}
    for item in query.split("&") if question else []:
        key, _, value = item.partition("=")
        if not value or key in options or key not in OPTIONS[kind]:
            raise ValueError(f"{spec!r}: {item!r} is not one of {kind}'s options, or is given twice; they are {', '.join(OPTIONS[kind]) or 'none'}")
        options[key] = value
    return _open(kind, Path(path), options)


def _open(kind: str, path: Path, options: Row) -> list[Face]:
    if kind == "research":
        return load_faces(path, list(LOADERS), PortraitCropper())
    crop = PortraitCropper() if _chosen(options, "crop", ("none", "detect")) == "detect" else None
    if kind == "pairs":
        return load_pairs(path, forgery_type=_chosen(options, "type", ("", *TYPES)) or None, crop=crop)
    if kind == "csv":
        return load_csv(path, crop=crop)
    frames = options.get("frames", str(DEFAULT_FRAMES))
    if not (frames.isascii() and frames.isdigit()):
        raise ValueError(f"frames={frames!r} is no number of frames a video; write for instance frames={DEFAULT_FRAMES}")
    return load_deepfakebench(
        path,
        Path(options.get("root", path.parent)),
        split=_chosen(options, "split", ("test", "val", "train")),
        frames=int(frames),
        compression=_chosen(options, "compression", COMPRESSIONS),
        crop=crop,
    )


def _chosen(options: Row, key: str, values: Sequence[str]) -> str:
    """The option's value; the first of `values` where it is not given."""
    value = options.get(key, values[0])
    if value not in values:
        raise ValueError(f"{key}={value!r} is not supported; choose {', '.join(filter(None, values))}")
    return value


# --- Folder of pairs --------------------------------------------------------------------------------------------------------------------------


def load_pairs(folder: Path, *, forgery_type: str | None = None, crop: Cropper | None = None) -> list[Face]:
    """Read `real/NAME.ext` and `fake/NAME.ext` as twins, `mask/NAME.png` as the fake's exact mask; a real or a fake may stand alone.

    All fakes are of one type, or of an unknown one. Raises FileNotFoundError or ValueError naming the file.
    """
    real, fake, mask = (_by_stem(folder, kind) for kind in ("real", "fake", "mask"))
    if not real and not fake:
        raise FileNotFoundError(f"{folder} has no images in real/ or fake/; point pairs: at the folder that holds these two")
    for stem in sorted(mask.keys() - fake.keys()):
        raise ValueError(f"{folder}: {mask[stem]} marks no fake; a mask has the name of the image in fake/ that it belongs to")
    entries = [Entry(file, file, file, False, None, stem, "report") for stem, file in real.items()]
    entries += [Entry(file, file, file, True, forgery_type, stem, "report", real.get(stem), mask.get(stem)) for stem, file in fake.items()]
    return read_faces(folder, f"pairs-{folder.resolve().name}", entries, crop)


def _by_stem(folder: Path, kind: str) -> Row:
    """Name without suffix -> 'kind/NAME.ext', in order; hidden files are passed over."""
    found: Row = {}
    for path in sorted((folder / kind).iterdir()) if (folder / kind).is_dir() else []:
        if path.name.startswith("."):
            continue
        if path.suffix.lower() not in SUFFIXES:
            raise ValueError(f"{path} is no image by its name; keep only {', '.join(SUFFIXES)} in {kind}/")
        if (other := found.setdefault(path.stem, f"{kind}/{path.name}")) != f"{kind}/{path.name}":
            raise ValueError(f"{path} and {other} have one name; pairs are found by the name without suffix: rename one")
    return found


# --- CSV index --------------------------------------------------------------------------------------------------------------------------------


def load_csv(index: Path, *, crop: Cropper | None = None) -> list[Face]:
    """Read an index with the columns `COLUMNS`; `file` and `label` must be there, an empty cell says nothing.

    `original` is the file of the real row a fake was made from; `identity` is what a split must not divide (without it that of the original, else
    the file). Raises FileNotFoundError or ValueError: the row (the header is row 1), the value, the remedy.
    """
    rows = _csv_rows(index)
    entries = [_entry(f"{index.name}, row {number}", row, rows) for number, row in rows.values()]
    first_of: dict[str, Entry] = {}
    for entry in entries:
        first = first_of.setdefault(entry.unit, entry)
        if first.part != entry.part:
            raise ValueError(f"{entry.where}: identity {entry.unit!r} is in another split than in {first.where}; give each identity to one split")
    return read_faces(index.parent, f"csv-{index.stem}", entries, crop)


def _entry(where: str, row: Row, rows: Mapping[str, tuple[int, Row]]) -> Entry:
    file, part, unit, twin = row["file"], PARTS[row["split"]], row["identity"] or row["file"], row["original"]
    if twin:
        _, original = rows.get(twin, (0, {"label": ""}))
        if original["label"] != "real":
            raise ValueError(f"{where}: original {twin!r} is the file of no real row; add that row or leave the cell empty")
        if PARTS[original["split"]] != part:
            raise ValueError(f"{where}: split {row['split']!r} is not that of its original; keep twins in one split")
        unit = row["identity"] or original["identity"] or twin
    return Entry(where, file, file, row["label"] == "fake", row["type"] or None, unit, part, twin or None, row["mask"] or None)


def _csv_rows(index: Path) -> dict[str, tuple[int, Row]]:
    """Row number and checked cells by file."""
    if not index.is_file():
        raise FileNotFoundError(f"there is no index {index}; point csv: at a file with the columns {','.join(COLUMNS)}")
    rows: dict[str, tuple[int, Row]] = {}
    number = 1
    with index.open(newline="", encoding="utf-8-sig") as handle:
        try:
            reader = csv.DictReader(handle, strict=True)
            _check_columns(f"{index.name}, row 1", reader.fieldnames or ())
            for number, cells in enumerate(reader, 2):
                where = f"{index.name}, row {number}"
                if number > MAX_FACES + 1:
                    raise ValueError(f"{where}: more than {MAX_FACES} images; split the index")
                if None in cells or None in cells.values():
                    raise ValueError(f"{where}: not as many cells as the header; write empty cells too, and quote a cell that holds a comma")
                row = _checked_row(where, {column: _plain(column, (cells.get(column) or "").strip()) for column in COLUMNS})
                if row["file"] in rows:
                    raise ValueError(f"{where}: file {row['file']!r} is that of row {rows[row['file']][0]} too; name each image once")
                rows[row["file"]] = number, row
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{index.name}, after row {number}: {error}; write the index as UTF-8 CSV") from None
    return rows


def _plain(column: str, cell: str) -> str:
    """The cell; of a path its one spelling, or './a.jpg' would be another image than 'a.jpg', and perhaps of another split."""
    return str(PurePosixPath(cell)) if cell and column in ("file", "original", "mask") else cell


def _check_columns(where: str, names: Sequence[str]) -> None:
    if not {"file", "label"} <= set(names) <= set(COLUMNS) or len(set(names)) != len(names):
        raise ValueError(f"{where}: columns {','.join(names)!r}; write file,label and any of {','.join(COLUMNS[2:])}, each once")


def _checked_row(where: str, row: Row) -> Row:
    for column, values in (("label", ("real", "fake")), ("type", ("", *TYPES)), ("split", tuple(PARTS))):
        if row[column] not in values:
            raise ValueError(f"{where}: {column} {row[column]!r}; choose {', '.join(filter(None, values))}")
    for column in ("original", "type", "mask"):
        if row[column] and row["label"] == "real":
            raise ValueError(f"{where}: {column} {row[column]!r} of a real face; leave the cell empty or label the row fake")
    return row
