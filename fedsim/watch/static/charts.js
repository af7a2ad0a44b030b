// Curves over rounds: a line, its band from worst to best, and what it must be compared with.

import { byId, colourOf, drawn, element, number, percent, say } from "./dom.js";

const LEFT = 40, RIGHT = 10, TOP = 8, FOOT = 22, MOST_DOTS = 40;
const panels = new Map();

export function drawCurves(page) {
  const wanted = wantedPanels(page);
  byId("curves").hidden = wanted.length === 0;
  drawLegend(page);
  const first = Math.min(1, ...minmax([...page.rounds.keys()]));
  const leaks = wanted.some((panel) => ["leak", "labels"].includes(panel.key));
  say("curves-name", leaks ? "Leakage and utility" : "Utility");
  const names = new Set(wanted.map((panel) => panel.key));
  for (const [key, panel] of panels) {
    if (!names.has(key)) {
      panel.box.remove();
      panels.delete(key);
    }
  }
  for (const [place, one] of wanted.entries()) {
    if (!panels.has(one.key)) panels.set(one.key, newPanel(one.key));
    const panel = panels.get(one.key);
    const main = leaks && place === 0;
    panel.box.classList.toggle("main", main);
    const height = main ? Math.max(260, 178 * (wanted.length - 1) - 68) : leaks ? 110 : 150;
    panel.wanted = { ...one, height, first, last: page.run?.rounds || 1 };
    byId("panels").append(panel.box);
    draw(panel);
  }
}

// the width of a panel changes with that of the window, and with what stands beside it
const widths = new ResizeObserver((found) => {
  const boxes = new Set(found.map((one) => one.target));
  [...panels.values()].filter((panel) => panel.wanted && boxes.has(panel.box)).forEach(draw);
});

function wantedPanels(page) {
  const attacks = attacksOf(page), { scale } = page;
  const curves = attacks.map((attack) => ({
    name: page.nameOf(attack),
    colour: colourOf(page.seriesOf(attack)),
    points: sorted(page.points.get(attack)).map(([at, row]) => {
      const [value, low, high] = row.slice(0, 3).map(page.scale.shown);
      return { at, value, low, high };
    }),
  }));
  const onImages = curves.filter((curve) => curve.points.some((point) => point.value !== null));
  const labels = attacks
    .map((attack) => ({
      name: page.nameOf(attack),
      colour: colourOf(page.seriesOf(attack)),
      points: sorted(page.points.get(attack)).map(([at, row]) => ({ at, value: row[4] })),
      plain: page.attacks?.[attack]?.images,
    }))
    .filter((curve) => !curve.plain && curve.points.some((point) => point.value !== null));
  const measured = (place, spread) => [{
    name: "",
    colour: "ink",
    points: sorted(page.rounds)
      .filter(([, row]) => row[place] !== null)
      .map(([at, row]) => ({ at, value: row[place], low: spread ? row[4] : null, high: spread ? row[5] : null })),
  }];
  return [
    { key: "leak", title: `${scale.title}, ${scale.unit}: median, worst to best`, curves: onImages, rules: rulesOf(page), most: scale.most, words: scale.inUnit },
    { key: "labels", title: "labels found, share", curves: labels, most: 1, words: percent },
    { key: "accuracy", title: "accuracy", curves: measured(0, true), most: 1, words: percent },
    { key: "loss", title: "loss", curves: measured(1), words: number },
    { key: "consensus", title: "consensus distance", curves: measured(2), words: number },
    { key: "epsilon", title: "epsilon given away", curves: measured(3), words: number },
  ].filter((panel) => panel.curves.some((curve) => curve.points.length));
}

function rulesOf(page) {
  const rows = Object.values(page.attacks || {}).filter((row) => row.images);
  const rules = [], { scale } = page;
  const guess = middle(rows.map((row) => row.baseline).filter((value) => value !== null));
  const threshold = middle(rows.map((row) => row.threshold).filter((value) => value !== null));
  if (guess !== null) rules.push([`data mean ${scale.written(guess)}`, scale.shown(guess)]);
  if (threshold !== null) rules.push([`counts as recovered, ${number(scale.shown(threshold))} ${scale.unit}`, scale.shown(threshold)]);
  return rules;
}

const middle = (values) => (values.length ? values.sort((a, b) => a - b)[values.length >> 1] : null);

const attacksOf = (page) => [...page.points.keys()].sort((one, other) => page.seriesOf(one) - page.seriesOf(other));

const sorted = (map) => [...map.entries()].sort((one, other) => one[0] - other[0]);

function drawLegend(page) {
  const names = attacksOf(page).map((attack) => [page.nameOf(attack), colourOf(page.seriesOf(attack))]);
  byId("legend").replaceChildren(...names.map(([name, colour]) =>
    element("span", {}, element("span", { class: `swatch ${colour}` }), name)));
}

function newPanel(key) {
  const title = element("h3"), tip = element("div", { class: "tip", hidden: "" });
  const picture = drawn("svg", { role: "img" });
  const box = element("div", { class: "panel", id: `panel-${key}` }, title, picture, tip);
  const panel = { box, title, picture, tip, wanted: null };
  widths.observe(box);
  picture.addEventListener("pointermove", (event) => point(panel, event));
  picture.addEventListener("pointerleave", () => point(panel, null));
  return panel;
}

function draw(panel) {
  const { title, curves, rules = [], most, height, first, last, words } = panel.wanted;
  const width = panel.box.clientWidth;
  if (!width) return;
  panel.title.textContent = title;
  const points = curves.flatMap((curve) => curve.points);
  const values = [...points.flatMap((p) => [p.value, p.low, p.high]), ...rules.map((rule) => rule[1])].filter(isThere);
  const low = Math.min(0, ...minmax(values)), high = most || 1.08 * Math.max(...minmax(values)) || 1;
  const end = Math.max(last, ...minmax(points.map((p) => p.at))), begin = first;
  const x = (at) => LEFT + ((at - begin) / Math.max(1, end - begin)) * (width - LEFT - RIGHT);
  const y = (value) => TOP + (1 - (value - low) / (high - low || 1)) * height;
  panel.scale = { x, begin, end, width, height };
  const parts = [];
  for (const value of ticks(low, high, Math.max(2, height / 50))) {
    parts.push(drawn("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: y(value), y2: y(value) }));
    parts.push(drawn("text", { x: LEFT - 8, y: y(value) + 4, "text-anchor": "end" }, number(value)));
  }
  for (const at of ticks(begin, end, width / 80).filter(Number.isInteger)) {
    parts.push(drawn("text", { x: x(at), y: height + TOP + FOOT - 6, "text-anchor": "middle" }, String(at)));
  }
  for (const [, value] of rules) {
    parts.push(drawn("line", { class: "rule", x1: LEFT, x2: width - RIGHT, y1: y(value), y2: y(value) }));
  }
  for (const curve of curves) parts.push(drawCurve(curve, x, y));
  for (const [name, value] of rules) {
    parts.push(drawn("text", { class: "level", x: width - RIGHT, y: y(value) - 5, "text-anchor": "end" }, name));
  }
  panel.cursor = drawn("line", { class: "cursor", y1: TOP, y2: height + TOP, visibility: "hidden" });
  panel.picture.setAttribute("height", height + TOP + FOOT);
  panel.picture.setAttribute("viewBox", `0 0 ${width} ${height + TOP + FOOT}`);
  const newest = curves.map((curve) => curve.points.filter((p) => isThere(p.value)).at(-1));
  const told = curves.map((curve, place) => newest[place] && `${curve.name} ${words(newest[place].value)} in round ${newest[place].at}`);
  panel.picture.setAttribute("aria-label", `${title}. ${told.filter(Boolean).join("; ")}`);
  panel.picture.replaceChildren(...parts, panel.cursor);
}

const isThere = (value) => value !== null && value !== undefined;

// spreading long lists over arguments would overflow the stack
function minmax(values) {
  let low = Infinity, high = -Infinity;
  for (const value of values) {
    low = Math.min(low, value);
    high = Math.max(high, value);
  }
  return low <= high ? [low, high] : [];
}

function drawCurve(curve, x, y) {
  const there = curve.points.filter((p) => isThere(p.value));
  const place = (p, value) => `${x(p.at).toFixed(1)},${y(value).toFixed(1)}`;
  const group = drawn("g", { class: curve.colour });
  const banded = there.filter((p) => isThere(p.low) && p.high > p.low);
  if (banded.length > 1) {
    const up = banded.map((p) => place(p, p.high)), down = banded.map((p) => place(p, p.low)).reverse();
    group.append(drawn("polygon", { class: "band", points: [...up, ...down].join(" ") }));
  }
  group.append(drawn("polyline", { class: "line", points: there.map((p) => place(p, p.value)).join(" ") }));
  if (there.length <= MOST_DOTS) {
    group.append(...there.map((p) => drawn("circle", { class: "dot", cx: x(p.at), cy: y(p.value), r: 3 })));
  }
  return group;
}

function ticks(low, high, most) {
  const rough = (high - low) / Math.max(1, most), power = 10 ** Math.floor(Math.log10(rough || 1));
  const step = [1, 2, 5, 10].map((one) => one * power).find((one) => one >= rough) || 1;
  const found = [];
  for (let k = Math.ceil(low / step); k * step <= high + 1e-9 * step; k++) found.push(Number((k * step).toPrecision(12)));
  return found;
}

function point(panel, event) {
  const { scale, tip, cursor, wanted } = panel;
  tip.hidden = event === null;
  cursor?.setAttribute("visibility", event === null ? "hidden" : "visible");
  if (event === null || !scale) return;
  const across = event.clientX - panel.picture.getBoundingClientRect().left;
  const all = wanted.curves.flatMap((curve) => curve.points.map((p) => p.at));
  const at = all.reduce((best, one) => (Math.abs(scale.x(one) - across) < Math.abs(scale.x(best) - across) ? one : best), all[0]);
  const lines = wanted.curves
    .map((curve) => [curve, curve.points.find((p) => p.at === at)])
    .filter(([, p]) => p && isThere(p.value))
    .map(([curve, p]) => element("div", { class: curve.colour }, `${curve.name} ${wanted.words(p.value)}`.trim()));
  tip.replaceChildren(element("b", {}, `round ${at}`), ...lines);
  for (const name of ["x1", "x2"]) cursor.setAttribute(name, scale.x(at));
  const right = scale.x(at) > scale.width / 2;
  tip.style.left = right ? "auto" : `${scale.x(at) + 10}px`;
  tip.style.right = right ? `${scale.width - scale.x(at) + 10}px` : "auto";
}
