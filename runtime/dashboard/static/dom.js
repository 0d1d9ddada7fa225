// Makes elements, and texts from numbers. Text is only ever added as text nodes, so that model output is never markup.

export function h(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "class") element.className = value;
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "colour") element.style.background = value;
    else if (name in element && typeof value !== "string") element[name] = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(9).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export const $ = (id) => document.getElementById(id);

export function number(value, figures = 4) {
  if (typeof value === "string") return value;  // "nan", "inf"
  if (value === null || value === undefined) return "–";
  const size = Math.abs(Number(value.toPrecision(figures)));
  if (size !== 0 && (size < 1e-3 || size >= 1e7)) return value.toExponential(figures > 3 ? 2 : 1).replace(/\.?0+e/, "e");
  if (size >= 1000) return Math.round(value).toLocaleString("en-US");
  return String(Number(value.toPrecision(figures)));
}

// Each of these rounds first and then chooses the unit, so that 239.6 s is "4 min 0 s" and not "3 min 60 s".
export function duration(seconds) {
  if (seconds === null || seconds === undefined || !isFinite(seconds)) return "–";
  if (seconds > 0 && seconds < 0.0995) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 0.995) return `${seconds.toFixed(2)} s`;
  if (seconds < 9.95) return `${seconds.toFixed(1)} s`;
  const whole = Math.round(seconds), minutes = Math.round(seconds / 60), hours = Math.round(seconds / 3600);
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  return minutes < 48 * 60 ? `${Math.floor(minutes / 60)} h ${minutes % 60} min` : `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

export function bytes(size) {
  if (size === null || size === undefined) return "–";
  for (const unit of ["B", "KiB", "MiB", "GiB", "TiB"]) {
    if (size < 1023.5 || unit === "TiB") return `${size < 9.95 && unit !== "B" ? size.toFixed(1) : Math.round(size)} ${unit}`;
    size /= 1024;
  }
}

export function moment(time) {
  const at = new Date(time * 1000);
  const clock = at.toLocaleTimeString("en-GB");
  return at.toDateString() === new Date().toDateString() ? clock : `${at.toLocaleDateString("en-CA")} ${clock}`;
}

// A tick of a chart's axis of time, with what its span of `seconds` needs.
export function clock(time, seconds) {
  const at = new Date(time * 1000), day = at.toLocaleDateString("en-CA").slice(5);
  if (seconds > 5 * 86400) return day;
  const text = at.toLocaleTimeString("en-GB");
  return seconds > 86400 ? `${day} ${text.slice(0, 5)}` : seconds > 300 ? text.slice(0, 5) : text;
}

export const count = (n, noun) => `${n.toLocaleString("en-US")} ${noun}${n === 1 ? "" : "s"}`;

// The run that the page shows; null lets the server choose.
export const shownRun = { name: new URLSearchParams(location.search).get("run") };

const DEADLINE_MS = 30000;  // an answer takes milliseconds; one that never comes must not stop the page

// Sends a request to the server. Throws an Error with the server's message if the request fails, or no answer comes in
// time. With `order` it asks the server to do something.
export async function ask(path, params = {}, order = false) {
  const options = { signal: AbortSignal.timeout(DEADLINE_MS), ...(order ? { method: "POST", headers: { "x-verst-dash": "1" } } : {}) };
  const query = new URLSearchParams(shownRun.name === null ? params : { run: shownRun.name, ...params });
  const response = await fetch(`api/${path}?${query}`, { credentials: "same-origin", ...options });
  if (!response.ok) {
    const error = new Error((await response.text()).trim() || response.statusText);
    error.status = response.status;
    throw error;
  }
  return response;
}

export const askJson = async (path, params) => (await ask(path, params)).json();
