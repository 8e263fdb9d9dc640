// What is on its way to the server. An item lies in localStorage, under its user, until the server has answered it:
// a reload, a closed tab or a lost connection loses nothing. Sending an item twice does no harm, because the server
// knows a judgment by its key and stores it once.

import { ask, element, fill, gettext, ngettext, recall, remember } from "./dom.js";

const FIRST_WAIT_MS = 1000;
const LONGEST_WAIT_MS = 30_000;
const TRIES_IN_FRONT = 3; // after so many errors of the server an item lets the others pass
const SHOW_SAVED_MS = 2500;
const SHOW_SAVING_AFTER_MS = 300; // what is quicker than that needs no telling

export class Outbox {
  // `besides()` names the comparisons that the page holds; `on` hears what became of an item:
  // answered(item, response, html), invalid(item, html), refused(item, status), signedOut(url).
  constructor(user, besides, on) {
    this.key = `plumbline-outbox-${user}`;
    this.besides = besides;
    this.on = on;
    this.isSending = false;
    this.hasTrouble = false;
    this.wait = FIRST_WAIT_MS;
    this.unkept = []; // where localStorage is full or forbidden, this page's memory must do
    this.pill = new Pill(() => this.flush());
    addEventListener("online", () => this.flush());
    addEventListener("storage", (event) => {
      if (event.key === this.key) this.on.changed?.();
    });
    addEventListener("beforeunload", (event) => {
      if (this.hasTrouble && this.items.length) event.preventDefault();
    });
    document.addEventListener("visibilitychange", () => document.hidden || this.flush());
  }

  get items() {
    return [...(recall(this.key) ?? []), ...this.unkept];
  }

  holds(comparison) {
    return this.items.some((item) => item.comparison === comparison && item.what !== "flag");
  }

  put(item) {
    const kept = { ...item, id: `${item.url} ${Date.now()} ${Math.random()}`, tries: 0 };
    if (!remember(this.key, [...(recall(this.key) ?? []), kept])) this.unkept.push(kept);
    return this.flush();
  }

  change(id, replace) {
    const changed = (items) => items.flatMap((item) => (item.id === id ? replace(item) : [item]));
    this.unkept = changed(this.unkept);
    const items = changed(recall(this.key) ?? []);
    remember(this.key, items.length ? items : null);
  }

  async flush() {
    if (this.isSending || this.isStopped || !this.items.length) return;
    this.isSending = true;
    clearTimeout(this.timer);
    if (!this.hasTrouble) this.pill.saving();
    try {
      // One tab sends at a time, where the browser can tell (it can on HTTPS and on this machine).
      const send = () => this.sendAll();
      if (navigator.locks) await navigator.locks.request(this.key, send);
      else await send();
    } finally {
      this.isSending = false;
    }
    if (this.isStopped) return;
    if (!this.items.length) this.pill.saved(this.hasSent);
    else if (this.hasTrouble) this.tryLater();
    else await this.flush(); // one came while the last answer was read
  }

  async sendAll() {
    this.hasSent = false;
    for (let item = this.items[0]; item; item = this.items[0]) {
      if (!(await this.send(item))) return;
      this.hasSent = true;
    }
  }

  // Whether the item is off the list, so that the next one can go.
  async send(item) {
    let response, html;
    try {
      response = await ask(item.url, [...item.fields, ...this.besides(item).map((id) => ["besides", id])]);
      html = await response.text();
    } catch {
      return this.failed();
    }
    const signIn = response.headers.get("HX-Redirect");
    if (signIn)
      return this.stop(gettext("You are signed out. What you judged is kept here."), () => this.on.signedOut(signIn));
    if (response.status >= 500 || [408, 425, 429].includes(response.status)) return this.postpone(item);
    if (response.status === 403) {
      return this.stop(
        gettext("You have signed in or out in another tab. Reload the page to go on; what you judged is kept here."),
      );
    }
    this.hasTrouble = false;
    this.wait = FIRST_WAIT_MS;
    this.change(item.id, () => []);
    if (response.ok) this.on.answered(item, response, html);
    else if (response.status === 422) this.on.invalid(item, html);
    else this.on.refused(item, response.status);
    return true;
  }

  failed() {
    this.hasTrouble = true;
    return false;
  }

  // The server met an error: once in a while that is the item's own fault, and then it must not hold up the others.
  postpone(item) {
    const tried = { ...item, tries: item.tries + 1 };
    this.change(item.id, () => [tried]);
    if (tried.tries % TRIES_IN_FRONT === 0) {
      this.change(item.id, () => []);
      remember(this.key, [...(recall(this.key) ?? []), tried]);
    }
    return this.failed();
  }

  stop(words, next = () => {}) {
    this.isStopped = true;
    this.hasTrouble = false; // leaving is the way on
    this.pill.show("trouble", words);
    next();
    return false;
  }

  tryLater() {
    this.pill.waiting(this.items.length);
    this.on.waiting?.();
    this.timer = setTimeout(() => this.flush(), this.wait * (0.75 + Math.random() / 2));
    this.wait = Math.min(this.wait * 2, LONGEST_WAIT_MS);
  }
}

class Pill {
  // The visible state, above the bar: "Saving…", "Saved", "2 waiting, retrying".
  constructor(retry) {
    this.words = element("span", { role: "status", dataset: { saving: "" } });
    this.button = element("button", { type: "button", className: "button quiet", hidden: true }, gettext("Try now"));
    this.button.addEventListener("click", retry);
    this.root = element("div", { className: "pill", hidden: true }, this.words, this.button);
    this.place = element("div", { className: "pill-place" }, this.root);
    document.body.append(this.place);
  }

  // Right above the bar with the answers, where there is one.
  putAbove(bar) {
    if (bar) bar.before(this.place);
    else document.body.append(this.place);
  }

  show(state, words) {
    clearTimeout(this.timer);
    this.root.hidden = !words;
    this.root.dataset.state = state;
    this.words.textContent = words;
    this.button.hidden = state !== "waiting";
  }

  saving() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.show("saving", gettext("Saving…")), SHOW_SAVING_AFTER_MS);
  }

  saved(hasSent) {
    if (!hasSent) return this.show("", "");
    this.show("saved", gettext("Saved"));
    this.timer = setTimeout(() => (this.root.hidden = true), SHOW_SAVED_MS);
  }

  waiting(number) {
    const words = ngettext(
      "%(number)s answer is kept here and waits to be sent. Retrying…",
      "%(number)s answers are kept here and wait to be sent. Retrying…",
      number,
    );
    this.show("waiting", fill(words, { number }));
  }
}
