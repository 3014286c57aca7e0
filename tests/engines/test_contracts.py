"""Values at the border of an engine: masks survive their encoding, the manifest is closed and its digest covers all of it."""

import copy
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from pydantic import ValidationError

from engines.contracts import FORGERY_TYPES, FileSpec, Manifest, Mask, OperatingPoint, canonical_digest

SHA = "0" * 64
FILE = {"file": "a.onnx", "sha256": SHA, "size_bytes": 1}
TENSOR = {"name": "image", "dtype": "float32", "shape": ["batch", 3]}
MANIFEST: dict[str, Any] = {
    "schema_version": "1.0",
    "name": "toy",
    "version": "1",
    "precision": "fp16",
    "backend": "onnxruntime",
    "parts": {"encoder": {**FILE, "inputs": [TENSOR], "outputs": [TENSOR]}},
    "files": {"tokenizer": FILE},
    "preprocess": {"image_size": 56, "grid": 4, "mask_size": 16, "crop_scale": 1.3, "mean": [0.1, 0.2, 0.3], "std": [1.0, 1.0, 1.0]},
    "decoder": {
        "num_layers": 1, "num_heads": 1, "head_dim": 8, "width": 8, "vocab_size": 8, "num_prefix_tokens": 1, "capacity": 8, "max_new_tokens": 4,
    },
    "forgery_types": list(FORGERY_TYPES),
    "fict_depth": 112,
    "calibration": {"method": "platt", "scale": 1.5, "bias": -0.5, "fitted_on": "faces", "ece": 0.01},
    "operating_points": {"standard": {"name": "standard", "fake_at": 0.9, "real_below": 0.4, "explain_at": 0.4, "fpr_target": 0.01}},
    "default_operating_point": "standard",
    "score_baseline": [0.5, 0.5],
    "licences": {"code": "Apache-2.0"},
    "provenance": {"checkpoint": "x"},
    "metrics": {"auc": 0.9},
    "digest": SHA,
}  # fmt: skip


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where the scalars of a JSON value stand."""
    if isinstance(value, dict):
        return [leaf for key, item in value.items() for leaf in leaves(item, (*path, key))]
    if isinstance(value, list):
        return [leaf for index, item in enumerate(value) for leaf in leaves(item, (*path, index))]
    return [path]


def replaced(path: tuple[Any, ...], change: Any) -> dict[str, Any]:
    """A copy of `MANIFEST` with `change` of what stands at `path`."""
    body = copy.deepcopy(MANIFEST)
    target: Any = body
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = change(target[path[-1]])
    return body


@given(hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, max_side=40)))
def test_mask_survives_its_run_lengths(mask_HW: NDArray[np.bool_]) -> None:
    encoded = Mask.encode(mask_HW)
    assert encoded.size_hw == mask_HW.shape
    assert encoded.area == mask_HW.sum()
    np.testing.assert_array_equal(encoded.decode(), mask_HW)


def test_run_lengths_that_end_early_are_no_mask() -> None:
    whole = Mask.encode(np.eye(8, dtype=bool))
    with pytest.raises(ValueError, match="cover 55 of 8 x 8 pixels"):
        Mask(whole.size_hw, whole.counts[:-2]).decode()


def test_mask_runs_down_the_columns() -> None:
    mask_HW = np.zeros((2, 3), bool)
    mask_HW[0, 1] = True  # column-major: two clear, one set, three clear
    assert Mask.encode(mask_HW).counts == "213"


def test_every_field_of_the_manifest_moves_its_digest() -> None:
    before = canonical_digest(MANIFEST)
    for path in leaves(MANIFEST):
        changed = replaced(path, lambda old: f"{old}x" if isinstance(old, str) else old + 1)
        assert (canonical_digest(changed) == before) is (path == ("digest",)), path


def test_digest_does_not_depend_on_the_order_of_keys() -> None:
    assert canonical_digest(dict(reversed(MANIFEST.items()))) == canonical_digest(MANIFEST)


@pytest.mark.parametrize(
    "path",
    [(), ("preprocess",), ("decoder",), ("calibration",), ("parts", "encoder"), ("files", "tokenizer"), ("operating_points", "standard")],
    ids=lambda path: ".".join(path) or "manifest",
)
def test_unknown_fields_are_refused(path: tuple[str, ...]) -> None:
    Manifest.model_validate(MANIFEST)
    body = replaced(path, lambda old: {**old, "surprise": 1}) if path else {**MANIFEST, "surprise": 1}
    with pytest.raises(ValidationError, match="surprise"):
        Manifest.model_validate(body)


@pytest.mark.parametrize("name", ["../a", "/etc/passwd", "a/b", "a\\b", "..", ".", ".hidden", "", "a\n", "C:a", "a\0b"])
def test_file_names_cannot_leave_the_folder(name: str) -> None:
    with pytest.raises(ValidationError, match="file"):
        FileSpec(file=name, sha256=SHA, size_bytes=0)


@given(st.text(max_size=12))
def test_an_accepted_file_name_is_one_visible_name(name: str) -> None:
    try:
        FileSpec(file=name, sha256=SHA, size_bytes=0)
    except ValidationError:
        return
    assert name.isascii() and not set(name) & set("/\\:\0\n") and not name.startswith(".")


def test_values_are_frozen() -> None:
    point = OperatingPoint(name="standard", fake_at=0.9, real_below=0.4, explain_at=0.4)
    with pytest.raises(ValidationError, match="frozen"):
        point.fake_at = 0.1  # type: ignore[misc]
