// The nodes of the run: how busy the CPUs are, and how full memory and disks, by what their agents write.
import { bytes, h } from "./dom.js";

const ROWS = 100, FULL = 0.95;
const HEADS = [["node", "group and number of the node in the plan"], ["host", "name of the machine"],
  ["CPU", "share of all CPUs' time that was busy over ten seconds, by all processes; beside it the CPUs that the run may use"],
  ["load", "mean number of processes that could run, over the last minute"],
  ["memory", "in use, without what the kernel can give up: of the job if it has a limit, else of the machine"],
  ["run folder", "free space of the file system that holds the run folder"], ["temporary", "free space of the folder for temporary files"]];

export function nodeTable(nodes) {
  const shown = [...nodes].sort((a, b) => share(b) - share(a)).slice(0, ROWS);
  return [
    h("div", { class: "row" }, h("h2", {}, "Nodes"), h("span", { class: "muted" }, nodes.length > ROWS ? `the ${ROWS} of ${nodes.length} with the fullest memory` : "")),
    h("div", { class: "scroll" }, h("table", {}, h("thead", {}, h("tr", {}, HEADS.map(([name, title]) => h("th", { title }, name)))), h("tbody", {}, shown.map(row)))),
  ];
}

const share = (node) => (node.memory_total ? node.memory_used / node.memory_total : 0);

function row(node) {
  const name = h("td", {}, `${node.group} / ${node.node}`);
  if (!node.host) return h("tr", {}, name, h("td", { colspan: "6", class: "muted" }, "no figures yet"));
  const old = node.stale ? ` (${node.age} s ago)` : "";
  return h("tr", { class: node.stale ? "muted" : "", "data-node": `${node.group}/${node.node}` }, name, h("td", {}, node.host + old),
    h("td", {}, node.cpu === null ? "–" : `${Math.round(100 * node.cpu)} %`, h("span", { class: "muted" }, ` of ${node.cpus}`)),
    h("td", {}, node.load.toFixed(1)), meter(node.memory_used, node.memory_total),
    free(node.folder_free, node.folder_total), free(node.scratch_free, node.scratch_total));
}

function meter(used, total) {
  const full = used / total > FULL;
  return h("td", {}, h("meter", { min: "0", max: String(total), value: String(used) }), " ",
    h("span", { class: full ? "pill bad" : "" }, `${bytes(used)} / ${bytes(total)}`));
}

const free = (left, total) => h("td", {}, h("span", { class: total && left / total < 1 - FULL ? "pill bad" : "" }, `${bytes(left)} free`), h("span", { class: "muted" }, ` of ${bytes(total)}`));
