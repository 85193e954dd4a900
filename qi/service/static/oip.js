// One call of the service: numbers to codes with their scale and zero point, by the Open Inference Protocol in binary.
"use strict";
var Oip = (function () {
  var LENGTH = "Inference-Header-Content-Length";

  function url(instance) { return "v2/models/" + encodeURIComponent(instance) + "/infer"; }

  function decode(buffer, length) {
    var bytes = new Uint8Array(buffer), start = length, outputs = {};
    var header = JSON.parse(new TextDecoder().decode(bytes.subarray(0, length)));
    header.outputs.forEach(function (output) {
      var end = start + output.parameters.binary_data_size, raw = bytes.subarray(start, end);
      outputs[output.name] = { datatype: output.datatype, shape: output.shape, raw: raw, numbers: Npy.numbers(raw, output.datatype) };
      start = end;
    });
    return { outputs: outputs, parameters: header.parameters || {} };
  }

  // What an error says, whichever of its forms it has.
  async function reason(response) {
    var text = await response.text();
    try {
      var body = JSON.parse(text);
      text = body.error || (typeof body.detail === "string" ? body.detail : JSON.stringify(body.detail)) || text;
    } catch (error) { /* not JSON: the text itself */ }
    return response.status + ": " + (text || response.statusText);
  }

  async function quantize(instance, array, parameters, headers) {
    var input = { name: "x", shape: array.shape, datatype: array.datatype, parameters: { binary_data_size: array.raw.length } };
    var header = new TextEncoder().encode(JSON.stringify({
      parameters: Object.assign({ operation: "quantize", binary_data_output: true }, parameters), inputs: [input],
    }));
    var sent = Object.assign({ "Content-Type": "application/octet-stream" }, headers);
    sent[LENGTH] = String(header.length);
    var response = await fetch(url(instance), { method: "POST", headers: sent, body: new Blob([header, array.raw]) });
    if (!response.ok) { throw new Error(await reason(response)); }
    return decode(await response.arrayBuffer(), Number(response.headers.get(LENGTH)));
  }

  return { quantize: quantize, reason: reason };
})();
