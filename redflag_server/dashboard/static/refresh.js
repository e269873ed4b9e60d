// Keeps a page fresh: asks for its changing part again and puts it in place of the old one.
// Without this script everything works; the page is then as fresh as its last load.

const LONGEST = 60;

const live = document.getElementById("live");
const freshness = document.getElementById("freshness");
const here = live?.dataset.refreshUrl ?? location.href;
let last = live?.innerHTML;
let asking = false;

// Somebody types, ticks, picks, presses or marks text: what they see must not change under their hands.
function isUsed(field) {
  if (field.type === "hidden") return false;
  if (field.type === "checkbox" || field.type === "radio") return field.checked !== field.defaultChecked;
  if (field === document.activeElement) return true;
  if (field.options) return [...field.options].some((option) => option.selected !== option.defaultSelected);
  return field.value !== field.defaultValue;
}

function isChosen() {
  return [...live.querySelectorAll("input, select, textarea")].some(isUsed);
}

function isBusy() {
  const selection = document.getSelection();
  const marks = selection && !selection.isCollapsed && live.contains(selection.anchorNode);
  return document.hidden || marks || live.matches(":active") || isChosen();
}

// A link, heading or button that has the focus is replaced by its successor, so the focus goes there.
function focusKey() {
  const focused = document.activeElement;
  if (!focused || !live.contains(focused)) return null;
  if (focused.id) return `#${CSS.escape(focused.id)}`;
  const target = focused.getAttribute("href");
  return target === null ? null : `a[href="${CSS.escape(target)}"]`;
}

// What somebody opened stays open, and what was scrolled stays where it was.
function kept() {
  const open = [...live.querySelectorAll("details[id]")].map(({ id, open }) => ({ id, open }));
  const scrolled = [...live.querySelectorAll("pre[id]")].map((box) => ({
    id: box.id,
    top: box.scrollTop + box.clientHeight >= box.scrollHeight - 4 ? Infinity : box.scrollTop,
  }));
  return { open, scrolled };
}

function keep({ open, scrolled }) {
  for (const { id, open: isOpen } of open) {
    const found = document.getElementById(id);
    if (found) found.open = isOpen;
  }
  for (const { id, top } of scrolled) {
    const found = document.getElementById(id);
    if (found) found.scrollTop = Math.min(top, found.scrollHeight);
  }
}

// What the page is about, in a word: who cannot see the page hears when it changes.
function state() {
  return live.querySelector("[data-state]")?.dataset.state;
}

function show(html) {
  const key = focusKey();
  const before = kept();
  const part = new DOMParser().parseFromString(html, "text/html");
  live.replaceChildren(...part.body.childNodes);
  keep(before);
  if (key) live.querySelector(key)?.focus({ preventScroll: true });
}

function say(text) {
  if (freshness.textContent !== text) freshness.textContent = text;
}

async function refresh() {
  if (asking) return;
  if (isBusy()) {
    if (!document.hidden && isChosen()) say(" · Not refreshed while you choose or type.");
    return;
  }
  asking = true;
  try {
    const answer = await fetch(here, { headers: { "X-Refresh": "1" }, cache: "no-store" });
    if (answer.status === 401 || answer.status === 404) return location.assign(here);
    if (!answer.ok) throw new Error(`status ${answer.status}`);
    const html = await answer.text();
    const before = state();
    if (html !== last && !isBusy()) {
      show(html);
      last = html;
    }
    say(state() === before ? "" : ` · Now: ${state()}`);
  } catch {
    say(" · The server does not answer; what you see may be old.");
  } finally {
    asking = false;
  }
}

// How often is said by the part itself, so it changes with what the part shows. 0: not at all.
function seconds() {
  const said = live.querySelector("[data-refresh-seconds]") ?? live;
  return Math.min(Number(said.dataset.refreshSeconds), LONGEST);
}

function again() {
  if (!seconds()) return;
  setTimeout(() => {
    refresh();
    again();
  }, seconds() * 1000);
}

if (live) {
  again();
  document.addEventListener("visibilitychange", refresh);
}
