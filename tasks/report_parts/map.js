// The map of the clusters on a canvas: wheel, pinch, buttons and keys zoom and pan; pointing at a point tells of it.
const mapView = document.getElementById("map-view");
const dots = (mapView ? rowsOf("data-map") : []).map(([id, x, y, cluster, published, by]) => {
  return { id, x, y, cluster, published: Boolean(published), by, image: thumbs.get(id) };
});
if (dots.length) {
  const [names] = rowsOf("data-names");
  const MOST = 60, NEAR = 14, PICTURES_FROM = 5, PICTURE = 44;
  const canvas = make("canvas", {
    tabindex: 0,
    role: "application",
    "aria-roledescription": "map",
    "aria-describedby": "map-help",
    "aria-label": "Map of the clusters; there is a table of it too",
  });
  const card = make("div", { class: "card", hidden: true });
  const says = make("p", { class: "says muted", role: "status", "aria-live": "polite" });
  const colours = { state: "published or not", cluster: "cluster" };
  if (names.length > 1) colours.selection = "collection";
  const options = Object.entries(colours).map(([value, text]) => make("option", { value }, text));
  const mode = make("select", { id: "map-colour" }, ...options);
  const looked = { zoom: 1, x: 500, y: 500 };
  let width = 0, height = 0, at = null;

  const scale = () => (Math.min(width, height) / 1060) * looked.zoom;
  const toScreen = (dot) => [(dot.x - looked.x) * scale() + width / 2, (dot.y - looked.y) * scale() + height / 2];
  const style = (name) => getComputedStyle(mapView).getPropertyValue(name).trim();
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const hue = (number) => `hsl(${(number * 137.508 + 210) % 360} 62% ${dark.matches ? 65 : 44}%)`;
  const colourOf = (dot, accent, gone) => {
    if (mode.value === "cluster") return dot.cluster < 0 ? gone : hue(dot.cluster);
    if (mode.value === "selection") return dot.by.length ? hue(dot.by[0]) : gone;
    return dot.published ? accent : gone;
  };

  const small = new Map(); // image id → a picture that can be painted
  const paintable = (dot) => {
    if (!small.has(dot.id)) {
      const image = new Image();
      image.onload = draw;
      image.src = dot.image.src;
      small.set(dot.id, image);
    }
    const image = small.get(dot.id);
    return image.complete && image.naturalWidth ? image : null;
  };

  const draw = () => {
    const ratio = devicePixelRatio || 1;
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    const pen = canvas.getContext("2d");
    pen.scale(ratio, ratio);
    const [accent, gone, text, ground] = ["--accent", "--gone", "--text", "--ground"].map(style);
    const radius = Math.min(6, 2.4 * Math.sqrt(looked.zoom));
    const isNear = ([, x, y]) => x > -60 && y > -60 && x < width + 60 && y < height + 60;
    const inside = dots.map((dot) => [dot, ...toScreen(dot)]).filter(isNear);
    for (const kept of [false, true])
      for (const [dot, x, y] of inside) {
        if (dot.published !== kept) continue;
        pen.globalAlpha = 0.9;
        pen.fillStyle = colourOf(dot, accent, gone);
        pen.beginPath();
        pen.arc(x, y, radius, 0, 7);
        pen.fill();
      }
    pen.globalAlpha = 1;
    for (const [dot, x, y] of inside.filter(([dot]) => dot.image).sort(([a], [b]) => (a === at) - (b === at))) {
      const image = looked.zoom >= PICTURES_FROM ? paintable(dot) : null;
      pen.strokeStyle = image ? colourOf(dot, accent, gone) : text;
      pen.lineWidth = image ? 2 : 0.8;
      if (image) {
        const part = PICTURE / Math.max(image.naturalWidth, image.naturalHeight);
        const [w, h] = [image.naturalWidth * part, image.naturalHeight * part];
        pen.drawImage(image, x - w / 2, y - h / 2, w, h);
        pen.strokeRect(x - w / 2, y - h / 2, w, h);
      } else {
        pen.beginPath();
        pen.arc(x, y, radius + 1.2, 0, 7);
        pen.stroke();
      }
    }
    if (at) {
      const [x, y] = toScreen(at);
      const reach = at.image && looked.zoom >= PICTURES_FROM ? PICTURE * 0.7 : radius;
      pen.lineWidth = 3;
      for (const [colour, more] of [[ground, 4], [accent, 6]]) {
        pen.strokeStyle = colour;
        pen.beginPath();
        pen.arc(x, y, reach + more, 0, 7);
        pen.stroke();
      }
    }
    mapView.dataset.zoom = looked.zoom.toFixed(2);
    canvas.style.touchAction = looked.zoom > 1 ? "none" : "pan-y";
  };

  const telling = (dot) => {
    const by = dot.by.length ? ` for ${dot.by.map((number) => names[number]).join(", ")}` : "";
    const where = dot.cluster < 0 ? "in no cluster" : `cluster ${dot.cluster}`;
    return `${where}, ${dot.published ? "published" : "not published"}${by}`;
  };
  const point = (dot) => {
    at = dot;
    card.hidden = !dot;
    if (dot) {
      const picture = dot.image ? [make("img", { src: dot.image.src, alt: dot.image.alt })] : [];
      card.replaceChildren(...picture, make("span", {}, telling(dot)), make("small", {}, dot.id));
      const [x, y] = toScreen(dot);
      card.style.left = `${Math.max(0, Math.min(x + 14, width - 190))}px`;
      card.style.top = `${Math.max(0, Math.min(y + 14, height - (dot.image ? 210 : 60)))}px`;
    }
    draw();
  };
  const zoom = (factor, x = width / 2, y = height / 2) => {
    const before = scale();
    looked.zoom = Math.min(MOST, Math.max(1, looked.zoom * factor));
    const after = scale();
    looked.x += (x - width / 2) * (1 / before - 1 / after);
    looked.y += (y - height / 2) * (1 / before - 1 / after);
    if (looked.zoom === 1) looked.x = looked.y = 500;
    point(at);
  };
  const pan = (x, y) => {
    looked.x = Math.min(1000, Math.max(0, looked.x - x / scale()));
    looked.y = Math.min(1000, Math.max(0, looked.y - y / scale()));
    point(at);
  };
  const reset = () => zoom(0);
  const nearest = (x, y) => {
    let best = null, least = NEAR * NEAR;
    for (const dot of dots) {
      const [dx, dy] = toScreen(dot);
      const distance = (dx - x) ** 2 + (dy - y) ** 2;
      if (distance < least) [best, least] = [dot, distance];
    }
    return best;
  };
  const place = (event) => {
    const box = canvas.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  };
  const openAt = () => {
    const figure = at?.image?.closest("figure.pic");
    if (figure) openFigure(figure, [figure]);
  };

  canvas.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && document.activeElement !== canvas) return; // the page scrolls until the map was clicked
    event.preventDefault();
    zoom(Math.exp(-event.deltaY / (event.ctrlKey ? 100 : 300)), ...place(event));
  }, { passive: false });

  const fingers = new Map();
  let moved = 0;
  canvas.addEventListener("pointerdown", (event) => {
    if (!fingers.size) moved = 0;
    fingers.set(event.pointerId, place(event));
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointermove", (event) => {
    const here = place(event);
    const last = fingers.get(event.pointerId);
    if (!last) {
      const dot = nearest(...here);
      if (dot !== at) point(dot);
      return;
    }
    const other = [...fingers].find(([id]) => id !== event.pointerId)?.[1];
    if (other) {
      const gap = ([x, y]) => Math.max(1, Math.hypot(x - other[0], y - other[1]));
      zoom(gap(here) / gap(last), (here[0] + other[0]) / 2, (here[1] + other[1]) / 2);
    } else pan(here[0] - last[0], here[1] - last[1]);
    moved += Math.hypot(here[0] - last[0], here[1] - last[1]);
    fingers.set(event.pointerId, here);
  });
  const lift = (event) => {
    if (!fingers.delete(event.pointerId) || moved >= 6 || event.type !== "pointerup") return;
    const dot = nearest(...place(event));
    if (dot && dot === at && event.pointerType === "touch") openAt();
    point(dot);
    says.textContent = at ? telling(at) : "";
  };
  ["pointerup", "pointercancel"].forEach((type) => canvas.addEventListener(type, lift));
  canvas.addEventListener("pointerleave", (event) => {
    if (event.pointerType !== "touch" && !fingers.size) point(null); // a finger leaves as it lifts
  });
  canvas.addEventListener("dblclick", openAt);

  const pictured = dots.filter((dot) => dot.image);
  const next = (by) => {
    if (!pictured.length) return;
    const index = pictured.indexOf(at);
    const dot = pictured[(index < 0 && by < 0 ? pictured.length - 1 : index + by + pictured.length) % pictured.length];
    const [x, y] = toScreen(dot);
    if (x < 20 || y < 20 || x > width - 20 || y > height - 20) [looked.x, looked.y] = [dot.x, dot.y];
    point(dot);
    says.textContent = `${dot.image.alt}: ${telling(dot)}`;
  };
  const keys = {
    "+": () => zoom(1.5), "=": () => zoom(1.5), "-": () => zoom(1 / 1.5), 0: reset,
    ArrowLeft: () => pan(60, 0), ArrowRight: () => pan(-60, 0), ArrowUp: () => pan(0, 60), ArrowDown: () => pan(0, -60),
    n: () => next(1), p: () => next(-1), Enter: openAt, Escape: () => point(null),
  };
  canvas.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || !keys[event.key]) return;
    keys[event.key]();
    event.preventDefault();
  });

  const button = (text, label, onclick) => make("button", { type: "button", "aria-label": label, onclick }, text);
  const bar = make("div", { class: "tools" }, make("label", { for: "map-colour" }, "Colour by "), mode,
    button("+", "Zoom in", () => zoom(1.5)), button("−", "Zoom out", () => zoom(1 / 1.5)),
    button("Whole map", "Show the whole map", reset));
  const help = make("p", { id: "map-help", class: "muted" },
    "Click the map, then the wheel zooms; drag, pinch, or keys: + − 0, arrows, n and p for the next and the last " +
      "picture; Enter, a double click or a second tap opens it.");
  mode.addEventListener("change", draw);
  mapView.replaceChildren(make("div", { class: "field" }, canvas, card));
  mapView.before(bar);
  mapView.after(says, help);
  const fit = () => {
    width = mapView.clientWidth;
    height = Math.round(Math.min(width, 640, innerHeight * 0.8));
    canvas.style.height = `${height}px`;
    draw();
  };
  new ResizeObserver(fit).observe(mapView);
  dark.addEventListener("change", draw);
}
