// The end of a process's log, new lines as they come, and a search backwards from the end. No log is read whole.
import { askJson, bytes, h } from "./dom.js";

const LISTED = 300, KEPT = 4000, NEWS_MS = 2000;
const FAULT = /\b(error|exception|traceback|fatal|failed|critical)\b/i, CAUTION = /WARN(ING)?\b|Warning\b/;

export function logs() {
  const state = { files: [], file: null, inode: null, start: 0, end: 0, grep: "", timer: null };
  const which = h("input", { type: "search", placeholder: "find a log …", "aria-label": "find a log", oninput: () => list() });
  const names = h("div", { class: "card list", "aria-label": "logs" });
  const title = h("h2", { class: "grow mono ellipsis" }, "Choose a log");
  const grep = h("input", { type: "search", placeholder: "search: a regular expression", "aria-label": "grep", onchange: () => open(state.file) });
  const follow = h("input", { type: "checkbox", checked: true });
  const earlier = h("button", { onclick: () => before(), disabled: true }, "Earlier");
  const note = h("span", { class: "muted" });
  const text = h("pre", { class: "log", tabindex: "0" });
  const pane = h("section", { class: "card" }, h("div", { class: "row" }, title, grep, h("label", {}, follow, "follow"), earlier, note), text);
  const view = h("div", { class: "split" }, h("div", { class: "stack" }, which, names), pane);

  const list = () => {
    const wanted = which.value.toLowerCase();
    const found = state.files.filter(([name]) => name.toLowerCase().includes(wanted)).slice(0, LISTED);
    let attempt = "";
    names.replaceChildren(...found.flatMap(([name, size]) => {
      const [life, group, node, file] = name.split("/");
      const head = life === attempt ? [] : [h("div", { class: "head" }, life.replace("-", " "))];
      attempt = life;
      return [...head, h("a", { href: `#logs/${encodeURIComponent(name)}`, "aria-current": name === state.file && "true" },
        h("div", { class: "two" }, h("span", {}, file.replace(/\.log(?=$|\.\d+$)/, "")), h("small", {}, bytes(size))), h("small", {}, `${group} / ${node}`))];
    }));
    if (!found.length) names.replaceChildren(h("p", { class: "empty" }, "No logs."));
  };

  const refresh = async () => {
    state.files = (await askJson("logs")).files.sort(([a], [b]) => lifeOf(b) - lifeOf(a) || a.localeCompare(b, "en", { numeric: true }));
    list();
  };

  const lines = (texts) => texts.map((line) => {
    const mood = FAULT.test(line) ? "fault" : CAUTION.test(line) ? "caution" : "";
    return h("div", { class: mood }, line || " ");
  });
  const toEnd = () => { text.scrollTop = text.scrollHeight; };
  const failed = (error) => { note.textContent = error.message; };

  const open = async (file) => {
    if (!file) return;
    Object.assign(state, { file, grep: grep.value });
    title.textContent = file;
    note.textContent = "";
    list();
    try {
      const answer = await askJson("log", state.grep ? { file, grep: state.grep } : { file });
      if (file !== state.file) return;
      Object.assign(state, { start: answer.start, end: answer.end ?? answer.size, inode: answer.inode });
      text.replaceChildren(...lines(answer.lines));
      earlier.disabled = answer.start === 0;
      if (state.grep) note.textContent = `${answer.lines.length}${answer.cut ? " or more" : ""} found`;
      toEnd();
    } catch (error) {
      failed(error);
    }
  };

  const before = async () => {
    const params = { file: state.file, before: state.start };
    try {
      const answer = await askJson("log", state.grep ? { ...params, grep: state.grep } : params);
      const height = text.scrollHeight;
      text.prepend(...lines(answer.lines));
      text.scrollTop += text.scrollHeight - height;
      state.start = answer.start;
      earlier.disabled = answer.start === 0;
    } catch (error) {
      failed(error);
    }
  };

  const news = async () => {
    if (!state.file || state.grep || !follow.checked || document.hidden) return;
    try {
      const answer = await askJson("log", { file: state.file, since: state.end, inode: state.inode });
      Object.assign(state, { end: answer.end, inode: answer.inode });
      if (!answer.lines.length) return;
      const atEnd = text.scrollHeight - text.scrollTop - text.clientHeight < 40;
      if (answer.skipped) text.append(...lines([`… ${bytes(answer.skipped)} skipped …`]));
      text.append(...lines(answer.lines));
      while (text.childElementCount > KEPT) text.firstChild.remove();
      if (atEnd) toEnd();
    } catch (error) {
      failed(error);
    }
  };

  return {
    view, filter: grep,
    mount() { state.timer = setInterval(news, NEWS_MS); },
    unmount() { clearInterval(state.timer); },
    async update(changed, detail) {
      if (!changed.has("all")) return;
      try {
        await refresh();
        const wanted = decodeURIComponent(detail ?? "");
        const found = state.files.find(([name]) => name === wanted) ?? state.files.find(([name]) => wanted && name.endsWith(`/${wanted}.log`))
          ?? state.files.find(([name]) => /\/trainer-0\.log$/.test(name)) ?? state.files[0];
        if (found) await open(found[0]);
      } catch (error) {
        failed(error);
      }
    },
  };
}

const lifeOf = (name) => Number(name.match(/^life-(\d+)/)?.[1] ?? 0);
