"""Words and bytes to ids and back."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from newllm.data import tokenizer as tokenizer_module
from newllm.data.tokenizer import BOS, EOS, MAX_PIECE, PAD, UNK, Tokenizer

SENTENCES = ["b a c", "a d c", "a"]


def test_specials_come_first_then_words_by_frequency() -> None:
    tokenizer = Tokenizer.train(SENTENCES)
    assert (PAD, UNK, BOS, EOS) == (0, 1, 2, 3)
    # a three times, c twice, b and d once: a tie, in alphabetical order.
    assert tokenizer.encode("a c b d") == [BOS, 4, 5, 6, 7, EOS]
    assert tokenizer.size == 8


def test_unknown_words_and_prompts() -> None:
    tokenizer = Tokenizer.train(SENTENCES)
    assert tokenizer.encode("a zebra") == [BOS, 4, UNK, EOS]
    assert tokenizer.encode_prompt("c") == [BOS, 5]
    assert tokenizer.encode_prompt("") == [BOS]


def test_white_space_of_a_prompt_is_that_of_sentences() -> None:
    tokenizer = Tokenizer.train(["the dog barks"] * 9, "bpe", 300)
    read = tokenizer.encode("the dog barks")[:-1]
    assert tokenizer.encode_prompt(" the  dog\tbarks\n") == read
    assert tokenizer.encode_prompt(" \n") == [BOS]
    exact = Tokenizer.train(["the dog barks"] * 9, "bpe", 300, is_exact=True)
    assert exact.decode(exact.encode_prompt(" the  dog\n")) == " the  dog\n"


def test_vocabulary_size_counts_the_specials() -> None:
    tokenizer = Tokenizer.train(SENTENCES, vocabulary_size=6)
    assert tokenizer.size == 6
    assert tokenizer.encode("a b c") == [BOS, 4, UNK, 5, EOS]
    assert Tokenizer.train(SENTENCES, vocabulary_size=1000).size == 8


def test_encode_all_is_encode_of_each() -> None:
    for tokenizer in (Tokenizer.train(SENTENCES), Tokenizer.train(SENTENCES, "bpe", 262)):
        ids, lengths = tokenizer.encode_all(SENTENCES)
        assert ids.tolist() == [i for sentence in SENTENCES for i in tokenizer.encode(sentence)]
        assert lengths.tolist() == [len(tokenizer.encode(sentence)) for sentence in SENTENCES]


@pytest.mark.parametrize(("kind", "size"), [("words", None), ("bpe", 300)])
def test_a_very_long_sentence_gives_the_tokens_it_gives_in_one_piece(
    kind: str, size: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    sentences = [*SENTENCES, "a b c, don't d c a 12 é b " * 9 + "d", "c"]
    whole = Tokenizer.train(sentences, kind, size)
    expected = [i for sentence in sentences for i in whole.encode(sentence)]
    monkeypatch.setattr(tokenizer_module, "ENCODED_AT_ONCE", 20)
    monkeypatch.setattr(tokenizer_module, "MAX_WORDS", 4)
    in_parts = Tokenizer.train(sentences, kind, size)
    assert in_parts.to_json() == whole.to_json()
    ids, lengths = in_parts.encode_all(sentences)
    assert ids.tolist() == expected
    assert lengths.tolist() == [len(whole.encode(sentence)) for sentence in sentences]
    assert [len(array) for array in whole.encode_all([])] == [0, 0]


@pytest.mark.parametrize("text", ["ab" * 5000, "東京は夜" * 700, "🙂" * 500, "a" * 257, "é" * 400])
def test_a_text_without_blanks_is_cut_between_characters(text: str) -> None:
    tokenizer = Tokenizer.train([text, "ab abc"], "bpe", 300)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    library = tokenizer._model
    pieces = library.pre_tokenizer.pre_tokenize_str(text)
    assert max(len(piece) for piece, _ in pieces) <= MAX_PIECE
    assert "�" not in "".join(library.decoder.decode([piece]) for piece, _ in pieces)


def test_ordinary_words_are_not_cut() -> None:
    words = ["the", "x" * 200, "東京", "don't", "1234", "!?"]
    library = Tokenizer.train(words, "bpe", 300)._model
    cut = library.pre_tokenizer.pre_tokenize_str(" ".join(words))
    uncut = pre_tokenizers.ByteLevel().pre_tokenize_str(" ".join(words))
    assert [piece for piece, _ in cut] == [piece for piece, _ in uncut]


def test_decode_shows_only_the_unknown() -> None:
    tokenizer = Tokenizer.train(SENTENCES)
    assert tokenizer.decode([BOS, 4, UNK, 5, EOS, PAD, PAD]) == "a <UNK> c"
    assert tokenizer.decode([4, 999]) == "a <UNK>"  # an output layer may be wider
    byte_level = Tokenizer.train(SENTENCES, "bpe", 260)
    assert byte_level.decode([*byte_level.encode("a b"), UNK, 999]) == "a b <UNK> <UNK>"


@pytest.mark.parametrize("kind", ["words", "bpe"])
def test_words_that_look_like_specials_are_words(kind: str) -> None:
    text = "a <PAD> <UNK> <BOS> <EOS> <pad>"
    tokenizer = Tokenizer.train([text], kind, 300, lowercase=False)
    ids = tokenizer.encode(text)
    assert not {PAD, UNK, BOS, EOS} & set(ids[1:-1])
    assert tokenizer.decode(ids) == text


def test_a_literal_special_that_was_never_trained_on_is_unknown() -> None:
    tokenizer = Tokenizer.train(SENTENCES, lowercase=False)
    assert tokenizer.encode("a <PAD> <EOS>") == [BOS, 4, UNK, UNK, EOS]


def test_lower_case_is_optional() -> None:
    assert Tokenizer.train(SENTENCES).encode("A") == [BOS, 4, EOS]
    assert Tokenizer.train(SENTENCES, lowercase=False).encode("A") == [BOS, UNK, EOS]


BYTE_LEVEL = Tokenizer.train(["the cat", "the dog"] * 3, "bpe", 300, lowercase=False)


@settings(deadline=None)
@given(st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1))
def test_byte_level_tokens_hold_any_word(word: str) -> None:
    ids = BYTE_LEVEL.encode(word)
    assert UNK not in ids
    assert BYTE_LEVEL.decode(ids) == word


def test_byte_pairs_shorten_what_is_frequent() -> None:
    assert len(BYTE_LEVEL.encode("the")) == 3
    assert BYTE_LEVEL.encode("dog the")[-2] == BYTE_LEVEL.encode("the")[1]  # wherever it stands


@pytest.mark.parametrize(("kind", "size"), [("words", None), ("bpe", 280)])
def test_save_and_load(kind: str, size: int | None, tmp_path: Path) -> None:
    text = "a <PAD> b zebra"
    tokenizer = Tokenizer.train([*SENTENCES, "<PAD>"], kind, size, lowercase=False)
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")
    loaded = Tokenizer.load(tmp_path / "tokenizer.json")
    assert loaded.size == tokenizer.size
    assert loaded.encode(text) == tokenizer.encode(text)
    assert loaded.decode(loaded.encode(text)) == tokenizer.decode(tokenizer.encode(text))


@pytest.mark.parametrize(
    ("kind", "size", "message"),
    [
        ("bpe", None, "data.tokenizer=bpe: needs data.vocabulary_size"),
        ("bpe", 259, "data.vocabulary_size=259: must be at least 260 for data.tokenizer=bpe"),
        ("words", 4, "data.vocabulary_size=4: must be at least 5 for data.tokenizer=words"),
        ("chars", None, "data.tokenizer=chars: no such option; options: words, bpe, bytes"),
    ],
)
def test_impossible_vocabularies_are_refused(kind: str, size: int | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Tokenizer.train(SENTENCES, kind, size)
