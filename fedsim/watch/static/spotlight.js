// One image, text or row, large: how its reconstruction comes about beside the original.

import { byId, calm, say, show } from "./dom.js";
import { filmOf, seek, setFilm } from "./films.js";
import { guessOf, showOriginal, stateWords } from "./gallery.js";

const FRAME_MS = 260, HOLD_MS = 3500;

export function openSpotlight(page) {
  const original = filmOf("div", byId("spot-original")), guess = filmOf("div", byId("spot-guess"));
  const slider = byId("spot-frame"), button = byId("play");
  let cards = [], queue = [], known = new Set(), now = null, playing = !calm(), frame = 0, timer = null;

  const keyOf = (card, told) => `${card.id}/${card.image}/${told.attack}`;
  const films = () => cards.flatMap(({ card }) => card.tiles.map((told) => [card, told]));
  const finished = () => films().filter(([, told]) => told.stamp && told.steps);

  function display(card, told, from) {
    now = { card, told, key: keyOf(card, told) };
    show("spotlight", true);
    byId("spotlight").className = `of-${page.scale.modality}`;
    say("spot-private", `private ${page.scale.noun}`);
    showOriginal(original, card);
    setFilm(guess, guessOf(card, told), told.steps?.length || 1);
    slider.max = String((told.steps?.length || 1) - 1);
    slider.disabled = !told.steps || told.steps.length < 2;
    say("spot-where", `${card.victim}, round ${card.round}${card.rank ? `, ${page.scale.noun} ${card.image} (${card.rank})` : ""}${card.label === null ? "" : `, label ${card.class || card.label}`}. ${endWords(told)}`);
    go(from ?? (told.steps?.length || 1) - 1);
  }

  function endWords(told) {
    const name = page.nameOf(told.attack);
    if (told.state === "running") return `${name} is at work on it.`;
    const label = told.guessed === null || told.guessed === undefined ? "" : `, guessed label ${told.guessed_class || told.guessed}`;
    const measured = told.value !== null && told.value !== undefined;
    const part = measured && page.scale.part ? ` of ${page.scale.part}` : "";
    const shares = measured && told.rouge.every((one) => one !== null) ? told.rouge.map((one) => (100 * one).toFixed(0)).join(" / ") : "";
    const rouge = shares ? `; ROUGE-1, -2, -L ${shares}` : "";
    return `${name} ended with ${stateWords(told)}${part}${rouge}${label}.`;
  }

  function go(to) {
    frame = to;
    seek(guess, to);
    slider.value = String(to);
    const { told } = now, steps = told.steps;
    const step = steps ? `step ${steps[to]}` : `step ${told.step ?? 0}`;
    const end = steps && to === steps.length - 1;
    say("spot-what", `${page.nameOf(told.attack)}, ${step}${end && told.value !== null ? `, ${page.scale.written(told.value)}` : ""}`);
    slider.setAttribute("aria-valuetext", step);
  }

  function tick() {
    clearTimeout(timer);
    if (!playing || document.hidden || !now) return;
    const last = now.told.steps ? now.told.steps.length - 1 : 0;
    if (now.told.steps && frame < last) {
      go(frame + 1);
      timer = setTimeout(tick, frame === last ? HOLD_MS : FRAME_MS);
      return;
    }
    advance();
  }

  function advance() {
    const next = queue.pop() || another();
    queue = [];
    if (next) display(next[0], next[1], next[1].steps ? 0 : undefined);
    const holds = !now?.told.steps || now.told.steps.length < 2;
    timer = setTimeout(tick, holds ? HOLD_MS : FRAME_MS);
  }

  // in turn: those that came about step by step rather than at a stroke
  function another() {
    const all = finished(), long = all.filter(([, told]) => told.steps.length > 1);
    const among = long.length ? long : all;
    if (!among.length) return null;
    const place = among.findIndex(([card, told]) => keyOf(card, told) === now?.key);
    return among[(place + 1) % among.length];
  }

  function offer(newest, first) {
    cards = newest;
    const fresh = finished().filter(([card, told]) => !known.has(`${keyOf(card, told)}/${told.stamp}`));
    fresh.forEach(([card, told]) => known.add(`${keyOf(card, told)}/${told.stamp}`));
    if (!first) queue.push(...fresh.filter(([, told]) => told.steps.length > 1).slice(0, 3));
    const running = films().find(([, told]) => told.state === "running" && told.stamp);
    const same = now && films().find(([card, told]) => keyOf(card, told) === now.key);
    if (!now) {
      const start = running || another();
      if (start) {
        display(start[0], start[1], playing && start[1].steps ? 0 : undefined);
        timer = setTimeout(tick, FRAME_MS * 3);
      }
    } else if (now.told.state === "running" && same) {
      if (same[1].state === "running" && same[1].stamp) display(same[0], same[1]);
      else if (same[1].steps) display(same[0], same[1]);
    } else if (running && playing && !(now.told.steps && frame < now.told.steps.length - 1)) {
      display(running[0], running[1]);
      clearTimeout(timer);
      timer = setTimeout(tick, HOLD_MS);
    }
  }

  function pause(whether) {
    playing = !whether;
    button.textContent = playing ? "Pause" : "Play";
    button.setAttribute("aria-pressed", String(playing));
    clearTimeout(timer);
    if (playing && now) {
      if (now.told.steps && frame === now.told.steps.length - 1) go(0);
      timer = setTimeout(tick, FRAME_MS);
    }
  }

  button.addEventListener("click", () => pause(playing));
  slider.addEventListener("input", () => {
    pause(true);
    go(Number(slider.value));
  });
  document.addEventListener("visibilitychange", () => {
    clearTimeout(timer);
    timer = setTimeout(tick, FRAME_MS);
  });
  if (calm()) pause(true);

  return {
    offer,
    choose(card, told) {
      clearTimeout(timer);
      display(card, told, calm() || !told.steps ? undefined : 0);
      if (!calm()) pause(false);
      byId("spotlight").scrollIntoView({ block: "nearest", behavior: calm() ? "auto" : "smooth" });
    },
    forget() {
      [cards, queue, known, now] = [[], [], new Set(), null];
      clearTimeout(timer);
      show("spotlight", false);
    },
  };
}
