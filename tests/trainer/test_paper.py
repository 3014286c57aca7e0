"""The paper's scale on real architectures of small width with random weights: CLIP's vision transformer, Llama and Qwen2 out of local folders."""

import json
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaTokenizer,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2Tokenizer,
)

from engines import fict
from engines.prompts import EOS, PHRASE, PHRASE_END, PROMPTS, SPECIAL_TOKENS
from trainer.backbones import clip_from_openai, convert_farl, load_backbone, new_backbone, resized_positions
from trainer.config import ModelConfig, Routing, tiny
from trainer.language_data import Features, InstructedFace, LanguageBatch, Question
from trainer.model import SEG_ADAPTER, TEXT_ADAPTER, FiFaMLLM, add_adapters, merged, seg_decoder
from trainer.paper import (
    GRID,
    SIZES,
    Paper,
    build,
    load_paper,
    matmul_flops_per_s,
    open_tokenizer,
    paper,
    parameter_counts,
    random_batch,
    random_model,
    save_paper,
    step_report,
)
from trainer.train import language_losses, train_language

MARKUP = "The <p> mouth </p> [SEG] is too soft. The <p> left eye </p> [SEG] is blue."
ARCHITECTURES = ("llama", "llama_gqa", "qwen2_gqa")
MakeFolders = Callable[[str], tuple[Path, Path]]


def toy_tokenizer(kind: str) -> LlamaTokenizer | Qwen2Tokenizer:
    """The very classes of the big models, on a few hundred merges."""
    texts = [*PROMPTS.values(), *(f" {phrase}" for phrase in fict.by_phrase()), "is too soft and blue."] * 2
    bpe = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True) if kind == "llama" else models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Metaspace() if kind == "llama" else pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    if kind == "llama":
        special, alphabet = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))], []
    else:
        special, alphabet = ["<|endoftext|>"], sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=500, special_tokens=special, initial_alphabet=alphabet, show_progress=False))
    saved = json.loads(bpe.to_str())["model"]
    merges = [tuple(pair) for pair in saved["merges"]]
    return (
        LlamaTokenizer(vocab=saved["vocab"], merges=merges, add_bos_token=True)
        if kind == "llama"
        else Qwen2Tokenizer(vocab=saved["vocab"], merges=merges)
    )


def toy_language(name: str, num_tokens: int) -> LlamaForCausalLM | Qwen2ForCausalLM:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "initializer_range": 0.2}
    special = {"pad_token_id": None, "bos_token_id": 0, "eos_token_id": 0}
    if name == "qwen2_gqa":  # a table with rows to spare and tied weights, as the real ones have
        language = Qwen2ForCausalLM(Qwen2Config(vocab_size=num_tokens + 40, num_key_value_heads=2, tie_word_embeddings=True, **sizes, **special))
        for parameter_name, parameter in language.named_parameters():
            if parameter_name.endswith("proj.bias"):
                nn.init.normal_(parameter, std=0.2)
        return language
    return LlamaForCausalLM(LlamaConfig(vocab_size=num_tokens, num_key_value_heads=2 if name == "llama_gqa" else 4, **sizes, **special))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> MakeFolders:
    """Encoder and language folder of an architecture, made once."""
    torch.manual_seed(3)
    root = tmp_path_factory.mktemp("folders")
    encoder = CLIPVisionConfig(hidden_size=32, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=4)
    CLIPVisionModel(encoder).save_pretrained(root / "encoder")

    def make(name: str) -> tuple[Path, Path]:
        if not (root / name).exists():
            torch.manual_seed(3)
            tokenizer = toy_tokenizer(name.partition("_")[0])
            toy_language(name, len(tokenizer)).save_pretrained(root / name)
            tokenizer.save_pretrained(root / name)
        return root / "encoder", root / name

    return make


def built(folders: MakeFolders, name: str, routing: Routing = "shared", *, own_mask_encoder: bool = False) -> Paper:
    encoder, language = folders(name)
    torch.manual_seed(4)  # after what the first caller alone draws
    config = paper(encoder, language, routing=routing, own_mask_encoder=own_mask_encoder)
    # Small in everything that the folders do not decide, and in float32: equality shall mean equality.
    small_heads = replace(config.model, query_width=16, query_heads=2, mask_width=32, box_cells=2)
    return build(replace(config, model=small_heads, precision="fp32"), encoder, language)


def stir(model: FiFaMLLM) -> None:
    """Adapters begin without effect; give each an own."""
    with torch.no_grad():
        for name, parameter in model.language.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(std=0.3)


def batch_of(model: FiFaMLLM) -> LanguageBatch:
    torch.manual_seed(6)
    return random_batch(model.config, faces=2, questions=2, tokens=8)


def encoded(model: FiFaMLLM) -> Features:
    image = torch.randn(2, 3, model.config.image_size, model.config.image_size, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        out = model.encode(image)
    return Features(out.image_embeds_BTD, out.artifact_logits_BT, out.query_embeds_BQD, out.statistics_BTS, np.arange(2))


def step_losses(model: FiFaMLLM, paper: Paper) -> Any:
    return language_losses(model, encoded(model), batch_of(model), paper.config.language, precision="fp32")


def everything(model: FiFaMLLM) -> list[Tensor]:
    """What every part of the model says of one batch."""
    batch, (image, artifact, query, statistics) = batch_of(model), encoded(model)[:4]
    rows, masks = batch.box_at_K2[:, 0], batch.seg_at_M2
    with torch.no_grad():
        boxes = model.box_encoder(image[rows], artifact[rows], batch.box_K4)
        text = model.embed(batch.input_ids_BL, boxes, batch.box_at_K2)
        logits, hidden = model.read(model.projector(image, artifact, query, statistics), text, batch.question_BL, batch.position_BL)
        return [image, artifact, logits, hidden, *model.mask_decoder(image[masks[:, 0]], artifact[masks[:, 0]], hidden[masks[:, 0], masks[:, 1]])]


@contextmanager
def no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a local folder was to be enough")

    with monkeypatch.context() as patched:
        patched.setattr(socket.socket, "connect", refuse)
        patched.setattr(socket, "getaddrinfo", refuse)
        yield


@pytest.mark.parametrize(
    ("name", "routing"), [("llama", "shared"), ("llama", "separate"), ("llama_gqa", "detached"), ("qwen2_gqa", "separate")], ids=str
)  # fmt: skip
def test_a_saved_model_says_what_it_said(folders: MakeFolders, name: str, routing: Routing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with no_network(monkeypatch):
        before = built(folders, name, routing)
        stir(before.model)
        save_paper(before, tmp_path / "model")
        save_paper(before, tmp_path / "model")  # over an older one
        after = load_paper(tmp_path / "model")
    assert after.config == before.config and after.model.adapters == before.model.adapters
    for one, other in zip(everything(before.model.eval()), everything(after.model), strict=True):
        assert torch.equal(one, other)
    assert after.vocabulary.answer_ids(MARKUP) == before.vocabulary.answer_ids(MARKUP)
    learns, learned = ({n for n, p in model.named_parameters() if p.requires_grad} for model in (before.model, after.model))
    assert learns == learned
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} <= {".json", ".safetensors", ".md", ".jinja"}


def test_a_half_precision_base_stays_half_and_what_trains_is_whole(folders: MakeFolders, tmp_path: Path) -> None:
    encoder, language = folders("llama")
    half = tmp_path / "half"
    shutil.copytree(language, half)
    AutoModelForCausalLM.from_pretrained(language).to(torch.bfloat16).save_pretrained(half)
    config = replace(paper(encoder, half), precision="bf16")
    before = build(config, encoder, half)
    with torch.no_grad():
        before.model.language.model.embed_tokens.weight += 1e-4  # less than bfloat16 tells apart
    save_paper(before, tmp_path / "model")
    after = load_paper(tmp_path / "model")
    for one, other in zip(before.model.parameters(), after.model.parameters(), strict=True):
        assert one.dtype == other.dtype and torch.equal(one, other)
    kinds = {str(parameter.dtype) for parameter in after.model.parameters() if parameter.requires_grad}
    assert kinds == {"torch.float32"} and after.model.language.model.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft 0.21 asks transformers 5.23 by an old name
def test_an_adapter_opens_in_peft_without_us(folders: MakeFolders, tmp_path: Path) -> None:
    from peft import PeftModel

    model = built(folders, "llama_gqa")
    stir(model.model)
    save_paper(model, tmp_path / "model")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "model" / "language")
    theirs = PeftModel.from_pretrained(base, tmp_path / "model" / "adapters" / TEXT_ADAPTER).eval()
    ids = torch.arange(12)[None]
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, model.model.language.eval()(ids).logits)


def test_a_folder_whose_parts_do_not_fit_is_refused(folders: MakeFolders, tmp_path: Path) -> None:
    save_paper(built(folders, "llama", "separate"), tmp_path / "model")
    shutil.rmtree(tmp_path / "model" / "adapters" / TEXT_ADAPTER)
    (tmp_path / "model" / "adapters" / "other").mkdir()
    shutil.copy(tmp_path / "model" / "adapters" / SEG_ADAPTER / "adapter_config.json", tmp_path / "model" / "adapters" / "other")
    with pytest.raises(ValueError, match="holds the adapters other, seg"):
        load_paper(tmp_path / "model")
    save_paper(built(folders, "llama"), tmp_path / "model")
    heads = load_file(tmp_path / "model" / "heads.safetensors")
    heads.pop("projector.norm.weight")
    save_file(heads, tmp_path / "model" / "heads.safetensors")
    with pytest.raises(ValueError, match=r"does not fit its config.json \(projector.norm.weight first\)"):
        load_paper(tmp_path / "model")


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("routing", ["shared", "separate"])
def test_steps_lower_the_loss_and_reach_what_they_should(folders: MakeFolders, name: str, routing: Routing) -> None:
    paper = built(folders, name, routing)
    model = paper.model.train()
    model.encoder.requires_grad_(False)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer, losses = torch.optim.AdamW(parameters, lr=3e-3), []
    for _ in range(6):
        loss = step_losses(model, paper).total(paper.config.language)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[1] < losses[0] and losses[-1] < 0.9 * losses[0]
    reached = {name for name, parameter in model.named_parameters() if parameter.grad is not None and parameter.grad.abs().sum() > 0}
    adapters = (TEXT_ADAPTER, SEG_ADAPTER) if routing == "separate" else (TEXT_ADAPTER,)
    for adapter in adapters:
        assert {
            f"language.model.layers.{n}.self_attn.{p}.lora_{ab}.{adapter}.weight" for n in (0, 1) for p in ("q_proj", "v_proj") for ab in "AB"
        } <= reached
    base = {name for name in reached if name.startswith("language.") and ".lora_" not in name}
    assert base == {"language.model.embed_tokens.weight"} | ({"language.lm_head.weight"} if name != "qwen2_gqa" else set())
    for part in ("projector.", "box_encoder.", "mask_decoder."):
        missed = {name for name, _ in model.named_parameters() if name.startswith(part)} - reached
        assert not missed - {"mask_decoder.layers.1.to_tokens.q.bias"}, missed
    assert not any(name.startswith("encoder.") for name in reached)


def test_the_loop_that_trains_small_trains_this_scale(folders: MakeFolders, tmp_path: Path) -> None:
    paper = built(folders, "qwen2_gqa", "separate")
    vocabulary, side = paper.vocabulary, 4 * paper.config.model.grid
    mask = np.zeros((1, side, side), np.uint8)
    mask[:, :40] = 255

    def asked(level: str, box: Any, prompt: str) -> Question:
        prompt_ids, answer_ids = tuple(vocabulary.question_ids(prompt)), tuple(vocabulary.answer_ids("The manipulated area is here. [SEG]"))
        return Question("loc", level, prompt_ids, answer_ids, box, mask, mask, True, np.array([True]))

    questions = asked("image", None, PROMPTS["loc"]), asked("box", (8.0, 8.0, 64.0, 40.0), "Show the manipulated area in <bbox>.")
    faces = [InstructedFace(str(n), np.full((128, 128, 3), 40 * n, np.uint8), questions) for n in range(3)]
    config = replace(paper.config, language=replace(paper.config.language, steps=3, batch_faces=2, warmup_steps=1, recompute=True))
    before = {name: tensor.clone() for name, tensor in paper.model.state_dict().items()}
    train_language(config, paper.model, faces, vocabulary, tmp_path)
    save_paper(Paper(paper.model, config, paper.tokenizer), tmp_path / "paper")
    after = load_paper(tmp_path / "paper").model.state_dict()
    moved = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert all(part in {name.split(".")[0] for name in moved} for part in ("language", "projector", "box_encoder", "mask_decoder"))
    in_language = {name for name in moved if name.startswith("language.")}
    assert {kind for name in in_language for kind in (".text.", ".seg.", "embed_tokens", "lm_head") if kind in name} == {
        ".text.", ".seg.", "embed_tokens", "lm_head"
    }  # fmt: skip
    assert all(".lora_" in name or "embed_tokens" in name or "lm_head" in name for name in in_language)
    assert not any(name.startswith("encoder.") for name in moved)


def gradients(model: FiFaMLLM, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad(set_to_none=True)
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None and parameter.grad.any()}


def small_paper(routing: Routing) -> Paper:
    """The own decoder, whose base is trained."""
    torch.manual_seed(5)
    config = replace(tiny(), language=replace(tiny().language, routing=routing), precision="fp32")
    model = FiFaMLLM(config.model)
    if routing == "separate":
        add_adapters(model, routing, rank=2, train_base=True)
    model.encoder.requires_grad_(False)
    return Paper(model, config, None)


SEPARATE = [
    pytest.param(lambda folders: built(folders, "llama_gqa", "separate"), id="frozen_base"),
    pytest.param(lambda folders: small_paper("separate"), id="trained_base"),
]


@pytest.mark.parametrize("make", SEPARATE)
def test_masks_teach_the_seg_adapter_and_text_all_the_rest(folders: MakeFolders, make: Callable[[MakeFolders], Paper]) -> None:
    paper = make(folders)
    paper.model.encoder.requires_grad_(False)
    stir(paper.model)  # an adapter without effect hides the path through it
    found = step_losses(paper.model.train(), paper)
    from_masks = gradients(paper.model, found.mask + found.area + found.confidence)
    assert from_masks and all(name.startswith("mask_decoder.") or f".{SEG_ADAPTER}." in name for name in from_masks)
    assert sum(f".{SEG_ADAPTER}." in name for name in from_masks) == 8
    from_text = gradients(paper.model, step_losses(paper.model, paper).text)
    assert from_text and not any(name.startswith("mask_decoder.") or f".{SEG_ADAPTER}." in name for name in from_text)
    text_side = f".{TEXT_ADAPTER}." if TEXT_ADAPTER in paper.model.adapters else "language.model.layers"
    assert any(text_side in name for name in from_text) and any(name.startswith("box_encoder.") for name in from_text)


@pytest.mark.parametrize("trained_base", [False, True], ids=["frozen_base", "trained_base"])
def test_text_learns_under_separate_what_it_learns_under_detached(folders: MakeFolders, trained_base: bool) -> None:
    found = {}
    for routing in ("detached", "separate"):
        paper = small_paper(routing) if trained_base else built(folders, "qwen2_gqa", routing)
        paper.model.eval()  # dropout would draw another number for each adapter
        found[routing] = gradients(paper.model, step_losses(paper.model, paper).total(paper.config.language))
    same = {name for name in found["separate"] if f".{SEG_ADAPTER}." not in name and not name.startswith("mask_decoder.")}
    plain = {name.replace(".base_layer.", "."): gradient for name, gradient in found["separate"].items() if name in same}
    wanted = {name: gradient for name, gradient in found["detached"].items() if not name.startswith("mask_decoder.")}
    assert plain.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(plain[name], gradient, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("make", SEPARATE)
def test_recomputed_layers_find_the_adapter_they_were_read_with(folders: MakeFolders, make: Callable[[MakeFolders], Paper]) -> None:
    paper = make(folders)
    stir(paper.model)
    for layer in (module for module in paper.model.language.modules() if hasattr(module, "lora_dropout")):
        for name in layer.lora_dropout:
            layer.lora_dropout[name] = nn.Identity()
    paper.model.train()
    kept = gradients(paper.model, step_losses(paper.model, paper).total(paper.config.language))
    paper.model.language.activation_checkpointing_enable({"use_reentrant": False, "context_fn": paper.model.recompute_contexts})
    again = gradients(paper.model, step_losses(paper.model, paper).total(paper.config.language))
    assert kept.keys() == again.keys()
    for name, gradient in kept.items():
        torch.testing.assert_close(again[name], gradient, msg=name)


def test_the_seg_pass_leaves_no_trace(folders: MakeFolders) -> None:
    model = built(folders, "llama", "separate").model
    stir(model)
    learns = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    ids = torch.arange(9)[None]
    before = model.language.eval()(ids).logits
    with pytest.raises(KeyError), seg_decoder(model.language):
        assert not torch.equal(model.language(ids).logits, before)
        raise KeyError
    assert torch.equal(model.language(ids).logits, before)
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == learns


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ARCHITECTURES)
@torch.no_grad()
def test_a_packed_question_is_read_as_if_it_stood_alone(folders: MakeFolders, name: str, attention: str) -> None:
    model = built(folders, name, "separate").model.eval()
    stir(model)
    model.language.set_attn_implementation(attention)
    generator = torch.Generator().manual_seed(8)
    prefix = torch.randn(1, model.config.num_prefix_tokens, model.config.lm_width, generator=generator)
    text = torch.randn(1, 12, model.config.lm_width, generator=generator)
    question = torch.tensor([[0] * 5 + [1] * 4 + [-1] * 3])
    position = torch.tensor([[*range(5), *range(4), 0, 0, 0]])
    packed = model.read(prefix, text, question, position)
    for rows, start, end in ((0, 0, 5), (1, 5, 9)):
        length = end - start
        alone = model.read(prefix, text[:, start:end], torch.zeros(1, length, dtype=torch.long), torch.arange(length)[None])
        for one, other in zip(packed, alone, strict=True):
            torch.testing.assert_close(one[:, start:end], other, atol=2e-5, rtol=1e-4, msg=f"question {rows}")
    whole = model.language.model(inputs_embeds=torch.cat([prefix, text[:, :5]], 1)).last_hidden_state[:, -5:]  # transformers' own causal mask
    torch.testing.assert_close(packed[0][:, :5], model.language.lm_head(whole), atol=2e-5, rtol=1e-4)
    assert all(tensor.isfinite().all() for tensor in packed)


@pytest.mark.parametrize("routing", ["shared", "detached"])
def test_a_merged_model_says_the_same_and_may_be_exported(folders: MakeFolders, routing: Routing) -> None:
    model = built(folders, "llama", routing).model.eval()
    stir(model)
    before = everything(model)
    with pytest.raises(ValueError, match="fold it in"):
        model.check_exportable()
    after = everything(merged(model))
    for one, other in zip(before, after, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
    assert model.adapters == () and not any("lora" in name or "base_layer" in name for name, _ in model.named_parameters())
    model.check_exportable()
    assert merged(model) is model


def test_what_no_engine_can_hold_is_refused_with_a_remedy(folders: MakeFolders) -> None:
    separate = built(folders, "llama", "separate").model
    for refuse in (separate.check_exportable, lambda: merged(separate)):
        with pytest.raises(ValueError, match=r"two language decoders.*routing 'shared' or 'detached'"):
            refuse()
    with pytest.raises(ValueError, match="mask_encoder='shared'"):
        built(folders, "llama", own_mask_encoder=True).model.check_exportable()
    for name in ("llama_gqa", "qwen2_gqa"):
        with pytest.raises(ValueError, match="share no keys"):
            merged(built(folders, name).model).check_exportable()
    with pytest.raises(ValueError, match="needs no adapter"):
        add_adapters(FiFaMLLM(tiny().model), "detached", train_base=True)
    with pytest.raises(ValueError, match="text, seg already"):
        add_adapters(separate, "shared")


def test_language_models_that_cannot_be_read_packed_are_refused() -> None:
    config = tiny().model
    sizes = {"vocab_size": 64, "hidden_size": config.lm_width, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {"pad_token_id": None, "bos_token_id": 0, "eos_token_id": 0}
    with pytest.raises(ValueError, match="16 wide, lm_width is 32"):
        FiFaMLLM(config, LlamaForCausalLM(LlamaConfig(**{**sizes, "hidden_size": 16}, **ids)))
    sliding = Qwen2Config(**sizes, num_key_value_heads=2, use_sliding_window=True, sliding_window=8, max_window_layers=1, **ids)
    with pytest.raises(ValueError, match="sliding windows"):
        FiFaMLLM(config, Qwen2ForCausalLM(sliding))
    with pytest.raises(ValueError, match="not of Llama's make"):
        FiFaMLLM(config, CLIPVisionModel(CLIPVisionConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2)))


@pytest.mark.parametrize("name", ["llama", "qwen2_gqa"])
def test_a_foreign_tokenizer_speaks_our_markup(folders: MakeFolders, name: str, tmp_path: Path) -> None:
    _, folder = folders(name)
    model = built(folders, name)
    vocabulary = model.vocabulary
    assert len({vocabulary.ids[token] for token in SPECIAL_TOKENS}) == len(SPECIAL_TOKENS)
    answer = vocabulary.answer_ids(MARKUP)
    assert vocabulary.markup(answer) == MARKUP and answer[-1] == vocabulary.ids[EOS]
    assert (model.tokenizer("a").input_ids[0] == vocabulary.tokenizer.token_to_id("<s>")) == (name == "llama")
    assert not {token for token in ("<s>", "</s>") if vocabulary.tokenizer.token_to_id(token) in answer}
    for phrase in list(fict.by_phrase())[::9]:  # the automaton's phrases are those that training writes
        inside = vocabulary.tokenizer.encode(f"The <p> {phrase} </p> [SEG]").ids
        start, end = inside.index(vocabulary.ids[PHRASE]), inside.index(vocabulary.ids[PHRASE_END])
        assert inside[start + 1 : end] == vocabulary.tokenizer.encode(f" {phrase}").ids
    assert max(vocabulary.ids.values()) < model.config.model.vocab_size == model.model.language.get_input_embeddings().num_embeddings
    old = AutoModelForCausalLM.from_pretrained(folder).get_input_embeddings().weight
    assert torch.equal(model.model.language.get_input_embeddings().weight[: len(old)], old)
    assert len(old) == model.config.model.vocab_size if name == "qwen2_gqa" else len(old) + len(SPECIAL_TOKENS) == model.config.model.vocab_size
    open_tokenizer(folder).save_pretrained(tmp_path)
    shutil.copy(folder / "config.json", tmp_path)
    assert len(open_tokenizer(tmp_path)) == len(open_tokenizer(folder))


def test_the_recipe_takes_its_sizes_from_the_folders(folders: MakeFolders) -> None:
    encoder, language = folders("qwen2_gqa")
    config = paper(encoder, language, routing="detached", own_mask_encoder=True)
    assert (config.model.grid, config.model.image_size, config.model.num_prefix_tokens) == (GRID, 128, 258)
    assert (config.model.encoder_kind, config.model.encoder_width, config.model.lm_width, config.model.mask_width) == ("clip", 32, 32, 256)
    assert (config.language.lr, config.language.weight_decay, config.language.warmup_steps, config.language.routing) == (3e-4, 0.0, 100, "detached")
    assert not config.model.exportable
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        paper(encoder / "nowhere", language)
    with pytest.raises(ValueError, match="type 'qwen2'"):
        paper(language, language)


def test_the_own_mask_encoder_is_a_second_frozen_one(folders: MakeFolders, tmp_path: Path) -> None:
    model = built(folders, "llama", own_mask_encoder=True)
    image = torch.randn(1, 3, 128, 128)
    out = model.model.eval().encode(image)
    assert out.mask_embeds_BTD is not None and out.tokens_for_masks_BTD is out.mask_embeds_BTD
    torch.testing.assert_close(out.mask_embeds_BTD, out.image_embeds_BTD)  # both fresh from one folder
    assert not any(parameter.requires_grad for parameter in model.model.mask_backbone.parameters())
    with torch.no_grad():
        for parameter in model.model.encoder.backbone.parameters():
            parameter.add_(0.1)
    changed = model.model.encode(image)
    assert torch.equal(changed.mask_embeds_BTD, out.mask_embeds_BTD) and not torch.equal(changed.image_embeds_BTD, out.image_embeds_BTD)
    save_paper(model, tmp_path / "model")
    again = load_paper(tmp_path / "model").model.encode(image)
    assert torch.equal(again.mask_embeds_BTD, changed.mask_embeds_BTD) and torch.equal(again.image_embeds_BTD, changed.image_embeds_BTD)


CLIP = ModelConfig(image_size=64, patch_size=8, encoder_kind="clip", encoder_width=32, encoder_layers=2, encoder_heads=2)


def clip_folder(path: Path, **changed: Any) -> Path:
    sizes = {"hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 48, "patch_size": 8}
    CLIPVisionModel(CLIPVisionConfig(**{**sizes, **changed})).save_pretrained(path)
    return path


def test_a_clip_folder_fills_the_encoder_cut_in_depth_and_on_our_grid(tmp_path: Path) -> None:
    source = CLIPVisionModel.from_pretrained(clip_folder(tmp_path))
    backbone = new_backbone(CLIP)
    load_backbone(backbone, tmp_path, CLIP)
    theirs, ours = source.state_dict(), backbone.state_dict()
    positions = "embeddings.position_embedding.weight"
    assert all(torch.equal(ours[name], theirs[name]) for name in ours if name != positions)
    assert ours[positions].shape == (65, 32) and torch.equal(ours[positions][0], theirs[positions][0])
    flat = torch.arange(6.0).repeat_interleave(6)[:, None].expand(-1, 3)  # a ramp down the rows stays one
    ramp = resized_positions(torch.cat([torch.full((1, 3), -5.0), flat]), 8)[1:, 0].view(8, 8)
    assert (ramp - ramp[:, :1]).abs().max() < 1e-5 and (ramp[1:, 0] - ramp[:-1, 0] > 0).all()
    assert torch.equal(resized_positions(theirs[positions], 6), theirs[positions])


def test_a_whole_clip_model_gives_its_vision_half(tmp_path: Path) -> None:
    text = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "bos_token_id": 0}
    vision = {"hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 64, "patch_size": 8}
    whole = CLIPModel(CLIPConfig(text_config=text | {"eos_token_id": 1}, vision_config=vision))
    whole.save_pretrained(tmp_path)
    backbone = new_backbone(CLIP)
    load_backbone(backbone, tmp_path, CLIP)
    for one, other in zip(backbone.parameters(), whole.vision_model.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        pytest.param({"hidden_act": "gelu"}, "hidden_act gelu, the model quick_gelu", id="activation"),
        pytest.param({"hidden_size": 48}, "hidden_size 48, the model 32", id="width"),
        pytest.param({"num_hidden_layers": 1}, "1 layers, the recipe asks for 2", id="depth"),
    ],
)
def test_a_folder_that_would_compute_something_else_is_refused(changed: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=words):
        load_backbone(new_backbone(CLIP), clip_folder(tmp_path, **changed), CLIP)


def test_a_folder_that_lacks_weights_is_refused(tmp_path: Path) -> None:
    folder = clip_folder(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    gone = next(name for name in tensors if name.endswith("layers.1.mlp.fc1.weight"))
    tensors.pop(gone)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 1 weights, .*layers\.1\.mlp\.fc1\.weight first"):
        load_backbone(new_backbone(CLIP), folder, CLIP)
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        load_backbone(new_backbone(CLIP), folder / "nowhere", CLIP)


def openai_layout(model: CLIPVisionModel) -> dict[str, Tensor]:
    """The inverse of what is tested, by another way: as OpenAI's code names and packs its tensors."""
    state, layers = model.state_dict(), model.config.num_hidden_layers
    found = {
        "visual.class_embedding": state["embeddings.class_embedding"],
        "visual.positional_embedding": state["embeddings.position_embedding.weight"],
        "visual.conv1.weight": state["embeddings.patch_embedding.weight"],
        "visual.proj": torch.randn(model.config.hidden_size, 8),
        "logit_scale": torch.tensor(1.0),
    }
    for kind in ("weight", "bias"):
        found[f"visual.ln_pre.{kind}"], found[f"visual.ln_post.{kind}"] = state[f"pre_layrnorm.{kind}"], state[f"post_layernorm.{kind}"]
        for n in range(layers):
            ours, theirs = f"encoder.layers.{n}", f"visual.transformer.resblocks.{n}"
            found[f"{theirs}.attn.in_proj_{kind}"] = torch.cat([state[f"{ours}.self_attn.{part}_proj.{kind}"] for part in "qkv"])
            found[f"{theirs}.attn.out_proj.{kind}"] = state[f"{ours}.self_attn.out_proj.{kind}"]
            for old, new in (("ln_1", "layer_norm1"), ("ln_2", "layer_norm2"), ("mlp.c_fc", "mlp.fc1"), ("mlp.c_proj", "mlp.fc2")):
                found[f"{theirs}.{old}.{kind}"] = state[f"{ours}.{new}.{kind}"]
    return found


def test_weights_in_openais_layout_become_a_folder(tmp_path: Path) -> None:
    model = CLIPVisionModel(
        CLIPVisionConfig(hidden_size=128, intermediate_size=512, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8)
    )
    save_file({name: tensor.contiguous() for name, tensor in openai_layout(model).items()}, tmp_path / "farl.safetensors")
    convert_farl(tmp_path / "farl.safetensors", tmp_path / "farl")
    with pytest.raises(ValueError, match="nothing pickled is read here"):
        convert_farl(tmp_path / "farl.pth", tmp_path / "farl")
    again = CLIPVisionModel.from_pretrained(tmp_path / "farl")
    assert again.config.num_attention_heads == 2 and again.config.hidden_act == "quick_gelu"
    image = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(again(image).last_hidden_state, model.eval()(image).last_hidden_state)
    with pytest.raises(ValueError, match=r"no visual\.conv1\.weight"):
        clip_from_openai({"logit_scale": torch.tensor(1.0)})


def test_the_real_widths_are_what_the_docs_count() -> None:
    """Of docs/paper-scale.md; on the meta device, without memory."""
    model, config = random_model("vicuna-7b", device="meta")
    found = parameter_counts(model)
    assert config.model.vocab_size == 32000 + len(SPECIAL_TOKENS)
    assert found["adapters"] == 32 * 2 * 8 * (4096 + 4096)
    assert found["language"] == 6_738_415_616 + 2 * 4096 * len(SPECIAL_TOKENS)
    assert found["total"] == sum(found[name] for name in found if name not in ("total", "trained"))
    qwen = parameter_counts(random_model("qwen2.5-7b", device="meta")[0])
    assert qwen["language"] == 7_615_616_512 and qwen["adapters"] == 28 * 8 * (2 * 3584 + 3584 + 512)
    documented = (Path(__file__).parents[2] / "docs" / "paper-scale.md").read_text()
    parts = ("encoder", "projector", "box_encoder", "mask_decoder", "language", "adapters", "total", "trained")
    for counts in (found, qwen):
        assert " | ".join(f"{counts[part] / 1e6:,.1f}" for part in parts) in documented


@pytest.mark.parametrize("size", SIZES)
def test_real_widths_fit_together_and_nothing_but_the_inputs_says_where_they_compute(size: str) -> None:
    """On the meta device, where a tensor made on the CPU in passing is an error, as on a GPU."""
    model, _ = random_model(size, routing="separate", device="meta", dtype=torch.float32)
    batch = LanguageBatch(*(tensor.to("meta") for tensor in random_batch(model.config, faces=1, questions=2, tokens=8)))
    out = model.encode(torch.empty(1, 3, model.config.image_size, model.config.image_size, device="meta"))
    prefix = model.projector(out.image_embeds_BTD, out.artifact_logits_BT, out.query_embeds_BQD, out.statistics_BTS)
    image, artifact = out.image_embeds_BTD.expand(2, -1, -1), out.artifact_logits_BT.expand(2, -1)
    text = model.embed(batch.input_ids_BL, model.box_encoder(image, artifact, batch.box_K4), torch.empty(2, 2, dtype=torch.long, device="meta"))
    logits, hidden = model.read(prefix, text, batch.question_BL, batch.position_BL)
    masks = model.mask_decoder(image, artifact, hidden[0, :2])
    assert {tensor.device.type for tensor in (*out[:6], prefix, text, logits, hidden, *masks)} == {"meta"}
    assert masks.mask_logits_MHW.shape == (2, 128, 128) and prefix.shape == (1, 258, model.config.lm_width)
    (logits.sum() + masks.mask_logits_MHW.sum()).backward()
    reached = sum(parameter.grad is not None for name, parameter in model.language.named_parameters() if ".lora_" in name)
    assert reached == 2 * 4 * model.config.lm_layers


def test_a_step_is_measured() -> None:
    torch.manual_seed(9)
    model, config = random_model("toy", routing="separate", recompute=True)
    report = step_report(model, config, steps=2, faces=1, questions=2, tokens=8, peak_flops_per_s=1e15)
    assert report.losses[-1] < report.losses[0] and len(report.losses) == 3
    assert report.tokens_per_s == pytest.approx((258 + 16) / report.seconds_per_step) and report.faces_per_s == pytest.approx(
        1 / report.seconds_per_step
    )
    assert report.share_of_peak == pytest.approx(report.flops_per_step / report.seconds_per_step / 1e15)
    twice_the_text = 2 * 2 * (258 + 16) * sum(p.numel() for name, p in model.language.model.layers.named_parameters() if ".lora_" not in name)
    assert report.flops_per_step > 2 * twice_the_text  # two passes forward, and at least one of each back
    assert report.peak_memory_bytes > 2**20 and 0 < report.trained_parameters < report.parameters
    assert matmul_flops_per_s(torch.device("cpu")) > 0
