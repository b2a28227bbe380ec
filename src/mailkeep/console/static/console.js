// Keys and small comforts; every page works without. Nothing is stored, nothing is asked of other servers.
(() => {
  "use strict";
  const one = (selector) => document.querySelector(selector);
  const isTyping = (element) => element.matches("input:not([type=checkbox]), select, textarea");
  const go = (link) => { if (link) location.assign(link.href); };
  let wantsPage = false;

  function move(step) {
    const rows = [...document.querySelectorAll(".row")];
    const at = rows.indexOf(document.activeElement);
    const next = rows[at < 0 ? (step > 0 ? 0 : rows.length - 1) : at + step];
    if (next) next.focus();
  }

  const keys = {
    "/": () => { const field = one("[data-key='/']"); if (field) field.focus(); else location.assign("/deliveries"); },
    "?": () => location.assign("/keys"),
    "j": () => move(1),
    "k": () => move(-1),
    "n": () => go(one("a[data-page=older]")),
    "u": () => go(one(".crumb a:last-child")),
    "g": () => { wantsPage = true; },
  };

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || !(event.target instanceof Element)) return;
    if (event.key === "Escape") {
      const question = event.target.closest("details.ask[open]") || one("details.ask[open]");
      if (question) {
        question.open = false;
        question.querySelector("summary").removeAttribute("data-touched");
        question.querySelector("summary").blur();
      } else if (isTyping(event.target)) event.target.blur();
      return;
    }
    if (isTyping(event.target)) return;
    if (wantsPage) {
      wantsPage = false;
      const link = one(`header nav a[data-key="${CSS.escape(event.key)}"]`);
      if (link) { event.preventDefault(); go(link); return; }
    }
    const act = keys[event.key];
    if (act) { event.preventDefault(); act(); }
  });

  // A part that somebody is at work in is not replaced under their hands, and a hidden page asks for nothing.
  document.addEventListener("click", (event) => {
    const summary = event.target instanceof Element ? event.target.closest("#live summary") : null;
    if (summary) summary.toggleAttribute("data-touched");
  });
  document.addEventListener("htmx:beforeRequest", (event) => {
    const part = event.target;
    const isAtWork = part.querySelector("[data-touched]") || part.contains(document.activeElement) || !getSelection().isCollapsed;
    if (document.hidden || isAtWork) event.preventDefault();
  });
  // Figures that are no longer renewed say so.
  for (const [name, isStale] of [["htmx:sendError", true], ["htmx:responseError", true], ["htmx:afterSwap", false]]) {
    document.addEventListener(name, (event) => event.target.toggleAttribute("data-stale", isStale));
  }
  document.addEventListener("toggle", (event) => {
    const field = event.target.matches("details.ask[open]") && event.target.querySelector("input:not([type=hidden]), textarea");
    if (field) field.focus();
  }, true);

  // Times as they are here, beside UTC.
  document.addEventListener("mouseover", (event) => {
    const time = event.target.closest ? event.target.closest("time[datetime]") : null;
    if (!time || time.dataset.here) return;
    time.dataset.here = "1";
    time.title += `, here ${new Date(time.dateTime).toLocaleString()}`;
  });

  const first = one("th.choose");
  if (first) {
    const all = document.createElement("input");
    all.type = "checkbox";
    all.setAttribute("aria-label", "Choose all of this page");
    all.addEventListener("change", () => document.querySelectorAll("td.choose input").forEach((box) => { box.checked = all.checked; }));
    first.replaceChildren(all);
  }
})();
