// Saves what a chart shows: its numbers as CSV or JSON, or its picture as PNG. Nothing leaves the browser.
import { store } from "./store.js";

const slug = (text) => text.toLowerCase().replace(/[^a-z0-9]+/g, "-").replace(/^-|-$/g, "");
const clean = (value) => (value === undefined || value === null ? null : value);
const cell = (value) => (value === null ? "" : /[",\n]/.test(String(value)) ? `"${String(value).replaceAll('"', '""')}"` : String(value));

function save(blob, title, ending) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = `${slug(store.run?.name ?? "runs")}-${slug(title)}.${ending}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

// `table`: {column: [values]}, all of one length.
export function saveCsv(title, table) {
  const names = Object.keys(table), rows = table[names[0]].map((_, i) => names.map((name) => cell(clean(table[name][i]))).join(","));
  save(new Blob([[names.map(cell).join(","), ...rows, ""].join("\n")], { type: "text/csv" }), title, "csv");
}

export function saveJson(title, table) {
  const columns = Object.fromEntries(Object.entries(table).map(([name, values]) => [name, values.map(clean)]));
  save(new Blob([JSON.stringify({ run: store.run?.name, title, columns })], { type: "application/json" }), title, "json");
}

// The chart's canvas on the page's background, with the title above it.
export function savePng(title, canvas, background, ink) {
  const scale = devicePixelRatio || 1, top = 28 * scale, picture = document.createElement("canvas");
  picture.width = canvas.width;
  picture.height = canvas.height + top;
  const paint = picture.getContext("2d");
  paint.fillStyle = background;
  paint.fillRect(0, 0, picture.width, picture.height);
  paint.fillStyle = ink;
  paint.font = `600 ${14 * scale}px system-ui, sans-serif`;
  paint.fillText(`${store.run?.name ?? "runs"}: ${title}`, 8 * scale, 19 * scale);
  paint.drawImage(canvas, 0, top);
  picture.toBlob((blob) => save(blob, title, "png"));
}
