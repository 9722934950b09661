// What the pages do beyond HTML: copy, switch the theme, and let numbers move. Everything works without it but the moving.

const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];

// -- copy ------------------------------------------------------------------------------------------------------------

document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-copy]");
  if (!button) return;
  const source = button.closest(".snippet").querySelector("pre");
  const label = button.textContent;
  try {
    await navigator.clipboard.writeText(source.textContent);
    button.textContent = "Copied";
  } catch {
    getSelection().selectAllChildren(source); // no clipboard without TLS: select it for the reader
    button.textContent = "Press Ctrl+C";
  }
  setTimeout(() => (button.textContent = label), 1500);
});

// -- theme -----------------------------------------------------------------------------------------------------------

for (const button of $$("[data-theme-switch]")) {
  button.addEventListener("click", () => {
    const root = document.documentElement;
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
    document.cookie = `theme=${root.dataset.theme}; path=/; max-age=31536000; samesite=strict`;
  });
}

// -- forms: ask before what can't be undone, and send once ---------------------------------------------------------------

document.addEventListener("submit", (event) => {
  const form = event.target;
  const question = event.submitter?.dataset.confirm;
  if (form.dataset.sent || (question && !confirm(question))) event.preventDefault();
  // Not form.method: a field may have that name.
  if (event.defaultPrevented || form.getAttribute("method") !== "post") return;
  form.dataset.sent = "1";
  event.submitter?.setAttribute("aria-busy", "true");
  // Afterwards: a button that is disabled now would not send its name.
  setTimeout(() => $$("button", form).forEach((button) => (button.disabled = true)));
});

// Back to a page that the browser kept: its forms may be sent again.
addEventListener("pageshow", (event) => {
  if (!event.persisted) return;
  for (const form of $$("form[data-sent]")) {
    delete form.dataset.sent;
    for (const button of $$("button", form)) {
      button.disabled = false;
      button.removeAttribute("aria-busy");
    }
  }
});

// A form that was kept while its visitor signed in.
for (const form of $$("form[data-send]")) HTMLFormElement.prototype.requestSubmit.call(form);

const SIGNED_OUT = "You were signed out. Sign in to save your changes.";

// Send the form as a browser does: the answer is the sign-in page, which keeps it.
function leave(form, action) {
  form.append(Object.assign(document.createElement("input"), { type: "hidden", name: "action", value: action }));
  HTMLFormElement.prototype.submit.call(form);
}

// -- filters apply as they are chosen -----------------------------------------------------------------------------------

for (const form of $$("form[data-auto]")) {
  form.addEventListener("change", () => form.requestSubmit());
}

// -- a start in the past asks whether past periods are billed ------------------------------------------------------------

const DAY_MS = 86_400_000; // the start is in the organization's zone, which may be almost a day ahead of the reader's
for (const choice of $$("[data-past-start]")) {
  const start = choice.form.elements.started_at;
  const update = () => {
    const needed = new Date(start.value) < Date.now() + DAY_MS || choice.querySelector(":checked, [aria-invalid]");
    choice.hidden = !needed;
  };
  start.addEventListener("input", update);
  update();
}

// -- live numbers ------------------------------------------------------------------------------------------------------

// Quantities are decimal strings and may be longer than a double holds: grouped as text, never parsed.
function grouped(text) {
  const [, sign, whole, fraction] = /^(-?)(\d+)(?:\.(\d+))?$/.exec(text);
  const tail = (fraction ?? "").replace(/0+$/, "");
  return sign + whole.replace(/\B(?=(\d{3})+$)/g, ",") + (tail ? `.${tail}` : "");
}

function moved(element) {
  element.classList.add("moved");
  setTimeout(() => element.classList.remove("moved"), 120);
}

function show(row) {
  const cell = document.querySelector(`[data-total="${CSS.escape(`${row.customer_id}|${row.meter_id}`)}"]`);
  if (!cell) return false;
  if (row.from < (cell.dataset.from ?? "")) return true; // an older cycle than the one that is shown
  if (cell.dataset.from && cell.dataset.from !== row.from) return false; // a new cycle has its own label
  const text = grouped(row.quantity);
  if (cell.textContent !== text) {
    cell.textContent = text;
    moved(cell);
  }
  return true;
}

const refreshing = new Map();

// Fetch a part of the page anew, at most once a second: rows that are not there yet, and alerts.
function refresh(name) {
  if (refreshing.has(name)) return refreshing.set(name, "again");
  refreshing.set(name, "once");
  setTimeout(async () => {
    for (const part of $$(`[data-part="${name}"]`)) {
      const answer = await fetch(part.dataset.source, { headers: { Accept: "text/html" } });
      if (answer.ok && !answer.redirected) part.innerHTML = await answer.text();
    }
    const again = refreshing.get(name) === "again";
    refreshing.delete(name);
    if (again) setTimeout(() => refresh(name), 700);
  }, 150);
}

function follow() {
  const status = document.querySelector("[data-live-status]");
  const say = (text, tone) => status && ((status.textContent = text), (status.className = `badge dot ${tone}`));
  const source = new EventSource("/live/stream");
  // What changed between the page's making and now, or while the connection was lost, is fetched once.
  const catchUp = () => (refresh("totals"), refresh("alerts"));
  source.addEventListener("ready", () => (say("Live", "good"), catchUp()));
  // The browser connects again by itself, unless the answer is an error: the session is over.
  source.addEventListener("error", () =>
    source.readyState === EventSource.CLOSED ? say("Disconnected. Reload the page", "bad") : say("Reconnecting", "warn"),
  );
  source.addEventListener("totals", (event) => {
    const unknown = JSON.parse(event.data).filter((row) => !show(row));
    if (unknown.length) refresh("totals");
  });
  source.addEventListener("alerts", () => refresh("alerts"));
  source.addEventListener("resync", catchUp);
  addEventListener("pagehide", () => source.close());
}

if (document.querySelector("[data-live]")) follow();

// Parts that took too long to be on the page when it came.
for (const part of $$("[data-load]")) {
  fetch(part.dataset.source, { headers: { Accept: "text/html" } })
    .then(async (answer) => (answer.ok ? answer.text() : Promise.reject(new Error(answer.status))))
    .then((html) => (part.innerHTML = html))
    .catch(() => (part.querySelector("[role=status]").textContent = "Couldn't load. Try again."))
    .finally(() => part.removeAttribute("aria-busy"));
}

// Parts that change by themselves, while someone looks.
for (const part of $$("[data-every]")) {
  setInterval(() => document.visibilityState === "visible" && refresh(part.dataset.part), part.dataset.every * 1000);
}

// -- the editor of prices ----------------------------------------------------------------------------------------------

// Every button is a submit button, so the editor works without a script; with one, only its inside is fetched anew.
for (const form of $$("form[data-editor]")) {
  const edit = async (action) => {
    const body = new URLSearchParams(new FormData(form));
    body.set("action", action);
    // Not form.action: that is the buttons of this name.
    const answer = await fetch(location.pathname, { method: "POST", body, headers: { "X-Part": "1" } });
    return answer.status === 401 ? SIGNED_OUT : answer.ok ? answer.text() : null;
  };
  const replace = async (action) => {
    const sent = new FormData(form);
    const html = await edit(action);
    if (html === SIGNED_OUT) return leave(form, action);
    if (html === null) return;
    // What was typed while the answer was under way stays; a removed price has moved the others' places.
    const typed = action.startsWith("remove") ? [] : [...new FormData(form)].filter(([name, text]) => sent.get(name) !== text);
    const { id: focused, selectionStart: from, selectionEnd: to } = document.activeElement ?? {};
    form.innerHTML = html;
    for (const [name, text] of typed) {
      const field = form.elements.namedItem(name);
      if (field) field.value = text;
    }
    const field = focused ? document.getElementById(focused) : null; // by its id, since it is another element now
    field?.focus();
    if (field && Number.isInteger(from)) field.setSelectionRange(from, to); // typing goes on where it was
    if (typed.length) showExamples();
  };
  form.addEventListener("submit", (event) => {
    const action = event.submitter?.value ?? "save";
    if (action === "save") return;
    event.preventDefault();
    replace(action);
  });
  form.addEventListener("change", (event) => event.target.matches("[data-refresh]") && replace("refresh"));
  let waiting;
  const showExamples = () => {
    clearTimeout(waiting);
    waiting = setTimeout(async () => {
      const html = await edit("refresh");
      if (html === null) return;
      if (html === SIGNED_OUT) return $$("[data-example]", form).forEach((line) => (line.textContent = html));
      const fresh = new DOMParser().parseFromString(html, "text/html");
      for (const line of $$("[data-example]", form)) {
        line.textContent = fresh.querySelector(`[data-example="${line.dataset.example}"]`)?.textContent ?? "";
      }
    }, 250);
  };
  form.addEventListener("input", (event) => event.target.matches("input") && showExamples());
  // Enter in a field means "save", not the first button of the form.
  form.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && event.target.matches("input")) {
      event.preventDefault();
      form.querySelector('[value="save"]').click();
    }
  });
}
