// Dialogs of the page: help with all keys, and reasons for skipping or flagging, each a digit away.

import { element, gettext, recall, remember } from "./dom.js";

const NO_KEYS = "plumbline-no-keys";

export function hasKeys() {
  return !recall(NO_KEYS);
}

export function showKeys(root) {
  root.querySelectorAll("[data-keys-only]").forEach((hint) => (hint.hidden = !hasKeys()));
}

export class Help {
  // `rows` are pairs of keys and what they do.
  constructor(root, rows) {
    this.dialog = root.querySelector("[data-help]");
    const open = root.querySelector("[data-open-help]");
    open.hidden = false;
    open.addEventListener("click", () => this.open());
    this.dialog
      .querySelector("[data-keys]")
      ?.replaceChildren(
        ...rows.map(([keys, words]) =>
          element(
            "div",
            {},
            element("dt", {}, ...keys.flatMap((key) => [element("kbd", {}, key), " "])),
            element("dd", {}, words),
          ),
        ),
      );
    const useKeys = this.dialog.querySelector("[data-use-keys]");
    useKeys.checked = hasKeys();
    useKeys.addEventListener("change", () => {
      remember(NO_KEYS, useKeys.checked ? null : true);
      showKeys(document);
    });
  }

  open() {
    this.dialog.showModal();
    this.dialog.querySelector("button").focus();
  }
}

export class Reasons {
  // `send(url, fields)` gets what was chosen.
  constructor(dialog, openers, send) {
    this.dialog = dialog;
    this.form = dialog.querySelector("form");
    this.buttons = [...dialog.querySelectorAll("button[name=reason]")];
    this.buttons.forEach((button, index) => {
      if (index < 9 && !button.querySelector("kbd"))
        button.append(" ", element("kbd", { dataset: { keysOnly: "" } }, String(index + 1)));
      button.dataset.digit = String(index + 1);
    });
    for (const opener of openers) {
      opener.hidden = false;
      opener.addEventListener("click", () => this.open());
    }
    if (!dialog.querySelector("[data-cancel]")) {
      const cancel = element(
        "button",
        { type: "button", className: "button quiet", dataset: { cancel: "" } },
        gettext("Cancel"),
      );
      this.form.append(element("p", { className: "actions" }, cancel));
    }
    dialog.querySelector("[data-cancel]").addEventListener("click", (event) => {
      event.preventDefault();
      dialog.close();
    });
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      const fields = [...new FormData(this.form, event.submitter)].filter(([name]) => name !== "csrfmiddlewaretoken");
      dialog.close();
      send(this.form.getAttribute("action"), fields);
    });
  }

  open() {
    this.dialog.showModal();
    this.buttons[0]?.focus();
  }
}

// A digit presses the button that shows it, in whichever dialog is open.
export function pressDigit(dialog, key) {
  const button = /^\d$/.test(key) ? dialog.querySelector(`button[data-digit="${key}"]`) : null;
  button?.click();
  return button !== null;
}
