// Pages of collections: one at a time, chosen by tabs; without scripts they stand one below the other.
all("[data-tabs]").forEach((group) => {
  const panels = all(":scope > section", group);
  if (panels.length < 2) return;
  const tabs = panels.map((panel) =>
    make(
      "button",
      { type: "button", role: "tab", "aria-controls": panel.id, id: `tab-${panel.id}` },
      panel.dataset.title,
    ),
  );
  const choose = (index) =>
    panels.forEach((panel, number) => {
      panel.hidden = number !== index;
      tabs[number].setAttribute("aria-selected", number === index);
      tabs[number].setAttribute("tabindex", number === index ? 0 : -1);
    });
  const bar = make("div", { class: "tabs", role: "tablist", "aria-label": group.dataset.tabs }, ...tabs);
  bar.addEventListener("click", (event) => {
    const index = tabs.indexOf(event.target);
    if (index < 0) return;
    choose(index);
    setAddress(panels[index].id);
  });
  bar.addEventListener("keydown", (event) => {
    const now = tabs.indexOf(event.target);
    const place = { ArrowLeft: now - 1, ArrowRight: now + 1, Home: 0, End: -1 }[event.key];
    if (place === undefined) return;
    const next = tabs.at(place % tabs.length);
    next.click();
    next.focus();
    event.preventDefault();
  });
  panels.forEach((panel, index) => {
    panel.setAttribute("role", "tabpanel");
    panel.setAttribute("aria-labelledby", tabs[index].id);
  });
  group.prepend(bar);
  choose(0);
  openers.push((target) => {
    const index = panels.findIndex((panel) => panel.contains(target));
    if (index >= 0) choose(index);
  });
});
