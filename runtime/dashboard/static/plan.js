// The plan: which processes run on which nodes, and the resolved recipe.
import { ask, askJson, count, h } from "./dom.js";
import { MOODS, rowList } from "./processes.js";

const NODES = 60;

export function plan() {
  const groups = h("div", { class: "stack" });
  const recipe = h("pre", { class: "recipe" });
  const view = h("div", { class: "stack" }, groups, h("section", { class: "card" }, h("h2", {}, "Recipe, as resolved"), recipe));
  const load = async () => {
    const [planned, text] = await Promise.all([askJson("plan"), ask("recipe").then((answer) => answer.text())]);
    groups.replaceChildren(...Object.entries(planned.groups).map(([name, nodes]) => groupCard(name, nodes)));
    recipe.replaceChildren(...text.split("\n").flatMap((line) => [...painted(line), "\n"]));
  };
  return {
    view,
    update(changed) {
      if (changed.has("all")) load().catch((error) => groups.replaceChildren(h("p", { class: "card empty" }, error.message)));
    },
  };
}

function groupCard(name, nodes) {
  const states = new Map(rowList().map((row) => [row.name, row.state]));
  const cards = nodes.slice(0, NODES).map((processes, i) => h("div", { class: "node" }, h("div", { class: "muted" }, `node ${i}`),
    processes.map(([process, gpus]) => h("div", {}, h("span", { class: `pill ${MOODS[states.get(process)] ?? ""}` }, process), " ",
      h("span", { class: "muted" }, gpus === null ? "" : gpus.length ? `GPU ${gpus.join(", ")}` : "no GPU")))));
  const rest = nodes.length > NODES ? h("p", { class: "muted" }, `and ${nodes.length - NODES} more nodes`) : "";
  const total = nodes.reduce((sum, processes) => sum + processes.length, 0);
  return h("section", { class: "card" }, h("h2", {}, `${name}: ${count(nodes.length, "node")}, ${total} processes`), h("div", { class: "nodes" }, cards), rest);
}

// Colours the key and the value of a line of YAML.
function painted(line) {
  const match = line.match(/^(\s*(?:- )?)([\w.-]+)(:)(.*)$/);
  if (!match) return [line.trimStart().startsWith("#") ? h("span", { class: "comment" }, line) : line];
  const value = match[4].trim();
  const kind = value === "null" || value === "{}" || value === "[]" ? "null" : /^-?[\d.]+(e[+-]?\d+)?$|^(true|false)$/i.test(value) ? "number" : "word";
  return [match[1], h("span", { class: "key" }, match[2]), match[3], h("span", { class: kind }, match[4])];
}
