// What each figure means: the texts of docs/metrics.md, as tooltips.
import { askJson } from "./dom.js";

const glossary = {};

export async function loadGlossary() {
  if (!Object.keys(glossary).length) Object.assign(glossary, await askJson("glossary"));
}

// The meaning of a figure, or undefined for one that Verst does not write. "rewards/*" stands for all of "rewards/".
export function explain(kind, key) {
  const found = (glossary[kind] ?? []).find(([name]) => name === key || (name.endsWith("*") && key.startsWith(name.slice(0, -1)) && key.length >= name.length));
  return found && found[1];
}

// The meanings of several figures, each on a line after its label.
export const explainAll = (kind, figures) =>
  figures.map(([label, key]) => [label, explain(kind, key)]).filter(([, text]) => text).map(([label, text]) => `${label}: ${text}`).join("\n");
