// Keeps a page fresh: asks for its changing part again and puts it in place of the old one.
// Without this script everything works; the page is then as fresh as its last load.

const live = document.getElementById("live");
const freshness = document.getElementById("freshness");
let last = live?.innerHTML;
let failed = false;

function isBusy() {
  const fields = [...live.querySelectorAll("input")];
  const types = fields.some((field) => field === document.activeElement || field.value !== field.defaultValue);
  const selection = document.getSelection();
  const selects = selection && !selection.isCollapsed && live.contains(selection.anchorNode);
  return document.hidden || selects || types;
}

// A link or heading that has the focus is replaced by its successor, so the focus goes there.
function focusKey() {
  const focused = document.activeElement;
  if (!focused || !live.contains(focused)) return null;
  return focused.id ? `#${CSS.escape(focused.id)}` : `a[href="${CSS.escape(focused.getAttribute("href") ?? "")}"]`;
}

function show(html) {
  const key = focusKey();
  const part = new DOMParser().parseFromString(html, "text/html");
  live.replaceChildren(...part.body.childNodes);
  if (key) live.querySelector(key)?.focus({ preventScroll: true });
}

function say(text) {
  if (freshness.textContent !== text) freshness.textContent = text;
}

async function refresh() {
  if (isBusy()) return;
  try {
    const answer = await fetch(location.href, { headers: { "X-Refresh": "1" }, cache: "no-store" });
    if (answer.status === 401 || answer.status === 404) return location.reload();
    if (!answer.ok) throw new Error(`status ${answer.status}`);
    const html = await answer.text();
    if (html !== last && !isBusy()) {
      show(html);
      last = html;
    }
    if (failed) say("");
    failed = false;
  } catch {
    failed = true;
    say(" · The server does not answer; what you see may be old.");
  }
}

if (live) {
  setInterval(refresh, Number(live.dataset.refreshSeconds) * 1000);
  document.addEventListener("visibilitychange", refresh);
}
