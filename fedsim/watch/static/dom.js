// Elements without markup: every text of a run becomes a text node, and nothing else.

const SVG = "http://www.w3.org/2000/svg";

export const byId = (id) => document.getElementById(id);

export function element(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

export function drawn(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(made, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

export function say(id, text) {
  const there = byId(id);
  if (there.textContent !== text) there.textContent = text;
}

export function show(id, whether) {
  byId(id).hidden = !whether;
}

// words

const NOTHING = "\u2013";
const SPACE = "\u00a0";
const there = (value) => value !== null && value !== undefined;

export const percent = (value) => (there(value) ? (100 * value).toFixed(1).replace(/\.0$/, "") + SPACE + "%" : NOTHING);

// how close guesses come: `told` is a scale of fedsim.quality, that of images if there is none
export function scaleOf(told) {
  const scale = told || { modality: "image", title: "PSNR", unit: "dB", noun: "image", nouns: "images", part: "", factor: 1, most: null };
  const shown = (value) => (there(value) ? scale.factor * value : null);
  const inUnit = (value) => {
    const digits = value.toFixed(1);
    return (scale.part ? digits.replace(/\.0$/, "") : digits) + SPACE + scale.unit;
  };
  const written = (value) => (there(value) ? inUnit(shown(value)) : NOTHING);
  return { ...scale, shown, inUnit, written };
}

export const number = (value, digits = 3) => (there(value) ? String(Number(value.toPrecision(digits))) : NOTHING);

export const whole = (value) => value.toLocaleString("en");

export const count = (amount, one) => `${whole(amount)} ${amount === 1 ? one : one + "s"}`;

export function duration(seconds) {
  if (!there(seconds)) return NOTHING;
  if (seconds < 60) return seconds.toFixed(seconds < 1 ? 2 : seconds < 10 ? 1 : 0) + SPACE + "s";
  const minutes = Math.round(seconds / 60);
  if (minutes < 60) return minutes + SPACE + "min";
  return Math.floor(minutes / 60) + SPACE + "h" + SPACE + String(minutes % 60).padStart(2, "0") + SPACE + "min";
}

export function size(bytes) {
  const units = ["B", "kB", "MB", "GB"];
  let place = 0;
  for (; place < 3 && bytes >= 1000; place++) bytes /= 1000;
  return bytes.toFixed(place === 0 || bytes >= 100 ? 0 : 1) + SPACE + units[place];
}

export const colourOf = (series) => `c${((series % 8) + 8) % 8}`;

export const calm = () => matchMedia("(prefers-reduced-motion: reduce)").matches;
