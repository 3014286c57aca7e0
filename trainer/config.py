"""The trainer's settings: one frozen dataclass per concern, recipes as functions. A run saves its config as JSON beside the checkpoint."""

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Sizes of FiFa-MLLM."""

    image_size: int = 224
    """Side of the face crop in pixels."""
    patch_size: int = 14
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


@dataclass(frozen=True, slots=True)
class VisionConfig:
    """Stage 1: encoder, artifact map, DET and CLS heads, on paired batches."""

    steps: int = 1600
    pairs: dict[str, int] = field(
        default_factory=lambda: {"dfdc": 9, "stargan": 2, "stylegan2": 1, "diffusion": 1, "self_blend": 1, "face_swap": 1, "local_edit": 1}
    )
    """Pairs of one batch by source; each is a real face and a fake under one draw of augmentation."""
    lr_last_block: float = 1e-4
    lr_decay: float = 0.75
    """Each block below the last learns at this fraction of the one above."""
    lr_heads: float = 5e-4
    weight_decay: float = 0.05
    warmup_steps: int = 100
    clip_norm: float = 1.0
    ema_decay: float = 0.998
    label_smoothing: float = 0.01
    keep_patches: float = 0.5
    """Fraction of patches that a training step sees (PatchDropout, arXiv:2208.07220): 2.3x faster and a regulariser."""
    full_from: float = 0.93
    """From this fraction of the steps on, every patch is seen: the heads settle on the grid they will serve."""
    seed: int = 7
    eval_every: int = 250
    save_every: int = 100


@dataclass(frozen=True, slots=True)
class LanguageConfig:
    """Stage 2: projector, language decoder and mask decoder on the frozen encoder."""

    steps: int = 900
    batch_faces: int = 32
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
    seed: int = 11
    eval_every: int = 250
    save_every: int = 100


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """Everything one run needs."""

    name: str
    model: ModelConfig
    vision: VisionConfig
    language: LanguageConfig

    def to_json(self) -> dict[str, Any]:
        """Plain dict for `config.json`."""
        return asdict(self)

    @staticmethod
    def from_json(saved: dict[str, Any]) -> "TrainConfig":
        """The inverse of `to_json`."""
        return TrainConfig(saved["name"], ModelConfig(**saved["model"]), VisionConfig(**saved["vision"]), LanguageConfig(**saved["language"]))


def small() -> TrainConfig:
    """The model that ships: 13 M encoder, 4 M decoder, trained on two cores."""
    return TrainConfig("small", ModelConfig(), VisionConfig(), LanguageConfig())


def small_continued() -> TrainConfig:
    """`small` from the weights of its bundle: half the learning rates, new batches, one StarGAN pair more (its weakest family)."""
    vision = VisionConfig(
        steps=1400,
        pairs={"dfdc": 9, "stargan": 3, "stylegan2": 1, "diffusion": 1, "self_blend": 1, "face_swap": 1, "local_edit": 1},
        lr_last_block=6e-5,
        lr_heads=2e-4,
        warmup_steps=50,
        seed=17,
        eval_every=200,
    )
    return TrainConfig("small_continued", ModelConfig(), vision, LanguageConfig())


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


RECIPES = {"small": small, "small_continued": small_continued, "tiny": tiny}
