// The lives of the run, the newest first: how each ended, what failed first, and what changed in the recipe before it.
import { count, duration, h, moment } from "./dom.js";

const MOODS = { running: "good", finished: "info", stopped: "warn", interrupted: "warn", failed: "bad" };

export const lifeCards = (lives) => lives.map((life) => h("section", { class: "card life", "data-life": String(life.life) },
  h("div", { class: "row" }, h("h2", {}, `Life ${life.life}`), h("span", { class: `pill ${MOODS[life.how[0]] ?? ""}` }, life.how[0]),
    h("span", { class: "muted" }, facts(life))),
  life.how[1] && h("p", {}, life.how[1].split("\n")[0]),
  changes(life), failures(life.failures)));

function facts(life) {
  const words = [`${moment(life.began)}, ${duration(life.last - life.began)}`];
  if (life.steps) words.push(life.steps[0] === life.steps[1] ? `step ${life.steps[0]}` : `steps ${life.steps[0]} to ${life.steps[1]}`);
  if (life.resumed_from) words.push(life.resumed_from);
  if (life.restarts) words.push(count(life.restarts, "restart"));
  return words.join("  ·  ");
}

function changes(life) {
  if (!life.life) return "";
  if (life.changes === null) return h("p", { class: "muted" }, "The recipe of one of the two lives was not kept.");
  if (!life.changes.length) return h("p", { class: "muted" }, "The recipe is the same as before.");
  const rows = life.changes.map(([key, before, after]) => h("tr", {}, h("td", { class: "mono" }, key), h("td", {}, before), h("td", {}, after)));
  return h("div", { class: "scroll" }, h("table", { class: "changes" }, h("thead", {}, h("tr", {}, ["changed in the recipe", "before", "now"].map((t) => h("th", {}, t)))), h("tbody", {}, rows)));
}

function failures(found) {
  if (!found.length) return "";
  const [first, ...others] = found;
  return h("div", { class: "failures" }, h("p", {}, h("b", {}, "Failed first: "), first.reason),
    first.lines.length ? h("pre", { class: "details" }, first.lines.join("\n")) : "",
    others.map((other) => h("p", { class: "muted" }, `${other.echo ? "as a consequence" : "also"}, ${duration(Math.max(0, other.at - first.at))} later: ${other.reason}`)));
}
