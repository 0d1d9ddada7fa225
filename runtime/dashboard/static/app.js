// The page: its tabs, keys and theme, and the loop that polls for news.
import { $, askJson, count, duration, h, shownRun } from "./dom.js";
import { poll, store } from "./store.js";
import { loadGlossary } from "./explain.js";
import { overview } from "./overview.js";
import { processes } from "./processes.js";
import { events } from "./events.js";
import { evals } from "./evals.js";
import { samples } from "./samples.js";
import { logs } from "./logs.js";
import { plan } from "./plan.js";
import { runs } from "./runs.js";

const VIEWS = { overview, processes, events, samples, logs, plan, runs, evals };
const TITLES = { overview: "Overview", processes: "Processes", events: "Events", samples: "Samples", logs: "Logs", plan: "Plan", runs: "Runs", evals: "Evaluations" };
const EVERY_MS = 2000, HIDDEN_MS = 15000, LOST_MS = 4000;
const STATES = { running: "good", finished: "info", "comes back": "warn", stopped: "warn", silent: "bad", failed: "bad", cancelled: "bad" };
const shown = { name: null, view: null, hash: null };

function show() {
  if (location.hash === shown.hash) return;  // a key press has already shown this view
  shown.hash = location.hash;
  const [name, detail] = location.hash.slice(1).split(/\/(.*)/);
  const wanted = name in VIEWS ? name : "overview";
  if (wanted !== shown.name) {
    shown.view?.unmount?.();
    shown.name = wanted;
    shown.view = VIEWS[wanted]();
    $("main").replaceChildren(shown.view.view);
    shown.view.mount?.();
  }
  for (const tab of $("tabs").children) tab.toggleAttribute("aria-current", tab.dataset.view === wanted);
  if (store.run) shown.view.update(new Set(["all"]), detail);
}

function tabs() {
  $("tabs").replaceChildren(...Object.keys(VIEWS).map((name, i) =>
    h("a", { href: `#${name}`, "data-view": name, title: `${TITLES[name]} (${i + 1})` }, TITLES[name], h("span", { class: "count", hidden: true }))));
}

function header() {
  const run = store.run;
  document.title = `${run.name}: ${run.steps_done}/${run.steps_planned} · Verst`;
  $("name").textContent = run.name;
  $("name").title = run.folder;
  $("state").textContent = run.state;
  $("state").className = `pill ${STATES[run.state] ?? ""}`;
  $("why").textContent = $("why").title = run.why;
  const planned = Math.max(run.steps_planned, 1), groups = run.groups;
  const doing = groups && groups.of ? groups.done / groups.of : 0;
  $("done").style.width = `${100 * run.steps_done / planned}%`;
  $("doing").style.width = `${100 * (run.steps_done + doing) / planned}%`;
  $("done").parentElement.setAttribute("aria-valuenow", run.steps_done);
  $("done").parentElement.setAttribute("aria-valuemax", planned);
  $("progress").textContent = progressWords(run, groups);
  badge("processes", store.processes.columns.name.length);
  badge("events", store.events.length);
}

function progressWords(run, groups) {
  const words = [`${run.steps_done.toLocaleString("en-US")} / ${count(run.steps_planned, "step")}`];
  const stages = store.series.stage_step;
  if (run.steps_done <= run.offline_planned && stages.length) words.push(`stage ${stages.last("stage")}`);
  if (groups && run.state === "running") words.push(`groups of step ${groups.step}: ${groups.done} / ${groups.of}${groups.dropped ? `, ${groups.dropped} dropped` : ""}`);
  if (run.first_time) words.push(duration((run.state === "running" ? run.now : run.last_time) - run.first_time));
  const alone = run.offline_planned === run.steps_planned;
  const each = (alone ? stages : store.series.step).mean("seconds/step");
  if (run.state === "running" && each) words.push(`about ${duration(each * (run.steps_planned - run.steps_done))} left`);
  if (run.generation) words.push(`life ${run.generation}`);
  return words.join("  ·  ");
}

function badge(name, number) {
  const mark = $("tabs").querySelector(`[data-view="${name}"] .count`);
  mark.textContent = number.toLocaleString("en-US");
  mark.hidden = !number;
}

async function loop() {
  let wait = EVERY_MS;
  try {
    const { changed, more } = await poll();
    $("connection").textContent = more ? "reading …" : "";
    const first = !document.body.dataset.ready;
    document.body.dataset.ready = "true";
    header();
    shown.view.update(first ? new Set(["all"]) : changed, location.hash.split(/\/(.*)/)[1]);
    wait = more ? 0 : document.hidden ? HIDDEN_MS : EVERY_MS;
  } catch (error) {
    if (error.status === 401) {
      $("connection").textContent = "the dashboard was restarted: open the address that it printed";
      return;
    }
    const unanswered = error instanceof TypeError || error.name === "TimeoutError";
    if (!unanswered && error.status === undefined) console.error(error);
    $("connection").textContent = error.status ? error.message : "no answer from the dashboard; trying again";
    wait = LOST_MS;
  }
  await new Promise((resolve) => {
    const timer = setTimeout(resolve, wait);
    document.addEventListener("visibilitychange", () => { clearTimeout(timer); resolve(); }, { once: true });
  });
  loop();
}

function theme(step) {
  const choices = ["", "light", "dark"];
  const now = choices.indexOf(localStorage.getItem("verst-theme") ?? "");
  const chosen = choices[(now + step + 3) % 3];
  localStorage.setItem("verst-theme", chosen);
  if (chosen) document.documentElement.dataset.theme = chosen;
  else delete document.documentElement.dataset.theme;
  $("theme").textContent = { "": "◐", light: "☀", dark: "☾" }[chosen];
  if (step) rebuild();
}

// Charts are painted in the colours of the theme, so a new theme needs new charts.
function rebuild() {
  shown.view?.unmount?.();
  shown.name = shown.view = shown.hash = null;
  show();
}

const KEYS = [["1 … 7", "choose a view"], ["/", "go to the search field"], ["t", "change the theme: system, light, dark"], [", .", "samples: previous step, next step"],
  ["j k", "samples: next sample, previous sample"], ["Esc", "leave a field"], ["?", "show these keys"]];

function keys() {
  $("keys").replaceChildren(h("h2", {}, "Keys"), h("table", {}, KEYS.map(([key, what]) => h("tr", {}, h("td", {}, key.split(" ").map((k) => h("kbd", {}, k))), h("td", {}, what)))),
    h("form", { method: "dialog" }));
  $("keys").showModal();
}

function onKey(event) {
  const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
  if (event.key === "Escape" && typing) return event.target.blur();
  if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
  const name = Object.keys(VIEWS)[Number(event.key) - 1];
  if (name) {
    location.hash = name;
    show();
  } else if (event.key === "/") shown.view.filter?.focus();
  else if (event.key === "t") theme(1);
  else if (event.key === "?") keys();
  else if (shown.view.keys?.[event.key]) shown.view.keys[event.key]();
  else return;
  event.preventDefault();
}

theme(0);
tabs();
addEventListener("hashchange", show);
addEventListener("keydown", onKey);
$("theme").addEventListener("click", () => theme(1));
$("help").addEventListener("click", keys);
$("keys").addEventListener("click", (event) => { if (event.target === $("keys")) $("keys").close(); });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", rebuild);
// For a folder of runs the list comes first, and the page stays with the run that was last when it was opened.
async function begin() {
  await loadGlossary().catch(() => {});  // without it there are no tooltips
  const { chosen, first } = await askJson("runs", { brief: 1 }).catch(() => ({ chosen: null, first: null }));
  if (shownRun.name === null && chosen === null && !location.hash) location.hash = "runs";
  shownRun.name ??= first;
  show();
  loop();
}

begin();
