// Galleries: one stop of the Tab key each, arrow keys within; a picture opens larger beside what it was dropped for.
const picturesOf = (gallery) =>
  all("figure.pic", gallery).filter((figure) => one("img", figure) && figure.offsetParent);

const dialog = make("dialog", { class: "viewer", "aria-label": "Picture" });
const pictures = make("div", { class: "pair" });
const caption = make("p", { class: "caption", "aria-live": "polite" });
let shown = [];
let place = 0;

const frame = (figure, text) => {
  const image = one("img", figure);
  const copy = make("img", { src: image.src, alt: image.alt, class: image.className });
  return make("figure", {}, copy, make("figcaption", {}, text));
};

const show = (index) => {
  place = (index + shown.length) % shown.length;
  const figure = shown[place];
  const row = figure.closest(".row");
  const head = row && one("figure.pic.kept", row);
  const note = (of) => one("figcaption b", of)?.textContent ?? "";
  const beside = head && head !== figure && one("img", head) ? [frame(head, note(head))] : [];
  pictures.replaceChildren(...beside, frame(figure, note(figure)));
  caption.textContent = `${place + 1} of ${shown.length} · ${figure.title}`;
};

const close = make("button", { type: "button", onclick: () => dialog.close() }, "Close");
const step = (by, text) => make("button", { type: "button", onclick: () => show(place + by) }, text);
dialog.append(pictures, caption, make("div", { class: "keys" }, step(-1, "‹ Previous"), step(1, "Next ›"), close));
dialog.addEventListener("keydown", (event) => {
  const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (by) show(place + by);
});
dialog.addEventListener("click", (event) => {
  if (event.target === dialog) dialog.close();
});
let opener = null;
dialog.addEventListener("close", () => opener?.focus());
document.body.append(dialog);

const openFigure = (figure, among) => {
  opener = document.activeElement;
  shown = among;
  show(Math.max(0, among.indexOf(figure)));
  dialog.showModal();
  close.focus();
};

// Where the Tab key stops in a gallery: at this picture, else at the first one that is seen.
const stopAt = (gallery, picture = null) => {
  const handles = all("figure.pic > [role=button]", gallery);
  const stop = picture ?? handles.find((handle) => !handle.closest("[hidden]"));
  handles.forEach((handle) => handle.setAttribute("tabindex", handle === stop ? 0 : -1));
};

all("[data-gallery]").forEach((gallery) => {
  const figures = all("figure.pic", gallery).filter((figure) => one("img", figure));
  figures.forEach((figure) => {
    const handle = figure.firstElementChild;
    handle.setAttribute("role", "button");
    handle.setAttribute("aria-label", `Open larger: ${one("img", handle).alt}`);
  });
  stopAt(gallery);
  const of = (event) => event.target.closest("figure.pic");
  gallery.addEventListener("click", (event) => {
    if (figures.includes(of(event))) openFigure(of(event), picturesOf(gallery));
  });
  gallery.addEventListener("keydown", (event) => {
    const figure = of(event);
    if (!figures.includes(figure)) return;
    const visible = picturesOf(gallery);
    const by = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 }[event.key];
    if (event.key === "Enter" || event.key === " ") openFigure(figure, visible);
    else if (by) {
      const next = visible[(visible.indexOf(figure) + by + visible.length) % visible.length].firstElementChild;
      stopAt(gallery, next);
      next.focus();
    } else return;
    event.preventDefault();
  });
});

// Where a part of the page has several kinds of pictures, one kind can be looked at alone.
all("[data-filter]").forEach((part) => {
  const tagged = all("[data-kind]", part);
  const kinds = [...new Set(tagged.map((element) => element.dataset.kind))];
  if (kinds.length < 2) return;
  const choose = (kind) => {
    tagged.forEach((element) => (element.hidden = kind !== null && element.dataset.kind !== kind));
    buttons.forEach((button, index) => button.setAttribute("aria-pressed", [null, ...kinds][index] === kind));
    all("[data-gallery]", part).forEach((gallery) => stopAt(gallery));
  };
  const buttons = [null, ...kinds].map((kind) =>
    make("button", { type: "button", "data-choice": kind ?? "all", onclick: () => choose(kind) }, kind ?? "all"),
  );
  const label = `Pictures by ${part.dataset.filter}`;
  const bar = make("div", { class: "chips", role: "group", "aria-label": label }, ...buttons);
  tagged[0].closest(".sheet").before(bar);
  choose(null);
});
