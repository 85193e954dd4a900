// Files of NumPy arrays (.npy), read and written. Only real numbers: nothing in a file is ever run.
"use strict";
var Npy = (function () {
  var KINDS = {
    "b1": "BOOL", "u1": "UINT8", "u2": "UINT16", "u4": "UINT32", "u8": "UINT64",
    "i1": "INT8", "i2": "INT16", "i4": "INT32", "i8": "INT64", "f2": "FP16", "f4": "FP32", "f8": "FP64",
  };
  var ARRAYS = {
    "BOOL": Uint8Array, "UINT8": Uint8Array, "UINT16": Uint16Array, "UINT32": Uint32Array, "UINT64": BigUint64Array,
    "INT8": Int8Array, "INT16": Int16Array, "INT32": Int32Array, "INT64": BigInt64Array,
    "FP16": Uint16Array, "FP32": Float32Array, "FP64": Float64Array,
  };
  var MAX_HEADER = 4096, MAX_DIMENSIONS = 8;

  function fail(text) { throw new Error(text); }

  function itemsize(datatype) { return ARRAYS[datatype].BYTES_PER_ELEMENT; }

  function header(bytes) {
    var magic = [0x93, 0x4e, 0x55, 0x4d, 0x50, 0x59];
    if (bytes.length < 10 || magic.some(function (byte, i) { return bytes[i] !== byte; })) { fail("This is no .npy file."); }
    var view = new DataView(bytes.buffer, bytes.byteOffset), major = bytes[6], wide = major >= 2;
    if (major < 1 || major > 3) { fail("This .npy file has an unknown version: " + major + "."); }
    var length = wide ? view.getUint32(8, true) : view.getUint16(8, true), start = wide ? 12 : 10;
    if (length > MAX_HEADER || start + length > bytes.length) { fail("The header of this .npy file is damaged."); }
    var text = new TextDecoder("latin1").decode(bytes.subarray(start, start + length));
    var descr = /'descr':\s*'([<>|=])([a-zA-Z]\d+)'/.exec(text);
    var order = /'fortran_order':\s*(True|False)/.exec(text), shape = /'shape':\s*\(([\d\s,]*)\)/.exec(text);
    if (!descr || !KINDS[descr[2]]) { fail("Arrays of real numbers can be quantized; this file holds something else."); }
    if (!order || !shape) { fail("The header of this .npy file is damaged."); }
    var sizes = shape[1].split(",").map(function (s) { return s.trim(); }).filter(Boolean).map(Number);
    if (sizes.length > MAX_DIMENSIONS) { fail("This array has more than " + MAX_DIMENSIONS + " dimensions."); }
    return { datatype: KINDS[descr[2]], big: descr[1] === ">", fortran: order[1] === "True", shape: sizes, start: start + length };
  }

  // The bytes of the items in another order: each item's reversed (big-endian), or the items themselves (Fortran).
  function reversed(bytes, size) {
    var out = new Uint8Array(bytes.length);
    for (var i = 0; i < bytes.length; i += size) { for (var j = 0; j < size; j++) { out[i + j] = bytes[i + size - 1 - j]; } }
    return out;
  }
  function byRows(bytes, size, shape) {
    var out = new Uint8Array(bytes.length), count = bytes.length / size, index = shape.map(function () { return 0; });
    var strides = [], stride = 1;
    shape.forEach(function (n) { strides.push(stride); stride *= n; });
    for (var to = 0; to < count; to++) {
      var from = 0;
      for (var d = 0; d < shape.length; d++) { from += index[d] * strides[d]; }
      for (var j = 0; j < size; j++) { out[to * size + j] = bytes[from * size + j]; }
      for (d = shape.length - 1; d >= 0 && ++index[d] === shape[d]; d--) { index[d] = 0; }
    }
    return out;
  }

  function half(bits) {
    var sign = bits & 0x8000 ? -1 : 1, exponent = (bits >> 10) & 31, fraction = bits & 1023;
    if (exponent === 31) { return fraction ? NaN : sign * Infinity; }
    return sign * (exponent ? Math.pow(2, exponent - 15) * (1 + fraction / 1024) : Math.pow(2, -24) * fraction);
  }

  // The numbers of little-endian bytes, as an array that can be indexed.
  function numbers(bytes, datatype) {
    var aligned = bytes.byteOffset % itemsize(datatype) ? bytes.slice() : bytes;
    var items = new ARRAYS[datatype](aligned.buffer, aligned.byteOffset, aligned.byteLength / itemsize(datatype));
    if (datatype === "FP16") { return Float32Array.from(items, half); }
    return /64$/.test(datatype) && datatype !== "FP64" ? Float64Array.from(items, Number) : items;
  }

  function read(buffer) {
    var bytes = new Uint8Array(buffer), head = header(bytes), size = itemsize(head.datatype);
    var count = head.shape.reduce(function (a, b) { return a * b; }, 1), raw = bytes.subarray(head.start);
    if (raw.length !== count * size) { fail("This .npy file should hold " + count * size + " bytes of numbers; it holds " + raw.length + "."); }
    if (head.big && size > 1) { raw = reversed(raw, size); }
    if (head.fortran && head.shape.length > 1) { raw = byRows(raw, size, head.shape); }
    return { datatype: head.datatype, shape: head.shape, raw: raw, numbers: numbers(raw, head.datatype) };
  }

  function write(raw, datatype, shape) {
    var code = Object.keys(KINDS).find(function (key) { return KINDS[key] === datatype; });
    var sizes = shape.length === 1 ? shape[0] + "," : shape.join(", "), order = itemsize(datatype) > 1 ? "<" : "|";
    var text = "{'descr': '" + order + code + "', 'fortran_order': False, 'shape': (" + sizes + "), }";
    text += " ".repeat(63 - (10 + text.length) % 64) + "\n";
    var head = new Uint8Array(10 + text.length);
    head.set([0x93, 0x4e, 0x55, 0x4d, 0x50, 0x59, 1, 0, text.length & 255, text.length >> 8]);
    head.set(new TextEncoder().encode(text), 10);
    return new Blob([head, raw], { type: "application/octet-stream" });
  }

  return { read: read, write: write, numbers: numbers, itemsize: itemsize };
})();
