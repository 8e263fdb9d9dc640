// Small helpers that every part of the judging page uses.

const { gettext, ngettext, interpolate } = window;

export { gettext, ngettext };

export function fill(words, values) {
  return interpolate(words, values, true);
}

export function element(tag, properties = {}, ...children) {
  const { dataset, ...others } = properties;
  const made = Object.assign(document.createElement(tag), others);
  Object.assign(made.dataset, dataset);
  made.append(...children);
  return made;
}

export function announce(words) {
  const announcer = document.getElementById("announcer");
  announcer.textContent = announcer.textContent === words ? `${words}\u00a0` : words; // else it is not read out again
}

// localStorage may be full or forbidden: then the page works on, and only forgets at a reload.
export function remember(key, value) {
  try {
    if (value === null) localStorage.removeItem(key);
    else localStorage.setItem(key, JSON.stringify(value));
    return true;
  } catch {
    return false;
  }
}

export function recall(key) {
  try {
    return JSON.parse(localStorage.getItem(key));
  } catch {
    return null;
  }
}

export function rememberedKeys(prefix) {
  try {
    return Object.keys(localStorage).filter((key) => key.startsWith(prefix));
  } catch {
    return [];
  }
}

// Digits count by their place on the keyboard too: on a French one they need Shift.
export function keyOf(event) {
  const shift = event.shiftKey ? "shift+" : "";
  if (/^Digit\d$/.test(event.code)) return shift + event.code.at(-1);
  const key = event.key.toLowerCase();
  return /^[a-z]$|^arrow/.test(key) ? shift + key : key;
}

export function isTyping(target) {
  return target.closest("input:not([type=checkbox], [type=radio]), select, textarea, [contenteditable]") !== null;
}

// Everything that a script asks of the server goes this way: the answer is a fragment, never a whole page.
export function ask(url, fields = null) {
  const body = fields && new URLSearchParams(fields);
  return fetch(url, {
    method: body ? "POST" : "GET",
    body,
    credentials: "same-origin",
    keepalive: body !== null && body.toString().length < 60_000, // goes out although the tab is closed; browsers allow 64 kB
    signal: AbortSignal.timeout(30_000),
    headers: {
      "HX-Request": "true",
      "HX-Current-URL": location.href,
      ...(body && { "X-CSRFToken": csrfToken() }),
    },
  });
}

// From the cookie, which a sign-in in another tab has changed as well.
function csrfToken() {
  return document.cookie.match(/(?:^|; )csrftoken=([^;]+)/)?.[1] ?? "";
}
