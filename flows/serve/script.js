// What the pages do beyond links and forms. Everything that is shown was escaped by the server.
"use strict";

const parsed = (text) => new DOMParser().parseFromString(text, "text/html");

async function pageOf(address, options) {
  const answer = await fetch(address, options).catch(() => {
    throw new Error("The server does not answer: is lvd serve still running?");
  });
  const page = parsed(await answer.text());
  if (!answer.ok) throw new Error(page.querySelector(".trouble")?.textContent || `${answer.status} ${answer.statusText}`);
  return page;
}

function say(target, text) {
  const line = document.createElement("p");
  line.className = "trouble";
  line.textContent = text;
  target.replaceChildren(line);
}

// Shows what the address says in place of the element; an answer that comes after a later question is let go.
const asked = new WeakMap();
async function show(target, address, options) {
  const turn = {};
  asked.set(target, turn);
  target.setAttribute("aria-busy", "true");
  try {
    const page = await pageOf(address, { headers: { Accept: "text/html" }, ...options });
    if (asked.get(target) === turn) target.replaceChildren(...page.getElementById(target.id).childNodes);
  } catch (error) {
    if (asked.get(target) === turn) say(target, error.message);
  }
  if (asked.get(target) === turn) target.removeAttribute("aria-busy");
}

for (const form of document.querySelectorAll("form[data-live]")) {
  const target = document.getElementById(form.dataset.live);
  let waiting;
  const search = () => {
    const given = [...new FormData(form)].filter(([, value]) => value !== "");
    const address = `${form.getAttribute("action")}?${new URLSearchParams(given)}`;
    history.replaceState(null, "", address);
    show(target, address);
  };
  form.addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(search, 250); });
  form.addEventListener("submit", (event) => { event.preventDefault(); clearTimeout(waiting); search(); });
}

function wait(target) {
  const line = document.createElement("p");
  line.textContent = "Comparing with all images …";
  target.replaceChildren(line);
}

for (const target of document.querySelectorAll("[data-from]")) {
  wait(target);
  show(target, target.dataset.from);
}

for (const form of document.querySelectorAll("form[data-find]")) {
  const target = document.getElementById("findings");
  const preview = document.querySelector("img.asked");
  preview.addEventListener("error", () => { preview.hidden = true; });
  const find = (file) => {
    if (!file) return;
    URL.revokeObjectURL(preview.src);
    preview.hidden = true;
    if (file.size > Number(form.dataset.most)) {
      asked.set(target, {});
      say(target, `A picture may have at most ${form.dataset.most} bytes, this one has ${file.size}.`);
      return;
    }
    preview.src = URL.createObjectURL(file);
    preview.hidden = false;
    const address = `${form.dataset.find}?${new URLSearchParams({ name: file.name })}`;
    wait(target);
    show(target, address, { method: "POST", body: file, headers: { Accept: "text/html", "Content-Type": "application/octet-stream" } });
  };
  form.addEventListener("submit", (event) => event.preventDefault());
  form.querySelector("input[type=file]").addEventListener("change", (event) => find(event.target.files[0]));
  document.addEventListener("dragover", (event) => { event.preventDefault(); form.classList.add("over"); });
  document.addEventListener("dragleave", () => form.classList.remove("over"));
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    form.classList.remove("over");
    find(event.dataTransfer.files[0]);
  });
  document.addEventListener("paste", (event) => find(event.clipboardData.files[0]));
}

// A picture that is not shown says so in its place.
document.addEventListener("error", (event) => {
  if (event.target.matches?.("img[data-image-id]")) event.target.replaceWith("no picture");
}, true);

// "/" goes to the first field, as on many sites.
document.addEventListener("keydown", (event) => {
  const field = document.querySelector("[data-focus]");
  const typing = event.target.matches("input, select, textarea, [contenteditable]");
  if (event.key === "/" && field && !typing && !event.ctrlKey && !event.metaKey && !event.altKey) {
    event.preventDefault();
    field.focus();
  }
});
