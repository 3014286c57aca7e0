"""The trainer's settings: one frozen dataclass per concern, recipes as functions. A run saves its config as JSON beside the checkpoint."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

EncoderKind = Literal["dinov2", "clip"]
Routing = Literal["shared", "detached", "separate"]
Precision = Literal["bf16", "fp32"]


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Sizes of FiFa-MLLM."""

    image_size: int = 224
    """Side of the face crop in pixels."""
    patch_size: int = 14
    encoder_kind: EncoderKind = "dinov2"
    """Whose architecture the encoder has; "clip" is FaRL's too."""
    encoder_width: int = 384
    encoder_layers: int = 7
    """DINOv2-small read in its middle: six to eight layers are cheaper and better than twelve (frozen probes peak at layer 6)."""
    encoder_heads: int = 6
    query_width: int = 192
    """Width of the DET and CLS queries."""
    query_heads: int = 4
    lm_width: int = 192
    lm_layers: int = 6
    lm_heads: int = 6
    lm_mlp: int = 512
    vocab_size: int = 1024
    mask_width: int = 96
    """Channels of the mask decoder; masks come out on a grid of 4x the patch grid."""
    box_cells: int = 4
    """A `<bbox>` feature is made of this many cells along each side of its box."""
    mask_encoder: Literal["shared", "own"] = "shared"
    """Whose patch tokens the mask decoder reads: the face encoder's, or those of a second, frozen one of its sizes (GLaMM's way; an ablation)."""

    def __post_init__(self) -> None:
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size} is no multiple of patch_size {self.patch_size}; choose e.g. {self.patch_size * 16}")
        if self.grid % 2:
            raise ValueError(f"the patch grid is {self.grid} wide; the projector merges 2x2 patches, so choose an even grid")

    @property
    def grid(self) -> int:
        """Patches along one side of the crop."""
        return self.image_size // self.patch_size

    @property
    def num_prefix_tokens(self) -> int:
        """Image tokens before the prompt: 2x2-merged patches, then DET and CLS."""
        return (self.grid // 2) ** 2 + 2

    @property
    def exportable(self) -> bool:
        """False where an engine has no part for what the model does: a second encoder would be one more graph and one more pass over each face."""
        return self.mask_encoder == "shared"


@dataclass(frozen=True, slots=True)
class VisionConfig:
    """Stage 1: encoder, artifact map, DET and CLS heads, on paired batches."""

    steps: int = 1600
    pairs: dict[str, int] = field(
        default_factory=lambda: {"dfdc": 9, "stargan": 2, "stylegan2": 1, "diffusion": 1, "self_blend": 1, "face_swap": 1, "local_edit": 1}
    )
    """Pairs of one batch by source; each is a real face and a fake under one draw of augmentation, or (`graded`) a real face in two looks."""
    lr_last_block: float = 1e-4
    lr_decay: float = 0.75
    """Each block below the last learns at this fraction of the one above."""
    lr_heads: float = 5e-4
    weight_decay: float = 0.05
    warmup_steps: int = 100
    clip_norm: float = 1.0
    ema_decay: float = 0.998
    label_smoothing: float = 0.01
    patch_weight: float = 1.0
    """Of the artifact map's loss, beside a weight of 1 for detection."""
    type_weight: float = 0.3
    """Of the forgery type's loss."""
    keep_patches: float = 0.5
    """Fraction of patches that a training step sees (PatchDropout, arXiv:2208.07220): 2.3x faster and a regulariser."""
    h264_share: float = 0.0
    """Of the pairs, those that were a frame of a video before JPEG."""
    look_share: float = 0.0
    """Of the pairs, those whose members both get a drawn look (`augment.Look`); a quarter as many lie at the frame's edge."""
    synthesis_marked: bool = False
    """Teach the artifact map whole-face synthesis (all over) and StarGAN edits (where they changed most); else neither trains it."""
    resting_blocks: int = 0
    """The lowest blocks of the encoder, and what lies below them, that do not learn: nothing is computed for them on the way back."""
    full_from: float = 0.93
    """From this fraction of the steps on, every patch is seen: the heads settle on the grid they will serve."""
    seed: int = 7
    accumulate: int = 1
    """Each process reads its share of a step in this many parts: memory falls, the step stays the same."""
    recompute: bool = False
    """Forget the encoder's activations and compute them again on the way back: less memory, about a third more time."""
    eval_every: int = 250
    save_every: int = 100

    def __post_init__(self) -> None:
        _check_accumulate(self.accumulate)


@dataclass(frozen=True, slots=True)
class LanguageConfig:
    """Stage 2: projector, language decoder and mask decoder on the frozen encoder."""

    steps: int = 800
    batch_faces: int = 16
    questions: dict[str, int] = field(default_factory=lambda: {"image": 2, "region": 2, "box": 2})
    """Asked of a face in one step by level, as far as it has them."""
    task_shares: dict[str, float] = field(default_factory=lambda: {"age": 0.5, "loc": 0.35, "toe": 0.15})
    """Weight of a question of each task when one of its level is drawn, none twice; 0 leaves a task out."""
    views: int = 2
    """Each face is encoded this often: as it is, and under drawn light and codec."""
    lr: float = 1.5e-3
    weight_decay: float = 0.05
    warmup_steps: int = 60
    clip_norm: float = 1.0
    ema_decay: float = 0.995
    mask_bce: float = 2.0
    mask_dice: float = 0.5
    """Loss weights of GLaMM (xdfa: 1.0 CE + 2.0 BCE + 0.5 Dice)."""
    area_masks: float = 0.5
    """Weight of the auxiliary masks of the area spoken of, with the same BCE and Dice inside; 0 leaves them out."""
    routing: Routing = "shared"
    """Where the mask loss goes from the [SEG] states: into the language decoder, nowhere, or into adapters of its own."""
    seed: int = 11
    accumulate: int = 1
    """As in `VisionConfig`."""
    recompute: bool = False
    """As in `VisionConfig`, for the language decoder."""
    shard: bool = False
    """Cut weights, gradients and optimizer state over the processes (FSDP2) instead of holding all of them in each (DDP)."""
    eval_every: int = 250
    save_every: int = 100

    def __post_init__(self) -> None:
        _check_accumulate(self.accumulate)
        _check_asked("questions", self.questions, ("image", "region", "box"))
        _check_asked("task_shares", self.task_shares, ("age", "loc", "toe"))
        if self.shard and self.routing == "separate":
            raise ValueError("separate adapters are frozen in turn within a step, which cut weights do not follow; turn shard off or take 'shared'")


def _check_accumulate(accumulate: int) -> None:
    if accumulate < 1:
        raise ValueError(f"accumulate is {accumulate}; a step is read in 1 part or more")


def _check_asked(name: str, given: Mapping[str, float], known: tuple[str, ...]) -> None:
    if not (given.keys() <= set(known) and min(given.values(), default=0) >= 0 and any(given.values())):
        raise ValueError(f"{name} is {dict(given)}; give numbers from 0 on, one of them above 0, for {', '.join(known)}")


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """Everything one run needs."""

    name: str
    model: ModelConfig
    vision: VisionConfig
    language: LanguageConfig
    precision: Precision = "bf16"
    """Of the forward pass (autocast); weights, losses and optimizer state are float32 in either case."""

    def to_json(self) -> dict[str, Any]:
        """Plain dict for `config.json`."""
        return asdict(self)

    @staticmethod
    def from_json(saved: dict[str, Any]) -> "TrainConfig":
        """The inverse of `to_json`."""
        parts = {"model": ModelConfig(**saved["model"]), "vision": VisionConfig(**saved["vision"]), "language": LanguageConfig(**saved["language"])}
        return TrainConfig(**{**saved, **parts})


def small() -> TrainConfig:
    """The model that ships: 13 M encoder, 4 M decoder, trained on two cores."""
    return TrainConfig("small", ModelConfig(), VisionConfig(), LanguageConfig())


def small_continued() -> TrainConfig:
    """`small` from the weights of its bundle: lower learning rates, new batches, and manipulations that the mesh guides onto FICT regions."""
    vision = VisionConfig(
        steps=1500,
        pairs={"dfdc": 8, "stargan": 3, "stylegan2": 2, "diffusion": 1, "self_blend": 1, "guided": 2},
        lr_last_block=8e-5,
        lr_heads=3e-4,
        warmup_steps=50,
        seed=17,
        eval_every=250,
    )
    return TrainConfig("small_continued", ModelConfig(), vision, LanguageConfig())


def small_longer() -> TrainConfig:
    """`small_continued` once more, from the bundle that it made: longer, with H.264 in the mix, and batches that lean on what scored lowest."""
    continued = small_continued()
    vision = replace(
        continued.vision,
        steps=3000,
        pairs={"dfdc": 9, "stargan": 3, "stylegan2": 1, "diffusion": 1, "self_blend": 1, "guided": 2},
        lr_last_block=1e-4,
        h264_share=0.2,
        seed=27,
        eval_every=400,
    )
    return replace(continued, name="small_longer", vision=vision)


def small_marked() -> TrainConfig:
    """`small_longer` once more, from its bundle, shortly: synthesis is marked patch by patch, and self-blends have three pairs instead of one.

    Its language stage only settles decoders that are trained already on an encoder that moved a little.
    """
    longer = small_longer()
    vision = replace(
        longer.vision,
        steps=700,
        pairs={"dfdc": 7, "stargan": 3, "stylegan2": 2, "diffusion": 1, "self_blend": 3, "guided": 1},
        synthesis_marked=True,
        resting_blocks=3,
        seed=37,
        eval_every=300,
    )
    language = replace(longer.language, steps=150, lr=2e-4, warmup_steps=20, mask_dice=2.0, seed=13)
    return replace(longer, name="small_marked", vision=vision, language=language)


def small_graded() -> TrainConfig:
    """`small_longer` once more, from its bundle, shortly: pictures get looks that cameras and filters give, and of three pairs of 18 both members are
    real, the second graded on its own. Without those, what is unlike the research sets is called fake too often (`bench.photographs`).

    Its language stage only settles decoders that are trained already on an encoder that moved a little.
    """
    marked = small_marked()
    vision = replace(
        marked.vision,
        steps=540,
        pairs={"dfdc": 8, "stargan": 3, "stylegan2": 1, "diffusion": 1, "self_blend": 1, "guided": 1, "graded": 3},
        lr_last_block=8e-5,
        look_share=0.5,
        synthesis_marked=False,
        seed=67,
        eval_every=270,
    )
    return replace(marked, name="small_graded", vision=vision)


def small_branch() -> TrainConfig:
    """A short branch off the bundle's encoder, to be averaged with it (`trainer.soup`): DFDC and self-blends get back what `small_graded` gave to
    graded reals."""
    graded = small_graded()
    vision = replace(
        graded.vision,
        steps=480,
        pairs={"dfdc": 9, "stargan": 3, "stylegan2": 1, "diffusion": 1, "self_blend": 2, "guided": 1, "graded": 1},
        look_share=0.25,
        seed=77,
        eval_every=480,
    )
    return replace(graded, name="small_branch", vision=vision)


def small_onward() -> TrainConfig:
    """`small_graded` once more, from its bundle, for 1,300 steps. Two self-blends and two graded reals of 18 pairs, between what `small_graded` and
    `small_branch` have. Among the people of the research sets it gains, on photographs from elsewhere it loses: nothing that ships is made of it."""
    graded = small_graded()
    vision = replace(
        graded.vision,
        steps=1300,
        pairs={"dfdc": 8, "stargan": 3, "stylegan2": 1, "diffusion": 1, "self_blend": 2, "guided": 1, "graded": 2},
        look_share=0.4,
        seed=87,
        eval_every=650,
    )
    return replace(graded, name="small_onward", vision=vision)


def small_averaged() -> TrainConfig:
    """The language stage on the averaged encoder of two engines (`trainer.soup`), from the decoders of the second: Dice weighs four times as much,
    since regions are small and BCE hardly sees them."""
    continued = small_continued()
    language = replace(continued.language, steps=2000, lr=1e-3, mask_dice=2.0, seed=12)
    return replace(continued, name="small_averaged", language=language)


def small_located() -> TrainConfig:
    """The language stage for what is served: words are measured (decision 9), so most questions ask for a mask, or that there is none.

    Such questions are short, and a step reads more of them. As many as a face has: five of eight, where `small_averaged` asks two of six.
    """
    averaged = small_averaged()
    language = replace(
        averaged.language,
        steps=900,
        lr=7e-4,
        questions={"image": 2, "region": 3, "box": 3},
        task_shares={"age": 0.2, "loc": 0.75, "toe": 0.05},
        seed=14,
    )
    return replace(averaged, name="small_located", language=language)


def plain_classifier() -> TrainConfig:
    """The first stage of `small` without masks and types, step for step on the same batches: the baseline that explaining is held against."""
    base = small()
    return replace(base, name="plain_classifier", vision=replace(base.vision, patch_weight=0.0, type_weight=0.0))


def tiny() -> TrainConfig:
    """A stand-in with random weights for tests: the same parts at a few thousand parameters."""
    return TrainConfig(
        "tiny",
        ModelConfig(
            image_size=56,
            encoder_width=32,
            encoder_layers=2,
            encoder_heads=2,
            query_width=16,
            query_heads=2,
            lm_width=32,
            lm_layers=2,
            lm_heads=2,
            lm_mlp=64,
            vocab_size=512,
            mask_width=16,
        ),
        VisionConfig(steps=4, pairs={"self_blend": 2}, eval_every=2, save_every=2, warmup_steps=1),
        LanguageConfig(steps=4, batch_faces=4, eval_every=2, save_every=2, warmup_steps=1),
    )


RECIPES = {
    "small": small,
    "small_continued": small_continued,
    "small_longer": small_longer,
    "small_marked": small_marked,
    "small_graded": small_graded,
    "small_branch": small_branch,
    "small_onward": small_onward,
    "small_averaged": small_averaged,
    "small_located": small_located,
    "plain_classifier": plain_classifier,
    "tiny": tiny,
}
