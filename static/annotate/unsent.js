// On pages beside the judging page: send what a closed tab left unsent.

import { announce, element, fill, gettext, ngettext } from "./compare/dom.js";
import { Outbox } from "./compare/outbox.js";

const { user } = document.querySelector("[data-user]")?.dataset ?? {};

if (user) {
  let number = 0;
  const outbox = new Outbox(user, () => [], {
    answered: () => {
      number += 1;
      const words = ngettext(
        "%(number)s answer that was left unsent is saved now.",
        "%(number)s answers that were left unsent are saved now.",
        number,
      );
      tell(fill(words, { number }));
    },
    invalid: (item) =>
      tell(gettext("An answer that was left unsent needs a correction:"), `/comparisons/${item.comparison}/`),
    refused: () => tell(gettext("An answer that was left unsent could not be stored: its comparison is gone.")),
    signedOut: () => {},
  });
  outbox.flush();
}

function tell(words, url = null) {
  announce(words);
  const link = url ? [" ", element("a", { href: url }, gettext("Open it"))] : [];
  document.querySelector("[data-notices]")?.replaceChildren(element("p", { className: "notice" }, words, ...link));
}
