// The gallery: every private image that was attacked, and beside it what came of each attack.

import { byId, calm, decibels, element, percent, say, show } from "./dom.js";

const FRAME_MS = 110, EVERY_MS = 900, SMOOTH_FROM = 96;
const cards = new Map();
let page, spotlight, pages = 1, busy = false, again = false, timer = null, opened = false;

export function openGallery(ofPage, ofSpotlight) {
  [page, spotlight] = [ofPage, ofSpotlight];
  for (const id of ["order", "victim", "round"]) {
    byId(id).addEventListener("change", () => {
      pages = 1;
      refresh();
    });
  }
  byId("filters").addEventListener("submit", (event) => event.preventDefault());
  byId("more").addEventListener("click", () => {
    pages += 1;
    refresh();
  });
}

export function chooseVictim(one) {
  const select = byId("victim");
  select.value = select.value === String(one) ? "" : String(one);
  pages = 1;
  refresh();
}

export function forgetCards() {
  cards.clear();
  byId("cards").replaceChildren();
  pages = 1;
  opened = false;
}

export function drawVictims() {
  const select = byId("victim"), wanted = Math.min(page.run?.clients || 0, 1000);
  if (select.options.length === wanted + 1) return;
  const names = [...Array(wanted).keys()].map((one) => element("option", { value: one }, `client ${one}`));
  select.replaceChildren(element("option", { value: "" }, "all"), ...names);
}

// at most one question at a time, and not more than one a second
export function refreshSoon() {
  if (timer === null) {
    timer = setTimeout(() => {
      timer = null;
      refresh();
    }, EVERY_MS);
  }
}

export async function refresh() {
  if (busy) {
    again = true;
    return;
  }
  busy = true;
  try {
    await ask();
  } catch {
    // the server is away; the page asks again when it is back
  } finally {
    busy = false;
  }
  if (again) {
    again = false;
    refreshSoon();
  }
}

async function ask() {
  const reading = page.reading;
  let found = [], next = 0, total = 0;
  for (let one = 0; one < pages && next !== null; one++) {
    const query = new URLSearchParams({ order: byId("order").value, skip: String(next) });
    for (const id of ["victim", "round"]) if (byId(id).value !== "") query.set(id, byId(id).value);
    const answer = await fetch(`/cards?${query}`);
    if (!answer.ok) return;
    const told = await answer.json();
    [found, next, total] = [found.concat(told.cards), told.next, told.total];
  }
  if (reading === page.reading) draw(found, next, total);
}

function draw(found, next, total) {
  const narrowed = byId("victim").value !== "" || byId("round").value !== "";
  show("gallery", total > 0 || narrowed);
  show("more", next !== null);
  say("gallery-note", total ? "" : "Nothing was heard of these.");
  const keys = new Set();
  const elements = found.map((card) => {
    const key = `${card.id}/${card.image}`;
    keys.add(key);
    if (!cards.has(key)) cards.set(key, newCard(card));
    const there = cards.get(key);
    update(there, card);
    return there.box;
  });
  for (const key of cards.keys()) if (!keys.has(key)) cards.delete(key);
  const box = byId("cards");
  if (elements.some((one, place) => box.children[place] !== one) || box.children.length !== elements.length) box.replaceChildren(...elements);
  spotlight.offer([...cards.values()], !opened);
  opened = true;
}

function newCard(card) {
  const title = element("h3", {}, element("span"), element("small"));
  const tiles = element("div", { class: "tiles" });
  const original = filmOf("div");
  const there = { card, original, tiles: new Map(), box: element("article", { class: "card" }, title, tiles), title, grid: tiles };
  tiles.append(element("figure", {}, original.box, element("figcaption", {}, element("b", {}, "original"), caption(card))));
  there.box.addEventListener("pointerenter", () => there.tiles.forEach((tile) => play(tile)));
  return there;
}

const caption = (card) => (card.label === null ? "" : `label ${card.label}`);

export function showOriginal(film, card) {
  if (card.original) setPicture(film, originalOf(card), 1);
  else empty(film, "not here");
}

const originalOf = (card) => `/original/${encodeURIComponent(card.id)}/${card.image}.png?of=${page.reading}`;

function update(there, card) {
  there.card = card;
  there.title.firstChild.textContent = `${card.victim}, round ${card.round}`;
  there.title.lastChild.textContent = card.rank;
  showOriginal(there.original, card);
  there.grid.style.gridTemplateColumns = `repeat(${Math.max(3, Math.min(5, card.tiles.length + 1))}, minmax(0, 1fr))`;
  const label = there.grid.firstChild.querySelector("figcaption");
  label.lastChild.textContent = caption(card);
  const names = new Set(card.tiles.map((tile) => tile.attack));
  for (const [name, tile] of there.tiles) {
    if (!names.has(name)) {
      tile.figure.remove();
      there.tiles.delete(name);
    }
  }
  for (const tile of card.tiles) {
    if (!there.tiles.has(tile.attack)) there.tiles.set(tile.attack, newTile(there, tile));
    updateTile(there.tiles.get(tile.attack), card, tile);
  }
}

function newTile(there, told) {
  const film = filmOf("button");
  const words = element("figcaption");
  const figure = element("figure", {}, film.box, words);
  const tile = { ...film, figure, words, told: null, text: "" };
  tile.box.type = "button";
  tile.box.addEventListener("click", () => spotlight.choose(there.card, tile.told));
  there.grid.append(figure);
  return tile;
}

function updateTile(tile, card, told) {
  const text = JSON.stringify(told);
  if (tile.text === text) return;
  const before = tile.told;
  [tile.told, tile.text] = [told, text];
  const address = guessOf(card, told);
  tile.box.classList.toggle("running", told.state === "running");
  tile.box.disabled = address === null;
  tile.box.setAttribute("aria-label", `${told.attack}: ${stateWords(told)}`);
  tile.box.title = told.reason || "";
  if (address === null) {
    empty(tile, placeWords(told));
    tile.box.classList.toggle("none", told.state !== "running");
  } else {
    setPicture(tile, address, told.steps?.length || 1);
    if (before && before.state !== told.state && told.steps) play(tile);
  }
  tile.words.classList.toggle("strong", told.recovered === true);
  tile.words.replaceChildren(element("b", {}, page.nameOf(told.attack)), shortWords(told));
}

export function guessOf(card, told) {
  const [id, attack] = [card.id, told.attack].map(encodeURIComponent);
  if (told.stamp && told.worker) return `/so-far/${encodeURIComponent(told.worker)}/${id}/${card.image}.png?of=${told.stamp}`;
  if (told.stamp && told.guess !== null && told.guess !== undefined) return `/film/${id}/${attack}/${told.guess}.png?of=${told.stamp}`;
  return null;
}

export function stateWords(told) {
  if (told.state === "waiting") return "waiting";
  if (told.state === "running") return told.step === null || told.step === undefined ? "at work" : `at work, step ${told.step}`;
  if (told.state === "failed") return told.reason ? `failed: ${told.reason}` : "failed";
  if (told.psnr === null || told.psnr === undefined) return told.labels === null || told.labels === undefined ? "no guess" : `${percent(told.labels)} of labels`;
  return decibels(told.psnr) + (told.state === "unfinished" ? ", out of time" : "");
}

const placeWords = (told) => ({ waiting: "waiting", running: "", failed: "failed" })[told.state] ?? "no image";

function shortWords(told) {
  if (told.state === "running") return told.step ? `step ${told.step}` : "at work";
  if (told.state === "waiting" || told.state === "failed") return "";
  return stateWords(told);
}

// films: all looks of an attack lie side by side in one picture, of which one is seen

export function filmOf(tag) {
  const box = element(tag, { class: "film" });
  return { box, image: null, frames: 1, frame: 0, playing: null };
}

export function empty(film, words) {
  stop(film);
  film.image = null;
  film.frames = 1;
  film.box.classList.add("none");
  film.box.replaceChildren(element("span", { class: "state" }, words));
}

export function setPicture(film, address, frames) {
  stop(film);
  film.box.classList.remove("none");
  if (film.image?.dataset.address !== address) {
    const image = element("img", { alt: "", loading: "lazy", decoding: "async", "data-address": address });
    image.addEventListener("load", () => fit(film, image, frames));
    image.addEventListener("error", () => {
      const passing = address.startsWith("/so-far"); // its job has just ended, and the guess comes
      if (film.image === image && !passing) film.box.replaceChildren(element("span", { class: "state" }, "not there"));
    });
    image.src = address;
    if (film.image && film.frames === 1 && frames === 1) {
      // the next guess takes the place of the last one when it is there, without a gap
      image.loading = "eager";
      image.addEventListener("load", () => film.image === image && film.box.replaceChildren(image));
    } else {
      film.box.replaceChildren(image);
    }
    film.image = image;
  }
  film.frames = frames;
  seek(film, frames - 1);
}

function fit(film, image, frames) {
  const wide = image.naturalWidth / frames;
  film.box.style.aspectRatio = `${wide} / ${image.naturalHeight}`;
  film.box.classList.toggle("squares", Math.max(wide, image.naturalHeight) < SMOOTH_FROM);
}

export function seek(film, frame) {
  film.frame = frame;
  film.image.style.width = `${100 * film.frames}%`;
  film.image.style.left = `${-100 * frame}%`;
}

export function play(film) {
  if (film.playing !== null || film.frames < 2 || calm()) return;
  let frame = 0;
  film.playing = setInterval(() => {
    seek(film, Math.min(frame, film.frames - 1));
    frame += 1;
    if (frame >= film.frames) stop(film);
  }, FRAME_MS);
}

export function stop(film) {
  clearInterval(film.playing);
  film.playing = null;
}
