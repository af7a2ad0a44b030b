// The gallery: every private image, text or row that was attacked, and beside it what came of each attack.

import { byId, element, percent, say, show } from "./dom.js";
import { FEW, empty, filmOf, marked, play, setFilm } from "./films.js";

const EVERY_MS = 900;
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
  drawNote(total);
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
  const original = { ...filmOf("div"), most: FEW[page.scale.modality] };
  const box = element("article", { class: `card of-${page.scale.modality}` }, title, tiles);
  const there = { card, original, tiles: new Map(), box, title, grid: tiles };
  tiles.append(element("figure", {}, original.box, element("figcaption", {}, element("b", {}, "original"), caption(card))));
  there.box.addEventListener("pointerenter", () => there.tiles.forEach((tile) => play(tile)));
  return there;
}

// of these words no markup is made
function drawNote(total) {
  const notes = {
    image: [],
    text: [marked("Underlined", "hit"), ": a token of the private text at its place; ", marked("dotted", "near"), ": one that stands elsewhere in it."],
    table: [marked("Underlined", "hit"), ": right; ", marked("crossed", "miss"), ": wrong. A click shows how sure the attack is, if it says so."],
  };
  const note = total ? notes[page.scale.modality] : ["Nothing was heard of these."];
  byId("gallery-note").replaceChildren(...note);
}

const caption = (card) => (card.label === null ? "" : `label ${card.class || card.label}`);

export function showOriginal(film, card) {
  if (card.original) setFilm(film, originalOf(card), 1);
  else empty(film, "not here");
}

const ending = () => (page.scale.modality === "image" ? "png" : "json");

const originalOf = (card) => `/original/${encodeURIComponent(card.id)}/${card.image}.${ending()}?of=${page.reading}`;

function update(there, card) {
  there.card = card;
  there.title.firstChild.textContent = `${card.victim}, round ${card.round}`;
  there.title.lastChild.textContent = card.rank;
  showOriginal(there.original, card);
  if (page.scale.modality === "image") there.grid.style.gridTemplateColumns = `repeat(${Math.max(3, Math.min(5, card.tiles.length + 1))}, minmax(0, 1fr))`;
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
  const tile = { ...film, most: FEW[page.scale.modality], figure, words, given: null, text: "" };
  tile.box.type = "button";
  tile.box.addEventListener("click", () => spotlight.choose(there.card, tile.given));
  there.grid.append(figure);
  return tile;
}

function updateTile(tile, card, told) {
  const text = JSON.stringify(told);
  if (tile.text === text) return;
  const before = tile.given;
  [tile.given, tile.text] = [told, text];
  const address = guessOf(card, told);
  tile.box.classList.toggle("running", told.state === "running");
  tile.box.disabled = address === null;
  if (page.scale.modality === "image" || address === null) tile.box.setAttribute("aria-label", `${told.attack}: ${stateWords(told)}`);
  else tile.box.removeAttribute("aria-label"); // its name is what can be read there
  tile.box.title = told.reason || "";
  if (address === null) {
    empty(tile, placeWords(told));
    tile.box.classList.toggle("none", told.state !== "running");
  } else {
    setFilm(tile, address, told.steps?.length || 1);
    if (before && before.state !== told.state && told.steps) play(tile);
  }
  tile.words.classList.toggle("strong", told.recovered === true);
  tile.words.replaceChildren(element("b", {}, page.nameOf(told.attack)), shortWords(told));
}

export function guessOf(card, told) {
  const [id, attack] = [card.id, told.attack].map(encodeURIComponent);
  if (told.stamp && told.worker) return `/so-far/${encodeURIComponent(told.worker)}/${id}/${card.image}.${ending()}?of=${told.stamp}`;
  const beside = page.scale.modality === "image" ? "" : `place=${card.image}&`;
  if (told.stamp && told.guess !== null && told.guess !== undefined) return `/film/${id}/${attack}/${told.guess}.${ending()}?${beside}of=${told.stamp}`;
  return null;
}

export function stateWords(told) {
  if (told.state === "waiting") return "waiting";
  if (told.state === "running") return told.step === null || told.step === undefined ? "at work" : `at work, step ${told.step}`;
  if (told.state === "failed") return told.reason ? `failed: ${told.reason}` : "failed";
  if (told.value === null || told.value === undefined) return told.labels === null || told.labels === undefined ? "no guess" : `${percent(told.labels)} of labels`;
  return page.scale.written(told.value) + (told.state === "unfinished" ? ", out of time" : "");
}

const placeWords = (told) => ({ waiting: "waiting", running: "", failed: "failed" })[told.state] ?? `no ${page.scale.noun}`;

function shortWords(told) {
  if (told.state === "running") return told.step ? `step ${told.step}` : "at work";
  if (told.state === "waiting" || told.state === "failed") return "";
  return stateWords(told);
}
