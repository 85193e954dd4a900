"use strict";
// Swagger UI over the service's own description. The key stays in this page, and goes to this service alone.

const field = document.getElementById("key");

function withKey(request) {
  if (field.value && new URL(request.url, location.href).origin === location.origin) {
    request.headers["X-API-Key"] = field.value;
  }
  return request;
}

function show() {
  SwaggerUIBundle({
    url: "openapi.json",
    dom_id: "#swagger",
    deepLinking: true,
    requestInterceptor: withKey,
    validatorUrl: null,
  });
}

document.getElementById("access").addEventListener("submit", (event) => {
  event.preventDefault();
  show();
});
show();
