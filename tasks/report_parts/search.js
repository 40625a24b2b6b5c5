// The search over the ledger's rows that are in this page: key, image id, state, stage, reason, score, cause, role.
const FIRST = 20, MORE = 100; // rows that are listed, and with every press of the button
const form = document.getElementById("ledger-form");
if (form) {
  const entries = rowsOf("data-ledger");
  const texts = entries.map(([id, key]) => `${key}\n${id}`.toLowerCase());
  const total = Number(form.dataset.total);
  const here = entries.length < total ? " here" : ""; // of a sample nothing is said of the whole
  const said = (number) => number.toLocaleString("en");
  const counted = (column) => {
    const counts = new Map();
    entries.forEach((entry) => counts.set(entry[column], (counts.get(entry[column]) ?? 0) + 1));
    return [...counts].sort((a, b) => b[1] - a[1]);
  };
  const select = (id, text, column) => {
    const options = counted(column).map(([value, n]) => make("option", { value }, `${value} (${said(n)}${here})`));
    return make("label", {}, text, make("select", { id }, make("option", { value: "" }, "any"), ...options));
  };
  const placeholder = "part of a URL, a path or an image id";
  const options = { placeholder, autocomplete: "off", spellcheck: "false" };
  const input = make("input", { type: "search", id: "ledger-text", ...options });
  form.append(make("label", { class: "wide" }, "Key or id", input));
  form.append(select("ledger-state", "State", 2), select("ledger-reason", "Reason", 4));
  form.hidden = false;

  const button = (kind, label, onclick, content) =>
    make("button", { type: "button", class: kind, title: label, "aria-label": label, onclick }, content);
  const line = ([id, key, state, stage, reason, score, cause]) => {
    const image = id && thumbs.get(id);
    const open = () => openFigure(image.closest("figure.pic"), [image.closest("figure.pic")]);
    const name = make("td", { class: "text" }, key, make("small", { class: "id" }, id));
    const small = image && make("img", { src: image.src, alt: "" });
    if (image) name.prepend(button("look", `Open the picture of ${key}`, open, small));
    const cells = [state, stage, reason].map((text) => make("td", {}, text));
    const follow = () => {
      input.value = cause;
      search();
      input.focus();
    };
    const why = make("td", { class: "muted" });
    if (cause) why.append(button("cause", `Search for ${cause}`, follow, cause.slice(0, 12)));
    return make("tr", {}, name, ...cells, make("td", { class: "n" }, score === null ? "" : String(score)), why);
  };
  const rows = document.getElementById("ledger-rows");
  const more = make("button", { type: "button", id: "ledger-more", onclick: () => list(MORE) });
  rows.closest("table").classList.add("pictured");
  rows.closest(".scroll").after(more);
  let found = [];
  const list = (number) => {
    const shown = rows.children.length;
    rows.append(...found.slice(shown, shown + number).map(line));
    const left = found.length - rows.children.length;
    more.textContent = `Show ${said(Math.min(left, MORE))} more`;
    more.hidden = !left;
  };
  const search = () => {
    const [state, reason] = ["state", "reason"].map((name) => document.getElementById(`ledger-${name}`).value);
    const wanted = input.value.trim().toLowerCase();
    const isOf = (entry) => (!state || entry[2] === state) && (!reason || entry[4] === reason);
    found = entries.filter((entry, index) => texts[index].includes(wanted) && isOf(entry));
    rows.replaceChildren();
    list(FIRST);
    const counts = `${said(found.length)} of the ${said(entries.length)}${here} match`;
    const rest = here && `; ${said(total - entries.length)} more candidates are not in this page`;
    document.getElementById("ledger-found").textContent = counts + rest;
  };
  let waiting = 0;
  form.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(search, 120);
  });
  search();
}
