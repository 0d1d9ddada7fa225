// All processes of the run: a square for each, and a table with a filter.
import { askJson, count, h } from "./dom.js";
import { store } from "./store.js";

export const MOODS = { serving: "good", live: "good", restarting: "warn", silent: "bad", lost: "bad", failed: "bad", absent: "", ended: "info" };
const MEANINGS = {
  serving: "running, and takes prompts", live: "running: renews its lease", restarting: "ended, and is being restarted",
  silent: "has not renewed its lease", lost: "the controller has lost this engine", failed: "failed, and is not restarted",
  absent: "planned, but not running", ended: "the run is over",
};
const ROWS = 100;
const URGENT = ["failed", "lost", "silent", "restarting"];

export function processes() {
  const roles = h("section", { class: "roles", "aria-label": "roles" });
  const filter = h("input", { type: "search", placeholder: "name, state, host …", "aria-label": "filter", oninput: () => fill() });
  const counted = h("span", { class: "muted" });
  const head = h("tr"), body = h("tbody");
  const table = h("table", {}, h("thead", {}, head), body);
  const view = h("div", { class: "stack" }, roles, h("section", { class: "card" },
    h("div", { class: "row" }, h("h2", {}, "Processes"), filter, counted), h("div", { class: "scroll" }, table)));

  const pick = (name) => { filter.value = name; fill(); };
  const fill = () => {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    const rows = rowList().filter((row) => {
      const text = `${row.name} ${row.role} ${row.state} ${row.group}/${row.node} ${row.host} ${row.note}`.toLowerCase();
      return words.every((word) => text.includes(word));
    });
    const rank = (row) => (URGENT.indexOf(row.state) + 1 || 9);
    rows.sort((a, b) => rank(a) - rank(b));
    const exact = rows.filter((row) => row.name === filter.value);
    const shown = exact.length ? exact : rows;
    counted.textContent = shown.length > ROWS ? `${ROWS} of ${shown.length} processes: filter to see others` : `${shown.length} shown`;
    const withGpus = rowList().some((row) => row.gpu_total);
    head.replaceChildren(...["process", "state", "group / node", "host", "pid", "GPUs", ...(withGpus ? ["GPU memory", "busy"] : []),
      "restarts", "last event"].map((t) => h("th", {}, t)));
    body.replaceChildren(...shown.slice(0, ROWS).map((row) => tableRow(row, withGpus)));
  };

  return {
    view, filter,
    update(changed) {
      if (!changed.has("processes") && !changed.has("all")) return;
      roles.replaceChildren(...roleCards(pick));
      fill();
    },
  };
}

export function rowList() {
  const columns = store.processes.columns;
  return columns.name.map((_, i) => Object.fromEntries(Object.entries(columns).map(([name, column]) => [name, column[i]])));
}

function roleCards(pick) {
  const roles = new Map();
  for (const row of rowList()) roles.set(row.role, [...(roles.get(row.role) ?? []), row]);
  if (!roles.size) return [h("p", { class: "card empty" }, "The run has no plan yet.")];
  return [...roles].map(([role, rows]) => {
    const states = {};
    for (const row of rows) states[row.state] = (states[row.state] ?? 0) + 1;
    const pills = Object.entries(states).map(([state, n]) => h("span", { class: `pill ${MOODS[state]}`, title: MEANINGS[state] }, `${n} ${state}`));
    const cells = rows.map((row) => h("button", {
      class: MOODS[row.state], title: `${row.name}: ${row.state}${row.note ? `, ${row.note}` : ""}`, "aria-label": `${row.name} ${row.state}`,
      tabindex: rows.length > 64 ? "-1" : "0", onclick: () => pick(row.name),
    }));
    return h("section", { class: "card" }, h("div", { class: "row" }, h("h2", { class: "grow" }, role), pills),
      h("div", { class: rows.length > 200 ? "cells many" : "cells" }, cells));
  });
}

const GIB = 2 ** 30;

// The memory in use on a process's GPUs, with a bar, and how busy they are. Empty cells if it has none.
function gpuCells(row) {
  if (!row.gpu_total) return [h("td"), h("td")];
  const title = "of all processes on these GPUs";
  return [
    h("td", { title }, h("meter", { min: "0", max: String(row.gpu_total), value: String(row.gpu_used) }), ` ${(row.gpu_used / GIB).toFixed(1)} / ${(row.gpu_total / GIB).toFixed(1)} GiB`),
    h("td", { title }, `${Math.round(100 * row.gpu_busy)} %`),
  ];
}

function tableRow(row, withGpus) {
  const line = h("tr", { class: "pick", title: "show its command", onclick: () => toggle(line, row) },
    h("td", {}, h("button", { class: "name" }, row.name)),
    h("td", {}, h("span", { class: `pill ${MOODS[row.state]}`, title: MEANINGS[row.state] }, row.state)),
    h("td", {}, row.node === null ? row.group : `${row.group} / ${row.node}`), h("td", {}, row.host),
    h("td", {}, row.pid ?? ""), h("td", {}, row.gpus), ...(withGpus ? gpuCells(row) : []), h("td", {}, row.restarts || ""), h("td", { class: "muted" }, row.note));
  return line;
}

async function toggle(line, row) {
  if (line.nextSibling?.classList?.contains("opened")) return line.nextSibling.remove();
  let text;
  try {
    const process = await askJson("process", { name: row.name });
    const environment = Object.entries(process.env).map(([name, value]) => `${name}=${value}`);
    text = `${environment.join(" ")}\n${process.argv.join(" ")}\nwhen it ends: ${process.on_exit.replaceAll("_", " ")}, ${count(process.max_restarts, "restart")} allowed`;
  } catch (error) {
    text = error.message;
  }
  line.after(h("tr", { class: "opened" }, h("td", { colspan: "10" }, h("div", { class: "details mono" }, text),
    h("a", { href: `#logs/${row.name}` }, "show its log"))));
}
