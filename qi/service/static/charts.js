// Histograms as SVG.
"use strict";
var Charts = (function () {
  var SPACE = "http://www.w3.org/2000/svg", WIDTH = 1000, HEIGHT = 190, FLOOR = 168, TOP = 16;
  var TICKS = [[0, "start"], [0.25, "middle"], [0.5, "middle"], [0.75, "middle"], [1, "end"]];

  function element(name, attributes, text) {
    var made = document.createElementNS(SPACE, name);
    Object.keys(attributes).forEach(function (key) { made.setAttribute(key, attributes[key]); });
    if (text !== undefined) { made.textContent = text; }
    return made;
  }

  function short(x) {
    if (Number.isInteger(x) && Math.abs(x) < 1e6) { return String(x); }
    return String(Number(x.toPrecision(4)));
  }

  // lo and hi: what the ends of the axis stand for; whole: whether only whole numbers do.
  function draw(place, counts, lo, hi, title, whole) {
    var svg = element("svg", { viewBox: "0 0 " + WIDTH + " " + HEIGHT, role: "img", "aria-label": title });
    var most = counts.reduce(function (a, b) { return Math.max(a, b); }, 1), step = WIDTH / counts.length, gap = Math.min(1, step / 4);
    counts.forEach(function (count, i) {
      if (!count) { return; }
      var height = Math.max(1, (FLOOR - TOP) * count / most);
      var bar = { x: (i * step).toFixed(2), y: (FLOOR - height).toFixed(2), width: (step - gap).toFixed(2), height: height.toFixed(2) };
      svg.appendChild(element("rect", bar)).appendChild(element("title", {}, count + " values"));
    });
    svg.appendChild(element("line", { x1: 0, x2: WIDTH, y1: FLOOR, y2: FLOOR }));
    TICKS.forEach(function (tick) {
      if (!counts.length) { return; }
      var value = lo + (hi - lo) * tick[0], at = { x: WIDTH * tick[0], y: HEIGHT - 6, "text-anchor": tick[1] };
      svg.appendChild(element("text", at, short(whole ? Math.round(value) : value)));
    });
    place.replaceChildren(svg);
  }

  return { draw: draw, short: short };
})();
