// Listens to the run and keeps the page up to date; goes on by itself when the server comes back.

import { drawCurves } from "./charts.js";
import { byId, count, duration, element, number, percent, say, scaleOf, show, whole } from "./dom.js";
import { chooseVictim, drawVictims, forgetCards, openGallery, refreshSoon, refresh } from "./gallery.js";
import { drawGraph } from "./graph.js";
import { openSpotlight } from "./spotlight.js";
import { drawTraffic } from "./traffic.js";

const SILENT_MS = 35000, AGAIN_MS = 1500;
const SECTIONS = ["run", "state", "headline", "attacks", "best", "graph", "events", "stamp", "traffic"];

const page = {
  reading: "",
  rounds: new Map(),
  points: new Map(),
  scale: scaleOf(null),
  seriesOf(attack) {
    const named = (page.run?.attacks || []).findIndex(([name]) => name === attack);
    return named >= 0 ? named : (page.run?.attacks || []).length + [...page.points.keys()].indexOf(attack);
  },
  nameOf(attack) {
    const words = (page.run?.attacks || []).find(([name]) => name === attack)?.[1];
    return words ? `${attack} (${words})` : attack;
  },
};
const spotlight = openSpotlight(page);
openGallery(page, spotlight);

// what is told

function take(told) {
  if (told.full) {
    page.rounds.clear();
    page.points.clear();
    for (const name of SECTIONS) delete page[name];
    if (page.reading !== told.reading) {
      forgetCards();
      spotlight.forget();
    }
  }
  page.reading = told.reading;
  for (const name of SECTIONS) if (name in told) page[name] = told[name];
  if (told.run?.scale.modality !== undefined && told.run.scale.modality !== page.scale.modality) measureBy(told.run.scale);
  for (const [at, ...row] of told.rounds) page.rounds.set(at, row);
  for (const [attack, rows] of Object.entries(told.points)) {
    if (!page.points.has(attack)) page.points.set(attack, new Map());
    for (const [at, ...row] of rows) page.points.get(attack).set(at, row);
  }
  draw(told);
}

function measureBy(scale) {
  page.scale = scaleOf(scale);
  forgetCards();
  spotlight.forget();
  refreshSoon();
  const notes = {
    image: "PSNR is measured image by image; higher is closer, and 120 dB stands for equal.",
    text: "Every guess is compared with the private text that it is paired with, token by token; special tokens and pads count for nothing.",
    table: "Every guess is compared with the private row that it is paired with: a category is right if it is the same, a number if it is off by no more than the tolerance.",
  };
  say("about", `No attack sees the private ${scale.nouns}; they are shown here beside the guesses, from the sealed truth of the run. Whoever can open this page sees them too. ${notes[scale.modality]}`);
}

function draw(told) {
  drawHead();
  drawFigures();
  drawVictims();
  drawGraph(page, chooseVictim);
  if (told.full || told.rounds.length || Object.keys(told.points).length || told.attacks) drawCurves(page);
  if (told.full || told.traffic) drawTraffic(page);
  drawAttacks();
  if (told.events) drawEvents();
  if (told.full) refresh();
  else if (told.stamp || told.state) refreshSoon();
}

function drawHead() {
  const { run, state } = page;
  say("headline", page.headline || "Waiting for the run to begin.");
  say("name", run?.name ? [run.id, run.peers, run.threat, run.defense && `defense ${run.defense}`].filter(Boolean).join(", ") : run?.id || "fedsim watch");
  const empty = "This page fills by itself, as soon as the run writes its first records.";
  say("description", run?.name ? run.description : empty);
  const [round, total] = [state?.round ?? 0, run?.rounds || 0];
  document.title = run?.name ? `${state?.live ? `${round}/${total} ` : ""}${run.id}` : "fedsim watch";
  show("track", total > 0 && state?.live === true);
  byId("track").setAttribute("aria-valuemax", total);
  byId("track").setAttribute("aria-valuenow", round);
  byId("fill").style.width = `${Math.min(100, (100 * round) / Math.max(1, total))}%`;
  drawBadge();
}

function drawBadge() {
  const badge = byId("badge"), { state } = page;
  const lost = source === null || source.readyState !== EventSource.OPEN;
  const quiet = state?.quiet_s ? `, nothing new for ${duration(state.quiet_s)}` : "";
  const words = lost ? "connection lost, trying again" : state?.reading ? "reading the records" : (state?.stage || "connecting") + quiet;
  say("badge", words);
  badge.classList.toggle("bad", lost || ["failed", "interrupted"].includes(state?.stage));
  badge.classList.toggle("live", !lost && state?.live === true && !quiet);
}

function drawFigures() {
  const { run, state, scale } = page;
  show("figures", Boolean(run?.name));
  if (!run?.name) return;
  const rounds = [...page.rounds.entries()].sort((one, other) => other[0] - one[0]);
  const evaluated = rounds.find(([, row]) => row[0] !== null)?.[1];
  const best = strongest();
  const pace = state.seconds_per_round === null ? "" : `${duration(state.seconds_per_round)} each`;
  const left = state.live && state.left_s ? `, about ${duration(state.left_s)} left` : "";
  const seconds = Object.values(page.attacks || {}).filter((row) => row.seconds !== null);
  const done = seconds.reduce((sum, row) => sum + row.done + row.unfinished + row.failed + row.unscored, 0);
  const spent = seconds.reduce((sum, row) => sum + row.seconds * (row.done + row.unfinished + row.failed + row.unscored), 0);
  const figures = [
    ["Round", state.round === null ? "\u2013" : `${state.round} of ${run.rounds}`, pace + left],
    ["Accuracy", percent(evaluated?.[0]), evaluated && evaluated[1] !== null ? `loss ${number(evaluated[1])}` : ""],
    [`${scale.nouns[0].toUpperCase()}${scale.nouns.slice(1)} recovered`, best ? `${whole(best[1].recovered)} of ${whole(best[1].images)}` : "\u2013", best ? `by ${page.nameOf(best[0])}, median ${scale.written(best[1].median)}` : `${count(state.heard, "update")} heard`],
    ["Attacks", `${whole(state.done)} done`, state.live ? `${state.running} at work, ${whole(state.waiting)} waiting` : state.waiting ? `${whole(state.waiting)} not made` : "none left"],
    ["Speed", state.per_minute ? `${state.per_minute} a minute` : done ? `${duration(spent / done)}` : "\u2013", state.per_minute ? `${duration(done ? spent / done : null)} of work each` : done ? "of work for each attack" : "no attack is done yet"],
  ].filter(([name]) => name !== "Speed" || state.live || done);  // a run that ended without attacks has none
  byId("figures").replaceChildren(...figures.map(([name, value, note]) =>
    element("div", {}, element("dt", {}, name), element("dd", {}, value, element("small", {}, note)))));
}

function strongest() {
  const rows = Object.entries(page.attacks || {}).filter(([, row]) => row.images);
  const plain = rows.filter(([name]) => !/oracle/.test((page.run?.attacks || []).find(([one]) => one === name)?.[1] || ""));
  const rank = ([, row]) => row.recovered / row.images + (row.median || 0) / 1e6;
  return (plain.length ? plain : rows).sort((one, other) => rank(other) - rank(one))[0] || null;
}

function drawAttacks() {
  const { run, state } = page, rows = page.attacks || {};
  const names = [...new Set([...(run?.attacks || []).map(([name]) => name), ...Object.keys(rows)])];
  show("attacking", names.length > 0);
  byId("working").replaceChildren(...(state?.working || []).map((one) => {
    const among = one.num_victims > 1 ? `${one.num_victims} victims together` : one.victims[0];
    const step = one.step ? `, step ${one.step}` : "";
    return element("li", {}, element("span", {}, page.nameOf(one.attack), " ", element("small", {}, `on ${among}, round ${one.round}${step}`)));
  }));
  const heads = ["Attack", "Done", "Recovered", "Median", "Best", "Each"];
  const cells = names.map((name) => {
    const row = rows[name];
    const failed = row?.failed ? element("small", { class: "bad" }, `${whole(row.failed)} failed`) : null;
    const unscored = row?.unscored ? element("small", {}, `${whole(row.unscored)} unscored`) : null;
    const ended = row ? row.done + row.unfinished + row.failed + row.unscored : 0;
    const got = !row ? "\u2013" : row.images ? `${whole(row.recovered)} of ${whole(row.images)}` : row.labels === null ? "\u2013" : `${percent(row.labels)} of labels`;
    return element("tr", {},
      element("th", { scope: "row" }, page.nameOf(name)),
      element("td", { class: "right" }, whole(ended), failed, unscored),
      element("td", { class: "right" }, got),
      element("td", { class: "right" }, page.scale.written(row?.median)),
      element("td", { class: "right" }, page.scale.written(row?.best)),
      element("td", { class: "right" }, ended ? duration(row.seconds) : "\u2013"));
  });
  const head = element("thead", {}, element("tr", {}, ...heads.map((one, place) => element("th", { class: place ? "right" : "", scope: "col" }, one))));
  byId("attacks").replaceChildren(head, element("tbody", {}, ...cells));
}

function drawEvents() {
  const { total, newest } = page.events;
  show("happened", Boolean(page.run?.name));
  say("num-events", total > newest.length ? `${total}, the newest ${newest.length}` : total ? String(total) : "none");
  byId("events").replaceChildren(...newest.map((event) => element("li", {},
    element("small", {}, `${event.time.slice(0, 19).replace("T", " ")} ${event.kind}`), event.message)));
}

// listening

let source = null, silence = null, later = null;

function listen() {
  clearTimeout(later);
  source?.close();
  source = new EventSource("/events");
  source.onopen = alive;
  source.onmessage = (event) => {
    alive();
    take(JSON.parse(event.data));
  };
  source.addEventListener("ping", alive);
  source.onerror = () => {
    drawBadge();
    // the browser tries again by itself, unless the answer was none of ours
    if (source?.readyState === EventSource.CLOSED) again();
  };
  alive();
}

function alive() {
  clearTimeout(silence);
  silence = setTimeout(again, SILENT_MS);
  drawBadge();
}

function again() {
  clearTimeout(later);
  later = setTimeout(listen, AGAIN_MS);
}

document.addEventListener("visibilitychange", () => {
  if (document.hidden) {
    clearTimeout(silence);
    clearTimeout(later);
    source?.close();
    source = null;
  } else if (source === null) {
    listen();
  }
});
listen();
