// The page's own behaviour, beside htmx: dialogs, copying, counting times, and saying when the stream is lost.
"use strict";
(() => {
  const duration = (s) => {
    s = Math.max(0, Math.floor(s));
    const m = Math.floor(s / 60), h = Math.floor(s / 3600);
    if (s < 60) return `${s} s`;
    if (s < 3600) return m < 5 && s % 60 ? `${m} min ${s % 60} s` : `${m} min`;
    if (h < 48) return m % 60 ? `${h} h ${m % 60} min` : `${h} h`;
    return `${Math.floor(h / 24)} days`;
  };
  const left = (s) => {
    if (s < -5) return "longer than usual";
    if (s < 5) return "a few seconds left";
    if (s < 55) return `about ${5 * Math.round(s / 5)} s left`;
    return `about ${s < 3300 ? Math.max(1, Math.round(s / 60)) + " min" : duration(s)} left`;
  };
  const put = (node, text) => { if (node.textContent !== text) node.textContent = text; };

  // The server's clock, from what it wrote last: a phone's own may be minutes off.
  let skew = 0, heard = Date.now();
  const now = () => Date.now() / 1000 + skew;
  const tick = () => {
    document.querySelectorAll("[data-since]").forEach((n) => put(n, duration(now() - n.dataset.since)));
    document.querySelectorAll("[data-left]").forEach((n) => put(n, left(n.dataset.left - now())));
    const stream = document.querySelector("[sse-connect]:not([data-done])");
    const lost = document.getElementById("lost");
    const silent = (Date.now() - heard) / 1000;
    // A model that reads a long question says nothing meanwhile; everything else beats.
    const gone = stream && (stream.dataset.lost ? silent > 3 : silent > 40 && !("quiet" in stream.dataset));
    if (gone) put(document.getElementById("lost-age"), duration(silent));
    if (lost.hidden === Boolean(gone)) {
      lost.hidden = !gone;
      document.body.classList.toggle("stale", Boolean(gone));
    }
  };

  document.addEventListener("htmx:sseOpen", (event) => {
    delete event.target.dataset.lost;
    heard = Date.now();
    event.detail.source.addEventListener("beat", (beat) => {
      heard = Date.now();
      skew = Number(beat.data) - heard / 1000;
    });
  });
  document.addEventListener("htmx:sseError", (event) => { event.target.dataset.lost = "yes"; });
  document.addEventListener("htmx:sseClose", (event) => { event.target.dataset.done = "yes"; });

  // A fragment that is replaced keeps what a person had opened in it. (htmx gives the focus back by id.)
  let open = [], atEnd = false;
  document.addEventListener("htmx:sseBeforeMessage", (event) => {
    atEnd = event.target.closest(".turn") && innerHeight + scrollY > document.body.scrollHeight - 120;
    open = [...event.target.querySelectorAll("details[open][id]")].map((n) => n.id);
  });
  document.addEventListener("htmx:sseMessage", (event) => {
    heard = Date.now();
    open.forEach((id) => { const n = document.getElementById(id); if (n && event.target.contains(n)) n.open = true; });
    toEnd();
    if (atEnd) scrollTo(0, document.body.scrollHeight);
    tick();
  });

  // Of a log the end counts.
  const toEnd = () => { const log = document.getElementById("log-tail"); if (log) log.scrollTop = log.scrollHeight; };
  document.addEventListener("htmx:load", toEnd);

  // Dialogs: opened when they arrive, emptied when they close, the focus back where it was.
  let opener = "";
  document.addEventListener("htmx:beforeRequest", (event) => {
    const id = event.detail.elt.id;
    if (event.detail.target && event.detail.target.id === "dialog" && id && !event.detail.elt.closest("dialog")) opener = id;
  });
  document.addEventListener("htmx:afterSwap", (event) => {
    if (event.detail.target?.id !== "dialog") {
      const action = document.querySelector("dialog[open] #do-it");
      if (action && (document.activeElement === document.body || document.activeElement.id === "leave")) action.focus();
      if (event.detail.target?.id === "turns") scrollTo(0, document.body.scrollHeight);
      return;
    }
    const dialog = document.querySelector("#dialog dialog");
    if (!dialog) return;
    dialog.addEventListener("close", () => {
      dialog.remove();
      const back = document.getElementById(opener);
      if (back) back.focus();
    });
    dialog.showModal();
    dialog.querySelector("#ask-title").focus();
  });
  // A refusal is shown like any other answer.
  document.addEventListener("htmx:beforeSwap", (event) => {
    if (event.detail.xhr.status >= 400 && event.detail.xhr.getResponseHeader("Content-Type").startsWith("text/html")) {
      event.detail.shouldSwap = true;
      event.detail.isError = false;
    }
  });
  document.addEventListener("htmx:sendError", () => put(document.getElementById("said"), "Spark Control does not answer."));

  // Enter sends where there is a keyboard of its own; with Shift it is a new line.
  document.addEventListener("keydown", (event) => {
    const send = event.target.dataset?.sends;
    if (!send || event.key !== "Enter" || event.shiftKey || event.isComposing || !matchMedia("(pointer: fine)").matches) return;
    event.preventDefault();
    event.target.form.requestSubmit(document.getElementById(send));
  });

  const copy = async (text) => {
    if (window.isSecureContext) return navigator.clipboard.writeText(text);
    // On the LAN there is no https, and without it no clipboard but this one.
    const area = document.createElement("textarea");
    area.value = text;
    area.className = "unseen";
    (document.querySelector("dialog[open]") || document.body).append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  };
  document.addEventListener("click", async (event) => {
    const close = event.target.closest("[data-close]");
    const dialog = close && close.closest("dialog");
    if (dialog) { event.preventDefault(); dialog.close(); return; }
    if (event.target instanceof HTMLDialogElement) { event.target.close(); return; }
    const button = event.target.closest("[data-copy]");
    if (!button) return;
    await copy(document.getElementById(button.dataset.copy).textContent);
    button.focus();
    put(button, "Copied");
    put(document.getElementById("said"), "Copied.");
    setTimeout(() => put(button, "Copy"), 2000);
  });

  setInterval(tick, 1000);
})();
