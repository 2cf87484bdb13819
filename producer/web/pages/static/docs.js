// Swagger UI over this server's own OpenAPI document.

let started = false;
addEventListener("DOMContentLoaded", start);
if (document.readyState !== "loading") start();

function start() {
  if (started || !globalThis.SwaggerUIBundle) return;
  started = true;
  globalThis.ui = SwaggerUIBundle({
    url: "/openapi.json",
    dom_id: "#swagger-ui",
    deepLinking: true,
    defaultModelsExpandDepth: 0,
    presets: [SwaggerUIBundle.presets.apis],
    layout: "BaseLayout",
  });
}
