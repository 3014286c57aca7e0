"""A vocabulary that never lacks a word of FICT."""

from engines import fict
from engines.prompts import SPECIAL_TOKENS, Vocabulary
from trainer.tokenizer import train_tokenizer

TEXTS = ["The <p> left lower cheek </p> [SEG] is smoother than its surroundings."] * 20


def test_training_depends_on_the_texts_alone() -> None:
    assert train_tokenizer(TEXTS, 512).to_str() == train_tokenizer(TEXTS, 512).to_str()


def test_the_vocabulary_keeps_its_limit_and_its_special_tokens() -> None:
    tokenizer = train_tokenizer(TEXTS, 512)
    assert tokenizer.get_vocab_size() <= 512
    assert [tokenizer.token_to_id(token) for token in SPECIAL_TOKENS] == list(range(len(SPECIAL_TOKENS)))


def test_any_text_survives_its_tokens() -> None:
    vocabulary = Vocabulary(train_tokenizer(TEXTS, 512))
    for text in ["an unseen word: zyx", "\u00e9 \u20ac \U0001d11e", *(concept.phrase for concept in fict.concepts().values())]:
        assert vocabulary.markup(vocabulary.answer_ids(text)) == text


def test_a_phrase_inside_markup_has_the_tokens_it_has_alone() -> None:
    tokenizer = train_tokenizer(TEXTS, 512)
    for phrase in fict.by_phrase():
        alone = tokenizer.encode(f" {phrase}").ids
        inside = tokenizer.encode(f"The <p> {phrase} </p> [SEG] is changed.").ids
        opened, closed = inside.index(tokenizer.token_to_id("<p>")), inside.index(tokenizer.token_to_id("</p>"))
        assert inside[opened + 1 : closed] == alone
