"""Real TensorRT-RTX builds on a machine without a GPU, and what is refused before a build."""

import re
from pathlib import Path
from typing import get_args

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from engines.bundle import bundled_engine, read_manifest
from engines.contracts import Manifest, PartName, Profile, ProviderError
from engines.precision import to_half
from engines.trt_build import BuildError, BuildOptions, CompiledPlan, compile_plan, default_profiles, parse_profiles
from engines.trt_flavours import FLAVOURS, flavour, installed_version, load

PARTS: tuple[PartName, ...] = get_args(PartName)
TARGETS = ("SM86", "SM89", "SM120")


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    """Of the bundle that ships."""
    return read_manifest(bundled_engine())


@pytest.fixture
def rtx() -> None:
    """Skip without TensorRT-RTX."""
    try:
        load("tensorrt-rtx")
    except ProviderError as error:
        pytest.skip(str(error))


def graph(nodes: list[onnx.NodeProto], shape: list[int | str], *, opset: int = 20, weights: tuple[onnx.TensorProto, ...] = ()) -> bytes:
    """A model from `x` to `y`, both of `shape`."""
    made = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        list(weights),
    )
    domains = {node.domain for node in nodes if node.domain}
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(made, opset_imports=opsets, ir_version=10).SerializeToString()


def profile(*shapes: tuple[int, ...]) -> dict[str, Profile]:
    """Minimum, optimum and maximum of `x`."""
    return {"x": Profile(min=shapes[0], opt=shapes[1], max=shapes[2])}


def assert_report(compiled: CompiledPlan, source_bytes: int) -> None:
    """What every build of a whole part must say of itself; weights in fp32 or half, and code for each kind of GPU."""
    assert compiled.plan[:4] == FLAVOURS["tensorrt-rtx"].plan_magic
    assert int.from_bytes(compiled.plan[16:24], "little") == len(compiled.plan)
    assert compiled.runtime_version == installed_version("tensorrt-rtx") == ".".join(map(str, compiled.plan[24:28]))
    assert compiled.compute_capabilities == TARGETS
    assert compiled.layers > 1
    assert compiled.parse_seconds > 0 and compiled.build_seconds > 0
    assert all("Int64" in warning for warning in compiled.warnings)
    assert 0.5 * source_bytes < len(compiled.plan) < 3 * source_bytes + (8 << 20)


def build(model: onnx.ModelProto, part: PartName, manifest: Manifest, precision: str) -> CompiledPlan:
    """One plan for three kinds of GPU."""
    converted = model if precision == "fp32" else to_half(model, precision)
    return compile_plan(converted.SerializeToString(), default_profiles(manifest, part), "tensorrt-rtx", BuildOptions(compute_capabilities=TARGETS))


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("part", [part for part in PARTS if part != "region_parser"])  # the tiny bundle has none
def test_every_part_builds_one_plan_for_three_kinds_of_gpu(part: PartName, precision: str, sealed: Path, rtx: None) -> None:
    made = read_manifest(sealed)
    path = sealed / made.parts[part].file
    assert_report(build(onnx.load(path), part, made, precision), path.stat().st_size)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("part", PARTS)
def test_every_part_of_the_shipped_bundle_builds(part: PartName, precision: str, manifest: Manifest, rtx: None) -> None:
    path = bundled_engine() / manifest.parts[part].file
    compiled = build(onnx.load(path), part, manifest, precision)
    assert_report(compiled, path.stat().st_size)
    assert compiled.layers > 100


def test_fp32_attention_is_made_decomposable(rtx: None) -> None:
    weights = tuple(numpy_helper.from_array(np.full((32, 32), 0.1, np.float32), f"w_{name}") for name in "qkv")  # one tensor for all three crashes it
    projections = [helper.make_node("MatMul", ["x", f"w_{name}"], [name]) for name in "qkv"]
    model = graph([*projections, helper.make_node("Attention", ["q", "k", "v"], ["y"])], ["batch", 2, 16, 32], opset=23, weights=weights)
    compiled = compile_plan(model, profile((1, 2, 16, 32), (2, 2, 16, 32), (4, 2, 16, 32)), "tensorrt-rtx", BuildOptions())
    assert compiled.decomposed_attentions == 1
    assert compiled.compute_capabilities == TARGETS


def test_a_node_that_the_parser_refuses_is_named(rtx: None) -> None:
    model = graph([helper.make_node("Mystery", ["x"], ["y"], name="the_node", domain="nowhere")], ["batch", 3])
    with pytest.raises(BuildError, match=r"cannot parse the graph: node 'the_node' \(Mystery\): .*[Pp]lugin") as caught:
        compile_plan(model, profile((1, 3), (1, 3), (2, 3)), "tensorrt-rtx", BuildOptions())
    assert "\n" not in str(caught.value)


def test_what_the_builder_refuses_is_told_with_its_log(rtx: None) -> None:
    weight = numpy_helper.from_array(np.ones((3, 3), np.float32), "w")
    model = graph([helper.make_node("MatMul", ["x", "w"], ["y"])], ["batch", 3], weights=(weight,))
    with pytest.raises(BuildError, match=r"cannot build the graph: .*(FP32|GEMM|SM75|compute capability)"):
        compile_plan(model, profile((1, 3), (1, 3), (2, 3)), "tensorrt-rtx", BuildOptions(compute_capabilities=("7.5",)))


def test_a_gpu_that_the_library_does_not_know_is_refused_with_those_it_knows(rtx: None) -> None:
    with pytest.raises(BuildError, match=r"builds for no SM90; it knows .*SM89"):
        compile_plan(
            graph([helper.make_node("Relu", ["x"], ["y"])], [2]),
            profile((2,), (2,), (2,)),
            "tensorrt-rtx",
            BuildOptions(compute_capabilities=("9.0",)),
        )


def test_inputs_without_shapes_are_refused(rtx: None) -> None:
    with pytest.raises(BuildError, match="the graph takes x, shapes are given for z"):
        compile_plan(
            graph([helper.make_node("Relu", ["x"], ["y"])], [2]), {"z": Profile(min=(2,), opt=(2,), max=(2,))}, "tensorrt-rtx", BuildOptions()
        )


def test_a_timing_cache_is_refused_where_nothing_is_measured(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"tensorrt-rtx measures nothing .* --timing-cache"):
        compile_plan(b"", {}, "tensorrt-rtx", BuildOptions(timing_cache=tmp_path / "cache"))


def test_a_list_of_gpus_is_refused_where_builds_are_for_the_present_one() -> None:
    with pytest.raises(BuildError, match="tensorrt builds for the GPU that is present and takes no --compute-capability"):
        compile_plan(b"", {}, "tensorrt", BuildOptions(compute_capabilities=("8.9",)))


def test_a_library_that_is_missing_is_named_with_what_to_install() -> None:
    try:
        load("tensorrt")
    except ProviderError as error:
        assert re.search(r"backend tensorrt cannot be imported .*; pip install .*pypi.nvidia.com 'fifa-stream\[tensorrt\]'", str(error))
    else:
        pytest.skip("TensorRT is installed")


def test_onnxruntime_compiles_no_plans() -> None:
    with pytest.raises(ValueError, match="onnxruntime compiles no plans; those that do: tensorrt, tensorrt-rtx"):
        flavour("onnxruntime")


@pytest.mark.parametrize("text", ["8.9", "89", "SM89", "sm_89", " sm8.9 "])
def test_a_compute_capability_has_one_spelling(text: str) -> None:
    assert BuildOptions(compute_capabilities=(text, "12.0")).compute_capabilities == ("SM89", "SM120")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"opt_level": 6}, "level 6 is outside 0 to 5", id="level"),
        pytest.param({"workspace_bytes": 0}, "0 bytes holds nothing", id="workspace"),
        pytest.param({"compute_capabilities": ("ampere",)}, "'ampere' is no compute capability", id="compute capability"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BuildOptions(**options)


@pytest.mark.parametrize("part", PARTS)
def test_default_shapes_rise_and_keep_fixed_axes(part: PartName, manifest: Manifest) -> None:
    profiles = default_profiles(manifest, part)
    for tensor in manifest.parts[part].inputs:
        shapes = profiles[tensor.name]
        assert all(low <= best <= high for low, best, high in zip(shapes.min, shapes.opt, shapes.max, strict=True))
        assert all(size == axis for axis, size in zip(tensor.shape, shapes.max, strict=True) if isinstance(axis, int))


def test_default_shapes_cover_what_serving_feeds(manifest: Manifest) -> None:
    decoder = default_profiles(manifest, "decoder")
    assert decoder["inputs_embeds"] == Profile(min=(1, 1, 192), opt=(4, 1, 192), max=(16, 256, 192))
    assert decoder["past_k0"].max == (16, 6, 256, 32)
    assert default_profiles(manifest, "face_detector")["input.1"].max == (1, 3, 1280, 1280)
    assert default_profiles(manifest, "mask_decoder")["seg_embeds"].max == (64, 192)


def test_an_axis_of_unknown_meaning_is_refused(manifest: Manifest) -> None:
    spec = manifest.parts["box_encoder"]
    odd = spec.model_copy(update={"inputs": (spec.inputs[0].model_copy(update={"shape": ("batch", "depth")}),)})
    with pytest.raises(ValueError, match="input image_embeds of box_encoder has a dynamic axis 'depth'"):
        default_profiles(manifest.model_copy(update={"parts": {"box_encoder": odd}}), "box_encoder")


def test_given_shapes_take_the_place_of_the_defaults(manifest: Manifest) -> None:
    profiles = parse_profiles(manifest, [], ["image:8x3x224x224"], ["image:32x3x224x224, mask_decoder/seg_embeds:80x192", "input.1:1x3x640x640"])
    assert profiles["encoder"]["image"] == Profile(min=(1, 3, 224, 224), opt=(8, 3, 224, 224), max=(32, 3, 224, 224))
    assert profiles["mask_decoder"]["seg_embeds"].max == (80, 192)
    assert profiles["face_detector"]["input.1"].max == (1, 3, 640, 640)


def test_a_name_without_its_part_speaks_of_every_part_that_has_it(manifest: Manifest) -> None:
    profiles = parse_profiles(manifest, [], [], ["image_embeds:96x256x384"])
    assert profiles["mask_decoder"]["image_embeds"].max == profiles["box_encoder"]["image_embeds"].max == (96, 256, 384)


@pytest.mark.parametrize(
    ("minimum", "maximum", "message"),
    [
        pytest.param([], ["picture:1x3"], "--max-shapes names 'picture', which no part takes; the inputs are .*encoder/image", id="unknown name"),
        pytest.param([], ["decoder/image:1x3x224x224"], "'decoder/image', which no part takes", id="name of another part"),
        pytest.param([], ["image:1x3x224"], "the maximum 1x3x224 of encoder/image has 3 axes, the graph 4: batchx3x224x224", id="rank"),
        pytest.param([], ["image:16x3x256x224"], "the maximum 16x3x256x224 of encoder/image changes a fixed axis", id="fixed axis"),
        pytest.param(["image:8x3x224x224"], [], "encoder/image has minimum, optimum and maximum 8x3x224x224, 4x3x", id="min above opt"),
        pytest.param([], ["image:2x3x224x224"], "must not fall: give all three", id="opt above max"),
        pytest.param([], ["image=1x3"], "'image=1x3' is no shape; write it as name:1x3x224x224", id="syntax"),
        pytest.param([], ["image:0x3x224x224"], "is no shape", id="zero"),
        pytest.param([], ["image:1x3x224x224,"], "'' is no shape", id="nothing behind a comma"),
    ],
)
def test_shapes_that_do_not_fit_are_refused_in_one_line(minimum: list[str], maximum: list[str], message: str, manifest: Manifest) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        parse_profiles(manifest, minimum, [], maximum)
    assert "\n" not in str(caught.value)


@given(batches=st.tuples(*[st.integers(1, 512)] * 3), joined=st.booleans())
@settings(deadline=None)
def test_shapes_are_taken_exactly_when_they_rise(batches: tuple[int, int, int], joined: bool) -> None:
    manifest = read_manifest(bundled_engine())
    texts = [[f"{'encoder/' if joined else ''}image:{batch}x3x224x224"] for batch in batches]
    if list(batches) == sorted(batches):
        shapes = parse_profiles(manifest, *texts)["encoder"]["image"]
        assert (shapes.min[0], shapes.opt[0], shapes.max[0]) == batches
    else:
        with pytest.raises(ValueError, match="must not fall"):
            parse_profiles(manifest, *texts)
