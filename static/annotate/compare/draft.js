// What is entered and not sent yet: kept in this browser at once, on the server a moment later, so that another
// browser shows it too. The same requests renew the lease, without which the comparison would go to somebody else.

import { ask, recall, remember, rememberedKeys } from "./dom.js";

const SAVE_AFTER_MS = 1500;
const FORGET_AFTER_MS = 7 * 24 * 3600 * 1000;
const LEFT_OUT = new Set(["csrfmiddlewaretoken", "besides", "confirm", "placement"]);
const NEVER_RESTORED = new Set(["key", "seconds", "total_seconds"]); // the server's word counts

export class Draft {
  // `onGone` is called when the server has given the comparison to somebody else.
  constructor({ user, id, form, url, clock, onGone }) {
    Object.assign(this, { form, url, clock, onGone });
    this.key = `plumbline-draft-${user}-${id}`;
    this.shownAt = Date.now();
    this.isUnsent = false;
    form.addEventListener("input", () => this.changed());
    form.addEventListener("change", () => this.changed());
  }

  // What the server filled in is newer, unless this browser could not send its last words.
  restore(isFromServer) {
    const kept = recall(this.key);
    if (!kept) return;
    this.shownAt = kept.shownAt;
    this.clock.total = Math.max(this.clock.total, kept.seconds * 1000);
    if (isFromServer || !kept.isUnsent) return;
    for (const [name, value] of Object.entries(kept.fields)) {
      if (!NEVER_RESTORED.has(name)) setField(this.form, name, value);
    }
    this.isUnsent = true;
    this.schedule();
  }

  get fields() {
    return Object.fromEntries([...new FormData(this.form)].filter(([name]) => !LEFT_OUT.has(name)));
  }

  get totalSeconds() {
    return (Date.now() - this.shownAt) / 1000;
  }

  changed() {
    if (this.isClosed) return;
    this.isUnsent = true;
    this.keep();
    this.schedule();
  }

  keep() {
    const { fields, shownAt, isUnsent } = this;
    remember(this.key, { fields, shownAt, isUnsent, seconds: this.clock.seconds, keptAt: Date.now() });
  }

  schedule() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.send(), SAVE_AFTER_MS);
  }

  // Sends what is new, or only the sign of life. A failure tells nobody: the next beat tries again.
  async send() {
    clearTimeout(this.timer);
    if (this.isClosed) return;
    const isDraft = this.isUnsent;
    this.isUnsent = false;
    const seconds = this.clock.seconds.toFixed(1);
    const status = await renew(
      this.url,
      isDraft ? { ...this.fields, seconds } : { alive: "1", key: this.form.elements.key.value },
    );
    if (this.isClosed) return;
    if (isDraft && status !== 204 && status !== 410) this.isUnsent = true;
    if (isDraft) this.keep();
    if (status === 410) this.onGone();
  }

  // Sent or shown no more: nothing is to be kept. `forget` false leaves the words for later.
  close({ forget }) {
    clearTimeout(this.timer);
    const kept = recall(this.key);
    if (!forget && this.isUnsent) this.send();
    this.isClosed = true;
    // what comes back without a reload knows nothing of what the server has been told
    if (kept) remember(this.key, forget ? null : { ...kept, isUnsent: true });
  }
}

// The status of the answer; 0 if there was none.
export async function renew(url, fields) {
  try {
    return (await ask(url, fields)).status;
  } catch {
    return 0;
  }
}

export function forgetOldDrafts() {
  for (const key of rememberedKeys("plumbline-draft-")) {
    if (Date.now() - (recall(key)?.keptAt ?? 0) > FORGET_AFTER_MS) remember(key, null);
  }
}

function setField(form, name, value) {
  const controls = [...form.elements].filter((control) => control.name === name);
  for (const control of controls) {
    if (control.type === "radio" || control.type === "checkbox") control.checked = control.value === value;
    else if (control.type === "submit") control.ariaPressed = String(control.value === value);
    else control.value = value;
  }
}
