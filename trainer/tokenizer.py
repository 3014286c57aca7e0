"""The decoder's vocabulary: byte-level BPE trained on the explanations it will write, every FICT phrase and prompt included."""

from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from engines import fict
from engines.prompts import LOC_ANSWER, LOC_CLEAN_ANSWER, PROMPTS, SPECIAL_TOKENS, Vocabulary


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Learn at most `vocab_size` tokens. Special tokens take ids 0.. in their order and swallow the space before them."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [AddedToken(token, lstrip=True, special=True) for token in SPECIAL_TOKENS]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    fixed = [*PROMPTS.values(), LOC_ANSWER, LOC_CLEAN_ANSWER, *(f" {phrase}" for phrase in fict.by_phrase())] * 3
    tokenizer.train_from_iterator([*texts, *fixed], trainer)
    return tokenizer


def load_vocabulary(path: Path) -> Vocabulary:
    """The vocabulary of a trained model. Raises FileNotFoundError."""
    if not path.is_file():
        raise FileNotFoundError(f"no tokenizer at {path}; give the folder RUN/model of a run whose language stage is done")
    return Vocabulary(Tokenizer.from_file(str(path)))
