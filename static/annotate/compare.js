// The judging page. While one comparison is judged, the next one is already here: a submit shows it at once and sends
// the answer in the background, from an outbox that outlives the page. The answer to a submit brings the comparison
// after next.
//
// The plain form is the truth: it says the same to the server without this script. See compare/page.js for what
// happens on one comparison, compare/outbox.js for how answers are sent.

import { hasKeys } from "./compare/dialogs.js";
import { announce, ask, element, gettext } from "./compare/dom.js";
import { forgetOldDrafts, renew } from "./compare/draft.js";
import { Outbox } from "./compare/outbox.js";
import { ComparisonPage } from "./compare/page.js";

class Flow {
  constructor() {
    this.ahead = []; // comparisons that are leased and not on the page yet, soonest first
    this.hasMore = true;
    this.notices = document.querySelector("[data-notices]");
    const root = document.querySelector("[data-comparison]");
    const { user } = root.dataset;
    this.outbox = new Outbox(user, (item) => this.held(item), {
      answered: (item, response, html) => this.answered(item, response, html),
      invalid: (item, html) => this.invalid(item, html),
      refused: (item, status) => this.refused(item, status),
      signedOut: (url) => location.assign(url),
      waiting: () => this.tellWaiting(),
      changed: () => this.catchUp(),
    });
    this.start(root);
    if (this.outbox.holds(this.page.id)) this.page.lock(); // it was sent before the reload, and is under way
    this.outbox.flush();
    this.prefetch();
    this.beat();
  }

  start(root) {
    this.path = location.pathname;
    this.page = new ComparisonPage(root, this);
    this.outbox.pill.putAbove(root.querySelector(".bar"));
  }

  // Comparisons that this page has, or is about to judge: none of them is to be offered again.
  held(item) {
    const ids = [this.page, ...this.ahead].filter((page) => page.id && !page.isLocked).map(({ id }) => id);
    const queued = this.outbox.items.filter(({ what }) => what !== "flag").map(({ comparison }) => comparison);
    return [...new Set([...ids, ...queued])].filter((id) => id !== item?.comparison);
  }

  sendJudgment(page, fields) {
    this.send(page, { what: "judgment", url: page.form.getAttribute("action"), fields });
  }

  sendReason(page, what, url, fields) {
    const key = page.form.elements.key.value;
    const item = { what, url, fields: [["key", key], ...fields] };
    if (what === "skip") return this.send(page, item);
    this.outbox.put({ ...item, comparison: page.id });
    announce(gettext("Flagged. You can go on judging."));
  }

  send(page, item) {
    this.outcome = item.what === "skip" ? gettext("Skipped.") : "";
    if (item.what === "judgment" && !page.isRevising) this.countOne();
    page.lock();
    this.outbox.put({ ...item, comparison: page.id });
    page.draft.close({ forget: true });
    if (this.ahead.length) this.show(this.ahead.shift());
  }

  countOne() {
    this.numJudged = 1 + (this.numJudged ?? numberIn(this.page.root));
  }

  // Put a comparison (or "all done") in the place of the one on the page.
  show({ html, url }, { isBack = false } = {}) {
    const { root } = this.page;
    this.page.close({ forget: false });
    const section = parse(html).section;
    root.replaceWith(section);
    if (url && url !== location.pathname) history.pushState(null, "", url);
    if (this.numJudged !== undefined && section.dataset.id) showNumber(section, this.numJudged);
    this.start(section);
    this.page.focusFirst();
    scrollTo({ top: 0, behavior: "instant" });
    if (this.page.hasErrors) return;
    const heading = section.querySelector("[data-heading]").textContent;
    announce(this.outcome && !isBack ? `${this.outcome} ${heading}` : heading);
    this.outcome = "";
  }

  answered(item, response, html) {
    if (item.what === "flag") return;
    const { section, feedback } = parse(html);
    if (feedback) this.notices.replaceChildren(closable(feedback));
    const url = response.headers.get("HX-Push-Url");
    const id = section?.dataset.id;
    this.hasMore = Boolean(id);
    if (id && !this.held().includes(id)) this.ahead.push(toShow(section, url));
    const isOver = section && !id && !this.outbox.holds(this.page.id);
    if (this.page.isLocked && this.ahead.length) this.show(this.ahead.shift());
    else if (this.page.isLocked && isOver) this.show(toShow(section, url));
    else this.prefetch();
  }

  // The server wants it corrected. What is on the page now comes again afterwards, with what was entered so far.
  invalid(item, html) {
    if (!this.page.isLocked && this.page.id) this.ahead.unshift(this.snapshot());
    if (this.numJudged !== undefined && item.what === "judgment") this.numJudged -= 1;
    const { section } = parse(html);
    if (section) this.show(toShow(section, `/comparisons/${item.comparison}/`));
    this.outcome = "";
  }

  refused(item, status) {
    const words =
      status === 404
        ? gettext("An answer could not be stored: its comparison is gone, or the project is not yours any more.")
        : gettext("An answer could not be stored: the server did not understand it.");
    this.notice(words);
    if (this.numJudged !== undefined && item.what === "judgment") this.numJudged -= 1;
    if (this.page.isLocked) this.goOn();
  }

  snapshot() {
    return { ...toShow(this.page.root, this.path), html: this.page.html };
  }

  tellWaiting() {
    if (!this.page.isLocked) return;
    this.page.showTrouble(
      gettext(
        "The server cannot be reached. Your answer is kept on this device, and the next comparison comes as soon as it is sent.",
      ),
    );
  }

  // Another tab has sent what this page was waiting for.
  catchUp() {
    if (this.page.isLocked && !this.outbox.holds(this.page.id)) this.goOn();
  }

  async fetchNext() {
    const response = await ask(
      this.page.root.dataset.nextUrl,
      this.held().map((id) => ["besides", id]),
    );
    const signIn = response.headers.get("HX-Redirect");
    if (signIn) return location.assign(signIn);
    if (response.status === 204) return null;
    if (!response.ok) throw new Error(response.statusText);
    const { section } = parse(await response.text());
    return toShow(section, response.headers.get("HX-Push-Url"));
  }

  async prefetch() {
    if (!this.page.id || this.ahead.length || !this.hasMore || this.isFetching || this.outbox.items.length) return;
    this.isFetching = true;
    try {
      const next = await this.fetchNext();
      this.hasMore = Boolean(next?.id);
      if (next?.id && !this.held().includes(next.id)) this.ahead.push(next);
    } catch {
      // without it, the answer to the submit brings the next one
    } finally {
      this.isFetching = false;
    }
    if (this.page.isLocked && this.ahead.length) this.show(this.ahead.shift());
  }

  // On to the next comparison without answering this one.
  async goOn() {
    if (this.ahead.length) return this.show(this.ahead.shift());
    try {
      const next = await this.fetchNext();
      if (next) this.show(next);
      else location.assign(this.page.root.dataset.nextUrl.replace(/next\/$/, "done/"));
    } catch {
      announce(gettext("The server cannot be reached."));
    }
  }

  // To the judgment before this one, to revise it.
  async goBack() {
    if (this.outbox.items.length) {
      await this.outbox.flush();
      if (this.outbox.items.length) return announce(gettext("The last answer is not sent yet. Try again in a moment."));
    }
    try {
      const list = parse(await (await ask(this.page.root.dataset.mineUrl)).text()).document;
      const urls = [...list.querySelectorAll("a[data-revise]")].map((link) => link.getAttribute("href"));
      const url = urls[urls.indexOf(location.pathname) + 1];
      if (!url) return announce(gettext("There is no earlier judgment to go back to."));
      const { section } = parse(await (await ask(url)).text());
      if (this.page.id && !this.page.isRevising) this.ahead.unshift(this.snapshot());
      this.show(toShow(section, url), { isBack: true });
    } catch {
      announce(gettext("The server cannot be reached."));
    }
  }

  notice(words) {
    this.notices.replaceChildren(closable(element("p", { className: "notice" }, words)));
  }

  // The lease of what is shown and of what comes next lives as long as somebody is here, or has work to send.
  beat() {
    const seconds = Number(this.page.root.dataset.leaseSeconds) || 900;
    setTimeout(() => this.beat(), (seconds * 1000) / 3);
    if (this.lastBeat && (!document.hidden || this.outbox.items.length)) this.renewAll();
    this.lastBeat = Date.now();
  }

  async renewAll() {
    this.lastBeat = Date.now();
    if (this.page.id && !this.page.isLocked) this.page.draft.send();
    for (const next of [...this.ahead]) {
      const status = await renew(next.draftUrl, { alive: "1", key: next.key });
      if (status === 410) this.ahead = this.ahead.filter((other) => other !== next);
    }
    this.prefetch();
  }
}

function parse(html) {
  const parsed = new DOMParser().parseFromString(html, "text/html");
  return {
    document: parsed,
    section: parsed.querySelector("[data-comparison]"),
    feedback: parsed.querySelector("[data-feedback]"),
  };
}

// What `Flow.show` wants to know of a fragment.
function toShow(section, url) {
  const { id = null, draftUrl } = section.dataset;
  return { id, url, draftUrl, html: section.outerHTML, key: section.querySelector("input[name=key]")?.value ?? "" };
}

function closable(content) {
  const close = element(
    "button",
    { type: "button", className: "button quiet", ariaLabel: gettext("Close this notice") },
    "×",
  );
  const box = element("div", { className: "closable" }, content, close);
  close.addEventListener("click", () => box.remove());
  return box;
}

// The number of own judgments; a page that was fetched ahead does not count the last ones yet.
function numberIn(root) {
  return Number(root.querySelector("[data-num-judged]")?.dataset.numJudged) || 0;
}

function showNumber(root, number) {
  const place = root.querySelector("[data-num-judged]");
  if (!place) return;
  place.textContent = place.textContent.replace(/\d+/, String(number));
  place.dataset.numJudged = String(number);
}

forgetOldDrafts();
const flow = new Flow();

document.addEventListener("keydown", (event) => {
  if (!flow.page.form || event.repeat || event.defaultPrevented) return;
  if (!hasKeys() && !document.querySelector("dialog[open]")) return;
  if (flow.page.onKey(event)) event.preventDefault();
});

for (const type of ["keydown", "pointerdown", "pointermove", "wheel", "touchmove", "scroll", "input"]) {
  document.addEventListener(type, () => flow.page.clock?.sign(), { capture: true, passive: true });
}

document.addEventListener("visibilitychange", () => {
  const { page } = flow;
  if (document.hidden) {
    page.clock?.pause();
    if (page.draft?.isUnsent) page.draft.send();
  } else {
    page.clock?.sign();
    flow.renewAll();
  }
});

// Back and forward are pages of their own: the server knows best what stands there by now.
addEventListener("pageshow", (event) => {
  if (event.persisted) location.reload();
});
addEventListener("popstate", () => {
  if (location.pathname !== flow.path) location.reload();
});
