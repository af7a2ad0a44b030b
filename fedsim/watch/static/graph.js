// The federation: who speaks to whom, where the adversary sits, what it hears, what it got of whom.

import { byId, drawn, element, say, show } from "./dom.js";

const SERVER = -1, STRONGEST_DB = 60, SIDE = 440, MOST_LOOKS = 400000;
let shown = null, scale = null, nodes = new Map();

export function drawGraph(page, choose) {
  const graph = page.graph;
  show("federation", Boolean(graph));
  if (!graph) return;
  if (shown !== graph || scale !== page.scale) {
    [shown, scale] = [graph, page.scale];
    build(graph, page, choose);
    const more = graph.left_out ? ` ${graph.left_out} more clients are not drawn.` : "";
    say("graph-note", graph.note + more);
  }
  colour(graph, page);
}

function build(graph, page, choose) {
  const room = SIDE / 2 - 24;
  const across = Math.max(5, Math.min(30, 0.62 * nearest(graph.nodes) * room, 1.5 * room / Math.sqrt(graph.nodes.length)));
  const place = (one) => (one === SERVER ? [0, 0] : graph.nodes[one].map((value) => value * room));
  const flat = graph.nodes.length ? Math.max(...graph.nodes.map((one) => Math.abs(one[1]))) : 1;
  const tall = 2 * Math.max(flat * room, 60) + 48;
  const places = graph.nodes.map((_, one) => place(one));
  const parts = [
    drawn("path", { class: "links", d: lines(graph.links, place, places, across), "stroke-width": thin(graph) }),
    drawn("path", { class: "heard", d: lines(graph.heard, place, places, across), "stroke-width": Math.max(1, thin(graph)) }),
  ];
  if (graph.taps && graph.heard.length <= 60) {
    parts.push(...graph.heard.map((link) => tap(place(link[0]), place(link[1]))));
  }
  nodes = new Map();
  for (const one of [...graph.nodes.keys(), ...(graph.server ? [SERVER] : [])]) {
    const [x, y] = place(one), wide = one === SERVER ? 40 : across;
    const own = graph.own.includes(one);
    const mark = own || one === SERVER
      ? drawn("rect", { x: x - wide / 2, y: y - wide / 2, width: wide, height: wide, rx: one === SERVER ? 3 : 0 })
      : drawn("circle", { cx: x, cy: y, r: wide / 2 });
    mark.classList.add("node", ...(own ? ["own"] : []), ...(one === SERVER ? ["server"] : []));
    const name = drawn("title");
    mark.append(name);
    const words = one === SERVER ? "server" : String(one);
    const size = one === SERVER ? 11 : Math.min(0.5 * across, (1.25 * across) / words.length);
    const label = size >= 5 ? drawn("text", { x, y, "font-size": size.toFixed(1) }, words) : null;
    if (one !== SERVER && !own) {
      mark.classList.add("victim");
      mark.addEventListener("click", () => choose(one));
    }
    nodes.set(one, { mark, name, label });
    parts.push(drawn("g", {}, mark, label));
  }
  const picture = drawn("svg", { role: "img", viewBox: `${-SIDE / 2} ${-tall / 2} ${SIDE} ${tall}`, "aria-label": graph.note }, ...parts);
  byId("graph").replaceChildren(picture, keys(graph, page));
}

function colour(graph, page) {
  const best = page.best || {}, active = new Set(page.state?.active || []);
  const guess = Math.max(0, ...Object.values(page.attacks || {}).map((row) => scale.shown(row.baseline) || 0));
  for (const [one, { mark, name, label }] of nodes) {
    if (one === SERVER) {
      name.textContent = "the server";
      continue;
    }
    const value = best[one];
    const share = value === undefined ? null : Math.max(0, Math.min(1, (scale.shown(value) - guess) / Math.max(1, strongest() - guess)));
    mark.style.fill = share === null ? "var(--grid)" : `color-mix(in srgb, var(--c0) ${Math.round(10 + 90 * share)}%, var(--paper))`;
    mark.classList.toggle("active", page.state?.live === true && active.has(one) && label !== null && !mark.classList.contains("own"));
    label?.classList.toggle("on", share !== null && share > 0.5);
    name.textContent = `${page.run?.peers ? "peer" : "client"} ${one}: ${value === undefined ? "nothing recovered yet" : `best ${scale.noun} ${scale.written(value)}`}`;
  }
}

const strongest = () => scale.most ?? STRONGEST_DB;

const thin = (graph) => Math.max(0.5, Math.min(1.5, 14 / Math.sqrt(1 + graph.links.length + graph.heard.length)));

function lines(links, place, places, across) {
  const careful = links.length * places.length <= MOST_LOOKS;
  return links.map(([one, other]) => {
    const [start, end] = [place(one), place(other)];
    const top = careful ? around(start, end, places, across) : null;
    return `M${start.map(short)}${top ? `Q${top.map(short)} ` : "L"}${end.map(short)}`;
  }).join("");
}

// a link that would run through a node leaves its straight line, towards the middle
function around(start, end, places, across) {
  const way = [end[0] - start[0], end[1] - start[1]], length = Math.hypot(...way) || 1;
  const inTheWay = places.some(([x, y]) => {
    const along = ((x - start[0]) * way[0] + (y - start[1]) * way[1]) / length;
    const beside = Math.abs((x - start[0]) * way[1] - (y - start[1]) * way[0]) / length;
    return along > across / 2 && along < length - across / 2 && beside < 1;
  });
  if (!inTheWay) return null;
  const middle = [(start[0] + end[0]) / 2, (start[1] + end[1]) / 2];
  let aside = [-way[1] / length, way[0] / length];
  if (aside[0] * middle[0] + aside[1] * middle[1] > 1) aside = aside.map((value) => -value);
  return middle.map((value, axis) => value + 2 * across * aside[axis]);
}

const short = (value) => value.toFixed(1);

function tap(start, end) {
  const [x, y] = [0.55 * start[0] + 0.45 * end[0], 0.55 * start[1] + 0.45 * end[1]];
  return drawn("rect", { class: "tap", x: x - 4, y: y - 4, width: 8, height: 8 });
}

function nearest(places) {
  let least = 1;
  for (let one = 0; one < places.length; one++) {
    for (let other = one + 1; other < places.length; other++) {
      least = Math.min(least, Math.hypot(places[one][0] - places[other][0], places[one][1] - places[other][1]));
    }
  }
  return least;
}

function keys(graph, page) {
  const key = (mark, words) => element("span", {}, drawn("svg", { viewBox: "0 0 16 16", "aria-hidden": "true" }, mark), words);
  const found = [];
  if (graph.own.length || graph.taps) {
    const square = graph.own.length ? drawn("rect", { x: 3, y: 3, width: 10, height: 10, fill: "none", stroke: "var(--warn)", "stroke-width": 2 }) : drawn("rect", { x: 4, y: 4, width: 8, height: 8, fill: "var(--warn)" });
    found.push(key(square, graph.own.length ? "adversary" : "tap"));
  }
  if (graph.heard.length) found.push(key(drawn("path", { d: "M0 8H16", stroke: "var(--warn)", "stroke-width": 2 }), "link it hears"));
  found.push(element("span", {}, `best ${scale.noun}:`, element("span", { class: "bar", "aria-hidden": "true" }), `a guess to ${strongest()} ${scale.unit}${scale.most ? "" : " and more"}`));
  return element("div", { class: "keys" }, ...found);
}
