"""A bundle opens when it is what its manifest says, and is refused by name before anything of it runs when it is not."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engines import runtime, sealed
from engines.bundle import MANIFEST_NAME, Bundle, check_support, open_bundle, read_manifest, verify_files
from engines.contracts import BundleError, BundleFault, ProviderError, canonical_digest
from engines.export import file_spec

FILES = [
    "encoder.onnx",
    "box_encoder.onnx",
    "decoder.onnx",
    "mask_decoder.onnx",
    "face_detector.onnx",
    "tokenizer.json",
    "token_embeddings.safetensors",
]
Body = dict[str, Any]


def flip_bit(path: Path, position: int, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1 << bit
    path.write_bytes(content)


def reseal(folder: Path, change: Callable[[Body], Any]) -> None:
    """Change the manifest and give it the digest of what it then is: an exporter's mistake, not a tampered file."""
    body = json.loads((folder / MANIFEST_NAME).read_text())
    change(body)
    (folder / MANIFEST_NAME).write_text(json.dumps({**body, "digest": canonical_digest(body)}))


def replace_file(folder: Path, key: str, name: str) -> None:
    """Make the manifest agree with what stands in the file `name`."""
    section = "parts" if name.endswith(".onnx") else "files"
    reseal(folder, lambda body: body[section][key].update(file_spec(folder / name).model_dump(mode="json")))


def refused(folder: Path, fault: BundleFault, *words: str, pinned_digest: str | None = None) -> None:
    """The bundle is refused with this fault and one line that holds these words."""
    with pytest.raises(BundleError) as error:
        open_bundle(folder, threads=1, pinned_digest=pinned_digest)
    message = str(error.value)
    assert error.value.fault is fault, message
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.fixture
def no_session(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading a graph is an error: the bundle must be refused before."""

    def loaded(*_: Any, **__: Any) -> None:
        raise AssertionError("a graph was loaded")

    monkeypatch.setattr(runtime.ort, "InferenceSession", loaded)


def test_a_sealed_bundle_opens(sealed: Path, served: Bundle) -> None:
    assert set(served.engines) == {"encoder", "decoder", "mask_decoder", "box_encoder", "face_detector"}
    assert served.manifest == read_manifest(sealed, pinned_digest=served.manifest.digest)
    assert served.token_embeddings_VE.shape == (served.manifest.decoder.vocab_size, served.manifest.decoder.width)
    assert served.token_embeddings_VE.dtype == np.float32


def test_a_bundle_holds_graphs_tensors_and_text_only(sealed: Path) -> None:
    assert sorted(path.name for path in sealed.iterdir()) == sorted([*FILES, MANIFEST_NAME])
    for path in sealed.glob("*.onnx"):
        graph = onnx.load(str(path), load_external_data=False)
        assert not any(tensor.external_data for tensor in graph.graph.initializer), f"{path.name} points at other files"


def test_graphs_do_not_name_the_machine_that_exported_them(sealed: Path) -> None:
    for path in sealed.glob("*.onnx"):
        assert b"/site-packages/" not in path.read_bytes() and b"trainer/" not in path.read_bytes(), path.name


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_one_flipped_bit_of_the_manifest_is_refused(sealed: Path, tmp_path: Path, where: float, bit: int) -> None:
    content = (sealed / MANIFEST_NAME).read_bytes()
    (tmp_path / MANIFEST_NAME).write_bytes(content)
    flip_bit(tmp_path / MANIFEST_NAME, int(where * len(content)), bit)
    with pytest.raises(BundleError) as error:
        read_manifest(tmp_path)
    assert error.value.fault in (BundleFault.MANIFEST_DIGEST, BundleFault.UNREADABLE_MANIFEST)
    assert str(tmp_path / MANIFEST_NAME) in str(error.value) and "fifa-train export" in str(error.value)


@pytest.mark.usefixtures("no_session")
@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("where", [0.0, 0.5, 1.0], ids=["first", "middle", "last"])
def test_one_flipped_bit_of_a_file_is_refused(copied: Path, name: str, where: float) -> None:
    flip_bit(copied / name, int(where * ((copied / name).stat().st_size - 1)), 3)
    refused(copied, BundleFault.FILE_DIGEST, str(copied / name), "copy it again")


@pytest.mark.usefixtures("no_session")
@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_refused(copied: Path, name: str) -> None:
    (copied / name).unlink()
    refused(copied, BundleFault.MISSING_FILE, str(copied / name), "copy the whole bundle again")


@pytest.mark.usefixtures("no_session")
@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_is_refused(copied: Path, name: str) -> None:
    content = (copied / name).read_bytes()
    (copied / name).write_bytes(content[:-1])
    refused(copied, BundleFault.FILE_DIGEST, str(copied / name), f"{len(content) - 1} bytes", f"states {len(content)}")


@pytest.mark.usefixtures("no_session")
def test_a_folder_without_a_manifest_is_refused(tmp_path: Path) -> None:
    refused(tmp_path, BundleFault.MISSING_FILE, str(tmp_path / MANIFEST_NAME), "engine.folder")


@pytest.mark.usefixtures("no_session")
@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"[]", id="list"),
        pytest.param(b'"text"', id="text"),
        pytest.param(b"{" * 100, id="torn"),
        pytest.param(b"[" * 200_000, id="deep"),
        pytest.param(b"\xff\xfe\x00", id="binary"),
        pytest.param(b'{"name": "\\ud800"}', id="lone-surrogate"),
        pytest.param(b" " * (sealed.MAX_BYTES + 1), id="huge"),
    ],
)
def test_a_manifest_that_is_no_manifest_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / MANIFEST_NAME).write_bytes(content)
    refused(tmp_path, BundleFault.UNREADABLE_MANIFEST, str(tmp_path / MANIFEST_NAME))


@pytest.mark.usefixtures("no_session")
def test_an_edited_manifest_is_refused(copied: Path) -> None:
    body = json.loads((copied / MANIFEST_NAME).read_text())
    body["operating_points"]["uncalibrated"]["fake_at"] = 0.99
    (copied / MANIFEST_NAME).write_text(json.dumps(body))
    refused(copied, BundleFault.MANIFEST_DIGEST, "changed after export")


@pytest.mark.usefixtures("no_session")
def test_another_digest_than_the_pinned_one_is_refused(sealed: Path, served: Bundle) -> None:
    refused(sealed, BundleFault.PINNED_DIGEST, served.manifest.digest[:12], "f" * 12, "change the pin", pinned_digest="f" * 64)


@pytest.mark.usefixtures("no_session")
@pytest.mark.parametrize(
    ("change", "field"),
    [
        pytest.param(lambda body: body.update(schema_version="2.0"), "schema_version", id="schema"),
        pytest.param(lambda body: body.update(backend="openvino"), "backend", id="backend"),
        pytest.param(lambda body: body.update(surprise=1), "surprise", id="unknown-field"),
        pytest.param(lambda body: body["parts"]["encoder"].update(file="../encoder.onnx"), "parts.encoder.file", id="file-outside"),
        pytest.param(lambda body: body["files"]["tokenizer"].update(sha256="0"), "files.tokenizer.sha256", id="short-digest"),
    ],
)
def test_a_manifest_of_another_form_is_refused_by_field(copied: Path, change: Callable[[Body], Any], field: str) -> None:
    reseal(copied, change)
    refused(copied, BundleFault.UNREADABLE_MANIFEST, f"field {field}:", "fifa-train export")


@pytest.mark.usefixtures("no_session")
@pytest.mark.parametrize(
    ("change", "words"),
    [
        pytest.param(lambda body: body["preprocess"].update(mean=[0.5, 0.5, 0.5]), "preprocessing", id="mean"),
        pytest.param(lambda body: body["preprocess"].update(std=[0.5, 0.5, 0.5]), "preprocessing", id="std"),
        pytest.param(lambda body: body["preprocess"].update(crop_scale=1.0), "preprocessing", id="crop-scale"),
        pytest.param(lambda body: body.update(forgery_types=["identity_swap"]), "forgery types", id="types"),
        pytest.param(lambda body: body.update(default_operating_point="none"), "operating point 'none'", id="operating-point"),
        pytest.param(lambda body: body["parts"].pop("mask_decoder"), "no part mask_decoder", id="part"),
        pytest.param(lambda body: body["calibration"].update(scale=math.inf), "scale inf", id="scale"),
        pytest.param(lambda body: body["calibration"].update(bias=math.nan), "bias nan", id="bias"),
        pytest.param(lambda body: body["decoder"].update(capacity=10**9), "1000000000 slots", id="huge-cache"),
        pytest.param(lambda body: body["decoder"].update(capacity=-1), "-1 slots", id="no-cache"),
        pytest.param(lambda body: body["decoder"].update(max_new_tokens=0), "writes 0 tokens", id="no-tokens"),
    ],
)
def test_conventions_this_version_does_not_implement_are_refused(copied: Path, change: Callable[[Body], Any], words: str) -> None:
    reseal(copied, change)
    refused(copied, BundleFault.UNSUPPORTED, words, "fifa-train export")


@pytest.mark.usefixtures("no_session")
@pytest.mark.parametrize("size", [-1, 0, 1, 10**9])
@pytest.mark.parametrize(
    ("section", "name", "tensor"),
    [
        ("preprocess", "image_size", "image of the encoder"),
        ("preprocess", "grid", "artifact_logits of the encoder"),
        ("preprocess", "mask_size", "mask_logits of the mask_decoder"),
        ("decoder", "num_layers", "the state of 2 layers"),
        ("decoder", "num_heads", "past_k0 of the decoder"),
        ("decoder", "head_dim", "past_k0 of the decoder"),
        ("decoder", "width", "prefix_embeds of the encoder"),
    ],
)
def test_sizes_that_are_not_those_of_the_graphs_are_refused(copied: Path, section: str, name: str, tensor: str, size: int) -> None:
    reseal(copied, lambda body: body[section].update({name: size}))
    refused(copied, BundleFault.WRONG_INTERFACE, tensor, str(size * abs(size) if name == "grid" else size), "fifa-train export")


@pytest.mark.usefixtures("no_session")
def test_one_file_for_two_parts_is_refused(copied: Path) -> None:
    reseal(copied, lambda body: body["parts"].update(mask_decoder=body["parts"]["encoder"]))
    refused(copied, BundleFault.WRONG_INTERFACE, "seg_embeds of the mask_decoder is ()")


@pytest.mark.usefixtures("no_session")
def test_a_file_that_cannot_be_read_is_refused_with_the_cause(copied: Path) -> None:
    reseal(copied, lambda body: body["parts"]["encoder"].update(file="a" * 300))
    refused(copied, BundleFault.MISSING_FILE, "cannot be read: File name too long", "copy the whole bundle again")


def test_a_manifest_without_an_end_is_refused(tmp_path: Path) -> None:
    (tmp_path / MANIFEST_NAME).symlink_to("/dev/zero")
    refused(tmp_path, BundleFault.UNREADABLE_MANIFEST, "larger than")


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda spec: spec["inputs"][0].update(name="picture"), id="input-name"),
        pytest.param(lambda spec: spec["outputs"][0].update(name="answer"), id="output-name"),
        pytest.param(lambda spec: spec["inputs"][0].update(dtype="int64"), id="dtype"),
        pytest.param(lambda spec: spec["inputs"][0].update(shape=["batch"]), id="rank"),
        pytest.param(lambda spec: spec["outputs"].reverse(), id="order"),
    ],
)
def test_a_graph_with_another_interface_is_refused(copied: Path, change: Callable[[Body], Any]) -> None:
    reseal(copied, lambda body: change(body["parts"]["face_detector"]))
    refused(copied, BundleFault.WRONG_INTERFACE, "face_detector.onnx", "the manifest states")


def test_a_file_that_is_no_graph_is_refused(copied: Path) -> None:
    (copied / "mask_decoder.onnx").write_bytes(b"not a graph")
    replace_file(copied, "mask_decoder", "mask_decoder.onnx")
    refused(copied, BundleFault.WRONG_INTERFACE, str(copied / "mask_decoder.onnx"), "cannot load")


def test_weights_in_a_file_that_the_manifest_does_not_name_are_not_read(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = copied / "mask_decoder.onnx"
    onnx.save_model(onnx.load(str(path)), str(path), save_as_external_data=True, location="weights.bin", size_threshold=1024)
    replace_file(copied, "mask_decoder", path.name)
    monkeypatch.chdir(copied)
    refused(copied, BundleFault.WRONG_INTERFACE, str(path), "cannot load", "External data")


def test_a_pickle_in_place_of_the_embeddings_is_refused(copied: Path) -> None:
    (copied / "token_embeddings.safetensors").write_bytes(b"\x80\x04cposix\nsystem\n.")
    replace_file(copied, "token_embeddings", "token_embeddings.safetensors")
    refused(copied, BundleFault.WRONG_INTERFACE, "token embeddings", "unusable")


def test_a_tokenizer_that_does_not_parse_is_refused(copied: Path) -> None:
    (copied / "tokenizer.json").write_text("{}")
    replace_file(copied, "tokenizer", "tokenizer.json")
    refused(copied, BundleFault.WRONG_INTERFACE, "tokenizer", "unusable")


def test_embeddings_of_another_shape_are_refused(copied: Path) -> None:
    def change(body: Body) -> None:
        body["decoder"]["vocab_size"] = 7
        next(tensor for tensor in body["parts"]["decoder"]["outputs"] if tensor["name"] == "logits")["shape"][2] = 7

    reseal(copied, change)
    refused(copied, BundleFault.WRONG_INTERFACE, "token embeddings", "7")


def test_a_bundle_without_a_tokenizer_is_refused(copied: Path) -> None:
    reseal(copied, lambda body: body["files"].pop("tokenizer"))
    refused(copied, BundleFault.WRONG_INTERFACE, "tokenizer")


def test_another_provider_than_the_one_asked_for_is_an_error(sealed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = SimpleNamespace(get_providers=lambda: ["AzureExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(runtime.ort, "InferenceSession", lambda *_, **__: session)
    with pytest.raises(ProviderError, match=r"asked for CPUExecutionProvider, AzureExecutionProvider runs encoder\.onnx; install"):
        open_bundle(sealed)


def test_checks_accept_what_they_should(sealed: Path, served: Bundle) -> None:
    verify_files(sealed, served.manifest)
    check_support(served.manifest)


def test_detector_takes_any_batch_and_size(served: Bundle) -> None:
    out = served.engines["face_detector"].run({"image": np.zeros((2, 3, 64, 96), np.float32)})
    assert {name: array.shape for name, array in out.items()} == {
        "heatmap": (2, 1, 16, 24), "scale": (2, 2, 16, 24), "offset": (2, 2, 16, 24), "landmarks": (2, 10, 16, 24),
    }  # fmt: skip


def test_a_bundle_without_a_box_encoder_serves_if_it_promises_no_boxes(copied: Path) -> None:
    manifest = read_manifest(copied)
    whole_faces = manifest.model_copy(
        update={"query_levels": ("region",), "parts": {name: part for name, part in manifest.parts.items() if name != "box_encoder"}}
    )
    check_support(whole_faces)
    with pytest.raises(BundleError, match="has no part box_encoder"):
        check_support(whole_faces.model_copy(update={"query_levels": ("region", "box")}))
