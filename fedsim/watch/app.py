"""The addresses of the page: itself, its events, its gallery, its pictures. All are only read."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable
from importlib.resources import files
from pathlib import Path
from typing import Annotated

from fastapi import FastAPI, Header, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse

from fedsim.examples import Reader
from fedsim.files import Record
from fedsim.report.rendering import style_sheet
from fedsim.watch.cards import Order, Wanted, cards
from fedsim.watch.feed import MOST_LISTENERS, Feed, Position
from fedsim.watch.guard import Guard
from fedsim.watch.specimens import Case
from fedsim.watch.tensors import Missing
from fedsim.watch.values import name

SCRIPTS = ("page", "dom", "charts", "graph", "gallery", "films", "spotlight", "traffic")
"""Modules of the page, `static/NAME.js`."""
Number = Annotated[int | None, Query(ge=0, le=10**9)]
Place = Annotated[int, Query(ge=0, lt=10**6)]


def build_app(path: Path, *, names: Iterable[str] = ()) -> tuple[FastAPI, Feed]:
    """Return the application that serves the page of a run, and its feed, which it closes.

    Args:
        path: See `Feed`.
        names: See `Guard`.
    """
    feed = Feed(path)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        following = asyncio.create_task(feed.follow())
        yield
        await feed.close()
        await following

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Guard, names=names)

    @app.exception_handler(RequestValidationError)
    @app.exception_handler(Missing)
    async def missing(_: Request, __: Exception) -> Response:
        return PlainTextResponse("there is no such thing here", 404)

    _add_page(app)
    _add_state(app, feed)
    _add_pictures(app, feed)
    _add_specimens(app, feed)
    return app, feed


def _add_page(app: FastAPI) -> None:
    static = files("fedsim.watch") / "static"
    page = (static / "page.html").read_text()
    style = style_sheet() + (static / "watch.css").read_text()
    scripts = {name: (static / f"{name}.js").read_text() for name in SCRIPTS}

    @app.get("/")
    async def index() -> Response:
        return Response(page, media_type="text/html")

    @app.get("/watch.css")
    async def css() -> Response:
        return Response(style, media_type="text/css")

    @app.get("/{module}.js")
    async def script(module: str) -> Response:
        if module not in scripts:
            raise Missing
        return Response(scripts[module], media_type="text/javascript")

    @app.get("/favicon.ico")
    async def icon() -> Response:
        return Response(status_code=204)


def _add_state(app: FastAPI, feed: Feed) -> None:
    @app.get("/events")
    async def events(last_event_id: Annotated[str | None, Header()] = None) -> Response:
        if feed.listeners >= MOST_LISTENERS:
            return PlainTextResponse("too many pages look on", 503)
        stream = feed.stream(Position.parse(last_event_id))
        return StreamingResponse(stream, media_type="text/event-stream")

    @app.get("/cards")
    def gallery(
        order: Order = "newest",
        victim: Number = None,
        server_round: Annotated[int | None, Query(alias="round", ge=0, le=10**9)] = None,
        skip: Annotated[int, Query(ge=0, le=10**9)] = 0,
    ) -> Response:
        wanted = Wanted(order=order, victim=victim, round=server_round, skip=skip)
        found: Record = cards(feed.run, wanted)
        return JSONResponse(found)

    @app.get("/health")
    async def health() -> Response:
        return PlainTextResponse("ok")


def _add_pictures(app: FastAPI, feed: Feed) -> None:
    def png(make: Callable[[], bytes]) -> Response:
        return Response(make(), media_type="image/png")

    @app.get("/original/{observation}/{image}.png")
    def original(observation: str, image: int) -> Response:
        _check(image)
        return png(lambda: feed.pictures.original(*_about(feed, observation), image))

    @app.get("/film/{observation}/{attack}/{guess}.png")
    def film(observation: str, attack: str, guess: int) -> Response:
        _check(guess)
        if (observation, attack) not in feed.run.book.entries:
            raise Missing
        return png(lambda: feed.pictures.film(observation, attack, guess))

    @app.get("/so-far/{worker}/{observation}/{image}.png")
    def so_far(worker: str, observation: str, image: int) -> Response:
        _check(image)
        if name(worker) is None:
            raise Missing
        where = _about(feed, observation)
        try:
            return png(lambda: feed.pictures.so_far(worker, observation, image, *where))
        except Missing:  # the job has just ended: no error, and nothing to show
            return Response(status_code=204)


def _add_specimens(app: FastAPI, feed: Feed) -> None:
    """Add what is told of texts and rows, at the addresses of pictures with another ending."""

    def told(answer: bytes) -> Response:
        return Response(answer, media_type="application/json")

    def reader() -> Reader:
        found = feed.run.reader
        if found.modality == "image":
            raise Missing
        return found

    @app.get("/original/{observation}/{place}.json")
    def original(observation: str, place: int) -> Response:
        _check(place)
        return told(feed.specimens.original(reader(), *_about(feed, observation), place))

    @app.get("/film/{observation}/{attack}/{guess}.json")
    def film(observation: str, attack: str, guess: int, place: Place) -> Response:
        _check(guess)
        entry = feed.run.book.entries.get((observation, attack))
        if entry is None:
            raise Missing
        case = Case(observation, *_about(feed, observation), place)
        score = feed.run.score(observation, attack, entry)
        return told(feed.specimens.film(reader(), case, attack, guess, score))

    @app.get("/so-far/{worker}/{observation}/{place}.json")
    def so_far(worker: str, observation: str, place: int) -> Response:
        _check(place)
        if name(worker) is None:
            raise Missing
        case = Case(observation, *_about(feed, observation), place)
        try:
            return told(feed.specimens.so_far(reader(), case, worker, feed.run.tolerance))
        except Missing:
            return Response(status_code=204)


def _about(feed: Feed, observation: str) -> tuple[int, str]:
    found = feed.run.heard.found.get(observation)
    if found is None:
        raise Missing
    return found


def _check(place: int) -> None:
    if not 0 <= place < 10**6:
        raise Missing
