// Films: every look of an attack at one image, text or row, of which one is seen at a time.

import { calm, element, percent, whole } from "./dom.js";

const FRAME_MS = 110, SMOOTH_FROM = 96, FEW_FEATURES = 16;
const MARKS = new Set(["hit", "near", "miss"]);

export function filmOf(tag, box = element(tag, { class: "film" })) {
  return { box, image: null, told: null, address: null, frames: 1, frame: 0, playing: null, most: Infinity };
}

export function empty(film, words) {
  stop(film);
  [film.image, film.told, film.address, film.frames] = [null, null, null, 1];
  film.box.classList.add("none");
  film.box.classList.remove("told");
  film.box.replaceChildren(element("span", { class: "state" }, words));
}

export function setFilm(film, address, frames) {
  stop(film);
  film.box.classList.remove("none");
  if (/\.json(\?|$)/.test(address)) setTold(film, address);
  else setPicture(film, address, frames);
  film.frames = frames;
  seek(film, frames - 1);
}

export function seek(film, frame) {
  film.frame = frame;
  if (film.told) {
    film.box.replaceChildren(rendered(film.told, frame, film.most));
  } else if (film.image) {
    film.image.style.width = `${100 * film.frames}%`;
    film.image.style.left = `${-100 * frame}%`;
  }
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

// pictures: all looks lie side by side in one

function setPicture(film, address, frames) {
  if (film.image?.dataset.address === address) return;
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

function fit(film, image, frames) {
  const wide = image.naturalWidth / frames;
  film.box.style.aspectRatio = `${wide} / ${image.naturalHeight}`;
  film.box.classList.toggle("squares", Math.max(wide, image.naturalHeight) < SMOOTH_FROM);
}

// texts and rows: asked for when they come into view; what was there stays until they are

const shown = new WeakMap();
const eyes = new IntersectionObserver((found) => {
  for (const one of found.filter((each) => each.isIntersecting)) {
    eyes.unobserve(one.target);
    ask(shown.get(one.target));
  }
}, { rootMargin: "300px" });

function setTold(film, address) {
  if (film.address === address) return;
  film.address = address;
  film.box.classList.add("told");
  film.box.style.aspectRatio = "";
  if (!film.told) film.box.replaceChildren();
  shown.set(film.box, film);
  eyes.unobserve(film.box);
  eyes.observe(film.box);
}

async function ask(film) {
  const { address } = film;
  try {
    const answer = await fetch(address);
    if (film.address !== address || answer.status === 204) return; // its job has just ended
    if (!answer.ok) {
      film.told = null;
      film.box.replaceChildren(element("span", { class: "state" }, "not there"));
      return;
    }
    const told = await answer.json();
    if (film.address !== address) return;
    film.told = told;
    seek(film, film.frame);
  } catch {
    if (film.address === address) film.address = null; // the server is away; asked again when it is back
  }
}

function rendered(told, frame, most) {
  const place = Math.min(frame, told.frames.length - 1);
  return told.names === null ? sentence(told.frames[place], told.more[place]) : features(told, place, most);
}

function sentence(pieces, more) {
  const parts = pieces.flatMap(([word, mark, apart], place) => [apart && place ? " " : null, marked(word, mark)]);
  const rest = more ? element("small", {}, ` and ${whole(more)} more`) : null;
  return element("span", { class: "sentence", dir: "auto" }, ...(parts.length ? parts : ["\u2013"]), rest);
}

function features({ names, frames, more }, frame, most) {
  const cells = frames[frame], rest = cells.slice(most), wrong = rest.filter(([, mark]) => mark === "miss").length;
  const left = rest.length + more[frame];
  const rows = cells.slice(0, most).flatMap(([value, mark, sure], place) => [
    element("span", {}, names[place] ?? `feature ${place}`),
    element("span", { class: "right" }, marked(value, mark), sure === null ? null : element("small", {}, ` ${percent(Math.round(100 * sure) / 100)}`)),
  ]);
  const last = left ? element("small", {}, `and ${whole(left)} more${wrong ? `, ${whole(wrong)} of them wrong` : ""}`) : null;
  return element("span", { class: "features" }, ...rows, last);
}

export const marked = (word, mark) => (MARKS.has(mark) ? element("mark", { class: mark }, word) : word);

export const FEW = { text: Infinity, table: FEW_FEATURES, image: Infinity };
