// All processes of the run: a square for each, and a table with a filter.
import { askJson, count, h } from "./dom.js";
import { nodeTable } from "./nodes.js";
import { stackOf } from "./stack.js";
import { store } from "./store.js";

export const MOODS = { serving: "good", live: "good", restarting: "warn", silent: "bad", lost: "bad", failed: "bad", absent: "", ended: "info" };
const MEANINGS = {
  serving: "running, and takes prompts", live: "running: renews its lease", restarting: "ended, and is being restarted",
  silent: "has not renewed its lease", lost: "the controller has lost this engine", failed: "failed, and is not restarted",
  absent: "planned, but not running", ended: "the run is over",
};
const ROWS = 100, NODES_MS = 5000;
const HEADS = {
  process: "role and number", state: "from its lease, the events and the end of the run", "group / node": "where the plan has it", host: "address that it answers at",
  pid: "process number on its host", GPUs: "places on its node", "GPU memory": "in use on its GPUs, by all processes there", busy: "share of the last second in which its GPUs computed",
  restarts: "in this life", "last event": "the last thing that events.jsonl says of it",
};
const URGENT = ["failed", "lost", "silent", "restarting"];

export function processes() {
  const roles = h("section", { class: "roles", "aria-label": "roles" });
  const filter = h("input", { type: "search", placeholder: "name, state, host …", "aria-label": "filter", oninput: () => fill() });
  const counted = h("span", { class: "muted" });
  const head = h("tr"), body = h("tbody");
  const table = h("table", {}, h("thead", {}, head), body);
  const nodes = h("section", { class: "card", "aria-label": "nodes", hidden: true });
  const view = h("div", { class: "stack" }, roles, nodes, h("section", { class: "card" },
    h("div", { class: "row" }, h("h2", {}, "Processes"), filter, counted), h("div", { class: "scroll" }, table)));

  const opened = new Map();  // by process: what is open below its row, kept when the table is drawn again
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
      "restarts", "last event"].map((t) => h("th", { title: HEADS[t] }, t)));
    body.replaceChildren(...shown.slice(0, ROWS).flatMap((row) => [tableRow(row, withGpus, opened), opened.get(row.name) ?? []]).flat());
  };

  let timer = null;
  const look = async () => {
    if (document.hidden) return;
    const answer = await askJson("nodes").catch(() => null);  // the poll tells that the server is gone
    if (!answer) return;
    nodes.hidden = !answer.nodes.some((node) => node.host);
    if (!nodes.hidden) nodes.replaceChildren(...nodeTable(answer.nodes));
  };

  return {
    view, filter,
    mount() { look(); timer = setInterval(look, NODES_MS); },
    unmount() { clearInterval(timer); },
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

function tableRow(row, withGpus, opened) {
  const line = h("tr", { class: "pick", title: "show its command", onclick: () => toggle(line, row, opened) },
    h("td", {}, h("button", { class: "name" }, row.name)),
    h("td", {}, h("span", { class: `pill ${MOODS[row.state]}`, title: MEANINGS[row.state] }, row.state)),
    h("td", {}, row.node === null ? row.group : `${row.group} / ${row.node}`), h("td", {}, row.host),
    h("td", {}, row.pid ?? ""), h("td", {}, row.gpus), ...(withGpus ? gpuCells(row) : []), h("td", {}, row.restarts || ""), h("td", { class: "muted" }, row.note));
  return line;
}

async function toggle(line, row, opened) {
  if (opened.has(row.name)) {
    opened.get(row.name).remove();
    return opened.delete(row.name);
  }
  let text;
  try {
    const process = await askJson("process", { name: row.name });
    const environment = Object.entries(process.env).map(([name, value]) => `${name}=${value}`);
    text = `${environment.join(" ")}\n${process.argv.join(" ")}\nwhen it ends: ${process.on_exit.replaceAll("_", " ")}, ${count(process.max_restarts, "restart")} allowed`;
  } catch (error) {
    text = error.message;
  }
  opened.set(row.name, h("tr", { class: "opened" }, h("td", { colspan: "10" }, h("div", { class: "details mono" }, text),
    h("div", { class: "row" }, h("a", { href: `#logs/${row.name}` }, "show its log")), stackOf(row.name))));
  line.after(opened.get(row.name));
}
