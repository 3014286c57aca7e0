"""FiFa-MLLM at the paper's scale with the code of `small`: FaRL-B/16 at 512 px, a 7B language model with LoRA, masks of 128 px (docs/paper-scale.md).

Encoder and language model come out of local Hugging Face folders. A saved model is a folder again: `encoder/`, `language/` with its tokenizer,
`adapters/NAME/` as peft writes them, `heads.safetensors` with all else that was trained, `config.json`. Safetensors and JSON; nothing is fetched.

    python -m trainer.paper farl farl.safetensors --out farl    # OpenAI's layout to a Hugging Face folder
    python -m trainer.paper counts                                                    # parameters of the real widths, on the meta device
    python -m trainer.paper bench                                                     # a training step with random weights: speed, memory, FLOPs
"""

import json
import resource
import shutil
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, cast, get_args

import numpy as np
import torch
import typer
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, processors
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    CLIPVisionConfig,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen2Config,
)

from engines.prompts import SPECIAL_TOKENS, Vocabulary
from trainer.backbones import convert_farl, load_backbone
from trainer.config import EncoderKind, LanguageConfig, ModelConfig, Routing, TrainConfig, VisionConfig
from trainer.language_data import LanguageBatch, features_of
from trainer.model import TEXT_ADAPTER, FiFaMLLM, add_adapters
from trainer.train import language_losses

GRID = 32
"""Patches along the crop: 512 px at patch size 16. Masks come out at four times that, 128."""
_KINDS: dict[str, EncoderKind] = {"clip": "clip", "clip_vision_model": "clip", "dinov2": "dinov2"}
_FOLDERS = ("language.", "encoder.backbone.", "mask_backbone.")
"""What the Hugging Face folders and the adapters hold; everything else of the model is in heads.safetensors."""


def paper_config(
    encoder: PreTrainedConfig, language: PreTrainedConfig, *, vocab_size: int, routing: Routing = "shared", own_mask_encoder: bool = False
) -> TrainConfig:
    """The recipe for an encoder and a language model of these sizes.

    The language stage is GLaMM's: LoRA r8 a16 d0.05 on q_proj and v_proj (`add_adapters`), AdamW at 3e-4 with betas 0.9 and 0.95, no weight decay,
    100 steps of warm-up, gradients clipped at 1.0, 1.0 CE + 2.0 BCE + 0.5 Dice, 10 epochs of 500 steps; 20 faces a step are its 2 x 10 accumulated on
    one GPU. It decays linearly, `trainer.train` by a cosine. The vision stage is that of `small`: at this scale nothing of it was tried.
    """
    if encoder.model_type not in _KINDS:
        raise ValueError(f"an encoder of type {encoder.model_type!r}; choose a folder of {', '.join(sorted(_KINDS))}")
    vision = encoder.vision_config if encoder.model_type == "clip" else encoder
    model = ModelConfig(
        image_size=GRID * vision.patch_size,
        patch_size=vision.patch_size,
        encoder_kind=_KINDS[encoder.model_type],
        encoder_width=vision.hidden_size,
        encoder_layers=vision.num_hidden_layers,
        encoder_heads=vision.num_attention_heads,
        query_width=256,
        query_heads=8,
        lm_width=language.hidden_size,
        lm_layers=language.num_hidden_layers,
        lm_heads=language.num_attention_heads,
        lm_mlp=language.intermediate_size,
        vocab_size=vocab_size,
        mask_width=256,
        box_cells=7,
        mask_encoder="own" if own_mask_encoder else "shared",
    )
    stage_2 = LanguageConfig(
        steps=5000,
        batch_faces=20,
        views=1,
        lr=3e-4,
        weight_decay=0.0,
        warmup_steps=100,
        clip_norm=1.0,
        routing=routing,
        eval_every=500,
        save_every=500,
    )
    return TrainConfig("paper", model, VisionConfig(), stage_2)


def paper(encoder_folder: Path, language_folder: Path, *, routing: Routing = "shared", own_mask_encoder: bool = False) -> TrainConfig:
    """`paper_config` of two local Hugging Face folders."""
    encoder, language = (AutoConfig.from_pretrained(_existing(folder), local_files_only=True) for folder in (encoder_folder, language_folder))
    vocab_size = max(language.vocab_size, len(open_tokenizer(language_folder)))
    return paper_config(encoder, language, vocab_size=vocab_size, routing=routing, own_mask_encoder=own_mask_encoder)


@dataclass(frozen=True, slots=True)
class Paper:
    """A model of this scale with what it needs to read and write text."""

    model: FiFaMLLM
    config: TrainConfig
    tokenizer: PreTrainedTokenizerBase
    """The language model's own, with the project's special tokens."""

    @property
    def vocabulary(self) -> Vocabulary:
        """For prompts, answers and the markup automaton."""
        plain = Tokenizer.from_str(self.tokenizer.backend_tokenizer.to_str())
        plain.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B")  # Llama's begins each text with <s>, each phrase of FICT too
        return Vocabulary(plain)


def build(config: TrainConfig, encoder_folder: Path, language_folder: Path) -> Paper:
    """A model ready for its first step: both folders loaded, adapters in place, heads at random."""
    tokenizer = open_tokenizer(language_folder)
    model = FiFaMLLM(config.model, open_language(language_folder, tokenizer))
    for backbone in (model.encoder.backbone, model.mask_backbone):
        if backbone is not None:
            load_backbone(backbone, encoder_folder, config.model)
    add_adapters(model, config.language.routing)
    return Paper(model, config, tokenizer)


def open_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The folder's tokenizer with the project's special tokens behind its own; they swallow the space before them, as in `trainer.tokenizer`."""
    tokenizer = AutoTokenizer.from_pretrained(_existing(folder), local_files_only=True)
    if not tokenizer.is_fast:
        raise ValueError(f"{folder} holds a slow tokenizer; give a folder with tokenizer.json, which the engine's automaton reads too")
    tokenizer.add_tokens([AddedToken(token, lstrip=True, special=True) for token in SPECIAL_TOKENS], special_tokens=True)
    return tokenizer


def open_language(folder: Path, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """The folder's language model, in the precision it is stored in, with a row for every token. Tables larger than the tokenizer are left alone."""
    language, report = AutoModelForCausalLM.from_pretrained(
        _existing(folder), local_files_only=True, use_safetensors=True, dtype="auto", attn_implementation="sdpa", output_loading_info=True
    )
    if report["missing_keys"]:
        raise ValueError(f"{folder} lacks {len(report['missing_keys'])} weights of its language model, {min(report['missing_keys'])} first")
    if len(tokenizer) > language.get_input_embeddings().num_embeddings:
        language.resize_token_embeddings(len(tokenizer))
    return language


def _existing(folder: Path) -> Path:
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} holds no config.json; give a local Hugging Face folder")
    return folder


def save_paper(paper: Paper, folder: Path) -> None:
    """Write the model's folder anew; an older one of the name goes only when all is written."""
    fresh = folder.with_name(f"{folder.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    model, language = paper.model, paper.model.language
    model.encoder.backbone.save_pretrained(fresh / "encoder")
    if model.mask_backbone is not None:
        model.mask_backbone.save_pretrained(fresh / "mask_encoder")
    stored = language.model.norm.weight.dtype  # that of the frozen layers: the tables are float32 while adapters train
    base = {name.replace(".base_layer.", "."): tensor.to(stored) for name, tensor in language.state_dict().items() if ".lora_" not in name}
    language.save_pretrained(fresh / "language", state_dict=base)
    _set_dtype(fresh / "language" / "config.json", stored)
    paper.tokenizer.save_pretrained(fresh / "language")
    for name in model.adapters:
        _save_adapter(language, name, fresh / "adapters" / name)
    save_file({name: tensor.contiguous() for name, tensor in _heads(model).items()}, fresh / "heads.safetensors")
    (fresh / "config.json").write_text(json.dumps(paper.config.to_json(), indent=1))
    shutil.rmtree(folder, ignore_errors=True)
    fresh.rename(folder)


def load_paper(folder: Path) -> Paper:
    """The inverse of `save_paper`. Raises ValueError for a folder whose parts do not belong together."""
    config = TrainConfig.from_json(json.loads((_existing(folder) / "config.json").read_text()))
    tokenizer = open_tokenizer(folder / "language")
    model = FiFaMLLM(config.model, open_language(folder / "language", tokenizer))
    for name, backbone in (("encoder", model.encoder.backbone), ("mask_encoder", model.mask_backbone)):
        if backbone is not None:
            load_backbone(backbone, folder / name, config.model)
    names = sorted(path.name for path in (folder / "adapters").glob("*"))
    if names:
        saved = json.loads((folder / "adapters" / names[0] / "adapter_config.json").read_text())
        sizes = {"rank": saved["r"], "alpha": saved["lora_alpha"], "dropout": saved["lora_dropout"]}
        add_adapters(model, config.language.routing, **sizes, train_base=TEXT_ADAPTER not in names)
        if sorted(model.adapters) != names:
            raise ValueError(f"{folder} holds the adapters {', '.join(names)}, its routing needs {', '.join(model.adapters)}; save the model again")
        for name in names:
            _load_adapter(model.language, name, folder / "adapters" / name)
    heads = load_file(folder / "heads.safetensors")
    if heads.keys() != _heads(model).keys():
        stray = min(heads.keys() ^ _heads(model).keys())
        raise ValueError(f"{folder / 'heads.safetensors'} does not fit its config.json ({stray} first); save the model again")
    model.load_state_dict(heads, strict=False)
    return Paper(model.eval(), config, tokenizer)


def _heads(model: FiFaMLLM) -> dict[str, Tensor]:
    heads = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(_FOLDERS)}
    if model.adapters:  # which the tables learn beside, in full precision
        tables = {"language.model.embed_tokens.weight": model.language.model.embed_tokens.weight}
        if not model.language.config.tie_word_embeddings:
            tables["language.lm_head.weight"] = model.language.lm_head.weight
        heads |= {name: table.detach() for name, table in tables.items()}
    return heads


def _set_dtype(config: Path, dtype: torch.dtype) -> None:
    saved = json.loads(config.read_text()) | {"dtype": str(dtype).removeprefix("torch.")}
    config.write_text(json.dumps(saved, indent=2))


_PEFT_PREFIX = "base_model.model."
"""Of names in peft's files: with it, `PeftModel.from_pretrained(base, folder)` opens an adapter without this package."""


def _save_adapter(language: PreTrainedModel, name: str, folder: Path) -> None:
    from peft import get_peft_model_state_dict

    tensors = get_peft_model_state_dict(language, adapter_name=name, save_embedding_layers=False)
    language.peft_config[name].save_pretrained(folder)
    save_file({_PEFT_PREFIX + key: tensor.contiguous() for key, tensor in tensors.items()}, folder / "adapter_model.safetensors")


def _load_adapter(language: PreTrainedModel, name: str, folder: Path) -> None:
    from peft import set_peft_model_state_dict

    tensors = {key.removeprefix(_PEFT_PREFIX): tensor for key, tensor in load_file(folder / "adapter_model.safetensors").items()}
    result: Any = set_peft_model_state_dict(language, tensors, adapter_name=name)
    missing = [key for key in result.missing_keys if f".{name}." in key]
    if missing or result.unexpected_keys:
        raise ValueError(f"{folder} does not fit the language model ({[*missing, *result.unexpected_keys][0]} first); save the model again")


# Measuring: random weights at real widths. Proven on a CPU at toy width; never run on a GPU by us.


def farl_b16() -> PreTrainedConfig:
    """FaRL's vision transformer at 512 px."""
    return CLIPVisionConfig(
        hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, image_size=512, patch_size=16
    )  # fmt: skip


def vicuna_7b() -> PreTrainedConfig:
    """Vicuna-7B v1.5, which is Llama 2's make."""
    return LlamaConfig(
        vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32, max_position_embeddings=4096
    )


def qwen2_7b() -> PreTrainedConfig:
    """Qwen2.5-7B: seven queries share a key."""
    return Qwen2Config(
        vocab_size=152064, hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28, num_key_value_heads=4
    )  # fmt: skip


def toy_encoder() -> PreTrainedConfig:
    """A stand-in for tests: the real grid, cheap on a CPU."""
    return CLIPVisionConfig(hidden_size=64, intermediate_size=256, num_hidden_layers=2, num_attention_heads=2, image_size=64, patch_size=2)


def toy_language() -> PreTrainedConfig:
    """A stand-in for tests."""
    return LlamaConfig(vocab_size=512, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)


SIZES: Mapping[str, tuple[Callable[[], PreTrainedConfig], Callable[[], PreTrainedConfig]]] = {
    "vicuna-7b": (farl_b16, vicuna_7b),
    "qwen2.5-7b": (farl_b16, qwen2_7b),
    "toy": (toy_encoder, toy_language),
}
"""Encoder and language model of each size that is measured."""


def random_model(
    name: str, *, routing: Routing = "shared", device: str = "cpu", dtype: torch.dtype = torch.bfloat16, recompute: bool = False
) -> tuple[FiFaMLLM, TrainConfig]:
    """A model of one of `SIZES` with adapters and random weights, made where it will run; the meta device takes no memory."""
    encoder, language = (make() for make in SIZES[name])
    rows = language.vocab_size if language.model_type == "qwen2" else language.vocab_size + len(SPECIAL_TOKENS)  # Qwen's table has rows to spare
    language.vocab_size = rows
    config = paper_config(encoder, language, vocab_size=rows, routing=routing)
    with torch.device(device):
        decoder = AutoModelForCausalLM.from_config(language, dtype=dtype, attn_implementation="sdpa")
        model = FiFaMLLM(config.model, decoder)
        add_adapters(model, routing)
    model.encoder.requires_grad_(False)
    if recompute:
        decoder.activation_checkpointing_enable({"use_reentrant": False, "context_fn": model.recompute_contexts})
    return model, config


def parameter_counts(model: FiFaMLLM) -> dict[str, int]:
    """By part; `adapters` are not counted in `language`, `trained` is what takes a gradient."""

    def count(module: nn.Module | None, wanted: Callable[[str, nn.Parameter], bool] = lambda name, parameter: True) -> int:
        return 0 if module is None else sum(p.numel() for name, p in module.named_parameters() if wanted(name, p))

    parts = {name: count(getattr(model, name)) for name in ("encoder", "mask_backbone", "projector", "box_encoder", "mask_decoder")}
    adapters = count(model.language, lambda name, _: ".lora_" in name)
    parts |= {"language": count(model.language) - adapters, "adapters": adapters}
    return parts | {"total": count(model), "trained": count(model, lambda _, parameter: parameter.requires_grad)}


def random_batch(config: ModelConfig, *, faces: int, questions: int, tokens: int) -> LanguageBatch:
    """Each face with questions of `tokens` tokens, each with one box and one [SEG]; ids and targets are noise."""
    length, side = questions * tokens, 4 * config.grid
    question_L = torch.arange(questions).repeat_interleave(tokens)
    position_L = torch.arange(tokens).repeat(questions)
    input_ids = torch.randint(config.vocab_size, (faces, length))
    target = torch.where(position_L >= tokens // 2, input_ids.roll(-1, 1), -100)
    corner_K2 = torch.rand(faces * questions, 2) * config.image_size / 2
    area_MHW = (torch.rand(faces * questions, 1, side) > 0.3).float().expand(-1, side, -1).contiguous()
    return LanguageBatch(
        view_B=torch.arange(faces),
        input_ids_BL=input_ids,
        target_BL=target,
        question_BL=question_L.expand(faces, -1).contiguous(),
        position_BL=position_L.expand(faces, -1).contiguous(),
        box_at_K2=(position_L == 1).expand(faces, -1).nonzero(),
        box_K4=torch.cat([corner_K2, corner_K2 + config.image_size / 4], 1),
        seg_at_M2=(position_L == tokens - 2).expand(faces, -1).nonzero(),
        mask_MHW=area_MHW * (torch.rand_like(area_MHW) > 0.5),
        mask_weight_M=torch.ones(faces * questions),
        area_MHW=area_MHW,
        area_weight_M=torch.ones(faces * questions),
    )


@dataclass(frozen=True, slots=True)
class StepReport:
    """What training steps cost on one device."""

    device: str
    parameters: int
    trained_parameters: int
    losses: tuple[float, ...]
    """Of each step on one and the same batch: a working step lowers it."""
    seconds_per_step: float
    """Median, the first step left out."""
    faces_per_s: float
    tokens_per_s: float
    """Positions of the language model, faces and padding among them."""
    peak_memory_bytes: int
    """Of the accelerator's allocator; on a CPU of the whole process since it began."""
    flops_per_step: int
    """Counted, not estimated: matrix products of the encoder's pass and of both passes of the rest, recomputed ones as well."""
    peak_flops_per_s: float
    """As given, or what one large matrix product reaches here in bfloat16."""
    share_of_peak: float


def step_report(
    model: FiFaMLLM,
    config: TrainConfig,
    *,
    steps: int = 5,
    faces: int = 2,
    questions: int = 6,
    tokens: int = 64,
    peak_flops_per_s: float | None = None,
) -> StepReport:
    """Time steps of the language stage, the encoder's pass among them, on the model's device. The first warms up, one more runs under a counter."""
    device = next(model.projector.parameters()).device
    batch = LanguageBatch(*(tensor.to(device) for tensor in random_batch(config.model, faces=faces, questions=questions, tokens=tokens)))
    image_BCHW = torch.randn(faces, 3, config.model.image_size, config.model.image_size, device=device)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=config.language.lr, betas=(0.9, 0.95), weight_decay=config.language.weight_decay)

    def synchronize() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    def step() -> Tensor:
        with torch.no_grad(), torch.autocast(device.type, dtype=torch.bfloat16):
            out = model.encode(image_BCHW)
        features = features_of([out], np.arange(faces))
        loss = language_losses(model, features, batch, config.language).total(config.language)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, config.language.clip_norm)
        optimizer.step()
        return loss.detach()

    model.train()
    losses, seconds = [], []
    for _ in range(steps + 1):
        synchronize()
        began = time.perf_counter()
        losses.append(float(step()))
        synchronize()
        seconds.append(time.perf_counter() - began)
    peak_memory = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # the counter knows no fused attention of the CPU
        step()
    seconds_per_step, flops = statistics.median(seconds[1:]), counter.get_total_flops()
    peak = peak_flops_per_s or matmul_flops_per_s(device)
    positions = faces * (config.model.num_prefix_tokens + questions * tokens)
    return StepReport(
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        trained_parameters=sum(parameter.numel() for parameter in trained),
        losses=tuple(round(loss, 4) for loss in losses),
        seconds_per_step=seconds_per_step,
        faces_per_s=faces / seconds_per_step,
        tokens_per_s=positions / seconds_per_step,
        peak_memory_bytes=peak_memory,
        flops_per_step=flops,
        peak_flops_per_s=peak,
        share_of_peak=flops / seconds_per_step / peak,
    )


def matmul_flops_per_s(device: torch.device) -> float:
    """What a square matrix product in bfloat16 reaches: the yardstick where no data sheet is given."""
    side, repeats = (8192, 20) if device.type == "cuda" else (512, 3)
    a = torch.randn(side, side, device=device, dtype=torch.bfloat16)
    a @ a
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    for _ in range(repeats):
        a @ a
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return 2 * side**3 * repeats / (time.perf_counter() - began)


app = typer.Typer(help="The paper's scale: convert FaRL, count parameters, measure a training step.", no_args_is_help=True, add_completion=False)
SizeOption = Annotated[str, typer.Option("--size", help=f"{', '.join(SIZES)}.")]
RoutingOption = Annotated[str, typer.Option(help="shared, detached or separate.")]


def _routing(name: str) -> Routing:
    if name not in get_args(Routing):
        raise typer.BadParameter(f"{name!r} is no routing; choose from {', '.join(get_args(Routing))}", param_hint="--routing")
    return cast(Routing, name)


def _size(name: str) -> str:
    if name not in SIZES:
        raise typer.BadParameter(f"{name!r} is no size; choose from {', '.join(SIZES)}", param_hint="--size")
    return name


@app.command()
def farl(
    checkpoint: Annotated[Path, typer.Argument(help="FaRL's tensors as .safetensors (docs/paper-scale.md), or others in OpenAI's CLIP layout.")],
    out: Annotated[Path, typer.Option(help="Hugging Face folder to write.")],
) -> None:
    """FaRL's release to a Hugging Face folder."""
    convert_farl(checkpoint, out)


@app.command()
def counts(size: SizeOption = "vicuna-7b", routing: RoutingOption = "shared") -> None:
    """Parameters by part as JSON; takes no memory."""
    model, _ = random_model(_size(size), routing=_routing(routing), device="meta")
    typer.echo(json.dumps(parameter_counts(model), indent=1))


@app.command()
def bench(
    size: SizeOption = "vicuna-7b",
    routing: RoutingOption = "shared",
    device: Annotated[str, typer.Option(help="cuda or cpu.")] = "cuda",
    steps: int = 5,
    faces: int = 2,
    questions: Annotated[int, typer.Option(help="Behind each face, packed in one row.")] = 6,
    tokens: Annotated[int, typer.Option(help="Of each question with its answer.")] = 64,
    recompute: Annotated[bool, typer.Option("--recompute", help="Recompute the language model's activations.")] = False,
    peak_tflops: Annotated[float | None, typer.Option(help="The device's peak from its data sheet; measured by a matrix product without it.")] = None,
) -> None:
    """Steps of the language stage with random weights, as JSON."""
    model, config = random_model(_size(size), routing=_routing(routing), device=device, recompute=recompute)
    peak = None if peak_tflops is None else peak_tflops * 1e12
    report = step_report(model, config, steps=steps, faces=faces, questions=questions, tokens=tokens, peak_flops_per_s=peak)
    typer.echo(json.dumps(asdict(report), indent=1))


def main() -> None:
    """Entry point: what is wrong with a folder or a file is one line on standard error."""
    try:
        app()
    except (FileNotFoundError, ValueError) as error:
        typer.echo(f"trainer.paper: {' '.join(str(error).split())}", err=True)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
