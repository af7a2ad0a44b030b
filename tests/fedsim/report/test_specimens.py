"""Texts and rows beside guesses at them: what is marked, and what is not there."""

from pathlib import Path

import torch
from torch import Tensor

from attacks.text.tokens import Tokens
from fedsim.examples import Reader
from fedsim.report.gallery import Images, ranked
from fedsim.report.specimens import Piece, at_place, specimen, steps_of, text_pieces
from tests.fedsim.told import WORDS, table_run, text_run, tokens_of

READER = Reader(
    modality="text",
    words=WORDS,
    tokens=Tokens(vocabulary_size=len(WORDS), head="causal", start=1, end=2, mask=3, unknown=4),
)
TRUTH = tokens_of("she returns on monday .")


def marked(guess: Tensor, truth: Tensor | None = TRUTH) -> list[tuple[str, str]]:
    """Return the pieces of a guess as (text, mark)."""
    return [(one.text, one.mark) for one in text_pieces(READER, guess, truth, truth)]


def written(pieces: list[Piece]) -> str:
    """Return pieces as a page shows them."""
    return "".join(" " * one.apart + one.text for one in pieces)


def test_a_token_at_its_place_is_marked_otherwise_than_one_that_stands_elsewhere() -> None:
    found = marked(tokens_of("she on returns the ."))

    assert found == [("she", "hit"), ("on", "near"), ("returns", "near"), ("the", ""), (".", "hit")]


def test_a_token_counts_as_often_as_the_private_text_has_it() -> None:
    found = marked(tokens_of("monday she monday the ."))

    assert [mark for _, mark in found] == ["near", "near", "", "", "hit"]


def test_special_tokens_are_shown_only_where_they_are_wrong() -> None:
    guess = TRUTH.clone()
    guess[2] = 3  # a mask, in place of a word
    guess[8] = 1  # another start, in place of a pad

    assert [text for text, _ in marked(guess)] == ["she", "[MASK]", "on", "monday", ".", "[CLS]"]
    assert "[CLS]" not in [text for text, _ in marked(guess, truth=None)]


def test_without_the_private_text_nothing_is_marked() -> None:
    assert {mark for _, mark in marked(TRUTH, truth=None)} == {""}


def test_pieces_of_a_word_stand_together_and_stops_close_up() -> None:
    pieces = text_pieces(READER, tokens_of("she was treat ##ed , early ."), None, None)

    assert written(pieces) == "she was treated, early."


def test_byte_level_tokens_bring_their_own_blanks() -> None:
    words = ("<pad>", "she", "\u0120return", "s", ".")
    reader = Reader(modality="text", words=words, tokens=Tokens(vocabulary_size=5, head="causal"))

    assert written(text_pieces(reader, torch.tensor([1, 2, 3, 4, 0]), None, None)) == "she returns."


def test_a_token_that_the_attack_leaves_open_is_no_word() -> None:
    guess = TRUTH.clone()
    guess[1] = -1

    assert marked(guess)[0] == ("_", "")


def test_tokens_at_their_place_are_counted_without_special_ones_and_in_short_guesses() -> None:
    assert at_place(READER, TRUTH, TRUTH) == (5, 5)
    assert at_place(READER, TRUTH[:3], TRUTH) == (2, 5)


def test_a_text_appears_step_by_step_and_the_private_one_stands_at_last(tmp_path: Path) -> None:
    run = text_run(tmp_path)
    best = ranked(run.scores(), "dlg")[0]

    steps = steps_of(Images(run), best, 12)

    assert [one.name for one in steps] == ["0", "10", "20", "private"]
    assert [one.told for one in steps[:3]] == ["0 of 11", "5 of 11", "11 of 11"]
    assert written(list(steps[-1].pieces)).startswith("the patient was treated for")


def test_without_the_truth_a_text_still_appears_and_no_line_claims_to_be_private(
    tmp_path: Path,
) -> None:
    run = text_run(tmp_path)
    for path in (run.root / "truth").iterdir():
        path.unlink()
    best = ranked(run.scores(), "dlg")[0]

    steps = steps_of(Images(run), best, 12)
    shown = specimen(Images(run), [("Guess", best)])

    assert [one.name for one in steps] == ["0", "10", "20"]
    assert shown.lines[0].told == "not kept in this run"
    assert not shown.lines[0].pieces
    assert {one.mark for one in shown.lines[1].pieces} == {""}


def test_a_row_is_shown_by_feature_with_what_is_wrong_and_how_sure_the_attack_is(
    tmp_path: Path,
) -> None:
    run = table_run(tmp_path)
    worst = ranked(run.scores(), "dlg")[-2]

    shown = specimen(Images(run), [("Guess", worst), ("other", None)], "worst")

    private, guess, other = shown.lines
    assert [one.text for one in private.pieces][1:5] == ["state", "bachelor", "never", "40"]
    assert private.told == "label <=50K"
    assert [one.mark for one in guess.pieces] == ["miss"] * 4 + ["hit"] * 2
    assert [one.sure for one in guess.pieces][:1] == [0.42]
    assert guess.told.replace("\u00a0", " ") == "33.3 % of features right; data mean 25 %"
    assert (other.told, list(other.pieces)) == ("not attacked", [])


def test_masks_of_the_private_text_are_filled_in(tmp_path: Path) -> None:
    run = text_run(tmp_path, head="masked")
    best = ranked(run.scores(), "dlg")[0]

    private = specimen(Images(run), [("Guess", best)]).lines[0]

    assert written(list(private.pieces)) == "the patient was treated for early signs of asthma."
