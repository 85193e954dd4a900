// What codes are worth: the numbers they stand for, how far these are off, and histograms.
"use strict";
var Measures = (function () {
  // Which of the scales belongs to an item: scales have the array's dimensions, with 1 where they are shared.
  function which(shape, scale) {
    if (scale.numbers.length === 1) { return function () { return 0; }; }
    var axis = scale.shape.findIndex(function (n) { return n > 1; });
    if (scale.shape.length === 1 && shape.length !== 1) { axis = shape.indexOf(scale.shape[0]); }
    var channels = shape[axis], inner = shape.slice(axis + 1).reduce(function (a, b) { return a * b; }, 1);
    return function (i) { return Math.floor(i / inner) % channels; };
  }

  // The service's own arithmetic: an exact difference, then one rounding to float32.
  function dequantize(codes, scale, zero) {
    var out = new Float32Array(codes.numbers.length), of = which(codes.shape, scale);
    for (var i = 0; i < out.length; i++) {
      var c = of(i);
      out[i] = (codes.numbers[i] - zero.numbers[c]) * scale.numbers[c];
    }
    return out;
  }

  function range(numbers) {
    var lo = Infinity, hi = -Infinity, odd = 0;
    for (var i = 0; i < numbers.length; i++) {
      var x = numbers[i];
      if (!isFinite(x)) { odd++; continue; }
      if (x < lo) { lo = x; }
      if (x > hi) { hi = x; }
    }
    return { lo: lo, hi: hi, odd: odd };
  }

  // How many of the numbers lie in each of so many equal parts of [lo, hi]; what lies beyond is left out.
  function histogram(numbers, lo, hi, bins) {
    var counts = new Array(bins).fill(0), width = (hi - lo) / bins || 1;
    for (var i = 0; i < numbers.length; i++) {
      var x = numbers[i];
      if (x >= lo && x <= hi) { counts[Math.min(bins - 1, Math.floor((x - lo) / width))]++; }
    }
    return counts;
  }

  function compare(before, after, scale, shape) {
    var of = which(shape, scale), worst = 0, noise = 0, power = 0, n = 0, steps = new Float32Array(before.length);
    for (var i = 0; i < before.length; i++) {
      var x = before[i], e = after[i] - x;
      steps[i] = e / scale.numbers[of(i)];
      if (!isFinite(e)) { continue; }
      worst = Math.max(worst, Math.abs(e));
      noise += e * e;
      power += x * x;
      n++;
    }
    return { worst: worst, mse: n ? noise / n : 0, sqnr: noise ? 10 * Math.log10(power / noise) : Infinity, steps: steps };
  }

  return { dequantize: dequantize, range: range, histogram: histogram, compare: compare };
})();
