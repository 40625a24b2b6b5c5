// What the other scripts share: elements, data, pictures by image id, and the places that addresses name.
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const one = (selector, root = document) => root.querySelector(selector);

// An element with attributes and children; texts are only ever set as texts.
const make = (tag, attributes = {}, ...children) => {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
};

// The rows of a block of data; a null ends them.
const rowsOf = (id) => JSON.parse(document.getElementById(id).textContent).slice(0, -1);

// image id → the picture that the page has of it; what is taken out of the page is gone here too.
const thumbs = new Map(all("img[data-image-id]").reverse().map((image) => [image.dataset.imageId, image]));

const openers = []; // functions that make the element of an address visible

const goTo = (id) => {
  const target = id && document.getElementById(id);
  if (!target) return;
  for (let parent = target; parent; parent = parent.parentElement) if (parent.tagName === "DETAILS") parent.open = true;
  openers.forEach((open) => open(target));
  target.scrollIntoView();
};
const goToAddress = () => goTo(location.hash.slice(1)); // of letters, digits, dots and dashes, as all our names
const setAddress = (id) => history.replaceState(null, "", `#${id}`);

addEventListener("hashchange", goToAddress);
addEventListener("DOMContentLoaded", goToAddress);

// The step of the funnel that is open is the page's address.
all("details.step").forEach((step) =>
  step.addEventListener("toggle", () => {
    if (step.open) setAddress(step.id);
  }),
);
