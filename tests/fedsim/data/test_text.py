import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from attacks.text.tokens import IGNORED, Tokens
from fedsim.data.corpora import own_sentences, python_docs, sentences_of, text_folder, tsv
from fedsim.data.public import public_sample
from fedsim.data.text import TextData, masked, sentences
from fedsim.data.vocabulary import learned_vocabulary, read_vocabulary, written
from fedsim.errors import ConfigError, DataMissing, FedsimError

DIGEST = (
    "from fedsim.data.corpora import python_docs; import hashlib; d = python_docs(); "
    "print(hashlib.sha256(d.train_inputs.numpy().tobytes() + repr(d.words).encode()).hexdigest())"
)


def text_of(data: TextData, place: int) -> str:
    tokens = sentences(data.train_inputs, data.train_labels, data.tokens)[place]
    words = [data.words[int(one)] for one in tokens if int(one) not in data.tokens.special]
    return written(words)


def test_the_python_documentation_is_real_english_the_same_in_every_process() -> None:
    data = python_docs()
    whole = data.train_inputs.numpy().tobytes() + repr(data.words).encode()

    other = subprocess.run([sys.executable, "-c", DIGEST], capture_output=True, check=True)

    assert other.stdout.decode().strip() == hashlib.sha256(whole).hexdigest()
    assert len(data.train_inputs) > 800
    assert data.input_shape == (16,)
    assert data.num_classes == len(data.words) == data.tokens.vocabulary_size <= 2000
    read = " ".join(text_of(data, place) for place in range(200)).split()
    assert {"the", "is", "of", "python"} <= set(read)


def test_masked_tokens_are_labels_and_nothing_else_is() -> None:
    data = python_docs()
    chosen = data.train_labels != IGNORED
    plain = data.train_inputs != 0

    assert data.tokens.mask is not None
    assert torch.all(data.train_inputs[chosen] == data.tokens.mask)
    assert not (data.train_inputs[~chosen] == data.tokens.mask).any()
    assert not torch.isin(data.train_labels[chosen], torch.tensor(list(data.tokens.special))).any()
    assert (chosen.sum(dim=1) >= 1).all()
    assert 0.1 < float(chosen.sum() / plain.sum()) < 0.2


def test_every_token_may_be_masked_or_but_one() -> None:
    tokens = Tokens(vocabulary_size=9, head="masked", pad=0, start=1, end=2, mask=3)
    inputs = torch.tensor([[1, 5, 6, 7, 8, 2, 0]])

    all_of_them, _ = masked(inputs, tokens, 1.0)
    one, labels = masked(inputs, tokens, 0.01)

    assert all_of_them.tolist() == [[1, 3, 3, 3, 3, 2, 0]]
    assert int((one == 3).sum()) == int((labels != IGNORED).sum()) == 1
    assert sentences(one, labels, tokens).tolist() == inputs.tolist()


def test_the_label_of_a_place_is_the_token_after_it() -> None:
    data = python_docs(task="causal", length=12)
    inputs, labels = data.train_inputs, data.train_labels

    after = inputs[:, 1:]
    expected = torch.where(after == data.tokens.pad, IGNORED, after)
    assert torch.equal(labels[:, :-1], expected)
    assert (labels[:, -1] == IGNORED).all()


def test_packed_examples_have_no_pads() -> None:
    data = python_docs(task="causal", length=32, packed=True)

    assert torch.all(data.train_inputs != data.tokens.pad)
    assert set(data.train_inputs[:, 0].tolist()) == {data.tokens.start}


def test_what_is_public_is_what_was_written_not_what_was_masked(rng: torch.Generator) -> None:
    data = python_docs()

    sample = public_sample(data, 50, rng)

    assert sample.shape == (50, 16)
    assert data.tokens.mask not in sample.flatten().tolist()


def test_a_folder_of_text_files_is_read_sentence_by_sentence(tmp_path: Path) -> None:
    folder = tmp_path / "text"
    folder.mkdir()
    lines = [f"The number of this sentence is {word}." for word in "abcdefghijklmnop"]
    (folder / "a.txt").write_text("\n\n".join(lines[:8]))
    (folder / "b.txt").write_text(" ".join(lines[8:]))

    data = text_folder(root=tmp_path, vocabulary_size=60)

    assert len(data.train_inputs) + len(data.test_inputs) == 16
    assert text_of(data, 0).startswith("the number of this sentence is")
    with pytest.raises(DataMissing, match=r"no \.txt files"):
        text_folder(root=tmp_path, folder="none")
    (folder / "c.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"c\.txt' is no UTF-8 text"):
        text_folder(root=tmp_path)


def table(path: Path, lines: list[str]) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


def test_columns_of_a_table_are_texts_and_classes(tmp_path: Path) -> None:
    lines = [f"{number}\t{'good' if number % 2 else 'bad'}\tword {number}" for number in range(20)]
    table(tmp_path / "a.tsv", ["id\tlabel\tsentence", *lines])
    table(tmp_path / "b.tsv", lines)

    named = tsv(root=tmp_path, file="a.tsv", vocabulary_size=60)
    counted = tsv(
        root=tmp_path, file="b.tsv", header=False, text_column="3", label_column="2",
        vocabulary_size=60,
    )  # fmt: skip

    assert named.class_names == ("bad", "good")
    assert torch.equal(named.train_inputs, counted.train_inputs)
    assert torch.equal(named.train_labels, counted.train_labels)
    assert named.num_classes == 2
    assert text_of(named, 0).startswith("word")


def test_cola_is_read_with_the_vocabulary_of_bert(real_data: Path) -> None:
    data = tsv(
        root=real_data / "text" / "cola", file="in_domain_train.tsv",
        test_file="in_domain_dev.tsv", header=False, text_column="4", label_column="2",
        vocabulary=str(real_data / "text" / "bert-base-uncased"),
    )  # fmt: skip

    assert (len(data.train_inputs), len(data.test_inputs)) == (8551, 527)
    assert data.tokens.vocabulary_size == 30522
    assert (data.tokens.pad, data.tokens.start, data.tokens.end, data.tokens.mask) == (
        0, 101, 102, 103,
    )  # fmt: skip
    assert text_of(data, 0).startswith("our friends won't buy this analysis, let alone")
    assert float(data.train_labels.float().mean()) == pytest.approx(0.704, abs=0.001)


@pytest.mark.parametrize(
    ("lines", "options", "expected"),
    [
        (["a\tb", "1\t2"], {}, "has no column 'sentence'; it has a, b"),
        (["sentence\tlabel", "x"], {}, "line 2: expected at least 2 columns, got 1"),
        (["sentence\tlabel", "x\ty", "x\tz"], {}, "at least 10 texts, got 2"),
        (["sentence\tlabel", *("x\ty" for _ in range(30))], {}, "needs two classes or more, got 1"),
        (
            ["sentence\tlabel", *(f"{n}\t{n % 2}" for n in range(30))],
            {"packed": True},
            "set it to false",
        ),
    ],
)
def test_a_table_that_cannot_be_used_is_refused(
    tmp_path: Path, lines: list[str], options: dict[str, bool], expected: str
) -> None:
    table(tmp_path / "a.tsv", lines)

    with pytest.raises(ConfigError, match=expected):
        tsv(root=tmp_path, file="a.tsv", packed=options.get("packed", False))


def test_text_without_classes_has_none_to_predict() -> None:
    with pytest.raises(ConfigError, match="has no classes to predict"):
        python_docs(task="classes")


def test_a_vocabulary_is_learned_read_and_refused(tmp_path: Path) -> None:
    learned = learned_vocabulary(["the cat sat on the mat", "the cat ran"] * 5, 80)
    (tmp_path / "vocab.txt").write_text("\n".join(learned.words) + "\n")
    learned.tokenizer.enable_padding(length=20)  # as those of sentence embeddings have it
    learned.tokenizer.save(str(tmp_path / "tokenizer.json"))
    learned.tokenizer.no_padding()

    by_words = read_vocabulary(tmp_path / "vocab.txt")
    by_library = read_vocabulary(tmp_path)  # prefers tokenizer.json

    assert {"the", "cat"} <= set(learned.words)
    text = ["the cat sat"]
    assert learned.encode(text) == by_words.encode(text) == by_library.encode(text)
    assert written([learned.words[one] for one in learned.encode(text)[0]]) == text[0]
    with pytest.raises(DataMissing, match=r"holds no tokenizer\.json or vocab\.txt"):
        read_vocabulary(tmp_path / "nowhere")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(ConfigError, match="is no vocabulary"):
        read_vocabulary(tmp_path / "bad.json")
    few = json.loads((tmp_path / "tokenizer.json").read_text())
    del few["model"]["vocab"]["[UNK]"]
    few["added_tokens"] = [one for one in few["added_tokens"] if one["content"] != "[UNK]"]
    (tmp_path / "few.json").write_text(json.dumps(few))
    with pytest.raises(ConfigError, match=r"is no vocabulary: .*Missing \[UNK\]"):
        read_vocabulary(tmp_path / "few.json")
    large = json.loads((tmp_path / "tokenizer.json").read_text())
    large["model"]["vocab"]["the"] = 2**31
    (tmp_path / "large.json").write_text(json.dumps(large))
    with pytest.raises(ConfigError, match=r"must be below 1048576, got 2147483648"):
        read_vocabulary(tmp_path / "large.json")


def test_sentences_leave_out_code_and_headings() -> None:
    text = (
        "Heading\n*******\n\nThis is a sentence about x. And here is\nanother one!\n\n>>> code()\n"
    )

    assert list(sentences_of(text)) == ["This is a sentence about x.", "And here is another one!"]


@pytest.mark.parametrize(
    "first",
    [
        "Это предложение на русском языке",
        "Äpfel und Birnen kosten heute viel",
        "Çok uzun bir cümle",
    ],
)
def test_sentences_of_any_script_are_read(first: str, tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    lines = [f"{first} {word}." for word in "абвгдежзиклм"]
    (tmp_path / "text" / "a.txt").write_text(" ".join(lines), encoding="utf-8")

    data = text_folder(root=tmp_path, vocabulary_size=60)

    assert len(data.train_inputs) + len(data.test_inputs) == 12


def test_chinese_sentences_have_no_blanks_between_them() -> None:
    one = "\u8fd9\u662f\u4e00\u4e2a\u5f88\u957f\u7684\u53e5\u5b50" * 3 + "\u3002"

    assert list(sentences_of(one + one)) == [one, one]


def test_a_folder_without_sentences_is_told_what_one_is(tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("a list\nof words\n")

    with pytest.raises(ConfigError, match=r"got 0 in 1 files of .*ends with a full stop"):
        text_folder(root=tmp_path)


def test_only_a_line_feed_ends_a_row_and_blank_ones_are_left_out(tmp_path: Path) -> None:
    lines = [f"{number % 2}\tword {number}" for number in range(20)]
    odd = ["", "1\ta separator\u2028in a text", "0\tand \x85 another", "1\t" + "long " * 40_000]
    (tmp_path / "a.tsv").write_bytes(
        ("\ufefflabel\tsentence\r\n" + "\r\n".join(lines + odd) + "\r\n\r\n").encode()
    )

    data = tsv(root=tmp_path, file="a.tsv", vocabulary_size=60)

    assert len(data.train_inputs) + len(data.test_inputs) == 23


def test_texts_without_a_token_are_left_out(tmp_path: Path) -> None:
    lines = [f"{number % 2}\t{'word' if number < 20 else chr(0x200B)}" for number in range(40)]
    table(tmp_path / "a.tsv", ["label\tsentence", *lines])

    data = tsv(root=tmp_path, file="a.tsv", vocabulary_size=60)

    assert len(data.train_inputs) + len(data.test_inputs) == 20
    assert len(data.train_labels) == len(data.train_inputs)
    pads = data.train_inputs == data.tokens.pad
    assert not torch.any(pads[:, 2])  # opened, a token, closed
    with pytest.raises(ConfigError, match="training texts that have a token, got none"):
        own_sentences(texts=("\u200b",))


def test_a_class_of_one_text_cannot_be_divided(tmp_path: Path) -> None:
    lines = [f"{number % 2}\tword {number}" for number in range(20)]
    table(tmp_path / "a.tsv", ["label\tsentence", *lines, "2\talone"])

    with pytest.raises(FedsimError, match=r"every class must have two examples .* one of class 2"):
        tsv(root=tmp_path, file="a.tsv", vocabulary_size=60)
