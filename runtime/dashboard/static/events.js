// The events of the run, newest first.
import { askJson, h, moment } from "./dom.js";
import { lifeCards } from "./lives.js";
import { store } from "./store.js";

const SHOWN = 400;
const BAD = /fail|lost|left_out|ended|torn|cancel/, WARN = /restart|wait|comes_back|resume|stop|preempt/, GOOD = /finished|ready|back|checkpoint|export/;
const HIDDEN = new Set(["time", "generation", "kind", "message", "reason", "lines", "path"]);

const mood = (kind) => (BAD.test(kind) ? "bad" : kind === "engines_back" || GOOD.test(kind) ? "good" : WARN.test(kind) ? "warn" : "");

export function events() {
  const kinds = h("select", { "aria-label": "kind", onchange: () => fill() });
  const filter = h("input", { type: "search", placeholder: "search events …", "aria-label": "filter", oninput: () => fill() });
  const counted = h("span", { class: "muted" });
  const body = h("tbody");
  const empty = h("p", { class: "empty" }, "Nothing has happened yet.");
  const lives = h("div", { class: "stack", "aria-label": "lives" });
  const view = h("div", { class: "stack" }, lives, h("section", { class: "card" }, h("div", { class: "row" }, h("h2", {}, "Events"), kinds, filter, counted),
    h("div", { class: "scroll" }, h("table", { class: "events" }, h("thead", {}, h("tr", {}, ["time", "life", "kind", "event"].map((t) => h("th", {}, t)))), body)), empty));

  const showLives = async () => {
    const answer = await askJson("lives").catch(() => null);  // the poll tells that the server is gone
    if (!answer) return;
    const told = answer.lives.filter((life) => answer.lives.length > 1 || life.failures.length || life.how[0] === "failed");
    lives.replaceChildren(...lifeCards(told));
  };

  const fill = () => {
    const wanted = filter.value.toLowerCase();
    const found = store.events.filter((event) => (!kinds.value || event.kind === kinds.value) && (!wanted || JSON.stringify(event).toLowerCase().includes(wanted)));
    counted.textContent = found.length > SHOWN ? `the last ${SHOWN} of ${found.length}` : `${found.length} shown`;
    body.replaceChildren(...found.slice(-SHOWN).reverse().map(eventRow));
    empty.hidden = store.events.length > 0;
  };

  return {
    view, filter,
    update(changed) {
      if (!changed.has("events") && !changed.has("all")) return;
      const chosen = kinds.value;
      const there = [...new Set(store.events.map((event) => event.kind))].sort();
      kinds.replaceChildren(h("option", { value: "" }, "all kinds"), ...there.map((kind) => h("option", { value: kind }, kind.replaceAll("_", " "))));
      kinds.value = there.includes(chosen) ? chosen : "";
      fill();
      showLives();
    },
  };
}

export function eventText(event) {
  if (event.message) return event.message;
  if (event.kind === "process_restarted") return `${event.process}: ${event.ending}; restart ${event.restart}`;
  if (event.reason) return event.reason;
  return Object.entries(event).filter(([name]) => !HIDDEN.has(name)).map(([name, value]) => `${name}=${value}`).join(" ");
}

function eventRow(event) {
  const [first, ...rest] = eventText(event).split("\n");
  const more = [...rest, ...(event.lines ?? [])];
  return h("tr", {}, h("td", { class: "numbers muted" }, moment(event.time)), h("td", { class: "muted" }, event.generation ?? ""),
    h("td", {}, h("span", { class: `pill ${mood(event.kind)}` }, String(event.kind).replaceAll("_", " "))),
    h("td", {}, first, more.length ? h("details", {}, h("summary", { class: "muted" }, `${more.length} more lines`), h("pre", { class: "details" }, more.join("\n"))) : ""));
}
