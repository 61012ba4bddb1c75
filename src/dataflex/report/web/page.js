(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const colours = (printing) => {
    const light = printing || !dark.matches;
    return { text: light ? "#1c1c20" : "#e6e6ea", grid: light ? "#dcdce2" : "#363943" };
  };
  const themed = (printing) => {
    const { text, grid } = colours(printing);
    return { "font.color": text, "xaxis.gridcolor": grid, "yaxis.gridcolor": grid, "xaxis.linecolor": grid,
      "yaxis.zerolinecolor": grid, "xaxis.zerolinecolor": grid };
  };
  const config = { responsive: true, displaylogo: false,
    displayModeBar: window.matchMedia("(hover: hover)").matches ? "hover" : false,
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"] };
  const drawn = new Set();
  const resized = new ResizeObserver((entries) => entries.forEach((entry) => Plotly.Plots.resize(entry.target)));
  const draw = (element) => {
    if (drawn.has(element)) return;
    drawn.add(element);
    const { data, layout } = figures[Number(element.id.slice(6))];
    const { text, grid } = colours(false);
    const axis = { gridcolor: grid, linecolor: grid, zerolinecolor: grid };
    const below = { orientation: "h", x: 0, xanchor: "left", yref: "container", y: 0.01, yanchor: "bottom", font: { size: 11 } };
    Plotly.newPlot(element, data, {
      height: 320, margin: { l: 48, r: 12, t: 18, b: layout.showlegend ? 76 : 48 }, hovermode: "closest", bargap: 0.15,
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", legend: below,
      ...layout,
      font: { color: text, size: 12, family: "system-ui, sans-serif" },
      xaxis: { ...layout.xaxis, ...axis }, yaxis: { ...layout.yaxis, ...axis },
    }, config);
    resized.observe(element);
  };
  const plots = [...document.querySelectorAll(".plot")];
  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) if (entry.isIntersecting) { draw(entry.target); seen.unobserve(entry.target); }
  }, { rootMargin: "400px" });
  plots.forEach((element) => seen.observe(element));
  const repaint = (printing) => drawn.forEach((element) => Plotly.relayout(element, themed(printing)));
  dark.addEventListener("change", () => repaint(false));
  window.addEventListener("beforeprint", () => {
    document.querySelectorAll("details.section").forEach((element) => { element.open = true; });
    plots.forEach(draw);
    repaint(true);
  });
  window.addEventListener("afterprint", () => repaint(false));
})();
