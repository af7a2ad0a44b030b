"""HTTP as an eavesdropper reads it."""

from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.proxy.http import (
    BESIDE,
    LONGEST_HEAD,
    MOST_WAITING,
    Budget,
    Conversation,
    Direction,
    Exchange,
    Garbled,
    NoRoom,
)

ASK = b"POST /one HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello"
ROOM_OF_ASK = ASK.index(b"\r\n\r\n") + 3 * BESIDE
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nyes"
CHUNKED = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"4;x=y\r\nWiki\r\nA\r\npedia in \n\r\n0\r\nTrailer: z\r\n\r\n"
)


def conversation(largest: int = 1000, most: int = 10_000) -> Conversation:
    return Conversation(largest, Budget(most))


def bodies(found: list[Exchange]) -> list[tuple[bytes | None, bytes | None]]:
    return [(one.request.body, one.response.body) for one in found]


def test_a_request_and_its_answer_make_an_exchange() -> None:
    talk = conversation()

    assert talk.feed("up", ASK) == []
    (found,) = talk.feed("down", ANSWER)

    assert found.request.start == ("POST", "/one", "HTTP/1.1")
    assert found.request.headers == {"host": "x", "content-length": "5"}
    assert (found.request.body, found.response.status, found.response.body) == (
        b"hello",
        200,
        b"yes",
    )


@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=20))
def test_pieces_do_not_matter(sizes: list[int]) -> None:
    talk, found = conversation(), []

    for direction, data in (("up", ASK + ASK), ("down", ANSWER + CHUNKED)):
        place = 0
        for size in sizes * (len(data) // sum(sizes) + 1):
            found += talk.feed(direction, data[place : place + size])  # type: ignore[arg-type]
            place += size

    assert bodies(found) == [(b"hello", b"yes"), (b"hello", b"Wikipedia in \n")]


def test_chunks_make_one_body() -> None:
    talk = conversation()
    talk.feed("up", ASK)

    (found,) = talk.feed(
        "down",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: Chunked\r\n\r\n"
        b"4;x=y\r\nWiki\r\n5\r\npedia\r\n0\r\nTrailer: z\r\n\r\n",
    )

    assert found.response.body == b"Wikipedia"


def test_an_answer_without_a_length_ends_with_the_connection() -> None:
    talk = conversation()
    talk.feed("up", ASK)

    assert talk.feed("down", b"HTTP/1.1 200 OK\r\n\r\nall of") == []
    (found,) = talk.close()

    assert found.response.body == b"all of"
    assert found.request.body == b"hello"


@pytest.mark.parametrize(
    ("method", "answer"),
    [
        (b"HEAD", b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n"),
        (b"POST", b"HTTP/1.1 204 No Content\r\n\r\n"),
        (b"POST", b"HTTP/1.1 304 Not Modified\r\ncontent-length: 9\r\n\r\n"),
        (b"POST", b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"),
        (b"POST", b"HTTP/1.1 200\r\ncontent-length: 0\r\n\r\n"),
    ],
    ids=["HEAD", "204", "304", "100 first", "no reason"],
)
def test_some_answers_have_no_body(method: bytes, answer: bytes) -> None:
    talk = conversation()
    ask = method + b" / HTTP/1.1\r\n\r\n"

    talk.feed("up", ask + ask)
    found = talk.feed("down", answer + answer)

    assert bodies(found) == [(b"", b""), (b"", b"")]


def test_a_body_that_is_too_large_is_not_kept_and_the_next_is() -> None:
    talk = conversation(largest=4)

    talk.feed("up", ASK + ASK)
    found = talk.feed("down", ANSWER + ANSWER)

    assert bodies(found) == [(None, b"yes"), (None, b"yes")]
    assert talk.too_large == 2


def test_all_connections_together_hold_no_more_than_their_budget() -> None:
    heads = 2 * ROOM_OF_ASK
    budget = Budget(heads + 7)
    one, other = Conversation(1000, budget), Conversation(1000, budget)

    one.feed("up", ASK[:-1])
    other.feed("up", ASK)

    assert budget.held == heads + 4
    assert (one.too_large, other.too_large) == (0, 1)
    one.close()
    assert budget.held == ROOM_OF_ASK
    other.close()
    assert budget.held == 0


def test_heads_that_wait_for_answers_take_from_the_budget_as_well() -> None:
    budget = Budget(10 * LONGEST_HEAD)
    talk = Conversation(1000, budget)
    ask = b"GET / HTTP/1.1\r\nx: " + b"y" * (LONGEST_HEAD - 100) + b"\r\n\r\n"

    for _ in range(9):
        talk.feed("up", ask)
    assert 9 * len(ask) <= budget.held <= budget.most
    with pytest.raises(NoRoom, match="more is said at a time than there is room for"):
        talk.feed("up", ask + ask)

    talk.close()
    assert budget.held == 0


def test_lines_of_a_head_take_more_than_their_letters() -> None:
    budget = Budget(2**20)
    talk = Conversation(1000, budget)

    talk.feed("up", b"GET / HTTP/1.1\r\n" + b"".join(b"%d:\r\n" % n for n in range(150)) + b"\r\n")

    assert budget.held > 150 * BESIDE


def test_half_a_head_takes_from_the_budget_as_well() -> None:
    budget = Budget(1000)
    one, other = Conversation(1000, budget), Conversation(1000, budget)

    one.feed("up", b"GET /" + b"x" * 700)
    assert budget.held == 705
    with pytest.raises(NoRoom):
        other.feed("down", b"HTTP/1.1 200 " + b"x" * 700)

    one.close()
    other.close()
    assert budget.held == 0


def test_an_interim_answer_gives_back_what_it_took() -> None:
    budget = Budget(10_000)
    talk = Conversation(1000, budget)
    talk.feed("up", ASK)
    before = budget.held

    talk.feed("down", b"HTTP/1.1 100 Continue\r\nx: y\r\n\r\n")

    assert budget.held == before


@pytest.mark.parametrize(
    "said",
    [
        b"\x16\x03\x01\x02\x00" + b"\x00" * 10 + b"\r\n\r\n",
        b"GET / HTTP/2\r\n\r\n",
        b"POST / HTTP/1.1\r\nno colon\r\n\r\n",
        b"POST / HTTP/1.1\r\nfolded: a\r\n b\r\n\r\n",
        b"POST / HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\ncontent-length: +1\r\n\r\n",
        b"POST / HTTP/1.1\r\ncontent-length: 99999999999999999\r\n\r\n",
        b"POST / HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
        b"POST / HTTP/1.1\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",
        b"POST / HTTP/1.1\r\ntransfer-encoding: gzip, chunked\r\n\r\n",
        b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nxyz\r\n",
        b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n1\r\nabc",
        b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n" + b"0" * 2000,
        b"a" * (LONGEST_HEAD + 100),
        b"POST / HTTP/1.1\r\n" + b"a: b\r\n" * 300 + b"\r\n",
        b"GET / HTTP/1.1\r\n\r\n" * (MOST_WAITING + 1),
    ],
)
def test_what_is_not_http_is_refused(said: bytes) -> None:
    with pytest.raises(Garbled):
        conversation().feed("up", said)


@pytest.mark.parametrize(
    "said",
    [
        ANSWER,
        b"HTTP/1.1 OK 200\r\n\r\n",
        b"HTTP/1.1 2000 OK\r\n\r\n",
        "HTTP/1.1 ²00 OK\r\n\r\n".encode("latin-1"),
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
    ],
    ids=["an answer to nothing", "words", "four digits", "other digits", "another protocol"],
)
def test_an_answer_that_cannot_be_is_refused(said: bytes) -> None:
    with pytest.raises(Garbled):
        conversation().feed("down", said)


def test_a_request_may_be_answered_before_it_has_ended() -> None:
    budget = Budget(10_000)
    talk = Conversation(1000, budget)
    refusal = b"HTTP/1.1 413 Too Large\r\ncontent-length: 3\r\n\r\nyes"

    talk.feed("up", ASK[:-2])
    (refused,) = talk.feed("down", refusal)
    talk.feed("up", ASK[-2:])
    talk.feed("up", ASK)
    (found,) = talk.feed("down", ANSWER)

    assert (refused.request.start[1], refused.request.body) == ("/one", None)
    assert refused.response.status == 413
    assert bodies([found]) == [(b"hello", b"yes")]
    assert talk.too_large == 0
    assert budget.held == refused.kept + found.kept


def test_a_request_is_answered_once() -> None:
    talk = conversation()
    talk.feed("up", ASK[:-2])

    with pytest.raises(Garbled, match="an answer to nothing"):
        talk.feed("down", ANSWER + ANSWER)

    assert len(talk.close()) == 1


def test_all_trailers_together_are_no_longer_than_a_head() -> None:
    talk = conversation()
    talk.feed("up", ASK)
    talk.feed("down", b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n")

    with pytest.raises(Garbled, match="trailers"):
        talk.feed("down", (b"a: " + b"b" * 1000 + b"\r\n") * (LONGEST_HEAD // 1000 + 1))


PARTS = st.sampled_from(
    [
        ASK,
        ANSWER,
        CHUNKED,
        b"\r\n",
        b"\r\n\r\n",
        b"HTTP/1.1 ",
        b"POST ",
        b"Transfer-Encoding: chunked",
        b"content-length: 18446744073709551616",
        b"ffffffffffffffff\r\n",
        b"0\r\n",
        b":",
        b"\x00",
    ]
)


@settings(max_examples=400, deadline=None)
@given(
    said=st.lists(
        st.tuples(st.sampled_from(get_args(Direction)), PARTS | st.binary(max_size=40)), max_size=30
    )
)
def test_whatever_strangers_say_is_read_or_refused_and_holds_no_more_than_its_budget(
    said: list[tuple[Direction, bytes]],
) -> None:
    budget = Budget(2000)
    talk = Conversation(32, budget)

    try:
        for direction, data in said:
            for exchange in talk.feed(direction, data):
                budget.give(exchange.kept)
            assert 0 <= budget.held <= 2000
    except Garbled:
        pass
    for exchange in talk.close():
        budget.give(exchange.kept)

    assert budget.held == 0
