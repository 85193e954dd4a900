// The page: a file in, a look at what quantization makes of it, files out.
"use strict";
(function () {
  var BINS = 160, MOST_BARS = 256;
  var urls = {}, file = null, run = 0;

  function at(id) { return document.getElementById(id); }
  function say(text, bad) {
    at("message").textContent = text;
    at("message").classList.toggle("bad", Boolean(bad));
    at("message").hidden = !text;
  }
  function headers() { return at("key").value ? { Authorization: "Bearer " + at("key").value } : {}; }
  function parameters() {
    var given = {};
    if (at("layer").value) { given.layer_name = at("layer").value; }
    if (at("channel").value !== "") { given.channel_dim = Number(at("channel").value); }
    return given;
  }

  function span(numbers) {
    var range = Measures.range(numbers);
    return Charts.short(range.lo) + (range.hi > range.lo ? " to " + Charts.short(range.hi) : "");
  }
  function bytes(n) {
    var unit = ["B", "kB", "MB", "GB"], i = 0;
    while (n >= 1000 && i < 3) { n /= 1000; i++; }
    return Number(n.toPrecision(3)) + " " + unit[i];
  }
  function facts(entries) {
    at("facts").replaceChildren.apply(at("facts"), entries.map(function (entry) {
      var box = document.createElement("div"), term = document.createElement("dt"), value = document.createElement("dd");
      term.textContent = entry[0];
      value.textContent = entry[1];
      value.id = "fact-" + entry[0].replace(/\W+/g, "-");
      if (entry[2]) { value.appendChild(document.createElement("small")).textContent = entry[2]; }
      box.append(term, value);
      return box;
    }));
  }
  function offer(id, blob, name) {
    if (urls[id]) { URL.revokeObjectURL(urls[id]); }
    urls[id] = at(id).href = URL.createObjectURL(blob);
    at(id).download = name;
  }

  // The codes that there may be, one bar each; where they are too many, or none, the range there is.
  function drawCodes(codes, bits) {
    var whole = /INT/.test(codes.datatype), half = whole ? Math.pow(2, bits - 1) : 0;
    var each = whole && 2 * half <= MOST_BARS, seen = Measures.range(codes.numbers);
    var ends = !each ? [seen.lo, seen.hi] : codes.datatype[0] === "U" ? [0, 2 * half - 1] : [-half, half - 1];
    var counts = isFinite(ends[0]) ? Measures.histogram(codes.numbers, ends[0], ends[1], each ? ends[1] - ends[0] + 1 : BINS) : [];
    Charts.draw(at("codes"), counts, ends[0], ends[1], "Histogram of the codes", whole);
  }
  function draw(array, codes, bits, range, steps) {
    var counts = isFinite(range.lo) ? Measures.histogram(array.numbers, range.lo, range.hi, BINS) : [];
    Charts.draw(at("numbers"), counts, range.lo, range.hi, "Histogram of the numbers");
    drawCodes(codes, bits);
    var far = Measures.range(steps), edge = Math.max(0.5, Math.abs(far.lo), Math.abs(far.hi));
    edge = isFinite(edge) ? edge : 0.5;
    Charts.draw(at("errors"), Measures.histogram(steps, -edge, edge, BINS), -edge, edge, "Histogram of the error in steps");
  }

  function show(name, array, answer) {
    var codes = answer.outputs.q, scale = answer.outputs.scale, zero = answer.outputs.zero_point;
    var after = Measures.dequantize(codes, scale, zero), range = Measures.range(array.numbers);
    var measured = Measures.compare(array.numbers, after, scale, array.shape);
    var channels = scale.numbers.length, size = codes.raw.length;
    at("name").textContent = name;
    facts([
      ["shape", array.shape.join(" × ") || "scalar", array.numbers.length + " numbers, " + array.datatype],
      ["range", range.lo <= range.hi ? span(array.numbers) : "none", range.odd ? range.odd + " not finite" : ""],
      ["codes", codes.datatype, new Set(codes.numbers).size + " different ones"],
      ["scale", span(scale.numbers), channels > 1 ? "of " + channels + " channels" : ""],
      ["zero point", span(zero.numbers)],
      ["greatest error", Charts.short(measured.worst), "mean squared " + Charts.short(measured.mse)],
      ["signal to noise", isFinite(measured.sqnr) ? measured.sqnr.toFixed(1) + " dB" : "exact"],
      ["size", bytes(size), "was " + bytes(array.raw.length)],
    ]);
    draw(array, codes, answer.parameters.num_bits, range, measured.steps);
    var stem = name.replace(/\.npy$/i, "");
    offer("get-codes", Npy.write(codes.raw, codes.datatype, codes.shape), stem + ".codes.npy");
    offer("get-numbers", Npy.write(new Uint8Array(after.buffer), "FP32", codes.shape), stem + ".dequantized.npy");
    at("result").hidden = false;
  }

  async function work() {
    if (!file) { return; }
    var mine = ++run, name = file.name;
    say("Quantizing " + name + " …");
    at("result").classList.add("stale");
    try {
      var array = Npy.read(await file.arrayBuffer());
      var answer = await Oip.quantize(at("instance").value, array, parameters(), headers());
      if (mine !== run) { return; } // a later one is under way
      show(name, array, answer);
      say("");
    } catch (error) {
      if (mine !== run) { return; }
      at("result").hidden = true;
      say(error.message, true);
    }
    at("result").classList.remove("stale");
  }

  async function instances() {
    try {
      var response = await fetch("instances", { headers: headers() });
      if (!response.ok) { throw new Error(await Oip.reason(response)); }
      var chosen = at("instance").value, names = await response.json();
      at("instance").replaceChildren.apply(at("instance"), names.map(function (name) { return new Option(name, name, false, name === chosen); }));
      say("");
    } catch (error) { say(error.message, true); }
  }

  function take(files) {
    if (!files.length) { return; }
    file = files[0];
    work();
  }
  at("file").addEventListener("change", function () { take(at("file").files); });
  ["dragenter", "dragover", "dragleave", "drop"].forEach(function (kind) {
    window.addEventListener(kind, function (event) { // anywhere: a file beside the field doesn't replace the page
      event.preventDefault();
      at("drop").classList.toggle("over", kind === "dragenter" || kind === "dragover");
      if (kind === "drop") { take(event.dataTransfer.files); }
    });
  });
  at("drop").addEventListener("keydown", function (event) {
    if (event.key === "Enter" || event.key === " ") { event.preventDefault(); at("file").click(); }
  });
  at("how").addEventListener("submit", function (event) { event.preventDefault(); });
  at("how").addEventListener("change", function (event) {
    if (event.target === at("key")) { instances().then(work); } else { work(); }
  });
  instances();
})();
