// What crossed tapped links: one bar for each burst, as high as its size, and sums by link.

import { byId, drawn, duration, element, say, show, size, whole } from "./dom.js";

const TALL = 96, FOOT = 16;
let told = null;

export function drawTraffic(page) {
  told = page.traffic;
  show("traffic", Boolean(told));
  if (!told) return;
  const all = [...told.links, told.further];
  const bursts = all.reduce((sum, link) => sum + link.bursts, 0);
  const hidden = all.reduce((sum, link) => sum + link.encrypted, 0);
  const what = hidden === bursts
    ? "All of it is encrypted: whoever listens here learns sizes and times, and nothing else."
    : hidden
      ? `Of ${whole(bursts)} bursts, ${whole(hidden)} are encrypted, of which sizes and times are all there is to learn; the others are read.`
      : "Nothing of it is encrypted: models and updates are rebuilt from it, and attacked.";
  const more = told.left_out ? ` ${whole(told.left_out)} lines that make no sense are left out.` : "";
  say("traffic-note", what + more);
  drawBursts();
  drawLinks();
}

addEventListener("resize", () => told && drawBursts());

function drawBursts() {
  const box = byId("bursts"), width = box.clientWidth;
  if (!width) return;
  const end = Math.max(1, ...told.bursts.map(([at]) => at));
  const least = 10, most = Math.max(least * 10, ...told.bursts.map(([, , bytes]) => bytes));
  const bars = told.bursts.map(([at, way, bytes]) => {
    const high = Math.max(2, ((TALL - FOOT) * Math.log(Math.max(1, bytes / least))) / Math.log(most / least));
    return drawn("rect", { class: way, x: (2 + (at / end) * (width - 6)).toFixed(1), y: (TALL - FOOT - high).toFixed(1), width: 2, height: high.toFixed(1) });
  });
  const foot = drawn("line", { class: "grid", x1: 0, x2: width, y1: TALL - FOOT, y2: TALL - FOOT });
  const words = drawn("text", { x: width, y: TALL - 2, "text-anchor": "end" }, duration(end));
  const picture = drawn("svg", { role: "img", viewBox: `0 0 ${width} ${TALL}`, "aria-label": `The newest ${told.bursts.length} bursts over ${duration(end)}; the table has sums.` }, foot, ...bars, words);
  const key = (way, text) => element("span", {}, element("span", { class: `swatch ${way}` }), text);
  const keys = element("div", { class: "both" }, key("up", "from the client"), key("down", "to the client"), `up to ${size(most)}, heights by powers of ten`);
  box.replaceChildren(keys, picture);
}

function drawLinks() {
  const heads = ["Link", "From the client", "To the client", "Bursts", "Heard"];
  const further = { ...told.further, name: `${whole(told.further.links)} further links` };
  const rows = [...told.links, ...(told.further.links ? [further] : [])].map((link) => element("tr", {},
    element("th", { scope: "row" }, link.name),
    element("td", { class: "right" }, size(link.up)),
    element("td", { class: "right" }, size(link.down)),
    element("td", { class: "right" }, whole(link.bursts)),
    element("td", {}, link.encrypted === link.bursts ? "sizes and times" : link.encrypted ? "in part" : "everything")));
  const head = element("thead", {}, element("tr", {}, ...heads.map((one, place) => element("th", { class: place && place < 4 ? "right" : "", scope: "col" }, one))));
  byId("links").replaceChildren(head, element("tbody", {}, ...rows));
}
