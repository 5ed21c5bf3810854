// The page beside it is served below whatever prefix a proxy adds, so every address here is relative.
window.addEventListener("load", () =>
  SwaggerUIBundle({ url: "openapi.json", dom_id: "#docs", deepLinking: true, validatorUrl: null }),
);
