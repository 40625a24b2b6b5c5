// The bars of the costs: by the measure that is chosen.
const measures = {
  busy: "busy time",
  rate: "images a second",
  gpu: "GPU-hours",
  read: "bytes read",
  written: "bytes written",
  memory: "peak memory",
};
const costs = all("#cost-table tr[data-busy]");
const chooser = document.getElementById("cost-measure");
if (costs.length) {
  const options = Object.entries(measures).map(([name, text]) => make("option", { value: name }, text));
  const select = make("select", { id: "cost-by" }, ...options);
  chooser.append(make("label", { for: "cost-by" }, "Bars show "), select);
  chooser.hidden = false;
  select.addEventListener("change", () => {
    const values = costs.map((row) => Number(row.dataset[select.value]));
    const most = Math.max(...values, 1e-9);
    costs.forEach((row, index) => {
      one(".bar rect:not(.ground)", row).setAttribute("width", (100 * values[index]) / most);
    });
  });
}
